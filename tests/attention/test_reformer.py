"""Reformer attends to the union of what its hashes put together; with one bucket it is softmax with shared q and k."""

import pytest
import torch
from baselines import (
    BOUNDS,
    LENGTHS,
    assert_blind_to_the_future,
    assert_equal,
    assert_finite_at_any_norm,
    assert_packed_equals_alone,
    largest_tensor,
    masked_softmax,
    past,
    step,
)
from performers import Inputs, inputs, offsets

from protformer.attention import ReformerAttention, factory_from_config
from protformer.features import projection_generator
from protformer.model import Encoder


def build(**options) -> ReformerAttention:
    options = {"num_heads": 2, "head_dim": 16, "bucket_size": 8, "rounds": 3, **options}
    return ReformerAttention(**options)


def in_one_bucket(x: torch.Tensor, attention: ReformerAttention, round_: int, head: int) -> torch.Tensor:
    """`[n, n]`: the paper's hash of one segment of one head, and whether two tokens have the same."""
    n, size = len(x), attention.bucket_size
    buckets = 1 if n <= size else 2 * -(-n // size)
    digits = [buckets]
    if buckets > 128:
        digits = [2 * int(torch.tensor(buckets).double().sqrt().div(2).ceil())]
        digits.append(2 * -(-buckets // (2 * digits[0])))
    same = torch.ones(n, n, dtype=torch.bool)
    for which, number in enumerate(digits):
        if number > 1:
            along = x.double() @ attention.rotations[which, round_, head, :, : number // 2].double()
            chosen = torch.cat([along, -along], dim=1).argmax(1)
            same &= chosen[:, None] == chosen
    return same


def seen_in(round_: int, attention: ReformerAttention, x: torch.Tensor) -> torch.Tensor:
    """`[heads, n, n]`: tokens of the same bucket at most `bucket_size` places away in it, and before if causal."""
    masks = []
    for head in range(x.shape[1]):
        same = in_one_bucket(x[:, head], attention, round_, head)
        rank = (same & past(len(x))).sum(1)  # its place in its bucket, from 1
        mask = same & ((rank[:, None] - rank).abs() <= attention.bucket_size)
        masks.append(mask & past(len(x)) if attention.causal else mask)
    return torch.stack(masks)


def unless_alone(seen: torch.Tensor) -> torch.Tensor:
    """Without the token itself, where there is another."""
    itself = torch.eye(seen.shape[-1], dtype=torch.bool)
    others = seen & ~itself
    return others | (itself & ~others.any(-1, keepdim=True))


def direct(attention: ReformerAttention):
    def attend(q, k, v, cu):
        starts = cu.tolist()

        def seen(segment: int, n: int) -> torch.Tensor:
            x = q[starts[segment] : starts[segment] + n]
            if n == 0:
                return torch.ones(0, 0, dtype=torch.bool)
            union = torch.stack([seen_in(r, attention, x) for r in range(attention.rounds)]).any(0)
            return unless_alone(union)

        shared = q / q.norm(dim=-1, keepdim=True) * q.shape[2] ** 0.5
        return masked_softmax(q, shared, v, cu, seen) + 0 * k

    return attend


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rounds", [1, 4])
def test_one_bucket_is_exact_attention_with_shared_queries_and_keys(rounds, causal):
    attention = build(bucket_size=40, rounds=rounds, causal=causal)

    def exact(q, k, v, cu):
        shared = q / q.norm(dim=-1, keepdim=True) * q.shape[2] ** 0.5
        return masked_softmax(
            q, shared, v, cu, lambda _, n: unless_alone(past(n) if causal else torch.ones(n, n, dtype=torch.bool))
        ) + (0 * k)

    assert_equal(attention, exact, lengths=(40, 1, 0, 17, 2))
    # a longer segment beside them has several buckets and hashes, and they still have one
    together = step(attention, inputs(160, dim=16), offsets(40, 1, 119))
    alone = step(exact, inputs(160, dim=16).rows(0, 41), offsets(40, 1))
    torch.testing.assert_close(together.out[:41], alone.out, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("rounds", [1, 3])
@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
def test_equals_softmax_over_the_union_of_the_rounds(dtype, bound, rounds, causal):
    attention = build(rounds=rounds, causal=causal)
    assert_equal(attention, direct(attention), dtype=dtype, bound=bound)


@pytest.mark.parametrize("causal", [False, True])
def test_a_bucket_that_is_too_full_is_seen_as_far_as_its_size(causal):
    # rows that are nearly one direction share a bucket, of which each sees a part
    attention = build(bucket_size=6, rounds=2, causal=causal)
    given = inputs(80, dim=16)
    given = given._replace(query=given.query * 0.05 + 1.0)
    assert len(attention.buckets(given.query, offsets(80)).unique()) < 10
    got, expected = (step(x, given, offsets(80)) for x in (attention, direct(attention)))
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-10)


def test_long_segments_have_buckets_of_two_digits():
    attention = build(bucket_size=2, rounds=2)  # 300 tokens: 300 buckets, 18 x 18
    assert_equal(attention, direct(attention), lengths=(300, 5))
    buckets = attention.buckets(inputs(305, dim=16).query, offsets(300, 5))
    assert buckets.shape == (2, 2, 305)
    assert 128 < len(buckets[0, 0, :300].unique()) <= 18 * 18
    assert int(buckets[..., :300].max()) < 18 * 18 <= int(buckets[..., 300:].min())


def test_pairs_that_several_rounds_see_are_not_counted_twice(monkeypatch):
    attention = build()
    reference = direct(attention)
    given = inputs(130, dim=16)
    expected = step(reference, given, offsets(130)).out
    bias = attention._bias

    def counting_twice(*arguments):
        made = bias(*arguments)
        return torch.where(made > -10, 0, made)

    monkeypatch.setattr(attention, "_bias", counting_twice)
    planted = step(attention, given, offsets(130)).out
    assert (planted - expected).abs().max() > 1e-2


def test_near_directions_share_buckets_and_opposite_ones_never():
    attention = build(rounds=8)
    x = inputs(64, dim=16).query
    near = x + 0.1 * inputs(64, dim=16, seed=1).query

    def shares(y: torch.Tensor) -> float:
        buckets = attention.buckets(torch.cat([x, y]), offsets(128))
        return (buckets[..., :64] == buckets[..., 64:]).double().mean().item()

    # 8 rounds x 2 heads x 64 pairs: chance is 1 / 32
    assert shares(inputs(64, dim=16, seed=2).query) < 0.1 < 0.6 < shares(near)
    assert shares(-x) == 0
    assert shares(3 * x) == 1


@pytest.mark.parametrize("causal", [False, True])
def test_packed_equals_alone(causal):
    assert_packed_equals_alone(build(causal=causal))


def test_the_future_is_not_seen_and_moves_nothing():
    assert_blind_to_the_future(build(causal=True))


@pytest.mark.parametrize("causal", [False, True])
def test_the_given_key_does_not_matter_and_its_gradient_is_zero(causal):
    attention, given = build(causal=causal), inputs(sum(LENGTHS), dim=16)
    made = step(attention, given, offsets(*LENGTHS))
    assert torch.count_nonzero(made.key) == 0
    assert torch.equal(made.out, attention(given.query, given.value, given.value, offsets(*LENGTHS)))
    assert_finite_at_any_norm(attention)
    zeros = Inputs(*(torch.zeros_like(x) for x in given))
    assert all(bool(x.isfinite().all()) for x in step(attention, zeros, offsets(*LENGTHS)))
    empty = torch.zeros(0, 2, 16)
    assert attention(empty, empty, empty, offsets(0, 0)).shape == (0, 2, 16)


def test_memory_grows_with_the_length():
    attention = build(num_heads=1, head_dim=4)
    assert largest_tensor(attention, 8192) <= 8.5 * largest_tensor(attention, 1024)


def test_rotations_are_a_function_of_the_generator_and_asked_of_no_other():
    torch.manual_seed(0)
    state = torch.get_rng_state()
    one, other = build(), build()
    assert torch.equal(one.rotations, other.rotations)
    one.redraw_(projection_generator(0, 1, 0))
    assert not torch.equal(one.rotations, other.rotations)
    other.redraw_(projection_generator(0, 1, 0))
    assert torch.equal(one.rotations, other.rotations)
    one(*inputs(50, dim=16)[:3], offsets(50))
    assert torch.equal(torch.get_rng_state(), state)
    assert abs(float(one.rotations.std()) - 1) < 4 / (2 * one.rotations.numel()) ** 0.5
    fresh = build()
    fresh.load_state_dict(one.state_dict())
    assert torch.equal(fresh.rotations, one.rotations)


def test_layers_of_an_encoder_have_rotations_of_their_own_and_every_weight_a_gradient():
    encoder = Encoder(hidden_size=32, num_layers=2, num_heads=2, attention=lambda **shape: build(**shape))

    def rotations() -> list[torch.Tensor]:
        return [a.rotations.clone() for a in encoder.attentions if isinstance(a, ReformerAttention)]

    first, second = rotations()
    assert not torch.equal(first, second)
    encoder.redraw_(1)
    assert not torch.equal(rotations()[0], first)
    encoder.redraw_(0)
    assert torch.equal(rotations()[0], first)
    encoder(torch.randn(40, 32), offsets(40)).square().sum().backward()
    # (DDP waits for each)
    assert all(p.grad is not None for p in encoder.parameters())


@pytest.mark.parametrize("options", [{"bucket_size": 0}, {"rounds": 0}])
def test_what_cannot_be_is_said(options):
    with pytest.raises(ValueError, match="bucket_size >= 1 and rounds >= 1"):
        build(**options)


def test_config_round_trip():
    attention = build(causal=True)
    rebuilt = factory_from_config(attention.config())(num_heads=2, head_dim=16)
    assert isinstance(rebuilt, ReformerAttention)
    assert rebuilt.config() == attention.config()
