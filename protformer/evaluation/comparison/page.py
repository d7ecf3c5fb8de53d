"""The report as one HTML page: data, style, program and plotly are in it, so that it opens without a network.

`page.html` is the frame, with places written {{like this}}. Whatever comes from runs (names, overrides, ids) is
escaped: as HTML in text, and as JSON without `<`, `>` and `&` in the data, so that no name can end a script.
"""

import html
import importlib.resources
import json
import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from protformer.errors import ProtformerError
from protformer.evaluation.comparison.charts import Chart, Number, Panel, Series, log_ticks, rule_sides, side_by_side
from protformer.evaluation.comparison.tables import Cell, Table
from protformer.evaluation.methods import FLOOR_COLOUR, in_order, look

PLOTLY_MARKERS = {"triangle-up": "triangle-up", "triangle-down": "triangle-down", "cross": "x"}


@dataclass
class Section:
    """A heading and what stands below it, in this order: sentences, the charts and tables, then folded tables."""

    title: str
    sentences: list[str] = field(default_factory=list)
    content: list[Chart | Table | str] = field(default_factory=list)
    """Of text, each a paragraph."""
    folded: list[Table] = field(default_factory=list)
    level: int = 2


def render(title: str, lead: Sequence[str], facts: Sequence[str], sections: Sequence[Section]) -> str:
    """The page. `lead` are the sentences of the first screen, `facts` a line below them."""
    charts: list[dict[str, Any]] = []
    methods = _drawn(sections)
    body = "\n".join(_section(place, section, charts, methods) for place, section in enumerate(sections))
    order = in_order(method for method, _ in methods.values())
    labels = sorted(methods, key=lambda label: (order.index(methods[label][0]), methods[label][1]))
    chips = "\n".join(_chip(label, *methods[label]) for label in labels)
    links = "\n".join(
        f'<a href="#section-{place}">{html.escape(section.title)}</a>'
        for place, section in enumerate(sections)
        if section.level == 2
    )
    return _filled(
        _file("page.html"),
        {
            "title": html.escape(title),
            "lead": "\n".join(f"<p>{html.escape(sentence)}</p>" for sentence in lead),
            "facts": " \u00b7 ".join(map(html.escape, facts)),
            "links": links,
            "chips": chips,
            "sections": body,
            "style": _file("page.css"),
            "program": _file("page.js"),
            "plotly": _plotly(),
            "charts": as_json(charts),
        },
    )


def as_json(value: Any) -> str:
    """JSON that may stand inside a script element, whatever its strings hold; NaN and infinities become null."""
    text = json.dumps(_finite(value), ensure_ascii=False, allow_nan=False)
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(v) for v in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _file(name: str) -> str:
    return importlib.resources.files("protformer.evaluation.comparison").joinpath(name).read_text(encoding="utf-8")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ProtformerError("The page's curves need plotly: pip install 'protformer[plots]'.") from error
    return get_plotlyjs()


def _filled(template: str, values: dict[str, str]) -> str:
    """In one pass, so that what a value holds is never taken for a place."""
    return re.sub(r"\{\{(\w+)\}\}", lambda match: values[match[1]], template)


def _section(place: int, section: Section, charts: list[dict[str, Any]], methods: dict[str, tuple[str, int]]) -> str:
    heading = f"h{section.level}"
    parts = [f'<section id="section-{place}"><{heading}>{html.escape(section.title)}</{heading}>']
    parts += [f'<p class="answer">{html.escape(sentence)}</p>' for sentence in section.sentences]
    for item in section.content:
        if isinstance(item, str):
            parts.append(f"<p>{html.escape(item)}</p>")
        elif isinstance(item, Table):
            parts.append(_table(item, methods))
        else:
            parts.append(_chart(item, charts, methods))
    for item in section.folded:
        parts.append(
            f"<details><summary>{html.escape(item.title)}</summary>{_table(item, methods, titled=False)}</details>"
        )
    return "\n".join([*parts, "</section>"])


def _drawn(sections: Sequence[Section]) -> dict[str, tuple[str, int]]:
    """What can be toggled, and how tables mark it: each method that a chart draws, with the look that it has there."""
    methods: dict[str, tuple[str, int]] = {}
    charts = (item for section in sections for item in section.content if isinstance(item, Chart))
    for one in (one for chart in charts for panel in chart.panels for one in panel.series):
        methods.setdefault(one.label, (one.method, one.variant))
    return methods


def _chip(label: str, method: str, variant: int) -> str:
    words = html.escape(label)
    inside = _mark(method, variant) + words
    return f'<button type="button" class="chip" aria-pressed="true" data-label="{words}">{inside}</button>'


def _mark(method: str, variant: int = 0) -> str:
    """A short piece of the method's line."""
    found = look(method, variant)
    dashes = {"solid": "none", "dash": "5 3", "dot": "1.5 2.5", "dashdot": "6 2 1.5 2"}[found.dash]
    return (
        '<svg class="mark" viewBox="0 0 24 10" aria-hidden="true"><line x1="0" y1="5" x2="24" y2="5" stroke-width="3" '
        f'stroke="{found.colour}" stroke-dasharray="{dashes}"/></svg>'
    )


