"""The contract of a feature map.

The law of every map that estimates a kernel: over the draw of its projection, E[phi(q) . phi(k)] = K(q, k), with
K = exp(q . k / sqrt(head_dim)) for the softmax kernel and exp(-|q - k|^2 / (2 sqrt(head_dim))) for the Gaussian one.
"""

from abc import ABC, abstractmethod
from typing import Any, Literal

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn

from protformer.features.adaptation import NO_ADAPTATION, Adaptation
from protformer.features.families import Family, family

Kernel = Literal["softmax", "gaussian"]


class FeatureMap(nn.Module, ABC):
    """Maps queries and keys together, `[tokens, heads, dim] -> [tokens, heads, features]`.

    The attention operator reads `projection` (with the scale dim^-1/4 of the kernels already in it), `family_name`,
    `epsilon`, `norm_weight`, and what `adapt` says of the inputs. `forward` is the same map written out directly: the
    reference that tests and diagnostics use, and never the operator, because it keeps a `[tokens, features]` matrix.

    Nothing random happens in `forward`; `redraw_` copies a new draw into the persistent buffers.
    """

    projection: Float[Tensor, "heads rows dim"]
    family_name: str
    epsilon: float = 0.0
    # A key's log weight is -norm_weight |y|^2 / 2 of the scaled key, and a query's likewise (where it cancels).
    norm_weight: float = 0.0
    # phi(q) . phi(k) is an average over rows; the phase-shifted cosine doubles it.
    gain: float = 1.0
    kernel: Kernel | None = None

    def __init__(self, *, num_heads: int, head_dim: int, num_features: int, per_head: bool = False) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, not {num_features}")
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.num_features = num_features
        self.per_head = per_head
        # One projection serves all heads (the leading 1 broadcasts) unless each has its own; it is persistent so that a
        # model folder and a checkpoint hold the draw they were trained with.
        self.register_buffer("projection", torch.zeros(num_heads if per_head else 1, self.rows, head_dim))

    @property
    def rows(self) -> int:
        """Rows of the projection that `num_features` features need."""
        return self.num_features

    @property
    def estimates_softmax(self) -> bool:
        return self.kernel == "softmax"

    @property
    def family(self) -> Family:
        return family(self.family_name, self.epsilon)

    @property
    def needs_future(self) -> bool:
        """Whether the map looks at whole segments, which causal attention forbids."""
        return False

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Float[Tensor, "rows dim"]:
        """One draw of the projection, unscaled, in float64 on the CPU."""

    @abstractmethod
    def options(self) -> dict[str, Any]:
        """Constructor arguments of this map beside the shape, `num_features` and `per_head`."""

    def config(self) -> dict[str, Any]:
        """`{"name": class name, **constructor arguments}` without the shape, as a model folder keeps it."""
        shared = {"name": type(self).__name__, "num_features": self.num_features, "per_head": self.per_head}
        return {**shared, **self.options()}

    @torch.no_grad()
    def redraw_(self, generator: torch.Generator) -> None:
        """Copy a new draw into the buffers; their shape, device and type stay."""
        drawn = torch.stack([self.draw(generator) for _ in range(self.projection.shape[0])]) * self.scale
        # Rounded to bf16, whose products with bf16 inputs are exact: logits are the same in every precision. It moves a
        # row by 0.1 %, to either side, which is as good a draw.
        self.projection.copy_(drawn.to(torch.bfloat16))

    @property
    def scale(self) -> float:
        """The factor of inputs that makes w.x and w.y estimate the kernel's exponent."""
        return self.head_dim**-0.25

    def adapt(
        self,
        query: Float[Tensor, "total heads dim"],
        key: Float[Tensor, "total heads dim"],
        cu_seqlens: Int32[Tensor, "segments_plus_one"],
    ) -> Adaptation:
        """Scales and shifts that suit these inputs; none for a map that does not look at them."""
        return NO_ADAPTATION

    def forward(
        self, query: Float[Tensor, "tokens heads dim"], key: Float[Tensor, "tokens heads dim"]
    ) -> tuple[Float[Tensor, "tokens heads features"], Float[Tensor, "tokens heads features"]]:
        """Unstabilised features of one segment, in the type of the inputs: overflow is the caller's to avoid."""
        cu_seqlens = torch.tensor([0, max(query.shape[0], key.shape[0])], dtype=torch.int32, device=query.device)
        adaptation = self.adapt(query, key, cu_seqlens)
        adaptation = Adaptation(*(None if x is None else x[0].to(query.dtype) for x in adaptation))
        return (
            self._direct(query, adaptation.query_scale, adaptation),
            self._direct(key, adaptation.key_scale, adaptation),
        )

    def _direct(self, x: Tensor, scale: Tensor | None, adaptation: Adaptation) -> Tensor:
        x = x.transpose(0, 1)
        if scale is not None:
            x = x * scale.unsqueeze(1)
        logits = x @ self.projection.to(x.dtype).transpose(1, 2)
        weight = x.square().sum(dim=2, keepdim=True) * (-0.5 * self.norm_weight * self.scale**2)
        if adaptation.norm_scale is not None:
            weight = weight * adaptation.norm_scale[:, None, None]
        if adaptation.tilt is not None:
            weight = weight + x @ adaptation.tilt.unsqueeze(2)
        if adaptation.constant is not None:
            weight = weight + 0.5 * adaptation.constant[:, None, None]
        if adaptation.offset is not None:
            logits = logits + adaptation.offset.unsqueeze(1)
        features, _ = self.family.key_(logits, None, None)
        # an average over rows: each side carries 1/sqrt(m)
        return (features * weight.exp()).transpose(0, 1) * (self.gain / self.rows) ** 0.5
