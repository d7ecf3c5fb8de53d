"""The causal Performer, chunk by chunk, for features that need no scale of their own row.

A chunk of tokens is laid out in blocks of BLOCK rows, each segment from the start of a block on (the rest of its last
block is empty: values, and with them all products, are zero there). With f_q, f_k the features of a block's rows and
v1 = [v, 1] times the keys' factors, all blocks of a chunk at once:
    A = tril(f_q f_k^T)         T = f_k^T v1         P = sum of T over the segment's earlier blocks
    [numerator, denominator] = A v1 + f_q P
and backward, with G = [d_out, -(d_out . out)] / denominator, B = tril(G v1^T) and R = sum of f_q^T G over later blocks:
    d f_q = B f_k + G P^T         d f_k = B^T f_q + v1 R^T         d v1 = A^T G + f_k R
A long segment is a list of chunks: P is carried from one to the next, and R back.
"""

import itertools
import math

import torch
from torch import Tensor

from protformer.attention.favor_bidirectional import OutOfRangeError
from protformer.attention.favor_chunk import ChunkContext, Keys, Rows

# Rows per block: a block costs block^2 products beside the state's, a state costs m x dim per block.
BLOCK = 64


def forward(context: ChunkContext, chunks: list[Rows], out: Tensor) -> None:
    walk = _Walk(context)
    for rows in chunks:
        part = walk.advance(rows)
        joint = part.joint()
        joint[..., :-1].div_(context.guarded(joint[..., -1:]))
        context.store(out, rows, joint[..., :-1])


def backward(
    context: ChunkContext,
    chunks: list[Rows],
    grad_out: Tensor,
    grad_query: Tensor,
    grad_key: Tensor,
    grad_value: Tensor,
) -> None:
    family = context.family
    # Relative to a mean, differences of nearly equal values survive bf16 products (any constant gives the same result).
    walk = _Walk(context, centred=True)
    kept: list[tuple[Tensor, Tensor | None]] = []  # each chunk's [1, d_out . out] / denominator, and its stabiliser
    part: _Part | None = None
    for rows in chunks:
        part = walk.advance(rows)
        joint = part.joint()
        denominator = context.guarded(joint[..., -1:])
        grad = context.load("grad_out", grad_out, rows).div_(denominator)
        inner = joint[..., :-1].mul_(grad).sum(dim=2, keepdim=True).div_(denominator)
        kept.append((torch.cat([denominator.reciprocal(), inner], dim=2), walk.stabiliser))
        part.set_grad_joint(grad_out, kept[-1][0])
        context.query_gradient(grad_query, rows, part.query_logits_gradient())
    future: Tensor | None = None
    for index in reversed(range(len(chunks))):
        numbers, stabiliser = kept[index]
        if len(chunks) > 1 or part is None:
            part = _Part(context, chunks[index], stabiliser, walk.centres)
            part.set_grad_joint(grad_out, numbers)
        if future is not None and stabiliser is not None:
            later = kept[index + 1][1]
            assert later is not None
            future.mul_((stabiliser - later).exp_())
        grad_values, grad_features, future = part.key_gradients(future)
        if part.factor is not None:
            grad_values.mul_(part.factor)
        context.store(grad_value, chunks[index], grad_values[..., :-1])
        grads = family.key_vjp_(grad_features, part.key_features, part.keys.logits)
        context.key_gradient(grad_key, chunks[index], part.keys, *grads)


class _Walk:
    """The chunks in order: each chunk's part, with the state and the stabiliser of what went before."""

    def __init__(self, context: ChunkContext, *, centred: bool = False) -> None:
        self.context = context
        self.stabiliser: Tensor | None = None
        self.centres: list[Tensor] | None = None
        self._centred = centred
        self._state: Tensor | None = None

    def advance(self, rows: Rows) -> "_Part":
        if self._centred and self.centres is None:
            value = self.context.load("value", self.context.value, rows)
            blocks = zip(rows.parts(), self.context.parts(value, rows), strict=True)
            self.centres = [block[:, : part.stop - part.start].mean(dim=1, keepdim=True) for part, block in blocks]
        before = self.stabiliser
        part = _Part(self.context, rows, before, self.centres, check=True)
        self.stabiliser = part.stabiliser
        if self._state is not None and before is not None and self.stabiliser is not None:
            self._state.mul_((before - self.stabiliser).exp_())
        self._state = part.set_past(self._state)
        return part


