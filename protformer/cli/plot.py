"""`protformer plot`: a picture of a finished run beside its floors."""

import argparse
from pathlib import Path
from typing import Any


def add_parser(subparsers: Any) -> None:
    parser = subparsers.add_parser(
        "plot",
        help="draw a finished run beside its floors",
        description="Draw a run's headline figure on each evaluation set, beside its floors (needs matplotlib).",
        epilog="example:\n  protformer plot runs/my_run -o my_run.png",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("run_folder", metavar="RUN_FOLDER", type=Path, help="folder of a run that ended")
    parser.add_argument("-o", "--output", type=Path, required=True, help="picture to write: .png, .svg or .pdf")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    from protformer.evaluation.plots import plot_run
    from protformer.evaluation.runs import read_metrics

    plot_run(read_metrics(args.run_folder), args.output)
    print(args.output)
    return 0
