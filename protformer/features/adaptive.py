"""Positive features that look at their inputs: exact centring, and the optimal exponent of Chefs' Random Tables.

With x, y the inputs scaled by d^-1/4 (and balanced against one another by P, see `dense`), any vector c and any A < 1/4
per head give an unbiased estimate of the softmax kernel:

    exp(x.y) = E_w[ D^2 exp(2A|w|^2 + B w.(x + y - c)) ] exp(-|x|^2/2 + c.x - |y|^2/2 + c.y - |c|^2/2)
    B = sqrt(1 - 4A)        D = (1 - 4A)^(d/4)

A = 0 and c = 0 are the positive features of FAVOR+. The factors of the queries cancel in attention.
- Centring, c = mean(x) + mean(y): softmax is invariant under k -> k - mean(k), and q -> q - mean(q) multiplies key j's
  feature by exp(mean(q).y_j); both together are this c. What is left to estimate is |x + y - c|^2.
- The exponent: with s the mean of |x + y - c|^2 and f = s / d, A = (1 - 2f - sqrt((2f + 1)^2 + 8f)) / 16 has the least
  variance (arXiv 2205.15317, theorem 3.3).
"""

from abc import abstractmethod
from typing import Any, Literal

import torch
from jaxtyping import Float, Int32
from torch import Tensor

from protformer.features.adaptation import NO_ADAPTATION, Adaptation
from protformer.features.base import FeatureMap, Kernel
from protformer.features.moments import Moments, MovingMoments, segment_moments
from protformer.features.projections import gaussian, orthogonal

Statistics = Literal["segment", "moving"]


class AdaptiveFeatures(FeatureMap):
    """Exponential features with optional centring; subclasses say which statistics they use beside.

    `statistics`: "segment" takes the moments of each segment by itself, so that packing changes nothing; "moving" an
    average over training steps, which causal attention needs, because a segment's moments hold its future.
    """

    family_name = "exponential"

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        num_features: int = 256,
        per_head: bool = False,
        orthogonal_rows: bool = True,
        kernel: Kernel = "softmax",
        centred: bool = False,
        statistics: Statistics = "segment",
        momentum: float = 0.99,
    ) -> None:
        super().__init__(num_heads=num_heads, head_dim=head_dim, num_features=num_features, per_head=per_head)
        if kernel not in ("softmax", "gaussian"):
            raise ValueError(f"kernel must be softmax or gaussian, not {kernel!r}")
        if statistics not in ("segment", "moving"):
            raise ValueError(f"statistics must be segment or moving, not {statistics!r}")
        self.orthogonal_rows = orthogonal_rows
        self.kernel = kernel
        # The Gaussian kernel is the softmax kernel times exp(-|x|^2/2) exp(-|y|^2/2).
        self.norm_weight = 1.0 if kernel == "softmax" else 2.0
        self.centred = centred
        self.statistics = statistics
        self.momentum = momentum
        self.moving: MovingMoments | None = None
        if self.adapts and statistics == "moving":
            self.moving = MovingMoments(num_heads=num_heads, head_dim=head_dim, momentum=momentum)

    @property
    @abstractmethod
    def optimal(self) -> bool:
        """Whether the exponent A follows the statistics (it is 0 otherwise)."""

    @property
    def dense(self) -> bool:
        """Whether queries and keys are balanced against one another in every dimension."""
        return False

    @property
    def adapts(self) -> bool:
        return self.centred or self.optimal or self.dense

    @property
    def needs_future(self) -> bool:
        return self.adapts and self.statistics == "segment"

    def draw(self, generator: torch.Generator) -> Tensor:
        return (orthogonal if self.orthogonal_rows else gaussian)(self.rows, self.head_dim, generator)

    def options(self) -> dict[str, Any]:
        return {
            "orthogonal_rows": self.orthogonal_rows,
            "kernel": self.kernel,
            "centred": self.centred,
            "statistics": self.statistics,
            "momentum": self.momentum,
        }

    def adapt(
        self,
        query: Float[Tensor, "total heads dim"],
        key: Float[Tensor, "total heads dim"],
        cu_seqlens: Int32[Tensor, "segments_plus_one"],
    ) -> Adaptation:
        if not self.adapts:
            return NO_ADAPTATION
        if self.moving is None:
            return self.adaptation_to(segment_moments(query, cu_seqlens), segment_moments(key, cu_seqlens))
        if self.training:
            self.moving.observe(query, key)
        # in the type of segment statistics, whatever type the module was moved to
        wide = torch.float64 if query.dtype == torch.float64 else torch.float32
        return self.adaptation_to(*(Moments(*(m.to(wide) for m in side)) for side in self.moving.read()))

    @torch.no_grad()
    def adaptation_to(self, query: Moments, key: Moments) -> Adaptation:
        """The scales and shifts for inputs with these moments."""
        scale = self.scale
        balance = self._balance(query, key)
        x = Moments(query.mean * balance * scale, query.square * balance**2 * scale**2)
        y = Moments(key.mean / balance * scale, key.square / balance**2 * scale**2)
        mean = x.mean + y.mean
        centre = mean if self.centred else torch.zeros_like(mean)
        # the mean of |x + y|^2 over all pairs, then of |x + y - c|^2
        spread = (x.square + y.square + 2.0 * x.mean * y.mean).sum(dim=2)
        spread = (spread - 2.0 * (centre * mean).sum(dim=2) + centre.square().sum(dim=2)).clamp_min(0.0)
        exponent = self._exponent(spread / self.head_dim) if self.optimal else torch.zeros_like(spread)
        stretch = (1.0 - 4.0 * exponent).sqrt()  # B
        rows = self.projection.to(mean.dtype)
        row_norms = rows.square().sum(dim=2) / scale**2  # |w|^2
        offset = exponent.unsqueeze(2) * row_norms
        if self.centred:
            # B w.c, in float64, which neither autocast nor the user's precision of products reaches: bf16 would bias
            shift = torch.einsum("shd,hrd->shr", (centre / scale * stretch.unsqueeze(2)).double(), rows.double())
            offset = offset - 0.5 * shift.to(offset.dtype)
        scaled = self.optimal or self.dense
        return Adaptation(
            query_scale=balance * stretch.unsqueeze(2) if scaled else None,
            key_scale=stretch.unsqueeze(2) / balance if scaled else None,
            norm_scale=stretch.square().reciprocal() if scaled else None,
            tilt=centre * scale / stretch.unsqueeze(2) if self.centred else None,
            offset=offset,
            constant=self.head_dim * stretch.log() - 0.5 * centre.square().sum(dim=2),
        )

    def _exponent(self, f: Tensor) -> Tensor:
        return (1.0 - 2.0 * f - ((2.0 * f + 1.0).square() + 8.0 * f).sqrt()) / 16.0

    def _balance(self, query: Moments, key: Moments) -> Tensor:
        """P of SADERF: queries times P and keys over P leave every product as it is (arXiv 2302.00787, section 4)."""
        if not self.dense:
            return torch.ones_like(query.square)
        # centring takes the means off: they must not unbalance what is left
        queries, keys = (m.variance if self.centred else m.square for m in (query, key))
        # a dimension that is zero on one side needs no balance, and must not make the other side vanish
        tiny = torch.finfo(queries.dtype).tiny ** 0.5
        ratio = (keys + tiny) / (queries + tiny)
        return ratio.clamp(1e-4, 1e4).sqrt().sqrt()
