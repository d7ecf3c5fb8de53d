"""`protformer verify`: proof that a file of embeddings is complete."""

import argparse
import sys

DESCRIPTION = """\
Check a file that `protformer embed` wrote: its checksum, shapes and numbers against its manifest,
and with --input that every record of the FASTA files is in it, with the sequence that it was
embedded with, or listed as failed with the reason.
"""

EPILOG = """\
examples:
  protformer verify proteins.h5 --input proteins.fasta
  protformer verify out/ --input a.fasta b.fasta

Exit codes: 0 complete; 1 something is wrong or missing (each fault is named), or nothing can be said.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand `verify` to the parser of `protformer`."""
    parser = subparsers.add_parser(
        "verify",
        help="prove that a file of embeddings is complete",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", metavar="FILE", help="what `protformer embed` wrote, or the folder that holds it")
    parser.add_argument("--input", nargs="+", metavar="FASTA", help="the files that were embedded, in their order")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Prints the verdict; 1 where something is wrong."""
    from protformer.embedding.verify import verify

    verdict = verify(args.file, args.input)
    for fault in verdict.faults:
        print(f"protformer: {verdict.path}: {fault}", file=sys.stderr)
    if verdict.fault_count > len(verdict.faults):
        print(f"protformer: ... and {verdict.fault_count - len(verdict.faults):,} more", file=sys.stderr)
    if verdict.fault_count:
        return 1
    against = "its manifest"
    if args.input:
        against += f" and {verdict.records:,} records of the input, {verdict.failed:,} of them listed as failed"
    dropped = verdict.manifest["counts"]["dropped"]
    told = f" ({dropped:,} dropped for an id that came before)" if dropped else ""
    print(f"{verdict.path}: {verdict.proteins:,} proteins, complete against {against}{told}")
    return 0
