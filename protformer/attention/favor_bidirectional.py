"""The bidirectional Performer, chunk by chunk: a pass over keys makes the state, a pass over queries reads it.

Per segment, with features f_q `[tokens, m]`, f_k, and values with a column of ones [v, 1]:
    S = f_k^T [v, 1]            [numerator, denominator] = f_q S            out = numerator / denominator
and backward, with G = [d_out, -(d_out . out)] / denominator:
    dS = f_q^T G        d f_q = G S^T        d f_k = [v, 1] dS^T        dv = f_k dS (without its last column)
Stabilisers cancel between numerator and denominator, so no gradient goes through them.

A list of chunks is either the parts of one long segment, or one chunk of several short segments, which share all
element-wise work and have states of their own.
"""

import torch
from torch import Tensor

from protformer.attention.favor_chunk import ChunkContext, Keys, Rows


class OutOfRangeError(Exception):
    """Logits that the plain exponential cannot take; the segment is done again with a stabiliser."""


def forward(context: ChunkContext, chunks: list[Rows], out: Tensor) -> None:
    walk = _KeyWalk(context, chunks)
    for rows in chunks:
        features, _ = walk.query_features(rows)
        joint = walk.read(rows, features, walk.states)
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
    walk = _KeyWalk(context, chunks)
    # Values are taken relative to their mean under the state: d f_q then is no small difference of large terms where
    # all rows see nearly the same, and rounding of bf16 products does not drown it.
    centres = [torch.zeros_like(state[:, :1, :-1]) for state in walk.states]
    if not family.signed:
        for state, centre in zip(walk.states, centres, strict=True):
            total = state.sum(dim=1, keepdim=True)
            centre.copy_(total[..., :-1] / total[..., -1:])
            state[..., :-1].addcmul_(state[..., -1:], centre, value=-1.0)
    grad_states = [torch.zeros_like(state) for state in walk.states]
    for rows in chunks:
        features, logits = walk.query_features(rows)
        joint = walk.read(rows, features, walk.states)
        grad_joint = _grad_joint(context, rows, grad_out, joint)
        grad_features = context.take("grad_features", features.shape[1], features.shape[2])
        for i, (_, place) in enumerate(rows.slices()):
            grad_states[i].baddbmm_(features[:, place].transpose(1, 2), grad_joint[:, place])
            torch.bmm(grad_joint[:, place], walk.states[i].transpose(1, 2), out=grad_features[:, place])
        context.query_gradient(grad_query, rows, family.query_vjp_(grad_features, features, logits))
    for rows in chunks:
        keys, features, factor = walk.key_features(rows)
        values = context.values(rows, factor, centres)
        grad_features = context.take("grad_features", features.shape[1], features.shape[2])
        grad_values = context.take("joint", features.shape[1], context.dim)
        for i, (_, place) in enumerate(rows.slices()):
            torch.bmm(features[:, place], grad_states[i][..., :-1], out=grad_values[:, place])
            torch.bmm(values[:, place], grad_states[i].transpose(1, 2), out=grad_features[:, place])
        if factor is not None:
            grad_values.mul_(factor)
        context.store(grad_value, rows, grad_values)
        context.key_gradient(grad_key, rows, keys, *family.key_vjp_(grad_features, features, keys.logits))


class _KeyWalk:
    """The pass over keys: one state `[heads, m, dim + 1]` over exp(stabiliser) per segment of the chunks."""

    def __init__(self, context: ChunkContext, chunks: list[Rows]) -> None:
        self.context = context
        self.states: list[Tensor] = []
        self.stabiliser: Tensor | None = None
        self._only: tuple[Keys, Tensor, Tensor | None] | None = None
        for rows in chunks:
            keys = context.keys(rows)
            if not context.family.in_range(keys.logits, keys.weight if len(rows.segments) > 1 else None):
                raise OutOfRangeError
            here = context.family.stabiliser(keys.logits, keys.weight)
            before = self.stabiliser
            self.stabiliser = here if before is None or here is None else torch.maximum(before, here)
            features, factor = context.family.key_(keys.logits, keys.weight, self.stabiliser)
            values = context.values(rows, factor)
            if self.states:
                state = self.states[0]
                if before is not None and self.stabiliser is not None:
                    state.mul_((before - self.stabiliser).exp_().transpose(1, 2))
                state.baddbmm_(features.transpose(1, 2), values)
            else:
                self.states = [features[:, p].transpose(1, 2) @ values[:, p] for _, p in rows.slices()]
            if len(chunks) == 1:
                self._only = keys, features, factor

    def key_features(self, rows: Rows) -> tuple[Keys, Tensor, Tensor | None]:
        """Keys, their features over exp(stabiliser) and the factor that goes with them, of one chunk."""
        if self._only is not None:
            return self._only
        keys = self.context.keys(rows)
        return keys, *self.context.family.key_(keys.logits, keys.weight, self.stabiliser)

    def query_features(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Features and logits of a chunk's queries."""
        logits = self.context.queries(rows).logits
        if not self.context.family.in_range(logits, None):
            raise OutOfRangeError
        return self.context.family.query_(logits, self.stabiliser), logits

    def read(self, rows: Rows, features: Tensor, states: list[Tensor]) -> Tensor:
        """[numerator, denominator] `[heads, tokens, dim + 1]`."""
        joint = self.context.take("joint", features.shape[1], self.context.dim + 1)
        for (_, place), state in zip(rows.slices(), states, strict=True):
            torch.bmm(features[:, place], state, out=joint[:, place])
        return joint


def _grad_joint(context: ChunkContext, rows: Rows, grad_out: Tensor, joint: Tensor) -> Tensor:
    """G = [d_out, -(d_out . out)] / denominator, the gradient of [numerator, denominator]."""
    denominator = context.guarded(joint[..., -1:])
    grad = context.load("grad_out", grad_out, rows).div_(denominator)
    result = context.take("grad_joint", grad.shape[1], grad.shape[2] + 1)
    result[..., :-1].copy_(grad)
    # (d_out . out) / denominator; out is formed anew, because its rounding to bf16 would be the larger part of the
    # difference where keys are nearly equal
    inner = joint[..., :-1].mul_(grad).sum(dim=2, keepdim=True)
    torch.div(inner.neg_(), denominator, out=result[..., -1:])
    return result
