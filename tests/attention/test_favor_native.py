"""Half precision that no compiled engine takes as it is: padded, or in fp32, it equals the formula too."""

import pytest
import torch
from compiled_engines import GRADIENTS, LENGTHS, SETTINGS, ULP, WHY_NOT, direct, make_inputs

from protformer.attention import favor_chunked, favor_native, native
from protformer.attention.favor_settings import Inputs, Settings
from protformer.features import Adaptation

pytestmark = pytest.mark.skipif(WHY_NOT[torch.float32] is not None, reason=str(WHY_NOT[torch.float32]))


def check(inputs: Inputs, grad: torch.Tensor, settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against float64; and that the chunks of PyTorch operations were not asked."""

    def never(*_: object) -> None:
        raise AssertionError("the chunks of PyTorch operations were asked")

    for name in ("forward", "backward", "forward_segments", "backward_segments"):
        monkeypatch.setattr(favor_chunked, name, never)
    assert favor_native.supported(inputs.query, inputs.projection, settings) is None
    leaves = [x.double().requires_grad_() for x in inputs[:3]]
    expected = direct(leaves, inputs, settings)
    wanted = torch.autograd.grad(expected, leaves, grad.double())
    answer = favor_native.forward(inputs, settings)
    grads = favor_native.backward(grad, answer, inputs, settings)
    dtype = inputs.query.dtype
    tolerance = {torch.float16: 2.0**-10}.get(dtype, ULP[torch.bfloat16])
    assert answer.out.dtype == dtype
    assert answer.out.is_contiguous()
    assert (answer.out.double() - expected).abs().max() <= tolerance * inputs.value.abs().max()
    for got, x in zip(grads, wanted, strict=True):
        assert got.dtype == dtype
        assert got.is_contiguous()
        assert (got.double() - x).norm() <= GRADIENTS[torch.bfloat16] * x.norm()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("dim", "rows"), [(16, 30), (24, 64), (40, 64)])
@pytest.mark.parametrize("name", list(SETTINGS))
def test_heads_of_any_dimension(dtype, dim, rows, name, monkeypatch):
    check(*make_inputs(dtype, LENGTHS, 2, dim, rows), SETTINGS[name], monkeypatch)


def test_constants_are_padded_with_the_heads(monkeypatch):
    segments, heads, dim, rows = len(LENGTHS), 2, 24, 40
    generator = torch.Generator().manual_seed(0)
    tilt, offset = (torch.randn(segments, heads, n, generator=generator) * 0.2 for n in (dim, rows))
    norm_scale = 0.5 + torch.rand(segments, heads, generator=generator)
    settings = SETTINGS["exponential"]._replace(adaptation=Adaptation(None, None, norm_scale, tilt, offset))
    check(*make_inputs(torch.bfloat16, LENGTHS, heads, dim, rows), settings, monkeypatch)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scaled_inputs_go_in_full_precision(dtype, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    a, b = (1 + 0.2 * torch.randn(len(LENGTHS), 2, 32, generator=generator) for _ in range(2))
    settings = SETTINGS["exponential"]._replace(adaptation=Adaptation(a, b, torch.ones(1, 1)))
    check(*make_inputs(dtype, LENGTHS, 2, 32, 40), settings, monkeypatch)


def test_without_amx_bf16_goes_in_full_precision(monkeypatch):
    known = native.available

    def available(dtype: torch.dtype) -> str | None:
        return "there is none here" if dtype == torch.bfloat16 else known(dtype)

    monkeypatch.setattr(native, "available", available)
    inputs, grad = make_inputs(torch.bfloat16, LENGTHS, 2, 32, 40)
    check(inputs, grad, SETTINGS["exponential"], monkeypatch)
    check(inputs, grad, SETTINGS["exponential"]._replace(causal=True), monkeypatch)


def test_segments_out_of_range_are_done_by_the_chunks():
    inputs, grad = make_inputs(torch.bfloat16, LENGTHS, 2, 24, 64)
    inputs.key[500, 1] = 30.0  # of the last segment
    settings = SETTINGS["exponential"]
    expected = favor_chunked.forward(inputs, settings)
    answer = favor_native.forward(inputs, settings)
    assert answer.out.isfinite().all()
    assert (answer.out - expected.out).abs().max() <= 2 * ULP[torch.bfloat16] * inputs.value.abs().max()
    for got, wanted in zip(
        favor_native.backward(grad, answer, inputs, settings),
        favor_chunked.backward(grad, expected, inputs, settings),
        strict=True,
    ):
        assert (got - wanted).norm() <= 3e-2 * wanted.norm()


@pytest.mark.parametrize(
    "dtype",
    [
        pytest.param(dtype, marks=pytest.mark.skipif(WHY_NOT[dtype] is not None, reason=str(WHY_NOT[dtype])))
        for dtype in (torch.bfloat16, torch.float32)
    ],
)
def test_causal_denominators_out_of_range_are_out_of_it_backward_too(dtype):
    # one query that no feature likes, and keys that like none: each is in range, and they sum to little; the chunks
    # remember a denominator of another scale, by which the engine's backward would take this row for its own
    inputs, grad = make_inputs(dtype, LENGTHS, 2, 32, 64)
    directions = torch.randn(4096, 32, generator=torch.Generator().manual_seed(0))
    directions *= 70.0 / directions.norm(dim=1, keepdim=True)
    inputs.query[20] = directions[(directions @ inputs.projection[0].T).amax(dim=1).argmin()].to(dtype)
    inputs.key[18:82] *= 0.1  # segment 3
    settings = SETTINGS["exponential"]._replace(causal=True)
    done = native.forward(inputs, settings)
    assert done is not None
    assert done[1] == [3]
    leaves = [x.double().requires_grad_() for x in inputs[:3]]
    expected = direct(leaves, inputs, settings)
    answer = favor_native.forward(inputs, settings)
    assert (answer.out.double() - expected).abs().max() <= 3 * ULP[dtype] * inputs.value.abs().max()
    wanted = torch.autograd.grad(expected, leaves, grad.double())
    for got, x in zip(favor_native.backward(grad, answer, inputs, settings), wanted, strict=True):
        assert (got.double() - x).norm() <= 3 * GRADIENTS[dtype] * x.norm()
