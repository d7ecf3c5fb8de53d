"""What the statistical tests share: estimates of a kernel over many draws, inputs, and standard errors.

Inputs are given as x and y, already scaled (x = q d^-1/4), because the formulas of the papers are written in them.
"""

import math
from typing import Any

import torch
from torch import Tensor

from protformer.features import FeatureMap

# A law fails by chance in one of 16,000 means; there are a few hundred here and the seeds are fixed.
SIGMAS = 4.0


def make(map_class: type[FeatureMap], num_features: int, dim: int, *, num_heads: int = 1, **options: Any) -> FeatureMap:
    return map_class(num_heads=num_heads, head_dim=dim, num_features=num_features, **options)  # pyright: ignore[reportCallIssue]


def drawn(
    map_class: type[FeatureMap], num_features: int, dim: int, draws: int, seed: int = 0, **options: Any
) -> FeatureMap:
    """A map in float64 whose heads have a projection each: `draws` independent draws in one call."""
    feature_map = make(map_class, num_features, dim, num_heads=draws, per_head=True, **options).double()
    feature_map.redraw_(torch.Generator().manual_seed(seed))
    return feature_map


def on_all_heads(feature_map: FeatureMap, x: Tensor) -> Tensor:
    """x unscaled, the same for every head: `[pairs, heads, dim]`."""
    return x[:, None, :].expand(-1, feature_map.num_heads, -1) * feature_map.head_dim**0.25


def estimates(feature_map: FeatureMap, x: Tensor, y: Tensor) -> Tensor:
    """phi(q) . phi(k) `[heads, pairs]` for the scaled pairs x, y `[pairs, dim]`."""
    phi_query, phi_key = feature_map(on_all_heads(feature_map, x), on_all_heads(feature_map, y))
    return (phi_query * phi_key).sum(dim=2).T


def pairs(dim: int, count: int, squared_norm_of_sum: float, seed: int = 1) -> tuple[Tensor, Tensor]:
    """Random x, y with |x + y|^2 as given and |x - y|^2 of half that."""
    generator = torch.Generator().manual_seed(seed)
    total, difference = torch.randn(2, count, dim, generator=generator, dtype=torch.float64)
    total = total / total.norm(dim=1, keepdim=True) * math.sqrt(squared_norm_of_sum)
    difference = difference / difference.norm(dim=1, keepdim=True) * math.sqrt(squared_norm_of_sum / 2)
    return (total + difference) / 2, (total - difference) / 2


def skewed_pairs(
    dim: int, count: int, spread: float = 0.6, mean: float = 0.4, ratio: float = 10.0, seed: int = 3
) -> tuple[Tensor, Tensor]:
    """x, y with means, and where x is `ratio` times larger than y in the first dimension, y is so in the last.

    The mean of |x + y|^2 is `spread` without the means, and |mean(x)|^2 = |mean(y)|^2 = mean^2.
    """
    generator = torch.Generator().manual_seed(seed)
    x, y = torch.randn(2, count, dim, generator=generator, dtype=torch.float64)
    sizes = torch.logspace(0.0, -math.log10(ratio), dim, dtype=torch.float64)
    x, y = x * sizes, y * sizes.flip(0)
    x, y = x - x.mean(dim=0), y - y.mean(dim=0)
    unit = (spread / (x + y).square().sum(dim=1).mean()).sqrt()
    means = torch.randn(2, dim, generator=generator, dtype=torch.float64)
    means = means / means.norm(dim=1, keepdim=True) * mean
    return x * unit + means[0], y * unit + means[1]


def softmax_kernel(x: Tensor, y: Tensor) -> Tensor:
    return (x * y).sum(dim=1).exp()


def gaussian_kernel(x: Tensor, y: Tensor) -> Tensor:
    return (-0.5 * (x - y).square().sum(dim=1)).exp()


def kernel_of(feature_map: FeatureMap, x: Tensor, y: Tensor) -> Tensor:
    """What the map estimates."""
    assert feature_map.kernel in ("softmax", "gaussian")
    return softmax_kernel(x, y) if feature_map.estimates_softmax else gaussian_kernel(x, y)


def mean_and_error(samples: Tensor) -> tuple[Tensor, Tensor]:
    return samples.mean(dim=0), samples.std(dim=0) / math.sqrt(samples.shape[0])


def deviation(samples: Tensor, expected: Tensor) -> Tensor:
    """How many standard errors the mean over draws lies off `expected`."""
    mean, error = mean_and_error(samples)
    # some pairs have no variance at all (x = -y in positive features): there rounding is the error
    return (mean - expected) / (error + 1e-12)


def excess(ours: Tensor, theirs: Tensor) -> Tensor:
    """How many standard errors the mean of `ours` lies above that of `theirs`, draws independent of one another."""
    (our_mean, our_error), (their_mean, their_error) = mean_and_error(ours), mean_and_error(theirs)
    return (our_mean - their_mean) / (our_error.square() + their_error.square()).sqrt()
