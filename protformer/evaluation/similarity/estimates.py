"""From attention between amino acids to their similarity, in three ways.

- `frequencies`, the headline: attention between a and b, both ways, over what their frequencies in all proteins would
  give, f_a f_b (the Performer paper normalises by frequencies, arXiv 2009.14794, after Vig et al., arXiv 2006.15222).
- `over uniform`: the same attention over what uniform attention pays in the same proteins. Amino acids that are
  frequent in the same proteins (those of membranes, say) get more attention from one another under the first
  normalisation even if the attention looks at nothing. Here they do not: of uniform attention a constant is left.
- `profiles`: for each pair, Pearson's correlation over all heads of the shares of attention that a and b receive (Vig
  et al., and their code's `report_aa_correlations.py`). It takes several heads, and is for the whole model alone.
"""

import warnings
from typing import Literal, get_args

import numpy as np
from jaxtyping import Float64

Estimate = Literal["frequencies", "over uniform", "profiles"]
ESTIMATES: tuple[Estimate, ...] = get_args(Estimate)


def over_frequencies(
    attention: Float64[np.ndarray, "*some 20 20"], counts: Float64[np.ndarray, "*any 20"]
) -> Float64[np.ndarray, "*some 20 20"]:
    """1 is what frequencies alone would give; symmetric. Leading axes of both must broadcast."""
    frequencies = counts / counts.sum(axis=-1, keepdims=True)
    expected = frequencies[..., :, None] * frequencies[..., None, :]
    return _symmetric(attention) / (expected * attention.sum(axis=(-2, -1), keepdims=True))


def over_uniform(
    attention: Float64[np.ndarray, "*some 20 20"], uniform: Float64[np.ndarray, "*any 20 20"]
) -> Float64[np.ndarray, "*some 20 20"]:
    """1 is what uniform attention would pay; symmetric. Leading axes of both must broadcast."""
    expected = _symmetric(uniform) / uniform.sum(axis=(-2, -1), keepdims=True)
    return _symmetric(attention) / (expected * attention.sum(axis=(-2, -1), keepdims=True))


def profiles(attention: Float64[np.ndarray, "*some heads 20 20"]) -> Float64[np.ndarray, "*some 20 20"]:
    """Correlations over heads of the shares of attention received; NaN where a share does not vary."""
    received = attention.sum(axis=-2)
    shares = received / received.sum(axis=-1, keepdims=True)
    shares = shares - shares.mean(axis=-2, keepdims=True)
    products = np.swapaxes(shares, -1, -2) @ shares
    scale = np.sqrt(np.diagonal(products, axis1=-2, axis2=-1))
    # (rounding is no variation)
    scale = np.where(scale > 1e-12, scale, np.nan)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        return products / (scale[..., :, None] * scale[..., None, :])


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return 0.5 * (matrix + np.swapaxes(matrix, -1, -2))
