"""Figures of sampled rows: the direct formula's, known values where features are planted, and finite for any norm."""

import math

import pytest
import torch
from test_favor import MAPS, of

from protformer.attention import FavorAttention, diagnostics
from protformer.attention.diagnostics import RowFigures, row_figures
from protformer.features import (
    GeneralizedFeatures,
    OptimalPositiveFeatures,
    PositiveFeatures,
    TrigonometricFeatures,
    projection_generator,
)

HEADS, DIM = 2, 4
CU = torch.tensor([0, 1, 12, 12, 20], dtype=torch.int32)
NEEDS_FUTURE = ("optimal", "dense")


def attention(make, *, causal: bool = False, heads: int = HEADS, dim: int = DIM) -> FavorAttention:
    favor = FavorAttention(num_heads=heads, head_dim=dim, features=make, causal=causal)
    favor.redraw_(projection_generator(0, 0, 0))
    return favor.eval()


def inputs(size: float = 1.0, total: int = 20, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    query, key = torch.randn(2, total, HEADS, DIM, generator=generator, dtype=torch.float64) * size
    return query, key


def look(favor: FavorAttention, query, key, rows: list[int], cu: torch.Tensor = CU, pairs: int = 3) -> RowFigures:
    picks = torch.rand(20, pairs, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    chosen = torch.tensor(rows)
    return row_figures(favor, query, key, cu, chosen, picks[chosen])


def causal_maps() -> list[str]:
    return [name for name in MAPS if not (name.startswith(NEEDS_FUTURE) or "centred" in name)]


@pytest.mark.parametrize(
    ("name", "causal"), [(name, False) for name in MAPS] + [(name, True) for name in causal_maps()]
)
def test_figures_are_those_of_the_direct_formula(name, causal):
    favor = attention(MAPS[name], causal=causal)
    query, key = inputs()
    figures = look(favor, query, key, [0, 3, 11, 12, 19])
    for place, row in enumerate([0, 3, 11, 12, 19]):
        start, stop = next((a, b) for a, b in [(0, 1), (1, 12), (12, 20)] if a <= row < b)
        whole_query, whole_key = favor.features(query[start:stop], key[start:stop])
        seen = row - start + 1 if causal else stop - start
        for head in range(HEADS):
            contributions = whole_query[row - start, head] * whole_key[:seen, head]  # [seen, features]
            kernel = contributions.sum(dim=1)
            weights = kernel / kernel.sum()
            exact = torch.softmax(key[start : start + seen, head] @ query[row, head] / math.sqrt(DIM), dim=0)
            shares = contributions.sum(dim=0) / kernel.sum()
            expected = {
                "distance": 0.5 * (weights - exact).abs().sum(),
                "distance_uniform": 0.5 * (exact - 1 / seen).abs().sum(),
                "effective_features": 1 / shares.square().sum(),
                "negative_share": (weights < 0).double().mean(),
            }
            for figure, value in expected.items():
                torch.testing.assert_close(getattr(figures, figure)[head, place], value, rtol=1e-9, atol=1e-12)


def test_pairs_are_of_keys_that_the_row_sees():
    query, key = inputs()
    for causal in (False, True):
        z2 = look(attention(MAPS["positive"], causal=causal), query, key, [5], pairs=200).z2[0, 0]
        seen = key[1:6, 0] if causal else key[1:12, 0]
        possible = (query[5, 0] + seen).square().sum(dim=1) / math.sqrt(DIM)
        found = (z2[:, None] - possible[None, :]).abs().argmin(dim=1)
        assert (z2 - possible[found]).abs().max() < 1e-12
        assert set(found.tolist()) == set(range(len(possible)))


def test_the_distance_of_many_features_goes_to_zero():
    query, key = inputs(0.5)
    means = []
    for num_features in (16, 256, 4096):
        favor = attention(of(PositiveFeatures, num_features=num_features))
        distances = []
        for draw in range(16):
            favor.redraw_(projection_generator(0, 0, draw))
            distances.append(float(look(favor, query, key, list(range(1, 20))).distance.mean()))
        means.append(sum(distances) / 16)
    # as 1/sqrt(features): four times less each time
    assert 3 < means[0] / means[1] < 5
    assert 3 < means[1] / means[2] < 5
    assert means[2] < 0.01


def test_a_map_that_estimates_another_kernel_keeps_its_distance():
    query, key = inputs(1.5)
    figures = look(attention(of(GeneralizedFeatures, num_features=4096)), query, key, list(range(1, 20)))
    assert float(figures.distance.mean()) > 0.1


def test_uniform_is_the_floor():
    _, key = inputs()
    flat = look(attention(MAPS["positive"]), torch.zeros_like(key), key, [3, 19])
    assert flat.distance_uniform.abs().max() < 1e-12
    sharp = look(attention(MAPS["positive"]), key * 1e4, key, [3, 19])
    torch.testing.assert_close(sharp.distance_uniform[0], torch.tensor([10 / 11, 7 / 8], dtype=torch.float64))


def planted(make, rows: list[list[float]]) -> FavorAttention:
    favor = attention(make, heads=1, dim=2)
    favor.features.projection.copy_(torch.tensor([rows]))
    return favor


def pack_of_one(*points: list[float]) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor(points, dtype=torch.float64)[:, None, :], torch.tensor([0, len(points)], dtype=torch.int32)


def test_planted_features_are_counted():
    points, cu = pack_of_one([0.0, 0.0], [0.0, 0.0], [0.0, 0.0], [0.0, 0.0])
    equal = look(planted(of(PositiveFeatures, num_features=5), [[1.0, 2.0]] * 5), points, points, [0], cu)
    assert float(equal.effective_features) == pytest.approx(5)  # all features are 1
    assert float(equal.log10_denominator) == pytest.approx(math.log10(5 * 4))
    assert float(equal.distance) == pytest.approx(0, abs=1e-15)
    points, cu = pack_of_one([20.0, 0.0], [20.0, 0.0])
    lone = look(planted(of(PositiveFeatures, num_features=3), [[1.0, 0], [0, 1.0], [-1.0, 0]]), points, points, [0], cu)
    assert float(lone.effective_features) == pytest.approx(1)
    assert float(lone.log10_denominator) == pytest.approx(math.log10(2))
    assert lone.z2.flatten().tolist() == pytest.approx([1600 / math.sqrt(2)] * 3)


def test_signed_maps_show_their_negative_weights():
    # one direction, a query at 0 and keys where its cosine is 1, 1, 1 and -1: weights (1, 1, 1, -1) / 2
    key, cu = pack_of_one([0.0, 0.0], [0.0, 1.0], [0.0, 2.0], [math.pi, 0.0])
    favor = planted(of(TrigonometricFeatures, num_features=2, kernel="gaussian"), [[1.0, 0.0]])
    figures = look(favor, torch.zeros_like(key), key, [0, 2], cu)
    for name, value in {
        "negative_share": 0.25,
        "distance": 0.75,
        "distance_uniform": 0.0,
        "effective_features": 1.0,
        "log10_denominator": math.log10(2),
    }.items():
        torch.testing.assert_close(getattr(figures, name), torch.full((1, 2), value, dtype=torch.float64))
    assert "negative_share" in figures.summary(signed=True)
    assert "negative_share" not in figures.summary(signed=False)


@pytest.mark.parametrize("causal", [False, True])
def test_a_row_has_the_figures_that_it_has_alone(causal):
    favor = attention(of(OptimalPositiveFeatures) if not causal else MAPS["positive"], causal=causal)
    query, key = inputs()
    packed = look(favor, query, key, [12, 4, 15, 14])
    stop = 16 if causal else 20
    picks = torch.rand(20, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    cu = torch.tensor([0, stop - 12], dtype=torch.int32)
    alone = row_figures(favor, query[12:stop], key[12:stop], cu, torch.tensor([3]), picks[15:16])
    torch.testing.assert_close(alone.table()[:, 0], packed.table()[:, 2], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", causal_maps())
def test_causal_rows_together_have_the_figures_of_rows_one_by_one(name, monkeypatch):
    favor = attention(MAPS[name], causal=True)
    query, key = inputs(3.0)
    together = look(favor, query, key, list(range(20)))
    monkeypatch.setattr(diagnostics, "SPREAD", 0.0)  # halves, until stabilisers are equal
    one_by_one = look(favor, query, key, list(range(20))).table()
    torch.testing.assert_close(together.table(), one_by_one, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("size", [1e-3, 1e2, 1e4])
@pytest.mark.parametrize("causal", [False, True])
def test_inputs_of_any_size_give_finite_figures(size, causal):
    for name in causal_maps() if causal else MAPS:
        favor = attention(MAPS[name], causal=causal)
        query, key = inputs(size)
        key[13] *= 100.0  # earlier causal rows see far smaller keys
        figures = look(favor, query.float(), key.float(), list(range(20)))
        assert figures.table().isfinite().all(), name
        if favor.features.family_name == "exponential":
            assert figures.log10_denominator.min() > -1e-9, name
        if not favor.features.family.signed:
            assert figures.distance.min() > -1e-12
            assert figures.distance.max() < 1 + 1e-9, name
            assert figures.effective_features.min() > 1 - 1e-9, name


def test_a_table_holds_all_figures():
    figures = look(attention(MAPS["positive"]), *inputs(), [3, 5])
    for name, value in RowFigures.of_table(figures.table())._asdict().items():
        assert torch.equal(value, getattr(figures, name)), name
    summary = figures.summary(signed=False)
    assert summary["z2_p95"].shape == (HEADS,)
    assert float(summary["z2_p95"][1]) == pytest.approx(float(figures.z2[1].flatten().quantile(0.95)))
    assert float(summary["log10_denominator_min"][0]) == float(figures.log10_denominator[0].min())
