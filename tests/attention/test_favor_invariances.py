"""What may be done to the inputs of the Performer without changing its output, or with a known change of it."""

import pytest
import torch
from performers import (
    KINDS,
    SEGMENT_STATISTICS,
    SIGNED,
    Inputs,
    Step,
    both_ways,
    build,
    head_dim,
    inputs,
    moving_of,
    offsets,
    relative_errors,
    step,
)
from torch import Tensor

LENGTHS = (5, 1, 12)
POSITIVE_KINDS = [name for name in KINDS if name not in SIGNED]


def assert_steps(got: Step, expected: Step, rtol: float = 1e-9) -> None:
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("name", KINDS)
def test_the_order_of_keys_does_not_matter_and_that_of_queries_is_that_of_the_output(name):
    attention, given = build(name).double(), inputs(12)
    order = torch.randperm(12, generator=torch.Generator().manual_seed(3))
    got = step(attention, Inputs(given.query, given.key[order], given.value[order], given.grad), offsets(12))
    expected = step(attention, given, offsets(12))
    assert_steps(got, Step(expected.out, expected.query, expected.key[order], expected.value[order]), rtol=1e-8)
    got = step(attention, Inputs(given.query[order], given.key, given.value, given.grad[order]), offsets(12))
    assert_steps(got, Step(expected.out[order], expected.query[order], expected.key, expected.value), rtol=1e-8)


@pytest.mark.parametrize("name", KINDS)
def test_heads_are_worked_on_apart(name):
    # with a shared projection each head alone gives its part; with its own, so it does with that
    attention, given = build(name, heads=3), inputs(18, heads=3)
    features = attention.features
    together = step(attention.double(), given, offsets(*LENGTHS))
    for head in range(3):
        alone = build(name, heads=1).double()
        for ours, whole in zip(alone.features.buffers(), features.buffers(), strict=True):
            of_heads = [axis for axis in range(whole.dim()) if ours.shape[axis] != whole.shape[axis]]
            ours.copy_(whole.narrow(of_heads[0], head, 1) if of_heads else whole)
        got = step(alone, Inputs(*(x[:, head : head + 1] for x in given)), offsets(*LENGTHS))
        assert_steps(got, Step(*(x[:, head : head + 1] for x in together)))


@pytest.mark.parametrize(("name", "causal"), both_ways(KINDS))
def test_the_output_is_linear_in_the_values(name, causal):
    attention, given = build(name, causal).double(), inputs(18)
    other = inputs(18, seed=1).value
    cu = offsets(*LENGTHS)
    outs = [
        attention(given.query, given.key, value, cu) for value in (given.value, other, 2.0 * given.value - 3.0 * other)
    ]
    torch.testing.assert_close(outs[2], 2.0 * outs[0] - 3.0 * outs[1], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "causal"), both_ways(KINDS))
def test_values_times_a_power_of_two_give_its_multiple_to_the_bit(name, causal, dtype):
    dim = head_dim(dtype)
    attention, given = build(name, causal, dim=dim), inputs(18, norm=1.0, dim=dim).to(dtype)
    expected = step(attention, given, offsets(*LENGTHS))
    got = step(attention, given._replace(value=given.value * 64), offsets(*LENGTHS))
    assert torch.equal(got.out, expected.out * 64)
    got = step(attention, given._replace(grad=given.grad / 64), offsets(*LENGTHS))
    for one, other in zip(got[1:], expected[1:], strict=True):
        assert torch.equal(one * 64, other)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "causal"), both_ways(POSITIVE_KINDS))
def test_a_shift_of_all_values_leaves_the_gradients_of_queries_and_keys(name, causal, dtype):
    # d_out . v - d_out . out is then a small difference of large terms: with an output rounded to bf16 it is noise
    dim = head_dim(dtype)
    attention, given = build(name, causal, dim=dim), inputs(400, norm=1.0, dim=dim)
    value = (given.value.clamp(-2.0, 2.0) * 16).round() / 16  # so that values and shifted values are bf16 numbers
    given = given._replace(value=value).to(dtype)
    shifted = given._replace(value=given.value + 8.0)
    assert torch.equal(shifted.value.double() - 8.0, value)
    cu = offsets(300, *[5] * 10, 30, 20)
    expected = step(attention, given.to(torch.float64), cu)
    plain = relative_errors(step(attention, given, cu), expected)
    got = relative_errors(step(attention, shifted, cu), expected)
    for before, after in zip((plain.query, plain.key), (got.query, got.key), strict=True):
        assert after <= 2.0 * before + 2.0 ** (-8 if dtype == torch.bfloat16 else -13)


