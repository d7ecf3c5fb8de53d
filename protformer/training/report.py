"""What a run says when it ends: a table of floors and models by evaluation set."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from protformer.errors import shown_path
from protformer.training.record import Finished
from protformer.training.tasks.base import Row, Task

FRACTIONS = ("accuracy", "macro_f1")


def print_closing_table(run: Finished) -> None:
    """The table, what was trained, and where it lies."""
    corpora = {name: run.splits[name].corpus for name in run.rows}
    sizes = {n: f"{len(c):,} proteins\n{len(c.tokens):,} residues" for n, c in corpora.items()}
    training, folder = run.training, Path(run.settings.run_dir)
    notes = [
        f"Trained on {training['residues']:,} residues in {training['seconds']:.0f} s"
        f" ({training['residues_per_second']:,.0f} residues/s in training steps)."
        f" Weights scored and saved: {run.weights}.",
        f"Run folder: {shown_path(folder)}  (model folder: {shown_path(folder / 'model')})",
    ]
    limit = run.settings.config["trainer"].get("limit_test_batches")
    if limit not in (None, 1.0):
        notes.insert(0, f"Not whole sets: trainer.limit_test_batches={limit} leaves batches of each out.")
    samples = [f"{len(c):,} of {run.whole[n]:,} in {n}" for n, c in corpora.items() if len(c) < run.whole[n]]
    if samples:
        notes.insert(0, f"Scored on samples (evaluate.sample): {', '.join(samples)}.")
    if run.task.monitor.startswith("perplexity"):
        notes.insert(0, "±: half of the 95 % interval over proteins (bootstrap).")
    _print_table(closing_table(run.rows, sizes, run.task), notes)


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


def _print_table(table: Table, footnotes: list[str]) -> None:
    console = Console()
    console.print()
    console.print(table)
    for note in footnotes:
        console.print(note, highlight=False)
