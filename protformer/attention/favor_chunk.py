"""What the bidirectional and the causal Performer share: one chunk's layout, projection and gradients.

Inside a chunk tensors are `[heads, tokens, ...]` and contiguous, so that products over all heads are one batched call.
Chunks of a call use the same buffers over and over: memory fresh from the system costs more than the arithmetic.
"""

from collections.abc import Iterator
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
    """Rows start to stop that are worked on together: whole segments, or a part of one.

    With `block`, every segment begins at a multiple of it in the chunk, and rows of the gaps are zero:
        segments of 3 and 2 rows, block 4:   a a a . b b . .
    """

    start: int
    stop: int
    segments: tuple[Segment, ...]
    block: int = 1

    @property
    def length(self) -> int:
        """Rows of the chunk, gaps included."""
        return sum(-(-(s.stop - s.start) // self.block) * self.block for s in self._parts())

    def slices(self) -> Iterator[tuple[int, slice]]:
        """Each segment's index, and its place in the chunk."""
        place = 0
        for segment in self._parts():
            length = segment.stop - segment.start
            yield segment.index, slice(place, place + length)
            place += -(-length // self.block) * self.block

    def gaps(self) -> Iterator[slice]:
        for _, place in self.slices():
            end = -(-place.stop // self.block) * self.block
            if end > place.stop:
                yield slice(place.stop, end)

    def _parts(self) -> Iterator[Segment]:
        return (Segment(s.index, max(s.start, self.start), min(s.stop, self.stop)) for s in self.segments)


class Keys(NamedTuple):
    scaled: Tensor  # [heads, tokens, dim]
    logits: Tensor  # [heads, tokens, rows]
    weight: Tensor | None  # log weight [heads, tokens, 1]


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

    def take(self, name: str, tokens: int, width: int, dtype: torch.dtype | None = None) -> Tensor:
        """A contiguous buffer `[heads, tokens, width]`, the same memory for every call with this name."""
        size = self.heads * tokens * width
        buffer = self._buffers.get(name)
        if buffer is None or buffer.numel() < size:
            buffer = self.query.new_empty(size, dtype=dtype or self.dtype)
            self._buffers[name] = buffer
        return buffer[:size].view(self.heads, tokens, width)

    def load(self, name: str, x: Tensor, rows: Rows) -> Tensor:
        """Rows of a packed tensor, heads first, in the compute type; gaps are zero."""
        length = rows.length
        out = self.take(name, length, x.shape[2])
        # Two plain copies are several times faster than one that transposes and converts.
        target = out if x.dtype == self.dtype else self.take(f"{x.dtype}", length, x.shape[2], x.dtype)
        if length == rows.stop - rows.start:
            target.copy_(x[rows.start : rows.stop].transpose(0, 1))
        else:
            a = rows.start
            for _, place in rows.slices():
                target[:, place].copy_(x[a : a + place.stop - place.start].transpose(0, 1))
                a += place.stop - place.start
            for gap in rows.gaps():
                target[:, gap] = 0
        return out if target is out else out.copy_(target)

    def store(self, out: Tensor, rows: Rows, chunk: Tensor) -> None:
        if chunk.shape[1] == rows.stop - rows.start:
            out[rows.start : rows.stop].copy_(chunk.transpose(0, 1))
            return
        a = rows.start
        for _, place in rows.slices():
            out[a : a + place.stop - place.start].copy_(chunk[:, place].transpose(0, 1))
            a += place.stop - place.start

    def queries(self, rows: Rows) -> Queries:
        scaled = self.load("query", self.query, rows)
        _each_segment(torch.Tensor.mul_, scaled, self.adaptation.query_scale, rows)
        return Queries(scaled, self._project("query_logits", scaled, rows))

    def keys(self, rows: Rows) -> Keys:
        scaled = self.load("key", self.key, rows)
        _each_segment(torch.Tensor.mul_, scaled, self.adaptation.key_scale, rows)
        return Keys(scaled, self._project("key_logits", scaled, rows), self._key_weight(scaled, rows))

    def _project(self, name: str, scaled: Tensor, rows: Rows) -> Tensor:
        features = self.weight.shape[-2]
        logits = self.take(name, scaled.shape[1], features)
        if self.weight.dim() == 2:
            torch.mm(scaled.view(-1, self.dim), self.weight.t(), out=logits.view(-1, features))
        else:
            torch.bmm(scaled, self.weight.transpose(1, 2), out=logits)
        _each_segment(torch.Tensor.add_, logits, self.adaptation.offset, rows)
        return logits

    def _key_weight(self, scaled: Tensor, rows: Rows) -> Tensor | None:
        weight = None
        if self.norm_factor != 0.0:
            weight = torch.linalg.vector_norm(scaled, dim=2, keepdim=True).square_().mul_(self.norm_factor)
            if self.adaptation.norm_scale is not None:
                _each_segment(torch.Tensor.mul_, weight, self.adaptation.norm_scale.unsqueeze(2), rows)
        if self.adaptation.tilt is not None:
            weight = weight if weight is not None else scaled.new_zeros(self.heads, scaled.shape[1], 1)
            for index, place in rows.slices():
                weight[:, place] += scaled[:, place] @ _of_segment(self.adaptation.tilt, index).transpose(1, 2)
        if weight is not None:
            for gap in rows.gaps():  # (or the gap's weight could be the largest)
                weight[:, gap] = weight[:, :1]
        return weight

    def values(self, rows: Rows, factor: Tensor | None, centres: list[Tensor] | None = None) -> Tensor:
        """[v, 1] times the keys' factor: the ones make the denominator one more column of the same product.

        `centres` `[heads, 1, dim]`, one per segment of `rows`, are taken from v first.
        """
        value = self.load("value", self.value, rows)
        if centres is not None:
            for (_, place), centre in zip(rows.slices(), centres, strict=True):
                value[:, place] -= centre
        joint = self.take("values", value.shape[1], value.shape[2] + 1)
        if factor is None:
            joint[..., :-1].copy_(value)
            joint[..., -1:] = 1.0
        else:
            torch.mul(value, factor, out=joint[..., :-1])
            joint[..., -1:].copy_(factor)
        for gap in rows.gaps():
            joint[:, gap] = 0.0
        return joint

    def query_gradient(self, out: Tensor, rows: Rows, grad_logits: Tensor) -> None:
        grad = self._unproject(grad_logits)
        _each_segment(torch.Tensor.mul_, grad, self.adaptation.query_scale, rows)
        self.store(out, rows, grad)

    def key_gradient(self, out: Tensor, rows: Rows, keys: Keys, grad_logits: Tensor, grad_weight: Tensor) -> None:
        grad = self._unproject(grad_logits)
        if self.norm_factor != 0.0:
            share = grad_weight * (2.0 * self.norm_factor)
            if self.adaptation.norm_scale is not None:
                _each_segment(torch.Tensor.mul_, share, self.adaptation.norm_scale.unsqueeze(2), rows)
            grad.addcmul_(keys.scaled, share)
        if self.adaptation.tilt is not None:
            for index, place in rows.slices():
                grad[:, place] += grad_weight[:, place] * _of_segment(self.adaptation.tilt, index)
        _each_segment(torch.Tensor.mul_, grad, self.adaptation.key_scale, rows)
        self.store(out, rows, grad)

    def _unproject(self, grad_logits: Tensor) -> Tensor:
        out = self.take("unprojected", grad_logits.shape[1], self.dim)
        if self.weight.dim() == 2:
            torch.mm(grad_logits.reshape(-1, grad_logits.shape[2]), self.weight, out=out.view(-1, self.dim))
            return out
        return torch.bmm(grad_logits, self.weight, out=out)

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


def _of_segment(x: Tensor, index: int) -> Tensor:
    """`[heads or 1, 1, width]` of one segment."""
    return x[index if x.shape[0] > 1 else 0].unsqueeze(1)


def _each_segment(change, x: Tensor, by: Tensor | None, rows: Rows) -> None:
    """x of every segment changed in place by its own entry of `by` `[segments or 1, heads or 1, width]`."""
    if by is None:
        return
    if by.shape[0] == 1:
        change(x, _of_segment(by, 0))
        return
    for index, place in rows.slices():
        change(x[:, place], _of_segment(by, index))


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
        (torch.backends.mkldnn.matmul, "bf16" if low else "ieee"),
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