@pytest.mark.parametrize("name", ["positive centred", "optimal centred per head", "dense centred"])
def test_centred_maps_see_no_shift_of_keys(name):
    # as softmax attention does not: exactly, whatever the draw
    attention, given = build(name).double(), inputs(18, norm=1.0)
    shift = torch.randn(2, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    expected = step(attention, given, offsets(*LENGTHS))
    got = step(attention, given._replace(key=given.key + shift), offsets(*LENGTHS))
    assert_steps(got, expected)
    # and one without centring does
    plain = build("optimal").double()
    outs = [plain(given.query, key, given.value, offsets(*LENGTHS)) for key in (given.key, given.key + shift)]
    assert not torch.allclose(outs[0], outs[1], rtol=1e-3)


@pytest.mark.parametrize("name", ["dense", "dense centred"])
def test_dense_maps_see_no_exchange_of_scale_between_queries_and_keys(name):
    # q D and k / D have the products of q and k, and the same balance for every diagonal D
    attention, given = build(name).double(), inputs(18)
    scale = torch.logspace(-0.8, 0.8, 8, dtype=torch.float64)
    expected = step(attention, given, offsets(*LENGTHS))
    got = step(attention, given._replace(query=given.query * scale, key=given.key / scale), offsets(*LENGTHS))
    assert_steps(got, Step(expected.out, expected.query / scale, expected.key * scale, expected.value))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "causal"), both_ways(POSITIVE_KINDS))
def test_equal_keys_give_the_mean_value_and_queries_no_gradient(name, causal, dtype):
    unit = {torch.float32: 1e-6, torch.bfloat16: 2.0**-7}[dtype]
    dim = head_dim(dtype)
    for norm in (0.5, 30.0):
        attention, given = build(name, causal, dim=dim), inputs(40, norm, dim=dim)
        given = given._replace(key=given.key[:1].expand(40, -1, -1)).to(dtype)
        got = step(attention, given, offsets(25, 15))
        for part in (given.rows(0, 25), given.rows(25, 40)):
            value = part.value.double()
            counts = torch.arange(1, len(value) + 1)[:, None, None]
            mean = value.cumsum(0) / counts if causal else value.mean(0).expand(len(value), -1, -1)
            start = 0 if len(value) == 25 else 25
            out = got.out[start : start + len(value)].double()
            assert (out - mean).abs().max() <= 4.0 * unit * value.abs().max()
        # every key weighs the same whatever the query: what is left of its gradient is rounding
        scale = given.grad.double().abs().max() * given.value.double().abs().max() * max(norm, 1.0)
        assert got.query.abs().max() <= 64.0 * unit * scale


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "causal"), both_ways(POSITIVE_KINDS))
def test_one_token_gives_its_value_and_no_gradient_to_query_and_key(name, causal, dtype):
    dim = head_dim(dtype)
    for norm in (1e-3, 30.0, 1e3):
        attention = build(name, causal, dim=dim)
        given = inputs(3, norm, dim=dim).to(dtype)
        got = step(attention, given, offsets(1, 1, 1))
        tolerance = 2.0**-7 if dtype == torch.bfloat16 else 1e-5
        torch.testing.assert_close(got.out, given.value, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(got.value, given.grad, rtol=tolerance, atol=tolerance)
        assert max(got.query.abs().max(), got.key.abs().max()) <= 64.0 * tolerance * max(norm, 1.0)


@pytest.mark.parametrize(("name", "causal"), both_ways(KINDS))
def test_short_segments_that_are_left_out_have_zero_rows_and_no_gradient(name, causal):
    lengths = [6, 2, 1, 30, 0, 3, 6, 5]
    attention, given = build(name, causal).double(), inputs(sum(lengths), norm=1.0)
    long = [length >= 6 for length in lengths]
    kept = torch.cat([torch.full((length,), keep) for length, keep in zip(lengths, long, strict=True)])
    got = step(attention, given, offsets(*lengths), shortest=6)
    alone = step(
        attention,
        Inputs(*(x[kept] for x in given)),
        offsets(*(length for length, keep in zip(lengths, long, strict=True) if keep)),
    )
    for one, other in zip(got, alone, strict=True):
        assert torch.count_nonzero(one[~kept]) == 0
        torch.testing.assert_close(one[kept], other, rtol=1e-9, atol=1e-9)
    nothing = step(attention, given, offsets(*lengths), shortest=31)
    assert all(torch.count_nonzero(x) == 0 for x in nothing)
    for whole, one in zip(
        step(attention, given, offsets(*lengths)), step(attention, given, offsets(*lengths), shortest=1), strict=True
    ):
        assert torch.equal(whole, one)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("name", "causal"), both_ways(KINDS))
