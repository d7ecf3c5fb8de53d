"""Experiment 4, simulated: each attention learns to recall answers from far upstream, and is tested by distance.

The same small model, data, order and steps for each method (`protformer.data.simulate.recall` says what is asked). A
window sees no answer, so it can reach what the question alone says and no more.
"""

import re
from typing import Any

from rich.console import Console
from rich.table import Table

from protformer.errors import ProtformerError, shown_path
from protformer.evaluation.analysis import Analysis, Row, View
from protformer.evaluation.log_analysis import conclude
from protformer.evaluation.members import Ended, Member, failures, require_all, run_members
from protformer.training.settings import JobSettings

WIDTH = 120  # of tables where the output is no terminal

COLUMNS = {
    "part": "distance: of sequences of one distance, after training; curve: of the validation set, while training",
    "method": "attention, with the overrides that are not its group's; or a floor, which has no model",
    "seed": "of the run",
    "distance": "residues between the answers and the questions",
    "step": "optimiser steps taken",
    "seconds": "wall-clock seconds of training steps",
    "accuracy": "share of questions answered rightly",
    "accuracy_low": "of the 95 % interval over sequences (bootstrap)",
    "accuracy_high": "of the 95 % interval over sequences (bootstrap)",
    "perplexity": "at the questions' masks",
    "questions": "answered in this set",
    "parameters": "of the model, the attention's own included",
    "peak_memory_bytes": "resident memory of the run's process at its peak (CPU) or allocated on the device (CUDA)",
}
_COUNTING = {
    False: "No decoys: the values stand nowhere else in a sequence, so counting its letters exactly answers too, at any"
    " distance: see the floor flanks. What is shown is reach, the strength of one token among thousands, and not the"
    " binding of a value to its key.",
    True: "With decoys: counting letters gives nothing, and a value is known by its key beside it alone.",
}
_DISTANCE = re.compile(r"distance_(\d+)$")
FLOORS = ("unigram", "question alone", "flanks")


def run(settings: JobSettings) -> dict[str, Any]:
    """Train a member for each of `recall.methods`; rows.json in the run folder."""
    chosen = settings.config["recall"]
    if not chosen["methods"] or isinstance(chosen["methods"], str):
        raise ProtformerError(
            f"recall.methods={chosen['methods']} is no list: write for example 'recall.methods=[exact,performer_relu]'."
        )
    members = [_member(str(entry)) for entry in chosen["methods"]]
    ended = run_members(members, settings, own_key="recall")
    rows = [row for one in ended if one.metrics for row in rows_of(one, int(settings.config["data"]["questions"]))]
    rows = floor_rows(ended) + rows
    data = settings.config["data"]
    analysis = Analysis(
        kind="long_recall",
        title="Answers thousands of residues away",
        question="Which attentions find an answer that stands far upstream of its question?",
        rows=rows,
        views=views(),
        columns=COLUMNS,
        notes=[
            _COUNTING[bool(data["decoys"])],
            "Simulated. Each key has five possible values, so the question alone answers 1 in 5, and only what stands"
            " far upstream the rest.",
            f"Trained on {data['train']:,} sequences with distances from {data['shortest']:,} to {data['longest']:,}"
            " residues (even on a log scale, no curriculum); each distance is tested on sequences of its own.",
            "One small model and one learning rate for all, chosen so that exact attention learns the task: a method"
            " that fails may need more steps or another setting. Failing here shows that it did not learn it so.",
            "A window of w tokens in n layers sees n x w tokens; its global token (<cls>) sees and is seen by all.",
            *failures(ended),
        ],
        settings=chosen | {"seed": settings.config["seed"], "model": settings.config["model"], "data": data},
    )
    path = conclude(analysis, settings)
    _print(rows)
    print(f"Rows: {shown_path(path)}")
    require_all(ended, path)
    return {row["method"]: row["accuracy"] for row in rows if row["part"] == "distance"}


def _member(entry: str) -> Member:
    """`sparse_window attention.global_tokens=0` is the choice of a group and what else the command line has."""
    method, *further = entry.split()
    return Member(entry, (f"method={method}", *further))


