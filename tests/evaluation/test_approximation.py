"""Errors of estimates are those of direct formulas; laws of the estimators are seen through the experiment."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from test_activations import exact_model

from protformer.attention import FavorAttention
from protformer.data.alphabet import TOKENS
from protformer.errors import ProtformerError
from protformer.evaluation.analysis import read_analysis
from protformer.evaluation.approximation import run
from protformer.evaluation.approximation.errors import Reference
from protformer.evaluation.approximation.estimators import estimator, looks_ahead
from protformer.evaluation.approximation.experiment import measure
from protformer.evaluation.approximation.intervals import mean_of, ratio_of
from protformer.evaluation.approximation.redraw import redrawn
from protformer.evaluation.approximation.samples import Place, Sample, random_samples
from protformer.evaluation.approximation.settings import Settings
from protformer.features import projection_generator
from protformer.model import save_model
from protformer.training.settings import JobSettings

CONF = Path(__file__).parents[2] / "conf"
PLACE = Place("synthetic", "planted")
SMALL = {"length": 24, "dim": 8, "scales": [0.5], "samples": 2, "features": [4, 8], "rows": 10, "redraws": 2,
         "redraw_features": 8}  # fmt: skip


def config(seed: int = 0, **changed: Any) -> dict[str, Any]:
    """The overlay's own settings, made small."""
    overlay = yaml.safe_load((CONF / "experiment" / "approximation_error.yaml").read_text())
    assert set(changed) <= set(overlay["approximation"])
    return {"seed": seed, "approximation": {**overlay["approximation"], **SMALL, **changed}}


def sample(length: int = 20, heads: int = 2, dim: int = 8, size: float = 1.0, causal: bool = False) -> Sample:
    generator = torch.Generator().manual_seed(0)
    query, key, value = torch.randn(3, length, heads, dim, generator=generator, dtype=torch.float64)
    return Sample(PLACE, 0, query * size, key * size, value, causal)


def drawn(name: str, like: Sample, num_features: int = 16, causal: bool = False) -> FavorAttention:
    _, heads, dim = like.query.shape
    estimate = estimator(name, "orthogonal", num_features, num_heads=heads, head_dim=dim, causal=causal)
    estimate.redraw_(projection_generator(0, 0, 0))
    return estimate


def softmax_rows(like: Sample) -> torch.Tensor:
    """`[heads, length, length]`"""
    query, key = like.query.transpose(0, 1), like.key.transpose(0, 1)
    logits = query @ key.transpose(1, 2) / math.sqrt(query.shape[2])
    if like.causal:
        logits = logits.masked_fill(torch.ones_like(logits).triu(1).bool(), -torch.inf)
    return logits.softmax(dim=2)


@pytest.mark.parametrize("causal", [False, True])
def test_errors_are_those_of_the_direct_formula(causal):
    given = sample(causal=causal)
    estimate = drawn("positive", given, causal=causal)
    phi_query, phi_key = (x.transpose(0, 1) for x in estimate.features(given.query, given.key))
    weights = phi_query @ phi_key.transpose(1, 2)
    weights = weights.tril() if causal else weights
    weights = weights / weights.sum(dim=2, keepdim=True)
    exact, values = softmax_rows(given), given.value.transpose(0, 1)
    wrong, right = weights @ values, exact @ values
    figures = Reference(given, rows=20, seed=0).figures(estimate)
    np.testing.assert_allclose(figures.output_error, (wrong - right).norm(dim=(1, 2)) / right.norm(dim=(1, 2)))
    np.testing.assert_allclose(figures.output_mse, (wrong - right).square().mean(dim=(1, 2)))
    np.testing.assert_allclose(figures.distance, 0.5 * (weights - exact).abs().sum(dim=2).mean(dim=1))


@pytest.mark.parametrize("causal", [False, True])
def test_uniform_attention_is_measured_right(causal):
    given = sample(causal=causal)
    figures, mean, high = Reference(given, rows=20, seed=0).of_uniform(drawn("positive", given, causal=causal))
    exact, values = softmax_rows(given), given.value.transpose(0, 1)
    even = (exact > 0).double()
    even = even / even.sum(dim=2, keepdim=True)
    wrong, right = even @ values, exact @ values
    np.testing.assert_allclose(figures.output_error, (wrong - right).norm(dim=(1, 2)) / right.norm(dim=(1, 2)))
    np.testing.assert_allclose(figures.distance, 0.5 * (even - exact).abs().sum(dim=2).mean(dim=1))
    assert 0 < mean < high


@pytest.mark.parametrize("name", ["positive", "hyperbolic", "trigonometric", "optimal", "dense", "positive-centred"])
def test_an_estimate_without_variance_has_no_error(name):
    given = sample(size=0.0)
    reference = Reference(given, rows=20, seed=0)
    figures = reference.figures(drawn(name, given))
    assert figures.output_error.max() < 1e-6
    assert figures.distance.max() < 1e-6
    error, mse = reference.errors(reference.exact)
    assert error.max() == mse.max() == 0.0