def test_inputs_need_not_be_contiguous(name, causal, dtype):
    dim = head_dim(dtype)
    attention, given = build(name, causal, dim=dim), inputs(18, norm=1.0, dim=dim).to(dtype)
    cu = offsets(*LENGTHS)
    tolerance = 0.0 if name not in SEGMENT_STATISTICS else {torch.float32: 1e-5, torch.bfloat16: 2.0**-7}[dtype]
    expected = step(attention, given, cu)
    # one projection gives all three, `[total, 3, heads, dim]`; or heads come first in memory
    fused = torch.stack(given, dim=1)
    one = step(attention, Inputs(*fused.unbind(1)), cu)
    other = step(attention, Inputs(*(x.transpose(0, 1).contiguous().transpose(0, 1) for x in given)), cu)
    last = step(attention, Inputs(*(x.transpose(1, 2).contiguous().transpose(1, 2) for x in given)), cu)
    for got in (one, other, last):
        for a, b in zip(got, expected, strict=True):
            # (sums over a segment may be taken in another order)
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
    # a sum's gradient is one number seen everywhere
    ones = step(attention, given._replace(grad=torch.ones_like(given.grad)), cu)
    expanded = step(attention, given._replace(grad=given.grad.new_ones(()).expand_as(given.grad)), cu)
    for a, b in zip(expanded, ones, strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(("name", "causal"), both_ways(KINDS))
def test_only_the_wanted_gradients_are_asked_for(name, causal):
    attention, given = build(name, causal).double(), inputs(18)
    cu = offsets(*LENGTHS)
    expected = step(attention, given, cu)
    for i in range(3):
        leaves: list[Tensor] = [x.detach().requires_grad_(i == j) for j, x in enumerate(given[:3])]
        (grad,) = torch.autograd.grad(attention(*leaves, cu), [leaves[i]], given.grad)
        torch.testing.assert_close(grad, expected[i + 1])


@pytest.mark.parametrize("name", ["positive moving", "optimal moving"])
def test_moving_statistics_are_the_same_for_all_segments_and_may_be_causal(name):
    for causal in (False, True):
        attention, given = build(name, causal).double(), inputs(18)
        together = step(attention, given, offsets(*LENGTHS))
        for a, b in ((0, 5), (5, 6), (6, 18)):
            assert_steps(step(attention, given.rows(a, b), offsets(b - a)), Step(*(x[a:b] for x in together)))
        # they have an effect
        moving = moving_of(attention)
        assert moving is not None
        moving.average.mul_(2.0)
        assert not torch.allclose(attention(*given[:3], offsets(*LENGTHS)), together.out, rtol=1e-3)


@pytest.mark.parametrize("name", SEGMENT_STATISTICS)
def test_statistics_of_segments_are_refused_under_causal_attention(name):
    with pytest.raises(ValueError, match=r"takes statistics of whole segments.*use features\.statistics=moving"):
        build(name, causal=True)
