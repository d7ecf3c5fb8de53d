"""Experiment 7: localization, secondary structure and GB1 from pretrained models, frozen and fine-tuned, and
classification from scratch under several attentions; each figure with its interval over proteins and its floors."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from protformer.attention import method_of
from protformer.errors import ProtformerError
from protformer.evaluation.analysis import Analysis, Row, View
from protformer.evaluation.downstream.answer import answer
from protformer.evaluation.downstream.intervals import (
    accuracy_interval,
    spearman_difference,
    spearman_interval,
)
from protformer.evaluation.downstream.tasks import downstream_task
from protformer.evaluation.log_analysis import conclude
from protformer.evaluation.members import Ended, Member, failures, run_members
from protformer.evaluation.paired import Difference, paired_difference
from protformer.model import read_config
from protformer.training.quoting import as_override
from protformer.training.settings import JobSettings

WIDTH = 120  # of tables where the output is no terminal

MODES = ("frozen", "fine_tuned")
FROM_FOLDER = ("model", "method", "attention", "features")
"""Choices that a pretrained model brings itself."""
MINUS_EXACT = ("minus_exact", "minus_exact_low", "minus_exact_high")
COLUMNS = {
    "task": "localization (classes of proteins), secondary_structure (states of residues), gb1 (fitness of variants)",
    "set": "evaluation set",
    "method": "attention of the model; or a floor, which has no model",
    "model": "folder of the pretrained model",
    "settings": "of a method from scratch, beside its name",
    "arm": "method, and the model or settings where several of it are compared",
    "mode": "frozen (the head alone is trained), fine_tuned, scratch, untrained (as it was before training), or floor",
    "metric": "accuracy (of secondary structure: Q3), or Spearman's rank correlation",
    "value": "the metric",
    "value_low": "of the 95 % interval over proteins (bootstrap); floors have none",
    "value_high": "of the 95 % interval over proteins (bootstrap); floors have none",
    "minus_exact": "the metric minus that of exact attention, trained in the same way, on the same proteins",
    "minus_exact_low": "of the paired 95 % interval over proteins (bootstrap)",
    "minus_exact_high": "of the paired 95 % interval over proteins (bootstrap)",
    "best_floor": "the metric of the best floor on this set",
    "best_floor_name": "which it is",
    "proteins": "in the set",
    "seed": "of the run",
    "parameters": "of the model",
    "steps": "optimiser steps",
    "seconds": "of training, validation included",
}


def run(settings: JobSettings) -> dict[str, Any]:
    """A member for each task, model and mode; rows.json in the run folder."""
    chosen = settings.config["downstream"]
    planned = plan(chosen)
    ended = run_members([member for member, _ in planned], settings, own_key="downstream")
    done = [(one, about) for one, (_, about) in zip(ended, planned, strict=True) if one.metrics]
    rows = all_rows(done, seed=int(settings.config["evaluate"]["seed"]))
    analysis = Analysis(
        kind="downstream",
        title="Downstream tasks",
        question="What are pretrained models worth on labelled proteins, frozen and fine-tuned, and which attention"
        " learns a task from scratch?",
        rows=rows,
        views=views(rows),
        columns=COLUMNS,
        notes=[
            *answer(rows),
            "Floors are fitted on the same training set: majority, k-mers, windows of residues, ridge regression.",
            "Intervals are over the proteins of the evaluation set: they say nothing about other seeds.",
            "Frozen: the trunk as it was pretrained, and the head alone is trained.",
            *failures(ended),
        ],
        settings={**chosen, "seed": settings.config["seed"], "model": settings.config["model"]},
    )
    conclude(analysis, settings, lambda: _print(rows), ended=ended)
    return {"rows": len(rows)}


def plan(chosen: dict[str, Any]) -> list[tuple[Member, dict[str, Any]]]:
    """Each member with its task, mode, model and metric; ProtformerError where the settings name what is not there."""
    if not chosen["data"]:
        raise ProtformerError(
            "Say where the labelled sets are: downstream.data=FOLDER with localization/, secondary_structure/ and gb1/."
        )
    unknown = sorted(set(chosen["modes"]) - set(MODES))
    if unknown:
        raise ProtformerError(f"downstream.modes are {' and '.join(MODES)}, not {', '.join(unknown)}.")
    folder = Path(chosen["data"])
    planned: list[tuple[Member, dict[str, Any]]] = []
    for task_name in chosen["tasks"]:
        task = downstream_task(str(task_name), chosen)
        about = {"task": task_name, "metric": task.metric}
        shared = ("data=labelled", *task.overrides(folder))
        for model in chosen["models"]:
            method = method_of(read_config(model)["model"]["trunk"]["attention"])
            for mode in chosen["modes"]:
                label = f"{task_name} {mode} {method} {model}"
                start = as_override("init_from", str(model))
                options = (start, f"freeze={str(mode == 'frozen').lower()}", *_budget(chosen, mode))
                planned.append(
                    (Member(label, (*shared, *options), FROM_FOLDER), {**about, "mode": mode, "model": str(model)})
                )
    for task_name in chosen["scratch_tasks"]:
        task = downstream_task(str(task_name), chosen)
        about = {"task": task_name, "metric": task.metric, "mode": "scratch", "model": None}
        shared = ("data=labelled", *task.overrides(folder), *_budget(chosen, "scratch"))
        for entry in chosen["scratch_methods"]:
            method, *further = str(entry).split()
            own = {**about, "settings": " ".join(further)} if further else about
            planned.append((Member(f"{task_name} scratch {entry}", (f"method={method}", *further, *shared)), own))
    if not planned:
        raise ProtformerError("Nothing to train: name downstream.models=[RUN], or downstream.scratch_tasks.")
    return _floors_once(planned)


def _floors_once(planned: list[tuple[Member, dict[str, Any]]]) -> list[tuple[Member, dict[str, Any]]]:
    """Floors are the same for all members of a task, and k-mers take minutes: the first of each fits them."""
    seen: set[str] = set()
    kept = []
    for member, about in planned:
        if about["task"] in seen:
            member = replace(member, overrides=(*member.overrides, "evaluate.floors=false"))
        seen.add(about["task"])
        kept.append((member, about))
    return kept


def _budget(chosen: dict[str, Any], mode: str) -> tuple[str, ...]:
    """Steps and learning rate of a mode; validation ten times."""
    steps, rate = int(chosen["steps"][mode]), float(chosen["lr"][mode])
    every = max(steps // 10, 1)
    return f"trainer.max_steps={steps}", f"trainer.val_check_interval={every}", f"optimizer.lr={rate}"


def all_rows(done: Sequence[tuple[Ended, dict[str, Any]]], *, seed: int) -> list[Row]:
    """Of members that ended, each beside exact attention trained in the same way (of several, the first)."""
    exact: dict[tuple[str, str], Ended] = {}
    for one, about in done:
        if one.metrics and one.metrics["method"] == "exact":
            exact.setdefault((about["task"], about["mode"]), one)
    rows = [
        row
        for one, about in done
        for row in rows_of(one, about, seed=seed, exact=exact.get((about["task"], about["mode"])))
    ]
    return with_floors(with_arms(rows), done)


def with_arms(rows: list[Row]) -> list[Row]:
    """`arm`: the method alone where it says enough."""
    known: dict[str, set[str]] = {}
    for row in rows:
        known.setdefault(row["method"], set()).add(str(row["model"] or row["settings"]))

    def arm(row: Row) -> str:
        own = row["model"] or row["settings"]
        return f"{row['method']} ({own})" if own and len(known[row["method"]]) > 1 else row["method"]

    return [{**row, "arm": arm(row)} for row in rows]


def rows_of(one: Ended, about: dict[str, Any], *, seed: int, exact: Ended | None = None) -> list[Row]:
    """The member's figure on each set, with its interval and minus that of `exact`; untrained too, without those."""
    assert one.metrics is not None
    metrics, rows = one.metrics, []
    shared = {
        **about,
        "method": metrics["method"],
        "seed": metrics["seed"],
        "parameters": metrics["parameters"],
        "seconds": metrics["training"]["seconds"],
    }
    for name, found in metrics["sets"].items():
        for row in found["rows"]:
            if row["name"] not in ("trained", "untrained", "before training"):
                continue
            value = row["figures"].get(about["metric"])
            if row["name"] == "trained":
                low, high = _interval(one, name, found, about["metric"], seed)
                figures = {"value_low": low, "value_high": high, "steps": metrics["training"]["optimiser_steps"]}
                minus = None if exact is None or exact is one else _minus(one, exact, name, about["metric"], seed)
                if minus is not None:
                    figures |= {
                        "minus_exact": minus.value,
                        "minus_exact_low": minus.low,
                        "minus_exact_high": minus.high,
                    }
            elif about["mode"] != "scratch":
                continue  # a new head on a trained trunk: the same for frozen and fine-tuned, and no figure of interest
            else:
                figures = {"mode": "untrained", "steps": 0, "seconds": 0.0}
            rows.append(_row(**{**shared, "set": name, "value": value, "proteins": found["sequences"], **figures}))
    return rows


