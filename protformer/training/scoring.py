"""Scoring a run: which proteins, with which weights, and what is known of each protein."""

import math
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from omegaconf import DictConfig
from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ModelCheckpoint

from protformer.data.floors.bootstrap import bootstrap_interval, mean, paired_difference_interval, perplexity
from protformer.data.splits import sample_by_hash
from protformer.data.tables import cell_text, read_rows
from protformer.errors import ProtformerError
from protformer.training.datamodule import PackedDataModule
from protformer.training.module import ProteinModule
from protformer.training.tasks import Row, Split, Task


def sampled(splits: Mapping[str, Split], size: int | None, seed: int) -> dict[str, Split]:
    """The splits with at most `size` sequences in each evaluation set; train stays whole."""
    if size is None:
        return dict(splits)
    return {
        name: split if name == "train" else split.subset(sample_by_hash(split.corpus, size, seed))
        for name, split in splits.items()
    }


def read_bins(table: str | None) -> dict[str, str]:
    """id -> bin, from the columns `id` and `bin` of a table; empty without one."""
    if table is None:
        return {}
    bins: dict[str, str] = {}
    for row in read_rows(Path(table), ["id", "bin"], []):
        name, found = str(row["id"]), cell_text(row["bin"])
        if bins.setdefault(name, found) != found:
            raise ProtformerError(f"evaluate.bins={table}: {name!r} is in bin {bins[name]!r} and in bin {found!r}.")
    return bins


def evaluate(trainer: Trainer, module: ProteinModule, data: PackedDataModule, name: str) -> dict[str, Row]:
    """Score every evaluation set; collective."""
    if not module.evaluations:
        return {}
    data.trainer = trainer
    trainer.test(module, dataloaders=[data.evaluation_loader(e) for e in module.evaluations], verbose=False)
    rows = {}
    for evaluation in module.evaluations:
        row = Row(name, dict(module.results[evaluation]))
        per_sequence = module.details[evaluation].pop("per_sequence", None)
        if per_sequence is not None:
            row.per_sequence = np.asarray(per_sequence)
        rows[evaluation] = row
    return rows


def add_intervals(rows: list[Row], task: Task, seed: int) -> None:
    """95 % intervals over proteins for perplexities, and each floor's paired distance from the trained model."""
    trained = rows[-1]
    for row in rows:
        if row.per_sequence is None or len(row.per_sequence) < 2 or not task.monitor.startswith("perplexity"):
            continue
        row.figures |= intervals(row.per_sequence, task.monitor.removeprefix("perplexity_"), seed)
        if row is trained or trained.per_sequence is None:
            continue
        mine, theirs = _by_record(trained.per_sequence), _by_record(row.per_sequence)
        shared = sorted(mine.keys() & theirs.keys())
        pairs = np.array([[mine[r][0], theirs[r][0], mine[r][1]] for r in shared])
        low, high = paired_difference_interval(pairs[:, 0], pairs[:, 1], pairs[:, 2], statistic=perplexity, seed=seed)
        row.figures["trained_minus_this_low"], row.figures["trained_minus_this_high"] = float(low), float(high)


def intervals(scores: np.ndarray, headline: str, seed: int) -> dict[str, float]:
    """Perplexity and accuracy at headline targets with 95 % intervals over proteins, from `Row.per_sequence`."""
    _, nll, targets, correct = scores.T
    figures = {}
    for name, sums, statistic in (("perplexity", nll, perplexity), ("accuracy", correct, mean)):
        figures[f"{name}_{headline}"] = float(statistic(sums.sum(), targets.sum()))
        low, high = bootstrap_interval(sums, targets, statistic, seed=seed)
        figures[f"{name}_{headline}_low"], figures[f"{name}_{headline}_high"] = float(low), float(high)
    return figures


def _by_record(rows: np.ndarray) -> dict[int, tuple[float, float]]:
    return {int(record): (total, count) for record, total, count, _ in rows}


def choose_weights(
    config: DictConfig,
    trainer: Trainer,
    module: LightningModule,
    data: PackedDataModule,
    checkpoints: list[ModelCheckpoint],
    monitor: str | None,
) -> str:
    """Leave the weights to be scored and saved in `module`; says which they are."""
    best = next((c for c in checkpoints if c.monitor and c.best_model_path), None)
    step = trainer.global_step
    score = math.nan if best is None or best.best_model_score is None else float(best.best_model_score)
    if config.evaluate.weights == "last" or best is None or monitor is None or math.isnan(score):
        return f"last (step {step})"
    if not best.best_model_path.endswith(f"step_{step:07d}.ckpt"):
        # The run may have ended between validations: its last weights are a candidate too.
        last = trainer.validate(module, datamodule=data, verbose=False)[0][f"valid/{monitor}"]
        # (written so that a last figure of NaN is the worse one)
        if not (last <= score if best.mode == "min" else last >= score):
            checkpoint = torch.load(best.best_model_path, map_location="cpu", weights_only=True)
            module.load_state_dict(checkpoint["state_dict"])
            return f"best on valid (step {checkpoint['global_step']} of {step})"
    return f"last (step {step}), which are the best on valid"
