"""Charts as files, by matplotlib: PNG to look at, SVG to print."""

import textwrap
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from protformer.evaluation.comparison.charts import Chart, Number, Panel, Series, log_ticks, rule_sides, side_by_side
from protformer.evaluation.methods import FLOOR_COLOUR, Look, look
from protformer.evaluation.plots import DASHES, MARKERS, new_figure, save_figure

ENDINGS = ("png", "svg")
ROW = 3
"""Panels beside one another."""


def draw(chart: Chart, folder: Path) -> list[Path]:
    """`folder`/NAME.png and .svg; ProtformerError where matplotlib is not installed."""
    columns = min(len(chart.panels), ROW)
    rows = -(-len(chart.panels) // columns)
    figure = _figure(chart, columns, rows)
    axes = figure.subplots(rows, columns, squeeze=False, sharey=chart.kind == "interval")
    handles: dict[str, Any] = {}
    flat = [axis for row in axes for axis in row]
    for place, (axis, panel) in enumerate(zip(flat, chart.panels, strict=False)):
        if chart.kind == "interval":
            _intervals(axis, panel, handles)
        elif chart.kind == "bar":
            _bars(axis, panel, handles)
        else:
            _lines(axis, panel, chart, handles)
        axis.set_xlabel(panel.x_label, fontsize=9)
        if place % columns == 0 and chart.y_label:
            axis.set_ylabel(_wrapped(chart.y_label), fontsize=9)
        if panel.title:
            axis.set_title(textwrap.fill(panel.title, 42), fontsize=9.5, loc="left")
        axis.tick_params(labelsize=8)
        if chart.kind == "interval":
            axis.locator_params(axis="x", nbins=5)
        axis.spines[["top", "right"]].set_visible(False)
    for axis in flat[len(chart.panels) :]:
        axis.set_visible(False)
    figure.suptitle(textwrap.fill(chart.title, 44 * columns), fontsize=11, x=0.01, ha="left")
    if chart.kind != "interval":  # (in the middle of its side, for at the top a title would run into it)
        figure.legend(list(handles.values()), list(handles), loc="outside right center", fontsize=8, frameon=False)
    written = []
    for ending in ENDINGS:
        path = folder / f"{chart.name}.{ending}"
        save_figure(figure, path)
        written.append(path)
    return written


def _wrapped(label: str) -> str:
    """In lines that fit the height of a panel; its own line breaks stay."""
    return "\n".join(textwrap.fill(line, 40) for line in label.splitlines())


def _figure(chart: Chart, columns: int, rows: int) -> Any:
    if chart.kind == "interval":
        lines = max(len(panel.series) * max(panel.label_lines, 1.6) for panel in chart.panels)
        return new_figure(figsize=(3.1 * columns + 1.9, rows * (1.25 + 0.19 * lines) + 0.4))
    return new_figure(figsize=(3.5 * columns + 2.1, 3.1 * rows + 0.5))


def _options(one: Series) -> tuple[Look, dict[str, Any]]:
    found = look(one.method, one.variant)
    return found, {"color": found.colour, "linestyle": DASHES[found.dash], "marker": MARKERS[found.marker]}


def _lines(axis: Any, panel: Panel, chart: Chart, handles: dict[str, Any]) -> None:
    series = [_above_zero(one) if chart.y_scale == "log" else one for one in panel.series]
    categories, places = side_by_side(series)
    for one, xs in zip(series, places, strict=True):
        _, options = _options(one)
        if chart.kind == "scatter":
            handle = axis.scatter(
                xs,
                one.y,
                s=20 if categories else 12,
                alpha=1 if categories else 0.6,
                color=options["color"],
                marker=options["marker"],
            )
        else:
            (handle,) = axis.plot(xs, one.y, lw=1.5, ms=3.8, **options)
        handles.setdefault(one.label, handle)
        if one.low is None or one.high is None:
            continue
        if categories or chart.kind == "scatter" or len(xs) == 1:
            axis.errorbar(xs, one.y, yerr=_errors(one, one.y), fmt="none", ecolor=options["color"], lw=0.9, capsize=2)
        else:
            low, high = (_filled(ends, one.y) for ends in (one.low, one.high))
            axis.fill_between(xs, low, high, color=options["color"], alpha=0.16, lw=0)
    for rule, side in zip(panel.rules, rule_sides(panel), strict=True):
        axis.axhline(rule.value, color=FLOOR_COLOUR, lw=0.8, ls=(0, (2, 2)), zorder=0)
        end, inwards = (0, 2) if side == "left" else (1, -2)
        axis.annotate(rule.label, (end, rule.value), xycoords=("axes fraction", "data"), xytext=(inwards, 2), ha=side,
                      textcoords="offset points", fontsize=7, color=FLOOR_COLOUR)  # fmt: skip
    if categories:
        axis.set_xlim(-0.5, len(categories) - 0.5)
        axis.set_xticks(range(len(categories)), categories, rotation=30, ha="right")
    elif chart.x_scale != "log" and all(isinstance(x, int) for one in panel.series for x in one.x):
        axis.xaxis.get_major_locator().set_params(integer=True)  # no half layers or steps
    elif chart.x_scale == "log":
        axis.set_xscale("log")
        xs = [x for one in panel.series for x in one.x if not isinstance(x, str)]
        _label_log_axis(axis.xaxis, xs, log_ticks(xs))
    if chart.y_scale == "log":
        axis.set_yscale("log")
        _label_log_axis(axis.yaxis, [y for one in panel.series for y in one.y])
    if panel.y_range is not None:
        axis.set_ylim(*panel.y_range)
    axis.grid(which="major", lw=0.4, alpha=0.5)


def _above_zero(one: Series) -> Series:
    """Without the points that a logarithmic axis has no place for (memory of 0: less than could be measured)."""
    kept = [place for place, y in enumerate(one.y) if y is None or y > 0]
    if len(kept) == len(one.y):
        return one
    columns = {name: getattr(one, name) for name in ("x", "y", "low", "high")}
    return replace(one, **{name: [found[i] for i in kept] for name, found in columns.items() if found is not None})


def _label_log_axis(axis: Any, values: Sequence[Number], ticks: Sequence[Number] = ()) -> None:
    """Plain numbers that do not overlap, at `ticks` where there are any.

    Matplotlib's own labels of a short log axis (2 x 10^1, 3 x 10^1, ...) run into one another.
    """
    from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter

    distinct = sorted({value for value in values if value > 0})
    if not distinct:
        return
    axis.set_minor_formatter(NullFormatter())
    if ticks:
        axis.set_ticks(ticks)
    elif distinct[-1] < 4 * distinct[0]:  # powers of ten, and two and five times them, may all lie outside
        axis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10]))
    elif distinct[-1] < 100 * distinct[0]:
        axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    else:
        return
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))


