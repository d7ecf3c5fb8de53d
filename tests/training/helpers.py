"""Tiny jobs for the tests of the training room: a corpus, a task, a trainer, without Hydra."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from pytorch_lightning import Callback, Trainer

from protformer.attention import ExactAttention, FavorAttention
from protformer.data import alphabet
from protformer.data.corpus import Corpus
from protformer.features import PositiveFeatures
from protformer.model import Encoder, ProteinEncoder, ProteinModel
from protformer.training.attention_callbacks import attention_callbacks
from protformer.training.callbacks import SeedEachStep, Throughput
from protformer.training.datamodule import PackedDataModule
from protformer.training.module import ProteinModule
from protformer.training.optimisation import Optimisation
from protformer.training.tasks import ResiduePrediction, Split


def random_corpus(sequences: int = 60, seed: int = 0, longest: int = 40) -> Corpus:
    generator = np.random.default_rng(seed)
    lengths = generator.integers(5, longest, sequences)
    texts = ["".join(generator.choice(list(alphabet.STANDARD), n)) for n in lengths]
    return Corpus.from_sequences([f"p{i}" for i in range(sequences)], texts)


class Losses(Callback):
    """The training loss of every optimiser step, as it was logged."""

    def __init__(self) -> None:
        self.by_step: dict[int, float] = {}

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if "train/loss" in trainer.callback_metrics:
            self.by_step[trainer.global_step] = float(trainer.callback_metrics["train/loss"])


def small_model(
    task: Any,
    *,
    dropout: float = 0.1,
    exact: bool = False,
    features: Any = None,
    attention: Any = FavorAttention,
    checkpoint_activations: bool = False,
    classes: int = 0,
) -> ProteinModel:
    torch.manual_seed(0)
    features = features or (lambda **k: PositiveFeatures(**k, num_features=8))
    make: Any = (
        (lambda **s: ExactAttention(**s, causal=task.causal))
        if exact
        else (lambda **s: attention(**s, features=features, causal=task.causal))
    )
    encoder = Encoder(
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention=make,
        dropout=dropout,
        checkpoint_activations=checkpoint_activations,
    )
    return ProteinModel(
        trunk=ProteinEncoder(encoder=encoder), head=task.head(hidden_size=16, vocabulary_size=33, classes=classes)
    )


def train(
    folder: Path | None = None,
    *,
    task: Any = None,
    splits: dict[str, Split] | None = None,
    ckpt_path: Path | None = None,
    dropout: float = 0.1,
    batch_tokens: int = 300,
    save_at: int | None = None,
    redraw_every: int = 3,
    redraw: dict[str, Any] | None = None,
    diagnostics: dict[str, Any] | None = None,
    model: dict[str, Any] | None = None,
    module_options: dict[str, Any] | None = None,
    exact: bool = False,
    **trainer_arguments: Any,
) -> tuple[dict[int, float], ProteinModule, Trainer]:
    """Fit a tiny model; the losses by optimiser step, the module and the trainer.

    `redraw` and `diagnostics` are the configuration's; `model` and `module_options` go to `small_model` and the module.
    """
    task = task or ResiduePrediction()
    splits = splits or {"train": Split("train", random_corpus()), "valid": Split("valid", random_corpus(12, seed=1))}
    data = PackedDataModule(
        objectives={name: task.objective(split, seed=5, training=name == "train") for name, split in splits.items()},
        batch_tokens=batch_tokens,
        seed=3,
    )
    module = ProteinModule(
        model=small_model(task, dropout=dropout, exact=exact, classes=len(splits["train"].classes), **(model or {})),
        task=task,
        optimisation=Optimisation(optimizer=torch.optim.AdamW, lr=5e-3, warmup_steps=2, schedule="constant"),
        evaluations=[name for name in splits if name != "train"],
        classes=splits["train"].classes,
        **(module_options or {}),
    )
    every = {"_target_": "protformer.training.redraw.Every", "every": redraw_every}
    config = OmegaConf.create(
        {
            "seed": 0,
            "freeze": module.freeze_trunk,
            "redraw": redraw or every,
            "diagnostics": {"every": 0, "rows": 16, "tokens": 200, **(diagnostics or {})},
        }
    )
    losses = Losses()
    callbacks = [
        SeedEachStep(0),
        Throughput(),
        *attention_callbacks(config, module.model.trunk, data),
        losses,
    ]
    if save_at is not None:
        assert folder is not None
        callbacks.append(SaveAt(save_at, folder / "saved.ckpt"))
    arguments: dict[str, Any] = {
        "max_steps": 10,
        "max_epochs": -1,
        "accelerator": "cpu",
        "devices": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "use_distributed_sampler": False,
        "reload_dataloaders_every_n_epochs": 1,
        "num_sanity_val_steps": 0,
        "check_val_every_n_epoch": None,
        "val_check_interval": 4,
        **trainer_arguments,
    }
    trainer = Trainer(**arguments, callbacks=callbacks, default_root_dir=None if folder is None else str(folder))
    trainer.fit(module, datamodule=data, ckpt_path=None if ckpt_path is None else str(ckpt_path), weights_only=True)
    data.trainer = trainer
    return losses.by_step, module, trainer


class SaveAt(Callback):
    """A checkpoint after optimiser step `step`, as an interruption would leave it."""

    def __init__(self, step: int, path: Path) -> None:
        self.step = step
        self.path = path

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)
