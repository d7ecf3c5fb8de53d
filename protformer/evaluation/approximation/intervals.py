"""Means over samples with 95 % intervals: Student's t, since samples are few and independent of one another."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from scipy.stats import t


class Mean(NamedTuple):
    mean: float
    low: float
    high: float

    def columns(self, name: str) -> dict[str, float]:
        return {name: self.mean, f"{name}_low": self.low, f"{name}_high": self.high}


def mean_of(values: Sequence[float] | np.ndarray, *, level: float = 0.95) -> Mean:
    """The mean of figures that are at least 0, with its interval; NaN where there is no value.

    Where the lower end would be at zero or below, where no error lies and a logarithmic axis has no place, it is the
    least value: so it is with heavy tails, such as the trigonometric features', and with two or three samples, of which
    such an interval holds the truth less often than it says.
    """
    values = np.asarray(values, dtype=np.float64)
    if len(values) == 0 or not np.isfinite(values).all():
        return Mean(math.nan, math.nan, math.nan)
    mean, half = float(values.mean()), _half_width(values, level)
    return Mean(mean, mean - half if mean > half else float(values.min()), mean + half)


def ratio_of(ours: np.ndarray, theirs: np.ndarray, *, level: float = 0.95) -> Mean:
    """The geometric mean of ours over theirs, paired by sample, with its interval; NaN where one is not above 0."""
    both = np.concatenate([ours, theirs])
    if len(both) == 0 or not np.isfinite(both).all() or both.min() <= 0:
        return Mean(math.nan, math.nan, math.nan)
    logs = np.log(ours / theirs)
    mean, half = float(logs.mean()), _half_width(logs, level)
    return Mean(math.exp(mean), math.exp(mean - half), math.exp(mean + half))


def _half_width(values: np.ndarray, level: float) -> float:
    if len(values) < 2:
        return math.inf
    return float(t.ppf((1 + level) / 2, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values)))
