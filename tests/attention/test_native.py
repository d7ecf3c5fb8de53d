"""The compiled CPU engines: they equal the direct formula and the PyTorch path, and say what they leave to that."""

import itertools
from collections.abc import Sequence

import pytest
import torch
from torch import Tensor

from protformer.attention import favor_chunked, native
from protformer.attention.favor_settings import Answer, Inputs, Settings, shortest_kept, state_numbers, state_size
from protformer.features import NO_ADAPTATION, Adaptation

LENGTHS = [1, 17, 0, 64, 300, 1030]
# how far outputs may be off, and gradients in norm: the rounding of bf16 and of fp32
ULP = {torch.bfloat16: 2.0**-7, torch.float32: 2e-6}
GRADIENTS = {torch.bfloat16: 1e-2, torch.float32: 2e-5}
SETTINGS = {
    "exponential": Settings(NO_ADAPTATION, "exponential", 0.0, 1.0, causal=False, shortest=0),
    "unweighted": Settings(NO_ADAPTATION, "exponential", 0.0, 0.0, causal=False, shortest=0),
    "relu": Settings(NO_ADAPTATION, "relu", 1e-3, 0.0, causal=False, shortest=0),
}

WHY_NOT = {
    dtype: native.supported(torch.empty(0, 1, 32, dtype=dtype), torch.empty(1, 32, 32), "relu", False, NO_ADAPTATION)
    for dtype in ULP
}
for_each_type = pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(dtype, marks=pytest.mark.skipif(why is not None, reason=str(why)), id=str(dtype)[6:])
        for dtype, why in WHY_NOT.items()
    ],
)


def offsets(lengths: list[int]) -> Tensor:
    return torch.tensor([0, *itertools.accumulate(lengths)], dtype=torch.int32)


def make_inputs(
    dtype: torch.dtype, lengths: list[int], heads: int, dim: int, rows: int, per_head: bool = False, norm: float = 1.0
) -> tuple[Inputs, Tensor]:
    """q, k, v, offsets, a projection of bf16 numbers; and a gradient of the output."""
    generator = torch.Generator().manual_seed(heads + dim + rows)
    x = torch.randn(4, sum(lengths), heads, dim, generator=generator)
    x[:2] *= norm
    x[2] += 3.0  # values with a mean: what all rows have in common is the larger part of the output
    projection = torch.randn(heads if per_head else 1, rows, dim, generator=generator) * dim**-0.25
    q, k, v, grad = x.to(dtype)
    return Inputs(q, k, v, offsets(lengths), projection.bfloat16().float()), grad


def direct(x: Sequence[Tensor], inputs: Inputs, settings: Settings) -> Tensor:
    """The formula in float64 for q, k and v in `x`, one segment after another."""
    q, k, v = x
    outs = []
    heads, dim = q.shape[1:]
    segments = len(inputs.cu_seqlens) - 1
    weight = inputs.projection.double().expand(heads, -1, -1)
    for index, (a, b) in enumerate(itertools.pairwise(inputs.cu_seqlens.tolist())):

        def own(y: Tensor | None, index: int = index) -> Tensor | None:
            return None if y is None else y.double().expand(segments, heads, *y.shape[2:])[index]

        query_scale, key_scale, norm_scale, tilt, offset = map(own, settings.adaptation[:5])
        queries, keys = (y[a:b] if scale is None else y[a:b] * scale for y, scale in ((q, query_scale), (k, key_scale)))
        f_q, f_k = (torch.einsum("thd,hmd->htm", y, weight) for y in (queries, keys))
        if offset is not None:
            f_q, f_k = f_q + offset[:, None], f_k + offset[:, None]
        if settings.family == "relu":
            f_q, f_k = f_q.relu() + settings.epsilon, f_k.relu() + settings.epsilon
        else:
            log_weight = -0.5 * settings.norm_weight * dim**-0.5 * keys.square().sum(-1).T
            if norm_scale is not None:
                log_weight = log_weight * norm_scale[:, None]
            if tilt is not None:
                log_weight = log_weight + torch.einsum("thd,hd->ht", keys, tilt)
            f_q, f_k = f_q.exp(), (f_k + log_weight[..., None]).exp()
        mixing = f_q @ f_k.transpose(1, 2)
        if settings.causal:
            mixing = mixing.tril()
        outs.append(torch.einsum("hts,shd->thd", mixing / mixing.sum(2, keepdim=True), v[a:b]))
    return torch.cat(outs)


