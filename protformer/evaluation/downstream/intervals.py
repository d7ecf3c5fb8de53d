"""95 % intervals over proteins: of accuracy from hits per protein, of a rank correlation by resampling proteins."""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from scipy.stats import rankdata

from protformer.data.floors.bootstrap import Interval, bootstrap_interval, mean
from protformer.evaluation.comparison.proteins import read_proteins
from protformer.evaluation.paired import Difference

RESAMPLES = 1000


def accuracy_interval(per_protein: Path, name: str, *, seed: int = 0) -> Interval:
    """Of the accuracy on set `name`, from a run's `per_protein.tsv`."""
    found = read_proteins(per_protein)[name]
    return bootstrap_interval(found.correct, found.targets, mean, seed=seed, resamples=RESAMPLES)


def spearman_interval(predictions: Sequence[Sequence[float]], *, seed: int = 0, resamples: int = RESAMPLES) -> Interval:
    """Of Spearman's rank correlation over (record, prediction, target); NaN for fewer than three records.

    Ties get mean ranks, as they must: a resample has many.
    """
    values = np.asarray(predictions, float)
    if len(values) < 3:
        return Interval(float("nan"), float("nan"))
    return _percentiles(lambda drawn: spearman(*values[drawn, 1:].T), len(values), seed, resamples)


def spearman_difference(
    one: Sequence[Sequence[float]], other: Sequence[Sequence[float]], *, seed: int = 0, resamples: int = RESAMPLES
) -> Difference | None:
    """Spearman's of `one` minus that of `other`, both (record, prediction, target), on resamples of the same proteins.

    None where the records are not the same, or fewer than three.
    """
    by_record = {row[0]: row for row in other}
    if len(one) < 3 or len(by_record) != len(other) or {row[0] for row in one} != set(by_record):
        return None
    mine, theirs = np.asarray(one, float), np.asarray([by_record[row[0]] for row in one], float)
    if not np.array_equal(mine[:, 2], theirs[:, 2]):
        return None

    def difference(drawn: np.ndarray) -> float:
        return spearman(*mine[drawn, 1:].T) - spearman(*theirs[drawn, 1:].T)

    return Difference(difference(np.arange(len(mine))), *_percentiles(difference, len(mine), seed, resamples))


def _percentiles(statistic: Callable[[np.ndarray], float], count: int, seed: int, resamples: int) -> Interval:
    """95 % interval of `statistic`, a function of the places that are drawn of `count`, with replacement (percentile
    bootstrap, Efron & Tibshirani 1993, chapter 13); NaN where it is never finite."""
    generator = np.random.default_rng(seed)
    found = [statistic(generator.integers(count, size=count)) for _ in range(resamples)]
    low, high = np.nanquantile(found, [0.025, 0.975]) if np.isfinite(found).any() else (np.nan, np.nan)
    return Interval(float(low), float(high))


def spearman(predicted: np.ndarray, targets: np.ndarray) -> float:
    """Pearson's correlation of the ranks; NaN where one side is constant."""
    x, y = rankdata(predicted), rankdata(targets)
    x, y = x - x.mean(), y - y.mean()
    norm = float(np.sqrt((x @ x) * (y @ y)))
    return float(x @ y) / norm if norm > 0 else float("nan")
