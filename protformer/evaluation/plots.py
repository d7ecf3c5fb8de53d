"""Pictures of a run: what it reached, beside its floors, on each evaluation set."""

import os
from pathlib import Path
from typing import Any

from protformer.errors import ProtformerError
from protformer.evaluation.headlines import headline_of
from protformer.evaluation.methods import FLOOR_COLOUR, look

# Of rows that are no floor. (A trained model has the colour of its method.)
COLOURS = {
    "before training": "#BBBBBB",
    "untrained": "#BBBBBB",
    "best reachable": "#009E73",
    "knowing the true state": "#56B4E9",
}
# matplotlib's names of a look's dashes and marker
DASHES = {"solid": "-", "dash": (0, (5, 2)), "dot": (0, (1.5, 1.5)), "dashdot": (0, (5, 2, 1.5, 2))}
MARKERS = {
    "circle": "o", "square": "s", "diamond": "D", "triangle-up": "^", "triangle-down": "v", "cross": "X", "star": "*",
    "pentagon": "p",
}  # fmt: skip


def plot_run(metrics: dict[str, Any], output: Path) -> None:
    """Bars of the run's headline figure by evaluation set, floors included, with 95 % intervals where there are any.

    The picture's type is that of `output`'s ending; it is written to a temporary name and renamed.
    """
    sets, headline = metrics["sets"], headline_of(metrics)
    if headline is None:
        raise ProtformerError("This run has no figure that can be drawn.")
    column = headline.column
    known = {**COLOURS, "trained": look(metrics.get("method") or "performer-positive").colour}
    names = list(sets)
    figure = new_figure(figsize=(3.3 * len(names) + 1.6, 3.6))
    axes = figure.subplots(1, len(names), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, names, strict=True):
        rows = [r for r in sets[name]["rows"] if r["figures"].get(column) is not None][::-1]
        values = [r["figures"][column] for r in rows]
        errors = [
            [v - (r["figures"].get(f"{column}_low") or v) for r, v in zip(rows, values, strict=True)],
            [(r["figures"].get(f"{column}_high") or v) - v for r, v in zip(rows, values, strict=True)],
        ]
        colours = [known.get(r["name"], FLOOR_COLOUR) for r in rows]
        axis.barh([r["name"] for r in rows], values, xerr=errors, color=colours, error_kw={"lw": 1, "capsize": 2})
        for place, value in enumerate(values):
            axis.annotate(f"{value:.3g}" if value < 1 else f"{value:.2f}", (value, place), xytext=(6, 0),
                          textcoords="offset points", va="center", fontsize=8)  # fmt: skip
        axis.set_title(f"{name}: {sets[name]['sequences']:,} proteins", fontsize=10)
        axis.set_xlim(0, max(values) * 1.2)
        axis.spines[["top", "right"]].set_visible(False)
    figure.supxlabel(f"{headline.label} ({headline.direction})", fontsize=10)
    figure.suptitle(metrics["run"], fontsize=11)
    save_figure(figure, output)


def new_figure(*, figsize: tuple[float, float]) -> Any:
    """A figure of this size in inches; ProtformerError where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ProtformerError("Plots need matplotlib: pip install 'protformer[plots]'.") from error
    return Figure(figsize=figsize, layout="constrained")


def save_figure(figure: Any, output: Path) -> None:
    """Written to a temporary name and renamed; ProtformerError for an ending that matplotlib does not know."""
    temporary = output.with_name(f".{os.getpid()}.{output.name}")
    try:
        figure.savefig(temporary, dpi=150)
        temporary.replace(output)
    except ValueError as error:
        raise ProtformerError(f"{output}: {error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
