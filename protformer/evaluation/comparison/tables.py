"""Tables of a report as plain data: written as Markdown, as HTML that sorts, and on the terminal."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from protformer.evaluation.comparison.answer import percent, signed
from protformer.evaluation.comparison.comparison import Comparison
from protformer.evaluation.comparison.paper import PAPER
from protformer.evaluation.comparison.statistics import ALL, Row


@dataclass(frozen=True)
class Cell:
    """`value` is what a column is sorted by; None sorts last."""

    text: str
    value: float | int | str | None = None


@dataclass(frozen=True)
class Line:
    """A table's row; `label` and `method` of those that can be toggled."""

    cells: list[Cell]
    label: str | None = None
    method: str | None = None
    is_floor: bool = False


@dataclass(frozen=True)
class Table:
    title: str
    headings: list[str]
    lines: list[Line]
    notes: list[str] = field(default_factory=list)
    words: int = 1
    """Leading columns of words; the others are figures, set to the right."""


NOTHING = Cell("\u2013")


def result_table(comparison: Comparison, name: str, part: str = ALL) -> Table:
    """Methods, then floors, on one evaluation set (or a novelty bin of it)."""
    headline, rows = comparison.headline, comparison.of_set(name, part)
    column, beside = headline.column, headline.beside[0]
    interval = " (95 %)" if any(row.get(f"{column}_low") is not None for row in rows) else ""
    columns: list[tuple[str, Callable[[Row], Cell]]] = [
        (f"{headline.label}{interval}", lambda row: figure(row, column)),
    ]
    if any(f"{column}_before" in row for row in rows):
        columns.append(("before training", lambda row: figure(row, f"{column}_before")))
    if any(f"{column}_difference" in row for row in rows):
        columns.append(("minus exact\u2019s (95 %)", lambda row: _difference(row, f"{column}_difference")))
    if any("gap" in row for row in rows):
        columns.append(("share of the gap (95 %)", _share))
    columns.append((named(beside), lambda row: figure(row, beside)))
    if any(row.get("seeds", 0) > 1 for row in rows if row["kind"] == "method"):
        columns.append(("seeds, min to max", lambda row: _extremes(row, column)))
    columns += [
        (named(other), lambda row, other=other: figure(row, other))
        for other in headline.beside[1:]
        if any(row.get(other) is not None for row in rows)
    ]
    lines = []
    for row in rows:
        is_floor = row["kind"] == "floor"
        label = None if is_floor else str(row["method"])
        seeds = NOTHING if is_floor else Cell(str(row["seeds"]), row["seeds"])
        cells = [Cell(row["method"], row["method"]), seeds, *(cell(row) for _, cell in columns)]
        lines.append(Line(cells, label, None if is_floor else row["family"], is_floor=is_floor))
    proteins = next((row["proteins"] for row in rows if row.get("proteins")), None)
    targets = next((row["targets"] for row in rows if row.get("targets")), None)
    counted = [f"{count:,} {what}" for count, what in ((proteins, "proteins"), (targets, "targets")) if count]
    size = ", ".join(counted)
    title = f"{name}{'' if part == ALL else f', {part}'}{f': {size}' if size else ''}"
    return Table(title, ["method", "seeds", *(heading for heading, _ in columns)], lines)


def named(column: str) -> str:
    """A column of metrics.json in words."""
    name, _, where = column.partition("_")
    if name not in ("perplexity", "accuracy"):
        return column.replace("_", " ")
    return {"": name, "mask": f"{name} at <mask>", "residues": f"{name} of the next residue"}.get(
        where, f"{name}, all targets"
    )


def figure(row: Row, column: str) -> Cell:
    """A figure with its interval, if there is one."""
    value = row.get(column)
    if value is None:
        return NOTHING
    low, high = row.get(f"{column}_low"), row.get(f"{column}_high")
    scale, digits, unit = (100, 2, " %") if column.startswith("accuracy") else (1, 2 if abs(value) >= 1 else 3, "")
    told = f"{scale * value:.{digits}f}"
    if low is not None and high is not None:
        told += f" ({scale * low:.{digits}f} to {scale * high:.{digits}f})"
    return Cell(told + unit, value)


