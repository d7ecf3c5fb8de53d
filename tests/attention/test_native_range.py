"""What the compiled CPU engines keep in range: great norms, weights far apart, offsets; what they name and leave."""

import pytest
import torch
from compiled_engines import LENGTHS, SETTINGS, ULP, check, direct, for_each_type, make_inputs, run

from protformer.attention import native
from protformer.features import Adaptation


@for_each_type
def test_causal_weights_far_apart(dtype):
    inputs, grad = make_inputs(dtype, LENGTHS, 2, 64, 32)
    projection = (inputs.projection * 0.1).bfloat16().float()
    inputs = inputs._replace(query=inputs.query * 0.3, projection=projection)
    settings = SETTINGS["exponential"]._replace(causal=True)
    inputs.key[10] *= 10.0  # of segment 1: a weight that is hundreds below the others
    check(inputs, grad, settings, looser=2.0)
    inputs.key[1] *= 10.0  # its first, which others then are hundreds above
    assert run(inputs, grad, settings)[2] == [1]
    assert run(inputs, grad, settings._replace(causal=False))[2] == []


@for_each_type
def test_weights_that_grow_along_a_segment(dtype):
    # the running maximum moves by hundreds, over blocks and parts; early keys weigh nothing in the end
    inputs, grad = make_inputs(dtype, [1400], 2, 64, 32)
    query, key = (inputs.query * 8.0), (inputs.key * torch.linspace(30.0, 0.5, 1400)[:, None, None]).to(dtype)
    inputs = inputs._replace(query=query, key=key, projection=inputs.projection * 2.0**-4)
    # (few keys count, and their features' roundings do not average out: PyTorch's path is as far off)
    check(inputs, grad, SETTINGS["exponential"], looser=2.0)
    check(inputs._replace(key=key.flip(0)), grad, SETTINGS["exponential"], looser=2.0)


@for_each_type
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("norm", "reached"), [(3.1, 30), (5.0, 60)])
def test_trained_norms_are_in_range(dtype, causal, norm, reached):
    # where PyTorch's path has long changed to its stabilised form: models get to 48 after 17 million residues
    inputs, grad = make_inputs(dtype, [300, 1, 1030], 3, 32, 256)
    inputs = inputs._replace(query=(inputs.query * norm).to(dtype), key=(inputs.key * 2.5).to(dtype))
    logits = torch.einsum("thd,hmd->htm", inputs.query.double(), inputs.projection.double().expand(3, -1, -1))
    assert logits.min() < -reached
    assert reached < logits.max()
    # (few keys count, and their features' roundings do not average out: PyTorch's path is as far off)
    check(inputs, grad, SETTINGS["exponential"]._replace(causal=causal), looser=3.0)


@for_each_type
@pytest.mark.parametrize("causal", [False, True])
def test_one_query_of_great_norm_is_in_range(dtype, causal):
    inputs, grad = make_inputs(dtype, LENGTHS, 2, 64, 256)
    settings = SETTINGS["exponential"]._replace(causal=causal)
    for row in (20, 500):
        inputs.query[row] *= 5.0
    logits = torch.einsum("hd,md->hm", inputs.query[500].double(), inputs.projection[0].double())
    assert logits.abs().max() > 40
    check(inputs, grad, settings, looser=2.0)


@for_each_type
def test_shifts_follow_the_projection(dtype):
    # unscaled rows of norm 1: |q| is 8 times as large beside the logits as with gaussian rows of 64 dimensions
    inputs, grad = make_inputs(dtype, LENGTHS, 2, 64, 64)
    inputs = inputs._replace(query=inputs.query * 8.0, projection=torch.eye(64)[None])
    check(inputs, grad, SETTINGS["unweighted"], looser=2.0)


@for_each_type
@pytest.mark.parametrize("causal", [False, True])
def test_an_offset_may_be_most_of_a_logit(dtype, causal):
    # the mean of all rows, which the offset takes off: it makes |q| large, and no logit (whole blocks: what fills up
    # others has the offset alone)
    inputs, grad = make_inputs(dtype, [64, 320], 2, 64, 64)
    mean = torch.full((64,), 8.0)
    assert (inputs.projection @ mean).abs().max() > 40
    offset = -(inputs.projection @ mean)[None]
    inputs = inputs._replace(query=inputs.query + mean.to(dtype), key=inputs.key + mean.to(dtype))
    settings = SETTINGS["unweighted"]._replace(causal=causal, adaptation=Adaptation(offset=offset))
    check(inputs, grad, settings, looser=2.0)


@for_each_type
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("case", ["queries", "keys", "denominators"])
def test_segments_out_of_range_are_named(dtype, case, causal):
    inputs, grad = make_inputs(dtype, LENGTHS, 2, 64, 64)
    settings = SETTINGS["unweighted"]._replace(causal=causal)
    if case == "denominators":  # every feature of a query underflows beside those of the keys
        inputs = inputs._replace(projection=inputs.projection.abs())
    for row in (20, 500):  # of segments 3 and 5
        inputs[case == "keys"][row, 1] = {"queries": 1000.0, "keys": 30.0, "denominators": -10.0}[case]
    answer, _, undone = run(inputs, grad, settings)
    assert undone == [3, 5]
    expected = direct([x.double() for x in inputs[:3]], inputs, settings)
    for index in (0, 1, 4):
        rows = slice(int(inputs.cu_seqlens[index]), int(inputs.cu_seqlens[index + 1]))
        assert (answer.out[rows].double() - expected[rows]).abs().max() <= 2 * ULP[dtype] * inputs.value.abs().max()


@for_each_type
def test_a_key_of_great_norm_weighs_nothing(dtype):
    inputs, grad = make_inputs(dtype, LENGTHS, 2, 64, 64)
    for row in (20, 500):
        inputs.key[row, 1] = 30.0
    check(inputs, grad, SETTINGS["exponential"])


@for_each_type
@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_stays_in_its_segment(dtype, name, bad):
    for tensor in range(3):
        inputs, grad = make_inputs(dtype, LENGTHS, 2, 64, 64)
        good, good_grads, _ = run(inputs, grad, SETTINGS[name])
        inputs[tensor][100, 0, 5] = bad  # segment 4
        forward = native.forward(inputs, SETTINGS[name])
        assert forward is not None
        answer, undone = forward
        backward = native.backward(grad, answer, inputs, SETTINGS[name])
        assert backward is not None
        inside = slice(int(inputs.cu_seqlens[4]), int(inputs.cu_seqlens[5]))
        assert 4 in undone or not answer.out[inside].isfinite().all()
        for x, y in zip((answer.out, *backward[0]), (good.out, *good_grads), strict=True):
            assert torch.equal(x[: inside.start], y[: inside.start])
            assert torch.equal(x[inside.stop :], y[inside.stop :])
