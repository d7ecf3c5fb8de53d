"""Experiment 4, simulated: each attention learns to recall answers from far upstream, and is tested by distance.

The same small model, data, order and steps for each method (`protformer.data.simulate.recall` says what is asked). A
window sees no answer, so it can reach what the question alone says and no more. With `recall.stages` the distances grow
while it learns: each stage is a training run from the weights of the one before.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from rich.console import Console
from rich.table import Table

from protformer.errors import ProtformerError
from protformer.evaluation.analysis import Analysis, Row, View
from protformer.evaluation.log_analysis import conclude
from protformer.evaluation.members import Ended, Member, failures, override_key, run_members
from protformer.training.quoting import as_override
from protformer.training.settings import JobSettings

WIDTH = 120  # of tables where the output is no terminal

COLUMNS = {
    "part": "distance: of sequences of one distance, after training; curve: of the validation set, while training",
    "method": "attention, with the overrides that are not its group's; or a floor, which has no model",
    "seed": "of the run",
    "distance": "residues between the answers and the questions",
    "stage": "of the training, from 1; the validation set of a curve is its stage's",
    "step": "optimiser steps taken, of all stages",
    "seconds": "wall-clock seconds of training steps, of all stages",
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


@dataclass(frozen=True)
class Trained:
    """One attention: its stages that ended, and the first that did not."""

    entry: str
    stages: tuple[Ended, ...] = ()

    @property
    def last(self) -> Ended:
        return self.stages[-1]


def run(settings: JobSettings) -> dict[str, Any]:
    """Train members for each of `recall.methods`, stage by stage; rows.json in the run folder."""
    chosen = settings.config["recall"]
    for key, example in (("methods", "[exact,performer_relu]"), ("stages", "['trainer.max_steps=600']")):
        if isinstance(chosen[key], str) or (key == "methods" and not chosen[key]):
            wrong = "no list" if isinstance(chosen[key], str) else "empty"
            raise ProtformerError(f'recall.{key}={chosen[key]} is {wrong}: write for example "recall.{key}={example}".')
    stages = [str(stage) for stage in chosen["stages"]]
    _check_stages(stages, settings.overrides)
    trained = train(stages, [str(entry) for entry in chosen["methods"]], settings)
    data = settings.config["data"]
    ended = [one.last for one in trained]
    rows = [row for one in trained if one.last.metrics for row in rows_of(one, int(data["questions"]))]
    rows = floor_rows(ended) + rows
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
            _schedule(stages, data) + " Each distance is tested on sequences of its own.",
            "One small model and one learning rate for all, chosen so that exact attention learns the task: a method"
            " that fails may need more steps or another setting. Failing here shows that it did not learn it so.",
            "A window of w tokens in n layers sees n x w tokens; its global token (<cls>) sees and is seen by all.",
            *failures(ended),
        ],
        settings=chosen | {"seed": settings.config["seed"], "model": settings.config["model"], "data": data},
    )
    conclude(analysis, settings, lambda: _print(rows), ended=ended)
    return {row["method"]: row["accuracy"] for row in rows if row["part"] == "distance"}


def train(stages: Sequence[str], entries: Sequence[str], settings: JobSettings) -> list[Trained]:
    """All methods through the first stage, then those that ended through the next; the last is tested by distance."""
    stages = stages or [""]
    trained = [Trained(entry) for entry in entries]
    for number, stage in enumerate(stages, 1):
        going = [one for one in trained if not one.stages or one.last.metrics]
        further = (*stage.split(), *(() if number == len(stages) else ("data.distances=[]",)))
        members = [_member(one, number, further, many=len(stages) > 1) for one in going]
        done = dict(zip((one.entry for one in going), run_members(members, settings, own_key="recall"), strict=True))
        trained = [replace(one, stages=(*one.stages, *filter(None, [done.get(one.entry)]))) for one in trained]
    return trained


def _member(one: Trained, number: int, further: tuple[str, ...], *, many: bool) -> Member:
    """`sparse_window attention.global_tokens=0` is the choice of a group and what else the command line has."""
    method, *own = one.entry.split()
    label = f"{one.entry}-stage{number}" if many else one.entry
    start = (as_override("init_from", str(one.last.folder)),) if one.stages else ()
    return Member(label, (f"method={method}", *own, *further, *start))


def _check_stages(stages: Sequence[str], overrides: Sequence[str]) -> None:
    if len(set(stages)) < len(stages):
        raise ProtformerError("recall.stages names a stage twice: give each distances or steps of its own.")
    theirs = {override_key(setting) for stage in stages for setting in stage.split()}
    for override in overrides:
        if override_key(override) in theirs:
            raise ProtformerError(
                f"{override}: each of recall.stages sets {override_key(override)} itself. Change the stages, or write"
                " 'recall.stages=[]' to train in one."
            )


def _schedule(stages: Sequence[str], data: dict[str, Any]) -> str:
    if stages:
        return f"Trained in stages, each from the weights of the one before: {'; then '.join(stages)}."
    return (
        f"Trained on {data['train']:,} sequences with distances from {data['shortest']:,} to {data['longest']:,}"
        " residues (even on a log scale, all from the start)."
    )


def rows_of(one: Trained, questions: int) -> list[Row]:
    """Accuracy by distance after the last stage, and the learning curve through all. `questions` are a sequence's."""
    metrics = [stage.metrics for stage in one.stages if stage.metrics]
    last = metrics[-1]
    short = ", ".join(override.rpartition(".")[2] for override in one.entry.split()[1:])
    shared = {
        "method": f"{last['method']} ({short})" if short else last["method"],
        "seed": last["seed"],
        "parameters": last["parameters"],
        "peak_memory_bytes": max(found["training"]["peak_memory_bytes"] for found in metrics),
    }
    rows: list[Row] = []
    steps, seconds, curve = 0, 0.0, []
    for stage, found in enumerate(metrics, 1):
        for point in found["curve"]:
            if point["step"] or stage == 1:
                seen = {"stage": stage, "step": steps + point["step"], "seconds": seconds + point["seconds"]}
                curve.append({**seen, **_accuracy(point["figures"])})
        steps += found["training"]["optimiser_steps"]
        seconds += found["training"]["seconds"]
    done = {"stage": len(metrics), "step": steps, "seconds": seconds}
    for distance, found in _by_distance(last):
        figures = _accuracy(found["rows"][-1]["figures"])
        answered = {"questions": found["sequences"] * questions}
        rows.append({"part": "distance", **shared, "distance": distance, **done, **figures, **answered})
    rows += [{"part": "curve", **shared, "distance": None, **point, "questions": None} for point in curve]
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
            "stage": None,
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
            y_label="share answered rightly (validation set)",
            where={"part": "curve"},
        ),
        View(
            title="Learning to recall, by time",
            x="seconds",
            y="accuracy",
            x_label="seconds of training steps",
            y_label="share answered rightly (validation set)",
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
