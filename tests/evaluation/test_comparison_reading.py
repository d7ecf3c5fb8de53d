"""What `protformer compare` finds in folders: runs, groups, members that are missing, records that are damaged."""

import json
import re
from pathlib import Path

import pytest
import yaml
from planted_runs import Plan, command, sweep, write_run

from protformer.errors import ProtformerError
from protformer.evaluation.analysis import Analysis, View, write_analysis
from protformer.evaluation.comparison import make_report
from protformer.evaluation.comparison.reading import read_inputs
from protformer.training.sweep import claimed

pytest.importorskip("matplotlib")
pytest.importorskip("plotly")


@pytest.fixture(autouse=True)
def undrawn(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take seconds, and are not looked at here."""
    monkeypatch.setattr("protformer.evaluation.comparison.report.draw", lambda chart, folder: [])


@pytest.fixture
def three(tmp_path: Path) -> Path:
    plans = (Plan(method="exact"), Plan(method="uniform", nll=2.85), Plan(method="performer-relu", nll=2.82))
    return sweep(tmp_path / "my_sweep", *plans)


def test_a_group_is_found_by_its_name(tmp_path, monkeypatch, capsys):
    sweep(tmp_path / "multirun" / "mine", Plan(method="exact"), Plan(method="uniform"))
    monkeypatch.chdir(tmp_path)
    (group,) = read_inputs(["mine"]).groups
    assert (group.title, len(group.runs)) == ("mine", 2)
    assert command("other", "-o", "report") == 1
    assert "other does not exist, nor multirun/other" in capsys.readouterr().err


DAMAGES = [
    {"sets": []}, {"sets": {"test": None}}, {"sets": {"test": {"rows": [{"name": "trained"}]}}},
    {"sets": {"test": {"rows": [{"name": "trained", "figures": {"perplexity_mask": "low"}}]}}},
    {"seed": "abc"}, {"comparison": 3}, {"training": []}, {"training": {"residues": None}}, {"curve": [1]},
    {"comparison": {"data": []}}, {"comparison": {"data": {"test": None}}},
    {"comparison": {"data": {"test": {"sequences": []}}}}, {"seed": float("nan")},
    {"comparison": {"budget": {"residues": float("nan")}}}, {"overrides": 3}, {"overrides": [[]]}, {"parameters": "x"},
    {"measured": {"hardware": "a computer"}}, {"sets": {"test": {"rows": [], "sequences": "x"}}},
    {"curve": [{"step": 1, "residues": 1, "seconds": 1, "cpu_seconds": "x", "figures": {}}]},
]  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES, ids=map(str, DAMAGES))
def test_a_damaged_record_is_named(damage, three, tmp_path, capsys):
    file = three / "member1" / "metrics.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    assert command(three, "-o", tmp_path / "report") == 1
    said = capsys.readouterr().err
    assert "member1/metrics.json" in said.replace("\n", "")
    assert "damaged" in said or "no " in said


def test_a_record_that_contradicts_its_proteins_is_named(three, tmp_path, capsys):
    file = three / "member1" / "metrics.json"
    metrics = json.loads(file.read_text())
    metrics["sets"]["test"]["rows"][-1]["figures"]["perplexity_mask"] *= 0.99
    file.write_text(json.dumps(metrics))
    assert command(three, "-o", tmp_path / "report") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "member1: its metrics.json and its per_protein.tsv contradict each other" in said
    assert "perplexity at <mask> on test" in said


def test_a_folder_of_reports_and_hydras_file_are_no_members(three, tmp_path):
    (three / "multirun.yaml").write_text("hydra: {}\n")
    assert command(three, "-o", three / "report") == 0
    assert make_report([three]).missing == []
    assert command(*three.glob("m*"), "-o", tmp_path / "report") == 0  # what a shell makes of three/m*


def test_missing_members_are_named(three, tmp_path, capsys):
    for name in ("killed", "failed"):
        (three / name).mkdir()
        (three / name / "config.yaml").write_text("seed: 0\n")
    (three / "failed" / "failure.txt").write_text("Linformer attention cannot be causal.\n")
    attention = "attention: {_target_: protformer.attention.LinformerAttention}"
    (three / "failed" / "config.yaml").write_text(f"seed: 7\n{attention}\n")
    (three / "empty").mkdir()
    assert command(three, "-o", tmp_path / "report") == 0
    out = re.sub(r"\s+", " ", capsys.readouterr().out)
    page, told = ((tmp_path / "report" / name).read_text() for name in ("index.html", "comparison.md"))
    for name in ("killed", "failed", "empty"):
        assert f"{name} (" in out
        assert f"{name} (" in told
        assert f"{name} (" in page
    assert "LinformerAttention, seed 7; it failed: Linformer attention cannot be causal." in told
    content = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert len(content["comparisons"][0]["missing"]) == 3


def test_nothing_that_ended_is_refused(tmp_path, capsys):
    (tmp_path / "sweep" / "one").mkdir(parents=True)
    (tmp_path / "sweep" / "one" / "config.yaml").write_text("seed: 0\n")
    assert command(tmp_path / "sweep", "-o", tmp_path / "report") == 1
    assert "one: seed 0; no metrics.json: it did not end" in capsys.readouterr().err
    (tmp_path / "nothing").mkdir()
    assert command(tmp_path / "nothing", "-o", tmp_path / "report") == 1
    assert "holds no run" in capsys.readouterr().err


def test_runs_of_an_older_version_are_refused(three):
    file = three / "member0" / "metrics.json"
    metrics = json.loads(file.read_text())
    del metrics["comparison"]
    file.write_text(json.dumps(metrics))
    with pytest.raises(ProtformerError, match=r"member0: its metrics\.json has no comparison"):
        make_report([three])


def hydras_file(folder: Path, *overrides: str) -> None:
    hydra = {
        "sweeper": {"params": {"method": "exact,uniform,reformer", "seed": "0,1"}},
        "overrides": {"task": overrides},
    }
    (folder / "multirun.yaml").write_text(yaml.safe_dump({"hydra": {**hydra, "overrides": {"task": list(overrides)}}}))


def test_members_that_never_began_are_named(tmp_path, capsys):
    plans = [Plan(method=m, overrides=[f"method={m}", "seed=0", "x=[1,2]"]) for m in ("exact", "uniform")]
    folder = sweep(tmp_path / "cut", *plans)
    hydras_file(folder, "seed=0", "x=[1,2]", "+y='a,b'")
    (missing,) = read_inputs([folder]).groups[0].missing
    assert missing.reason == ("1 of the 3 members of its last command line never began (method=reformer seed=0)")
    (folder / "begun").mkdir()
    (folder / "begun" / "config.yaml").write_text("seed: 0\n")
    assert len(read_inputs([folder]).groups[0].missing) == 1  # that one it is
    hydras_file(folder, "seed=0,1")
    reasons = [one.reason for one in read_inputs([folder]).groups[0].missing]
    assert reasons[-1].startswith("3 of the 6 members of its last command line never began (3 of: method=exact seed=1;")
    hydras_file(folder, "seed=range(0,5)")
    assert len(read_inputs([folder]).groups[0].missing) == 1
    hydras_file(folder, "seed=+0e0", "+x= [ 1, 2 ]")  # what the runs have recorded as seed=0 x=[1,2]
    began = [one.reason for one in read_inputs([folder]).groups[0].missing]
    assert len(began) == 1
    assert "never began" not in began[0]
    (folder / "multirun.yaml").write_text("hydra: [")
    assert command(folder, "-o", tmp_path / "report") == 0
    assert "begun" in capsys.readouterr().out.replace("\n", "")


def test_a_run_without_its_configuration_is_named(three, tmp_path, capsys):
    (three / "member1" / "config.yaml").unlink()
    assert command(three, "-o", tmp_path / "report") == 1
    assert re.search(r"member1 has\s+no\s+config\.yaml", capsys.readouterr().err)


def test_a_report_in_the_sweeps_own_folder_is_no_member(three, tmp_path):
    (three / "pictures").mkdir()
    (three / "pictures" / "a.png").touch()
    (three / "comparison.json").write_text("{}")
    [group] = read_inputs([three]).groups
    assert (len(group.runs), group.missing) == (3, [])


def test_rows_of_benchmarks_beside_runs_are_said_to_be_left_out(three, tmp_path, capsys):
    for number in range(7):
        (three / f"rows{number}.json").write_text(' [{"a": 1}]')
    (three / "settings.json").write_text("{}")  # somebody's own
    assert command(three, "-o", tmp_path / "report") == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "Not in the report: rows0.json, rows1.json, rows2.json, rows3.json, rows4.json and 2 more, rows of" in said
    assert "settings.json" not in said


WRONG_ROWS = [
    {"rows": "abc"}, {"rows": [1]}, {"rows": []}, {"columns": None}, {"notes": [1]}, {"settings": None},
    {"views": [{"title": "t"}]}, {"rows": [{"a": "b", "method": "m"}]}, {"title": None}, {"measured": None},
]  # fmt: skip


@pytest.mark.parametrize("damage", WRONG_ROWS, ids=map(str, WRONG_ROWS))
def test_damaged_rows_of_an_experiment_are_named(damage, tmp_path, capsys):
    view = View(title="V", x="method", y="a", x_label="x", y_label="y")
    analysis = Analysis(kind="k", title="T", question="Q", rows=[{"a": 1, "method": "m"}], views=[view], columns={})
    file = write_analysis(analysis, tmp_path)
    file.write_text(json.dumps(json.loads(file.read_text()) | damage))
    assert command(file, "-o", tmp_path / "report") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "rows.json does not hold rows of an experiment" in said
    assert "unexpected" not in said


def test_a_diverged_run_is_named_and_takes_no_part(three, tmp_path, capsys):
    write_run(three / "lost", Plan(method="uniform", seed=1, nll=float("nan")))
    metrics = json.loads((three / "lost" / "metrics.json").read_text())
    for found in metrics["sets"].values():
        found["rows"][-1]["figures"] = dict.fromkeys(found["rows"][-1]["figures"])
    (three / "lost" / "metrics.json").write_text(json.dumps(metrics))
    assert command(three, "-o", tmp_path / "report") == 0
    out = re.sub(r"\s+", " ", capsys.readouterr().out)
    assert "lost (uniform, seed 1; its perplexity at <mask> on valid is not a number: training diverged)" in out
    assert "nan" not in out
    assert "Of what exact attention gains" in out


def test_a_sum_that_is_no_number_contradicts_a_figure_that_is(three, tmp_path, capsys):
    file = three / "member1" / "per_protein.tsv"
    lines = file.read_text().splitlines()
    cells = lines[3].split("\t")
    cells[lines[0].split("\t").index("nll")] = "nan"
    file.write_text("\n".join([*lines[:3], "\t".join(cells), *lines[4:]]) + "\n")
    assert command(three, "-o", tmp_path / "report") == 1
    assert "member1: its metrics.json and its per_protein.tsv contradict" in capsys.readouterr().err


@pytest.mark.parametrize(("place", "value"), [(-1, ""), (-1, "nan"), (3, "cut")])
def test_a_damaged_line_of_proteins_is_named(place, value, three, tmp_path, capsys):
    """`correct` is in no headline, yet in the table: a figure of it that is no number must not get there."""
    file = three / "member1" / "per_protein.tsv"
    lines = file.read_text().splitlines()
    cells = lines[-1].split("\t")
    lines[-1] = "\t".join(cells[:place]) if value == "cut" else "\t".join([*cells[:-1], value])
    file.write_text("\n".join(lines) + "\n")
    assert command(three, "-o", tmp_path / "report") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "member1" in said
    assert (f"line {len(lines)} has no targets" if value == "cut" else "accuracy_mask on test") in said


@pytest.mark.parametrize(("content", "words"), [("", "it is empty"), ("header", "the first alone has the set valid")])
def test_a_table_without_proteins_is_no_table_of_fewer_intervals(content, words, three, tmp_path, capsys):
    file = three / "member1" / "per_protein.tsv"
    file.write_text(file.read_text().splitlines()[0] + "\n" if content else "")
    assert command(three, "-o", tmp_path / "report") == 1
    assert words in " ".join(capsys.readouterr().err.split())


def test_doubled_proteins_are_no_more_proteins(three, tmp_path, capsys):
    for file in three.glob("*/per_protein.tsv"):  # (in all runs alike, or they would not fit one another)
        head, *lines = file.read_text().splitlines()
        file.write_text("\n".join([head, *lines, *lines]) + "\n")
    assert command(three, "-o", tmp_path / "report") == 1
    assert "200 sequences in the one, 400 in the other" in " ".join(capsys.readouterr().err.split())


def test_a_configuration_that_was_cut_is_named(three, tmp_path, capsys):
    (three / "member1" / "config.yaml").write_text("seed: 0\n")
    assert command(three, "-o", tmp_path / "report") == 1
    said = " ".join(capsys.readouterr().err.split())
    assert "member1/config.yaml is cut short: it has no attention and no trainer" in said


def test_a_set_without_figures_contradicts_its_proteins(three, tmp_path, capsys):
    file = three / "member1" / "metrics.json"
    metrics = json.loads(file.read_text())
    del metrics["sets"]["test"]
    file.write_text(json.dumps(metrics))
    assert command(three, "-o", tmp_path / "report") == 1
    assert "contradict each other (the second alone has the set test)" in capsys.readouterr().err


def test_a_member_that_is_running_is_said_to_be(three):
    (three / "now").mkdir()
    (three / "now" / "config.yaml").write_text("seed: 2\n")
    with claimed(three / "now"):
        [missing] = read_inputs([three]).groups[0].missing
    assert missing.reason == "seed 2; it is running"
    [missing] = read_inputs([three]).groups[0].missing
    assert missing.reason == "seed 2; no metrics.json: it did not end"


def test_a_report_is_no_run(three, tmp_path, capsys):
    assert command(three, "-o", tmp_path / "report") == 0
    assert command(tmp_path / "report", "-o", tmp_path / "again") == 1
    assert "is a report" in capsys.readouterr().err
