"""What the bidirectional and the causal Performer share: one chunk's layout, projection and gradients.

Inside a chunk tensors are `[heads, tokens, ...]` and contiguous, so that products over all heads are one batched call.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from protformer.features.families import Family


@dataclass(frozen=True)
class ChunkContext:
    """Constants of one call: the compute type, the projection in it, and the family of the map."""

    dtype: torch.dtype
    weight: Tensor  # [rows, dim], or [heads, rows, dim] when each head has its own
    family: Family
    norm_scale: float  # dim^-1/2: what |x|^2 of the scaled input is to |x|^2

    @classmethod
    def of(cls, query: Tensor, projection: Tensor, family: Family) -> "ChunkContext":
        dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        weight = projection.to(dtype)
        # A shared projection as a matrix makes the product over heads one large call instead of a batch of small ones.
        return cls(dtype, weight[0] if weight.shape[0] == 1 else weight, family, query.shape[-1] ** -0.5)

    def project(self, x: Tensor, a: int, b: int) -> tuple[Tensor, Tensor]:
        """Logits `[heads, tokens, rows]` of rows a to b, and |x|^2 / 2 of the scaled input `[heads, tokens, 1]`."""
        x = heads_first(x, a, b, self.dtype)
        logits = x @ self.weight.transpose(-1, -2)
        if not self.family.uses_norm:
            return logits, logits.new_zeros(1, 1, 1)
        return logits, x.square().sum(dim=2, keepdim=True).mul_(0.5 * self.norm_scale)

    def unproject(self, grad_logits: Tensor, x: Tensor | None = None, grad_half_norm: Tensor | None = None) -> Tensor:
        """The gradient of the inputs from that of the logits, and of half_norm where it had a part."""
        grad = grad_logits @ self.weight
        if x is not None and grad_half_norm is not None:
            grad += x * (grad_half_norm * self.norm_scale)
        return grad

    def grad_joint(self, grad_out: Tensor, out: Tensor, denominators: Tensor, a: int, b: int) -> Tensor:
        """G = [d_out, -(d_out . out)] / denominator, the gradient of [numerator, denominator]."""
        grad = heads_first(grad_out, a, b, self.dtype)
        inner = (grad * heads_first(out, a, b, self.dtype)).sum(dim=2, keepdim=True)
        return torch.cat([grad, inner.neg_()], dim=2).div_(denominators[:, a:b].unsqueeze(2))


def chunk_ranges(start: int, stop: int, chunk: int) -> Iterator[tuple[int, int]]:
    return ((a, min(a + chunk, stop)) for a in range(start, stop, chunk))


def heads_first(x: Tensor, a: int, b: int, dtype: torch.dtype) -> Tensor:
    return x[a:b].transpose(0, 1).to(dtype).contiguous()


def with_ones(value: Tensor) -> Tensor:
    """[v, 1]: the column of ones makes the denominator one more column of the same product."""
    return torch.nn.functional.pad(value, (0, 1), value=1.0)


def store(out: Tensor, a: int, b: int, rows: Tensor) -> None:
    out[a:b].copy_(rows.transpose(0, 1))


def guarded(denominator: Tensor, context: ChunkContext) -> Tensor:
    """A denominator that can be divided by, whatever the inputs.

    Bidirectional exponential features give at least 1 and pass unchanged; causal ones that underflow are recomputed by
    `favor_causal`. Signed features can sum to zero, and there a floor relative to their count bounds the output.
    """
    if context.family.signed:
        floor = 1e-6 * context.weight.shape[-2]
        floors = torch.copysign(torch.full_like(denominator, floor), denominator)
        return torch.where(denominator.abs() < floor, floors, denominator)
    return denominator.clamp_min(torch.finfo(context.dtype).tiny)
