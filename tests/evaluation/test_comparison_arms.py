"""Arms of a comparison: which runs are one method, how they are called, and how they look."""

from pathlib import Path
from typing import Any

import pytest
from planted_runs import Plan, sweep, write_run

import protformer.attention
from protformer.errors import ProtformerError
from protformer.evaluation.analysis import Analysis, View
from protformer.evaluation.comparison import make_report
from protformer.evaluation.comparison.charts import LABEL_WIDTH, Panel, Series, analysis_charts
from protformer.evaluation.comparison.comparability import DRAW_NOTHING, arms_of, differing_knobs
from protformer.evaluation.comparison.reading import read_inputs
from protformer.evaluation.methods import look


def test_settings_of_one_method_make_arms_of_their_own(tmp_path):
    def plan(features: int, seed: int = 0) -> Plan:
        own = {"_target_": "protformer.features.PositiveFeatures", "num_features": features}
        attention = {"_target_": "protformer.attention.FavorAttention", "features": own}
        return Plan(method="performer-positive", seed=seed, config={"attention": attention, "features": own})

    folder = sweep(tmp_path / "m", Plan(method="exact"), plan(256), plan(64), plan(64, seed=1))
    group = read_inputs([folder]).groups[0]
    arms = arms_of(group)
    assert [arm.label for arm in arms] == [
        "exact", "performer-positive (num_features 64)", "performer-positive (num_features 256)",
    ]  # fmt: skip
    assert [len(arm.runs) for arm in arms] == [1, 2, 1]
    knobs = {knob.key: knob.values for knob in differing_knobs(arms)}
    assert knobs["attention.features.num_features"]["64"] == ["performer-positive (num_features 64)"]
    assert "features.num_features" not in knobs, "it has an effect as attention.features alone"
    assert set(knobs["attention._target_"]) == {"ExactAttention", "FavorAttention"}


def arms_with(tmp_path: Path, *configs: dict[str, Any]) -> list[str]:
    folder = sweep(tmp_path / "m", *(Plan(method="performer-positive", config=config) for config in configs))
    return [arm.label for arm in arms_of(read_inputs([folder]).groups[0])]


def test_a_class_stands_for_what_it_brings_with_it(tmp_path):
    every, geometric = ({"_target_": f"protformer.training.redraw.{name}"} for name in ("Every", "Geometric"))
    labels = arms_with(
        tmp_path,
        {"redraw": {**every, "every": 100}},
        {"redraw": {**geometric, "every": 100, "ratio": 2.0}},
        {"redraw": {**geometric, "every": 200, "ratio": 2.0}},
    )
    assert labels == [
        "performer-positive (redraw Every, every 100)",
        "performer-positive (redraw Geometric, every 100)",
        "performer-positive (redraw Geometric, every 200)",
    ]


def test_redrawing_tells_no_two_runs_apart_that_draw_nothing(tmp_path):
    features = {"_target_": "protformer.features.PositiveFeatures", "num_features": 64}
    own = {"attention": {"_target_": "protformer.attention.FavorAttention", "features": features}}

    def plans(seed: int, schedule: str) -> list[Plan]:
        redraw = {"redraw": {"_target_": f"protformer.training.redraw.{schedule}"}}
        return [
            Plan(method="exact", seed=seed, config=redraw),
            Plan(method="performer-positive", seed=seed, config={**redraw, **own}),
        ]

    arms = arms_of(read_inputs([sweep(tmp_path / "m", *plans(0, "Every"), *plans(1, "Geometric"))]).groups[0])
    assert [(arm.label, len(arm.runs)) for arm in arms] == [
        ("exact", 2), ("performer-positive (redraw Every)", 1), ("performer-positive (redraw Geometric)", 1),
    ]  # fmt: skip
    (knob,) = [knob for knob in differing_knobs(arms) if knob.key == "redraw._target_"]
    assert knob.values["Every"] == ["performer-positive (redraw Every)"]
    # one line of a sweep that gives all methods each schedule has exact attention twice with one seed
    arms = arms_of(read_inputs([sweep(tmp_path / "n", *plans(0, "Every"), *plans(0, "Geometric"))]).groups[0])
    assert [arm.label for arm in arms][:2] == ["exact (redraw Every)", "exact (redraw Geometric)"]


