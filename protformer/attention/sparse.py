"""Sparse attention with fixed patterns: strided and fixed (Sparse Transformer, arXiv 1904.10509), window with globals.

Every pattern is computed in parts that are bands of some order of the rows (see `bands`) or the product of all rows
with few keys; never as a masked square.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from jaxtyping import Float, Int32
from torch import Tensor
from torch.nn.functional import pad

from protformer.attention.bands import (
    UNSEEN,
    Part,
    Permutations,
    accumulator_type,
    band_attention,
    joined,
    lengths_of,
    merged,
    scaled_products,
    segment_numbers,
    softmax_part,
    unless,
    with_unused,
)
from protformer.attention.base import Attention

Pattern = Literal["strided", "fixed", "window"]


class SparseAttention(Attention):
    """softmax attention to the tokens of a pattern. Token i of a segment, counted from 0, sees token j where

    - `strided`: |i - j| <= stride, or stride divides i - j;
    - `fixed`: both are in one block of `stride` tokens, or j is among the last `expressivity` tokens of its block
      (j mod stride >= stride - expressivity; the paper's c);
    - `window`: |i - j| <= window, or i or j is one of the first `global_tokens` (Longformer, arXiv 2004.05150; token 0
      is `<cls>`);

    and, if `causal`, j <= i, which makes the first two the paper's own; two-way they are the same rules without it. Of
    the paper's three ways to factorise (section 5.2) this is the second, merged heads: each head takes one softmax over
    the union of both sets, so that any number of heads will do.

    `stride` None is the root of each segment's length, rounded up: the paper's choice, and what makes time and memory
    grow as length^1.5. With a number they are length x stride + length^2 / stride. `window` is linear in length.
    """

    def __init__(
        self,
        *,
        num_heads: int,
        head_dim: int,
        pattern: Pattern = "strided",
        stride: int | None = None,
        expressivity: int = 8,
        window: int = 64,
        global_tokens: int = 1,
        causal: bool = False,
    ) -> None:
        super().__init__()
        if pattern not in get_args(Pattern):
            raise ValueError(f"attention.pattern is one of {', '.join(get_args(Pattern))}, not {pattern!r}")
        for name, number, least in (
            ("stride", 1 if stride is None else stride, 1),
            ("expressivity", expressivity, 1),
            ("window", window, 0),
            ("global_tokens", global_tokens, 0),
        ):
            if number < least:
                raise ValueError(f"attention.{name} must be at least {least}, not {number}")
        if stride is not None and pattern == "fixed" and expressivity > stride:
            raise ValueError(
                f"attention.expressivity={expressivity} is more than a block has tokens (attention.stride={stride})"
            )
        self.num_heads = num_heads
        self.head_dim = head_dim
        self.pattern: Pattern = pattern
        self.stride = stride
        self.expressivity = expressivity
        self.window = window
        self.global_tokens = global_tokens
        self.causal = causal

    def forward(
        self,
        query: Float[Tensor, "total heads dim"],
        key: Float[Tensor, "total heads dim"],
        value: Float[Tensor, "total heads dim"],
        cu_seqlens: Int32[Tensor, "segments_plus_one"],
    ) -> Float[Tensor, "total heads dim"]:
        if query.shape[0] == 0:
            return with_unused(value, query, key)
        with torch.autocast(query.device.type, enabled=False):  # logits stay in fp32
            return self._attend(query, key, value, cu_seqlens)  # pyright: ignore[reportCallIssue]

    @torch.compiler.disable  # it reads the offsets, which a compiler cannot trace
    def _attend(self, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor) -> Tensor:
        parts = {"strided": self._strided, "fixed": self._fixed, "window": self._window}[self.pattern]
        q, k, v = (x.transpose(0, 1) for x in (query, key, value))
        return merged(parts(q, k, v, cu_seqlens), value.dtype).transpose(0, 1)

    def strides(self, cu_seqlens: Tensor) -> Tensor:
        """The stride of each segment, int64."""
        lengths = cu_seqlens.diff().long()
        if self.stride is None:
            return lengths.double().sqrt().ceil().long().clamp_min(1)
        return torch.full_like(lengths, self.stride)

    def _strided(self, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor) -> list[Part]:
        segments, positions = segment_numbers(cu_seqlens)
        lengths, strides = cu_seqlens.diff().long(), self.strides(cu_seqlens)
        stride = strides[segments]
        near = self._band(query, key, value, segments, stride.minimum(lengths[segments]))
        # The other rows of a column (equal position modulo the stride) that are two or more strides away, in an order
        # that puts columns end to end. One stride away is near.
        tallest = int((lengths.add(strides - 1) // strides).max())
        if tallest <= 2:
            return [near]
        column = (strides.cumsum(0) - strides)[segments] + positions % stride
        columns = Permutations.of(column.argsort(stable=True).unsqueeze(0))
        dim, heads = query.shape[-1], query.shape[0]

        def sort(x: Tensor) -> Tensor:
            rows = columns.sort(x.transpose(0, 1).reshape(-1, heads * dim))
            return rows.view(-1, heads, dim).transpose(0, 1)

        far = self._band(
            sort(query), sort(key), sort(value), column[columns.order], torch.full_like(column, tallest), nearest=2
        )

        def unsort(x: Tensor) -> Tensor:
            rows = columns.unsort(x.transpose(0, 1).flatten(1))
            return rows.unflatten(1, (heads, -1)).transpose(0, 1)

        return [near, Part(unsort(far.out), unsort(far.logsumexp))]

    def _fixed(self, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor) -> list[Part]:
        segments, positions = segment_numbers(cu_seqlens)
        lengths, strides = cu_seqlens.diff().long(), self.strides(cu_seqlens)
        blocks = lengths.add(strides - 1) // strides
        block = (blocks.cumsum(0) - blocks)[segments] + positions // strides[segments]
        near = self._band(query, key, value, block, strides.minimum(lengths)[segments])
        if int(blocks.max()) <= 1:
            return [near]

        def seen(i: Tensor, j: Tensor, stride: int) -> Tensor:
            return i // stride > j // stride if self.causal else i // stride != j // stride

        parts = []
        each = zip(
            *(x.split(lengths_of(cu_seqlens), dim=1) for x in (query, key, value)), strides.tolist(), strict=True
        )
        for q, k, v, stride in each:
            position = torch.arange(q.shape[1], device=q.device)
            keys = position[position % stride >= stride - self.expressivity] if len(position) > stride else position[:0]
            parts.append(_cross(q, k, v, position, keys, partial(seen, stride=stride)))
        return [near, joined(parts)]

    def _window(self, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor) -> list[Part]:
        segments, _ = segment_numbers(cu_seqlens)
        lengths = lengths_of(cu_seqlens)
        width = min(self.window, max(lengths))
        near = self._band(query, key, value, segments, torch.full_like(segments, width))
        if self.global_tokens == 0 or max(lengths) <= self.window + 1:
            return [near]

        def beyond(i: Tensor, j: Tensor) -> Tensor:
            return i - j > self.window if self.causal else (i - j).abs() > self.window

        to_globals, of_globals = [], []
        for q, k, v in zip(*(x.split(lengths, dim=1) for x in (query, key, value)), strict=True):
            position = torch.arange(q.shape[1], device=q.device)
            few, others = position[: self.global_tokens], position[self.global_tokens :]
            if len(position) <= self.window + 1:
                few = others = position[:0]
            to_globals.append(_cross(q, k, v, position, few, beyond))
            of_globals.append(_cross(q, k, v, few, others, beyond))
        parts = [near, joined(to_globals)]
        # (a causal global token sees none but those before it, which are global too)
        return parts if self.causal else [*parts, joined(of_globals)]

    def _band(
        self, query: Tensor, key: Tensor, value: Tensor, group: Tensor, reach: Tensor, *, nearest: int = 0
    ) -> Part:
        """Rows of one group, which stand together, within reach of one another."""
        width = int(reach.max())
        places = torch.arange(len(group), device=group.device) + width * group
        return band_attention(
            query,
            key,
            value,
            places.to(torch.int32),
            reach.to(torch.int32),
            width=width,
            nearest=nearest,
            causal=self.causal,
        )

    def config(self) -> dict[str, Any]:
        return {
            "name": type(self).__name__,
            "causal": self.causal,
            "pattern": self.pattern,
            "stride": self.stride,
            "expressivity": self.expressivity,
            "window": self.window,
            "global_tokens": self.global_tokens,
        }


def _cross(
    query: Tensor, key: Tensor, value: Tensor, rows: Tensor, keys: Tensor, seen: Callable[[Tensor, Tensor], Tensor]
) -> Part:
    """Attention of some rows of a segment to some of its keys, as a part for all rows; `seen` of their positions.

    `rows` are the first ones of the segment.
    """
    if len(rows) == 0 or len(keys) == 0:
        unseen = query.new_full((*query.shape[:2], 1), UNSEEN, dtype=accumulator_type(query))
        return Part(torch.zeros_like(value, dtype=unseen.dtype), unseen)
    logits = scaled_products(query[:, : len(rows)], key.index_select(1, keys))
    logits.add_(unless(seen(rows[:, None], keys), logits.dtype))
    out, logsumexp = softmax_part(logits, value.index_select(1, keys))
    rest = query.shape[1] - len(rows)
    return Part(pad(out, (0, 0, 0, rest)), pad(logsumexp, (0, 0, 0, rest), value=UNSEEN))
