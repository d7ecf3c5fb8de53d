"""Spearman's rank correlation of two similarities over the 190 pairs of different amino acids, and how sure it is.

Two things could have been otherwise, and each has its own answer:
- other proteins: percentile bootstrap over whole proteins (the experiment's intervals). It keeps the model.
- a matrix that has nothing to do with the other: the 190 pairs are no independent draws, since each amino acid is in 19
  of them, so the textbook's p-value is far too small. Mantel's test (Cancer Research 27:209, 1967) permutes the twenty
  amino acids of one matrix, rows and columns together.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float64
from scipy.stats import rankdata

_UPPER = np.triu_indices(20, k=1)
# Values that differ by rounding alone are equal: a constant matrix has no ranks.
_EQUAL = 1e-9


class Mantel(NamedTuple):
    p: float
    """How often permuted amino acids correlate as much or more, the one at hand counted."""
    low: float
    """2.5th percentile of the correlations of permuted amino acids."""
    high: float
    """97.5th percentile."""


def rank_correlation(
    similarity: Float64[np.ndarray, "*some 20 20"], reference: Float64[np.ndarray, "20 20"]
) -> Float64[np.ndarray, "*some"]:
    """Of each matrix with the reference: of what is above the diagonal. NaN where a matrix is constant there."""
    return np.asarray(_product_moment(_ranks(_pairs(similarity)), _ranks(_pairs(reference))))


def mantel(
    similarity: Float64[np.ndarray, "20 20"],
    reference: Float64[np.ndarray, "20 20"],
    *,
    permutations: int,
    seed: int,
) -> Mantel:
    """Of symmetric matrices, one-sided: only likeness to the reference is looked for."""
    ranks = np.zeros_like(reference)
    ranks[_UPPER] = _ranks(_pairs(similarity))
    if not np.isfinite(ranks).all() or np.ptp(ranks[_UPPER]) == 0:
        return Mantel(np.nan, np.nan, np.nan)
    ranks = ranks + ranks.T
    generator = np.random.default_rng(seed)
    orders = generator.permuted(np.tile(np.arange(len(ranks)), (permutations, 1)), axis=1)
    permuted = ranks[orders[:, _UPPER[0]], orders[:, _UPPER[1]]]
    theirs = _ranks(_pairs(reference))
    found = _product_moment(permuted, theirs)
    own = float(_product_moment(ranks[_UPPER], theirs))
    low, high = np.quantile(found, [0.025, 0.975])
    # (rounding must not part a correlation from the same one, permuted)
    return Mantel(float((1 + (found >= own - 1e-12).sum()) / (1 + permutations)), float(low), float(high))


def _pairs(matrix: np.ndarray) -> np.ndarray:
    return matrix[..., _UPPER[0], _UPPER[1]]


def _ranks(pairs: np.ndarray) -> np.ndarray:
    """Ranks along the last axis, ties shared; NaN where there is one."""
    size = np.abs(pairs).max(axis=-1, keepdims=True)
    steps = np.round(pairs / np.where(size > 0, size, 1.0) / _EQUAL)
    return rankdata(steps, axis=-1, nan_policy="propagate")


def _product_moment(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray | np.float64:
    ours = ours - ours.mean(axis=-1, keepdims=True)
    theirs = theirs - theirs.mean(axis=-1, keepdims=True)
    scale = np.sqrt((ours**2).sum(axis=-1) * (theirs**2).sum(axis=-1))
    return (ours * theirs).sum(axis=-1) / np.where(scale > 0, scale, np.nan)