def run(inputs: Inputs, grad: Tensor, settings: Settings) -> tuple[Answer, tuple[Tensor, Tensor, Tensor], list[int]]:
    """Forward, backward, and the segments that both leave undone."""
    forward = native.forward(inputs, settings)
    assert forward is not None
    answer, undone = forward
    backward = native.backward(grad, answer, inputs, settings)
    assert backward is not None
    assert backward[1] == undone
    return answer, backward[0], undone


def check(inputs: Inputs, grad: Tensor, settings: Settings, looser: float = 1.0) -> None:
    """Output and gradients against float64: to the rounding of the output, gradients to a few of its roundings."""
    leaves = [y.double().requires_grad_() for y in inputs[:3]]
    expected = direct(leaves, inputs, settings)
    expected_grads = torch.autograd.grad(expected, leaves, grad.double())
    answer, grads, undone = run(inputs, grad, settings)
    dtype = inputs.query.dtype
    assert undone == []
    assert answer.out.dtype == dtype
    assert (answer.out.double() - expected).abs().max() <= looser * ULP[dtype] * inputs.value.abs().max()
    for got, wanted in zip(grads, expected_grads, strict=True):
        assert (got.double() - wanted).norm() <= looser * GRADIENTS[dtype] * wanted.norm()


SHAPES = [(8, 64, 64, False), (2, 64, 256, True), (3, 32, 48, True), (1, 96, 16, False), (2, 128, 100, False)]
ODD_SHAPES = [(2, 16, 30, False), (3, 24, 65, True), (2, 5, 7, False), (1, 1, 16, False), (1, 127, 512, False)]


@for_each_type
@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize(("heads", "dim", "rows", "per_head"), SHAPES + ODD_SHAPES)
def test_equals_the_formula(dtype, name, heads, dim, rows, per_head):
    if dtype == torch.bfloat16 and dim % 32:
        pytest.skip("tiles take multiples of 32")
    check(*make_inputs(dtype, LENGTHS, heads, dim, rows, per_head), SETTINGS[name])


@for_each_type
@pytest.mark.parametrize("name", list(SETTINGS))
@pytest.mark.parametrize(("heads", "dim", "rows", "per_head"), SHAPES + ODD_SHAPES)
def test_causal_equals_the_formula(dtype, name, heads, dim, rows, per_head):
    if dtype == torch.bfloat16 and dim % 32:
        pytest.skip("tiles take multiples of 32")
    # (sums are not counted from the values' mean)
    check(*make_inputs(dtype, LENGTHS, heads, dim, rows, per_head), SETTINGS[name]._replace(causal=True), looser=2.0)


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
def test_nothing_comes_back_from_the_future(dtype):
    inputs, grad = make_inputs(dtype, [150], 2, 32, 40)
    settings = SETTINGS["exponential"]._replace(causal=True)
    grad[100:] = 0.0
    answer, (grad_query, grad_key, grad_value), _ = run(inputs, grad, settings)
    assert not any(x[100:].any() for x in (grad_query, grad_key, grad_value))
    changed = inputs._replace(key=inputs.key.clone(), value=inputs.value.clone())
    changed.key[100:], changed.value[100:] = 1.0, 7.0
    assert torch.equal(run(changed, grad, settings)[0].out[:100], answer.out[:100])


@for_each_type
@pytest.mark.parametrize("own", [False, True])
def test_shifts_and_scales_per_segment_and_head(dtype, own):
    segments, heads, dim, rows = (len(LENGTHS), 2, 64, 40) if own else (1, 1, 64, 40)
    x = make_inputs(dtype, LENGTHS, 2, dim, rows)
    generator = torch.Generator().manual_seed(0)
    tilt, offset, a, b = (torch.randn(segments, heads, n, generator=generator) * 0.2 for n in (dim, rows, dim, dim))
    norm_scale = 0.5 + torch.rand(segments, heads, generator=generator)
    for name, adaptation in (
        ("exponential", Adaptation(tilt=tilt, offset=offset)),
        ("exponential", Adaptation(norm_scale=norm_scale)),
        ("unweighted", Adaptation(tilt=tilt)),
        ("relu", Adaptation(offset=offset)),
    ):
        check(*x, SETTINGS[name]._replace(adaptation=adaptation))
    unscaled = Adaptation(None, None, norm_scale, tilt, offset)
    scaled = Adaptation(1 + a, 1 + b, norm_scale, tilt, offset) if dtype == torch.float32 else unscaled
    for name, causal in itertools.product(("exponential", "relu"), (False, True)):
        check(*x, SETTINGS[name]._replace(adaptation=scaled, causal=causal), looser=2.0)