class _Part:
    """One chunk: features of its queries and keys, its values, and products within it, `[heads, blocks, ...]`."""

    def __init__(
        self,
        context: ChunkContext,
        rows: Rows,
        stabiliser: Tensor | None,
        centres: list[Tensor] | None,
        *,
        check: bool = False,
    ) -> None:
        family = context.family
        self.context, self.rows = context, rows
        self.keys: Keys = context.keys(rows)
        self.query_logits = context.queries(rows).logits
        # A row meets the weights of its own past alone: here a single segment's have to be near one another, too.
        in_range = not check or family.in_range(self.keys.logits, self.keys.weight)
        if not (in_range and (not check or family.in_range(self.query_logits, None))):
            raise OutOfRangeError
        if check:
            here = family.stabiliser(self.keys.logits, self.keys.weight)
            stabiliser = here if stabiliser is None or here is None else torch.maximum(stabiliser, here)
        self.stabiliser = stabiliser
        self.key_features, self.factor = family.key_(self.keys.logits, self.keys.weight, stabiliser)
        self.query_features = family.query_(self.query_logits, stabiliser)
        self.values = context.values(rows, self.factor, centres)
        self.past: Tensor | None = None

    def set_past(self, state: Tensor | None) -> Tensor | None:
        """P of every block, from the state before the chunk; returns the state after it, over the same stabiliser."""
        added = self._product("sums", _t(self._blocks(self.key_features)), self._blocks(self.values))
        self.past, state = self._running(added, state, backwards=False)
        return state

    def joint(self) -> Tensor:
        """[numerator, denominator] `[heads, tokens, dim + 1]`."""
        values = self._blocks(self.values)
        joint = self._product("joint", self._mixing(), values)
        if self.past is not None:
            joint.baddbmm_(self._blocks(self.query_features), self.past)
        return self._tokens(joint)

    def set_grad_joint(self, grad_out: Tensor, numbers: Tensor) -> None:
        """G from the output's gradient and [1, d_out . out] / denominator."""
        grad = self.context.load("grad_out", grad_out, self.rows)
        self.grad_joint = self.context.take("grad_joint", self.rows, grad.shape[2] + 1)
        torch.mul(grad, numbers[..., :1], out=self.grad_joint[..., :-1])
        torch.neg(numbers[..., 1:], out=self.grad_joint[..., -1:])
        self.context.close_gaps(self.grad_joint, self.rows)

    def query_logits_gradient(self) -> Tensor:
        """d of the queries' logits: d f_q = B f_k + G P^T."""
        grad = self._product("grad_features", self._grad_mixing(), self._blocks(self.key_features))
        if self.past is not None:
            grad.baddbmm_(self._blocks(self.grad_joint), _t(self.past))
        return self.context.family.query_vjp_(self._tokens(grad), self.query_features, self.query_logits)

    def key_gradients(self, future: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
        """d v1 and d f_k from R after the chunk; and R before the chunk, over the same stabiliser."""
        queries, grad_joint = self._blocks(self.query_features), self._blocks(self.grad_joint)
        later, future = self._running(self._product("sums", _t(queries), grad_joint), future, backwards=True)
        grad_values = self._product("joint", _t(self._mixing()), grad_joint)
        grad_features = self._product("grad_features", _t(self._grad_mixing()), queries)
        if later is not None:
            grad_values.baddbmm_(self._blocks(self.key_features), later)
            grad_features.baddbmm_(self._blocks(self.values), _t(later))
        return self._tokens(grad_values), self._tokens(grad_features), future

    def _mixing(self) -> Tensor:
        """A: tril(f_q f_k^T) of every block."""
        return self._product("mixing", self._blocks(self.query_features), _t(self._blocks(self.key_features))).tril_()

    def _grad_mixing(self) -> Tensor:
        """B: tril(G v1^T) of every block."""
        return self._product("mixing", self._blocks(self.grad_joint), _t(self._blocks(self.values))).tril_()

    def _running(
        self, added: Tensor, carried: Tensor | None, *, backwards: bool
    ) -> tuple[Tensor | None, Tensor | None]:
        """Sums over a segment's blocks before each block (behind it, `backwards`), from what is carried; and all.

        `added` is `[heads * blocks, m, dim + 1]`, segment after segment. None where no block has another one.
        """
        heads = self.context.heads
        counts = [self.rows.span(part) // self.rows.block for part in self.rows.parts()]
        ends = self.rows.start == self.rows.segments[0].start and self.rows.stop == self.rows.segments[-1].stop
        if ends and max(counts) == 1:
            return None, None
        sums = self._buffer("past", added.shape[0], added.shape[1], added.shape[2])
        total: Tensor | None = None
        for count, out, new in zip(counts, *(x.split([heads * n for n in counts]) for x in (sums, added)), strict=True):
            out, new = (x.view(heads, count, *x.shape[1:]) for x in (out, new))
            order = range(count - 1, -1, -1) if backwards else range(count)
            out[:, order[0]] = 0.0 if carried is None else carried
            for before, block in itertools.pairwise(order):
                torch.add(out[:, before], new[:, before], out=out[:, block])
            total = out[:, order[-1]] + new[:, order[-1]]
        return sums, total  # (the total is of use for a chunk of one segment)

    def _blocks(self, x: Tensor) -> Tensor:
        """A chunk as `[heads * blocks, block, width]`."""
        return x.view(-1, self.rows.block, x.shape[2])

    def _tokens(self, x: Tensor) -> Tensor:
        """Blocks in the layout of a chunk."""
        return x.view(self.key_features.shape[0], -1, x.shape[2])

    def _product(self, name: str, a: Tensor, b: Tensor) -> Tensor:
        return torch.bmm(a, b, out=self._buffer(name, a.shape[0], a.shape[1], b.shape[2]))

    def _buffer(self, name: str, *shape: int) -> Tensor:
        return self.context.take_flat(name, math.prod(shape)).view(shape)


def _t(x: Tensor) -> Tensor:
    return x.transpose(1, 2)
