"""Rows as people read them: a table for each type and direction, then what follows from them in sentences."""

import statistics
from collections.abc import Callable, Collection, Iterable, Sequence
from itertools import groupby

from rich import box
from rich.console import Console
from rich.table import Table

from protformer.evaluation.attention_benchmark.rows import REFERENCE, Row, label

WIDTH = 120  # where the output is no terminal
BUSY = 0.1  # share of the cores that others may have before figures are doubtful
DROPPED = ("min to max", "/ in+out", "of matmul", "extra MB")  # columns, in this order, where there is no room
DIRECTION_NAMES = {"forward": "forward", "forward_backward": "forward + backward"}
KIND_NAMES = {"single": "Attention", "pack": "A pack of proteins", "crossover": "Crossover with sdpa"}


def print_rows(rows: Sequence[Row], console: Console | None = None) -> None:
    """Tables, the contenders that were left out, a summary, and how to read it all."""
    console = console or Console(width=None if Console().is_terminal else WIDTH)

    def heading(row: Row) -> tuple[str, str, str]:
        return row["kind"], row["dtype"], row["direction"]

    for wanted in dict.fromkeys(map(heading, rows)):
        group = [row for row in rows if heading(row) == wanted]
        if wanted[0] == "growth":
            continue  # a sentence of the summary
        console.print(_title(group[0]), highlight=False, style="bold")
        console.print(_crossover_table(group) if wanted[0] == "crossover" else _fitting(group, console))
    for paragraph in (left_out(rows), summary(rows), notes(rows)):
        for line in paragraph:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
        if paragraph:
            console.print()


def _title(row: Row) -> str:
    causal = ", causal" if row["causal"] else ""
    source = f"; {row['segments']} of {row['source']}, the longest {row['longest']:,} tokens" if row["source"] else ""
    shape = f"{row['heads']} heads of {row['dim']}"
    return f"{KIND_NAMES[row['kind']]}: {row['dtype']}, {DIRECTION_NAMES[row['direction']]}{causal}, {shape}{source}"


def _table(rows: Sequence[Row], without: Collection[str] = ()) -> Table:
    """A line for each that was timed; `without` are headings to leave out."""
    pack, causal = rows[0]["kind"] == "pack", rows[0]["causal"]
    timed = [row for row in rows if row["ms"] is not None]
    columns: dict[str, Callable[[Row], str]] = {
        "tokens": lambda row: f"{row['length']:,}" + (f" in {row['segments']}" if row["segments"] > 1 else ""),
        "implementation": lambda row: label(row) + (" both ways" if causal and not row["causal"] else ""),
        "ms": lambda row: figure(row["ms"]),
        "min to max": lambda row: (
            f"{figure(row['ms_min'])} to {figure(row['ms_max'])}" if row["calls"] > 1 else "one call"
        ),
        # what a pack is about stands where its tokens a second would repeat the milliseconds
        "x one seq." if pack else "tokens/s": lambda row: (
            _optional(row["pack_overhead"]) if pack else f"{row['tokens_per_second']:,.0f}"
        ),
        f"x {REFERENCE}": lambda row: _optional(row["ratio"]),
        "extra MB": lambda row: _optional(row["peak_bytes"], 1e-6),
        "/ in+out": lambda row: _optional(row["peak_bytes"], 1 / row["io_bytes"]),
        "of matmul": lambda row: "-" if row["matmul_share"] is None else f"{row['matmul_share']:.0%}",
    }
    shown = {heading: cell for heading, cell in columns.items() if heading not in without}
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for heading in shown:
        table.add_column(heading, justify="left" if heading == "implementation" else "right", no_wrap=True)
    for row, following in zip(timed, [*timed[1:], None], strict=True):
        ends = following is not None and following["length"] != row["length"]
        table.add_row(*(cell(row) for cell in shown.values()), end_section=ends)
    return table


def _fitting(rows: Sequence[Row], console: Console) -> Table:
    """With as many columns as there is room for: a figure that is cut short is a wrong one."""
    table, unbounded = _table(rows), console.options.update(max_width=1000)
    for dropped in range(1, len(DROPPED) + 1):
        if console.measure(table, options=unbounded).maximum <= console.width:
            break
        table = _table(rows, DROPPED[:dropped])
    return table


