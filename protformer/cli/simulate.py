"""`protformer simulate`: makes protein families whose structure, history and best reachable perplexity are known."""

import argparse
import sys
from dataclasses import fields
from pathlib import Path

from protformer.data.simulate import Settings, simulate
from protformer.data.simulate.family import SPLITS

EPILOG = """\
Writes train, valid, test and unseen as FASTA (.fasta) with labels (.tsv: id, family, split, states), the family trees
(trees.nwk) and a report (demo.json) with the settings, the contents of each file and, for each, the unigram perplexity,
that of an oracle that knows the structural states, and the best that any model could reach.

valid and test hold whole clades of the training families; unseen holds families that train has nothing of.
The same options give the same bytes. The files in the repository's data/ folder are: protformer simulate --out data
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand `simulate` to the parser of `protformer`."""
    parser = subparsers.add_parser(
        "simulate",
        help="make simulated protein families with known states, trees and best reachable perplexity",
        description="Simulate protein families: ancestors from a grammar of helices, strands and coils, evolved down "
        "trees under a published substitution model, with insertions, deletions and positions that covary.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    default = Settings()
    add = parser.add_argument
    add("--out", type=Path, required=True, metavar="DIR", help="folder to write into; made where it is not there")
    add("--force", action="store_true", help="write over files of an earlier set in that folder")
    size = parser.add_argument_group("how much")
    add = size.add_argument
    add("--families", type=int, default=default.families, metavar="N", help="training families (default %(default)s)")
    add(
        "--residues",
        type=int,
        metavar="N",
        help="about this many residues in train.fasta; sets --families from --members and --median-length",
    )
    add(
        "--members",
        type=int,
        default=default.members,
        metavar="N",
        help="members of a training family, those of valid and test counted in (default %(default)s)",
    )
    add(
        "--unseen-families",
        type=int,
        default=default.unseen_families,
        metavar="N",
        help="families of which train has nothing (default %(default)s)",
    )
    add(
        "--unseen-members",
        type=int,
        default=default.unseen_members,
        metavar="N",
        help="members of each of those (default %(default)s)",
    )
    add(
        "--held-out",
        type=float,
        default=default.held_out,
        metavar="SHARE",
        help="share of a family's members in valid, and again in test, by whole clades (default %(default)s)",
    )
    nature = parser.add_argument_group("what kind")
    add = nature.add_argument
    add(
        "--median-length",
        type=float,
        default=default.median_length,
        metavar="L",
        help="of ancestors (default %(default)g)",
    )
    add("--min-length", type=int, default=default.min_length, metavar="L", help="of an ancestor (default %(default)s)")
    add("--max-length", type=int, default=default.max_length, metavar="L", help="of an ancestor (default %(default)s)")
    add(
        "--depth",
        type=float,
        nargs=2,
        default=default.depth,
        metavar=("LOW", "HIGH"),
        help="substitutions a site from a family's ancestor to its members, drawn evenly "
        f"(default {default.depth[0]:g} {default.depth[1]:g})",
    )
    add("--seed", type=int, default=default.seed, metavar="N", help="any whole number from 0 (default %(default)s)")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Writes the set and prints where it is and what it allows. Raises ProtformerError; returns 0."""
    given = {field.name: getattr(args, field.name) for field in fields(Settings) if hasattr(args, field.name)}
    settings = Settings(**{**given, "depth": tuple(given["depth"])})
    if args.residues is not None:
        settings = settings.with_residues(args.residues)
    show = sys.stderr.isatty()
    progress = (lambda line: print(f"\r{line}", end="", file=sys.stderr, flush=True)) if show else None
    report = simulate(settings, args.out, force=args.force, progress=progress)
    if show:
        print(file=sys.stderr)
    print(f"Simulated sequences (no real protein among them) written to {args.out}")
    print(f"{'':8}{'sequences':>10}{'residues':>10}{'unigram':>10}{'states':>10}{'best':>10}   (perplexities)")
    for split in SPLITS:
        if split in report["perplexity"]:
            contents, perplexity = report["files"][f"{split}.fasta"], report["perplexity"][split]
            print(
                f"{split:8}{contents['sequences']:>10,}{contents['residues']:>10,}{perplexity['unigram']:>10.2f}"
                f"{perplexity['state_oracle']:>10.2f}{perplexity['best_reachable']:>10.2f}"
            )
    return 0
