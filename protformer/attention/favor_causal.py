"""Causal Performer attention of one segment: a state over the chunks before, a masked product within the chunk.

No leak from the future, in numbers as well as in law: every scale that row t is computed with is a maximum over rows
up to t. The state S of the chunks before carries the per-feature stabiliser M of those chunks. Within a chunk, with
a_t the largest logit of query t and b_s that of key s,
    A[t, s] = (exp(q_t - a_t) . exp(k_s - b_s)) exp(a_t + b_s - rho_t)    for s <= t
and rho_t, the scale of row t, is the larger of max_i(q_ti + M_i) and a_t + max_{s <= t} b_s: no factor exceeds 1.

They can all be too small, though. Where a row's query and its keys prefer different features (k = -q at a norm of 30
and dim 8 is enough) the sum underflows. From the first such row on, the rest of that chunk goes one row at a time: its
key joins the state first, and with it M, so that the row meets the state alone and its denominator is at least 1, as in
bidirectional attention. Whether a row is such a row depends on rows up to it. It is slow, and ordinary inputs never
need it. The denominators of these rows are kept with a minus sign, which is how the backward knows them.

Backward, key j meets every later query. Walking the chunks in reverse, R = sum over later chunks of f_q^T G is kept in
units of exp(-M) for the M that includes the chunk at hand; M only falls on the way back, so its factors stay below 1.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from protformer.attention.favor_chunk import ChunkContext, chunk_ranges, guarded, heads_first, store, with_ones


def causal_forward(
    context: ChunkContext,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    start: int,
    stop: int,
    chunk: int,
    out: Tensor,
    denominators: Tensor,
) -> None:
    state: Tensor | None = None
    stabiliser: Tensor | None = None
    for a, b in chunk_ranges(start, stop, chunk):
        rows = _Rows(context, query, key, value, a, b, stabiliser)
        joint = rows.mixing() @ rows.values
        if state is not None:
            joint += rows.past_features() @ state
        faint = _first_faint_row(joint, context)
        denominator = guarded(joint[..., -1:], context)
        denominators[:, a:b] = denominator.squeeze(2)
        store(out, a, b, joint[..., :-1] / denominator)
        if faint is None:
            state, stabiliser = rows.advance(state)
            continue
        if faint:
            state, stabiliser = _Rows(context, query, key, value, a, a + faint, stabiliser).advance(state)
        for t in range(a + faint, b):
            row = _Rows(context, query, key, value, t, t + 1, stabiliser, alone=True)
            state, stabiliser = row.advance(state)
            joint = row.past_features() @ state
            denominators[:, t : t + 1] = -joint[..., -1]
            store(out, t, t + 1, joint[..., :-1] / joint[..., -1:])


def _first_faint_row(joint: Tensor, context: ChunkContext) -> int | None:
    """The first row of the chunk whose denominator is too near underflow to be exact, if there is one."""
    if context.family.signed:
        return None
    # each lost term is below `tiny`, and there are at most a few ten thousand of them
    faint = (joint[..., -1] < 1e12 * torch.finfo(context.dtype).tiny).any(dim=0)
    return int(faint.to(torch.uint8).argmax()) if bool(faint.any()) else None


def _ranges_as_walked(
    context: ChunkContext, denominators: Tensor, start: int, stop: int, chunk: int
) -> Iterator[tuple[int, int, bool]]:
    """The forward's chunks and its rows that went alone; the third says whether it is such a row."""
    negative = denominators[0, start:stop] < 0
    alone = set() if context.family.signed else set((negative.nonzero().squeeze(1) + start).tolist())
    for a, b in chunk_ranges(start, stop, chunk):
        first = next((t for t in range(a, b) if t in alone), b) if alone else b
        if first > a:
            yield a, first, False
        yield from ((t, t + 1, True) for t in range(first, b))


