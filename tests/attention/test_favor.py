"""Laws of the Performer's operator: it equals the direct formula, alone or packed, forward and backward."""

import pytest
import torch

from protformer.attention import ExactAttention, FavorAttention, favor_causal, favor_chunked
from protformer.features import (
    CosineFeatures,
    DenseFeatures,
    FeatureMap,
    GeneralizedFeatures,
    HyperbolicFeatures,
    OptimalPositiveFeatures,
    PositiveFeatures,
    RegularizedFeatures,
    TrigonometricFeatures,
    projection_generator,
)


def of(map_class: type[FeatureMap], **options):
    return lambda **shape: map_class(**shape, **{"num_features": 12, **options})


MAPS = {
    "positive": of(PositiveFeatures),
    "positive centred": of(PositiveFeatures, centred=True),
    "positive per head": of(PositiveFeatures, per_head=True),
    "gaussian": of(PositiveFeatures, kernel="gaussian"),
    "hyperbolic": of(HyperbolicFeatures),
    "optimal": of(OptimalPositiveFeatures),
    "optimal centred per head": of(OptimalPositiveFeatures, centred=True, per_head=True),
    "dense": of(DenseFeatures),
    "dense centred": of(DenseFeatures, centred=True),
    "regularized": of(RegularizedFeatures),
    "trigonometric": of(TrigonometricFeatures, num_features=64),
    "trigonometric gaussian": of(TrigonometricFeatures, num_features=64, kernel="gaussian"),
    "cosine": of(CosineFeatures, num_features=64),
    "relu": of(GeneralizedFeatures),
    "relu without projection": of(GeneralizedFeatures, project=False),
    "squared_relu": of(GeneralizedFeatures, activation="squared_relu"),
    "elu": of(GeneralizedFeatures, activation="elu"),
    "softplus": of(GeneralizedFeatures, activation="softplus"),
    "sigmoid": of(GeneralizedFeatures, activation="sigmoid"),
    "exp": of(GeneralizedFeatures, activation="exp"),
}
# Statistics of a segment are no constants to finite differences, and causal attention may not see them.
STATISTICS = [name for name in MAPS if name.split()[0] in ("optimal", "dense") or "centred" in name]
CAUSAL = [(name, causal) for name in MAPS for causal in (False, True) if not (causal and name in STATISTICS)]


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    # several chunks per segment, and several segments per chunk, at tiny shapes
    monkeypatch.setattr(favor_chunked, "chunk_length", lambda heads, features: 6)
    monkeypatch.setattr(favor_chunked, "STABILISED_CHUNK", 3)
    monkeypatch.setattr(favor_causal, "BLOCK", 2)


def make(name: str, causal: bool, heads: int = 2, dim: int = 4) -> FavorAttention:
    attention = FavorAttention(num_heads=heads, head_dim=dim, features=MAPS[name], causal=causal)
    attention.redraw_(projection_generator(0, 0, 0))
    return attention.double()


def packed(lengths: list[int], scale: float = 0.7, heads: int = 2, dim: int = 4, seed: int = 0):
    generator = torch.Generator().manual_seed(seed)
    total = sum(lengths)
    q, k, v = (torch.randn(total, heads, dim, generator=generator, dtype=torch.float64) * scale for _ in range(3))
    cu = torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)
    return q, k, v, cu


def direct(attention: FavorAttention, q, k, v, cu) -> torch.Tensor:
    outs = []
    for a, b in zip(cu[:-1].tolist(), cu[1:].tolist(), strict=True):
        phi_q, phi_k = attention.features(q[a:b], k[a:b])
        weights = torch.einsum("thm,shm->hts", phi_q, phi_k)
        if attention.causal:
            weights = weights.tril()
        weights = weights / weights.sum(-1, keepdim=True)
        outs.append(torch.einsum("hts,shd->thd", weights, v[a:b]))
    return torch.cat(outs)


