"""What every feature map estimates, fixed seeds: a measured mean lies within standard errors of the kernel."""

import math

import pytest
import torch
from estimation import (
    SIGMAS,
    deviation,
    drawn,
    estimates,
    gaussian_kernel,
    kernel_of,
    make,
    on_all_heads,
    pairs,
    skewed_pairs,
    softmax_kernel,
)

from protformer.features import (
    AdaptiveFeatures,
    CosineFeatures,
    DenseFeatures,
    FeatureMap,
    GeneralizedFeatures,
    HyperbolicFeatures,
    OptimalPositiveFeatures,
    PositiveFeatures,
    RegularizedFeatures,
    TrigonometricFeatures,
    factory_from_config,
    projection_generator,
)

IID_OR_ORTHOGONAL = (PositiveFeatures, HyperbolicFeatures, TrigonometricFeatures)
# Maps that look at their inputs, and those that estimate a Gaussian kernel as well.
ADAPTIVE = [
    (PositiveFeatures, {"centred": True}),
    (HyperbolicFeatures, {"centred": True}),
    (OptimalPositiveFeatures, {}),
    (OptimalPositiveFeatures, {"centred": True}),
    (DenseFeatures, {}),
    (DenseFeatures, {"centred": True}),
]
GAUSSIAN = [
    *((map_class, {"kernel": "gaussian"}) for map_class in (*IID_OR_ORTHOGONAL, OptimalPositiveFeatures)),
    (OptimalPositiveFeatures, {"kernel": "gaussian", "centred": True}),
    (CosineFeatures, {"kernel": "gaussian"}),
]
# Every map that estimates its kernel without bias, and how it is made: a new one is one line here.
UNBIASED = [
    *((map_class, {"orthogonal_rows": choice}) for map_class in IID_OR_ORTHOGONAL for choice in (True, False)),
    *((CosineFeatures, {"orthogonal_rows": choice}) for choice in (True, False)),
    *(
        (map_class, {**options, "orthogonal_rows": choice})
        for map_class, options in ADAPTIVE
        for choice in (True, False)
    ),
    *(
        (map_class, {**options, "orthogonal_rows": choice})
        for map_class, options in GAUSSIAN
        for choice in (True, False)
    ),
]
BIASED = (RegularizedFeatures, GeneralizedFeatures)
ALL_MAPS = (*dict.fromkeys(map_class for map_class, _ in UNBIASED), *BIASED)


@pytest.mark.parametrize(("map_class", "options"), UNBIASED)
@pytest.mark.parametrize(("num_features", "dim", "z2"), [(8, 4, 0.5), (10, 8, 1.5)])
def test_unbiased(map_class, options, num_features, dim, z2):
    x, y = pairs(dim, count=6, squared_norm_of_sum=z2)
    x, y = torch.cat([x, x[:1], x[:1]]), torch.cat([y, x[:1], -x[:1]])  # equal and opposite pairs too
    feature_map = drawn(map_class, num_features, dim, draws=700, **options)
    off = deviation(estimates(feature_map, x, y), kernel_of(feature_map, x, y))
    assert off.abs().max() < SIGMAS


@pytest.mark.parametrize(("map_class", "options"), UNBIASED)
def test_unbiased_where_queries_and_keys_have_means_and_differ_in_size(map_class, options):
    # maps that look at their inputs take their statistics from these very pairs
    x, y = skewed_pairs(6, count=12)
    feature_map = drawn(map_class, 16, 6, draws=700, **options)
    off = deviation(estimates(feature_map, x, y), kernel_of(feature_map, x, y))
    assert off.abs().max() < SIGMAS


@pytest.mark.parametrize(("map_class", "options"), ADAPTIVE)
def test_unbiased_whatever_the_statistics_came_from(map_class, options):
    # a moving average is of other inputs than those at hand
    feature_map = drawn(map_class, 16, 6, draws=700, statistics="moving", **options)
    others = skewed_pairs(6, count=10, spread=1.0, ratio=4.0, seed=8)
    query, key = (on_all_heads(feature_map, side) for side in others)
    feature_map.adapt(query, key, torch.tensor([0, 10], dtype=torch.int32))
    assert isinstance(feature_map, AdaptiveFeatures)
    assert feature_map.moving is not None
    feature_map.moving.update_()
    feature_map.eval()
    x, y = skewed_pairs(6, count=12)
    assert deviation(estimates(feature_map, x, y), softmax_kernel(x, y)).abs().max() < SIGMAS


