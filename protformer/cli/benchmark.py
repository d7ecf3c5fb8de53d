"""`protformer benchmark`: implementations side by side in one run on this machine."""

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from protformer.cli.arguments import positive
from protformer.errors import ProtformerError, shown_path

ATTENTION = """\
Time attention implementations side by side: ours with each feature map, PyTorch's
scaled_dot_product_attention, softmax written out, and other packages where they are installed
(pip install 'protformer[peers]'). They take turns, so that what else the machine does hits all of
them: read the ratios. One whose single call would take longer than --limit is left out, and named.
"""

EPILOG = """\
examples:
  protformer benchmark attention
  protformer benchmark attention --lengths 16384 --features 64 --dtype bf16 --limit 60 --json rows.json
  protformer benchmark attention --lengths 256,1024,4096,16384,65536 --plot cost.png
  protformer benchmark attention --maps all --features 256 --lengths 4096 --direction forward
  protformer benchmark attention --pack proteins.fasta.gz --pack-size 32
  protformer benchmark attention --crossover --features 256

--pack times one pack of proteins, beside the same tokens as one sequence, exact attention protein by
protein, and scaled_dot_product_attention on the padded rectangle. --crossover searches the length from
which on the Performer is the faster one, and prints it as a setting of attention=hybrid.
With --pack or --crossover alone, single sequences are not timed unless --lengths says so.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds `benchmark` and its subcommands to the parser of `protformer`."""
    parser = subparsers.add_parser(
        "benchmark", help="time implementations side by side", description="Time implementations side by side."
    )
    attention = parser.add_subparsers(metavar="WHAT", title="what to time", required=True).add_parser(
        "attention",
        help="attention: ours, PyTorch's, other packages'",
        description=ATTENTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_options(attention)
    attention.add_argument(
        "--debug", action="store_true", default=argparse.SUPPRESS, help="show the traceback of a run that fails"
    )
    attention.set_defaults(run=run)


def _add_options(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument_group("what is computed").add_argument
    add("--lengths", type=numbers, metavar="N,N", help="tokens of a sequence (default 1024,16384)")
    add("--features", type=numbers, default=(64, 256), metavar="N,N", help="random features (default 64,256)")
    add("--heads", type=positive, default=8, metavar="N", help="(default %(default)s)")
    add("--dim", type=positive, default=64, metavar="N", help="numbers a head has (default %(default)s)")
    add(
        "--dtype",
        type=names,
        default=("float32", "bfloat16"),
        metavar="T,T",
        help="float32 (or fp32), bfloat16 (bf16), float16, float64 (default float32,bfloat16)",
    )
    add(
        "--direction",
        type=names,
        default=("both",),
        metavar="D,D",
        help="forward, forward_backward or both (default both)",
    )
    add("--causal", action="store_true", help="each token sees only those up to itself")
    add("--device", choices=("cpu", "cuda"), default="cpu", help="(default %(default)s)")
    add = parser.add_argument_group("who computes it").add_argument
    add("--maps", type=names, default=("positive",), metavar="M,M", help="our feature maps, or all (default positive)")
    add(
        "--implementations",
        type=names,
        metavar="NAME,NAME",
        help="protformer, protformer-hybrid, protformer-exact, sdpa, softmax, performer-pytorch, "
        "performer-pytorch-relu, torch-geometric-relu, uniform, linformer, reformer, sparse-strided, sparse-fixed, "
        "sparse-window, or all (default: ours, PyTorch's, and the peers of the maps)",
    )
    add = parser.add_argument_group("other questions").add_argument
    add("--pack", metavar="FASTA", help="time a pack of proteins, lengths from this file, or from the demo set: demo")
    add("--pack-size", type=positive, default=32, metavar="N", help="proteins in it (default %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of drawing them (default %(default)s)")
    add("--crossover", action="store_true", help="search the length where the Performer overtakes sdpa")
    add = parser.add_argument_group("how").add_argument
    add(
        "--limit",
        type=seconds,
        default=10.0,
        metavar="SECONDS",
        help="of a contender at a length: a longer call is not tried, short calls are repeated for a tenth of it "
        "(default %(default)g)",
    )
    add("--threads", type=positive, metavar="N", help="CPU threads (default: PyTorch's choice)")
    add(
        "--memory",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="measure the peak of a call, in one more call (default yes)",
    )
    add("--json", type=Path, metavar="PATH", help="write the rows: a JSON array, or a row a line in PATH.jsonl")
    add("--plot", type=Path, metavar="PATH", help="draw time and memory against length: .png, .svg or .pdf")


def numbers(text: str) -> tuple[int, ...]:
    """Whole numbers from 1 between commas, each once, in ascending order."""
    return tuple(sorted({positive(part.strip()) for part in text.split(",")}))


def names(text: str) -> tuple[str, ...]:
    """Names between commas."""
    found = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    if "" in found:
        raise argparse.ArgumentTypeError(f"{text!r} has an empty name")
    return found


def seconds(text: str) -> float:
    """A number above 0, for argparse."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return value


def run(args: argparse.Namespace) -> int:
    """Times, prints the tables, writes the rows. Returns 2 where an option cannot be; ProtformerError for a file."""
    import torch

    from protformer.evaluation.attention_benchmark import (
        Settings,
        check_rows_file,
        plot_rows,
        print_rows,
        run_benchmark,
        write_rows,
    )

    only_other = args.lengths is None and (args.pack or args.crossover)
    try:
        settings = Settings(
            lengths=() if only_other else args.lengths or (1024, 16384),
            features=args.features,
            heads=args.heads,
            dim=args.dim,
            dtypes=args.dtype,
            device=args.device,
            directions=args.direction,
            causal=args.causal,
            maps=args.maps,
            implementations=args.implementations,
            limit=args.limit,
            memory=args.memory,
            pack=args.pack,
            pack_size=args.pack_size,
            seed=args.seed,
            crossover=args.crossover,
        )
    except ProtformerError as error:
        print(f"protformer: {error}", file=sys.stderr)
        return 2
    for path in filter(None, (args.json, args.plot)):
        check_rows_file(path)
    if args.threads:
        torch.set_num_threads(args.threads)
    with _progress() as say:
        rows = run_benchmark(settings, say)
    print_rows(rows)
    if args.json:
        write_rows(rows, args.json)
        print(f"{len(rows)} rows in {shown_path(args.json)}")
    if args.plot:
        plot_rows(rows, args.plot)
        print(f"Picture in {shown_path(args.plot)}")
    return 0


@contextmanager
def _progress() -> Iterator[Callable[[str], object]]:
    """A line on standard error that says what is being timed; nothing where that is no terminal."""
    if not sys.stderr.isatty():
        yield lambda doing: None
        return
    from rich.console import Console

    with Console(stderr=True).status("") as status:
        yield status.update
