"""One training job, from a resolved configuration to a run folder: load, build, train, score, save, report."""

import logging
import os
import warnings
from pathlib import Path
from typing import Any

import pytorch_lightning as lightning
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from pytorch_lightning import Callback, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from protformer import __version__
from protformer.attention import factory_from_config
from protformer.data.alphabet import TOKENS
from protformer.errors import ProtformerError
from protformer.model import (
    Encoder,
    ProteinEncoder,
    ProteinModel,
    initialise_from,
    parameter_count,
    read_config,
    save_model,
)
from protformer.training.attention_callbacks import attention_callbacks
from protformer.training.callbacks import ReturnMemory, SameData, SeedEachStep, Throughput
from protformer.training.curve import LearningCurve
from protformer.training.datamodule import PackedDataModule
from protformer.training.loggers import job_logger
from protformer.training.module import ProteinModule
from protformer.training.record import Finished, log_final, training_figures, write_record
from protformer.training.report import print_closing_table
from protformer.training.scoring import add_intervals, choose_weights, evaluate, read_bins, sampled
from protformer.training.settings import JobSettings
from protformer.training.tasks import Row, Split, Task

log = logging.getLogger(__name__)

LOADER_KEYS = ("batch_tokens", "eval_tokens", "num_workers", "repeat_steps", "concatenate")


def execute(settings: JobSettings) -> dict[str, Any]:
    """Run the job in this process (one rank of it). Returns the figures by evaluation set."""
    config = OmegaConf.create(settings.config)
    run_dir = Path(settings.run_dir)
    seed = int(config.seed)
    # oneDNN keeps a compiled kernel for each shape it meets, 1024 of them, most of a megabyte each; every pack has a
    # shape of its own, and only the layers of one step share it.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    lightning.seed_everything(seed, verbose=False)
    logging.getLogger("pytorch_lightning.utilities.rank_zero").setLevel(logging.WARNING)
    # Lightning 2.6 asks PyTorch's pytree in a way that PyTorch now calls deprecated.
    warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")
    warnings.filterwarnings("ignore", message="Metric `SpearmanCorrcoef` will save all targets")  # 8 bytes a sequence
    warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")  # as resumed ones do
    # True of its own loaders; `TrainingOrder` goes on where the run left off.
    warnings.filterwarnings("ignore", message=r"You're resuming from a checkpoint that ended before the epoch ended")

    if config.evaluate.weights not in ("best", "last"):
        raise ProtformerError(f"evaluate.weights={config.evaluate.weights}: write best or last.")

    task: Task = instantiate(config.task)
    source = _source(config)
    bins = read_bins(config.evaluate.bins)
    splits: dict[str, Split] = source.load(task.label_kind)
    whole = {name: len(split.corpus) for name, split in splits.items()}
    splits = sampled(splits, config.evaluate.sample, int(config.evaluate.seed))
    evaluations = [name for name in splits if name != "train"]
    known: dict[str, list[Row]] = {}
    if config.evaluate.floors and task.name == "masked_residue" and hasattr(source, "references"):
        # what is known is of whole sets
        known = {name: found for name, found in source.references().items() if whole[name] == len(splits[name].corpus)}
    mask_seed = {name: seed if name == "train" else int(config.evaluate.seed) for name in splits}
    objectives = {
        name: task.objective(split, seed=mask_seed[name], training=name == "train") for name, split in splits.items()
    }
    data = PackedDataModule(
        objectives=objectives, seed=seed, **{k: config.data[k] for k in LOADER_KEYS if k in config.data}
    )
    model = build_model(settings, config, task, splits["train"])
    data.refuse_longer(model.trunk.encoder.longest)
    module = ProteinModule(
        model=model,
        task=task,
        optimisation=instantiate(config.optimizer),
        evaluations=evaluations,
        classes=splits["train"].classes,
        freeze_trunk=config.freeze,
        compile_model=config.compile,
    )
    monitor = task.monitor if "valid" in splits else None
    logger = job_logger(settings, parameters=parameter_count(model))
    throughput = Throughput()
    curve = LearningCurve(throughput)
    callbacks = [
        SeedEachStep(seed),
        SameData(splits["train"].corpus.digest()),
        throughput,
        curve,
        ReturnMemory(),
        *attention_callbacks(config, model.trunk, data),
        *_callbacks(config, task, run_dir, monitor),
    ]
    trainer = build_trainer(config, logger, callbacks, run_dir, monitor)
    _say_sizes(settings, model, data, trainer)

    rows: dict[str, list[Row]] = {name: [] for name in evaluations}
    if config.evaluate.untrained and evaluations:
        name = "untrained" if config.init_from is None else "before training"
        for evaluation, row in evaluate(trainer, module, data, name).items():
            rows[evaluation].append(row)
        if rows.get("valid"):
            curve.start(rows["valid"][0].figures)
    trainer.fit(module, datamodule=data, ckpt_path=_checkpoint_path(config), weights_only=True)
    checkpoints = [c for c in callbacks if isinstance(c, ModelCheckpoint)]
    trainer.save_checkpoint(run_dir / "checkpoints" / "last.ckpt", weights_only=False)
    weights = choose_weights(config, trainer, module, data, checkpoints, monitor)
    for evaluation, row in evaluate(trainer, module, data, "trained").items():
        rows[evaluation].append(row)

    results = {name: rows[name][-1].figures for name in evaluations if rows[name]}
    if trainer.is_global_zero:
        if config.evaluate.floors and evaluations:
            floors = task.floors(splits["train"], {n: splits[n] for n in evaluations}, objectives, seed)
            rows = {name: [*known.get(name, []), *floors.get(name, []), *rows[name]] for name in evaluations}
        for name in evaluations:
            add_intervals(rows[name], task, seed)
        classes = list(splits["train"].classes)
        metadata = {"task": task.name, "classes": classes, "weights": weights, "protformer": __version__}
        if hasattr(task, "spread"):
            metadata |= {"target_mean": task.mean, "target_spread": task.spread}  # pyright: ignore[reportAttributeAccessIssue]
        save_model(model, run_dir / "model", tokens=TOKENS, metadata=metadata)
        run = Finished(
            settings=settings,
            task=task,
            model=model,
            splits=splits,
            whole=whole,
            rows=rows,
            details=module.details,
            bins=bins,
            curve=curve.points,
            training=training_figures(trainer, throughput, model.trunk.encoder.draw),
            weights=weights,
        )
        write_record(run)
        print_closing_table(run)
        log_final(trainer, rows)
    trainer.strategy.barrier()
    return results