def _extremes(row: Row, column: str) -> Cell:
    low, high = row.get(f"{column}_seed_min"), row.get(f"{column}_seed_max")
    if low is None or high is None or row.get("seeds", 0) < 2:
        return NOTHING
    digits = 2 if abs(low) >= 1 else 3
    return Cell(f"{low:.{digits}f} to {high:.{digits}f}", high - low)


def _difference(row: Row, column: str) -> Cell:
    return NOTHING if row.get(column) is None else Cell(signed(row, column), row[column])


def _share(row: Row) -> Cell:
    if row.get("share") is not None:
        return Cell(percent(row), row["share"])
    if row.get("share_note") and row["family"] not in ("exact", "uniform"):
        return Cell("no gap to share")
    return NOTHING


def cost_table(comparison: Comparison) -> Table:
    """A run a line: what it took."""
    headings = [
        "method", "seed", "residues/s", "peak memory, MB", "training, minutes", "CPU, minutes", "residues, M", "steps",
        "parameters, M", "of attention", "threads", "processes", "redraws",
    ]  # fmt: skip
    lines = []
    for cost in comparison.costs:
        cells = [
            Cell(cost["method"], cost["method"]),
            Cell(str(cost["seed"]), cost["seed"]),
            _number(cost["residues_per_second"], 1, "{:,.0f}"),
            _number(cost["peak_memory_bytes"], 1e6, "{:,.0f}"),
            _number(cost["seconds"], 60, "{:,.1f}"),
            _number(cost["cpu_seconds"], 60, "{:,.1f}"),
            _number(cost["residues"], 1e6, "{:,.2f}"),
            _number(cost["optimiser_steps"], 1, "{:,.0f}"),
            _number(cost["parameters"], 1e6, "{:,.3f}"),
            *(
                _number(cost[key], 1, "{:,.0f}")
                for key in ("parameters_of_attention", "threads", "processes", "redraws")
            ),
        ]
        lines.append(Line(cells, cost["method"], cost["family"]))
    return Table("What each run took", headings, lines)


def _number(value: Any, unit: float | int, form: str) -> Cell:
    return NOTHING if value is None else Cell(form.format(value / unit), value)


def run_table(comparison: Comparison) -> Table:
    """A run a line: what was run, where, from which commit."""
    headings = ["run", "method", "seed", "commit", "when", "machine", "weights", "overrides"]
    keys = ("run", "method", "seed", "commit", "time", "device", "weights", "overrides")
    lines = [
        Line([_words(cost[key]) for key in keys], cost["method"], cost["family"]) for cost in comparison.costs
    ]  # fmt: skip
    return Table("What was run", headings, lines, words=8)


def data_table(comparison: Comparison) -> Table:
    """What all runs have in common: data by hash."""
    run = comparison.runs[0]
    lines = []
    for name, data in run.comparison.get("data", {}).items():
        cells = [
            _words(name),
            _number(data.get("sequences"), 1, "{:,.0f}"),
            _number(data.get("sampled_from"), 1, "{:,.0f}"),
            _number(data.get("residues"), 1, "{:,.0f}"),
            _words(str(data.get("sha256"))[:16]),
        ]
        lines.append(Line(cells))
    return Table("The data", ["set", "sequences", "sampled from", "residues", "sha256 (first 16)"], lines)


def knob_table(comparison: Comparison) -> Table:
    """A setting a line, with the values it takes and the methods that have each."""
    lines = []
    for knob in comparison.knobs:
        told = "; ".join(f"{value}: {', '.join(methods)}" for value, methods in knob.values.items())
        lines.append(Line([_words(knob.key), _words("the attention" if knob.is_attention else "other"), _words(told)]))
    return Table("Settings that differ", ["setting", "of", "values"], lines, words=3)


def missing_table(comparison: Comparison) -> Table:
    lines = [Line([_words(member.name), _words(member.reason)]) for member in comparison.missing]
    return Table("Missing members", ["member", "why"], lines, words=2)


