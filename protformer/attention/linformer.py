"""Linformer attention (arXiv 2006.04768): keys and values projected along the sequence to a fixed number of rows."""

import math
from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from protformer.attention.bands import lengths_of, with_unused
from protformer.attention.base import Attention
from protformer.errors import ProtformerError


class LinformerAttention(Attention):
    """softmax(q (E k)^T / sqrt(dim)) (F v), E and F learned, `[rank, length]`: linear in a segment's length.

    One E and one F a layer, for all heads: the paper's "headwise sharing"; with `share_key_value` one matrix is both
    (its "key-value sharing"). These are parameters beside those of the block: 2 x rank x length a layer, or half of it.
    A segment of n <= length tokens uses the first n columns, so what it gives does not depend on the pack, and a longer
    one is refused: the method has a longest sequence. Every token sees every other through the projections; it cannot
    be causal.

    The initial values are scaled as in the authors' code in fairseq (`examples/linformer`): Xavier uniform with gain
    2^-1/2, since the paper gives none. That keeps the size of keys and values where a segment has some `length` tokens;
    much shorter segments start with small ones. `initial_length`, a typical length of the data, scales them for that
    instead. They come from a generator of their own, so the block beside them starts as with any other attention.

    Raises:
        ValueError: `causal`, or a length or rank below 1.
        ProtformerError: from `forward`, a segment of more than `length` tokens.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        length: int = 1024,
        rank: int = 64,
        share_key_value: bool = False,
        initial_length: int | None = None,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if causal:
            raise ValueError(
                "Linformer attention cannot be causal: its projections mix all tokens of a sequence."
                " Choose another attention for this task"
            )
        if length < 1 or rank < 1:
            raise ValueError(f"Linformer attention needs length >= 1 and rank >= 1, not length={length}, rank={rank}")
        if initial_length is not None and not 1 <= initial_length <= length:
            raise ValueError(
                f"initial_length must be a number of tokens from 1 to length={length}, not {initial_length}"
            )
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.length = self.longest = length
        self.rank = rank
        self.causal = causal
        self.key_projection = nn.Parameter(torch.empty(rank, length))
        self.value_projection = None if share_key_value else nn.Parameter(torch.empty(rank, length))
        with torch.random.fork_rng(devices=[]):
            own = torch.Generator().manual_seed(int(torch.randint(2**62, (), device="cpu")))
        bound = math.sqrt(3 / (rank + (initial_length or length)))
        with torch.no_grad():
            for projection in self.parameters():
                projection.copy_(torch.empty(rank, length, device="cpu").uniform_(-bound, bound, generator=own))

    def forward(
        self,
        query: Float[Tensor, "total heads dim"],
        key: Float[Tensor, "total heads dim"],
        value: Float[Tensor, "total heads dim"],
        cu_seqlens: Int32[Tensor, "segments_plus_one"],
    ) -> Float[Tensor, "total heads dim"]:
        return self._attend(query, key, value, cu_seqlens)  # pyright: ignore[reportCallIssue]

    @torch.compiler.disable  # it reads the offsets, which a compiler cannot trace
    def _attend(self, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor) -> Tensor:
        lengths = lengths_of(cu_seqlens)
        longest = max(lengths, default=0)
        if longest > self.length:
            raise ProtformerError(
                f"Linformer attention has projections for at most {self.length:,} tokens, and sequence"
                f" {lengths.index(longest) + 1} of this batch has {longest:,}, start and end included. Set"
                f" attention.length to {longest} or more, as the longest sequence of the data needs, and train; or"
                " leave such sequences out."
            )
        if longest == 0:
            return with_unused(value, query, key)
        # (autograd sums the gradients of a projection's slices in fp32, so they are cast to half precision piecewise)
        # (and a gradient is filled for as many columns as a slice is taken of)
        by_key = self.key_projection[:, :longest]
        by_value = by_key if self.value_projection is None else self.value_projection[:, :longest]
        outs = []
        for q, k, v in zip(*(x.split(lengths) for x in (query, key, value)), strict=True):
            if len(q) == 0:
                continue
            short_key = (by_key[:, : len(k)].to(k.dtype) @ k.flatten(1)).unflatten(1, k.shape[1:])
            short_value = (by_value[:, : len(v)].to(v.dtype) @ v.flatten(1)).unflatten(1, v.shape[1:])
            heads_first = (x.transpose(0, 1).unsqueeze(0) for x in (q, short_key, short_value))
            outs.append(scaled_dot_product_attention(*heads_first).squeeze(0).transpose(0, 1))
        return torch.cat(outs)

    def config(self) -> dict[str, Any]:
        return {
            "name": type(self).__name__,
            "causal": self.causal,
            "length": self.length,
            "rank": self.rank,
            "share_key_value": self.value_projection is None,
        }
