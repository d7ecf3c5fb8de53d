"""The shape of a floor's answer, and the scores floors are compared by."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

__all__ = ["FloorResult", "binary_metrics", "cap", "check_lengths", "joined", "multiclass_metrics"]


@dataclass(frozen=True)
class FloorResult:
    """One floor on one evaluation set: its name, its figures (fractions, not percent), what a reader should know."""

    name: str
    metrics: dict[str, float] = field(default_factory=dict)
    note: str = ""


def multiclass_metrics(targets: Any, predictions: Any) -> dict[str, float]:
    """Accuracy, macro-F1 and Matthews correlation of two label columns of equal length (strings or integers).

    Macro-F1 is over the classes that occur in either column, as scikit-learn and torchmetrics have it. MCC is
    Gorodkin's for several classes, and 0 where one column is constant. Without any target every figure is nan.
    """
    targets, predictions = np.asarray(targets), np.asarray(predictions)
    if targets.shape != predictions.shape:
        raise ValueError(f"{targets.shape} targets and {predictions.shape} predictions cannot be compared")
    if targets.size == 0:
        return dict.fromkeys(("accuracy", "macro_f1", "mcc"), float("nan"))
    classes, codes = np.unique(np.concatenate([targets, predictions]), return_inverse=True)
    size = len(classes)
    confusion = np.bincount(codes[: targets.size] * size + codes[targets.size :], minlength=size * size)
    confusion = confusion.reshape(size, size).astype(np.float64)
    actual, guessed, hits, total = confusion.sum(1), confusion.sum(0), np.diag(confusion), confusion.sum()
    spread = np.sqrt((total**2 - actual @ actual) * (total**2 - guessed @ guessed))
    return {
        "accuracy": float(hits.sum() / total),
        "macro_f1": float(np.mean(2 * hits / (actual + guessed))),
        "mcc": float((hits.sum() * total - actual @ guessed) / spread) if spread > 0 else 0.0,
    }


def binary_metrics(targets: np.ndarray, predictions: np.ndarray) -> dict[str, float]:
    """The same three for several labels a record, both arrays [records, labels] of 0 and 1.

    Accuracy is over all (record, label) entries, macro-F1 the mean over labels of the positive class's F1 (0 for a
    label that is never right, as torchmetrics has it), MCC over all entries at once.
    """
    targets, predictions = np.asarray(targets).astype(bool), np.asarray(predictions).astype(bool)
    pooled = multiclass_metrics(targets.ravel(), predictions.ravel())
    if targets.size == 0:
        return pooled
    hits, either = (targets & predictions).sum(0), targets.sum(0) + predictions.sum(0)
    f1 = np.divide(2.0 * hits, either, out=np.zeros(targets.shape[1]), where=either > 0)
    return {"accuracy": pooled["accuracy"], "macro_f1": float(f1.mean()), "mcc": pooled["mcc"]}


def cap(records: int, limit: int, seed: int) -> tuple[np.ndarray, str]:
    """Indices of at most `limit` records, drawn without replacement and kept in order, and the words that say so."""
    if records <= limit:
        return np.arange(records), ""
    chosen = np.sort(np.random.default_rng(seed).choice(records, limit, replace=False))
    return chosen, f"fitted on a random {limit:,} of {records:,} training sequences"


def joined(*remarks: str) -> str:
    """Remarks that are not empty, as one note."""
    return "; ".join(remark for remark in remarks if remark)


def check_lengths(what: str, sequences: Sequence[str], labels: Any) -> None:
    """ValueError where there is not one label a sequence; `what` names the labels and their set."""
    if len(sequences) != len(labels):
        raise ValueError(f"{len(sequences)} sequences came with {len(labels)} {what}")
