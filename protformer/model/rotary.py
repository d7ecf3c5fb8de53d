"""Rotary position embedding, half-rotation, base 10000 (arXiv 2104.09864, as ESM-2 applies it)."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn


class Rotary(nn.Module):
    """Angles of each packed position; positions start at 0 in every segment."""

    inv_freq: Tensor

    def __init__(self, *, head_dim: int, base: float = 10_000.0) -> None:
        super().__init__()
        if head_dim % 2:
            raise ValueError(f"rotary embedding rotates pairs: head_dim must be even, not {head_dim}")
        # Persistent: ESM-2's checkpoints hold frequencies rounded to fp16, which are copied and not recomputed.
        inverse = 1.0 / base ** (torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
        self.register_buffer("inv_freq", inverse)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Rotary":
        # `model.bfloat16()` and its like leave the frequencies' type: rounded to 8 bits, an angle of 1,000 radians
        # would be off by two.
        frequencies: Tensor = self.inv_freq
        super()._apply(fn, recurse)
        if self.inv_freq.dtype != frequencies.dtype:
            self.inv_freq = frequencies.to(self.inv_freq.device)
        return self

    def forward(
        self, positions: Int[Tensor, "total"]
    ) -> tuple[Float[Tensor, "total 1 head_dim"], Float[Tensor, "total 1 head_dim"]]:
        """cos and sin of each angle in fp32, to be used by every layer."""
        # bf16 counts whole numbers to 256 only: angles of long proteins need fp32 whatever autocast says
        angles = positions.to(torch.float32)[:, None] * self.inv_freq.to(torch.float32)[None, :]
        angles = torch.cat([angles, angles], dim=1)[:, None, :]
        return angles.cos(), angles.sin()


def rotate(
    x: Float[Tensor, "total heads head_dim"],
    cos: Float[Tensor, "total 1 head_dim"],
    sin: Float[Tensor, "total 1 head_dim"],
) -> Float[Tensor, "total heads head_dim"]:
    """x turned by its position's angles; the result keeps the type of x."""
    first, second = x.chunk(2, dim=-1)
    turned = torch.cat([-second, first], dim=-1)
    return (x * cos + turned * sin).to(x.dtype)


def segment_positions(cu_seqlens: Tensor, total: int) -> tuple[Int[Tensor, "total"], Int[Tensor, "total"]]:
    """For every packed row its segment and its position in it.

    Lengths 3 and 2 give segments `[0 0 0 1 1]` and positions `[0 1 2 0 1]`. ValueError where offsets on a CPU are not
    those of `total` rows: some attentions would answer all the same, with zeros (asking a GPU would wait for it).
    """
    if cu_seqlens.device.type == "cpu" and not torch.compiler.is_compiling():
        offsets = cu_seqlens.numpy()
        if len(offsets) < 1 or offsets[0] != 0 or offsets[-1] != total or (offsets[1:] < offsets[:-1]).any():
            raise ValueError(
                f"cu_seqlens are to rise from 0 to the {total} rows of the pack, not {cu_seqlens.tolist()}"
            )
    rows = torch.arange(total, device=cu_seqlens.device, dtype=cu_seqlens.dtype)
    segments = torch.searchsorted(cu_seqlens[1:].contiguous(), rows, right=True)
    return segments, (rows - cu_seqlens[segments]).long()