@for_each_type
@pytest.mark.parametrize("norm", [1e-3, 0.3, 4.0])
def test_gradients_are_as_near_as_pytorchs(dtype, norm):
    # (at tiny norms the rounding of features is all there is, on either path)
    inputs, grad = make_inputs(dtype, [700], 2, 64, 64, norm=norm)
    settings = SETTINGS["exponential"]
    leaves = [y.double().requires_grad_() for y in inputs[:3]]
    expected = torch.autograd.grad(direct(leaves, inputs, settings), leaves, grad.double())
    theirs = favor_chunked.backward(grad, favor_chunked.forward(inputs, settings), inputs, settings)
    _, ours, _ = run(inputs, grad, settings)
    for got, other, wanted in zip(ours, theirs, expected, strict=True):
        allowed = 1.5 * (other.double() - wanted).norm() + 0.1 * GRADIENTS[dtype] * wanted.norm()
        assert (got.double() - wanted).norm() <= allowed


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
def test_threads_and_neighbours_change_nothing(dtype, monkeypatch):
    # 5000 rows in parts, few heads: both threads must share them; and the same segment among others
    inputs, grad = make_inputs(dtype, [*LENGTHS, 5000], 2, 64, 64)
    for causal in (False, True):
        settings = SETTINGS["exponential"]._replace(causal=causal)
        results = []
        for threads in (1, 2, 5):
            monkeypatch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            answer, grads, _ = run(inputs, grad, settings)
            results.append((answer.out, *grads))
        for other in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], other, strict=True))
        rows = slice(-5000, None)
        q, k, v = (x[rows] for x in inputs[:3])
        alone = Inputs(q, k, v, offsets([5000]), inputs.projection)
        answer, grads, _ = run(alone, grad[rows], settings)
        assert all(torch.equal(a, b[rows]) for a, b in zip((answer.out, *grads), results[0], strict=True))


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


@for_each_type
def test_short_segments_are_left_out(dtype):
    inputs, grad = make_inputs(dtype, LENGTHS, 2, 64, 64)
    settings = SETTINGS["relu"]
    answer, grads, _ = run(inputs, grad, settings._replace(shortest=64))
    whole, _, _ = run(inputs, grad, settings)
    for x in (answer.out, *grads):
        assert not x[:18].any()
        assert x[18:].any()
    assert torch.equal(answer.out[18:], whole.out[18:])


@for_each_type
def test_strided_inputs_and_empty_packs(dtype):
    inputs, grad = make_inputs(dtype, [40], 2, 64, 64)
    together = torch.stack(inputs[:3], dim=1)
    strided = Inputs(together[:, 0], together[:, 1], together[:, 2], *inputs[3:])
    turned = grad.transpose(0, 1).contiguous().transpose(0, 1)
    plain, other = run(inputs, grad, SETTINGS["relu"]), run(strided, turned, SETTINGS["relu"])
    assert torch.equal(plain[0].out, other[0].out)
    assert all(torch.equal(a, b) for a, b in zip(plain[1], other[1], strict=True))
    for lengths in ([], [0, 0]):
        q, k, v = (x[:0] for x in inputs[:3])
        empty = Inputs(q, k, v, offsets(lengths), inputs.projection)
        answer, grads, _ = run(empty, grad[:0], SETTINGS["relu"])
        assert all(x.shape == (0, 2, 64) for x in (answer.out, *grads))


