"""Causal Performer attention with exponential features whose logits are out of the plain range, one segment at a time.

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

from protformer.attention.favor_chunk import ChunkContext, Keys, Rows, Segment
from protformer.features.families import StabilisedExponential


def forward(context: ChunkContext, chunks: list[Rows], out: Tensor, denominators: Tensor) -> None:
    state: Tensor | None = None
    stabiliser: Tensor | None = None
    (segment,) = chunks[0].segments
    for place in chunks:
        rows = _Rows(context, place, stabiliser)
        joint = rows.mixing() @ rows.values
        if state is not None:
            joint += rows.past_features() @ state
        faint = _first_faint_row(joint)
        denominator = context.guarded(joint[..., -1:])
        denominators[:, place.start : place.stop] = denominator.squeeze(2)
        context.store(out, place, joint[..., :-1] / denominator)
        if faint is None:
            state, stabiliser = rows.advance(state)
            continue
        if faint:
            state, stabiliser = _Rows(context, Rows(place.start, place.start + faint, (segment,)), stabiliser).advance(
                state
            )
        for t in range(place.start + faint, place.stop):
            alone = Rows(t, t + 1, (segment,))
            row = _Rows(context, alone, stabiliser, alone=True)
            state, stabiliser = row.advance(state)
            joint = row.past_features() @ state
            denominators[:, t : t + 1] = -joint[..., -1]
            context.store(out, alone, joint[..., :-1] / joint[..., -1:])


def _first_faint_row(joint: Tensor) -> int | None:
    """The first row of the chunk whose denominator is too near underflow to be exact, if there is one."""
    # each lost term is below `tiny`, and there are at most a few ten thousand of them
    faint = (joint[..., -1] < 1e12 * torch.finfo(joint.dtype).tiny).any(dim=0)
    return int(faint.to(torch.uint8).argmax()) if bool(faint.any()) else None


def _as_walked(denominators: Tensor, chunks: list[Rows]) -> Iterator[tuple[Rows, bool]]:
    """The forward's chunks and its rows that went alone; the second says whether it is such a row."""
    for place in chunks:
        segments: tuple[Segment, ...] = place.segments
        negative = (denominators[0, place.start : place.stop] < 0).nonzero().squeeze(1).tolist()
        first = place.start + (negative[0] if negative else place.stop - place.start)
        if first > place.start:
            yield Rows(place.start, first, segments), False
        yield from ((Rows(t, t + 1, segments), True) for t in range(first, place.stop))


def backward(
    context: ChunkContext,
    chunks: list[Rows],
    grad_out: Tensor,
    out: Tensor,
    denominators: Tensor,
    grad_query: Tensor,
    grad_key: Tensor,
    grad_value: Tensor,
) -> None:
    family = context.family
    walked = list(_as_walked(denominators, chunks))
    stabilisers: list[Tensor | None] = [None]  # before each chunk, and after the last
    state: Tensor | None = None
    stabiliser: Tensor | None = None
    # Forwards: the queries' share of the past, and each chunk's stabiliser.
    for place, alone in walked:
        rows = _Rows(context, place, stabilisers[-1], alone=alone)
        if alone:
            state, stabiliser = rows.advance(state)
        if state is not None:
            features = rows.past_features()
            grad_joint = _grad_joint(context, grad_out, out, denominators, place, alone)
            grad_features = grad_joint @ state.transpose(1, 2)
            grad_logits = family.query_vjp_(grad_features, features, rows.query_logits)
            context.query_gradient(grad_query, place, grad_logits)
        if not alone:  # (the state is advanced in place)
            state, stabiliser = rows.advance(state)
        stabilisers.append(stabiliser)
    # Backwards: the keys' share of the future, and both shares within the chunk.
    future: Tensor | None = None
    for index in reversed(range(len(walked))):
        place, alone = walked[index]
        before, after = stabilisers[index], stabilisers[index + 1]
        assert after is not None
        rows = _Rows(context, place, before, alone=alone)
        grad_joint = _grad_joint(context, grad_out, out, denominators, place, alone)
        if alone:  # the row's own query is part of its key's future
            added = rows.past_features().transpose(1, 2) @ grad_joint
            future = added if future is None else future.add_(added)
            grad_value_rows, grad_k, grad_weight = rows.meet_future(future, after)
        else:
            grad_value_rows = rows.mixing().transpose(1, 2) @ grad_joint[..., :-1]
            grad_dots = (grad_joint @ rows.values.transpose(1, 2)).mul_(rows.decay)
            grad_q = family.query_vjp_(grad_dots @ rows.key_features, rows.query_features, rows.query_logits)
            grad_k, grad_weight = family.key_vjp_(
                grad_dots.transpose(1, 2) @ rows.query_features, rows.key_features, rows.keys.logits
            )
            if future is not None:
                more_value_rows, more, more_weight = rows.meet_future(future, after)
                grad_value_rows += more_value_rows
                grad_k = grad_k + more
                grad_weight = grad_weight + more_weight
            past = grad_query[place.start : place.stop].clone() if before is not None else None
            context.query_gradient(grad_query, place, grad_q)
            if past is not None:
                grad_query[place.start : place.stop] += past
        context.store(grad_value, place, grad_value_rows)
        context.key_gradient(grad_key, place, rows.keys, grad_k, grad_weight)
        if before is not None:
            if future is not None:
                future = future.mul_((before - after).exp_().transpose(1, 2))
            if not alone:
                added = rows.past_features().transpose(1, 2) @ grad_joint
                future = added if future is None else future.add_(added)