def test_centring_takes_means_off():
    given = sample(length=200, dim=8, size=0.3)
    shifted = given._replace(query=given.query + 1.0, key=given.key + 1.0)
    reference = Reference(shifted, rows=20, seed=0)
    plain, centred = (
        np.mean([reference.figures(_redrawn(drawn(name, shifted), draw)).distance.mean() for draw in range(10)])
        for name in ("positive", "positive-centred")
    )
    assert centred < 0.5 * plain


def _redrawn(estimate: FavorAttention, draw: int) -> FavorAttention:
    estimate.redraw_(projection_generator(0, 0, draw))
    return estimate


def test_orthogonal_rows_are_better_than_independent_ones():
    errors: dict[str, list[float]] = {"orthogonal": [], "iid": []}
    settings = Settings.of(config(samples=40, length=16))
    for given in random_samples(settings):
        reference = Reference(given, rows=1, seed=0)
        for projection, found in errors.items():
            # (the trigonometric features gain most; the law of each map is in tests/features)
            estimate = estimator("trigonometric", projection, 8, num_heads=1, head_dim=8, causal=False)
            found.append(float(reference.errors(reference.output(_redrawn(estimate, given.number)))[0][0]))
    ours, theirs = (np.array(found) for found in errors.values())
    assert ratio_of(ours, theirs).high < 1.0
    # an estimator against itself with other draws, so that the interval is known to be able to say otherwise
    nothing = ratio_of(ours, np.roll(ours, 1))
    assert nothing.low < 1.0 < nothing.high


def test_more_features_err_less_and_trigonometric_ones_most_where_inputs_are_large():
    methods = ["positive", "dense", "trigonometric"]
    changed = {"samples": 6, "length": 32, "scales": [1.0], "features": [4, 64], "projections": ["orthogonal"]}
    settings = Settings.of(config(methods=methods, **changed))
    rows = next(iter(measure(random_samples(settings), settings).values())).rows(redraw_features=8)
    errors = {
        (row["method"], row["m"]): row["distance"]
        for row in rows
        if row["part"] == "features" and row["projection"] == "orthogonal"
    }
    for method in ("performer-positive", "performer-dense"):
        assert errors[method, 64] < 0.8 * errors[method, 4]
        assert errors[method, 64] < errors["performer-trigonometric", 64]
    assert errors["uniform", 4] == errors["uniform", 64]


class Noisy(FavorAttention):
    """Softmax attention of its sample, `bias` more, and noise of this size by the draw."""

    def plan(self, exact: torch.Tensor, bias: float, noise: float) -> None:
        self.exact, self.bias, self.size = exact, bias, noise

    def redraw_(self, generator: torch.Generator) -> None:
        self.noise = torch.randn(self.exact.shape, generator=generator, dtype=torch.float64)

    def forward(self, query, key, value, cu_seqlens):
        return self.exact + self.bias + self.size * self.noise


@pytest.mark.parametrize(("bias", "noise"), [(0.0, 1.0), (0.5, 1.0), (0.5, 0.0)])
def test_redrawing_averages_out_noise_and_keeps_bias(bias, noise):
    given = sample(length=300)
    reference = Reference(given, rows=5, seed=0)
    noisy = Noisy(num_heads=2, head_dim=8, features=drawn("positive", given).features.__class__)
    noisy.plan(reference.exact, bias, noise)
    found = redrawn(reference, noisy.eval(), [projection_generator(1, 0, draw) for draw in range(16)])
    numbers, size = given.value.numel(), float(reference.exact.square().sum() / 2) ** 0.5
    # (per head, half of the numbers)
    expected = [math.sqrt((bias**2 + noise**2 / n) * numbers / 2) / size for n in (1, 2, 4, 8, 16)]
    np.testing.assert_allclose(found.errors, expected, rtol=0.06)
    # the mean of 16 x 4800 normal numbers, squared and summed: four standard errors
    assert found.bias_squared == pytest.approx(bias**2 * numbers, abs=4 * numbers**0.5 * noise * (0.2 + bias))
    assert found.squared_error == pytest.approx((bias**2 + noise**2) * numbers, rel=0.05)
    assert found.luckiest <= found.errors[0] * (1 + 1e-9)
    assert found.unluckiest >= found.errors[0] * (1 - 1e-9)


@pytest.mark.parametrize("samples", [3, 5])
def test_intervals_hold_the_truth_as_often_as_they_say(samples):
    generator = np.random.default_rng(0)
    found = (mean_of(20.0 + generator.standard_normal(samples)) for _ in range(2000))
    hits = sum(one.low < 20.0 < one.high for one in found)
    assert abs(hits / 2000 - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 2000)


