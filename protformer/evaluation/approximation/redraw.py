"""What redrawing the projection does to the error: outputs over several draws, on the same inputs.

A model whose projection stays has the error of one draw in every step: the same tokens are misjudged in the same way,
and how large it is depends on the luck of the draw. A model whose projection is redrawn meets another error each time,
and what it learns from is closer to the mean over draws. So of D draws:

- the error of the mean of n outputs, for n = 1, 2, 4, ..., D (disjoint groups of draws, averaged). At n = 1 it is what
  a fixed projection keeps forever. An unbiased estimate of the output would fall as n^-1/2;
- but attention is a ratio of estimates, and that has a bias, which no redrawing averages out: `bias_share` is the share
  of the mean squared error of one draw that is the square of the bias. It is unbiased itself:
  |mean - exact|^2 less the mean's own variance;
- `luckiest` and `unluckiest`: 5th and 95th percentile of the error over single draws.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from protformer.attention import FavorAttention
from protformer.evaluation.approximation.errors import Reference


class Redrawn(NamedTuple):
    """Of one estimator on one sample."""

    errors: Float64[np.ndarray, " sizes"]
    """Mean over heads and groups of the relative output error of the mean of 1, 2, 4, ... draws."""
    luckiest: float
    unluckiest: float
    bias_squared: float
    """Sum over rows, heads and dimensions; may be negative by chance."""
    squared_error: float
    """Of one draw, the same sum."""


def redrawn(reference: Reference, estimate: FavorAttention, generators: list[torch.Generator]) -> Redrawn:
    """Draws the projection once from each generator (their number is a power of two)."""
    count = len(generators)
    sizes = count.bit_length()
    errors: list[list[np.ndarray]] = [[] for _ in range(sizes)]
    # means of 1, 2, 4, ... draws that wait for their neighbour: outputs of all draws at once would take gigabytes
    waiting: list[Tensor | None] = [None] * sizes
    squared, of_mean = 0.0, 0.0
    for generator in generators:
        estimate.redraw_(generator)
        mean = reference.output(estimate) - reference.exact
        squared += float(mean.square().sum())
        for size in range(sizes):
            errors[size].append(reference.relative(mean))
            neighbour, waiting[size] = waiting[size], None
            if neighbour is None:
                waiting[size] = mean
                break
            mean = 0.5 * (mean + neighbour)
        of_mean = float(mean.square().sum())  # (after the last draw: of them all)
    singles = np.stack(errors[0]).mean(axis=1)
    low, high = np.quantile(singles, [0.05, 0.95])
    variance_of_mean = (squared - count * of_mean) / (count - 1) / count
    return Redrawn(
        errors=np.array([np.stack(found).mean() for found in errors]),
        luckiest=float(low),
        unluckiest=float(high),
        bias_squared=of_mean - variance_of_mean,
        squared_error=squared / count,
    )