def causal_backward(
    context: ChunkContext,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    start: int,
    stop: int,
    chunk: int,
    grad_out: Tensor,
    out: Tensor,
    denominators: Tensor,
    grad_query: Tensor,
    grad_key: Tensor,
    grad_value: Tensor,
) -> None:
    family = context.family
    ranges = list(_ranges_as_walked(context, denominators, start, stop, chunk))
    stabilisers: list[Tensor | None] = [None]  # before each chunk, and after the last
    state: Tensor | None = None
    stabiliser: Tensor | None = None
    # Forwards: the queries' share of the past, and each chunk's stabiliser.
    for a, b, alone in ranges:
        rows = _Rows(context, query, key, value, a, b, stabilisers[-1], alone=alone)
        if alone:
            state, stabiliser = rows.advance(state)
        if state is not None:
            features = rows.past_features()
            grad_joint = _grad_joint(context, grad_out, out, denominators, a, b, alone)
            grad_features = grad_joint @ state.transpose(1, 2)
            grad_logits = family.query_vjp(grad_features, features, rows.query_logits)
            store(grad_query, a, b, context.unproject(grad_logits))
        if not alone:  # (the state is advanced in place)
            state, stabiliser = rows.advance(state)
        stabilisers.append(stabiliser)
    # Backwards: the keys' share of the future, and both shares within the chunk.
    future: Tensor | None = None
    for index in reversed(range(len(ranges))):
        a, b, alone = ranges[index]
        before, after = stabilisers[index], stabilisers[index + 1]
        assert after is not None
        rows = _Rows(context, query, key, value, a, b, before, alone=alone)
        grad_joint = _grad_joint(context, grad_out, out, denominators, a, b, alone)
        if alone:  # the row's own query is part of its key's future
            added = rows.past_features().transpose(1, 2) @ grad_joint
            future = added if future is None else future.add_(added)
            grad_value_rows, grad_k, grad_half_norm = rows.meet_future(future, after)
        else:
            grad_value_rows = rows.mixing().transpose(1, 2) @ grad_joint[..., :-1]
            grad_dots = (grad_joint @ rows.values.transpose(1, 2)).mul_(rows.decay)
            grad_q = family.query_vjp(grad_dots @ rows.key_features, rows.query_features, rows.query_logits)
            grad_k, grad_half_norm = family.key_vjp(
                grad_dots.transpose(1, 2) @ rows.query_features, rows.key_features, rows.key_logits
            )
            if future is not None:
                more_value_rows, more, more_half_norm = rows.meet_future(future, after)
                grad_value_rows += more_value_rows
                grad_k = grad_k + more
                if grad_half_norm is not None and more_half_norm is not None:
                    grad_half_norm = grad_half_norm + more_half_norm
            grad_query_rows = context.unproject(grad_q)
            if before is not None:
                grad_query_rows += heads_first(grad_query, a, b, context.dtype)
            store(grad_query, a, b, grad_query_rows)
        store(grad_value, a, b, grad_value_rows)
        store(grad_key, a, b, context.unproject(grad_k, heads_first(key, a, b, context.dtype), grad_half_norm))
        if before is not None:
            if future is not None:
                future = future.mul_((before - after).exp_().transpose(1, 2))
            if not alone:
                added = rows.past_features().transpose(1, 2) @ grad_joint
                future = added if future is None else future.add_(added)


def _grad_joint(
    context: ChunkContext, grad_out: Tensor, out: Tensor, denominators: Tensor, a: int, b: int, alone: bool
) -> Tensor:
    grad_joint = context.grad_joint(grad_out, out, denominators, a, b)
    return grad_joint.neg_() if alone else grad_joint  # the denominators of rows that went alone carry a minus


class _Rows:
    """One chunk's logits, features and scales; `before` is the stabiliser of the chunks before it, if any.

    With `alone` it is one row that meets the state only, its own key included: there is no product within the chunk.
    """

    def __init__(
        self,
        context: ChunkContext,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        a: int,
        b: int,
        before: Tensor | None,
        *,
        alone: bool = False,
    ) -> None:
        family = context.family
        self.family = family
        self.before = before
        self.query_logits, _ = context.project(query, a, b)
        self.key_logits, self.key_half_norm = context.project(key, a, b)
        self.values = with_ones(heads_first(value, a, b, context.dtype))
        if alone:
            here = family.stabiliser(self.key_logits, self.key_half_norm)
            joined = here if before is None else torch.maximum(before, here)
            self._past, _ = family.query(self.query_logits, joined)
            self._past_decay = None
            return
        neutral = self.query_logits.new_zeros(self.query_logits.shape[0], 1, 1)
        self.query_features, query_scale = family.query(self.query_logits, neutral)
        self.key_features, key_scale = family.key_rows(self.key_logits, self.key_half_norm)
        row_scale = query_scale + key_scale.cummax(dim=1).values
        if before is not None:
            self._past, past_scale = family.query(self.query_logits, before)
            joint_scale = torch.maximum(row_scale, past_scale)
            self._past_decay = (past_scale - joint_scale).exp_()
            row_scale = joint_scale
        # [heads, t, s]: exp(a_t + b_s - rho_t) up to the diagonal, 0 above it
        exponent = (query_scale - row_scale) + key_scale.transpose(1, 2)
        tokens = exponent.shape[1]
        above = torch.ones(tokens, tokens, dtype=torch.bool, device=exponent.device).triu_(1)
        self.decay = exponent.masked_fill_(above, -torch.inf).exp_()

    def mixing(self) -> Tensor:
        """A `[heads, t, s]` over exp(rho_t)."""
        return (self.query_features @ self.key_features.transpose(1, 2)).mul_(self.decay)

    def past_features(self) -> Tensor:
        """Query features that meet the state, over exp(rho_t)."""
        return self._past if self._past_decay is None else self._past * self._past_decay

    def meet_future(self, future: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Gradients of the values, the key logits and half_norm from the later rows' R, in units of exp(-after)."""
        features = self.family.key(self.key_logits, self.key_half_norm, after)
        grad_features = self.values @ future.transpose(1, 2)
        return features @ future[..., :-1], *self.family.key_vjp(grad_features, features, self.key_logits)

    def advance(self, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """The state and the stabiliser with this chunk's keys included."""
        here = self.family.stabiliser(self.key_logits, self.key_half_norm)
        joined = here if self.before is None else torch.maximum(self.before, here)
        features = self.family.key(self.key_logits, self.key_half_norm, joined)
        added = features.transpose(1, 2) @ self.values
        if state is None or self.before is None:
            return added, joined
        return state.mul_((self.before - joined).exp_().transpose(1, 2)).add_(added), joined