def _table(table: Table, methods: dict[str, tuple[str, int]], *, titled: bool = True) -> str:
    if not table.lines:
        return ""
    side = ["" if place < table.words else ' class="figure"' for place in range(len(table.headings))]
    headings = "".join(
        f'<th scope="col"{side[place]} aria-sort="none"><button type="button">{html.escape(words)}</button></th>'
        for place, words in enumerate(table.headings)
    )
    rows = []
    for line in table.lines:
        marked = _mark(line.method, methods.get(line.label, ("", 0))[1]) if line.label and line.method else ""
        name = f' data-label="{html.escape(line.label)}"' if line.label else ""
        cells = []
        for place, cell in enumerate(line.cells):
            value = _sort_value(cell)
            is_name = place == 0 or (table.headings[place] == "method" and table.words > 1)
            own = marked if table.headings[place] == "method" else ""
            text = own + html.escape(cell.text)
            tag = 'th scope="row"' if is_name and place == 0 else "td"
            cells.append(f"<{tag}{side[place]}{value}>{text}</{tag.split()[0]}>")
        rows.append(
            f"<tr{' class=' + chr(34) + 'floor' + chr(34) if line.is_floor else ''}{name}>{''.join(cells)}</tr>"
        )
    caption = f"<caption>{html.escape(table.title)}</caption>" if titled else ""
    notes = "".join(f'<p class="note">{html.escape(note)}</p>' for note in table.notes)
    return (
        f'<div class="wide"><table class="sortable">{caption}<thead><tr>{headings}</tr></thead>'
        f"<tbody>{''.join(rows)}</tbody></table></div>{notes}"
    )


def _sort_value(cell: Cell) -> str:
    """The attribute that a column is sorted by; without it, page.js takes the text, so long tables weigh less."""
    value = "" if cell.value is None else cell.value if isinstance(cell.value, str) else repr(float(cell.value))
    if not value or value in (cell.text, f"{cell.text}.0"):
        return ""
    return f' data-value="{html.escape(value)}"'


def _chart(chart: Chart, charts: list[dict[str, Any]], methods: dict[str, tuple[str, int]]) -> str:
    panels = []
    for panel in chart.panels:
        number = len(charts)
        charts.append(_figure(chart, panel))
        title = f"<h4>{html.escape(panel.title)}</h4>" if panel.title else ""
        height = 90 + len(panel.series) * max(30, 15 * panel.label_lines + 6) if chart.kind == "interval" else 330
        label = html.escape(f"{chart.title} {panel.title}".strip())
        panels.append(
            f'<div class="panel">{title}<div class="plot" id="plot-{number}" style="height:{max(height, 170)}px" '
            f'role="img" aria-label="{label}"></div></div>'
        )
    caption = f"<figcaption>{html.escape(chart.caption)}</figcaption>" if chart.caption else ""
    many = " many" if len(panels) > 1 else ""
    title = html.escape(chart.title)
    return f'<figure><h3>{title}</h3><div class="panels{many}">{"".join(panels)}</div>{caption}</figure>'


def _figure(chart: Chart, panel: Panel) -> dict[str, Any]:
    """Plotly's traces and layout; colours of text and grid are the page's, which knows light from dark."""
    interval = chart.kind == "interval"
    categories, places = side_by_side(panel.series)
    beside = not interval and chart.kind != "bar" and bool(categories)
    series = panel.series
    if beside:
        series = [replace(one, x=xs) for one, xs in zip(panel.series, places, strict=True)]
    traces = [trace for one in series for trace in _traces(chart, one, bars=beside)]
    xs, ys = ([value for one in panel.series for value in getattr(one, axis)] for axis in ("x", "y"))
    measured: dict[str, Any] = {"title": {"text": _text(panel.x_label)}, **_scale(chart.x_scale, xs)}
    if chart.x_scale == "log":
        ticks = log_ticks(x for x in xs if not isinstance(x, str))
        measured |= {"tickvals": ticks, "dtick": None} if ticks else {}
    if beside:
        named = {"tickvals": list(range(len(categories))), "ticktext": [_text(x) for x in categories]}
        # (a label that is turned reaches beyond the plot, where Plotly would leave it out)
        turned = {"tickangle": -35, "ticklabeloverflow": "allow"} if sum(map(len, categories)) > 36 else {}
        measured |= {"type": "linear", **named, **turned, "range": [-0.5, len(categories) - 0.5]}
    elif categories and not interval:
        measured["type"] = "category"
    other: dict[str, Any] = {"title": {"text": _text(chart.y_label)}, **_scale(chart.y_scale, ys)}
    if interval:
        other = {"autorange": "reversed", "type": "category"}
    elif panel.y_range is not None:
        other["range"] = [math.log10(y) if chart.y_scale == "log" else y for y in panel.y_range]
    axis = "x" if interval else "y"
    shapes, notes = [], []
    sides = [] if interval else rule_sides(panel)
    for place, rule in enumerate(panel.rules):
        value = rule.value
        far = {f"{axis}0": value, f"{axis}1": value, f"{axis}ref": axis}
        across = {"x0": 0, "x1": 1, "xref": "paper"} if not interval else {"y0": 0, "y1": 1, "yref": "paper"}
        shapes.append({"type": "line", **far, **across, "line": {"color": FLOOR_COLOUR, "width": 1, "dash": "dot"},
                       "layer": "below"})  # fmt: skip
        where = {
            "x": math.log10(value) if chart.x_scale == "log" and value > 0 else value,
            "y": 1,
            "yref": "paper",
            "yanchor": "bottom",
            "yshift": 11 * (place % 3),
            "xanchor": "center",
        }
        if not interval:
            shown = math.log10(value) if chart.y_scale == "log" and value > 0 else value
            where = {
                "y": shown,
                "x": int(sides[place] == "right"),
                "xref": "paper",
                "xanchor": sides[place],
                "yanchor": "bottom",
            }
        notes.append(
            {**where, "text": _text(rule.label), "showarrow": False, "font": {"size": 10, "color": FLOOR_COLOUR}}
        )
    return {"data": traces, "layout": {"xaxis": measured, "yaxis": other, "shapes": shapes, "annotations": notes,
                                       "barmode": "group", "rules": len(panel.rules) if interval else 0}}  # fmt: skip


