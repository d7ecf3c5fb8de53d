"""The contract of a feature map.

The law of every map that estimates the softmax kernel: over the draw of its projection,
E[phi(q) . phi(k)] = exp(q . k / sqrt(head_dim)).
"""

from abc import ABC, abstractmethod
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from protformer.features.families import Family, family


class FeatureMap(nn.Module, ABC):
    """Maps queries and keys together, `[tokens, heads, dim] -> [tokens, heads, features]`.

    The attention operator reads three things: `projection` (with the scale dim^-1/4 of the softmax kernel already in
    it), `family_name` and `epsilon`. `forward` is the same map written out directly: the reference that tests and
    diagnostics use, and never the operator, because it keeps a `[tokens, features]` matrix.

    Nothing random happens in `forward`; `redraw_` copies a new draw into the persistent buffer.
    """

    projection: Float[Tensor, "heads rows dim"]
    family_name: str
    estimates_softmax: bool = True
    epsilon: float = 0.0

    def __init__(self, *, num_heads: int, head_dim: int, num_features: int) -> None:
        super().__init__()
        if num_features < 1:
            raise ValueError(f"num_features must be at least 1, not {num_features}")
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.num_features = num_features
        # One projection serves all heads (the leading 1 broadcasts); it is persistent so that a model folder and a
        # checkpoint hold the draw they were trained with.
        self.register_buffer("projection", torch.zeros(1, self.rows, head_dim))

    @property
    def rows(self) -> int:
        """Rows of the projection that `num_features` features need."""
        return self.num_features

    @property
    def family(self) -> Family:
        return family(self.family_name, self.epsilon)

    @abstractmethod
    def draw(self, generator: torch.Generator) -> Float[Tensor, "rows dim"]:
        """One draw of the projection, unscaled, in float64 on the CPU."""

    @abstractmethod
    def config(self) -> dict[str, Any]:
        """`{"name": class name, **constructor arguments}` without the shape, as a model folder keeps it."""

    @torch.no_grad()
    def redraw_(self, generator: torch.Generator) -> None:
        """Copy a new draw into the buffer; its shape, device and type stay."""
        self.projection.copy_(self.draw(generator) * self.head_dim**-0.25)

    def forward(
        self, query: Float[Tensor, "tokens heads dim"], key: Float[Tensor, "tokens heads dim"]
    ) -> tuple[Float[Tensor, "tokens heads features"], Float[Tensor, "tokens heads features"]]:
        """Unstabilised features in the type of the inputs: overflow is the caller's to avoid (small inputs, fp64)."""
        return self._direct(query), self._direct(key)

    def _direct(self, x: Tensor) -> Tensor:
        logits = torch.einsum("thd,hmd->htm", x, self.projection.to(x.dtype).expand(x.shape[1], -1, -1))
        half_norm = self.half_norm(x.transpose(0, 1))
        zero = logits.new_zeros(logits.shape[0], 1, 1)
        # a sum over features estimates m times the kernel: each side carries 1/sqrt(m)
        return self.family.key(logits, half_norm, zero).transpose(0, 1) * self.rows**-0.5

    def half_norm(self, x: Tensor) -> Tensor:
        """|x|^2 / 2 of the input scaled by dim^-1/4, `[..., 1]`."""
        return x.square().sum(dim=-1, keepdim=True) * (0.5 * self.head_dim**-0.5)
