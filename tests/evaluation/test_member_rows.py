"""Rows of the experiments that are made of training runs: recall by distance, transfer by step, downstream by task."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from protformer.errors import ProtformerError
from protformer.evaluation.downstream import experiment as downstream
from protformer.evaluation.downstream.answer import answer
from protformer.evaluation.downstream.intervals import (
    accuracy_interval,
    spearman,
    spearman_difference,
    spearman_interval,
)
from protformer.evaluation.downstream.tasks import downstream_task
from protformer.evaluation.members import Ended, Member
from protformer.evaluation.paired import paired_difference
from protformer.evaluation.recall import experiment as recall
from protformer.evaluation.transfer import experiment as transfer
from protformer.training.settings import JobSettings


def metrics_of(sets: dict[str, Any], **more: Any) -> dict[str, Any]:
    training = {"optimiser_steps": 20, "seconds": 3.0, "residues": 500, "peak_memory_bytes": 7}
    return {"method": "exact", "seed": 1, "parameters": 9, "training": training, "curve": [], "sets": sets, **more}


def masked(accuracy: float) -> dict[str, float]:
    return {"accuracy_mask": accuracy, "accuracy_mask_low": accuracy - 0.1, "accuracy_mask_high": accuracy + 0.1}


def found(*rows: tuple[str, dict[str, float]], sequences: int = 4, **more: Any) -> dict[str, Any]:
    return {"sequences": sequences, "rows": [{"name": n, "figures": f} for n, f in rows], **more}


def test_recall_by_distance():
    sets = {"test": found(("trained", masked(0.5)))}
    sets |= {
        f"distance_{d}": found(("question alone", masked(0.2)), ("untrained", masked(0.0)), ("trained", masked(a)))
        for d, a in ((512, 0.6), (64, 0.9))
    }
    curve = [{"step": 0, "residues": 0, "seconds": 0.0, "cpu_seconds": 0.0, "figures": {"accuracy_mask": 0.1}}]
    one = Ended(Member("x", ()), Path("x"), metrics_of(sets, curve=curve, method="sparse-window"))
    rows = recall.rows_of(recall.Trained("sparse_window attention.global_tokens=0", (one,)), 16)
    assert [(row["distance"], row["accuracy"], row["questions"]) for row in rows if row["part"] == "distance"] == [
        (64, 0.9, 64),
        (512, 0.6, 64),
    ]
    assert {row["method"] for row in rows} == {"sparse-window (global_tokens=0)"}
    assert [(row["step"], row["accuracy"]) for row in rows if row["part"] == "curve"] == [(0, 0.1)]
    floors = recall.floor_rows([one])
    assert [(row["method"], row["distance"], row["accuracy"]) for row in floors] == [
        ("question alone", 64, 0.2),
        ("question alone", 512, 0.2),
    ]


def test_recall_in_stages_goes_on_from_the_weights_before(tmp_path, monkeypatch):
    asked: list[list[Member]] = []

    def run_members(members: list[Member], settings: JobSettings, *, own_key: str) -> list[Ended]:
        asked.append(members)
        point = {"residues": 0, "seconds": 2.0, "cpu_seconds": 0.0, "figures": {"accuracy_mask": 0.5}}
        curve = [{**point, "step": step} for step in (0, 20)]
        metrics = metrics_of({"distance_64": found(("trained", masked(0.9)))}, curve=curve)
        ok = [one.label != "uniform-stage1" for one in members]
        return [
            Ended(one, tmp_path / one.label, metrics) if good else Ended(one, tmp_path, reason="no memory")
            for one, good in zip(members, ok, strict=True)
        ]

    monkeypatch.setattr(recall, "run_members", run_members)
    stages = ["data.longest=128 trainer.max_steps=5", "data.longest=512"]
    exact, uniform = recall.train(stages, ["exact", "uniform"], JobSettings(config={}, run_dir=str(tmp_path)))
    assert [[one.label for one in members] for members in asked] == [
        ["exact-stage1", "uniform-stage1"],
        ["exact-stage2"],
    ]
    first, second = asked[0][0].overrides, asked[1][0].overrides
    assert first == ("method=exact", "data.longest=128", "trainer.max_steps=5", "data.distances=[]")
    assert second == ("method=exact", "data.longest=512", f"init_from={tmp_path / 'exact-stage1'}")
    assert uniform.last.reason == "no memory"
    rows = recall.rows_of(exact, 16)
    assert [(row["stage"], row["step"], row["seconds"]) for row in rows if row["part"] == "curve"] == [
        (1, 0, 2.0),
        (1, 20, 2.0),
        (2, 40, 5.0),
    ]
    assert [(row["step"], row["seconds"], row["stage"]) for row in rows if row["part"] == "distance"] == [(40, 6.0, 2)]


@pytest.mark.parametrize(
    ("changed", "overrides", "said"),
    [
        ({"methods": []}, [], r"recall.methods=\[\] is empty"),
        ({"stages": "data.longest=128"}, [], "recall.stages=data.longest=128 is no list"),
        ({"stages": ["data.longest=128", "data.longest=128"]}, [], "names a stage twice"),
        ({"stages": ["data.longest=128"]}, ["data.longest=999"], "each of recall.stages sets data.longest itself"),
    ],
)
def test_stages_that_cannot_be_are_told(changed, overrides, said, tmp_path):
    config = {"recall": {"methods": ["exact"], **changed}}
    with pytest.raises(ProtformerError, match=said):
        recall.run(JobSettings(config=config, run_dir=str(tmp_path), overrides=overrides))


def test_transfer_by_step_and_features():
    point = {"step": 5, "residues": 50, "seconds": 1.0, "cpu_seconds": 1.0, "figures": {"accuracy_mask": 0.3}}
    sets = {"test": found(("unigram", masked(0.1)), ("before training", masked(0.2)), ("trained", masked(0.4)))}
    metrics = metrics_of(sets, curve=[point])
    exact = Ended(Member("exact", ()), Path("x"), metrics)
    relu = Ended(Member("performer-relu-16", ()), Path("y"), {**metrics, "method": "performer-relu"})
    rows = transfer.rows_of(exact, [16, 64])
    assert {(row["features"], row["step"]) for row in rows if row["part"] == "curve"} == {(16, 5), (64, 5)}
    rows = transfer.rows_of(relu, [16, 64])
    assert {row["features"] for row in rows} == {16}
    final = {row["when"]: (row["step"], row["accuracy"]) for row in rows if row["part"] == "final"}
    assert final == {"without training": (0, 0.2), "trained": (20, 0.4)}
    floors = transfer.floor_rows([exact, relu], [16, 64])
    assert {(row["method"], row["features"], row["when"]) for row in floors} == {
        ("unigram", m, when) for m in (16, 64) for when in ("without training", "trained")
    }


def write_proteins(folder: Path, nll: float, correct: int, *, targets: int = 2) -> Path:
    """Thirty proteins; the NLL of each is `nll` and what makes the protein hard, the same in every folder."""
    folder.mkdir()
    lines = (f"test\tp{i}\t\t{targets}\t{nll + i % 7}\t{correct}\n" for i in range(30))
    (folder / "per_protein.tsv").write_text("set\tid\tbin\ttargets\tnll\tcorrect\n" + "".join(lines))
    return folder


def test_transfer_is_paired_with_exact_attention_by_protein(tmp_path):
    sets = {"test": found(("before training", masked(0.2)), ("trained", {**masked(0.4), "perplexity_mask": 9.0}))}
    folders = {"exact": (3.0, 2), "uniform": (4.0, 0), "performer-relu-16": (3.5, 1)}
    ended = {
        name: Ended(Member(name, ()), write_proteins(tmp_path / name, *made),
                    {**metrics_of(sets), "method": name.removesuffix("-16")})
        for name, made in folders.items()
    }  # fmt: skip
    references = {name: ended[name] for name in transfer.REFERENCES}
    rows = [row for one in ended.values() for row in transfer.rows_of(one, [16], references)]
    row = next(row for row in rows if row["method"] == "performer-relu" and row["when"] == "trained")
    mean = 3.5 / 2 + sum(i % 7 for i in range(30)) / 60
    expected = np.exp(mean) - np.exp(mean - 0.25)
    assert row["perplexity_minus_exact"] == pytest.approx(expected)
    assert row["perplexity_minus_exact_low"] < expected < row["perplexity_minus_exact_high"]
    assert row["accuracy_minus_exact"] == row["accuracy_minus_exact_low"] == row["accuracy_minus_exact_high"] == -0.5
    assert row["accuracy_minus_uniform"] == 0.5
    first, second, third = transfer.answer(rows)
    assert first.startswith("Without training, on test: the Performer has an accuracy of 20.00 %")
    assert "Trained on for 20 steps" in second
    assert f"at {expected:+.2f} (" in third
    without = [{**row, "perplexity": None} if row["method"] == "performer-relu" else row for row in rows]
    assert transfer.answer(without) == [first, second], "a model that diverged has no perplexity"
    own = next(row for row in rows if row["method"] == "exact" and row["when"] == "trained")
    assert own["accuracy_minus_exact"] is None, "of itself"
    assert next(row for row in rows if row["when"] == "without training")["accuracy_minus_uniform"] is None
    assert {view.where.get("set") for view in transfer.views("accuracy", transfer.main_set(rows), [16, 64])} == {
        None,
        "test",
    }
    assert {view.x for view in transfer.views("accuracy", "test", [16])} == {"step", "method"}
    other = write_proteins(tmp_path / "other", 3.0, 1, targets=3)
    with pytest.raises(ProtformerError, match="other proteins or targets of test"):
        paired_difference(other, tmp_path / "exact", "test", "accuracy")


def test_downstream_rows_stand_beside_their_best_floor(tmp_path):
    (tmp_path / "per_protein.tsv").write_text(
        "set\tid\tbin\ttargets\tnll\tcorrect\n" + "".join(f"test\tp{i}\t\t2\t1.0\t{i % 3}\n" for i in range(30))
    )
    floors = [("majority", {"accuracy": 0.2}), ("1-3-mers", {"accuracy": 0.55})]
    sets = {"test": found(*floors, ("trained", {"accuracy": 0.5}), sequences=30)}
    one = Ended(Member("x", ()), tmp_path, metrics_of(sets))
    about = {"task": "localization", "metric": "accuracy", "mode": "frozen", "model": "m"}
    rows = downstream.with_floors(downstream.rows_of(one, about, seed=0), [(one, about)])
    row = rows[0]
    assert row["value_low"] < 0.5 < row["value_high"]
    assert (row["best_floor"], row["best_floor_name"]) == (0.55, "1-3-mers")
    assert [(r["method"], r["value"]) for r in rows if r["mode"] == "floor"] == [("majority", 0.2), ("1-3-mers", 0.55)]
    assert [view.where["set"] for view in downstream.views(rows)] == ["test"]


def test_downstream_is_paired_with_exact_attention_and_names_its_models(tmp_path):
    def ended(name: str, method: str, correct: int) -> Ended:
        sets = {"test": found(("trained", {"accuracy": correct / 2}), sequences=30)}
        metrics = {**metrics_of(sets), "method": method}
        return Ended(Member(name, ()), write_proteins(tmp_path / name, 1.0, correct), metrics)

    about = {"task": "localization", "metric": "accuracy", "mode": "frozen"}
    done = [
        (ended("a", "exact", 2), {**about, "model": "runs/a"}),
        (ended("b", "performer-positive", 1), {**about, "model": "runs/b"}),
        (ended("c", "performer-positive", 2), {**about, "model": "runs/c"}),
    ]
    rows = downstream.all_rows(done, seed=0)
    assert [(row["arm"], row["minus_exact"], row["minus_exact_low"]) for row in rows] == [
        ("exact", None, None),
        ("performer-positive (runs/b)", -0.5, -0.5),
        ("performer-positive (runs/c)", 0.0, 0.0),
    ]
    [view] = downstream.views(rows)
    assert view.line == "arm"


def test_a_difference_of_rank_correlations_is_paired():
    rng = np.random.default_rng(1)
    target = rng.normal(size=60)
    hard = rng.normal(size=60)  # what both predictions get wrong together cancels in the difference

    def predictions(noise: float) -> np.ndarray:
        return np.stack([np.arange(60), target + hard + noise * rng.normal(size=60), target], axis=1)

    one, other = predictions(0.1), predictions(0.5)
    found = spearman_difference(one.tolist(), other[::-1].tolist(), resamples=200)
    assert found is not None
    assert found.value == pytest.approx(spearman(*one[:, 1:].T) - spearman(*other[:, 1:].T))
    alone = spearman_interval(one.tolist(), resamples=200)
    assert found.low < found.value < found.high < found.low + 0.7 * (alone.high - alone.low)
    assert spearman_difference(one.tolist(), other[1:].tolist()) is None


def test_intervals_cover_the_truth(tmp_path):
    rng = np.random.default_rng(0)
    covered = []
    for trial in range(20):
        target = rng.normal(size=80)
        predicted = target + rng.normal(size=80)  # the population's correlation of ranks is 6/pi asin(r/2)
        low, high = spearman_interval(
            np.stack([np.arange(80), predicted, target], axis=1).tolist(), seed=trial, resamples=100
        )
        covered.append(low < 6 / np.pi * np.arcsin(np.sqrt(0.5) / 2) < high)
    assert np.mean(covered) > 0.95 - 4 * np.sqrt(0.95 * 0.05 / 20)
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 4.0, 9.0])) == pytest.approx(1.0)
    assert np.isnan(spearman(np.ones(3), np.arange(3.0)))
    assert np.isnan(spearman_interval([[0.0, 1.0, 2.0]]).low)
    (tmp_path / "p.tsv").write_text("set\tid\tbin\ttargets\tnll\tcorrect\nvalid\ta\t\t1\t2\t0\ntest\tb\t\t4\t2\t3\n")
    assert accuracy_interval(tmp_path / "p.tsv", "test") == (0.75, 0.75)


def test_downstream_settings_that_cannot_be(tmp_path):
    chosen = {"data": str(tmp_path), "models": [], "tasks": [], "modes": ["frozen"], "scratch_tasks": ["localization"],
              "scratch_methods": ["exact"], "gb1_split": "three_vs_rest", "steps": {"scratch": 20},
              "lr": {"scratch": 1e-3}}  # fmt: skip
    with pytest.raises(ProtformerError, match=r"no localization/train\.csv\.gz"):
        downstream.plan(chosen)
    with pytest.raises(ProtformerError, match=r"downstream\.data=FOLDER"):
        downstream.plan({**chosen, "data": None})
    with pytest.raises(ProtformerError, match="thawed"):
        downstream.plan({**chosen, "modes": ["thawed"]})
    with pytest.raises(ProtformerError, match="Nothing to train"):
        downstream.plan({**chosen, "scratch_tasks": []})
    with pytest.raises(ProtformerError, match="is no task"):
        downstream_task("stability", chosen)


def test_a_scratch_member_has_its_task_method_and_budget(tmp_path):
    (tmp_path / "localization").mkdir()
    for name in ("train", "val", "test"):
        (tmp_path / "localization" / f"{name}.csv.gz").write_bytes(b"")
    chosen = {"data": str(tmp_path), "models": [], "tasks": [], "modes": [], "scratch_tasks": ["localization"],
              "scratch_methods": ["linformer attention.length=99"], "gb1_split": "three_vs_rest",
              "steps": {"scratch": 20}, "lr": {"scratch": 1e-3}}  # fmt: skip
    [(member, about)] = downstream.plan(chosen)
    assert "evaluate.floors=false" not in member.overrides
    [_, (second, _)] = downstream.plan({**chosen, "scratch_methods": ["exact", "uniform"]})
    assert "evaluate.floors=false" in second.overrides, "they are fitted once a task"
    assert {"method=linformer", "attention.length=99", "trainer.max_steps=20", "optimizer.lr=0.001"} <= set(
        member.overrides
    )
    assert f"data.valid={tmp_path}/localization/val.csv.gz" in member.overrides
    assert about["mode"] == "scratch"


def test_transfer_is_of_weights_of_exact_attention(monkeypatch):
    trunk = {"attention": {"name": "UniformAttention"}}
    monkeypatch.setattr(
        "protformer.evaluation.transfer.experiment.read_config", lambda folder: {"model": {"trunk": trunk}}
    )
    chosen = {"model": "runs/uniform", "features": ["positive"], "num_features": [16], "scratch": False}
    with pytest.raises(ProtformerError, match=r"runs/uniform.*not trained with exact attention but with Uniform"):
        transfer.run(JobSettings(config={"transfer": chosen}, run_dir="."))


@pytest.mark.parametrize("methods", [[], "exact"])
def test_recall_wants_a_list_of_methods(methods):
    with pytest.raises(ProtformerError, match=r"recall\.methods=\[exact,"):
        recall.run(JobSettings(config={"recall": {"methods": methods}}, run_dir="."))


def test_downstream_says_figures_differences_and_floors():
    shared = {"task": "secondary_structure", "set": "cb513", "metric": "accuracy", "best_floor": 0.62,
              "best_floor_name": "window of 15"}  # fmt: skip
    nothing = dict.fromkeys(("minus_exact", "minus_exact_low", "minus_exact_high"))
    rows = [
        {**shared, **nothing, "arm": "exact", "mode": "fine_tuned", "value": 0.62,
         "value_low": 0.61, "value_high": 0.63},
        {**shared, "arm": "performer-positive", "mode": "fine_tuned", "value": 0.7,
         "value_low": 0.68, "value_high": 0.72, "minus_exact": 0.08, "minus_exact_low": 0.07, "minus_exact_high": 0.09},
        {**shared, **nothing, "arm": "exact", "mode": "untrained", "value": 0.2},
        {**shared, **nothing, "arm": "exact", "mode": "frozen", "set": "valid", "value": 0.2},
        {**shared, **nothing, "task": "gb1", "metric": "spearman", "set": "test", "best_floor": None, "arm": "exact",
         "mode": "scratch", "value": 0.25, "value_low": float("nan"), "value_high": float("nan")},
    ]  # fmt: skip
    assert answer(rows) == [
        "secondary structure, cb513, fine-tuned: exact 62.0 % (61.0 to 63.0); performer-positive 70.0 % (68.0 to 72.0),"
        " +8.0 points (+7.0 to +9.0) from exact attention. Best floor 62.0 % (window of 15): performer-positive above"
        " it; exact level with it.",
        "gb1, test, from scratch: exact 0.250.",
    ]