def _bars(axis: Any, panel: Panel, handles: dict[str, Any]) -> None:
    categories = list(dict.fromkeys(str(x) for one in panel.series for x in one.x))
    width = 0.8 / max(len(panel.series), 1)
    for number, one in enumerate(panel.series):
        found, _ = _options(one)
        xs = [categories.index(str(x)) + (number - (len(panel.series) - 1) / 2) * width for x in one.x]
        errors = _errors(one, one.y) if one.low is not None else None
        hatch = {"solid": "", "dash": "//", "dot": "..", "dashdot": "xx"}[found.dash]
        handle = axis.bar(xs, one.y, width, color=found.colour, hatch=hatch, edgecolor="white", lw=0.4, yerr=errors,
                          error_kw={"lw": 0.9, "capsize": 2})  # fmt: skip
        handles.setdefault(one.label, handle)
    for rule in panel.rules:
        axis.axhline(rule.value, color=FLOOR_COLOUR, lw=0.8, ls=(0, (2, 2)))
    axis.set_xticks(range(len(categories)), categories, rotation=30 if len(categories) > 3 else 0,
                    ha="right" if len(categories) > 3 else "center")  # fmt: skip
    axis.grid(axis="y", lw=0.4, alpha=0.5)


def _intervals(axis: Any, panel: Panel, handles: dict[str, Any]) -> None:
    for place, one in enumerate(panel.series):
        _, options = _options(one)
        if one.low is not None and one.high is not None:
            axis.errorbar(
                one.x, [place], xerr=_errors(one, one.x), fmt="none", ecolor=options["color"], lw=1.6, capsize=3
            )
        axis.plot(one.singles, [place + 0.22] * len(one.singles), ".", ms=4, color=options["color"], alpha=0.65)
        (handle,) = axis.plot(one.x, [place], ms=6, **{**options, "linestyle": "none"})
        handles.setdefault(one.label, handle)
    axis.margins(x=0.08)
    for rule in panel.rules:
        axis.axvline(rule.value, color=FLOOR_COLOUR, lw=0.8, ls=(0, (2, 2)), zorder=0)
    start, end = axis.get_xlim()
    for number, rule in enumerate(panel.rules):
        # to the left of its line, but where there is no room for so many letters
        side = 1 if rule.value - start < 0.02 * len(rule.label) * (end - start) else -1
        axis.annotate(rule.label, (rule.value, 1), xycoords=("data", "axes fraction"), textcoords="offset points",
                      xytext=(2 * side, -2 - 8 * (number % 3)), fontsize=6.5, color=FLOOR_COLOUR,
                      ha="left" if side > 0 else "right", va="top")  # fmt: skip
    axis.set_yticks(range(len(panel.series)), ["\n".join(one.lines) for one in panel.series])
    axis.set_ylim(len(panel.series) - 0.4, -0.9)  # the first at the top, room for the floors' names
    axis.grid(axis="x", lw=0.4, alpha=0.5)


def _errors(one: Series, middle: Sequence[Number]) -> list[list[Number]]:
    """[2, points]: how far down and up; nothing where a point has no interval."""
    low, high = _filled(one.low, middle), _filled(one.high, middle)
    down = [max(m - end, 0.0) for m, end in zip(middle, low, strict=True)]
    up = [max(end - m, 0.0) for m, end in zip(middle, high, strict=True)]
    return [down, up]


def _filled(ends: list[Number | None] | None, middle: Sequence[Number]) -> list[Number]:
    return [m if end is None else end for m, end in zip(middle, ends or [None] * len(middle), strict=True)]
