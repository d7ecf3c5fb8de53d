"""Softmax over a band of neighbours, in chunks: what window, strided, fixed and hashed attention are made of.

Rows stand in an order of the caller's choice and carry ascending whole numbers, their places. A row sees the rows whose
places lie at most `reach` from its own, which are rows of its own chunk and of the chunks beside it. Rows that must not
see one another (of two segments, two buckets, two columns) get places further apart than that, so one comparison is the
whole mask, and chunks need no alignment and no padding within a pack. Two groups of rows, reach 2:

    row       0 1 2 3 4
    group     a a a b b
    place     0 1 2 5 6      row + 2 x the group's number

Where attention has several parts (a band and some columns), each part gives its output and the log-sum-exp of its
logits, and `merged` puts them together as one softmax over all.
"""

import itertools
from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn.functional import pad

# Logits of what is not seen: finite, so that a row that sees nothing in one part has no NaN in its gradient; far below
# any logit, so that such a part has weight zero.
UNSEEN = -1e30
# A place further from all others than any reach.
NOWHERE = -(2**30)


class Part(NamedTuple):
    """Attention to some of the keys: `[*heads, rows, dim]`, and the log-sum-exp of its logits `[*heads, rows, 1]`.

    Both in fp32 or fp64.
    """

    out: Tensor
    logsumexp: Tensor


def accumulator_type(x: Tensor) -> torch.dtype:
    """fp64 for fp64, else fp32."""
    return torch.promote_types(x.dtype, torch.float32)


def with_unused(out: Tensor, *unused: Tensor) -> Tensor:
    """`out`, with gradients of zeros for inputs that it does not depend on.

    Without a gradient a parameter would make DDP wait for it for ever.
    """
    return out + sum(x[:0].sum() for x in unused).to(out.dtype)  # pyright: ignore[reportAttributeAccessIssue]


def segment_numbers(cu_seqlens: Tensor) -> tuple[Tensor, Tensor]:
    """For every row of the pack its segment and its position in it, int64."""
    lengths = cu_seqlens.diff().long()
    segments = torch.repeat_interleave(torch.arange(len(lengths), device=lengths.device), lengths)
    return segments, torch.arange(len(segments), device=lengths.device) - cu_seqlens.long()[segments]


def of_chunks(x: Tensor, size: int, fill: int = 0) -> Tensor:
    """`[..., rows, n] -> [..., chunks, size, n]`; the last chunk is filled up."""
    return pad(x, (0, 0, 0, -x.shape[-2] % size), value=fill).unflatten(-2, (-1, size))


def of_neighbours(x: Tensor, size: int, causal: bool, fill: int = 0) -> Tensor:
    """`[..., rows, n] -> [..., chunks, keys, n]`: each chunk with the one before, and if not causal the one after.

    One chunk alone has no neighbours: `keys` is then `size`, else 2 or 3 times `size`.
    """
    chunks = of_chunks(x, size, fill)
    if chunks.shape[-3] == 1:
        return chunks
    around = pad(chunks, (0, 0, 0, 0, 1, 0 if causal else 1), value=fill)
    count = chunks.shape[-3]
    return torch.cat([around.narrow(-3, i, count) for i in range(2 if causal else 3)], dim=-2)


def distances(places: Tensor, size: int, causal: bool, out: Tensor | None = None) -> Tensor:
    """`[..., rows] -> [..., chunks, size, keys]`: how far before a row a key stands, or how far away if not causal."""
    own = of_chunks(places.unsqueeze(-1), size)
    keys = of_neighbours(places.unsqueeze(-1), size, causal, fill=NOWHERE).transpose(-1, -2)
    apart = torch.sub(own, keys, out=out)
    return apart if causal else apart.abs_()


def band_logits(query: Tensor, key: Tensor, size: int, causal: bool) -> Tensor:
    """`[..., rows, dim]` twice `-> [..., chunks, size, keys]`, scaled by dim^-1/2, in fp32 (or fp64)."""
    return scaled_products(of_chunks(query, size), of_neighbours(key, size, causal))


def unless(seen: Tensor, dtype: torch.dtype) -> Tensor:
    """What is added to logits: 0 where a key is seen, elsewhere `UNSEEN`, which swallows any logit."""
    return torch.zeros_like(seen, dtype=dtype).masked_fill_(~seen, UNSEEN)


def scaled_products(query: Tensor, key: Tensor) -> Tensor:
    """q k^T / sqrt(dim). The inputs are widened first: a product of bf16 matrices would come back rounded to bf16."""
    wide = accumulator_type(query)
    return (query.to(wide) * query.shape[-1] ** -0.5) @ key.to(wide).transpose(-1, -2)


def softmax_part(logits: Tensor, value: Tensor) -> Part:
    """softmax(logits) v and the log-sum-exp, of logits in fp32; the weights are rounded to the type of v."""
    return Part(*_Softmax.apply(logits, value))  # pyright: ignore[reportGeneralTypeIssues]


