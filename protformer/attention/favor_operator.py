"""The Performer's operator: one custom op for all feature maps, O(total x dim) memory, hand-derived backward.

Chunks of tokens that stay in cache go through projection, features and state; the [total x features] matrices are
never kept, the backward recomputes them. Logits, stabilisers and accumulators are fp32 (fp64 for fp64 inputs) whatever
the input type.

It is a `torch.library` operator because an `autograd.Function` that reads `cu_seqlens` breaks a compiled graph; and
because autograd does not reach into an operator, `protformer.features.families` brings the derivatives.
"""

import itertools
from collections.abc import Iterator

import torch
from torch import Tensor

from protformer.attention import favor_bidirectional, favor_causal, favor_causal_stabilised
from protformer.attention.favor_bidirectional import OutOfRangeError
from protformer.attention.favor_chunk import ChunkContext, Rows, Segment, chunk_length, product_precision
from protformer.features import NO_ADAPTATION, Adaptation
from protformer.features.families import family as make_family

# Segments begin at multiples of this in a chunk of bf16 inputs.
PRODUCT_BLOCK = 32
# A chunk of the stabilised causal path has a [chunk x chunk] matrix, which a longer one would make the larger cost.
STABILISED_CHUNK = 128


def favor_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    projection: Tensor,
    *,
    family: str,
    epsilon: float = 0.0,
    norm_weight: float = 0.0,
    causal: bool = False,
    adaptation: Adaptation = NO_ADAPTATION,
    shortest: int = 0,
) -> Tensor:
    """Performer attention of packed segments.

    Args:
        query, key, value: `[total, heads, dim]`, any floating type.
        cu_seqlens: int32 offsets `[segments + 1]`, first 0, last total.
        projection: `[1 or heads, rows, dim]`, the scale dim^-1/4 already in it; no gradient is given for it.
        family: the element-wise family of the map (`protformer.features.families`).
        epsilon: what a generalised map adds to its features.
        norm_weight: a key's log weight is -norm_weight |y|^2 / 2: 1 for positive features of the softmax kernel.
        causal: whether row t sees only rows up to t of its segment.
        adaptation: scales and shifts per segment; constants to autograd.
        shortest: segments of fewer rows are left out, their rows are zero.

    Returns:
        `[total, heads, dim]` in the type of `value`.
    """
    out, _ = torch.ops.protformer.favor(
        query, key, value, cu_seqlens, projection, *adaptation[:5], family, epsilon, norm_weight, causal, shortest
    )
    return out


_ARGUMENTS = (
    "Tensor query, Tensor key, Tensor value, Tensor cu_seqlens, Tensor projection,"
    " Tensor? query_scale, Tensor? key_scale, Tensor? norm_scale, Tensor? tilt, Tensor? offset,"
    " str family, float epsilon, float norm_weight, bool causal, int shortest"
)


@torch.library.custom_op("protformer::favor", mutates_args=(), schema=f"({_ARGUMENTS}) -> (Tensor, Tensor)")
def _favor(query, key, value, cu_seqlens, projection, *constants):
    call = _Call(query, key, value, cu_seqlens, projection, constants)
    out = call.output_like(value)
    # What the causal path has to remember of a row, and zero where it has nothing to.
    denominators = _row_numbers(query).zero_()
    with product_precision(query, call.adaptation):
        for chunks in call.groups():
            call.forward(chunks, out, denominators)
    return out, denominators


@_favor.register_fake
def _favor_fake(query, key, value, cu_seqlens, projection, *constants):
    return torch.empty_like(value), _row_numbers(query)


def _row_numbers(query: Tensor) -> Tensor:
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    return query.new_empty(query.shape[1], query.shape[0], dtype=dtype)


@torch.library.custom_op(
    "protformer::favor_backward",
    mutates_args=(),
    schema=f"(Tensor grad_out, Tensor out, Tensor denominators, {_ARGUMENTS}) -> (Tensor, Tensor, Tensor)",
)
def _favor_backward(grad_out, out, denominators, query, key, value, cu_seqlens, projection, *constants):
    call = _Call(query, key, value, cu_seqlens, projection, constants)
    grads = call.output_like(query), call.output_like(key), call.output_like(value)
    with product_precision(query, call.adaptation):
        for chunks in call.groups():
            call.backward(chunks, grad_out, out, denominators, *grads)
    return grads


@_favor_backward.register_fake
def _favor_backward_fake(grad_out, out, denominators, query, key, value, *rest):
    return torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)


def _setup_context(ctx, inputs, output):
    query, key, value, cu_seqlens, projection, *constants = inputs
    out, denominators = output
    ctx.save_for_backward(out, denominators, query, key, value, cu_seqlens, projection, *constants[:5])
    ctx.settings = constants[5:]
    ctx.set_materialize_grads(False)


def _backward(ctx, grad_out, _grad_denominators):
    if grad_out is None:
        return (None,) * 15
    grads = torch.ops.protformer.favor_backward(grad_out, *ctx.saved_tensors, *ctx.settings)
    return (*grads, *(None,) * 12)


_favor.register_autograd(_backward, setup_context=_setup_context)


