"""Rows of `protformer benchmark attention` as a picture: time and memory against length, both axes logarithmic."""

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from protformer.errors import ProtformerError
from protformer.evaluation.attention_benchmark.rows import Row
from protformer.evaluation.methods import Look, look
from protformer.evaluation.plots import DASHES, MARKERS, new_figure, save_figure

DIRECTIONS = {"forward": "forward", "forward_backward": "forward + backward"}


def plot_rows(rows: Sequence[Row], output: Path) -> None:
    """Time above, peak memory beside inputs and outputs below; a column for each type and direction.

    Bars are from the shortest to the longest call. A slope is fitted to logarithms of the longer half of the lengths
    (three at least). The picture's type is that of `output`'s ending. ProtformerError where there is nothing to draw.
    """
    drawn = [row for row in rows if row["kind"] == "single" and row["ms"] is not None]
    panels = list(dict.fromkeys((row["dtype"], row["direction"]) for row in drawn))
    if not panels:
        raise ProtformerError(
            "There is no timed sequence in these rows to draw (rows of --pack and --crossover are not)."
        )
    remembered = any(row.get("peak_bytes") is not None for row in drawn)
    lines = list(dict.fromkeys(_line(row) for row in drawn))
    figure = new_figure(figsize=(4.2 * len(panels) + 2.6, 6.4 if remembered else 3.8))
    axes = figure.subplots(2 if remembered else 1, len(panels), sharex=True, sharey="row", squeeze=False)
    handles: dict[str, Any] = {}
    for column, panel in enumerate(panels):
        dtype, direction = panel
        axes[0][column].set_title(f"{dtype}, {DIRECTIONS[direction]}", fontsize=10)
        for line in lines:
            of_line = [row for row in drawn if (row["dtype"], row["direction"]) == panel and _line(row) == line]
            of_line.sort(key=lambda row: row["length"])
            if not of_line:
                continue
            own = _look(line, lines)
            options = {
                "color": own.colour,
                "linestyle": DASHES[own.dash],
                "marker": MARKERS[own.marker],
                "lw": 1.6,
                "ms": 4,
            }
            lengths = [row["length"] for row in of_line]
            times = [row["ms"] for row in of_line]
            spread = [[row["ms"] - row["ms_min"] for row in of_line], [row["ms_max"] - row["ms"] for row in of_line]]
            label = line[0] if line[1] is None else f"{line[0]}, {line[1]} features"
            handle = axes[0][column].errorbar(lengths, times, yerr=spread, capsize=2, **options)
            handles.setdefault(label, handle)
            slope = _slope(lengths, times)
            if slope is not None:
                axes[0][column].annotate(f"{slope:.2f}", (lengths[-1], times[-1]), xytext=(6, 0), va="center",
                                         textcoords="offset points", fontsize=7, color=options["color"])  # fmt: skip
            peaks = [(row["length"], row["peak_bytes"] / 1e6) for row in of_line if row.get("peak_bytes")]
            if peaks and remembered:
                axes[1][column].plot(*zip(*peaks, strict=True), **options)
    measured = sorted({row["length"] for row in drawn})
    ticks = measured[:: math.ceil(len(measured) / 8)]
    for axis in itertools.chain(*axes):
        axis.set_xscale("log", base=2)
        axis.set_yscale("log")
        axis.grid(which="major", lw=0.4, alpha=0.6)
        axis.spines[["top", "right"]].set_visible(False)
        axis.set_xticks(ticks, [f"{length:,}" for length in ticks], rotation=35, ha="right", fontsize=8)
        axis.minorticks_off()
        axis.margins(x=0.12)
    axes[0][0].set_ylabel("milliseconds (the number: slope)")
    if remembered:
        axes[1][0].set_ylabel("peak beside inputs\nand outputs, MB")
    first = drawn[0]
    figure.supxlabel("tokens of one sequence", fontsize=10)
    figure.suptitle(
        f"Attention, {first['heads']} heads of {first['dim']}{', causal' if first['causal'] else ''}: "
        f"{first['hardware']['cpu']}, {first['threads']} threads, torch {first['versions']['torch']}",
        fontsize=10,
    )
    figure.legend(list(handles.values()), list(handles), loc="outside right upper", fontsize=8, frameon=False)
    save_figure(figure, output)


def _line(row: Row) -> tuple[str, int | None]:
    return row["implementation"], row["features"]


def _look(line: tuple[str, int | None], lines: Sequence[tuple[str, int | None]]) -> Look:
    """That of the method; several counts of random features of one implementation differ by dashes and marker."""
    return look(line[0], [other for other in lines if other[0] == line[0]].index(line))


def _slope(lengths: Sequence[int], times: Sequence[float]) -> float | None:
    """Of log time over log length by least squares, over the longer half."""
    half = max(3, math.ceil(len(lengths) / 2))
    points = [(math.log(x), math.log(y)) for x, y in zip(lengths, times, strict=True)][-half:]
    if len(points) < 3:
        return None
    mean_x, mean_y = (sum(values) / len(points) for values in zip(*points, strict=True))
    return sum((x - mean_x) * (y - mean_y) for x, y in points) / sum((x - mean_x) ** 2 for x, _ in points)