class _Softmax(torch.autograd.Function):
    """Softmax, its product with the values and its log-sum-exp, keeping one matrix.

    (`logsumexp` takes exponentials of all that is masked, which on a CPU cost seven times those of what is seen, and
    autograd keeps three matrices for it.)
    """

    @staticmethod
    def forward(ctx: Any, logits: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        weights = logits.softmax(-1)
        out = (weights.to(value.dtype) @ value).to(logits.dtype)
        ctx.save_for_backward(weights, value, out)
        # the largest weight is exp(its logit - logsumexp)
        logsumexp = logits.amax(-1, keepdim=True) - weights.amax(-1, keepdim=True).log_()
        return out, logsumexp

    @staticmethod
    @once_differentiable  # what is kept has no graph: a second derivative is refused, and not wrong
    def backward(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, grad_out: Tensor, grad_logsumexp: Tensor
    ) -> tuple[Tensor, Tensor]:
        weights, value, out = ctx.saved_tensors
        with torch.autocast(value.device.type, enabled=False):
            grad_value = weights.to(value.dtype).transpose(-1, -2) @ grad_out.to(value.dtype)
            grad = grad_out @ value.to(grad_out.dtype).transpose(-1, -2)
            # sum_j weight_j grad_j = grad_out . out (FlashAttention's D): no second matrix of this size
            grad.sub_((grad_out * out).sum(-1, keepdim=True) - grad_logsumexp).mul_(weights)
        return grad, grad_value


def rows_of(part: Part, rows: int) -> Part:
    """Chunks put end to end again, less what filled the last one."""
    return Part(*(x.flatten(-3, -2).narrow(-2, 0, rows) for x in part))


def band_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    places: Tensor,
    reach: Tensor,
    *,
    width: int,
    nearest: int = 0,
    causal: bool,
) -> Part:
    """Attention of `[heads, rows, dim]` to rows from `nearest` to `reach` away, before a row alone if `causal`.

    Args:
        places: `[rows]`, ascending.
        reach: `[rows]`, how far each sees.
        width: not less than any reach, nor than any distance in rows of two that see one another.
    """
    rows = query.shape[-2]
    size = max(1, min(width, rows))
    apart = distances(places, size, causal)
    seen = (apart >= nearest) & (apart <= of_chunks(reach.unsqueeze(-1), size))
    logits = band_logits(query, key, size, causal)
    return rows_of(softmax_part(logits.add_(unless(seen, logits.dtype)), of_neighbours(value, size, causal)), rows)


def merged(parts: Sequence[Part], dtype: torch.dtype) -> Tensor:
    """One softmax over the keys of all parts, `[..., rows, dim]`. A key that is in several parts counts in each."""
    if len(parts) == 1:
        return parts[0].out.to(dtype)
    weights = torch.cat([part.logsumexp for part in parts], dim=-1).softmax(-1).split(1, dim=-1)
    return sum(weight * part.out for weight, part in zip(weights, parts, strict=True)).to(dtype)  # pyright: ignore


def joined(parts: Iterable[Part]) -> Part:
    """Parts of consecutive rows, end to end."""
    outs, numbers = zip(*parts, strict=True)
    return Part(torch.cat(outs, dim=-2), torch.cat(numbers, dim=-2))


class Permutations(NamedTuple):
    """`count` orders of the same rows, and back: int64 indices `[count * rows]`.

    `order` says which row (0 to rows - 1) stands at each place of each order; `sorted_place` where, counted through all
    orders, a row has gone.
    """

    order: Tensor
    sorted_place: Tensor
    rows: int

    @classmethod
    def of(cls, order: Tensor) -> "Permutations":
        """From `[..., rows]`: each last axis is an order of a matrix of its own, the first axis counts the orders."""
        count, rows = order.shape[0], order[0].numel()
        starts = torch.arange(rows // order.shape[-1], device=order.device) * order.shape[-1]
        flat = (order.reshape(count, -1, order.shape[-1]) + starts[:, None]).reshape(count, rows)
        back = torch.empty_like(flat).scatter_(1, flat, torch.arange(rows, device=order.device).expand_as(flat))
        offsets = torch.arange(count, device=order.device)[:, None] * rows
        return cls(flat.flatten(), (back + offsets).flatten(), rows)

    def sort(self, x: Tensor) -> Tensor:
        """`[rows, n] -> [count * rows, n]`."""
        return _Take.apply(x, self.order, self.sorted_place)  # pyright: ignore[reportReturnType]

    def unsort(self, x: Tensor) -> Tensor:
        """`[count * rows, n]` back in the order of the rows, for each of the orders."""
        offsets = torch.arange(0, len(self.order), self.rows, device=x.device).repeat_interleave(self.rows)
        return _Take.apply(x, self.sorted_place, self.order + offsets)  # pyright: ignore[reportReturnType]


class _Take(torch.autograd.Function):
    """Rows by index, where each row is taken equally often: its gradient takes rows too, which is faster than adding to
    them (autograd's own backward took half of the time of hashed attention)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, index: Tensor, back: Tensor) -> Tensor:
        ctx.save_for_backward(back)
        ctx.rows = x.shape[0]
        return x.index_select(0, index)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (back,) = ctx.saved_tensors
        return grad.index_select(0, back).unflatten(0, (-1, ctx.rows)).sum(0), None, None


def lengths_of(cu_seqlens: Tensor) -> list[int]:
    """Numbers of rows of the segments, read to the host."""
    return [b - a for a, b in itertools.pairwise(cu_seqlens.tolist())]
