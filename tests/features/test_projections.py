"""How projections are drawn and kept: their distribution, purity in (seed, layer, draw), and the buffers of a map."""

import math

import pytest
import torch
from estimation import SIGMAS, deviation, make
from test_estimators import ALL_MAPS

from protformer.features import (
    CosineFeatures,
    FeatureMap,
    GeneralizedFeatures,
    HyperbolicFeatures,
    PositiveFeatures,
    RegularizedFeatures,
    TrigonometricFeatures,
    gaussian,
    orthogonal,
    projection_generator,
)


@pytest.mark.parametrize("map_class", ALL_MAPS)
def test_a_draw_is_a_pure_function_of_seed_layer_and_number(map_class):
    feature_map = make(map_class, 12, 8)
    first = feature_map.draw(projection_generator(3, 2, 7))
    torch.manual_seed(99)  # the global generator has no say
    assert torch.equal(first, feature_map.draw(projection_generator(3, 2, 7)))
    for other in ((4, 2, 7), (3, 1, 7), (3, 3, 7), (3, 2, 6), (3, 2, 8), (2, 3, 7), (7, 2, 3)):
        assert not torch.isclose(first, feature_map.draw(projection_generator(*other))).any()


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("map_class", ALL_MAPS)
def test_all_buffers_are_a_pure_function_of_the_draw(map_class, per_head):
    # the phases of cosines too
    one, other = (make(map_class, 12, 8, num_heads=3, per_head=per_head) for _ in range(2))
    other.redraw_(projection_generator(9, 9, 9))  # what it held before has no say
    for feature_map in (one, other):
        feature_map.redraw_(projection_generator(3, 2, 7))
        torch.manual_seed(int(feature_map is one))
    before = {name: x.clone() for name, x in one.state_dict().items()}
    assert before.keys() == other.state_dict().keys()
    for name, x in other.state_dict().items():
        assert torch.equal(before[name], x), name
    one.redraw_(projection_generator(3, 2, 8))
    for name, x in one.state_dict().items():
        # (single numbers of eight bits can agree by chance)
        assert not (before[name] == x).all(dim=-1).any(), name


def test_draws_leave_the_global_generator_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    for map_class in (PositiveFeatures, CosineFeatures):
        make(map_class, 12, 8).redraw_(projection_generator(0, 0, 0))
    assert torch.equal(torch.rand(3), expected)


def test_draws_of_neighbouring_layers_and_numbers_are_unrelated():
    size = 4000
    streams = [
        gaussian(size, 1, projection_generator(0, layer, draw)).squeeze(1) for layer in range(4) for draw in range(4)
    ]
    correlations = torch.corrcoef(torch.stack(streams)) - torch.eye(len(streams), dtype=torch.float64)
    assert correlations.abs().max() * math.sqrt(size) < SIGMAS


@pytest.mark.parametrize("map_class", ALL_MAPS)
def test_redraw_keeps_the_buffer_and_forward_draws_nothing(map_class):
    feature_map = make(map_class, 12, 8)
    buffer, address = feature_map.projection, feature_map.projection.data_ptr()
    feature_map.redraw_(projection_generator(0, 0, 0))
    first = buffer.clone()
    x = torch.randn(3, 1, 8)
    one, two = feature_map(x, x), feature_map(x, x)
    assert torch.equal(one[0], two[0])
    assert torch.equal(first, feature_map.projection)
    feature_map.redraw_(projection_generator(0, 0, 1))
    assert feature_map.projection is buffer
    assert buffer.data_ptr() == address
    assert buffer.dtype == torch.float32
    assert not torch.equal(first, buffer)
    assert "projection" in feature_map.state_dict()


@pytest.mark.parametrize("map_class", ALL_MAPS)
def test_heads_share_a_projection_unless_each_has_its_own(map_class):
    heads, rows = 4, make(map_class, 12, 8).rows
    shared, own = (make(map_class, 12, 8, num_heads=heads, per_head=per_head) for per_head in (False, True))
    for feature_map in (shared, own):
        feature_map.redraw_(projection_generator(0, 0, 0))
    assert shared.projection.shape == (1, rows, 8)
    assert own.projection.shape == (heads, rows, 8)
    # the same inputs for every head: features are equal exactly where projections are
    x = torch.randn(5, 1, 8, generator=torch.Generator().manual_seed(0)).expand(-1, heads, -1)
    for features in shared(x, x):
        assert torch.equal(features, features[:, :1].expand(-1, heads, -1))
    for a in range(heads):
        for b in range(a):
            assert not (own.projection[a] == own.projection[b]).all(dim=1).any()
            for features in own(x, x):
                assert not torch.allclose(features[:, a], features[:, b])
    # two heads' rows are as unrelated as two draws: no direction of one block is shared
    many = make(map_class, 16, 64, num_heads=64, per_head=True)
    many.redraw_(projection_generator(1, 0, 0))
    directions = torch.nn.functional.normalize(many.projection[:, 0].double(), dim=1)
    cosines = (directions @ directions.T)[torch.ones(64, 64).triu(1).bool()]
    assert deviation(cosines[:, None], torch.tensor(0.0)).abs() < SIGMAS
    assert deviation(64.0 * cosines.square()[:, None], torch.tensor(1.0)).abs() < SIGMAS


def test_every_hyperbolic_row_comes_with_both_signs():
    feature_map = make(HyperbolicFeatures, 12, 8, num_heads=2, per_head=True)
    feature_map.redraw_(projection_generator(0, 0, 0))
    assert torch.equal(feature_map.projection[:, :6], -feature_map.projection[:, 6:])
    assert feature_map.projection.flatten(0, 1).unique(dim=0).shape[0] == 24