def _source(config: DictConfig) -> Any:
    return instantiate({k: v for k, v in config.data.items() if k not in LOADER_KEYS}, _convert_="all")


def build_model(settings: JobSettings, config: DictConfig, task: Task, train: Split) -> ProteinModel:
    """A new model of the configuration, or, with `init_from`, one of the folder's shape with its weights."""
    shape = {k: v for k, v in config.model.items() if k != "token_dropout"}
    token_dropout = bool(config.model.token_dropout)
    attention = instantiate(config.attention)
    if config.init_from is not None:
        theirs = read_config(config.init_from, tokens=TOKENS)["model"]["trunk"]
        if not settings.chose("model"):
            shape |= {k: theirs[k] for k in shape.keys() & theirs.keys()}
            token_dropout = theirs["token_dropout"]
        if not settings.chose_attention:
            causal = task.causal if task.label_kind == "none" else theirs["attention"]["causal"]
            attention = factory_from_config({**theirs["attention"], "causal": causal})
    elif config.freeze:
        raise ProtformerError(
            "freeze=true trains the head alone, on a trunk that has learned: give init_from=FOLDER too."
        )
    encoder = Encoder(attention=attention, feature_seed=int(config.seed), **shape)
    trunk = ProteinEncoder(encoder=encoder, vocabulary_size=len(TOKENS), token_dropout=token_dropout)
    head = task.head(hidden_size=encoder.hidden_size, vocabulary_size=len(TOKENS), classes=len(train.classes))
    model = ProteinModel(trunk=trunk, head=head)
    if config.init_from is not None:
        copied = initialise_from(model, config.init_from, classes=train.classes)
        log.info("weights of %s copied: %s", config.init_from, " and ".join(copied))
    return model


def _callbacks(config: DictConfig, task: Task, run_dir: Path, monitor: str | None) -> list[Callback]:
    built = []
    for name, callback in config.callbacks.items():
        if callback is None:
            continue
        extra = {}
        if name in ("checkpoint", "early_stopping"):
            extra = {"run_dir": str(run_dir), "monitor": monitor, "mode": task.mode}
        built.append(instantiate(callback, **extra))
    return built


def build_trainer(
    config: DictConfig, logger: Any, callbacks: list[Callback], run_dir: Path, monitor: str | None
) -> Trainer:
    """The Lightning trainer of the configuration, with the settings that packed batches need."""
    arguments = OmegaConf.to_container(config.trainer, resolve=True)
    assert isinstance(arguments, dict)
    if monitor is None:
        arguments["limit_val_batches"] = 0
    if isinstance(arguments["val_check_interval"], int):
        # the configuration counts optimiser steps, Lightning counts micro-batches
        arguments["val_check_interval"] *= arguments["accumulate_grad_batches"]
    elif isinstance(arguments["val_check_interval"], float) and arguments["check_val_every_n_epoch"] is None:
        arguments["check_val_every_n_epoch"] = 1  # a share of each epoch
    return instantiate(
        arguments,
        logger=logger if logger is not None else False,
        callbacks=callbacks,
        default_root_dir=str(run_dir),
        use_distributed_sampler=False,  # the packing plan deals to ranks
        reload_dataloaders_every_n_epochs=1,  # the number of batches differs from epoch to epoch
        enable_model_summary=False,
    )


def _say_sizes(settings: JobSettings, model: ProteinModel, data: PackedDataModule, trainer: Trainer) -> None:
    if not trainer.is_global_zero:
        return
    plan = data.plans["train"]
    log.info(
        "%s: %s parameters, %s training sequences of up to %s residues, %s tokens a step on %s",
        settings.run_name,
        f"{parameter_count(model):,}",
        f"{len(plan.lengths):,}",
        f"{plan.longest - 2:,}",
        f"{plan.budget:,}",
        f"{trainer.world_size} x {trainer.strategy.root_device.type}",
    )
    if plan.longest > plan.budget:
        over = int((plan.lengths > plan.budget).sum())
        log.info("%s sequences are longer than data.batch_tokens: each makes a step of its own, whole", f"{over:,}")


def _checkpoint_path(config: DictConfig) -> str | None:
    if config.ckpt_path is None:
        return None
    if not Path(config.ckpt_path).is_file():
        raise ProtformerError(
            f"ckpt_path={config.ckpt_path}: there is no such file; give a .ckpt of a run's checkpoints/."
        )
    return str(config.ckpt_path)
