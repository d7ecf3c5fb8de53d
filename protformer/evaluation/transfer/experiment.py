"""Experiment 5: weights trained with exact attention, loaded into a Performer, without training and with some steps.

The paper did so on text (arXiv 2009.14794, section 4.2: 0.07 accuracy before training, back to the original within a
small share of its steps). Each estimator and number of features is a run from the same weights, beside three that say
what the figures are worth: exact attention trained on for as many steps (what could be kept), the same weights under
uniform attention (what they do without attention), and a Performer from scratch (what the steps alone are worth).
"""

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rich.console import Console
from rich.table import Table

from protformer.errors import ProtformerError
from protformer.evaluation.analysis import Analysis, Row, View
from protformer.evaluation.log_analysis import conclude
from protformer.evaluation.members import Ended, Member, failures, run_members
from protformer.evaluation.paired import paired_difference
from protformer.model import read_config
from protformer.training.quoting import as_override
from protformer.training.settings import JobSettings

WIDTH = 120  # of tables where the output is no terminal

REFERENCES = ("exact", "uniform")
"""Members that the trained Performers are held against, on the same proteins."""
COLUMNS = {
    "part": "curve: on the validation set, at each validation; final: on each evaluation set, at step 0 and at the end",
    "method": "attention that the weights are under",
    "start": "weights at step 0: transferred or scratch",
    "features": "random features; those without are repeated beside each number of them",
    "seed": "of the run",
    "set": "evaluation set",
    "step": "optimiser steps since the transfer",
    "residues": "seen since then",
    "seconds": "wall-clock seconds of training steps",
    "when": "final: without training, or trained",
    "accuracy": "at <mask> (next_residue: at residues)",
    "accuracy_low": "of the 95 % interval over proteins (bootstrap)",
    "accuracy_high": "of the 95 % interval over proteins (bootstrap)",
    "perplexity": "at the same targets",
    "perplexity_low": "of the 95 % interval over proteins (bootstrap)",
    "perplexity_high": "of the 95 % interval over proteins (bootstrap)",
    **{
        f"{figure}_minus_{reference}{end}": words
        for reference in REFERENCES
        for figure in ("accuracy", "perplexity")
        for end, words in (
            ("", f"trained: minus that of {reference} attention after as many steps, on the same proteins"),
            ("_low", "of the paired 95 % interval over proteins (bootstrap)"),
            ("_high", "of the paired 95 % interval over proteins (bootstrap)"),
        )
    },
}
BEFORE = ("before training", "untrained")
FLOORS = ("unigram", "own composition", "flanks")
SCRATCH = "performer-positive from scratch"
FROM_FOLDER = ("model", "method")
"""Choices of the command line that the members make themselves, or that the weights bring."""


def run(settings: JobSettings) -> dict[str, Any]:
    """Run a member for each estimator and number of features; rows.json in the run folder."""
    chosen = settings.config["transfer"]
    model = chosen["model"]
    if not model:
        raise ProtformerError("Say whose weights: transfer.model=FOLDER, a run or model folder with exact attention.")
    if not chosen["features"] or not chosen["num_features"]:
        raise ProtformerError("transfer.features and transfer.num_features name the Performers: neither may be empty.")
    if not all(isinstance(number, int) and number > 0 for number in chosen["num_features"]):
        raise ProtformerError(f"transfer.num_features={chosen['num_features']}: each must be a whole number above 0.")
    trunk = read_config(model)["model"]["trunk"]
    if trunk["attention"].get("name") != "ExactAttention":
        raise ProtformerError(
            f"transfer.model={model}: its weights were not trained with exact attention but with"
            f" {trunk['attention'].get('name')}; the experiment says what weights of exact attention keep."
        )
    notes = [
        "The curve at step 0 is the transfer without training. Each run has its own projections (of its seed).",
        "`exact` is trained on like the others, at the same learning rate: it is what there is to keep, not a ceiling.",
    ]
    ended = run_members(members_of(chosen, str(model)), settings, own_key="transfer")
    references = {one.member.label: one for one in ended if one.metrics and one.member.label in REFERENCES}
    rows = [row for one in ended if one.metrics for row in rows_of(one, chosen["num_features"], references)]
    rows += floor_rows(ended, chosen["num_features"])
    headline = "accuracy at <mask>" if settings.config["task"].get("causal") is not True else "accuracy at residues"
    analysis = Analysis(
        kind="transfer",
        title="From exact attention to the Performer",
        question="How much do weights of exact attention keep under random features, and how soon is it back?",
        rows=rows,
        views=views(headline, main_set(rows), chosen["num_features"]),
        columns=COLUMNS,
        notes=[*answer(rows), *notes, *failures(ended)],
        settings={**chosen, "seed": settings.config["seed"], "trunk": trunk},
    )
    conclude(analysis, settings, lambda: _print(rows), ended=ended)
    return {"rows": len(rows)}


