"""Pictures as plain data, drawn twice: by matplotlib into files, by plotly on the page."""

import math
import re
import textwrap
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from protformer.evaluation.analysis import Analysis, View
from protformer.evaluation.methods import canonical, in_order

Row = dict[str, Any]
Number = float | int
Side = Literal["left", "right"]
NAME_HEIGHT = 0.06
"""Of a panel's height: what a name of a level line takes up."""
MOST_TICKS = 6
"""Values that have room for their numbers on a logarithmic axis of a panel."""
LABEL_WIDTH = 24
"""Characters in a line of a label beside a panel."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """A line, points, or the bars of one colour. `low` and `high` go with `y` (with `x` in kind "interval")."""

    label: str
    method: str
    x: list[Any]
    y: list[Any]
    variant: int = 0
    low: list[Number | None] | None = None
    high: list[Number | None] | None = None
    singles: list[Number] = field(default_factory=list)
    """Kind "interval": the value of each seed."""

    @property
    def lines(self) -> list[str]:
        """The label for the side of a panel: its settings below the method, each in one piece where it fits."""
        method, bracket, settings = self.label.partition(" (")
        if not bracket:
            return [method]
        hard = "\N{NO-BREAK SPACE}"
        whole = ", ".join(one if len(one) > LABEL_WIDTH else one.replace(" ", hard) for one in settings.split(", "))
        return [method, *(line.replace(hard, " ") for line in textwrap.wrap(f"({whole}", LABEL_WIDTH))]


@dataclass(frozen=True, kw_only=True)
class Rule:
    """A line across the panel at a value of the measured axis: a floor, or zero."""

    label: str
    value: Number


@dataclass(frozen=True, kw_only=True)
class Panel:
    title: str
    series: list[Series]
    x_label: str
    rules: list[Rule] = field(default_factory=list)
    y_range: tuple[Number, Number] | None = None

    @property
    def label_lines(self) -> int:
        """Of the longest label: rows are of one height, so it sets that of all, or it would run into the next."""
        return max((len(one.lines) for one in self.series), default=1)


@dataclass(frozen=True, kw_only=True)
class Chart:
    """`name` is that of its files. Kind "interval" has methods down the side and the measured axis across."""

    name: str
    title: str
    kind: Literal["line", "bar", "scatter", "interval"]
    y_label: str
    panels: list[Panel]
    x_scale: str = "linear"
    y_scale: str = "linear"
    caption: str = ""
    group: str = ""
    """The section of the page that it belongs to."""


def slug(text: str) -> str:
    """Fit for a file's name."""
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:40].strip("-") or "chart"


def analysis_charts(name: str, analysis: Analysis) -> list[Chart]:
    """An experiment's views of its rows; views without a row to draw are left out."""
    charts = []
    for place, view in enumerate(analysis.views):
        rows = [row for row in analysis.rows if _takes_part(row, view)]
        if not rows:
            continue
        values: Iterable[Any] = [None] if view.panel is None else dict.fromkeys(row.get(view.panel) for row in rows)
        panels = []
        for value in values:
            own = [row for row in rows if view.panel is None or row.get(view.panel) == value]
            title = _panel_title(view.panel, value, own)
            panels.append(Panel(title=title, x_label=view.x_label, series=_series(own, view)))
        charts.append(
            Chart(
                name=slug(f"{name}-{place + 1}-{view.title}"),
                title=view.title,
                kind=view.kind,
                y_label=view.y_label,
                panels=panels,
                x_scale=view.x_scale,
                y_scale=view.y_scale,
                group=name,
            )
        )
    return charts


def log_ticks(values: Iterable[Number]) -> list[Number]:
    """Of a logarithmic axis: the values themselves where they lie apart, counted from the greatest; else none."""
    distinct = sorted({value for value in values if value > 0})
    if not distinct or any(after < 1.4 * before for before, after in pairwise(distinct)):
        return []
    return distinct[:: -math.ceil(len(distinct) / MOST_TICKS)]


def rule_sides(panel: Panel) -> list[Side]:
    """Where each level line's name stands: at the side where fewer of the series run through it, and no other name."""
    values = [rule.value for rule in panel.rules]
    shown = [*values, *(panel.y_range or [y for one in panel.series for y in one.y if y is not None])]
    height = NAME_HEIGHT * (max(shown) - min(shown)) if shown else 0.0
    ends: dict[Side, list[Number]] = {"right": [], "left": []}
    sides: dict[int, Side] = {}
    for place in sorted(range(len(values)), key=values.__getitem__):
        value = values[place]
        crowds: dict[Side, tuple[bool, int]] = {
            side: (any(value - name < height for name in names), _crowd(panel, side, value, value + height))
            for side, names in ends.items()
        }
        sides[place] = min(crowds, key=crowds.__getitem__)
        ends[sides[place]].append(value)
    return [sides[place] for place in range(len(values))]


