"""What a run leaves to read: the closing table, and `metrics.json` with the same rows."""

import json
import os
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from protformer.data.floors.bootstrap import bootstrap_interval, paired_difference_interval, perplexity
from protformer.training.tasks.base import Row, Task

FRACTIONS = ("accuracy", "macro_f1")


def add_intervals(rows: list[Row], task: Task, seed: int) -> None:
    """95 % intervals over proteins for perplexities, and each floor's paired distance from the trained model."""
    trained = rows[-1]
    for row in rows:
        if row.per_sequence is None or len(row.per_sequence) < 2 or not task.monitor.startswith("perplexity"):
            continue
        sums, counts = row.per_sequence[:, 1], row.per_sequence[:, 2]
        low, high = bootstrap_interval(sums, counts, perplexity, seed=seed)
        row.figures[f"{task.monitor}_low"], row.figures[f"{task.monitor}_high"] = float(low), float(high)
        if row is trained or trained.per_sequence is None:
            continue
        mine, theirs = _by_record(trained.per_sequence), _by_record(row.per_sequence)
        shared = sorted(mine.keys() & theirs.keys())
        pairs = np.array([[mine[r][0], theirs[r][0], mine[r][1]] for r in shared])
        low, high = paired_difference_interval(pairs[:, 0], pairs[:, 1], pairs[:, 2], statistic=perplexity, seed=seed)
        row.figures["trained_minus_this_low"], row.figures["trained_minus_this_high"] = float(low), float(high)


def _by_record(rows: np.ndarray) -> dict[int, tuple[float, float]]:
    return {int(record): (total, count) for record, total, count in rows}


def closing_table(results: dict[str, list[Row]], sizes: dict[str, str], task: Task) -> Table:
    """Rows are floors and models by evaluation set; the columns are the task's."""
    table = Table(title=f"{task.name.replace('_', ' ')}: floors, and the model before and after training")
    table.add_column("set")
    table.add_column("", no_wrap=True)
    for heading in task.columns.values():
        table.add_column(heading, justify="right")
    for name, rows in results.items():
        # the size under the name, where the next row leaves room for it
        labels = [name, *(f"[dim]{line}[/dim]" for line in sizes[name].split("\n"))]
        labels = labels[: len(rows)] + [""] * (len(rows) - len(labels))
        for index, (label, row) in enumerate(zip(labels, rows, strict=True)):
            cells = [_cell(row.figures, column) for column in task.columns]
            style = "bold" if row.name == "trained" else None
            table.add_row(label, row.name, *cells, style=style, end_section=index == len(rows) - 1)
    return table


def _cell(figures: dict[str, float], column: str) -> str:
    value = figures.get(column)
    if value is None or value != value:
        return "-"
    if column.startswith(FRACTIONS):
        return f"{100 * value:.1f} %"
    text = f"{value:.2f}" if column.startswith("perplexity") else f"{value:.3f}"
    low, high = figures.get(f"{column}_low"), figures.get(f"{column}_high")
    return text if low is None or high is None else f"{text} ±{(high - low) / 2:.2f}"


def print_table(table: Table, footnotes: list[str]) -> None:
    console = Console()
    console.print()
    console.print(table)
    for note in footnotes:
        console.print(note, highlight=False)


def write_metrics(path: Path, content: dict[str, Any]) -> None:
    """JSON, written whole: a temporary name, then renamed."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    temporary.write_text(json.dumps(_plain(content), indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, float | np.floating):
        return float(value) if np.isfinite(value) else None
    if isinstance(value, np.integer):
        return int(value)
    return value
