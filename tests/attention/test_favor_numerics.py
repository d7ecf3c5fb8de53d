"""Numerics of the Performer: fp32 and bf16 against float64, from tiny to huge norms, at every length."""

import pytest
import torch
from torch import Tensor

from protformer.attention import FavorAttention
from protformer.features import (
    FeatureMap,
    GeneralizedFeatures,
    HyperbolicFeatures,
    PositiveFeatures,
    RegularizedFeatures,
    TrigonometricFeatures,
    projection_generator,
)

EXPONENTIAL = (PositiveFeatures, HyperbolicFeatures, RegularizedFeatures)
STABLE = (*EXPONENTIAL, GeneralizedFeatures)
EPSILON = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-7}


def build(map_class: type[FeatureMap], num_features: int, dim: int, causal: bool) -> FavorAttention:
    attention = FavorAttention(
        num_heads=2,
        head_dim=dim,
        features=lambda **shape: map_class(num_features=num_features, **shape),  # pyright: ignore[reportCallIssue]
        causal=causal,
    )
    attention.redraw_(projection_generator(0, 0, 0))
    return attention


def inputs(length: int, dim: int, norm: float, mode: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """q and k of the given norm, v, and a gradient of the output; "opposite" and "aligned" say how k lies to q."""
    generator = torch.Generator().manual_seed(length + dim)
    q, k, v, grad = torch.randn(4, length, 2, dim, generator=generator, dtype=torch.float64)
    q, k = (x / x.norm(dim=-1, keepdim=True) * norm for x in (q, k))
    k = {"random": k, "opposite": -q, "aligned": q}[mode]
    return q, k, v, grad


def one_segment(length: int) -> Tensor:
    return torch.tensor([0, length], dtype=torch.int32)


def run(attention: FavorAttention, q: Tensor, k: Tensor, v: Tensor, grad: Tensor) -> tuple[Tensor, ...]:
    leaves = [x.detach().clone().requires_grad_() for x in (q, k, v)]
    out = attention(*leaves, one_segment(len(q)))
    return out.detach(), *torch.autograd.grad(out, leaves, grad.to(out.dtype))


@pytest.mark.parametrize("mode", ["random", "opposite", "aligned"])
@pytest.mark.parametrize("norm", [1e-3, 3.0, 30.0])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("map_class", STABLE)
def test_output_is_near_float64_and_gradients_are_finite(map_class, causal, dtype, norm, mode):
    for num_features, dim, length in ((16, 64, 40), (256, 8, 5), (64, 8, 300)):
        attention = build(map_class, num_features, dim, causal)
        low = [x.to(dtype) for x in inputs(length, dim, norm, mode)]
        out, *grads = run(attention, *low)
        reference, *reference_grads = run(attention, *(x.double() for x in low))
        # the logits' own rounding is relative to their size: |w||x| and |x|^2 / 2 bound it
        largest = 2.0 + float(attention.features.projection.norm(dim=-1).max()) * norm + norm**2 * 0.5 * dim**-0.5
        bound = (EPSILON[dtype] + 4 * largest * EPSILON[torch.float32]) * float(low[2].abs().max())
        assert (out.double() - reference).abs().max() <= bound
        for grad, expected in zip(grads, reference_grads, strict=True):
            assert grad.isfinite().all()
            assert expected.isfinite().all()


@pytest.mark.parametrize("map_class", EXPONENTIAL)
@pytest.mark.parametrize("norm", [30.0, 200.0, 1e4])
def test_causal_rows_whose_queries_and_keys_prefer_different_features(map_class, norm):
    # With k = -q the largest features of a row's query and key are hundreds of e-folds apart from any that they share:
    # one scale a row underflows to 0 / 0, in float64 too at the largest norm. The first row sees only itself.
    for dtype in (torch.float32, torch.float64):
        attention = build(map_class, 64, 8, causal=True)
        q, k, v, grad = (x.to(dtype) for x in inputs(9, 8, norm, "opposite"))
        out, *grads = run(attention, q, k, v, grad)
        torch.testing.assert_close(out[0], v[0], rtol=1e-5, atol=1e-5)
        assert all(x.isfinite().all() for x in grads)
        bidirectional = build(map_class, 64, 8, causal=False)
        prefix_out = bidirectional(q, k, v, one_segment(9))
        torch.testing.assert_close(out[-1], prefix_out[-1], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("norm", [30.0, 60.0])
def test_gradients_of_such_rows_equal_autograds(norm, monkeypatch):
    from protformer.attention import favor_chunked

    monkeypatch.setattr(favor_chunked, "STABILISED_CHUNK", 7)
    dim, length = 8, 24
    attention = build(PositiveFeatures, 32, dim, causal=True).double()
    q, k, v, grad = inputs(length, dim, norm, "random")
    k[4:12] = -q[4:12] * 3.0  # some rows of some chunks
    k[0] = -q[0] * 3.0
    out, *grads = run(attention.float(), q.float(), k.float(), v.float(), grad.float())
    leaves = [x.float().double().requires_grad_() for x in (q, k, v)]
    weight = attention.features.projection[0].double()
    log_query, log_key = (torch.einsum("thd,md->htm", x, weight) for x in leaves[:2])
    log_key = log_key - leaves[1].square().sum(-1).T[:, :, None] * (0.5 * dim**-0.5)
    logits = torch.logsumexp(log_query[:, :, None] + log_key[:, None], dim=3)
    future = torch.ones(length, length, dtype=torch.bool).triu(1)
    weights = logits.masked_fill(future, -torch.inf).softmax(dim=2)
    expected = torch.einsum("hts,shd->thd", weights, leaves[2])
    expected_grads = torch.autograd.grad(expected, leaves, grad.float().double())
    torch.testing.assert_close(out.double(), expected.detach(), rtol=1e-3, atol=1e-4)
    for got, wanted in zip(grads, expected_grads, strict=True):
        assert (got.double() - wanted).norm() <= 1e-3 * wanted.norm()


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("length", [1, 2, 511, 513, 1500, 5000])
def test_lengths_around_and_beyond_a_chunk(length, causal):
    attention = build(PositiveFeatures, 32, 8, causal)
    low = [x.float() for x in inputs(length, 8, 5.0, "random")]
    out = run(attention, *low)
    reference = run(attention, *(x.double() for x in low))
    torch.testing.assert_close(out[0].double(), reference[0], rtol=1e-4, atol=1e-5)
    for grad, expected in zip(out[1:], reference[1:], strict=True):
        assert (grad.double() - expected).norm() <= 1e-5 * expected.norm() + 1e-5


@pytest.mark.parametrize("causal", [False, True])
def test_trigonometric_features_agree_where_their_estimates_are_usable(causal):
    attention = build(TrigonometricFeatures, 256, 8, causal)
    low = [x.float() for x in inputs(200, 8, 0.5, "random")]
    out = run(attention, *low)
    for got, expected in zip(out, run(attention, *(x.double() for x in low)), strict=True):
        torch.testing.assert_close(got.double(), expected, rtol=1e-4, atol=1e-5)
