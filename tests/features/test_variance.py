"""The variance of the estimators: the papers' formulas, who is below whom, and how it falls with the features."""

import math

import pytest
import torch
from estimation import (
    SIGMAS,
    deviation,
    drawn,
    estimates,
    excess,
    kernel_of,
    make,
    mean_and_error,
    on_all_heads,
    pairs,
    skewed_pairs,
    softmax_kernel,
)
from test_estimators import ADAPTIVE, IID_OR_ORTHOGONAL, UNBIASED
from torch import Tensor

from protformer.features import (
    Adaptation,
    CosineFeatures,
    DenseFeatures,
    FeatureMap,
    HyperbolicFeatures,
    OptimalPositiveFeatures,
    PositiveFeatures,
    TrigonometricFeatures,
)

# (the Gaussian kernel's estimates are the softmax kernel's times a number)
ORTHOGONAL = [entry for entry in UNBIASED if entry[1]["orthogonal_rows"] and "kernel" not in entry[1]]


def squared_errors(feature_map: FeatureMap, x: Tensor, y: Tensor) -> Tensor:
    """Squared errors relative to the kernel `[draws, pairs]`."""
    return (estimates(feature_map, x, y) / kernel_of(feature_map, x, y) - 1.0).square()


def mean_squared_errors(feature_map: FeatureMap, x: Tensor, y: Tensor) -> Tensor:
    """The mean of them over the pairs `[draws, 1]`."""
    return squared_errors(feature_map, x, y).mean(dim=1, keepdim=True)


def adaptation_to(feature_map: FeatureMap, x: Tensor, y: Tensor) -> Adaptation:
    offsets = torch.tensor([0, len(x)], dtype=torch.int32)
    return feature_map.adapt(on_all_heads(feature_map, x), on_all_heads(feature_map, y), offsets)


def exponent_of(feature_map: FeatureMap, x: Tensor, y: Tensor) -> float:
    """A of the optimal positive features for these pairs, from what the operator is told: norm_scale = 1 / (1 - 4A)."""
    norm_scale = adaptation_to(feature_map, x, y).norm_scale
    assert norm_scale is not None
    return 0.25 * (1.0 - 1.0 / float(norm_scale[0, 0]))


def relative_error_of_one_row(z2: Tensor, exponent: float, dim: int) -> Tensor:
    """E[(estimate / kernel - 1)^2] of optimal positive features with one iid row, for |x + y - c|^2 = z2 and A < 1/8.

    The estimate over the kernel is D^2 exp(2A|w|^2 + B w.z - |z|^2 / 2); its square has a Gaussian integral:
    E = (1 - 4A)^d (1 - 8A)^(-d/2) exp(2 (1 - 4A) / (1 - 8A) |z|^2 - |z|^2), which is e^{|z|^2} at A = 0.
    """
    b2, wide = 1.0 - 4.0 * exponent, 1.0 - 8.0 * exponent
    return (b2**dim) * wide ** (-dim / 2) * ((2.0 * b2 / wide - 1.0) * z2).exp() - 1.0