class _Call:
    """One call of the operator: its segments in groups, each of which goes plainly or, out of range, stabilised."""

    def __init__(
        self, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, projection: Tensor, constants: tuple
    ) -> None:
        *adaptation, family, epsilon, norm_weight, self.causal, self.shortest = constants
        self.adaptation = Adaptation(*adaptation)
        self.cu_seqlens = cu_seqlens

        def context(plain: bool) -> ChunkContext:
            chosen = make_family(family, epsilon, plain=plain, causal=self.causal)
            return ChunkContext(query, key, value, projection, chosen, norm_weight, self.adaptation)

        self.plain, self.stabilised = context(True), context(False)
        # Looking at the range costs a CUDA device a wait at every chunk.
        self.try_plain = not (query.is_cuda and family == "exponential")
        self.chunk = chunk_length(query.shape[1], projection.shape[1] * self.plain.family.columns)
        # The bf16 products of a CPU are compiled for each new shape: multiples keep shapes few.
        bidirectional_block = PRODUCT_BLOCK if query.dtype == torch.bfloat16 and self.try_plain else 1
        self.block = favor_causal.BLOCK if self.causal else bidirectional_block

    def output_like(self, x: Tensor) -> Tensor:
        """Room for rows of a pack: zero where segments are left out, else whatever, for all rows will be written."""
        return torch.zeros_like(x) if self.shortest > 1 else torch.empty_like(x)

    def groups(self) -> Iterator[list[Rows]]:
        """The pack as lists of chunks: one chunk of several short segments, or the parts of one long segment."""
        together: list[Segment] = []
        length = 0
        for index, (start, stop) in enumerate(itertools.pairwise(self.cu_seqlens.tolist())):
            if stop - start < max(self.shortest, 1):
                continue
            segment = Segment(index, start, stop)
            blocks = self._up(stop - start)
            # (segments that were left out between two others part them)
            if together and (together[-1].stop != start or length + blocks > self.chunk or not self.try_plain):
                yield self._one_chunk(together)
                together, length = [], 0
            if blocks > self.chunk:
                yield self._parts(segment)
            else:
                together.append(segment)
                length += blocks
        if together:
            yield self._one_chunk(together)

    def _one_chunk(self, segments: list[Segment]) -> list[Rows]:
        return [Rows(segments[0].start, segments[-1].stop, tuple(segments), self.block)]

    def _parts(self, segment: Segment) -> list[Rows]:
        """Chunks of even length, aligned as blocks and caches like it."""
        length = segment.stop - segment.start
        even = -(-length // -(-length // self.chunk))
        size = min(self.chunk, -(-even // max(self.block, 16)) * max(self.block, 16))
        starts = range(segment.start, segment.stop, size)
        return [Rows(a, min(a + size, segment.stop), (segment,), self.block) for a in starts]

    def _up(self, length: int) -> int:
        return -(-length // self.block) * self.block

    def forward(self, chunks: list[Rows], out: Tensor, denominators: Tensor) -> None:
        if self.try_plain:
            try:
                (favor_causal if self.causal else favor_bidirectional).forward(self.plain, chunks, out)
                return
            except OutOfRangeError:
                if len(chunks[0].segments) > 1:
                    for segment in chunks[0].segments:
                        self.forward(self._parts(segment), out, denominators)
                    return
        if not self.causal:
            favor_bidirectional.forward(self.stabilised, _in_parts_of(self.chunk, chunks), out)
        elif self.plain.family.signed:
            favor_causal.forward(self.plain, _in_parts_of(1, chunks), out)
        else:
            favor_causal_stabilised.forward(self.stabilised, _in_parts_of(STABILISED_CHUNK, chunks), out, denominators)

    def backward(self, chunks: list[Rows], grad_out: Tensor, out: Tensor, denominators: Tensor, *grads: Tensor) -> None:
        # (every path forms its numbers anew, so that the same inputs take the same one as in the forward)
        if self.try_plain:
            try:
                (favor_causal if self.causal else favor_bidirectional).backward(self.plain, chunks, grad_out, *grads)
                return
            except OutOfRangeError:
                if len(chunks[0].segments) > 1:
                    for segment in chunks[0].segments:
                        self.backward(self._parts(segment), grad_out, out, denominators, *grads)
                    return
        if not self.causal:
            favor_bidirectional.backward(self.stabilised, _in_parts_of(self.chunk, chunks), grad_out, *grads)
        elif self.plain.family.signed:
            favor_causal.backward(self.plain, _in_parts_of(1, chunks), grad_out, *grads)
        else:
            rows = _in_parts_of(STABILISED_CHUNK, chunks)
            favor_causal_stabilised.backward(self.stabilised, rows, grad_out, out, denominators, *grads)


def _in_parts_of(size: int, chunks: list[Rows]) -> list[Rows]:
    """A segment in chunks of `size` rows, without gaps, whose rows would have a part in a stabiliser."""
    (segment,) = chunks[0].segments
    starts = range(segment.start, segment.stop, size)
    return [Rows(a, min(a + size, segment.stop), (segment,)) for a in starts]
