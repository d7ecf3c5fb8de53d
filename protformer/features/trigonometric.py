"""Trigonometric features: random Fourier features of both kinds (arXiv 2009.14794, eq. 5).

Cosine and sine: phi(x) = e^{|x|^2/2} m^-1/2 [cos(w.x), sin(w.x)] of m directions; unbiased for the softmax kernel,
with MSE = (1/2m) e^{|z|^2} SM^-2 (1 - e^{-|x-y|^2})^2. Phase-shifted cosine: phi(x) = e^{|x|^2/2} (2/m)^1/2
cos(w.x + b) with b uniform on the circle: one feature a direction, of larger variance. Without the factor e^{|x|^2/2}
both estimate the Gaussian kernel.

Both are large in error where the kernel is small, and an estimate can be negative, so that training with them is
unstable. Here for comparison.
"""

import math
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from protformer.features.adaptation import Adaptation
from protformer.features.base import FeatureMap, Kernel
from protformer.features.projections import gaussian, orthogonal


class _FourierFeatures(FeatureMap):
    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        num_features: int = 256,
        per_head: bool = False,
        orthogonal_rows: bool = True,
        kernel: Kernel = "softmax",
    ) -> None:
        super().__init__(num_heads=num_heads, head_dim=head_dim, num_features=num_features, per_head=per_head)
        if kernel not in ("softmax", "gaussian"):
            raise ValueError(f"kernel must be softmax or gaussian, not {kernel!r}")
        self.orthogonal_rows = orthogonal_rows
        self.kernel = kernel
        self.norm_weight = -1.0 if kernel == "softmax" else 0.0

    def draw(self, generator: torch.Generator) -> Tensor:
        return (orthogonal if self.orthogonal_rows else gaussian)(self.rows, self.head_dim, generator)

    def options(self) -> dict[str, Any]:
        return {"orthogonal_rows": self.orthogonal_rows, "kernel": self.kernel}


class TrigonometricFeatures(_FourierFeatures):
    """`num_features` features: a cosine and a sine of half as many directions; `num_features` must be even."""

    family_name = "trigonometric"

    def __init__(self, *, num_heads: int, head_dim: int, num_features: int = 256, **arguments) -> None:
        if num_features % 2:
            raise ValueError(f"cosines and sines come in pairs: num_features must be even, not {num_features}")
        super().__init__(num_heads=num_heads, head_dim=head_dim, num_features=num_features, **arguments)

    @property
    def rows(self) -> int:
        return self.num_features // 2


class CosineFeatures(_FourierFeatures):
    """`num_features` cosines of as many directions, each with a uniform phase."""

    family_name = "cosine"
    gain = 2.0

    phase: Float[Tensor, "one heads rows"]

    def __init__(self, *, num_heads: int, head_dim: int, num_features: int = 256, **arguments) -> None:
        super().__init__(num_heads=num_heads, head_dim=head_dim, num_features=num_features, **arguments)
        self.register_buffer("phase", torch.zeros(1, self.projection.shape[0], self.rows))

    @torch.no_grad()
    def redraw_(self, generator: torch.Generator) -> None:
        super().redraw_(generator)
        self.phase.copy_(torch.rand(self.phase.shape, generator=generator, dtype=torch.float64) * (2.0 * math.pi))

    def adapt(self, query: Tensor, key: Tensor, cu_seqlens: Tensor) -> Adaptation:
        return Adaptation(offset=self.phase)
