"""`protformer plot`: a picture of a finished run beside its floors, or of a benchmark's rows."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "plot",
        help="draw a finished run beside its floors, or a benchmark's rows",
        description="Draw a run's headline figure on each evaluation set, beside its floors; or time and memory\n"
        "against length from the rows of `protformer benchmark attention --json` (needs matplotlib).",
        epilog="examples:\n  protformer plot runs/my_run -o my_run.png\n  protformer plot rows.json -o rows.svg",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("source", metavar="SOURCE", type=Path, help="folder of a run that ended, or a file of rows")
    parser.add_argument("-o", "--output", type=Path, required=True, help="picture to write: .png, .svg or .pdf")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    if args.source.is_file():
        from protformer.evaluation.attention_benchmark import plot_rows, read_rows

        plot_rows(read_rows(args.source), args.output)
    else:
        from protformer.evaluation.plots import plot_run
        from protformer.evaluation.runs import read_metrics

        plot_run(read_metrics(args.source), args.output)
    print(args.output)
    return 0
