"""Cost against length: slopes of planted laws, steps of every attention, rows that a limit leaves out."""

import numpy as np
import pytest

from protformer.errors import ProtformerError
from protformer.evaluation.analysis import read_analysis
from protformer.evaluation.attention_benchmark.timing import Samples
from protformer.evaluation.cost import experiment
from protformer.evaluation.cost.methods import contenders
from protformer.evaluation.cost.rows import COLUMNS, slope_rows, step_row
from protformer.evaluation.cost.slopes import fit_slope
from protformer.evaluation.cost.step import Step, StepCase
from protformer.training.settings import JobSettings

SHAPE = {
    "hidden_size": 16, "num_layers": 1, "num_heads": 2, "intermediate_size": 32, "dropout": 0.0,
    "token_dropout": False, "rotary_base": 10000.0, "checkpoint_activations": False,
}  # fmt: skip
METHODS = ("exact", "uniform", "linformer", "reformer", "sparse-strided", "sparse-fixed", "sparse-window",
           "performer-positive", "performer-relu", "performer-optimal", "hybrid-positive")  # fmt: skip


def test_a_power_law_is_found_without_error():
    lengths = [2**k for k in range(8, 15)]
    fitted = fit_slope(lengths[::-1], [3e-6 * length**1.5 for length in lengths[::-1]])
    assert fitted is not None
    assert fitted.slope == pytest.approx(1.5)
    assert fitted.error == pytest.approx(0.0, abs=1e-6)
    assert (fitted.shortest, fitted.longest, fitted.points) == (2**11, 2**14, 4)  # the longest half


def test_the_standard_error_covers_the_truth():
    rng, lengths = np.random.default_rng(0), np.array([2**k for k in range(8, 18)])
    errors = []
    for _ in range(400):
        fitted = fit_slope(lengths.tolist(), (lengths**2.0 * np.exp(rng.normal(0, 0.1, 10))).tolist())
        assert fitted is not None
        errors.append((fitted.slope - 2) / fitted.error)
    # Student's t of three degrees of freedom: 3.18 covers 95 %
    share = np.mean(np.abs(errors) < 3.182)
    assert abs(share - 0.95) < 4 * np.sqrt(0.95 * 0.05 / 400)


def test_two_lengths_have_no_slope():
    assert fit_slope([256, 512], [1.0, 2.0]) is None


@pytest.mark.parametrize("method", METHODS)
def test_a_step_of_every_attention_changes_its_weights(method):
    case = StepCase(70, tuple(SHAPE.items()), "float32", "cpu", 0)
    step = Step(contenders([method], 8)[method], case)
    before = [p.detach().clone() for p in step.model.parameters()]
    (loss,) = step()
    assert loss.isfinite()
    assert any((p != q).any() for p, q in zip(step.model.parameters(), before, strict=True))


def test_all_models_start_from_the_same_weights():
    case = StepCase(70, tuple(SHAPE.items()), "float32", "cpu", 0)
    states = [Step(contenders([name], 8)[name], case).model.state_dict() for name in ("exact", "uniform")]
    assert all(states[0][key].equal(states[1][key]) for key in states[0])


def test_foretold_from_the_lengths_before():
    assert experiment._foretold([], 512, 2) == 0.0
    assert experiment._foretold([(512, 1.0)], 1024, 2) == pytest.approx(2.0)
    assert experiment._foretold([(512, 1.0), (1024, 4.0)], 4096, 2) == pytest.approx(64.0)
    assert experiment._foretold([(512, 1.0), (1024, 9.0)], 2048, 2) == pytest.approx(36.0), "never above its own law"
    assert experiment._foretold([(512, 1.0), (1024, 9.0)], 2048, 1) == pytest.approx(18.0), "a busy moment is no law"


def test_slopes_of_rows():
    rows = [step_row("exact", length, Samples([[length**2.0]]), None) for length in (256, 512, 1024)]
    rows.append(step_row("exact", 2048, None, None, reason="over the limit"))
    [slope] = slope_rows(rows)
    assert (slope["of"], slope["quantity"], slope["points"]) == ("step", "seconds", 3)
    assert slope["slope"] == pytest.approx(2.0)


def settings_of(folder, **changes) -> JobSettings:
    cost = {"parts": ["attention", "step"], "lengths": [64, 96, 128], "methods": ["exact", "performer-relu"],
            "features": 8, "dtype": "float32", "device": "cpu", "limit": 0.02, "memory": False}  # fmt: skip
    return JobSettings(config={"cost": {**cost, **changes}, "model": SHAPE, "seed": 0}, run_dir=str(folder))


@pytest.mark.slow
def test_the_experiment_leaves_rows(tmp_path, capsys):
    experiment.run(settings_of(tmp_path))
    analysis = read_analysis(tmp_path / "rows.json")
    assert all(set(row) == set(COLUMNS) for row in analysis.rows)
    parts = {row["part"] for row in analysis.rows}
    assert parts == {"attention_forward", "attention_forward_backward", "step", "slope"}
    for row in analysis.rows:
        if row["part"] != "slope":
            assert (row["seconds"] is None) == (row["reason"] is not None)
            if row["calls"] and row["calls"] > 1:
                assert row["seconds_low"] <= row["seconds"] <= row["seconds_high"]
    assert "slope of time" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"methods": ["best"]}, "'best' is not known"),
        ({"methods": []}, "cost.methods is empty"),
        ({"dtype": "int8"}, "cost.dtype"),
        ({"lengths": [8]}, "from 64"),
        ({"parts": ["all"]}, "cost.parts"),
        ({"limit": -1}, "cost.limit=-1 is no number of seconds"),
        ({"features": 0}, "cost.features=0 is no number of random features"),
    ],
)
def test_settings_that_cannot_be(tmp_path, change, words):
    with pytest.raises(ProtformerError, match=words):
        experiment.run(settings_of(tmp_path, **change))