def members_of(chosen: dict[str, Any], model: str) -> list[Member]:
    """Exact and uniform attention, every estimator and number of features, and a Performer from scratch."""
    start = as_override("init_from", model)
    members = [Member(name, (f"attention={name}", start), FROM_FOLDER) for name in ("exact", "uniform")]
    for features in chosen["features"]:
        for number in chosen["num_features"]:
            options = (f"features={features}", f"features.num_features={number}")
            members.append(
                Member(f"performer-{features}-{number}", ("attention=performer", *options, start), FROM_FOLDER)
            )
    if chosen["scratch"]:
        shape = read_config(model)["model"]["trunk"]
        names = ("hidden_size", "num_layers", "num_heads", "intermediate_size", "rotary_base", "token_dropout")
        same = tuple(f"model.{name}={shape[name]}" for name in names if name in shape)
        options = ("features=positive", f"features.num_features={max(chosen['num_features'])}", "init_from=null")
        members.append(Member("scratch", ("attention=performer", *options, *same), FROM_FOLDER))
    return members


def rows_of(one: Ended, numbers: list[int], references: Mapping[str, Ended] | None = None) -> list[Row]:
    """The member's curve and its figures on each set; beside each number of features where it has none.

    Trained, minus those of `references` (exact and uniform attention) where they ended.
    """
    assert one.metrics is not None
    metrics, name = one.metrics, one.member.label
    scratch = name == "scratch"
    number = None if name in ("exact", "uniform") or scratch else int(name.rpartition("-")[2])
    minus = {name: _minus(one, references or {}, name) for name in metrics["sets"]}
    rows: list[Row] = []
    for features in [number] if number is not None else numbers:
        shared = {
            "method": SCRATCH if scratch else metrics["method"],
            "start": "scratch" if scratch else "transferred",
            "features": features,
            "seed": metrics["seed"],
        }
        for point in metrics["curve"]:
            seen = {key: point[key] for key in ("step", "residues", "seconds")}
            rows.append(_row(part="curve", **shared, **seen, set="valid", **_figures(point["figures"])))
        done = metrics["training"]
        for evaluation, found in metrics["sets"].items():
            for row in found["rows"]:
                if row["name"] not in (*BEFORE, "trained"):
                    continue
                trained = row["name"] == "trained"
                seen = {"step": done["optimiser_steps"], "residues": done["residues"], "seconds": done["seconds"]}
                seen = seen if trained else dict.fromkeys(seen, 0)
                when = "trained" if trained else "without training"
                figures = {**_figures(row["figures"]), **(minus[evaluation] if trained else {})}
                rows.append(_row(part="final", **shared, **seen, set=evaluation, when=when, **figures))
    return rows


def _minus(one: Ended, references: Mapping[str, Ended], name: str) -> Row:
    found: Row = {}
    figures: tuple[Literal["accuracy", "perplexity"], ...] = ("accuracy", "perplexity")
    for label, reference in references.items():
        for figure in figures if label != one.member.label else ():
            difference = paired_difference(one.folder, reference.folder, name, figure)
            if difference is not None:
                column = f"{figure}_minus_{label}"
                found |= {column: difference.value, f"{column}_low": difference.low, f"{column}_high": difference.high}
    return found


def floor_rows(ended: list[Ended], numbers: list[int]) -> list[Row]:
    """Floors without a model, from one member: all have the same data."""
    metrics = next(one.metrics for one in ended if one.metrics)
    return [
        _row(part="final", method=row["name"], features=features, set=name, when=when, **_figures(row["figures"]))
        for name, found in metrics["sets"].items()
        for row in found["rows"]
        if row["name"] in FLOORS
        for features in numbers
        for when in ("without training", "trained")
    ]


def _row(**known: Any) -> Row:
    return {**dict.fromkeys(COLUMNS), **known}


def _figures(figures: dict[str, Any]) -> Row:
    headline = "residues" if "accuracy_residues" in figures else "mask"
    return {
        f"{name}{end}": figures.get(f"{name}_{headline}{end}")
        for name in ("accuracy", "perplexity")
        for end in ("", "_low", "_high")
    }


def main_set(rows: list[Row]) -> str:
    return "test" if any(row["set"] == "test" for row in rows) else "valid"


