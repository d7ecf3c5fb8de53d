"""Exact attention equals the formula, forward and backward; hybrid is exact below its threshold, FAVOR+ from it on."""

import pytest
import torch

from protformer.attention import ExactAttention, FavorAttention, HybridAttention
from protformer.attention.exact import exact_attention
from protformer.features import GeneralizedFeatures, PositiveFeatures, TrigonometricFeatures, projection_generator


def packed(lengths: list[int], heads: int = 2, dim: int = 8, seed: int = 0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = torch.randn(3, sum(lengths), heads, dim, generator=generator, dtype=torch.float64).to(dtype)
    return q, k, v, torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def direct(q, k, v, cu, causal: bool) -> torch.Tensor:
    outs = []
    for a, b in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
        logits = torch.einsum("thd,shd->hts", q[a:b], k[a:b]) * q.shape[2] ** -0.5
        if causal:
            logits = logits.masked_fill(torch.ones(b - a, b - a, dtype=torch.bool).triu(1), -torch.inf)
        outs.append(torch.einsum("hts,shd->thd", logits.softmax(-1), v[a:b]))
    return torch.cat(outs)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-10), (torch.float32, 1e-5), (torch.bfloat16, 4e-2)])
def test_equals_the_formula_with_its_gradient(dtype, bound, causal):
    q, k, v, cu = packed([1, 40, 0, 7, 130], dtype=dtype)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = ExactAttention(num_heads=2, head_dim=8, causal=causal)(*leaves, cu)
    wide = [x.double().requires_grad_() for x in (q, k, v)]
    expected = direct(wide[0], wide[1], wide[2], cu, causal)
    assert (out.double() - expected).abs().max() < bound
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    grads = torch.autograd.grad((out * weight.to(dtype)).sum(), leaves)
    for grad, reference in zip(grads, torch.autograd.grad((expected * weight).sum(), wide), strict=True):
        assert (grad.double() - reference).abs().max() < 3 * bound * max(1.0, float(reference.abs().max()))


@pytest.mark.parametrize("causal", [False, True])
def test_opcheck(causal):
    q, k, v, cu = packed([5, 3])
    args = [x.requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(
        torch.ops.protformer.exact.default,
        (*args, cu, causal, 5),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
    )
    with torch.enable_grad():
        assert torch.autograd.gradcheck(lambda q, k, v: exact_attention(q, k, v, cu, causal=causal), args)


def test_longer_segments_are_left_out_with_their_gradient():
    q, k, v, cu = packed([4, 9, 5])
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = exact_attention(leaves[0], leaves[1], leaves[2], cu, causal=False, shorter_than=9)
    torch.testing.assert_close(out[:4], direct(q[:4], k[:4], v[:4], torch.tensor([0, 4]), False))
    assert torch.count_nonzero(out[4:13]) == 0
    out.square().sum().backward()
    for leaf in leaves:
        assert leaf.grad is not None
        assert torch.count_nonzero(leaf.grad[4:13]) == 0
        assert torch.count_nonzero(leaf.grad[:4]) > 0


def hybrid(threshold: int, causal: bool = False) -> HybridAttention:
    attention = HybridAttention(
        num_heads=2,
        head_dim=8,
        features=lambda **shape: PositiveFeatures(num_features=16, **shape),
        causal=causal,
        threshold=threshold,
    )
    attention.redraw_(projection_generator(0, 0, 0))
    return attention.double()


@pytest.mark.parametrize("causal", [False, True])
def test_hybrid_is_exact_below_its_threshold_and_the_performer_from_it_on(causal):
    attention = hybrid(20, causal)
    performer = FavorAttention(
        num_heads=2, head_dim=8, features=lambda **shape: PositiveFeatures(num_features=16, **shape), causal=causal
    ).double()
    performer.load_state_dict(attention.state_dict())
    exact = ExactAttention(num_heads=2, head_dim=8, causal=causal)
    q, k, v, cu = packed([19, 20, 3, 41, 0, 1, 20])
    leaves = {name: [x.clone().requires_grad_() for x in (q, k, v)] for name in ("hybrid", "exact", "performer")}
    outs = {
        "hybrid": attention(*leaves["hybrid"], cu),
        "exact": exact(*leaves["exact"], cu),
        "performer": performer(*leaves["performer"], cu),
    }
    weight = torch.randn(q.shape, generator=torch.Generator().manual_seed(1), dtype=q.dtype)
    grads = {name: torch.autograd.grad((outs[name] * weight).sum(), leaves[name]) for name in outs}
    for a, b in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
        one = "exact" if b - a < 20 else "performer"
        torch.testing.assert_close(outs["hybrid"][a:b], outs[one][a:b])
        for grad, expected in zip(grads["hybrid"], grads[one], strict=True):
            torch.testing.assert_close(grad[a:b], expected[a:b])


@pytest.mark.parametrize("threshold", [0, 1000])
def test_hybrid_at_either_end(threshold):
    q, k, v, cu = packed([5, 30])
    out = hybrid(threshold)(q, k, v, cu)
    assert out.isfinite().all()
    if threshold:
        torch.testing.assert_close(out, direct(q, k, v, cu, False))


@pytest.mark.parametrize(
    "features",
    [
        lambda **shape: GeneralizedFeatures(num_features=16, **shape),
        lambda **shape: TrigonometricFeatures(num_features=16, kernel="gaussian", **shape),
    ],
)
def test_hybrid_refuses_maps_that_estimate_something_else(features):
    with pytest.raises(ValueError, match="estimate softmax"):
        HybridAttention(num_heads=2, head_dim=8, features=features)
