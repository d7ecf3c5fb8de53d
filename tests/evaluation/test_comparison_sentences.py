"""What a comparison says of its figures: sentences and captions that hold for them."""

import json
from pathlib import Path

import pytest
import yaml
from planted_runs import Plan, sweep, write_run

from protformer.evaluation.comparison import make_report
from protformer.evaluation.comparison.answer import _value, answer
from protformer.evaluation.comparison.comparison import beside_the_attention
from protformer.evaluation.comparison.pictures import comparison_charts


@pytest.fixture
def three(tmp_path: Path) -> Path:
    plans = (Plan(method="exact"), Plan(method="uniform", nll=2.85), Plan(method="performer-relu", nll=2.82))
    return sweep(tmp_path / "my_sweep", *plans)


def test_seeds_may_see_other_numbers_of_residues(three):
    for place, method in enumerate(("exact", "uniform")):
        write_run(three / f"other{place}", Plan(method=method, seed=1, residues=4_000_000))
    report = make_report([three])
    assert {len(arm.runs) for arm in report.comparisons[0].arms} == {1, 2}
    told = " ".join(str(item) for item in report.sections[0].content if isinstance(item, str))
    assert "4.0 M to 5.0 M residues" in told


def test_figures_without_proteins_show_their_seeds_and_say_so(tmp_path):
    folder = sweep(tmp_path / "s", *(Plan(method=m, seed=s) for m in ("exact", "uniform") for s in (0, 1)))
    for place, file in enumerate(sorted(folder.glob("*/metrics.json"))):
        metrics = json.loads(file.read_text())
        for found in metrics["sets"].values():
            found["rows"] = [{"name": "trained", "figures": {"spearman": -0.2 + 0.1 * place, "rmse": 1.0}, "note": ""}]
        metrics["curve"] = []
        file.write_text(json.dumps(metrics))
        (file.parent / "per_protein.tsv").unlink()
    [comparison] = make_report([folder]).comparisons
    assert "an Spearman" not in answer(comparison)[0]
    assert "\u22120.1" in answer(comparison)[0]
    chart = next(chart for chart in comparison_charts(comparison) if chart.name.endswith("results"))
    assert "There are no intervals" in chart.caption
    assert [len(one.singles) for one in chart.panels[0].series] == [2, 2]


def test_accuracies_are_percentages_in_sentences():
    row = {"accuracy": 0.00868, "accuracy_low": 0.00217, "accuracy_high": 0.01735}
    assert _value(row, "accuracy") == "0.9 (0.2 to 1.7) %"
    assert _value({"spearman": -0.5}, "spearman") == "\u22120.500"


def test_settings_of_evaluation_and_machine_are_no_confounders(three):
    for place, floors in enumerate((True, False, True)):
        file = three / f"member{place}" / "config.yaml"
        file.write_text(yaml.safe_dump({**yaml.safe_load(file.read_text()), "evaluate": {"floors": floors}}))
    [comparison] = make_report([three]).comparisons
    assert any(knob.key == "evaluate.floors" for knob in comparison.knobs)
    assert beside_the_attention(comparison.knobs) is None