@pytest.mark.parametrize("num_features", [4, 32])
@pytest.mark.parametrize("map_class", [*IID_OR_ORTHOGONAL, CosineFeatures])
def test_mean_squared_error_of_independent_rows(map_class, num_features):
    dim = 6
    x, y = pairs(dim, count=5, squared_norm_of_sum=0.6)
    z2, difference2 = (x + y).square().sum(1), (x - y).square().sum(1)
    norms = (x.square().sum(1) + y.square().sum(1)).exp() / softmax_kernel(x, y).square()
    positive = z2.exp() * (1 - (-z2).exp())
    expected = {
        PositiveFeatures: positive,
        HyperbolicFeatures: 0.5 * (1 - (-z2).exp()) * positive,
        TrigonometricFeatures: 0.5 * norms * (1 - (-difference2).exp()).square(),
        # 2 cos(w.x + b) cos(w.y + b) = cos(w.(x - y)) + cos(w.(x + y) + 2b), uncorrelated; the second has E = 0
        CosineFeatures: norms * (1 + 0.5 * (-2 * difference2).exp() - (-difference2).exp()),
    }[map_class] / (num_features if map_class in (PositiveFeatures, CosineFeatures) else num_features // 2)
    feature_map = drawn(map_class, num_features, dim, draws=2500, orthogonal_rows=False)
    assert deviation(squared_errors(feature_map, x, y), expected).abs().max() < SIGMAS


@pytest.mark.parametrize("kernel", ["softmax", "gaussian"])
@pytest.mark.parametrize("centred", [False, True])
@pytest.mark.parametrize("map_class", [PositiveFeatures, OptimalPositiveFeatures])
def test_mean_squared_error_of_centred_and_optimal_features(map_class, centred, kernel):
    dim, num_features = 6, 16
    x, y = skewed_pairs(dim, count=12, spread=0.4)
    options = {"centred": centred, "kernel": kernel, "orthogonal_rows": False}
    feature_map = drawn(map_class, num_features, dim, draws=2500, **options)
    exponent = exponent_of(feature_map, x, y) if map_class is OptimalPositiveFeatures else 0.0
    centre = (x + y).mean(dim=0) if centred else 0.0
    expected = relative_error_of_one_row((x + y - centre).square().sum(1), exponent, dim) / num_features
    assert deviation(squared_errors(feature_map, x, y), expected).abs().max() < SIGMAS


@pytest.mark.parametrize("options", [{}, {"centred": True}])
@pytest.mark.parametrize(("spread", "mean"), [(0.01, 0.0), (0.6, 0.4), (5.0, 0.1), (300.0, 3.0)])
def test_the_exponent_has_the_least_variance(options, spread, mean):
    # arXiv 2205.15317, theorem 3.3: it minimises the mean over pairs of the log of E[estimate^2]
    dim, count = 6, 40
    generator = torch.Generator().manual_seed(4)
    x, y = torch.randn(2, count, dim, generator=generator, dtype=torch.float64) * math.sqrt(spread / dim / 2)
    x = x + mean
    feature_map = drawn(OptimalPositiveFeatures, 8, dim, draws=1, **options)
    centre = x.mean(0) + y.mean(0) if options else 0.0
    # all pairs, as in attention
    z2 = (x[:, None] + y[None, :] - centre).square().sum(dim=2).flatten()

    def mean_log(exponent: float) -> float:
        return float((relative_error_of_one_row(z2, exponent, dim) + 1.0).log().mean())

    exponent = exponent_of(feature_map, x, y)
    assert exponent < 0.0
    least = mean_log(exponent)
    ratios = torch.cat([torch.logspace(-2, 2, 41), torch.tensor([0.99, 1.01])]).tolist()
    for other in (*(exponent * ratio for ratio in ratios), 0.0, 0.01, 0.1):
        assert least <= mean_log(other) + 1e-12
    # and it is a minimum, no edge of the grid
    assert min(mean_log(exponent * 0.9), mean_log(exponent * 1.1)) > least


@pytest.mark.parametrize(("map_class", "options"), ORTHOGONAL)
def test_orthogonal_rows_are_never_worse(map_class, options):
    dim = num_features = 8
    x, y = pairs(dim, count=5, squared_norm_of_sum=1.2)
    ours, theirs = (
        squared_errors(drawn(map_class, num_features, dim, 1500, seed, **{**options, "orthogonal_rows": choice}), x, y)
        for seed, choice in enumerate((True, False))
    )
    assert excess(ours, theirs).max() < SIGMAS
    assert ours.mean() < theirs.mean()


def test_orthogonal_positive_features_keep_their_bound():
    # arXiv 2009.14794, theorem 2: MSE <= MSE_+ - 2 (m - 1) / (m (d + 2)) (SM - exp(-(|x|^2 + |y|^2) / 2))^2
    dim = num_features = 8
    x, y = pairs(dim, count=5, squared_norm_of_sum=1.5)
    z2 = (x + y).square().sum(1)
    independent = z2.exp() * (1 - (-z2).exp()) / num_features
    bound = independent - 2 * (num_features - 1) / (num_features * (dim + 2)) * (1 - (-0.5 * z2).exp()).square()
    assert deviation(squared_errors(drawn(PositiveFeatures, num_features, dim, 3000), x, y), bound).max() < SIGMAS


@pytest.mark.parametrize(("map_class", "options"), ORTHOGONAL)
def test_error_falls_as_the_square_root_of_the_features(map_class, options):
    dim = 4
    x, y = pairs(dim, count=8, squared_norm_of_sum=0.8)
    few, many = 16, 128  # whole blocks both: m^-1/2 is exact there
    mean, error = {}, {}
    for num_features in (few, many):
        feature_map = drawn(map_class, num_features, dim, draws=500, **options)
        mean[num_features], error[num_features] = mean_and_error(mean_squared_errors(feature_map, x, y))
    octaves = 2.0 * math.log(many / few)
    slope = (mean[many] / mean[few]).log() / octaves
    slope_error = ((error[many] / mean[many]).square() + (error[few] / mean[few]).square()).sqrt() / octaves
    assert ((slope + 0.5) / slope_error).abs() < SIGMAS
    assert slope_error < 0.035  # the law has power: an m^-0.35 would fail


@pytest.mark.parametrize(
    ("below", "above"),
    [
        # FAVOR++ below FAVOR+, antithetic pairs below both signs apart, feature for feature
        ((OptimalPositiveFeatures, {}), (PositiveFeatures, {})),
        ((OptimalPositiveFeatures, {"centred": True}), (PositiveFeatures, {"centred": True})),
        ((OptimalPositiveFeatures, {"kernel": "gaussian"}), (PositiveFeatures, {"kernel": "gaussian"})),
        ((HyperbolicFeatures, {}), (PositiveFeatures, {})),
        # the inputs of `skewed_pairs` have means, and are unbalanced
        ((PositiveFeatures, {"centred": True}), (PositiveFeatures, {})),
        ((HyperbolicFeatures, {"centred": True}), (HyperbolicFeatures, {})),
        ((OptimalPositiveFeatures, {"centred": True}), (OptimalPositiveFeatures, {})),
        ((DenseFeatures, {"centred": True}), (DenseFeatures, {})),
        ((DenseFeatures, {}), (OptimalPositiveFeatures, {})),
        ((DenseFeatures, {"centred": True}), (OptimalPositiveFeatures, {"centred": True})),
        # one cosine a direction, with a phase, or a cosine and a sine
        ((TrigonometricFeatures, {}), (CosineFeatures, {})),
        ((TrigonometricFeatures, {"kernel": "gaussian"}), (CosineFeatures, {"kernel": "gaussian"})),
    ],
)
def test_one_estimator_is_below_another(below, above):
    x, y = skewed_pairs(8, count=16, spread=0.3, mean=0.35)
    ours, theirs = (
        mean_squared_errors(drawn(map_class, 16, 8, draws=1500, seed=seed, **options), x, y)
        for seed, (map_class, options) in enumerate((below, above))
    )
    assert excess(ours, theirs) < -SIGMAS


@pytest.mark.parametrize("mean", [0.0, 3.0])
def test_balancing_takes_the_spread_down_on_every_input(mean):
    # what rules the variance is the mean of |x + y - c|^2, and P has the least of it: means that are taken off by
    # centring must not unbalance what is left
    for seed in range(20):
        x, y = skewed_pairs(5, count=30, mean=mean, ratio=3.0, seed=seed)
        exponents = {
            (map_class, centred): exponent_of(drawn(map_class, 8, 5, draws=1, centred=centred), x, y)
            for map_class in (DenseFeatures, OptimalPositiveFeatures)
            for centred in (False, True)
        }
        # A falls as the spread grows
        for centred in (False, True):
            assert exponents[DenseFeatures, centred] > exponents[OptimalPositiveFeatures, centred]
        for map_class in (DenseFeatures, OptimalPositiveFeatures):
            assert exponents[map_class, True] >= exponents[map_class, False] - 1e-12


@pytest.mark.parametrize(("map_class", "options"), [entry for entry in ADAPTIVE if entry[1]])
def test_centred_features_see_no_means(map_class, options):
    # estimate / kernel is the same whatever is added to all queries, and to all keys
    x, y = skewed_pairs(6, count=12, mean=0.0)
    feature_map = drawn(map_class, 16, 6, draws=4, **options)
    ours = estimates(feature_map, x, y) / softmax_kernel(x, y)
    generator = torch.Generator().manual_seed(9)
    a, b = torch.randn(2, 6, generator=generator, dtype=torch.float64)
    shifted = estimates(feature_map, x + a, y + b) / softmax_kernel(x + a, y + b)
    torch.testing.assert_close(shifted, ours, rtol=1e-9, atol=0.0)


def test_balance_has_its_formula_and_no_dimension_vanishes():
    x, y = skewed_pairs(6, count=12)
    x, y = x.clone(), y.clone()
    y[:, 2] = 0.0  # nothing to balance: queries must not be scaled to zero, nor keys without end
    adaptation = adaptation_to(drawn(DenseFeatures, 8, 6, draws=1), x, y)
    assert adaptation.query_scale is not None
    assert adaptation.key_scale is not None
    balance = (adaptation.query_scale / adaptation.key_scale).sqrt()[0, 0]
    expected = (y.square().sum(dim=0) / x.square().sum(dim=0)).pow(0.25)
    others = [0, 1, 3, 4, 5]
    torch.testing.assert_close(balance[others], expected[others])
    assert 0.05 < balance[2] < 1.0
    plain = adaptation_to(make(OptimalPositiveFeatures, 8, 6).double(), x, y)
    torch.testing.assert_close(plain.query_scale, plain.key_scale)
