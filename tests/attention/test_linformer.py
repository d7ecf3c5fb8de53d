"""Linformer equals its formula with slices of its projections, and says what it cannot do."""

import pytest
import torch
from baselines import (
    BOUNDS,
    LENGTHS,
    assert_equal,
    assert_finite_at_any_norm,
    assert_packed_equals_alone,
    largest_tensor,
    step,
)
from performers import inputs, offsets

from protformer.attention import ExactAttention, LinformerAttention, factory_from_config
from protformer.errors import ProtformerError


def build(**options) -> LinformerAttention:
    torch.manual_seed(0)
    return LinformerAttention(num_heads=2, head_dim=16, **{"length": 130, "rank": 12, **options})


def direct(attention: LinformerAttention):
    by_key = attention.key_projection.detach().double()
    other = attention.value_projection
    by_value = by_key if other is None else other.detach().double()

    def attend(q, k, v, cu):
        outs = []
        for a, b in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
            short_k = torch.einsum("rs,shd->rhd", by_key[:, : b - a], k[a:b])
            short_v = torch.einsum("rs,shd->rhd", by_value[:, : b - a], v[a:b])
            weights = (torch.einsum("thd,rhd->htr", q[a:b], short_k) * q.shape[2] ** -0.5).softmax(-1)
            outs.append(torch.einsum("htr,rhd->thd", weights, short_v))
        return torch.cat(outs)

    return attend


@pytest.mark.parametrize("share", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), BOUNDS)
def test_equals_the_formula_with_its_gradient(dtype, bound, share):
    attention = build(share_key_value=share)
    reference = direct(attention)
    # (a projection is rounded to the inputs' type, as autocast rounds weights)
    assert_equal(attention.double() if dtype == torch.float64 else attention, reference, dtype=dtype, bound=bound)


def test_gradients_of_the_projections_are_those_of_the_formula():
    attention = build(length=9, rank=3).double()
    given = inputs(16, dim=16)

    def out(by_key, by_value):
        weights = {"key_projection": by_key, "value_projection": by_value}
        return torch.func.functional_call(attention, weights, (*given[:3], offsets(7, 9)))

    leaves = [p.detach().clone().requires_grad_() for p in attention.parameters()]
    assert torch.autograd.gradcheck(out, leaves)


def test_identity_projections_are_exact_attention():
    attention, exact = build(length=130, rank=130).double(), ExactAttention(num_heads=2, head_dim=16)
    for projection in attention.parameters():
        torch.nn.init.eye_(projection)
    assert_equal(attention, exact, lengths=(130,))


def test_packed_equals_alone():
    assert_packed_equals_alone(build().double())


def test_extreme_norms_and_empty_packs():
    assert_finite_at_any_norm(build())
    empty = torch.zeros(0, 2, 16)
    assert build()(empty, empty, empty, offsets(0, 0)).shape == (0, 2, 16)


def test_shorter_segments_train_their_columns_alone():
    attention = build().double()
    given = inputs(sum(LENGTHS[:4]), dim=16)
    attention(*given[:3], offsets(*LENGTHS[:4])).square().sum().backward()
    for projection in attention.parameters():
        assert projection.grad is not None
        assert (projection.grad[:, :40] != 0).all()
        assert torch.count_nonzero(projection.grad[:, 40:]) == 0


def test_memory_grows_with_the_length():
    attention = LinformerAttention(num_heads=1, head_dim=4, length=4096, rank=8)
    assert largest_tensor(attention, 4096) == 4 * largest_tensor(attention, 1024) == 8 * 4096


def test_what_it_adds_to_the_block_can_be_counted():
    assert sum(p.numel() for p in build().parameters()) == 2 * 12 * 130
    assert sum(p.numel() for p in build(share_key_value=True).parameters()) == 12 * 130


def test_a_segment_that_is_too_long_is_refused_and_not_cut():
    given = inputs(136, dim=16).to(torch.float32)
    with pytest.raises(ProtformerError, match=r"at most 130 tokens, and sequence 2 .* 131, .*attention.length to 131"):
        build()(*given[:3], offsets(5, 131))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"causal": True}, "cannot be causal"),
        ({"rank": 0}, "rank=0"),
        ({"length": 0}, "length=0"),
        ({"initial_length": 0}, "initial_length .* from 1 to length=130, not 0"),
        ({"initial_length": 131}, "not 131"),
    ],
)
def test_what_cannot_be_is_said(options, message):
    with pytest.raises(ValueError, match=message):
        build(**options)


@pytest.mark.parametrize(("options", "tokens"), [({}, 4000), ({"initial_length": 300}, 300)])
def test_initial_values_keep_the_size_of_keys_in_a_segment_of_the_length_they_are_for(options, tokens):
    attention = build(length=4000, rank=64, **options)
    size = attention.key_projection[:, :tokens].square().sum(1).mean().sqrt().item()
    assert size == pytest.approx((tokens / (tokens + 64)) ** 0.5, rel=0.02)
    assert attention.value_projection is not None
    both = torch.stack([attention.key_projection, attention.value_projection]).flatten(1)
    assert torch.corrcoef(both)[0, 1].abs() < 0.02
    torch.manual_seed(1)
    other = LinformerAttention(num_heads=2, head_dim=16, length=4000)
    assert not torch.equal(other.key_projection, build(length=4000, rank=64).key_projection)


def test_what_is_drawn_after_it_is_what_it_would_be_without_it():
    torch.manual_seed(0)
    expected = torch.randn(5)
    build()
    assert torch.equal(torch.randn(5), expected)


@pytest.mark.parametrize("share", [False, True])
def test_config_round_trip(share):
    attention = build(share_key_value=share)
    rebuilt = factory_from_config(attention.config())(num_heads=2, head_dim=16)
    assert isinstance(rebuilt, LinformerAttention)
    assert rebuilt.config() == attention.config()
    rebuilt.load_state_dict(attention.state_dict())
    given = inputs(12, dim=16).to(torch.float32)
    one, other = (step(x, given, offsets(12)) for x in (attention, rebuilt))
    assert torch.equal(one.out, other.out)