def rows_of(one: Ended, questions: int) -> list[Row]:
    """Of a member: accuracy by distance, and its learning curve. `questions` are those of a sequence."""
    assert one.metrics is not None
    metrics = one.metrics
    further = one.member.overrides[1:]
    short = ", ".join(override.rpartition(".")[2] for override in further)
    shared = {
        "method": f"{metrics['method']} ({short})" if short else metrics["method"],
        "seed": metrics["seed"],
        "parameters": metrics["parameters"],
        "peak_memory_bytes": metrics["training"]["peak_memory_bytes"],
    }
    rows = []
    for distance, found in _by_distance(metrics):
        trained = found["rows"][-1]["figures"]
        rows.append(
            {
                "part": "distance",
                **shared,
                "distance": distance,
                "step": metrics["training"]["optimiser_steps"],
                "seconds": metrics["training"]["seconds"],
                **_accuracy(trained),
                "questions": found["sequences"] * questions,
            }
        )
    for point in metrics["curve"]:
        seen = {"step": point["step"], "seconds": point["seconds"], **_accuracy(point["figures"])}
        rows.append({"part": "curve", **shared, "distance": None, **seen, "questions": None})
    return rows


def floor_rows(ended: list[Ended]) -> list[Row]:
    """What needs no model, by distance; the same for all members, so it is taken from one."""
    metrics = next(one.metrics for one in ended if one.metrics)
    return [
        {
            "part": "distance",
            "method": row["name"],
            "seed": None,
            "distance": distance,
            "step": None,
            "seconds": None,
            **_accuracy(row["figures"]),
            "questions": None,
            "parameters": 0,
            "peak_memory_bytes": None,
        }
        for distance, found in _by_distance(metrics)
        for row in found["rows"]
        if row["name"] in FLOORS
    ]


def _by_distance(metrics: dict[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    named = [(_DISTANCE.match(name), found) for name, found in metrics["sets"].items()]
    return sorted(((int(match[1]), found) for match, found in named if match), key=lambda pair: pair[0])


def _accuracy(figures: dict[str, Any]) -> Row:
    names = {"accuracy": "accuracy_mask", "accuracy_low": "accuracy_mask_low", "accuracy_high": "accuracy_mask_high"}
    return {**{name: figures.get(key) for name, key in names.items()}, "perplexity": figures.get("perplexity_mask")}


def views() -> list[View]:
    y_label = "share of questions answered rightly"
    return [
        View(
            title="Recall by distance",
            x="distance",
            y="accuracy",
            low="accuracy_low",
            high="accuracy_high",
            x_label="residues between answer and question",
            y_label=y_label,
            x_scale="log",
            where={"part": "distance"},
        ),
        View(
            title="Learning to recall, by steps",
            x="step",
            y="accuracy",
            x_label="optimiser steps",
            y_label=f"{y_label} (validation set)",
            where={"part": "curve"},
        ),
        View(
            title="Learning to recall, by time",
            x="seconds",
            y="accuracy",
            x_label="seconds of training steps",
            y_label=f"{y_label} (validation set)",
            where={"part": "curve"},
        ),
    ]


def _print(rows: list[Row]) -> None:
    tested = [row for row in rows if row["part"] == "distance"]
    distances = sorted({row["distance"] for row in tested})
    table = Table(title="Questions answered rightly, by residues between answer and question (95 % interval)")
    table.add_column("method")
    for distance in distances:
        table.add_column(f"{distance:,}", justify="right")
    table.add_column("seconds", justify="right")
    for method in dict.fromkeys(row["method"] for row in tested):
        of_method = {row["distance"]: row for row in tested if row["method"] == method}
        seconds = next(iter(of_method.values()))["seconds"]
        cells = [_shown(of_method[distance]) if distance in of_method else "-" for distance in distances]
        table.add_row(method, *cells, "" if seconds is None else f"{seconds:,.0f}")
    Console(width=None if Console().is_terminal else WIDTH).print(table)


def _shown(row: Row) -> str:
    if row["accuracy"] is None:
        return "-"
    text = f"{100 * row['accuracy']:.1f} %"
    if row["accuracy_low"] is None:
        return text
    return f"{text} ({100 * row['accuracy_low']:.0f} to {100 * row['accuracy_high']:.0f})"
