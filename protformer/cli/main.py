"""`protformer`: the command line.

A subcommand is a module of this room with `add_parser(subparsers)`, whose parser sets `run(args) -> int`. It imports
what is heavy inside `run`, so that help is quick.

A run that fails ends with one sentence on standard error. Exit codes: 1 where a run failed, 2 for a command line that
cannot be, 130 when interrupted, 141 when the reader of the output left.
"""

import argparse
import os
import re
import sys
import traceback
from collections.abc import Sequence
from importlib import import_module

from protformer.errors import ProtformerError

COMMANDS = ("benchmark", "compare", "embed", "map", "neighbours", "plot", "score", "simulate", "variants", "verify")

EPILOG = """\
examples:
  protformer embed proteins.fasta --model runs/my_run -o proteins.h5
  protformer simulate --out my_families
  protformer embed --help

Models are trained by `python train.py`.
"""


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    from protformer import __version__

    parser = argparse.ArgumentParser(
        prog="protformer",
        description="Protein sequence models on the Performer: any length, nothing dropped in silence.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"protformer {__version__}")
    parser.add_argument("--debug", action="store_true", help="show the traceback of a run that fails")
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for command in COMMANDS:
        import_module(f"protformer.cli.{command}").add_parser(subparsers)
    for subparser in subparsers.choices.values():
        # people add --debug at the end of the line that failed; SUPPRESS keeps one that stands in front
        subparser.add_argument(
            "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of a run that fails"
        )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line; its exit code."""
    parser = build_parser()
    try:
        args = parser.parse_args(_with_negative_lists(sys.argv[1:] if argv is None else argv))
    except SystemExit as error:  # argparse has printed help, version or the usage error
        return error.code if isinstance(error.code, int) else 2
    if args.command is None:
        parser.print_help(sys.stderr)
        return 2
    try:
        code = args.run(args)
        sys.stdout.flush()  # a reader that left shows here, not at the interpreter's end
        return code
    except BrokenPipeError:
        # what is still buffered would fail again when the interpreter flushes it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except KeyboardInterrupt:
        _say("interrupted")
        return 130
    except Exception as error:
        if args.debug:
            traceback.print_exc()
            return 1
        if isinstance(error, ProtformerError):
            _say(str(error))
            return 1
        told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
        _say(f"{_shortened(told)} (unexpected; `protformer --debug {args.command} ...` shows the traceback)")
        return 1


def _with_negative_lists(argv: Sequence[str]) -> list[str]:
    """`--layers -1,6` as `--layers=-1,6`: argparse takes what begins with "-" and is no number for an option."""
    joined: list[str] = []
    for word in argv:
        if re.fullmatch(r"-\d[\d,-]*", word) and joined and re.fullmatch(r"--[\w-]+", joined[-1]):
            joined[-1] += f"={word}"
        else:
            joined.append(word)
    return joined


def _say(sentence: str) -> None:
    print(f"protformer: {_one_line(sentence)}", file=sys.stderr)


def _one_line(text: str) -> str:
    return re.sub(r"\s*[\r\n]\s*", " ", text.strip())


def _shortened(text: str, longest: int = 400) -> str:
    text = _one_line(text)
    return text if len(text) <= longest else text[:longest] + "..."


if __name__ == "__main__":
    sys.exit(main())