@pytest.mark.parametrize("field", ["norm_scale", "tilt", "offset", "constant", "query_scale", "key_scale"])
def test_an_adaptation_that_lacks_one_of_its_parts_is_caught(field, monkeypatch):
    feature_map = drawn(DenseFeatures, 16, 6, draws=700, centred=True)
    whole = feature_map.adapt

    def without(*arguments):
        adaptation = whole(*arguments)
        return adaptation._replace(**{field: None})

    monkeypatch.setattr(feature_map, "adapt", without)
    x, y = skewed_pairs(6, count=12)
    assert deviation(estimates(feature_map, x, y), softmax_kernel(x, y)).abs().max() > 2 * SIGMAS


def all_ones_deviation() -> float:
    """The positive estimator of orthogonal blocks where it was seen to fail: |z|^2 = 4 along the all-ones direction."""
    dim, blocks = 8, 12_000
    half = torch.full((1, dim), 1.0 / math.sqrt(dim), dtype=torch.float64)  # x = y = z / 2
    # blocks of one draw are independent: a draw of many is many draws, without the calls
    rows = make(PositiveFeatures, dim * blocks, dim).draw(projection_generator(5, 0, 0)).view(blocks, dim, dim)
    per_block = (rows @ (2.0 * half[0]) - 1.0).exp().mean(dim=1)
    return float(deviation(per_block[:, None], softmax_kernel(half, half)))


def test_unbiased_along_the_all_ones_direction():
    assert abs(all_ones_deviation()) < SIGMAS


def test_the_planted_bug_is_caught(monkeypatch):
    # QR as LAPACK leaves it: without the signs of R's diagonal Q is not uniform
    monkeypatch.setattr(torch, "sign", torch.ones_like)
    assert all_ones_deviation() < -SIGMAS


@pytest.mark.parametrize(("map_class", "options"), GAUSSIAN)
def test_the_gaussian_kernel_is_the_softmax_kernel_without_the_norms(map_class, options):
    x, y = skewed_pairs(6, count=12)
    softmax = drawn(map_class, 8, 6, draws=3, **{**options, "kernel": "softmax"})
    gaussian = drawn(map_class, 8, 6, draws=3, **options)
    factor = (-0.5 * (x.square().sum(dim=1) + y.square().sum(dim=1))).exp()
    torch.testing.assert_close(estimates(gaussian, x, y), estimates(softmax, x, y) * factor)
    torch.testing.assert_close(gaussian_kernel(x, y), softmax_kernel(x, y) * factor)


@pytest.mark.parametrize("dim", [16, 64])
def test_regularised_kernel_is_biased_down_and_within_its_bound(dim):
    z2 = 6.0
    x, y = pairs(dim, count=4, squared_norm_of_sum=z2)
    # E exp(w.z) for w uniform on the sphere of radius sqrt(d) is 0F1(; d/2; d |z|^2 / 4)
    term, series = 1.0, 1.0
    for k in range(1, 200):
        term *= (dim * z2 / 4) / (k * (dim / 2 + k - 1))
        series += term
    ratio = series / math.exp(z2 / 2)
    assert 1 - 2 * dim ** (-1 / 3) <= ratio < 1  # arXiv 2009.14794, theorem 2
    kernel = softmax_kernel(x, y)
    samples = estimates(drawn(RegularizedFeatures, dim, dim, draws=1500), x, y)
    assert deviation(samples, ratio * kernel).abs().max() < SIGMAS
    assert deviation(samples.mean(dim=1, keepdim=True), kernel.mean()).max() < -SIGMAS


@pytest.mark.parametrize("activation", ["relu", "squared_relu", "exp"])
def test_generalised_features_estimate_the_kernel_of_their_activation(activation):
    # relu and its square: the arc-cosine kernels of degree 1 and 2 (Cho and Saul, NeurIPS 2009), halved; exp: E e^(w.z)
    x, y = pairs(6, count=6, squared_norm_of_sum=2.0)
    lengths = x.norm(dim=1) * y.norm(dim=1)
    cosine = (x * y).sum(dim=1) / lengths
    angle = cosine.acos()
    epsilon = 0.1
    shares = {
        "relu": (angle.sin() + (math.pi - angle) * cosine) * lengths / (2 * math.pi)
        + epsilon * (x.norm(dim=1) + y.norm(dim=1)) / math.sqrt(2 * math.pi)
        + epsilon**2,
        "squared_relu": (3 * angle.sin() * cosine + (math.pi - angle) * (1 + 2 * cosine.square()))
        * lengths.square()
        / (2 * math.pi)
        + epsilon * (x.square().sum(dim=1) + y.square().sum(dim=1)) / 2
        + epsilon**2,
        "exp": (0.5 * (x + y).square().sum(dim=1)).exp(),
    }
    feature_map = drawn(GeneralizedFeatures, 12, 6, draws=2500, activation=activation, epsilon=epsilon)
    assert feature_map.kernel is None
    assert deviation(estimates(feature_map, x, y), shares[activation]).abs().max() < SIGMAS


