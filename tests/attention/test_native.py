"""The compiled CPU engines: they equal the direct formula and the PyTorch path, and say what they leave to that."""

import itertools

import pytest
import torch
from compiled_engines import (
    GRADIENTS,
    LENGTHS,
    SETTINGS,
    ULP,
    WHY_NOT,
    check,
    direct,
    for_each_type,
    make_inputs,
    offsets,
    run,
)

from protformer.attention import favor_chunked, native
from protformer.attention.favor_settings import Inputs, shortest_kept, state_numbers, state_size
from protformer.features import NO_ADAPTATION, Adaptation

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