def _crowd(panel: Panel, side: Side, bottom: Number, top: Number) -> int:
    """How much of the series lies where a name would stand, in points along the outer quarter of the panel."""
    drawn = [[(x, y) for x, y in zip(one.x, one.y, strict=True) if y is not None] for one in panel.series]
    xs = [x for points in drawn for x, _ in points if not isinstance(x, str)]
    if not xs or len(xs) < sum(map(len, drawn)):
        return 0  # (places that have names: points stand anywhere)
    start, width = (min(xs), max(xs) - min(xs))
    along = np.linspace(0, 0.25, 26) if side == "left" else np.linspace(0.75, 1, 26)
    found = 0
    for points in filter(None, drawn):
        ys = np.interp(start + width * along, *zip(*sorted(points), strict=True), left=np.nan, right=np.nan)
        found += int(((ys > bottom) & (ys < top)).sum())
    return found


def _takes_part(row: Row, view: View) -> bool:
    known = all(isinstance(row.get(column), int | float) and math.isfinite(row[column]) for column in (view.y,))
    return known and row.get(view.x) is not None and all(row.get(k) == v for k, v in view.where.items())


def side_by_side(series: Sequence[Series]) -> tuple[list[str], list[list[Number]]]:
    """The names that are places of an axis, and where along it the points of each of `series` stand: those of one place
    beside one another, or they would lie upon each other. Without names, the points' own `x`."""
    names = list(dict.fromkeys(x for one in series for x in one.x if isinstance(x, str)))
    if not names:
        return [], [one.x for one in series]
    at = [[names.index(str(x)) for x in one.x] for one in series]
    together = Counter(place for places in at for place in places)
    step = 0.7 / max(together.values())
    taken: Counter[int] = Counter()
    found: list[list[Number]] = []
    for places in at:
        found.append([])
        for place in places:
            found[-1].append(place + (taken[place] - (together[place] - 1) / 2) * step)
            taken[place] += 1
    return names, found


def _panel_title(column: str | None, value: Any, rows: Sequence[Row]) -> str:
    """A name speaks for itself, a number needs its column's: "layer 3", and a model, whose run may be called by a hash,
    its method."""
    if column is None:
        return ""
    methods = {str(row.get("method", value)) for row in rows}
    if column == "model" and len(methods) == 1 and (method := methods.pop()) not in str(value):
        return f"{method}, {value}"
    return value if isinstance(value, str) else f"{column.replace('_', ' ')} {value}"


def _series(rows: Sequence[Row], view: View) -> list[Series]:
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        label = str(row.get(view.line))
        lines.setdefault((str(row.get("method", label)), label), []).append(row)
    counts: dict[str, int] = {}
    found = []
    for method in in_order(method for method, _ in lines):
        for (own, label), of_line in lines.items():
            if own != method:
                continue
            points = of_line if view.kind == "scatter" else _merged(of_line, view)
            low, high = (_column(points, column) for column in (view.low or "_low", view.high or "_high"))
            found.append(
                Series(
                    label=label if method in label else f"{method}, {label}",
                    method=method,
                    variant=counts.get(canonical(method), 0),
                    x=[row[view.x] for row in points],
                    y=[row[view.y] for row in points],
                    low=low if high else None,
                    high=high if low else None,
                )
            )
            counts[canonical(method)] = counts.get(canonical(method), 0) + 1
    return found


def _merged(rows: Sequence[Row], view: View) -> list[Row]:
    """One row for each x, in order: rows of one x (seeds, layers) become their mean, with their extremes as spread."""
    by_x: dict[Any, list[Row]] = {}
    for row in rows:
        by_x.setdefault(row[view.x], []).append(row)
    if all(isinstance(x, int | float) for x in by_x):
        by_x = dict(sorted(by_x.items()))
    if all(len(alike) == 1 for alike in by_x.values()):
        return [alike[0] for alike in by_x.values()]
    low, high = view.low or "_low", view.high or "_high"
    merged = []
    for x, alike in by_x.items():
        values = [row[view.y] for row in alike]
        ends = {low: min(values), high: max(values)} if len(values) > 1 else {}
        merged.append({**alike[0], view.x: x, view.y: sum(values) / len(values), **ends})
    return merged


def _column(rows: Sequence[Row], column: str) -> list[Number | None] | None:
    return None if all(row.get(column) is None for row in rows) else [row.get(column) for row in rows]