def test_intervals_of_errors_stay_above_zero():
    heavy = mean_of([1.0, 1.0, 100.0])
    assert (heavy.mean, heavy.low) == (34.0, 1.0)
    assert math.isnan(mean_of([]).mean)
    assert math.isnan(mean_of([1.0, math.nan]).mean)
    half = ratio_of(np.array([1.0, 2.0, 4.0]), np.array([2.0, 4.0, 8.0]))
    assert half == pytest.approx((0.5, 0.5, 0.5))
    assert math.isnan(ratio_of(np.array([1.0, 2.0]), np.array([0.0, 1.0])).mean)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"methods": ["relu"]}, "no estimator of softmax attention"),
        ({"methods": ["trigonometric-centred"]}, "no estimator of softmax attention"),
        ({"methods": []}, "name one or more"),
        ({"features": [4, 7]}, "come in pairs and cannot be 7"),
        ({"features": [8, 8]}, "each once"),
        ({"redraws": 6}, "power of two"),
        ({"samples": 1}, "at least 2"),
        ({"projections": ["regular"]}, "there are orthogonal, iid"),
        ({"model": "run"}, "approximation.proteins=FASTA"),
        ({"proteins": "a.fasta"}, "approximation.model=FOLDER"),
        ({"scales": []}, "nothing to do"),
        ({"scales": [0]}, "above 0"),
    ],
)
def test_settings_that_cannot_be_are_told(changed, said):
    with pytest.raises(ProtformerError, match=said):
        Settings.of(config(**changed))


def proteins(path) -> str:
    generator = np.random.default_rng(0)
    texts = ["".join(generator.choice(list("LAGVSERTIDPKQNFYMHWC"), 20 + i)) for i in range(4)]
    path.write_text("".join(f">p{i}\n{text}\n" for i, text in enumerate(texts)))
    return str(path)


def rows_of_run(tmp_path, name: str, **changed: Any) -> tuple[list[dict[str, Any]], Any]:
    folder = tmp_path / name
    folder.mkdir()
    run(JobSettings(config=config(**changed), run_dir=str(folder)))
    analysis = read_analysis(folder / "rows.json")
    return analysis.rows, analysis


def test_one_command_does_both_parts(tmp_path, capsys):
    save_model(exact_model(), tmp_path / "run" / "model", tokens=TOKENS)
    real = {"model": str(tmp_path / "run"), "proteins": proteins(tmp_path / "p.fasta")}
    rows, analysis = rows_of_run(tmp_path, "out", methods=["positive", "dense", "trigonometric"], **real)
    assert {row["inputs"] for row in rows} == {"random, std 0.5", "of layer 1", "of layer 2"}
    assert {row["method"] for row in rows} >= {"uniform", "performer-positive", "performer-dense"}
    assert {row["head"] for row in rows if row["part"] == "heads"} == {1, 2}
    for row in rows:
        told = {name.removesuffix("_low").removesuffix("_high") for name in row}
        assert told <= set(analysis.columns)
        if row["output_error"] is not None:
            assert 0 <= row["output_error_low"] <= row["output_error"] <= row["output_error_high"]
    of_real = [view for view in analysis.views if view.where.get("source") == "real"]
    assert {view.where["signed"] for view in of_real if "signed" in view.where} == {False, True}
    for view in analysis.views:
        seen = [row for row in rows if all(row.get(name) == value for name, value in view.where.items())]
        drawn_rows = [row for row in seen if row.get(view.y) is not None and row.get(view.x) is not None]
        assert drawn_rows, view.title
        assert all(view.panel is None or row.get(view.panel) is not None for row in drawn_rows)
        points = [(row.get(view.panel or ""), row[view.line], row[view.x]) for row in drawn_rows]
        assert len(set(points)) == len(points), f"{view.title}: two points at one place"
    assert "uniform" in capsys.readouterr().out


def test_rows_go_by_the_seed(tmp_path):
    def figures(name: str, **changed: Any) -> list[Any]:
        return [row["output_error"] for row in rows_of_run(tmp_path, name, methods=["positive"], **changed)[0]]

    assert figures("a") == figures("b") != figures("c", seed=1)


def test_a_causal_model_leaves_out_what_looks_ahead(tmp_path):
    save_model(exact_model(causal=True), tmp_path / "run" / "model", tokens=TOKENS)
    real = {"model": str(tmp_path / "run"), "proteins": proteins(tmp_path / "p.fasta")}
    rows, analysis = rows_of_run(tmp_path, "out", scales=[], **real)
    assert {row["method"] for row in rows} == {
        "uniform", "performer-positive", "performer-hyperbolic", "performer-trigonometric",
    }  # fmt: skip
    assert any("left out are positive-centred, optimal, dense" in note for note in analysis.notes)
    assert not looks_ahead("positive")
