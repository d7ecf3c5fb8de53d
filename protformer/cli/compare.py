"""`protformer compare`: runs of several methods side by side, with intervals, as tables, pictures and one page."""

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from protformer.evaluation.comparison import Report

DESCRIPTION = """\
Compare runs by what they wrote: a page that opens without a network (index.html), the same as
Markdown, JSON and CSV, and pictures as PNG and SVG. Runs are refused, by name, where they are not
comparable: other data, masks, budget or tokens. Members of a sweep that did not end are named.

SOURCE is a folder of a run or of a sweep (python train.py -m ...), the name of a sweep's W&B group
(its folder in multirun/), a folder of an experiment (rows.json), or a file of
`protformer benchmark attention --json`; any mix. Each sweep is a comparison of its own, and all
single runs together are one.
"""

EPILOG = """\
examples:
  protformer compare multirun/compare_attention -o report
  protformer compare runs/exact runs/performer runs/uniform -o report
  protformer compare multirun/5M multirun/10M runs/approximation_error rows.json -o report
  protformer compare multirun/everything --split -o report

Differences are from exact attention, paired by protein and seed. With runs of attention=uniform,
every method also gets its share of the gap between uniform and exact attention.
Tables and pictures go to W&B too: offline, unless WANDB_MODE says otherwise.
"""


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "compare",
        help="hold runs against one another: tables, pictures, a page",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("sources", metavar="SOURCE", nargs="+", type=Path, help="runs, sweeps, experiments, rows")
    parser.add_argument(
        "-o", "--output", type=Path, required=True, metavar="FOLDER", help="where the report is written"
    )
    parser.add_argument("--title", help="of the report")
    parser.add_argument(
        "--split", action="store_true", help="make comparisons of their own of runs that are not comparable"
    )
    parser.add_argument(
        "--wandb", action=argparse.BooleanOptionalAction, default=True, help="log to W&B too (default yes, offline)"
    )
    parser.add_argument("--group", help="W&B's group (default: the sweep's name, or the report's)")
    parser.add_argument("--project", default="protformer", help="W&B's project (default %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Reads, compares, writes, and says what came of it. ProtformerError for what cannot be compared."""
    from protformer.errors import shown_path
    from protformer.evaluation.comparison import check_output, make_report, write_report

    check_output(args.output)  # before minutes of reading and resampling
    report = make_report(args.sources, title=args.title, apart=args.split)
    written = write_report(report, args.output)
    _show(report)
    if args.wandb:
        _log(report, written, args)
    print(
        f"Report in {shown_path(written[0].resolve())}, with {len(written) - 1} files of tables and pictures beside it."
    )
    return 0


def _show(report: "Report") -> None:
    """Answers and the main table of each comparison; members that are missing."""
    from rich.console import Console
    from rich.markup import escape
    from rich.table import Table

    from protformer.evaluation.comparison.answer import answer
    from protformer.evaluation.comparison.comparison import listed
    from protformer.evaluation.comparison.tables import result_table

    console = Console()
    for comparison in report.comparisons:
        told = result_table(comparison, comparison.main_set)
        table = Table(title=escape(f"{comparison.title}, {told.title}"), title_justify="left")
        kept = range(min(len(told.headings), 5 if console.width < 120 else 7))
        for place in kept:
            table.add_column(escape(told.headings[place]), justify="right" if place else "left", no_wrap=not place)
        for line in told.lines:
            # the interval under its figure
            cells = [line.cells[place].text.replace(" (", "\n(") for place in kept]
            table.add_row(*map(escape, cells), style="dim" if line.is_floor else None)
        console.print(table)
        for sentence in answer(comparison):
            console.print(sentence, markup=False, highlight=False)
    for member in report.missing:
        console.print(f"Missing: {member.folder} ({member.reason})", markup=False, highlight=False)
    if report.left_out:
        others = len(report.left_out) - 5
        names = listed([*(path.name for path in report.left_out[:5]), *([f"{others} more"] if others > 0 else [])])
        console.print(
            f"Not in the report: {names}, rows of benchmarks in a folder of runs. Give them by name to have them"
            " in it.",
            markup=False,
            highlight=False,
        )


def _log(report: "Report", written: list[Path], args: argparse.Namespace) -> None:
    """The rows as tables, and the pictures; one W&B run for the report."""
    from protformer.evaluation.analysis import Analysis
    from protformer.evaluation.comparison.answer import answer
    from protformer.evaluation.log_analysis import log_analysis
    from protformer.training.loggers import wandb_logger

    titles = [comparison.title for comparison in report.comparisons]
    group = args.group or (titles[0] if len(titles) == 1 else args.output.resolve().name)
    logger = wandb_logger(
        run_dir=args.output,
        run_name=f"report {report.title}",
        run_group=group,
        overrides=["compare"],
        run_config={"sources": [str(source) for source in args.sources], "title": report.title},
        project=args.project,
    )
    try:
        pictures = [path for path in written if path.suffix == ".png"]
        for comparison in report.comparisons:
            question, *notes = [*answer(comparison), *comparison.notes]
            rows = Analysis(
                kind="comparison",
                title=comparison.title,
                question=question,
                rows=comparison.rows,
                views=[],
                columns={},
                notes=notes,
            )
            own = [path for path in pictures if path.stem.startswith(comparison.name)]
            log_analysis(rows, logger, name=comparison.name, pictures=own)
        for name, analysis in report.analyses:
            log_analysis(analysis, logger, name=name, pictures=[p for p in pictures if p.stem.startswith(name)])
    finally:
        logger.experiment.finish()  # pyright: ignore[reportAttributeAccessIssue]