def _scale(scale: str, values: Iterable[Any]) -> dict[str, Any]:
    """An axis' type; a logarithmic one has whole numbers ("2M" for millions), where Plotly writes the first digit."""
    if scale != "log":
        return {"type": scale}
    shown = [value for value in values if isinstance(value, int | float) and value > 0]
    greatest, least = max(shown, default=1), min(shown, default=1)
    # (within some two decades Plotly would name all nine digits of each, on top of one another)
    few = {"dtick": "D2"} if 3 <= greatest / least < 1000 else {}
    return {"type": scale, "tickformat": "~s" if greatest >= 1e6 else ",~g", **few}


def _text(words: str) -> str:
    """Plotly reads some HTML in texts."""
    return html.escape(words, quote=False).replace("\n", "<br>")


def _traces(chart: Chart, one: Series, *, bars: bool = False) -> list[dict[str, Any]]:
    found = look(one.method, one.variant)
    name = _text(one.label)
    base: dict[str, Any] = {"name": name, "meta": one.label, "showlegend": False}
    marker = {"color": found.colour, "symbol": PLOTLY_MARKERS.get(found.marker, found.marker), "size": 6}
    if chart.kind == "interval":
        place = _text("\n".join(one.lines))
        traces = []
        if one.singles:
            traces.append({**base, "type": "scatter", "mode": "markers", "x": one.singles,
                           "y": [place] * len(one.singles),
                           "marker": {"symbol": "line-ns", "size": 12, "line": {"color": found.colour, "width": 1.5}},
                           "hovertemplate": "seed: %{x:.4g}<extra></extra>"})  # fmt: skip
        errors = {"error_x": _errors(one, one.x, found.colour)} if one.low and one.high else {}
        return [*traces, {**base, "type": "scatter", "mode": "markers", "x": one.x, "y": [place] * len(one.x),
                          "marker": {**marker, "size": 9}, **errors}]  # fmt: skip
    xs = [_text(x) if isinstance(x, str) else x for x in one.x]
    if chart.kind == "bar":
        errors = {"error_y": _errors(one, one.y, found.colour)} if one.low and one.high else {}
        return [{**base, "type": "bar", "x": xs, "y": one.y, "marker": {"color": found.colour}, **errors}]
    mode = "markers" if chart.kind == "scatter" else "lines+markers"
    line = {"color": found.colour, "dash": found.dash, "width": 2}
    drawn = {**base, "type": "scatter", "mode": mode, "x": xs, "y": one.y, "line": line, "marker": marker}
    if not (one.low and one.high):
        return [drawn]
    if chart.kind == "scatter" or bars or len(one.x) == 1:  # (a band has no width there)
        return [{**drawn, "error_y": _errors(one, one.y, found.colour)}]
    low = [y if end is None else end for y, end in zip(one.y, one.low, strict=True)]
    high = [y if end is None else end for y, end in zip(one.y, one.high, strict=True)]
    fill = "rgba({}, {}, {}, 0.16)".format(*(int(found.colour[i : i + 2], 16) for i in (1, 3, 5)))
    band = {**base, "type": "scatter", "mode": "lines", "x": [*xs, *xs[::-1]], "y": [*high, *low[::-1]],
            "fill": "toself", "fillcolor": fill, "line": {"width": 0}, "hoverinfo": "skip"}  # fmt: skip
    return [band, drawn]


def _errors(one: Series, middle: Sequence[Number], colour: str) -> dict[str, Any]:
    low, high = one.low or [], one.high or []
    return {
        "type": "data", "symmetric": False, "color": colour, "thickness": 1.5, "width": 4,
        "array": [0 if end is None else max(end - m, 0) for m, end in zip(middle, high, strict=True)],
        "arrayminus": [0 if end is None else max(m - end, 0) for m, end in zip(middle, low, strict=True)],
    }  # fmt: skip
