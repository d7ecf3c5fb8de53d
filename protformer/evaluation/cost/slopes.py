"""The exponent of a cost in length: a straight line through logarithms, over the longest half of the lengths."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

FEWEST = 3
"""Lengths that a line needs to have an error."""


class Slope(NamedTuple):
    slope: float
    error: float
    """Standard error of least squares, which knows scatter about the line and not what all calls share."""
    shortest: int
    longest: int
    points: int


def fit_slope(lengths: Sequence[int], costs: Sequence[float]) -> Slope | None:
    """log cost = a + slope x log length, over the longer half (rounded up, three at least); None for fewer lengths."""
    order = np.argsort(lengths)
    kept = order[-max(math.ceil(len(order) / 2), FEWEST) :]
    if len(kept) < FEWEST:
        return None
    x, y = np.log(np.asarray(lengths, float)[kept]), np.log(np.asarray(costs, float)[kept])
    x = x - x.mean()
    slope = float(x @ y / (x @ x))
    residuals = y - y.mean() - slope * x
    error = math.sqrt(float(residuals @ residuals) / (len(kept) - 2) / float(x @ x))
    return Slope(slope, error, int(min(lengths[i] for i in kept)), int(max(lengths[i] for i in kept)), len(kept))
