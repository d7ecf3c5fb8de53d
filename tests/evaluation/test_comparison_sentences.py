"""What a comparison says of its figures: sentences and captions that hold for them."""

import json
from pathlib import Path

import pytest
import yaml
from planted_runs import Plan, sweep, write_run

from protformer.errors import ProtformerError
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


def several(tmp_path: Path, **seeds: int) -> Path:
    nll = {"exact": 2.8, "uniform": 2.85, "reformer": 2.82, "linformer": 2.83}
    plans = (Plan(method=m, nll=nll[m], seed=seed) for m, number in seeds.items() for seed in range(number))
    return sweep(tmp_path / "several", *plans)


def test_one_seed_beside_several_is_marked_in_the_answer(tmp_path):
    [comparison] = make_report([several(tmp_path, exact=2, uniform=2, reformer=2, linformer=1)]).comparisons
    told = " ".join(answer(comparison))
    assert told.count("; one seed)") == 1
    assert "one seed" in told.partition("linformer")[2][:30]


def test_differences_over_fewer_seeds_than_the_row_has_are_noted(tmp_path):
    [comparison] = make_report([several(tmp_path, exact=2, uniform=1, reformer=3)]).comparisons
    notes = " ".join(comparison.notes)
    assert "reformer: its difference from exact is over 2 of its 3 seeds, which are the seeds that exact have" in notes
    assert "reformer: its share of the gap is over 1 of its 3 seeds, which is the seed that exact and uniform" in notes


def test_a_seed_without_a_figure_is_counted_out_and_named(tmp_path):
    folder = several(tmp_path, exact=2, uniform=2)
    for file in folder.glob("*/per_protein.tsv"):
        file.unlink()
    file = folder / "member1" / "metrics.json"
    metrics = json.loads(file.read_text())
    metrics["sets"]["test"]["rows"][-1]["figures"]["perplexity_mask"] = None
    file.write_text(json.dumps(metrics))
    [comparison] = make_report([folder]).comparisons
    assert [row["seeds"] for row in comparison.of_set("test", kind="method")] == [1, 2]
    assert any("Without a figure, so in no mean: exact, seed 1, on test." in note for note in comparison.notes)


def test_bins_of_one_protein_are_compared_and_of_few_have_no_intervals(tmp_path):
    folder = sweep(tmp_path / "m", *(Plan(method=m, proteins=20, bins=True) for m in ("exact", "uniform")))
    for file in folder.glob("*/metrics.json"):
        metrics = json.loads(file.read_text())
        floor = {"name": "unigram", "figures": dict.fromkeys(("perplexity_mask", "perplexity_mask_low"), 18.0)}
        metrics["sets"]["test"]["by_bin"] = {"nohit": {"proteins": 7, "rows": [floor]}}
        file.write_text(json.dumps(metrics))
    [comparison] = make_report([folder]).comparisons
    [floor] = [row for row in comparison.of_set("test", "nohit", "floor")]
    assert "perplexity_mask" in floor
    assert "perplexity_mask_low" not in floor
    file = folder / "member1" / "per_protein.tsv"
    file.write_text(file.read_text().replace("\tremote\t", "\tnohit\t", 1))
    with pytest.raises(ProtformerError, match=r"of (valid|test) is in other novelty bins \(.*remote"):
        make_report([folder])


def test_floors_without_pairs_are_judged_by_intervals_and_the_untrained_model_is_none(tmp_path):
    """18.03 and 17.38 are the planted floors; the interval of a single run is about one wide."""
    plans = (Plan(method="exact", nll=2.8), Plan(method="uniform", nll=3.1))
    folder = sweep(tmp_path / "m", *plans)
    told = answer(make_report([folder]).comparisons[0])[-1]
    assert told == (
        "No model is better here than \u201cown composition\u201d (17.38), a floor that needs no model; exact cannot be"
        " told apart from it."
    )
    for file in folder.glob("*/metrics.json"):
        metrics = json.loads(file.read_text())
        for found in metrics["sets"].values():
            found["rows"] = [row for row in found["rows"] if row["name"] in ("untrained", "trained")]
            found["rows"][0]["figures"]["perplexity_mask"] = 2.0
        file.write_text(json.dumps(metrics))
    assert "floor" not in " ".join(answer(make_report([folder]).comparisons[0]))


def test_untrained_runs_are_said_to_be_so(tmp_path):
    plans = (Plan(method=method, residues=0, steps=0) for method in ("exact", "uniform"))
    assert "Nothing was trained" in " ".join(answer(make_report([sweep(tmp_path / "m", *plans)]).comparisons[0]))
