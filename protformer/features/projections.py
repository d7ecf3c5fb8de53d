"""How the projections of a feature map are drawn: iid Gaussian rows, or orthogonal blocks of them.

A draw is a pure function of (seed, layer, draw number) and is always made on the CPU in float64: every rank gets the
same projection without a broadcast, and a resumed run gets the one it would have had.
"""

import math
from typing import Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

Norms = Literal["chi", "sqrt_dim"]


def projection_generator(seed: int, layer: int, draw: int) -> torch.Generator:
    """A CPU generator that depends on (seed, layer, draw) alone; all three are non-negative integers."""
    # SeedSequence mixes its words, so neighbouring layers and draws give unrelated streams.
    state = int(np.random.SeedSequence([seed, layer, draw]).generate_state(1, np.uint64)[0])
    return torch.Generator(device="cpu").manual_seed(state & (2**63 - 1))


def gaussian(num_features: int, dim: int, generator: torch.Generator) -> Float[Tensor, "features dim"]:
    """Rows w ~ N(0, I), independent of one another."""
    return torch.randn(num_features, dim, generator=generator, dtype=torch.float64)


def orthogonal(
    num_features: int, dim: int, generator: torch.Generator, norms: Norms = "chi"
) -> Float[Tensor, "features dim"]:
    """Rows that are orthogonal within each block of `dim`, each marginally N(0, I) (arXiv 2009.14794, section 2.4).

    `norms="chi"` scales each row by an independent chi_dim norm (unbiased for the softmax kernel);
    `norms="sqrt_dim"` gives every row the norm sqrt(dim) (the regularised kernel SMREG: biased down, lower variance).
    """
    blocks = []
    for _ in range(math.ceil(num_features / dim)):
        q, r = torch.linalg.qr(torch.randn(dim, dim, generator=generator, dtype=torch.float64))
        # LAPACK leaves the signs of R's diagonal to its Householder convention; only with diag(R) > 0 is Q uniform
        # over the orthogonal group. Without this the positive estimator is biased (0.86 of the truth at |z|^2 = 4).
        q = q * torch.sign(torch.diagonal(r))
        blocks.append(q.T)
    directions = torch.cat(blocks)[:num_features]
    if norms == "sqrt_dim":
        return directions * math.sqrt(dim)
    lengths = torch.randn(num_features, dim, generator=generator, dtype=torch.float64).norm(dim=1, keepdim=True)
    return directions * lengths
