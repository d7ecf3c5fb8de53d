"""The bidirectional Performer, chunk by chunk: a pass over keys makes the state, a pass over queries reads it.

Per segment, with features f_q `[tokens, m]`, f_k, and values with a column of ones [v, 1]:
    S = f_k^T [v, 1]            [numerator, denominator] = f_q S            out = numerator / denominator
and backward, with G = [d_out, -(d_out . out)] / denominator:
    dS = f_q^T G        d f_q = G S^T        d f_k = [v, 1] dS^T        dv = f_k dS (without its last column)
Stabilisers cancel between numerator and denominator, so no gradient goes through them.

A list of chunks is either the parts of one long segment, or one chunk of several short segments, which share all
element-wise work and have states of their own. Gaps behind segments (`Rows.block`) have zeros for values and gradients,
and so have no part in any product.
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
        joint = walk.read(rows, features)
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
        grad_joint = _grad_joint(context, rows, grad_out, walk.read(rows, features))
        grad_features = context.take("grad_features", rows, features.shape[2])
        blocks = (context.parts(x, rows) for x in (features, grad_joint, grad_features))
        for state, grad_state, f, g, grad_f in zip(walk.states, grad_states, *blocks, strict=True):
            grad_state.baddbmm_(f.transpose(1, 2), g)
            torch.bmm(g, state.transpose(1, 2), out=grad_f)
        context.query_gradient(grad_query, rows, family.query_vjp_(grad_features, features, logits))
    for rows in chunks:
        keys, features, factor = walk.key_features(rows)
        values = context.values(rows, factor, centres)
        grad_features = context.take("grad_features", rows, features.shape[2])
        grad_values = context.take("joint", rows, context.dim)
        blocks = (context.parts(x, rows) for x in (features, values, grad_features, grad_values))
        for grad_state, f, v, grad_f, grad_v in zip(grad_states, *blocks, strict=True):
            torch.bmm(f, grad_state[..., :-1], out=grad_v)
            torch.bmm(v, grad_state.transpose(1, 2), out=grad_f)
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
            blocks = zip(context.parts(features, rows), context.parts(values, rows), strict=True)
            if self.states:
                if before is not None and self.stabiliser is not None:
                    self.states[0].mul_((before - self.stabiliser).exp_().transpose(1, 2))
                self.states[0].baddbmm_(features.transpose(1, 2), values)
            else:  # (bmm, because matmul would copy)
                self.states = [torch.bmm(f.transpose(1, 2), v) for f, v in blocks]
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

    def read(self, rows: Rows, features: Tensor) -> Tensor:
        """[numerator, denominator] in the layout of a chunk, `[.., dim + 1]`."""
        joint = self.context.take("joint", rows, self.context.dim + 1)
        blocks = (self.context.parts(x, rows) for x in (features, joint))
        for state, f, out in zip(self.states, *blocks, strict=True):
            torch.bmm(f, state, out=out)
        return joint


def _grad_joint(context: ChunkContext, rows: Rows, grad_out: Tensor, joint: Tensor) -> Tensor:
    """G = [d_out, -(d_out . out)] / denominator, the gradient of [numerator, denominator]."""
    denominator = context.guarded(joint[..., -1:])
    grad = context.load("grad_out", grad_out, rows).div_(denominator)
    result = context.take("grad_joint", rows, grad.shape[2] + 1)
    result[..., :-1].copy_(grad)
    # (d_out . out) / denominator; out is formed anew, because its rounding to bf16 would be the larger part of the
    # difference where keys are nearly equal
    inner = joint[..., :-1].mul_(grad).sum(dim=2, keepdim=True)
    torch.div(inner.neg_(), denominator, out=result[..., -1:])
    return result