@pytest.mark.parametrize(("name", "causal"), CAUSAL)
def test_operator_equals_the_direct_formula_with_its_gradient(name, causal):
    attention = make(name, causal)
    q, k, v, cu = packed([1, 9, 4, 2, 11])
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out = attention(*leaves, cu)
    reference_leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    reference = direct(attention, reference_leaves[0], reference_leaves[1], reference_leaves[2], cu)
    torch.testing.assert_close(out, reference, rtol=1e-9, atol=1e-10)
    weight = torch.randn(out.shape, generator=torch.Generator().manual_seed(1), dtype=out.dtype)
    grads = torch.autograd.grad((out * weight).sum(), leaves)
    reference_grads = torch.autograd.grad((reference * weight).sum(), reference_leaves)
    for grad, expected in zip(grads, reference_grads, strict=True):
        torch.testing.assert_close(grad, expected, rtol=1e-7, atol=1e-8)


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("name", [name for name in MAPS if name not in STATISTICS])
def test_gradcheck(name, causal):
    attention = make(name, causal, heads=1, dim=3)
    q, k, v, cu = packed([4, 1], heads=1, dim=3)
    assert torch.autograd.gradcheck(
        lambda *x: attention(*x, cu), [x.requires_grad_() for x in (q, k, v)], eps=1e-6, atol=1e-6
    )


@pytest.mark.parametrize("causal", [False, True])
def test_opcheck(causal):
    attention = make("positive", causal)
    q, k, v, cu = packed([5, 3])
    args = [x.requires_grad_() for x in (q, k, v)]
    torch.library.opcheck(
        torch.ops.protformer.favor.default,
        (*args, cu, attention.features.projection, *(None,) * 5, "exponential", 0.0, 1.0, causal, 0),
        test_utils=("test_schema", "test_autograd_registration", "test_faketensor", "test_aot_dispatch_dynamic"),
    )