def _crossover_table(rows: Sequence[Row]) -> Table:
    """Lengths down, contenders across: how many times faster than sdpa each is."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("tokens", justify="right")
    for name in dict.fromkeys(map(label, rows)):
        table.add_column(f"{name} ms" if name == REFERENCE else f"{name} ms (x {REFERENCE})", justify="right")
    for length, timed in groupby(rows, lambda row: row["length"]):
        group = list(timed)
        if any(row["ms"] is None for row in group):
            continue
        cells = [
            figure(row["ms"]) if row["implementation"] == REFERENCE else f"{figure(row['ms'])} ({figure(row['ratio'])})"
            for row in group
        ]
        table.add_row(f"{length:,}", *cells)
    return table


def _optional(value: float | None, unit: float = 1.0) -> str:
    return "-" if value is None else figure(value * unit)


def figure(value: float) -> str:
    """Three digits that count: 0.123, 1.23, 12.3, 123, 1,230."""
    if value >= 99.95:
        return f"{value:,.0f}"
    return f"{value:.{1 if value >= 9.995 else 2 if value >= 0.9995 else 3}f}"


def left_out(rows: Iterable[Row]) -> list[str]:
    """A line for each contender and reason, with where it applies."""
    found: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        if row["reason"]:
            where = f"{row['length']:,} tokens, {row['dtype']} {DIRECTION_NAMES[row['direction']]}"
            found.setdefault((label(row), row["reason"]), {})[where] = None
    return [
        f"Left out: {name}{f' ({next(iter(where))})' if len(where) == 1 else ''}: {reason}"
        for (name, reason), where in found.items()
    ]


def summary(rows: Sequence[Row]) -> list[str]:
    """What the rows say of ours: speed beside each other one, cost per token, packing, crossover."""
    ours = [row for row in rows if row["map"] and _is_ours(row) and row["ms"]]
    single = [row for row in ours if row["kind"] == "single"]
    lines = []
    for row in _at_longest(single):
        others = [other for other in rows if _comparable(row, other)]
        if others:
            beside = ", ".join(f"{figure(row['ratios'][label(other)])} x {other['implementation']}" for other in others)
            lines.append(f"{_named(row)}, {row['length']:,} tokens, times as fast: {beside}")
    for row in _at_longest(row for row in ours if row["token_cost"]):
        shortest = min(r["length"] for r in ours if r["kind"] == row["kind"])
        lines.append(
            f"{_named(row)}: a token costs {row['token_cost']:.2f} times at {row['length']:,} tokens what it costs at"
            f" {shortest:,}"
        )
    for row in ours:
        if row["causal_overhead"]:
            longer = f"{row['causal_overhead']:.2f} times as long as both ways"
            lines.append(f"{_named(row)}, {row['length']:,} tokens: {longer}")
        if row["pack_overhead"]:
            lines.append(
                f"{_named(row)}: a pack of {row['segments']} takes {row['pack_overhead']:.2f} times"
                f" what its {row['length']:,} tokens take as one sequence"
            )
    return lines + [f"{_named(row)}: {_crossed(row)}" for row in _at_longest(r for r in ours if r["crossover"])]


def _crossed(row: Row) -> str:
    found = row["crossover"]
    if found["threshold"] is None:
        return f"not faster than {REFERENCE} at {row['length']:,} tokens"
    threshold = f"attention=hybrid attention.threshold={found['threshold']}"
    if found["length"] is None:
        return f"faster than {REFERENCE} at every length tried: {threshold}"
    return f"faster than {REFERENCE} from {found['length']:,.0f} tokens on: {threshold}"


def _at_longest(rows: Iterable[Row]) -> list[Row]:
    """The row of the longest length for each implementation, features, type and direction."""
    found: dict[tuple[object, ...], Row] = {}
    for row in rows:
        key = _settings(row)
        if key not in found or row["length"] > found[key]["length"]:
            found[key] = row
    return list(found.values())


def _comparable(row: Row, other: Row) -> bool:
    same = ("kind", "length", "segments", "dtype", "direction", "causal")
    return (
        not _is_ours(other)
        and other["ms"] is not None
        and other["features"] in (None, row["features"])
        and all(row[name] == other[name] for name in same)
    )


def _is_ours(row: Row) -> bool:
    return row["implementation"].startswith("protformer")


def _settings(row: Row) -> tuple[object, ...]:
    return tuple(row[name] for name in ("implementation", "features", "dtype", "direction", "causal"))


def _named(row: Row) -> str:
    causal = "causal " if row["causal"] else ""
    return f"{label(row)}, {row['dtype']} {causal}{DIRECTION_NAMES[row['direction']]}"


def notes(rows: Sequence[Row]) -> list[str]:
    """How to read it, and where it was measured."""
    row, machine = rows[0], rows[0]["hardware"]
    views = sorted({r["implementation"] for r in rows if r["layout"] == "view"})
    layouts = f", here for {', '.join(views)}" if views else ""
    rates = ", ".join(
        f"{statistics.median(found):,.0f} GFLOP/s in {dtype}"
        for dtype in dict.fromkeys(r["dtype"] for r in rows)
        if (found := [r["matmul_gflops"] for r in rows if r["dtype"] == dtype and r["matmul_gflops"]])
    )
    versions = ", ".join(f"{name} {version}" for name, version in row["versions"].items())
    lines = [
        f"ms: median of calls in turns. x {REFERENCE}: times as fast, in the same rounds. extra MB: peak of a call"
        " beside its inputs and outputs. / in+out: over the bytes of these. of matmul: share of the rate of a large"
        " matrix product, recomputation not counted.",
        f"Inputs lie as each likes them better: contiguous heads first, or a view of [length, heads, dim]{layouts}.",
    ]
    if rates:
        lines.append(f"A large matrix product ran at {rates}.")
    others = max((r["other_load"] or 0.0 for r in rows), default=0.0)
    if others > BUSY * machine["cores"]:
        waiting = "threads then wait for one another, which costs those the most that start parallel work often"
        lines.append(
            f"Other programs kept up to {others:.1f} of {machine['cores']} cores busy meanwhile (`other_load` in the"
            f" rows): {waiting if row['threads'] > 1 else 'read the ratios'}."
        )
    return [
        *lines,
        f"{machine.get('gpu') or machine['cpu']} ({', '.join(machine['instructions'])}), {machine['cores']} cores,"
        f" {row['threads']} thread(s); {versions}; commit {row['commit']}.",
    ]