def _interval(one: Ended, name: str, found: dict[str, Any], metric: str, seed: int) -> tuple[float, float]:
    if metric == "accuracy":
        return accuracy_interval(one.folder / "per_protein.tsv", name, seed=seed)
    return spearman_interval(found["predictions"], seed=seed)


def _minus(one: Ended, exact: Ended, name: str, metric: str, seed: int) -> Difference | None:
    if metric == "accuracy":
        return paired_difference(one.folder, exact.folder, name, "accuracy", seed=seed)
    assert one.metrics is not None
    assert exact.metrics is not None
    own, other = (metrics["sets"].get(name, {}).get("predictions") for metrics in (one.metrics, exact.metrics))
    return None if own is None or other is None else spearman_difference(own, other, seed=seed)


def with_floors(rows: list[Row], ended: Sequence[tuple[Ended, dict[str, Any]]]) -> list[Row]:
    """A row for each floor of each task and set, and the best of them beside each figure."""
    floors: dict[tuple[str, str], dict[str, Row]] = {}
    for one, about in ended:
        assert one.metrics is not None
        for name, found in one.metrics["sets"].items():
            of_set = floors.setdefault((about["task"], name), {})
            for row in found["rows"]:
                value = row["figures"].get(about["metric"])
                if row["name"] in ("trained", "untrained", "before training") or value is None:
                    continue
                shown = {"task": about["task"], "set": name, "metric": about["metric"], "value": value}
                shown |= {"method": row["name"], "arm": row["name"], "mode": "floor"}
                of_set.setdefault(row["name"], _row(**shown, proteins=found["sequences"]))
    beside = []
    for row in rows:
        of_set = floors.get((row["task"], row["set"]), {})
        best = max(of_set.values(), key=lambda floor: floor["value"], default=None)
        known = {} if best is None else {"best_floor": best["value"], "best_floor_name": best["method"]}
        beside.append({**row, **known})
    return [*beside, *(row for of_set in floors.values() for row in of_set.values())]