def test_phases_of_cosines_are_uniform_on_the_circle():
    feature_map = make(CosineFeatures, 4000, 4, num_heads=2, per_head=True)
    assert isinstance(feature_map, CosineFeatures)
    feature_map.redraw_(projection_generator(0, 0, 0))
    phase = feature_map.phase.double().flatten()
    assert phase.min() >= 0.0
    assert phase.max() <= 2 * math.pi + 1e-6
    for harmonic in (1, 2, 3):
        for wave in (torch.cos, torch.sin):
            assert deviation(wave(harmonic * phase)[:, None], torch.tensor(0.0)).abs() < SIGMAS


@pytest.mark.parametrize("per_head", [False, True])
@pytest.mark.parametrize("map_class", ALL_MAPS)
def test_projections_are_bf16_numbers(map_class, per_head):
    for dim in (6, 8, 64):  # dim^-1/4 is no power of two in the first: it is rounded as well
        feature_map = make(map_class, 32, dim, num_heads=2, per_head=per_head)
        feature_map.redraw_(projection_generator(0, 0, 0))
        assert torch.equal(feature_map.projection, feature_map.projection.bfloat16().float())
        assert feature_map.projection.abs().max() > 0


@pytest.mark.parametrize("map_class", [PositiveFeatures, HyperbolicFeatures, TrigonometricFeatures, CosineFeatures])
@pytest.mark.parametrize("orthogonal_rows", [True, False])
def test_rounding_leaves_the_distribution_of_rows(map_class, orthogonal_rows):
    # the mean of |w| is that of chi_d, of |w|^2 d; entries are N(0, 1)
    dim = 8
    feature_map = make(map_class, 2 * dim * 1500, dim, orthogonal_rows=orthogonal_rows)
    feature_map.redraw_(projection_generator(4, 0, 0))
    rows = feature_map.projection[0].double() / feature_map.scale
    if map_class is HyperbolicFeatures:  # the other half is the same rows with the other sign
        rows = rows[: len(rows) // 2]
    chi_mean = math.sqrt(2.0) * math.exp(math.lgamma((dim + 1) / 2) - math.lgamma(dim / 2))
    lengths = rows.norm(dim=1, keepdim=True)
    assert deviation(lengths, torch.tensor(chi_mean)).abs() < SIGMAS
    assert deviation(lengths.square(), torch.tensor(float(dim))).abs() < SIGMAS
    # entries of a row are independent, those of a block are not (their squares sum to a chi-squared in every row)
    for power, moment in ((1, 0.0), (2, 1.0), (4, 3.0)):
        assert deviation(rows.pow(power), torch.tensor(moment)).abs().max() < SIGMAS
    exact = orthogonal(16, dim, projection_generator(4, 0, 0)) * feature_map.scale
    rounded = exact.bfloat16().double()
    assert ((rounded / exact - 1).abs() <= 2.0**-8).all()


def test_regularised_rows_keep_their_norm_but_for_the_rounding():
    feature_map: FeatureMap = make(RegularizedFeatures, 64, 16)
    feature_map.redraw_(projection_generator(0, 0, 0))
    lengths = feature_map.projection[0].norm(dim=1) / feature_map.scale
    torch.testing.assert_close(lengths, torch.full((64,), 4.0), rtol=2.0**-9, atol=0.0)


def test_generalised_features_without_a_projection_draw_nothing():
    feature_map = make(GeneralizedFeatures, 99, 8, num_heads=2, project=False)
    for draw in (0, 1):
        feature_map.redraw_(projection_generator(0, 0, draw))
        assert torch.equal(feature_map.projection, torch.eye(8)[None])


@pytest.mark.parametrize("norms", ["chi", "sqrt_dim"])
def test_rows_are_orthogonal_within_a_block(norms):
    dim, blocks = 8, 500
    rows = orthogonal(dim * blocks, dim, projection_generator(1, 0, 0), norms=norms).view(blocks, dim, dim)
    gram = rows @ rows.transpose(1, 2)
    lengths = gram.diagonal(dim1=1, dim2=2)
    cosines = gram / (lengths[:, :, None] * lengths[:, None, :]).sqrt()
    assert (cosines - torch.eye(dim, dtype=torch.float64)).abs().max() < 1e-12
    if norms == "sqrt_dim":
        torch.testing.assert_close(lengths, torch.full_like(lengths, dim))
        return
    # squared chi norms: mean d, variance 2 d, independent within a block
    samples = lengths.reshape(-1, 1)
    assert deviation(samples, torch.tensor(float(dim))).abs() < SIGMAS
    assert deviation((samples - dim).square(), torch.tensor(2.0 * dim)).abs() < SIGMAS
    products = (lengths[:, :-1] - dim) * (lengths[:, 1:] - dim)
    assert deviation(products.reshape(-1, 1), torch.tensor(0.0)).abs() < SIGMAS


def test_each_orthogonal_row_is_marginally_standard_normal():
    dim, blocks = 4, 5000
    rows = orthogonal(dim * blocks, dim, projection_generator(2, 0, 0)).view(blocks, dim * dim)
    for power, moment in ((1, 0.0), (2, 1.0), (3, 0.0), (4, 3.0)):
        assert deviation(rows.pow(power), torch.tensor(moment)).abs().max() < SIGMAS
    # and isotropic: entries of one row are uncorrelated
    row = rows.view(blocks, dim, dim)[:, 0]
    assert deviation(row[:, :1] * row[:, 1:], torch.tensor(0.0)).abs().max() < SIGMAS