@pytest.mark.parametrize(("name", "causal"), [*CAUSAL, ("exact", False), ("exact", True)])
def test_a_sequence_gives_the_same_output_alone_packed_and_anywhere_in_the_pack(name, causal):
    attention = ExactAttention(num_heads=2, head_dim=4, causal=causal) if name == "exact" else make(name, causal)
    lengths = [3, 8, 1, 6]
    q, k, v, cu = packed(lengths)
    together = attention(q, k, v, cu)
    order = [2, 0, 3, 1]
    pieces = [slice(int(cu[i]), int(cu[i + 1])) for i in range(len(lengths))]
    for i, piece in enumerate(pieces):
        alone = attention(q[piece], k[piece], v[piece], torch.tensor([0, lengths[i]], dtype=torch.int32))
        torch.testing.assert_close(alone, together[piece], rtol=1e-12, atol=1e-12)
    shuffled = [torch.cat([x[pieces[i]] for i in order]) for x in (q, k, v)]
    new_cu = torch.tensor([0, *torch.tensor([lengths[i] for i in order]).cumsum(0).tolist()], dtype=torch.int32)
    again = attention(*shuffled, new_cu)
    torch.testing.assert_close(again, torch.cat([together[pieces[i]] for i in order]), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", [name for name, causal in CAUSAL if causal])
def test_causal_rows_equal_bidirectional_on_each_prefix(name):
    causal, bidirectional = make(name, True), make(name, False)
    q, k, v, cu = packed([10])
    out = causal(q, k, v, cu)
    for t in range(10):
        prefix = bidirectional(q[: t + 1], k[: t + 1], v[: t + 1], torch.tensor([0, t + 1], dtype=torch.int32))
        torch.testing.assert_close(out[t], prefix[-1], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", [*(name for name, causal in CAUSAL if causal), "exact"])
def test_no_leak_from_the_future(name):
    attention = ExactAttention(num_heads=2, head_dim=4, causal=True) if name == "exact" else make(name, True)
    q, k, v, cu = packed([10])
    leaves = [x.requires_grad_() for x in (q, k, v)]
    out = attention(*leaves, cu)
    for t in (0, 4, 8):
        for grad in torch.autograd.grad(out[t].sum(), leaves, retain_graph=True):
            assert torch.count_nonzero(grad[t + 1 :]) == 0
    # nor in numbers: a huge key later on changes no earlier row (another scale may round differently)
    with torch.no_grad():
        spoiled = k.clone()
        spoiled[7] *= 1e3
        torch.testing.assert_close(attention(q, spoiled, v, cu)[:7], attention(q, k, v, cu)[:7], rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("causal", [False, True])
def test_many_features_approach_exact_attention(causal):
    q, k, v, cu = packed([24], scale=0.5)
    errors = []
    exact = ExactAttention(num_heads=2, head_dim=4, causal=causal)(q, k, v, cu)
    for num_features in (64, 16384):
        attention = FavorAttention(
            num_heads=2,
            head_dim=4,
            features=lambda num_features=num_features, **shape: PositiveFeatures(num_features=num_features, **shape),
            causal=causal,
        )
        attention.redraw_(projection_generator(3, 0, 0))
        errors.append((attention(q, k, v, cu) - exact).square().mean().sqrt().item())
    assert errors[1] < 0.02 * exact.std().item()
    assert errors[1] < errors[0] / 4


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("norm", [1e-3, 1.0, 30.0, 1e4])
@pytest.mark.parametrize(("name", "causal"), CAUSAL)
def test_no_norm_gives_nan_or_inf(name, norm, causal, dtype):
    attention = make(name, causal).float()
    q, k, v, cu = packed([1, 9, 5])
    q, k = (x / x.norm(dim=-1, keepdim=True) * norm for x in (q, k))
    leaves = [x.to(dtype).requires_grad_() for x in (q, k, v)]
    out = attention(*leaves, cu)
    assert out.isfinite().all()
    out.float().square().sum().backward()
    assert all(x.grad is not None and x.grad.isfinite().all() for x in leaves)


@pytest.mark.parametrize("name", ["positive", "hyperbolic", "regularized", "optimal", "dense centred", "relu", "exp"])
def test_equal_keys_give_the_mean_value_and_one_token_gives_itself(name):
    attention = make(name, False)
    q, k, v, cu = packed([1, 8])
    k = k[:1].expand(9, -1, -1)
    out = attention(q, k, v, cu)
    torch.testing.assert_close(out[:1], v[:1])
    torch.testing.assert_close(out[1:], v[1:].mean(0).expand(8, -1, -1))


@pytest.mark.parametrize("name", [name for name in MAPS if name not in ("trigonometric", "cosine")])
def test_shift_of_all_values_shifts_the_output(name):
    attention = make(name, False)
    q, k, v, cu = packed([6, 7])
    torch.testing.assert_close(attention(q, k, v + 3.0, cu), attention(q, k, v, cu) + 3.0)


def test_bf16_stays_near_float64():
    attention = make("positive", False, dim=16)
    q, k, v, cu = packed([300], scale=1.5, dim=16)
    low = [x.bfloat16() for x in (q, k, v)]
    reference = attention(*(x.double() for x in low), cu)
    error = (attention.float()(*low, cu).double() - reference).abs().max()
    assert error < 2**-8 * v.abs().max()  # the rounding of the output, not of logits


def test_an_empty_pack_and_an_empty_segment_are_allowed():
    attention = make("positive", False)
    q, k, v, _ = packed([4])
    with_empty = attention(q, k, v, torch.tensor([0, 0, 4, 4], dtype=torch.int32))
    torch.testing.assert_close(with_empty, attention(q, k, v, torch.tensor([0, 4], dtype=torch.int32)))
    assert attention(q[:0], k[:0], v[:0], torch.tensor([0], dtype=torch.int32)).shape == (0, 2, 4)


def test_config_rebuilds_the_same_attention():
    from protformer.attention import factory_from_config

    for name, causal in CAUSAL:
        attention = make(name, causal)
        again = factory_from_config(attention.config())(num_heads=2, head_dim=4)
        assert again.config() == attention.config()
        assert isinstance(again, FavorAttention)
        assert again.features.projection.shape == attention.features.projection.shape
    with pytest.raises(ValueError, match="unknown attention"):
        factory_from_config({"name": "os.system"})
