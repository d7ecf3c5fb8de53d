"""95 % intervals over proteins: of accuracy from hits per protein, of a rank correlation by resampling proteins."""

import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from protformer.data.floors.bootstrap import Interval, bootstrap_interval, mean

RESAMPLES = 1000


def accuracy_interval(per_protein: Path, name: str, *, seed: int = 0) -> Interval:
    """Of the accuracy on set `name`, from a run's `per_protein.tsv`."""
    with per_protein.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file, delimiter="\t") if row["set"] == name]
    hits, targets = (np.array([float(row[column]) for row in rows]) for column in ("correct", "targets"))
    return bootstrap_interval(hits, targets, mean, seed=seed, resamples=RESAMPLES)


def spearman_interval(predictions: Sequence[Sequence[float]], *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Of Spearman's rank correlation over (record, prediction, target); NaN for fewer than three records.

    Percentile bootstrap (Efron & Tibshirani 1993, chapter 13). Ties get mean ranks, as they must: a resample has many.
    """
    values = np.asarray(predictions, float)
    if len(values) < 3:
        return Interval(float("nan"), float("nan"))
    generator = np.random.default_rng(seed)
    found = []
    for _ in range(resamples):
        drawn = values[generator.integers(len(values), size=len(values))]
        found.append(spearman(drawn[:, 1], drawn[:, 2]))
    low, high = np.nanquantile(found, [0.025, 0.975]) if np.isfinite(found).any() else (np.nan, np.nan)
    return Interval(float(low), float(high))


def spearman(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Pearson's correlation of the ranks; NaN where one side is constant."""
    x, y = rankdata(predicted), rankdata(targets)
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 0 else float("nan")