@for_each_type
def test_nothing_outside_the_tensors_is_touched(dtype):
    inputs, grad = make_inputs(dtype, [40, 8], 2, 64, 64)
    settings = SETTINGS["relu"]
    answer, _, _ = run(inputs, grad, settings)
    for wrong in ([0, 40, 49], [-1, 40, 48], [0, 50, 48], [2**31 - 1, 48]):
        bad = inputs._replace(cu_seqlens=torch.tensor(wrong, dtype=torch.int32))
        assert native.forward(bad, settings) is None
        assert native.backward(grad, answer, bad, settings) is None
    assert native.forward(inputs._replace(key=inputs.key[:-1]), settings) is None
    assert native.forward(inputs._replace(value=inputs.value.double()), settings) is None
    assert native.forward(inputs._replace(projection=inputs.projection[:, :, :32]), settings) is None
    assert native.backward(grad[:-1], answer, inputs, settings) is None
    assert native.backward(grad, answer._replace(row_numbers=answer.row_numbers[:, 1:]), inputs, settings) is None
    assert native.backward(grad, answer._replace(states=torch.zeros(7)), inputs, settings) is None
    offset = Adaptation(offset=torch.zeros(1, 1, 63))
    assert native.forward(inputs, settings._replace(adaptation=offset)) is None
    if dtype == torch.bfloat16:  # entries that bf16 cannot hold would be rounded in silence
        assert native.forward(inputs._replace(projection=inputs.projection * 1.001), settings) is None


def test_states_fit_into_their_room():
    query = torch.empty(5000, 3, 24)
    states = state_numbers(query, torch.empty(1, 100, 24), causal=False)
    # six segments of 800 rows can be in 5000; 100 features are padded to 112, 24 dims to 32
    assert states.numel() == 6 * 3 * state_size(100, 24, torch.float32) == 6 * 3 * (112 * 33 + 32 + 16)
    assert state_numbers(query.bfloat16(), torch.empty(1, 100, 24), causal=False).numel() == 0
    # a fifth of one input's rows in fp32 at most, two fifths in bf16
    for rows, dim in ((512, 128), (256, 64), (64, 32), (64, 16)):
        assert state_size(rows, dim, torch.float32) <= shortest_kept(rows) * dim / 5
        assert state_size(rows, max(dim, 32), torch.bfloat16) <= shortest_kept(rows) * max(dim, 32) / 5


@for_each_type
def test_many_long_segments_keep_their_own_states(dtype):
    # more parts than one wave takes, and shorter ones between
    lengths = [513, 40, 4000, 9000, 513, 513, 7000, 100]
    for rows in (32, 100):  # (of 100 features, states are kept from 800 rows on)
        check(*make_inputs(dtype, lengths, 2, 32, rows), SETTINGS["exponential"], looser=2.0)


def test_what_is_refused_and_why():
    projection = torch.zeros(1, 64, 64)

    def reason(shape=(5, 2, 64), dtype=torch.bfloat16, rows=64, family="relu", causal=False, adaptation=NO_ADAPTATION):
        return native.supported(
            torch.zeros(shape, dtype=dtype), projection[:, :1].expand(1, rows, -1), family, causal, adaptation
        )

    assert "only bf16 and fp32" in (reason(dtype=torch.float64) or "")
    assert "multiple of 32" in (reason(shape=(5, 2, 8)) or "")
    assert "up to 128" in (reason(shape=(5, 2, 129), dtype=torch.float32) or "")
    assert "512" in (reason(rows=513) or "")
    assert "'cosine'" in (reason(family="cosine") or "")
    assert reason(causal=True) == WHY_NOT[torch.bfloat16]
    ones = torch.ones(1, 1, 64)
    scaled = Adaptation(ones, ones, torch.ones(1, 1))
    assert "scaled" in (reason(adaptation=scaled) or "")
    assert reason() == WHY_NOT[torch.bfloat16]
    assert reason(shape=(5, 2, 8), dtype=torch.float32, adaptation=scaled) == WHY_NOT[torch.float32]


@pytest.mark.parametrize("dtype", list(ULP))
def test_without_a_library_there_is_a_reason(dtype, monkeypatch, tmp_path):
    native._library.cache_clear()
    monkeypatch.setattr(native, "__file__", str(tmp_path / "__init__.py"))
    assert "not compiled" in (native._library(dtype)[1] or "")
    for suffix in native.EXTENSION_SUFFIXES:
        (tmp_path / f"{native._LIBRARIES[dtype]}{suffix}").write_text("this is no library")
    native._library.cache_clear()
    assert "cannot be loaded" in (native._library(dtype)[1] or "")
    native._library.cache_clear()
