"""`protformer embed`: FASTA files and a trained model to vectors in an HDF5 file."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

DESCRIPTION = """\
Embed proteins: one vector each (the mean over its residues of the model's last hidden states),
or with --per-residue one matrix each, in the order of the input. Any length is read whole;
nothing is truncated.
"""

EPILOG = """\
examples:
  protformer embed proteins.fasta --model runs/my_run -o proteins.h5
  protformer embed 'proteomes/*.faa.gz' extra.fasta.xz --model my_model/ -o all.h5
  protformer embed proteins.fasta --model runs/my_run -o residues.h5 --per-residue
  zcat big.fasta.gz | protformer embed - --model runs/my_run -o big.h5 --precision bf16

OUT is an HDF5 file with one float32 dataset per protein: [hidden], or [residues, hidden]. Its
attribute original_id is the id as it stands in the FASTA file; the dataset's name is the id
too, made safe where it holds such as "/" or "..", with _2, _3, ... where an id comes again.
OUT appears when it is whole.

Letters that stand for no residue are read as X in their place, and counted. A record that
cannot be embedded, such as one with an empty sequence, is listed with the reason in
OUT.failures.tsv, and the exit code is then 1.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand `embed` to the parser of `protformer`."""
    parser = subparsers.add_parser(
        "embed",
        help="embed FASTA files with a trained model",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "fasta",
        nargs="+",
        metavar="FASTA",
        help="file, glob or - (standard input); plain, gz, bz2, xz or zst",
    )
    add("--model", type=Path, required=True, metavar="DIR", help="model folder, or the folder of a run that holds one")
    add("-o", "--output", type=Path, required=True, metavar="OUT", help="HDF5 file to write; its folder is made")
    add("--per-residue", action="store_true", help="a matrix [residues, hidden] for each protein instead of one vector")
    add("--force", action="store_true", help="replace OUT where it exists")
    speed = parser.add_argument_group("speed")
    add = speed.add_argument
    add(
        "--batch-tokens",
        type=positive,
        metavar="N",
        help="residues computed at once; fewer need less memory, a longer protein goes alone "
        "(default 16384 on a GPU, 4096 on a CPU)",
    )
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="auto takes the GPU where there is one (default %(default)s)",
    )
    add("--precision", choices=("fp32", "bf16"), default="fp32", help="of the arithmetic (default %(default)s)")
    parser.set_defaults(run=run)


def positive(text: str) -> int:
    """A whole number from 1, for argparse."""
    try:
        number = int(text.replace("_", ""))
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return number


def run(args: argparse.Namespace) -> int:
    """Embeds, and prints what was done. Returns 1 where a record has no embedding; ProtformerError where none has."""
    from protformer.embedding import embed_fasta

    with progress_bar() as (start, advance):
        report = embed_fasta(
            args.fasta,
            args.model,
            args.output,
            per_residue=args.per_residue,
            batch_tokens=args.batch_tokens,
            device=args.device,
            precision=args.precision,
            force=args.force,
            on_start=start,
            on_batch=advance,
        )
    for warning in report.read.warnings:
        print(f"protformer: warning: {warning}", file=sys.stderr)
    print(report.summary())
    if report.failures:
        print(
            f"protformer: {len(report.failures):,} of {report.read.records:,} records could not be embedded; they are "
            f"listed with the reason in {report.failures_file}, and {report.output} holds all others.",
            file=sys.stderr,
        )
    return 1 if report.failures else 0


@contextmanager
def progress_bar() -> Iterator[tuple[Callable[[int], None], Callable[[int], None]]]:
    """Residues done, residues per second and the time left, on standard error; nothing where that is no terminal.

    Gives `start(total)` and `advance(residues)`.
    """
    if not sys.stderr.isatty():
        yield (lambda total: None), (lambda residues: None)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, Task, TextColumn, TimeRemainingColumn
    from rich.progress import ProgressColumn as Column
    from rich.text import Text

    class Rate(Column):
        def render(self, task: Task) -> Text:
            return Text(f"{task.speed:,.0f} residues/s" if task.speed else "")

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:,.0f} of {task.total:,.0f} residues"),
        Rate(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("embedding", total=0, visible=False)
        yield (
            lambda total: progress.update(task, total=total, visible=True),
            lambda residues: progress.advance(task, residues),
        )
