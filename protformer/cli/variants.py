"""`protformer variants`: masked-marginal scores of the variants of one protein, beside floors that need no model."""

import argparse
from pathlib import Path

from protformer.cli.arguments import add_speed
from protformer.cli.score import add_model_and_output, loaded, speaker, tell_failures

DESCRIPTION = """\
Score variants of a protein: the sum over their substitutions of
log p(mutant residue) - log p(wild-type residue), both from the wild type with that site masked
(Meier et al. 2021, bioRxiv 2021.07.09.450648). Higher is likelier; the wild type has 0.
"""

EPILOG = """\
examples:
  protformer variants gb1.fasta --mutations variants.txt --model runs/my_run -o scores.tsv
  protformer variants gb1.fasta --mutations assay.csv.gz --target fitness --model runs/my_run -o scores.tsv
  protformer variants proteome.fasta --wildtype P06654 --mutations variants.txt --offset 226 --model my_model/

FILE is a list with one variant a line (A24G; several substitutions joined by ":", "," or "/"; wt
or _wt for the wild type; lines that start with # are comments), or a CSV or TSV table, gz too, with
a column mutant, mutation or variant of the same, or else a column sequence of whole variants. All
other columns are carried through. Only substitutions among the 20 standard residues have a score;
a variant that has none, or names another wild-type letter than stands there, keeps its row, with
empty figures, and is listed with line and reason in OUT.failures.tsv; the exit code is then 1.

A site takes one pass of the wild type, however many variants name it. Sites add up: what
substitutions do together is not in the score.

Columns behind the file's own: substitutions, substitution_count, masked_marginal (natural
logarithm), blosum62 (its entries for wild-type and mutant residue, minus those for the wild-type
residue with itself, summed), notes. With --target the rank correlation of the scores with measured
numbers is printed, beside two floors that need no model: blosum62, and that fewer substitutions are
better. A model that does not beat them tells nothing that they do not.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand `variants` to the parser of `protformer`."""
    parser = subparsers.add_parser(
        "variants",
        help="masked-marginal scores of a protein's variants",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("fasta", metavar="FASTA", help="file with the wild type, or - (standard input)")
    add("--mutations", type=Path, required=True, metavar="FILE", help="list or table of variants")
    add("--wildtype", metavar="ID", help="the record of FASTA that is the wild type, where there are several")
    add(
        "--offset",
        type=int,
        default=0,
        metavar="N",
        help="the first residue has number N + 1 in FILE (default %(default)s)",
    )
    add("--target", metavar="COLUMN", help="column of measured numbers to correlate the scores with")
    add_model_and_output(parser)
    add_speed(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Scores, and prints what it costs before and what came out after. Returns 1 where a variant has no score."""
    from protformer.cli.progress import reporting
    from protformer.scoring import VariantsReport, score_variants

    say = speaker(args)
    language_model = loaded(args)
    with reporting("scoring") as progress:

        def begin(report: VariantsReport) -> None:
            say(report.plan())
            progress.start(report.sites * report.residues)

        report = score_variants(
            args.fasta,
            args.mutations,
            language_model,
            args.output,
            wild_type=args.wildtype,
            offset=args.offset,
            target=args.target,
            force=args.force,
            on_start=begin,
            on_batch=progress.advance,
        )
    say(report.summary())
    tell_failures(report.failures, report.variants, "variants", report.failures_file)
    return 1 if report.failures else 0