def _row(**known: Any) -> Row:
    return {**dict.fromkeys(COLUMNS), **known}


def views(rows: list[Row]) -> list[View]:
    """Figures by mode, for each task and each of its evaluation sets but valid."""
    metrics = {row["task"]: row["metric"] for row in rows}
    named = {"accuracy": "accuracy", "spearman": "Spearman's rank correlation"}
    sets = dict.fromkeys((row["task"], row["set"]) for row in rows if row["set"] != "valid")
    return [
        View(
            title=f"{task.replace('_', ' ')}: {name}",
            kind="scatter",
            x="mode",
            y="value",
            low="value_low",
            high="value_high",
            x_label="how the model was trained",
            y_label=f"{named[metrics[task]]}, 95 % interval",
            where={"task": task, "set": name},
            line="arm",
        )
        for task, name in sets
    ]


def _print(rows: list[Row]) -> None:
    table = Table(title="Downstream tasks (95 % intervals over proteins)")
    figures = ("value", "minus exact's", "best floor")
    for column in ("task", "set", "mode", "method", *figures):
        table.add_column(column, justify="right" if column in figures else "left")
    for row in sorted(rows, key=lambda row: (row["task"], row["set"] != "test", row["set"], row["mode"], row["arm"])):
        if row["mode"] in ("floor", "untrained") or row["set"] == "valid":
            continue
        floor = "-" if row["best_floor"] is None else f"{row['best_floor']:.3f} ({row['best_floor_name']})"
        shown = (_shown(row, "value"), _shown(row, "minus_exact"), floor)
        table.add_row(row["task"], row["set"], row["mode"], row["arm"], *shown)
    Console(width=None if Console().is_terminal else WIDTH).print(table)


def _shown(row: Row, column: str) -> str:
    if row[column] is None:
        return "-"
    low, high, sign = row[f"{column}_low"], row[f"{column}_high"], "+" if column == "minus_exact" else ""
    text = f"{row[column]:{sign}.3f}"
    known = low is not None and high is not None and np.isfinite([low, high]).all()
    return f"{text} ({low:{sign}.3f} to {high:{sign}.3f})" if known else text