@pytest.mark.parametrize("activation", ["relu", "squared_relu", "elu", "softplus", "sigmoid", "exp"])
def test_without_a_projection_features_are_the_activation_of_the_inputs(activation):
    feature_map = make(GeneralizedFeatures, 99, 5, num_heads=2, activation=activation, project=False, per_head=True)
    feature_map.redraw_(projection_generator(0, 0, 0))
    assert feature_map.num_features == 5
    q, k = torch.randn(2, 4, 2, 5, generator=torch.Generator().manual_seed(0)).bfloat16().float()
    written = {
        "relu": lambda x: x.relu() + 1e-3,
        "squared_relu": lambda x: x.relu() ** 2 + 1e-3,
        "elu": lambda x: torch.nn.functional.elu(x) + 1.001,
        "softplus": lambda x: (1 + x.exp()).log() + 1e-3,
        "sigmoid": lambda x: 1 / (1 + (-x).exp()) + 1e-3,
        "exp": torch.exp,
    }[activation]
    for features, x in zip(feature_map(q, k), (q, k), strict=True):
        torch.testing.assert_close(features * 5**0.5, written(x))


def test_trigonometric_estimates_can_be_negative_and_positive_ones_cannot():
    x, y = pairs(4, count=8, squared_norm_of_sum=1.0)
    x, y = 2 * x, -2 * x
    for map_class in (TrigonometricFeatures, CosineFeatures):
        assert (estimates(drawn(map_class, 8, 4, draws=200), x, y) < 0).any()
    for map_class in (PositiveFeatures, HyperbolicFeatures, OptimalPositiveFeatures, DenseFeatures, *BIASED):
        assert (estimates(drawn(map_class, 8, 4, draws=200), x, y) > 0).all()


@pytest.mark.parametrize("map_class", [HyperbolicFeatures, TrigonometricFeatures])
def test_paired_features_refuse_an_odd_count(map_class):
    with pytest.raises(ValueError, match="even"):
        make(map_class, 7, 4)


@pytest.mark.parametrize(
    ("map_class", "options", "named"),
    [
        (OptimalPositiveFeatures, {"statistics": "moving", "momentum": 1.0}, "momentum"),
        (DenseFeatures, {"kernel": "gaussian"}, "softmax kernel only"),
        (GeneralizedFeatures, {"activation": "tanh"}, "tanh"),
        (GeneralizedFeatures, {"epsilon": 0.0}, "epsilon"),
    ],
)
def test_an_option_that_means_nothing_is_refused(map_class, options, named):
    with pytest.raises(ValueError, match=named):
        make(map_class, 8, 4, **options)


@pytest.mark.parametrize("map_class", ALL_MAPS)
def test_a_map_makes_as_many_features_as_it_says(map_class):
    x = torch.randn(3, 2, 8)
    feature_map = make(map_class, 12, 8, num_heads=2)
    assert feature_map(x, x)[0].shape == (3, 2, 12)


@pytest.mark.parametrize(
    ("map_class", "options"),
    [*UNBIASED, *((map_class, {}) for map_class in BIASED), (GeneralizedFeatures, {"project": False})],
)
def test_its_config_rebuilds_a_map(map_class, options):
    feature_map: FeatureMap = make(map_class, 12, 8, num_heads=2, per_head=True, **options)
    again = factory_from_config(feature_map.config())(num_heads=2, head_dim=8)
    assert type(again) is map_class
    assert again.config() == feature_map.config()
    again.load_state_dict(feature_map.state_dict())
    feature_map.redraw_(projection_generator(1, 0, 0))
    again.redraw_(projection_generator(1, 0, 0))
    x = torch.randn(3, 2, 8, generator=torch.Generator().manual_seed(0))
    for one, other in zip(feature_map(x, x), again(x, x), strict=True):
        assert torch.equal(one, other)
