"""What the bidirectional and the causal Performer share: one chunk's layout, projection and gradients.

A chunk of one segment is `[heads, tokens, width]` and contiguous, so that products over all heads are one batched call.
A chunk of several segments is one such block behind another, `[1, heads * tokens, width]`:

    segments of 3 and 2 tokens, 2 heads, block 2:    a0 a0 a0 .  a1 a1 a1 .  b0 b0 b1 b1

Element-wise work and the product with a shared projection take it as it is; `ChunkContext.parts` gives the blocks, each
contiguous (bf16 products of slices with a stride between heads would be four times slower).

Chunks of a call use the same buffers over and over: memory fresh from the system costs more than the arithmetic.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import NamedTuple

import torch
from torch import Tensor

from protformer.features import Adaptation
from protformer.features.families import Family

# Numbers in a chunk's features: 4 MB in fp32, what the caches of two cores hold.
CHUNK_ELEMENTS = 1 << 20
MINIMUM_CHUNK, MAXIMUM_CHUNK = 128, 1024


class Segment(NamedTuple):
    """Rows start to stop of the pack; `index` is the segment's place in `cu_seqlens`."""

    index: int
    start: int
    stop: int


class Rows(NamedTuple):
    """Rows start to stop of the pack that are worked on together: whole segments, or a part of one.

    With `block`, every segment is filled up to a multiple of it, and the rows of these gaps are zero.
    """

    start: int
    stop: int
    segments: tuple[Segment, ...]
    block: int = 1

    def parts(self) -> Iterator[Segment]:
        """The segments as far as they lie in these rows."""
        return (Segment(s.index, max(s.start, self.start), min(s.stop, self.stop)) for s in self.segments)

    def span(self, part: Segment) -> int:
        """Rows of a part with its gap."""
        return -(-(part.stop - part.start) // self.block) * self.block

    @property
    def length(self) -> int:
        """Rows of the chunk, gaps included."""
        return sum(self.span(part) for part in self.parts())


class Keys(NamedTuple):
    scaled: Tensor  # [.., dim], all in the layout of a chunk
    logits: Tensor  # [.., rows]
    weight: Tensor | None  # log weight [.., 1]


class Queries(NamedTuple):
    scaled: Tensor
    logits: Tensor


def chunk_length(heads: int, features: int) -> int:
    """Tokens per chunk so that its features stay in cache, a multiple of 64."""
    return min(MAXIMUM_CHUNK, max(MINIMUM_CHUNK, CHUNK_ELEMENTS // (heads * features) // 64 * 64))


class ChunkContext:
    """The inputs and constants of one call, and its buffers."""

    def __init__(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        projection: Tensor,
        family: Family,
        norm_weight: float,
        adaptation: Adaptation,
    ) -> None:
        self.query, self.key, self.value = query, key, value
        self.family = family
        self.adaptation = adaptation
        self.heads, self.dim = query.shape[1:]
        self.dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
        # A shared projection as a matrix makes the product over heads one large call instead of a batch of small ones.
        weight = projection.to(self.dtype)
        self.weight = weight[0] if weight.shape[0] == 1 else weight
        # What |y|^2 / 2 of the scaled key counts in its log weight; the projection brings dim^-1/4, this its square.
        self.norm_factor = -0.5 * norm_weight * self.dim**-0.5
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, rows: Rows, width: int, dtype: torch.dtype | None = None) -> Tensor:
        """A buffer in the layout of a chunk, the same memory for every call with this name."""
        leading = self.heads if len(rows.segments) == 1 else 1
        return self.take_flat(name, self.heads * rows.length * width, dtype).view(leading, -1, width)

    def take_flat(self, name: str, size: int, dtype: torch.dtype | None = None) -> Tensor:
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self._buffers[name] = self.query.new_empty(size, dtype=dtype or self.dtype)
        return buffer[:size]

    def parts(self, x: Tensor, rows: Rows) -> list[Tensor]:
        """Each segment's block `[heads, tokens, width]`, gap included."""
        if len(rows.segments) == 1:
            return [x]
        sizes = [self.heads * rows.span(part) for part in rows.parts()]
        return [block.view(self.heads, -1, x.shape[2]) for block in x[0].split(sizes)]

    def close_gaps(self, x: Tensor, rows: Rows) -> Tensor:
        """x with zeros in the rows between segments."""
        if rows.length > rows.stop - rows.start:
            for part, block in zip(rows.parts(), self.parts(x, rows), strict=True):
                block[:, part.stop - part.start :] = 0.0
        return x

    def load(self, name: str, x: Tensor, rows: Rows) -> Tensor:
        """Rows of a packed tensor, heads first, in the compute type; gaps are zero."""
        out = self.take(name, rows, x.shape[2])
        # Two plain copies are several times faster than one that transposes and converts.
        target = out if x.dtype == self.dtype else self.take(f"{x.dtype}", rows, x.shape[2], x.dtype)
        for part, block in zip(rows.parts(), self.parts(target, rows), strict=True):
            block[:, : part.stop - part.start].copy_(x[part.start : part.stop].transpose(0, 1))
        self.close_gaps(target, rows)
        return out if target is out else out.copy_(target)

    def store(self, out: Tensor, rows: Rows, chunk: Tensor) -> None:
        for part, block in zip(rows.parts(), self.parts(chunk, rows), strict=True):
            out[part.start : part.stop].copy_(block[:, : part.stop - part.start].transpose(0, 1))

    def queries(self, rows: Rows) -> Queries:
        scaled = self.load("query", self.query, rows)
        self._change(torch.Tensor.mul_, scaled, self.adaptation.query_scale, rows)
        return Queries(scaled, self._project("query_logits", scaled, rows))

    def keys(self, rows: Rows) -> Keys:
        scaled = self.load("key", self.key, rows)
        self._change(torch.Tensor.mul_, scaled, self.adaptation.key_scale, rows)
        return Keys(scaled, self._project("key_logits", scaled, rows), self._key_weight(scaled, rows))

    def _project(self, name: str, scaled: Tensor, rows: Rows) -> Tensor:
        logits = self.take(name, rows, self.weight.shape[-2])
        if self.weight.dim() == 2:
            torch.mm(scaled.view(-1, self.dim), self.weight.t(), out=logits.view(-1, logits.shape[2]))
        else:
            for x, out in zip(self.parts(scaled, rows), self.parts(logits, rows), strict=True):
                torch.bmm(x, self.weight.transpose(1, 2), out=out)
        self._change(torch.Tensor.add_, logits, self.adaptation.offset, rows)
        return logits

    def _key_weight(self, scaled: Tensor, rows: Rows) -> Tensor | None:
        weight = None
        if self.norm_factor != 0.0:
            weight = torch.linalg.vector_norm(scaled, dim=2, keepdim=True).square_().mul_(self.norm_factor)
            if self.adaptation.norm_scale is not None:
                self._change(torch.Tensor.mul_, weight, self.adaptation.norm_scale.unsqueeze(2), rows)
        if self.adaptation.tilt is not None:
            weight = torch.zeros_like(scaled[..., :1]) if weight is None else weight
            for part, x, out in self._blocks(rows, scaled, weight):
                out += torch.bmm(x, self._of(self.adaptation.tilt, part).transpose(1, 2).expand(self.heads, -1, -1))
        if weight is not None and rows.length > rows.stop - rows.start:
            for part, out in self._blocks(rows, weight):  # (or the gap's weight could be the largest)
                out[:, part.stop - part.start :] = out[:, :1]
        return weight

    def values(self, rows: Rows, factor: Tensor | None, centres: list[Tensor] | None = None) -> Tensor:
        """[v, 1] times the keys' factor: the ones make the denominator one more column of the same product.

        `centres` `[heads, 1, dim]`, one per segment of `rows`, are taken from v first.
        """
        value = self.load("value", self.value, rows)
        if centres is not None:
            for block, centre in zip(self.parts(value, rows), centres, strict=True):
                block -= centre
        joint = self.take("values", rows, value.shape[2] + 1)
        if factor is None:
            joint[..., :-1].copy_(value)
            joint[..., -1:] = 1.0
        else:
            torch.mul(value, factor, out=joint[..., :-1])
            joint[..., -1:].copy_(factor)
        return self.close_gaps(joint, rows)

    def query_gradient(self, out: Tensor, rows: Rows, grad_logits: Tensor) -> None:
        grad = self._unproject(grad_logits, rows)
        self._change(torch.Tensor.mul_, grad, self.adaptation.query_scale, rows)
        self.store(out, rows, grad)

    def key_gradient(self, out: Tensor, rows: Rows, keys: Keys, grad_logits: Tensor, grad_weight: Tensor) -> None:
        grad = self._unproject(grad_logits, rows)
        if self.norm_factor != 0.0:
            share = grad_weight * (2.0 * self.norm_factor)
            if self.adaptation.norm_scale is not None:
                self._change(torch.Tensor.mul_, share, self.adaptation.norm_scale.unsqueeze(2), rows)
            grad.addcmul_(keys.scaled, share)
        if self.adaptation.tilt is not None:
            for part, block, weight in self._blocks(rows, grad, grad_weight):
                block.addcmul_(weight, self._of(self.adaptation.tilt, part))
        self._change(torch.Tensor.mul_, grad, self.adaptation.key_scale, rows)
        self.store(out, rows, grad)

    def _unproject(self, grad_logits: Tensor, rows: Rows) -> Tensor:
        out = self.take("unprojected", rows, self.dim)
        if self.weight.dim() == 2:
            torch.mm(grad_logits.view(-1, grad_logits.shape[2]), self.weight, out=out.view(-1, self.dim))
        else:
            for x, block in zip(self.parts(grad_logits, rows), self.parts(out, rows), strict=True):
                torch.bmm(x, self.weight, out=block)
        return out

    def _blocks(self, rows: Rows, *chunks: Tensor) -> Iterator[tuple]:
        """(segment, its block of each chunk ...) for every segment."""
        return zip(rows.parts(), *(self.parts(x, rows) for x in chunks), strict=True)

    def _of(self, x: Tensor, part: Segment) -> Tensor:
        """`[heads or 1, 1, width]`: a segment's own entry of `[segments or 1, heads or 1, width]`."""
        return x[part.index if x.shape[0] > 1 else 0].unsqueeze(1)

    def _change(self, change: Callable[..., Tensor], x: Tensor, by: Tensor | None, rows: Rows) -> None:
        """Every segment's block of x changed in place by the segment's own entry of `by`."""
        if by is not None:
            for part, block in self._blocks(rows, x):
                change(block, self._of(by, part))

    def guarded(self, denominator: Tensor) -> Tensor:
        """A denominator that can be divided by, whatever the inputs.

        Bidirectional exponential features are never near zero and pass unchanged; causal ones that underflow are
        recomputed. Signed features can sum to zero, and there a floor relative to their count bounds the output.
        """
        if self.family.signed:
            floor = 1e-6 * self.weight.shape[-2]
            floors = torch.copysign(torch.full_like(denominator, floor), denominator)
            return torch.where(denominator.abs() < floor, floors, denominator)
        return denominator.clamp_min(torch.finfo(self.dtype).tiny)


@contextmanager
def product_precision(query: Tensor, adaptation: Adaptation) -> Iterator[None]:
    """The precision of fp32 products inside an operator call: what the inputs deserve, whatever the user has set.

    For bf16 inputs the products take bf16 operands and accumulate in fp32 (AMX on a CPU, tensor cores on CUDA): inputs
    and projections are bf16 numbers, so logits lose nothing, and features lose what a bf16 output loses anyway. Scaled
    inputs are no bf16 numbers, and everything else is fp32: products are full then.

    An operator runs below autograd but not below autocast, which would round logits to bf16.
    """
    low = query.dtype == torch.bfloat16 and adaptation.key_scale is None
    settings = (
        (torch.backends.mkldnn.matmul, "bf16" if low else "ieee"),  # pyright: ignore[reportAttributeAccessIssue]
        (torch.backends.cuda.matmul, "tf32" if low else "ieee"),
    )
    before = [backend.fp32_precision for backend, _ in settings]
    for backend, precision in settings:
        backend.fp32_precision = precision
    try:
        with torch.autocast(query.device.type, enabled=False):
            yield
    finally:
        for (backend, _), precision in zip(settings, before, strict=True):
            backend.fp32_precision = precision
