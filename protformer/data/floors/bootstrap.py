"""How far a figure could move with other proteins: percentile bootstrap over proteins.

Residues of one protein share its composition, its family and its length, so they are no independent draws: an
interval over residues would be several times too narrow. Here whole proteins are drawn with replacement, and since
every figure is a ratio of sums (never a mean of means), a resample needs only each protein's sum and count.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

__all__ = ["Interval", "bootstrap_interval", "mean", "paired_difference_interval", "perplexity", "sum_by_sequence"]

Statistic = Callable[[Any, Any], Any]  # (totals, counts), numbers or arrays, to figures of the same shape

_DRAWS_AT_ONCE = 4_000_000  # proteins drawn per chunk: 32 MB of indices, whatever the number of proteins


class Interval(NamedTuple):
    low: float
    high: float


def perplexity(sums: Any, counts: Any) -> Any:
    """exp(total NLL / targets); NLL in nats; numbers, or arrays of them."""
    return np.exp(sums / counts)


def mean(sums: Any, counts: Any) -> Any:
    """Total / targets: accuracy where the sums are hits, mean NLL in nats where they are NLL."""
    return sums / counts


def sum_by_sequence(values: np.ndarray, sequence_of_value: np.ndarray, sequences: int) -> tuple[np.ndarray, np.ndarray]:
    """Per-target values [n] (NLL, or hits) to the sums and counts [sequences] that the intervals take."""
    sums = np.bincount(sequence_of_value, weights=values, minlength=sequences)
    return sums, np.bincount(sequence_of_value, minlength=sequences)


def bootstrap_interval(
    per_sequence_sums: np.ndarray,
    per_sequence_counts: np.ndarray,
    statistic: Statistic = perplexity,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of `statistic(total, targets)` over proteins.

    `per_sequence_sums` and `per_sequence_counts` are [sequences]; proteins without a target take no part. With one
    protein the interval has no width, with none it is (nan, nan). Source: Efron & Tibshirani, An Introduction to the
    Bootstrap (1993), chapter 13.
    """
    columns, counts = _with_targets(per_sequence_counts, per_sequence_sums)
    values = [statistic(totals[0], drawn) for *totals, drawn in _resamples(columns, counts, resamples, seed)]
    return _percentiles(values, level)


def paired_difference_interval(
    per_sequence_sums: np.ndarray,
    per_sequence_floor_sums: np.ndarray,
    per_sequence_counts: np.ndarray,
    statistic: Statistic = perplexity,
    *,
    level: float = 0.95,
    resamples: int = 1000,
    seed: int = 0,
) -> Interval:
    """Percentile interval of `statistic(model) - statistic(floor)` where both columns score the same targets.

    Both sides see the same drawn proteins, so what makes a protein easy for both cancels: the interval is much
    narrower than two separate ones suggest. For perplexity a model beats the floor where `high < 0`; for accuracy
    where `low > 0`.
    """
    columns, counts = _with_targets(per_sequence_counts, per_sequence_sums, per_sequence_floor_sums)
    values = [
        statistic(model, drawn) - statistic(floor, drawn)
        for model, floor, drawn in _resamples(columns, counts, resamples, seed)
    ]
    return _percentiles(values, level)


def _with_targets(counts: np.ndarray, *columns: np.ndarray) -> tuple[list[np.ndarray], np.ndarray]:
    counts = np.asarray(counts)
    if any(np.shape(column) != counts.shape for column in columns):
        raise ValueError(
            f"sums {[np.shape(c) for c in columns]} and counts {counts.shape} must be one value a sequence"
        )
    kept = counts > 0
    return [np.asarray(column, dtype=np.float64)[kept] for column in columns], counts[kept].astype(np.float64)


def _resamples(columns: list[np.ndarray], counts: np.ndarray, resamples: int, seed: int) -> Iterator[tuple]:
    """Totals of every column, then of the counts, each [resamples of this chunk]."""
    generator, proteins = np.random.default_rng(seed), len(counts)
    if proteins == 0:
        return
    rows = max(1, _DRAWS_AT_ONCE // proteins)
    for start in range(0, resamples, rows):
        drawn = generator.integers(proteins, size=(min(rows, resamples - start), proteins))
        yield tuple(column[drawn].sum(1) for column in (*columns, counts))


def _percentiles(values: list[np.ndarray], level: float) -> Interval:
    if not 0 < level < 1:
        raise ValueError(f"level={level} is no coverage between 0 and 1")
    if not values:
        return Interval(float("nan"), float("nan"))
    low, high = np.quantile(np.concatenate(values), [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))