def answer(rows: list[Row]) -> list[str]:
    """What the figures on the main set say, of the Performers the best; empty where exact attention has none."""
    name = main_set(rows)
    of_set = [row for row in rows if row["part"] == "final" and row["set"] == name and row["accuracy"] is not None]
    told = []
    for when, words in (("without training", "Without training"), ("trained", "Trained on")):
        by_method = {row["method"]: row for row in of_set if row["when"] == when and row["start"] is not None}
        performers = [
            row
            for row in of_set
            if row["when"] == when and row["start"] == "transferred" and row["method"] not in REFERENCES
        ]
        if "exact" not in by_method or not performers:
            return []
        best = max(performers, key=lambda row: row["accuracy"])
        others = [
            f"{row['method']} {_shown(row, 'accuracy')}"
            for row in by_method.values()
            if row["method"] in ("exact", "uniform", SCRATCH)
        ]
        steps = f" for {best['step']:,} steps" if when == "trained" else ""
        which = f"of {len(performers)} Performers the best has" if len(performers) > 1 else "the Performer has"
        told.append(
            f"{words}{steps}, on {name}: {which} an accuracy of"
            f" {_shown(best, 'accuracy')} ({best['method']}, {best['features']} features); {', '.join(others)}."
        )
    finite = [row for row in performers if row["perplexity"] is not None]  # (None: it diverged)
    best = min(finite, key=lambda row: row["perplexity"], default=None)
    if best and best["perplexity_minus_exact"] is not None and best["perplexity_minus_uniform"] is not None:
        told.append(
            f"In perplexity the best trained Performer ({best['method']}, {best['features']} features,"
            f" {best['perplexity']:.2f}) is at {_apart(best, 'exact')} of exact attention and {_apart(best, 'uniform')}"
            " of uniform attention, on the same proteins (95 % interval, paired; the best of several, one seed)."
        )
    return told


def _apart(row: Row, reference: str) -> str:
    value, low, high = (row[f"perplexity_minus_{reference}{end}"] for end in ("", "_low", "_high"))
    return f"{value:+.2f} ({low:+.2f} to {high:+.2f})"


def views(headline: str, name: str, numbers: Sequence[int]) -> list[View]:
    """The curve, and the figures on the set `name` against the number of features, or by method where there is one
    number alone: as they are without training, minus those of exact attention when trained."""
    curve = View(
        title="Accuracy after the transfer",
        x="step",
        y="accuracy",
        x_label="optimiser steps since the transfer",
        y_label=f"{headline} (validation set)",
        panel="features",
        where={"part": "curve"},
    )
    shown = [
        ("Accuracy without training", "accuracy", headline, "without training"),
        ("Accuracy when trained, minus exact attention's", "accuracy_minus_exact", "difference of accuracy", "trained"),
        ("Perplexity when trained, minus exact attention's", "perplexity_minus_exact",
         "difference of perplexity", "trained"),
    ]  # fmt: skip
    many = len(numbers) > 1
    final = [
        View(
            title=f"{title}, on {name}",
            kind="line" if many else "scatter",
            x="features" if many else "method",
            y=column,
            low=f"{column}_low",
            high=f"{column}_high",
            x_label="random features of a head" if many else "attention after the transfer, or floor",
            y_label=f"{y_label} (95 % over proteins)",
            x_scale="log" if many else "linear",
            where={"part": "final", "when": when, "set": name},
        )
        for title, column, y_label, when in shown
    ]
    return [curve, *final]


def _print(rows: list[Row]) -> None:
    final = [row for row in rows if row["part"] == "final"]
    name = main_set(final)
    table = Table(title=f"Weights of exact attention, on {name} (95 % intervals over proteins)")
    for column in ("method", "features", "accuracy before", "after", "perplexity before", "after", "minus exact's"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=column != "method")
    of_set = [row for row in final if row["set"] == name]
    seen: set[tuple[Any, ...]] = set()
    for row in of_set:
        features = row["features"] if str(row["method"]).startswith("performer") and row["start"] != "scratch" else ""
        key = (row["method"], features)
        if key in seen:
            continue
        seen.add(key)
        both = {
            when: next(
                (
                    other
                    for other in of_set
                    if other["when"] == when
                    and other["method"] == row["method"]
                    and (features == "" or other["features"] == features)
                ),
                None,
            )
            for when in ("without training", "trained")
        }
        cells = [_shown(both[when], figure) for figure in ("accuracy", "perplexity") for when in both]
        cells.append(_shown(both["trained"], "perplexity_minus_exact"))
        table.add_row(str(row["method"]), str(features), *cells)
    Console(width=None if Console().is_terminal else WIDTH).print(table)


def _shown(row: Row | None, figure: str) -> str:
    if row is None or row[figure] is None:
        return "-"
    scale, unit = (100, " %") if figure == "accuracy" else (1, "")
    text = f"{scale * row[figure]:{'+' if 'minus' in figure else ''}.2f}{unit}"
    low, high = row[f"{figure}_low"], row[f"{figure}_high"]
    return text if low is None or high is None else f"{text} ± {scale * (high - low) / 2:.2f}"