def paper_table() -> Table:
    lines = [
        Line([
            _words(row.model),
            Cell(f"{row.perplexity:.2f}", row.perplexity), Cell(f"{100 * row.accuracy:.2f} %", row.accuracy),
            Cell(f"{row.ood_perplexity:.2f}", row.ood_perplexity),
            Cell(f"{100 * row.ood_accuracy:.2f} %", row.ood_accuracy),
        ])
        for row in PAPER
    ]  # fmt: skip
    headings = ["model", "test perplexity", "test accuracy", "out-of-distribution perplexity", "accuracy there"]
    return Table("The paper's protein figures", headings, lines)


def rows_tables(rows: Sequence[Row], columns: dict[str, str]) -> list[Table]:
    """An experiment's rows as they are, bounds beside their figure: a table with its own columns for each `part`."""
    parts = list(dict.fromkeys(row.get("part") for row in rows))
    if len(parts) < 2:
        return [_rows_table("The rows", rows, columns)] if rows else []
    chosen = ([row for row in rows if row.get("part") == part] for part in parts)
    titles = (f"The rows: {'others' if part is None else str(part).replace('_', ' ')}" for part in parts)
    return [_rows_table(title, some, columns) for title, some in zip(titles, chosen, strict=True)]


def _rows_table(title: str, rows: Sequence[Row], columns: dict[str, str]) -> Table:
    bounds = {f"{name}_{end}" for name in columns for end in ("low", "high")}
    known = [name for name in dict.fromkeys([*columns, *(k for row in rows for k in row)]) if name not in bounds]
    known = [name for name in known if any(row.get(name) is not None for row in rows)]
    lines = [
        Line([_plain(row, name) for name in known], str(row["method"]) if "method" in row else None, row.get("method"))
        for row in rows
    ]
    words = next(
        (i for i, n in enumerate(known) if any(isinstance(row.get(n), int | float) for row in rows)), len(known)
    )
    return Table(title, [name.replace("_", " ") for name in known], lines, words=max(words, 1))


def _plain(row: Row, name: str) -> Cell:
    value = row.get(name)
    if value is None:
        return NOTHING
    if isinstance(value, bool) or not isinstance(value, int | float):
        return Cell(str(value), str(value))
    low, high = row.get(f"{name}_low"), row.get(f"{name}_high")
    told = f"{value:,}" if isinstance(value, int) else f"{value:.4g}"
    if isinstance(low, int | float) and isinstance(high, int | float):
        told += f" ({low:.4g} to {high:.4g})"
    return Cell(told, value)


def _words(value: Any) -> Cell:
    return NOTHING if value is None else Cell(str(value), str(value))


def pairs_table(title: str, headings: tuple[str, str], pairs: Mapping[str, Any]) -> Table:
    """Names and what they stand for, a line each."""
    lines = [Line([_words(name), _words(_listed(value))]) for name, value in pairs.items()]
    return Table(title, list(headings), lines, words=2)


def _listed(value: Any) -> Any:
    return ", ".join(map(str, value)) if isinstance(value, list) else value


def markdown(table: Table) -> str:
    """The table as Markdown, under its title."""
    marks = ["---"] * table.words + ["---:"] * (len(table.headings) - table.words)
    lines = [f"**{safe_markdown(table.title)}**", "", _joined(table.headings), _joined(marks, safe=False)]
    lines += [_joined([cell.text for cell in line.cells]) for line in table.lines]
    return "\n".join([*lines, *(f"\n{note}" for note in table.notes), ""])


def _joined(cells: Sequence[str], *, safe: bool = True) -> str:
    return f"| {' | '.join(safe_markdown(cell) if safe else cell for cell in cells)} |"


def safe_markdown(text: str) -> str:
    """Without what Markdown would take for a table's or HTML's own."""
    text = re.sub(r"([\\|\[\]*`!])", r"\\\1", text.replace("&", "&amp;"))
    return text.replace("<", "&lt;").replace(">", "&gt;").replace("\n", " ")
