"""What is computed: one attention call, its inputs, and how they lie in memory."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple

import torch
from torch import Tensor

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float64": torch.float64,
}
DTYPE_NAMES = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16", "fp64": "float64"}
DIRECTIONS = ("forward", "forward_backward")

Layout = Literal["packed", "heads first", "view"]
"""How q, k, v lie in memory: `[total, heads, dim]`, which a projection leaves; contiguous `[sequences, heads, length,
dim]`; or a view of that shape on `[sequences, length, heads, dim]`. Several sequences are padded in the last two."""

Attend = Callable[[Tensor, Tensor, Tensor], Tensor]
Call = Callable[[], tuple[Tensor, ...]]


@dataclass(frozen=True)
class Case:
    """One call: sequences of `lengths` tokens, one for the plain comparison and many for a pack."""

    lengths: tuple[int, ...]
    heads: int
    dim: int
    dtype: str
    backward: bool
    causal: bool
    device: str

    @property
    def total(self) -> int:
        return sum(self.lengths)

    @property
    def longest(self) -> int:
        return max(self.lengths)

    @property
    def direction(self) -> str:
        return DIRECTIONS[self.backward]

    @property
    def torch_dtype(self) -> torch.dtype:
        return DTYPES[self.dtype]

    @property
    def squares(self) -> int:
        """Sum of squared lengths: what exact attention computes."""
        return sum(length * length for length in self.lengths)

    @property
    def io_bytes(self) -> int:
        """Bytes of q, k, v and out, and of their gradients where there is a backward; no padding."""
        tensors = 8 if self.backward else 4
        return tensors * self.total * self.heads * self.dim * self.torch_dtype.itemsize

    def offsets(self) -> Tensor:
        """`cu_seqlens` on the device, int32."""
        ends = torch.tensor((0, *self.lengths)).cumsum(0)
        return ends.to(self.device, torch.int32)

    def cut(self, tokens: int) -> "Case":
        """A smaller case of about so many tokens: a shorter sequence, or the first few of a pack."""
        if len(self.lengths) == 1:
            return replace(self, lengths=(min(tokens, self.total),))
        kept = [self.lengths[0]]
        for length in self.lengths[1:]:
            if sum(kept) + length > tokens:
                break
            kept.append(length)
        return replace(self, lengths=tuple(kept))


class Inputs(NamedTuple):
    """Leaves q, k, v, the gradient of out where there is a backward, and how a leaf is handed over."""

    leaves: tuple[Tensor, Tensor, Tensor]
    grad_out: Tensor | None
    arrange: Callable[[Tensor], Tensor]


def make_inputs(case: Case, layout: Layout) -> Inputs:
    """Normal numbers in the layout. Made in place: a copy would raise the peak that memory is measured from."""
    shape = {
        "packed": (case.total, case.heads, case.dim),
        "heads first": (len(case.lengths), case.heads, case.longest, case.dim),
        "view": (len(case.lengths), case.longest, case.heads, case.dim),
    }[layout]
    generator = torch.Generator(case.device).manual_seed(0)

    def leaf() -> Tensor:
        return torch.empty(shape, dtype=case.torch_dtype, device=case.device).normal_(generator=generator)

    def arrange(x: Tensor) -> Tensor:
        return x.transpose(1, 2) if layout == "view" else x

    query, key, value = (leaf().requires_grad_(case.backward) for _ in range(3))
    return Inputs((query, key, value), leaf() if case.backward else None, arrange)


def call_of(attend: Attend, inputs: Inputs) -> Call:
    """What is timed: `() -> (out,)` without autograd, or `() -> (out, and the gradients of q, k, v)`."""
    leaves, grad_out, arrange = inputs

    def forward() -> tuple[Tensor, ...]:
        with torch.no_grad():
            return (attend(*map(arrange, leaves)),)

    def forward_backward() -> tuple[Tensor, ...]:
        assert grad_out is not None
        out = attend(*map(arrange, leaves))
        return (out.detach(), *torch.autograd.grad(out, leaves, arrange(grad_out)))

    return forward if grad_out is None else forward_backward
