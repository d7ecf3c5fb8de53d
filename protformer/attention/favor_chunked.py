"""The Performer as chunks of PyTorch operations: on every device, for every type, and the reference of the kernels.

Chunks of tokens that stay in cache go through projection, features and state. Each group of segments goes plainly or,
with logits out of range, stabilised.
"""

import itertools
from collections.abc import Container, Iterator

import torch
from torch import Tensor

from protformer.attention import favor_bidirectional, favor_causal, favor_causal_stabilised
from protformer.attention.favor_bidirectional import OutOfRangeError
from protformer.attention.favor_chunk import ChunkContext, Rows, Segment, chunk_length, product_precision
from protformer.attention.favor_settings import Answer, Inputs, Settings, row_numbers, state_numbers
from protformer.features.families import family as make_family

# Segments begin at multiples of this in a chunk of bf16 inputs.
PRODUCT_BLOCK = 32
# A chunk of the stabilised causal path has a [chunk x chunk] matrix, which a longer one would make the larger cost.
STABILISED_CHUNK = 128


def forward(inputs: Inputs, settings: Settings) -> Answer:
    """The output, and what the stabilised causal path has to remember of a row (zero where there is nothing)."""
    query, _, value, _, projection = inputs
    states = state_numbers(query, projection, settings.causal)
    answer = Answer(settings.output_like(value), row_numbers(query).zero_(), states)
    forward_segments(answer, inputs, settings)
    return answer


def backward(grad_out: Tensor, answer: Answer, inputs: Inputs, settings: Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value."""
    query, key, value = inputs[:3]
    grads = settings.output_like(query), settings.output_like(key), settings.output_like(value)
    backward_segments(grads, grad_out, answer, inputs, settings)
    return grads


def forward_segments(answer: Answer, inputs: Inputs, settings: Settings, only: Container[int] | None = None) -> None:
    """Write the rows of the segments (of those whose indices are in `only`, where it is given)."""
    call = _Call(inputs, settings)
    with product_precision(inputs.query, call.adaptation):
        for chunks in call.groups(only):
            call.forward(chunks, answer)


def backward_segments(
    grads: tuple[Tensor, Tensor, Tensor],
    grad_out: Tensor,
    answer: Answer,
    inputs: Inputs,
    settings: Settings,
    only: Container[int] | None = None,
) -> None:
    """Write the segments' rows of the gradients."""
    call = _Call(inputs, settings)
    with product_precision(inputs.query, call.adaptation):
        for chunks in call.groups(only):
            call.backward(chunks, grad_out, answer, grads)


class _Call:
    """One call of the operator: its segments in groups, each of which goes plainly or, out of range, stabilised."""

    def __init__(self, inputs: Inputs, settings: Settings) -> None:
        query, key, value, cu_seqlens, projection = inputs
        self.adaptation, family, epsilon, norm_weight, self.causal, self.shortest = settings
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

    def groups(self, only: Container[int] | None = None) -> Iterator[list[Rows]]:
        """The pack as lists of chunks: one chunk of several short segments, or the parts of one long segment."""
        together: list[Segment] = []
        length = 0
        for index, (start, stop) in enumerate(itertools.pairwise(self.cu_seqlens.tolist())):
            if stop - start < max(self.shortest, 1) or (only is not None and index not in only):
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

    def forward(self, chunks: list[Rows], answer: Answer) -> None:
        out = answer.out
        if self.try_plain:
            try:
                (favor_causal if self.causal else favor_bidirectional).forward(self.plain, chunks, out)
                return
            except OutOfRangeError:
                if len(chunks[0].segments) > 1:
                    for segment in chunks[0].segments:
                        self.forward(self._parts(segment), answer)
                    return
        if not self.causal:
            favor_bidirectional.forward(self.stabilised, _in_parts_of(self.chunk, chunks), out)
        elif self.plain.family.signed:
            favor_causal.forward(self.plain, _in_parts_of(1, chunks), out)
        else:
            rows = _in_parts_of(STABILISED_CHUNK, chunks)
            favor_causal_stabilised.forward(self.stabilised, rows, out, answer.row_numbers)

    def backward(
        self, chunks: list[Rows], grad_out: Tensor, answer: Answer, grads: tuple[Tensor, Tensor, Tensor]
    ) -> None:
        # (every path forms its numbers anew, so that the same inputs take the same one as in the forward)
        if self.try_plain:
            try:
                (favor_causal if self.causal else favor_bidirectional).backward(self.plain, chunks, grad_out, *grads)
                return
            except OutOfRangeError:
                if len(chunks[0].segments) > 1:
                    for segment in chunks[0].segments:
                        self.backward(self._parts(segment), grad_out, answer, grads)
                    return
        if not self.causal:
            favor_bidirectional.backward(self.stabilised, _in_parts_of(self.chunk, chunks), grad_out, *grads)
        elif self.plain.family.signed:
            favor_causal.backward(self.plain, _in_parts_of(1, chunks), grad_out, *grads)
        else:
            rows = _in_parts_of(STABILISED_CHUNK, chunks)
            out, denominators, _ = answer
            favor_causal_stabilised.backward(self.stabilised, rows, grad_out, out, denominators, *grads)


def _in_parts_of(size: int, chunks: list[Rows]) -> list[Rows]:
    """A segment in chunks of `size` rows, without gaps, whose rows would have a part in a stabiliser."""
    (segment,) = chunks[0].segments
    starts = range(segment.start, segment.stop, size)
    return [Rows(a, min(a + size, segment.stop), (segment,)) for a in starts]