def test_schedules_of_redrawing_tell_apart_what_draws_rotations(tmp_path):
    # Reformer has no random features, but its hashes are drawn anew by the same schedule
    plans = [
        Plan(method="reformer", seed=seed, config={"redraw": {"_target_": f"protformer.training.redraw.{schedule}"}})
        for seed, schedule in enumerate(("Every", "Geometric"))
    ]
    arms = arms_of(read_inputs([sweep(tmp_path / "m", *plans)]).groups[0])
    assert [(arm.label, len(arm.runs)) for arm in arms] == [
        ("reformer (redraw Every)", 1), ("reformer (redraw Geometric)", 1),
    ]  # fmt: skip


def test_the_attentions_that_draw_nothing_are_those_that_cannot_be_redrawn():
    classes = [c for c in map(protformer.attention.__dict__.get, protformer.attention.__all__) if isinstance(c, type)]
    fixed = {c.__name__ for c in classes if not hasattr(c, "redraw_")}
    assert set(DRAW_NOTHING) == fixed - {"Attention"}


def test_a_label_names_a_few_settings_and_counts_the_others(tmp_path):
    def model(size: int, lr: float) -> dict[str, Any]:
        shape = {"hidden_size": size, "num_layers": size // 32, "num_heads": size // 16, "intermediate_size": 4 * size}
        return {"model": shape, "optimizer": {"lr": lr}}

    assert arms_with(tmp_path, model(64, 0.1), model(64, 0.2), model(128, 0.1)) == [
        "performer-positive (hidden_size 64, lr 0.1, 3 more settings)",
        "performer-positive (hidden_size 64, lr 0.2, 3 more settings)",
        "performer-positive (hidden_size 128, lr 0.1, 3 more settings)",
    ]


def test_one_method_with_two_settings_has_two_looks_of_one_colour():
    rows = [
        {"method": name, "x": x, "y": 1.0}
        for name in ("sparse-window", "sparse-window (global_tokens=0)", "linformer (length=4096)")
        for x in (1, 2)
    ]
    view = View(title="t", x="x", y="y", x_label="x", y_label="y")
    analysis = Analysis(kind="k", title="t", question="q", rows=rows, views=[view], columns={})
    looks = {one.label: look(one.method, one.variant) for one in analysis_charts("a", analysis)[0].panels[0].series}
    linformer, window, without = looks.values()  # (in the order of tables)
    assert window.colour == without.colour
    assert (window.dash, window.marker) != (without.dash, without.marker)
    assert linformer == look("linformer")


def test_a_label_beside_a_panel_leaves_it_room():
    def lines(label: str) -> list[str]:
        return Series(label=label, method="exact", x=[], y=[]).lines

    assert lines("exact") == ["exact"]
    assert lines("linformer (rank 64)") == ["linformer", "(rank 64)"]
    assert lines("reformer (redraw Geometric, every 100)") == ["reformer", "(redraw Geometric,", "every 100)"]
    long = lines("performer-positive (hidden_size 64, lr 0.1, 3 more settings)")
    assert len(long) == 3
    assert max(map(len, long)) <= LABEL_WIDTH
    assert " ".join(long) == "performer-positive (hidden_size 64, lr 0.1, 3 more settings)"


def test_the_longest_label_sets_the_height_of_a_panel_s_rows():
    def panel(*labels: str) -> Panel:
        return Panel(title="", x_label="", series=[Series(label=one, method="exact", x=[], y=[]) for one in labels])

    assert panel().label_lines == panel("exact").label_lines == 1
    assert panel("exact", "reformer (redraw Geometric, every 100)").label_lines == 3


def test_the_last_weights_are_another_arm_than_the_best(tmp_path):
    plans = [Plan(method="exact", config={"evaluate": {"weights": w}}, seed=s) for s, w in enumerate(("best", "last"))]
    arms = make_report([sweep(tmp_path / "m", *plans)]).comparisons[0].arms
    assert [arm.label for arm in arms] == ["exact (weights best)", "exact (weights last)"]


def test_one_run_twice_is_no_second_seed(tmp_path):
    folder = sweep(tmp_path / "m", Plan(method="exact"), Plan(method="uniform"))
    write_run(folder / "again", Plan(method="exact"))
    with pytest.raises(ProtformerError, match=r"again and .*member0 are one method with one seed"):
        make_report([folder])