def _grad_joint(
    context: ChunkContext, grad_out: Tensor, out: Tensor, denominators: Tensor, place: Rows, alone: bool
) -> Tensor:
    """G = [d_out, -(d_out . out)] / denominator, the gradient of [numerator, denominator]."""
    grad = context.load("grad_out", grad_out, place)
    inner = (grad * context.load("out", out, place)).sum(dim=2, keepdim=True)
    grad_joint = torch.cat([grad, inner.neg_()], dim=2)
    grad_joint.div_(denominators[:, place.start : place.stop].unsqueeze(2))
    return grad_joint.neg_() if alone else grad_joint  # the denominators of rows that went alone carry a minus


class _Rows:
    """One chunk's logits, features and scales; `before` is the stabiliser of the chunks before it, if any.

    With `alone` it is one row that meets the state only, its own key included: there is no product within the chunk.
    """

    def __init__(self, context: ChunkContext, place: Rows, before: Tensor | None, *, alone: bool = False) -> None:
        assert isinstance(context.family, StabilisedExponential)
        self.family = context.family
        self.before = before
        # The family overwrites what it is given, and here logits serve several times: this path is not the fast one.
        self.query_logits = context.queries(place).logits.clone()
        keys = context.keys(place)
        self.keys = Keys(keys.scaled.clone(), keys.logits.clone(), keys.weight)
        self.values = context.values(place, None).clone()
        if alone:
            here = self.family.stabiliser(self.keys.logits, self.keys.weight)
            joined = here if before is None else torch.maximum(before, here)
            self._past = self.family.query_(self.query_logits.clone(), joined)
            self._past_decay = None
            return
        self.query_features, query_scale = self.family.query_rows_(self.query_logits.clone(), None)
        self.key_features, key_scale = self.family.query_rows_(self.keys.logits.clone(), None)
        if self.keys.weight is not None:
            key_scale = key_scale + self.keys.weight
        row_scale = query_scale + key_scale.cummax(dim=1).values
        if before is not None:
            self._past, past_scale = self.family.query_rows_(self.query_logits.clone(), before)
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

    def meet_future(self, future: Tensor, after: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Gradients of the values, the key logits and weights from the later rows' R, in units of exp(-after)."""
        features, _ = self.family.key_(self.keys.logits.clone(), self.keys.weight, after)
        grad_features = self.values @ future.transpose(1, 2)
        return features @ future[..., :-1], *self.family.key_vjp_(grad_features, features, self.keys.logits)

    def advance(self, state: Tensor | None) -> tuple[Tensor, Tensor]:
        """The state and the stabiliser with this chunk's keys included."""
        here = self.family.stabiliser(self.keys.logits, self.keys.weight)
        joined = here if self.before is None else torch.maximum(self.before, here)
        features, _ = self.family.key_(self.keys.logits.clone(), self.keys.weight, joined)
        added = features.transpose(1, 2) @ self.values
        if state is None or self.before is None:
            return added, joined
        return state.mul_((self.before - joined).exp_().transpose(1, 2)).add_(added), joined
