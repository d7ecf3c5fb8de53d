"""Reports: what may be compared is, the rest is refused by name, and nothing is dropped in silence."""

import csv
import json
import re
from pathlib import Path

import pytest
import yaml
from planted_runs import Plan, command, sweep, write_run

from protformer.errors import ProtformerError
from protformer.evaluation.analysis import Analysis, View, write_analysis
from protformer.evaluation.comparison import compare, make_report, write_report
from protformer.evaluation.comparison.answer import answer
from protformer.evaluation.comparison.charts import Chart
from protformer.evaluation.comparison.comparability import arms_of
from protformer.evaluation.comparison.page import as_json
from protformer.evaluation.comparison.reading import Group, read_inputs, read_run
from protformer.evaluation.comparison.tables import safe_markdown

pytest.importorskip("matplotlib")
pytest.importorskip("plotly")

EVIL = "</script><img src=x onerror=alert(1)> & 'a' \"b\" | c"


@pytest.fixture(autouse=True)
def undrawn(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take seconds: their names alone, but for tests that look at them."""

    def named(chart: Chart, folder: Path) -> list[Path]:
        paths = [folder / f"{chart.name}.{ending}" for ending in ("png", "svg")]
        for path in paths:
            path.touch()
        return paths

    if "drawn" not in request.fixturenames:
        monkeypatch.setattr("protformer.evaluation.comparison.report.draw", named)


@pytest.fixture
def drawn() -> None:
    """Asked for by tests of pictures."""


@pytest.fixture
def three(tmp_path: Path) -> Path:
    plans = (Plan(method="exact"), Plan(method="uniform", nll=2.85), Plan(method="performer-relu", nll=2.82))
    return sweep(tmp_path / "my_sweep", *plans)


@pytest.mark.parametrize(
    ("other", "words"),
    [
        (Plan(method="uniform", data={"train": "f" * 64}), "train is other data"),
        (Plan(method="uniform", sets=("valid",)), "only one of them has the set test"),
        (Plan(method="uniform", task={"rate": 0.2}), "task.rate is 0.15 and 0.2"),
        (Plan(method="uniform", steps=200), "budget.optimiser_steps is 100 and 200"),
        (Plan(method="uniform", residues=6_000_000), "budget.residues is 5,000,000 and 6,000,000"),
    ],
)
def test_other_data_masks_or_budgets_are_refused_by_name(other, words, three, tmp_path, capsys):
    write_run(three / "odd", other)
    assert command(three, "-o", tmp_path / "report") == 1
    told = capsys.readouterr().err
    assert "odd against" in told
    assert words in told
    assert told.count("\n") == 1
    assert not (tmp_path / "report").exists()
    if other.steps == 200:
        assert "trainer.max_steps is 100 and 200" in told, "the knob that differs"


def test_other_targets_are_refused_whatever_the_settings_say(three, tmp_path):
    file = three / "member1" / "per_protein.tsv"
    lines = file.read_text().splitlines()
    cells = lines[5].split("\t")
    lines[5] = "\t".join([*cells[:3], str(int(cells[3]) + 1), *cells[4:]])
    file.write_text("\n".join(lines) + "\n")
    with pytest.raises(ProtformerError, match="the masks differ"):
        make_report([three])


def test_order_is_compared_within_a_seed_alone(tmp_path):
    plans = [Plan(method=m, seed=s) for m in ("exact", "uniform") for s in (0, 1)]
    folder = sweep(tmp_path / "seeds", *plans)
    assert [len(arm.runs) for arm in arms_of(read_inputs([folder]).groups[0])] == [2, 2]
    file = folder / "member2" / "metrics.json"
    metrics = json.loads(file.read_text())
    metrics["comparison"]["order_seed"] = 7
    file.write_text(json.dumps(metrics))
    with pytest.raises(ProtformerError, match="order_seed is 0 and 7"):
        make_report([folder])


def test_residues_may_differ_a_little_between_seeds_for_they_pack_otherwise(tmp_path):
    plans = [Plan(method="exact", seed=seed, residues=5_000_000 + 150_000 * seed) for seed in (0, 1)]
    assert len(make_report([sweep(tmp_path / "seeds", *plans)]).comparisons[0].runs) == 2
    write_run(tmp_path / "seeds" / "odd", Plan(method="uniform", residues=5_150_000))
    with pytest.raises(ProtformerError, match=r"budget\.residues is 5,000,000 and 5,150,000"):
        make_report([tmp_path / "seeds"])


def test_split_makes_comparisons_of_their_own(three, tmp_path, capsys):
    for number, method in enumerate(("exact", "uniform")):
        write_run(three / f"long{number}", Plan(method=method, steps=200, residues=10_000_000))
    assert command(three, "--split", "-o", tmp_path / "report") == 0
    content = json.loads((tmp_path / "report" / "comparison.json").read_text())
    assert [len(one["runs"]) for one in content["comparisons"]] == [3, 2]
    assert "budget.optimiser_steps 200" in content["comparisons"][1]["title"]


def test_each_sweep_is_a_comparison_and_single_runs_are_one(three, tmp_path):
    other = sweep(tmp_path / "other", Plan(method="exact", steps=7), Plan(method="uniform", steps=7))
    single = write_run(tmp_path / "alone", Plan(method="exact", residues=100))
    report = make_report([three, other, single, three])
    expected = [("single runs", 1), ("my_sweep", 3), ("other", 2)]
    assert [(one.title, len(one.runs)) for one in report.comparisons] == expected
    above = make_report([tmp_path])  # a folder of sweeps, and of a run
    assert sorted((one.title, len(one.runs)) for one in above.comparisons) == sorted(
        [*expected[1:], (tmp_path.name, 1)]
    )


def test_pictures_of_two_comparisons_stand_beside_each_other(three, tmp_path):
    other = sweep(tmp_path / "other", Plan(method="exact", steps=7), Plan(method="uniform", steps=7))
    out = tmp_path / "report"
    assert command(three, other, "-o", out) == 0
    files = json.loads((out / "comparison.json").read_text())["files"]
    assert len(files) == len(set(files))
    for title, name in (("my_sweep", "my-sweep"), ("other", "other")):
        told = (out / "comparison.md").read_text().partition(f"\n## {title}\n")[2].partition("\n## ")[0]
        pictures = re.findall(r"\]\(pictures/(.*?)\)", told)
        assert pictures
        assert all(picture.startswith(f"{name}-") for picture in pictures)


def test_runs_without_counts_have_a_report(tmp_path):
    folder = sweep(tmp_path / "bare", Plan(method="exact"), Plan(method="uniform"))
    for file in folder.glob("*/per_protein.tsv"):
        file.unlink()
    assert command(folder, "-o", tmp_path / "report") == 0


def test_a_report_that_cannot_be_written_is_a_sentence(three, tmp_path, capsys):
    (tmp_path / "file").touch()
    assert command(three, "-o", tmp_path / "file" / "report") == 1
    assert "cannot be written" in capsys.readouterr().err


@pytest.mark.parametrize(("joined", "said"), [(None, "over the protein"), (8192, "over all that was joined to 8,192")])
def test_what_uniform_attention_is_a_mean_of(joined, said, tmp_path):
    config = {"data": {"concatenate": joined}}
    folder = sweep(tmp_path / "m", *(Plan(method=method, config=config) for method in ("exact", "uniform")))
    (comparison,) = make_report([folder]).comparisons
    assert f"a plain mean {said}" in answer(comparison)[0]


@pytest.mark.parametrize(("schedule", "warned"), [("cosine", True), ("constant", False)])
def test_curves_against_time_say_that_the_learning_rate_falls(schedule, warned, tmp_path):
    config = {"optimizer": {"schedule": schedule}}
    folder = sweep(tmp_path / "m", *(Plan(method=method, config=config) for method in ("exact", "uniform")))
    assert command(folder, "-o", tmp_path / "report") == 0
    assert ("The learning rate falls" in (tmp_path / "report" / "index.html").read_text()) == warned


def test_knobs_beside_the_attention_are_pointed_out(three):
    file = three / "member2" / "config.yaml"
    config = yaml.safe_load(file.read_text())
    config["optimizer"] = {"lr": 0.01}
    file.write_text(yaml.safe_dump(config))
    (comparison,) = make_report([three]).comparisons
    assert any("differ in more than their attention (optimizer.lr" in sentence for sentence in answer(comparison))


def test_processes_make_an_arm_of_their_own(three):
    write_run(three / "two", Plan(method="exact", training={"world_size": 2}))
    (comparison,) = make_report([three]).comparisons
    assert [arm.label for arm in comparison.arms][:2] == ["exact (processes 1)", "exact (processes 2)"]
    assert {cost["processes"] for cost in comparison.costs} == {1, 2}
    assert any("CPU time are those of the first" in note for note in comparison.notes)


def test_odd_ids_are_joined(tmp_path):
    odd = ['a"b', "a\tb", "'", "", "=1+1", "ünïcode", "same", "same", "../x", "<b>", "|"]
    plans = [
        Plan(method=m, nll=n, proteins=len(odd), ids=odd.__getitem__) for m, n in (("exact", 2.8), ("uniform", 2.9))
    ]
    (comparison,) = make_report([sweep(tmp_path / "odd", *plans)]).comparisons
    uniform = next(r for r in comparison.rows if r["method"] == "uniform" and r["set"] == "test")
    assert uniform["proteins"] == len(odd)
    assert uniform["gap"] == pytest.approx(0.1, abs=0.03)
    keys = read_run(tmp_path / "odd" / "member0").proteins["test"].keys
    assert sorted(identity for identity, _ in keys) == sorted(odd)
    assert ("same", 1) in keys


def test_hostile_names_are_escaped(tmp_path):
    folder = sweep(
        tmp_path / "hostile",
        Plan(method="exact", name=EVIL, overrides=[EVIL], config={"optimizer": {"lr": EVIL}}),
        Plan(method="uniform", nll=2.9),
        Plan(method=f"x{EVIL}", nll=2.9),
    )
    written = write_report(make_report([folder], title=EVIL), tmp_path / "report")
    page = written[0].read_text()
    assert "<img" not in page
    assert "&lt;img src=x onerror=alert(1)&gt;" in page
    scripts = re.findall(r"<script.*?>", page)
    assert page.count("</script>") == len(scripts) == 3
    charts = json.loads(re.search(r'id="charts">(.*?)</script>', page)[1])  # type: ignore[index]
    assert any(trace["meta"] == f"x{EVIL}" for chart in charts for trace in chart["data"])
    assert "<img" not in (tmp_path / "report" / "comparison.md").read_text()


def test_json_in_a_script_cannot_end_it():
    text = as_json({"a": EVIL + "\u2028", "b": float("nan")})
    assert not set("<>&\u2028") & set(text)
    assert json.loads(text) == {"a": EVIL + "\u2028", "b": None}


def test_the_report_is_whole_and_alone(three, tmp_path):
    from plotly.offline import get_plotlyjs

    out = tmp_path / "report"
    assert command(three, "-o", out) == 0
    page = (out / "index.html").read_text()
    ours = page.replace(get_plotlyjs(), "")
    assert len(ours) < len(page) / 5
    assert not re.findall(r'(?:src|href)="(?!#|data:)', ours), "nothing is fetched"
    with (out / "comparison.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    content = json.loads((out / "comparison.json").read_text())
    assert len(rows) == len(content["comparisons"][0]["rows"])
    relu = next(r for r in rows if r["method"] == "performer-relu" and r["set"] == "test")
    assert 0.2 < float(relu["share_low"]) < 0.6 < float(relu["share_high"]) < 0.9
    told = (out / "comparison.md").read_text()
    pictures = re.findall(r"\]\((pictures/.*?)\)", told)
    assert {p.rpartition("-")[2] for p in pictures} >= {"share.png", "results.png", "learning.png", "cost.png"}
    for picture in pictures:
        assert (out / picture).is_file()
        assert (out / picture).with_suffix(".svg").is_file()
    assert "BID Performer-ReLU | 8.36 | 36.09 %" in told
    assert "arXiv 2009.14794" in page
    assert "trained with one seed" in told


def test_another_report_in_the_same_place_leaves_nothing_of_the_first(three, tmp_path):
    out = tmp_path / "report"
    analysis = Analysis(kind="k", title="T", question="Q?", rows=[{"a": 1}], views=[], columns={"a": "A"})
    for name in ("earlier", "comparison"):
        (tmp_path / name).mkdir()
        write_analysis(analysis, tmp_path / name)
    assert command(three, tmp_path / "earlier", tmp_path / "comparison", "-o", out) == 0
    (out / "my.csv").touch()
    assert (out / "earlier.csv").read_text() == (out / "comparison-2.csv").read_text()
    assert "my_sweep" in (out / "comparison.csv").read_text()
    other = write_run(tmp_path / "alone", Plan(method="exact"))
    assert command(other, "-o", out) == 0
    assert not [path for path in out.rglob("*") if "my-sweep" in path.name or "earlier" in path.name]
    assert (out / "my.csv").is_file()


def test_an_experiment_is_drawn_from_its_rows_alone(tmp_path):
    rows = [{"method": m, "m": n, "projection": p, "error": e / n, "error_low": 0.9 * e / n, "error_high": 1.1 * e / n}
            for m, e in (("performer-positive", 2.0), ("performer-trigonometric", 3.0), ("uniform", 9.0))
            for n in (16, 64) for p in ("orthogonal", "iid")]  # fmt: skip
    rows.append({"method": "exact", "m": 16, "projection": EVIL, "error": None})
    view = View(title="Error of the output", x="m", y="error", low="error_low", high="error_high", x_label="features",
                y_label="relative error", panel="projection", x_scale="log", y_scale="log")  # fmt: skip
    bars = View(title="By projection", kind="bar", x="projection", y="error", x_label="", y_label="error")
    nothing = View(title="Nothing to draw", x="absent", y="error", x_label="", y_label="")
    analysis = Analysis(kind="approximation error", title="How wrong are they?", question="How wrong?", rows=rows,
                        views=[view, bars, nothing], columns={"m": "random features"}, notes=["A note."])  # fmt: skip
    folder = tmp_path / "approximation"
    folder.mkdir()
    write_analysis(analysis, folder)
    for source in (folder, folder / "rows.json"):
        out = tmp_path / "report"
        assert command(source, "-o", out) == 0
        pictures = sorted(path.name for path in (out / "pictures").glob("*.png"))
        assert pictures == ["approximation-1-error-of-the-output.png", "approximation-2-by-projection.png"]
        assert len(list(csv.DictReader((out / "approximation.csv").read_text().splitlines()))) == len(rows)
        page = (out / "index.html").read_text()
        assert "How wrong are they?" in page
        assert "A note." in page
        assert "<img" not in page


def test_a_benchmark_is_the_cost_section(tmp_path):
    rows = [
        {"kind": "single", "implementation": name, "features": None, "length": n, "dtype": "float32",
         "direction": "forward", "causal": False, "heads": 8, "dim": 64, "threads": 1, "ms": ms, "ms_min": ms,
         "ms_max": ms, "peak_bytes": 10 * n}
        for name, power in (("sdpa", 2), ("protformer-positive", 1)) for n in (256, 1024)
        for ms in (1e-3 * n**power,)
    ]  # fmt: skip
    (tmp_path / "rows.json").write_text(json.dumps(rows))
    report = make_report([tmp_path / "rows.json"])
    ((_, analysis),) = report.analyses
    assert {row["method"] for row in analysis.rows} == {"sdpa", "performer-positive"}
    write_report(report, tmp_path / "report")
    assert len(list((tmp_path / "report" / "pictures").glob("*.png"))) == 2


@pytest.mark.slow
def test_pictures_show_every_method_with_its_units(three, tmp_path, drawn):
    paths = write_report(make_report([three]), tmp_path / "report")
    svgs = {path.stem.removeprefix("my-sweep-"): path.read_text() for path in paths if path.suffix == ".svg"}
    assert set(svgs) == {"share", "difference", "results", "learning", "learning-from-exact", "cost"}
    for role, text in svgs.items():
        assert "<!-- performer-relu -->" in text, role
    assert "<!-- residues seen, millions -->" in svgs["learning"]
    assert "<!-- wall-clock of training steps, minutes -->" in svgs["learning"]
    assert "<!-- unigram -->" in svgs["learning"], "floors are level lines"
    assert "<!-- share of the gap, % -->" in svgs["share"]
    assert all(path.read_bytes().startswith(b"\x89PNG") for path in paths if path.suffix == ".png")


def test_a_group_of_one_run_has_a_report(tmp_path):
    comparison = compare(Group("one", [read_run(write_run(tmp_path / "run", Plan(method="exact", curve=False)))]))
    assert [row["method"] for row in comparison.rows if row["set"] == "test"] == [
        "exact", "unigram", "own composition", "untrained",
    ]  # fmt: skip


def test_a_report_replaces_reports_alone(three, tmp_path):
    report = make_report([three])
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "index.html").write_text("mine")
    with pytest.raises(ProtformerError, match=r"site has index\.html, but no comparison\.json.*another folder"):
        write_report(report, tmp_path / "site")
    assert [path.name for path in (tmp_path / "site").iterdir()] == ["index.html"]
    for _ in range(2):
        write_report(report, tmp_path / "report")


def test_experiments_of_one_title_are_told_apart(tmp_path):
    analysis = Analysis(
        kind="downstream",
        title="Downstream tasks",
        question="Which?",
        rows=[{"method": "exact", "n": 1}],
        views=[],
        columns={"n": "a number"},
        settings={"steps": {"frozen": 3}, "tasks": ["a", "b"]},
    )
    for name in ("from_models", "from_scratch"):
        (tmp_path / name).mkdir()
        write_analysis(analysis, tmp_path / name)
    report = make_report([tmp_path / "from_models", tmp_path / "from_scratch"])
    assert [section.title for section in report.sections] == [
        "Downstream tasks (from-models)", "Downstream tasks (from-scratch)",
    ]  # fmt: skip
    assert report.lead == ["Downstream tasks: Which?"]
    tables = {table.title: [[cell.text for cell in line.cells] for line in table.lines]
              for table in report.sections[0].folded}  # fmt: skip
    assert tables["Settings"] == [["steps.frozen", "3"], ["tasks", "a, b"]]
    assert tables["What the columns are"] == [["n", "a number"]]


def test_markdown_takes_no_links_or_pictures_from_names():
    shown = safe_markdown("![t](http://h/p.png) [x](javascript:alert(1)) &lt;b&gt; a|b\nc performer_relu")
    assert shown == r"\!\[t\](http://h/p.png) \[x\](javascript:alert(1)) &amp;lt;b&amp;gt; a\|b c performer_relu"
