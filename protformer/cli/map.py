"""`protformer map`: a store of embeddings as one page that opens offline, to look at, search and pick from."""

import argparse
import sys
from pathlib import Path

DESCRIPTION = """\
Draw the proteins of STORE as points on one page (HTML) that opens in any browser, without a
network: coloured by a column of a table, searchable, with id, length, description and label on
hover. Points picked by click, box or lasso can be saved as TSV, or with --input as FASTA.
"""

EPILOG = """\
examples:
  protformer map proteome.h5 -o map.html
  protformer map proteome.h5 -o map.html --color localization.tsv:compartment --input proteome.fasta
  protformer map proteome.h5 -o map.html --color assay.csv:activity --method umap --seed 1

TABLE is a CSV or TSV file with a header. Its rows are named in the first column of these that is
there: id, protein, accession, key; else in its first column. A name matches a protein's id, its
key in the store, or the P12345 or NAME_HUMAN inside sp|P12345|NAME_HUMAN. Proteins without a row
and rows without a protein are counted, on the page and on standard error. Numbers get a scale of
colours, all else categories: 14 at most, the rarest beyond are one, "other".

pca: the first two principal components, exact, the same each time. umap: needs the package
umap-learn (pip install 'protformer[map]'); distances between far groups mean nothing there.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand `map` to the parser of `protformer`."""
    parser = subparsers.add_parser(
        "map",
        help="proteins as points on a page, by their embeddings",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("store", type=Path, metavar="STORE", help="what `protformer embed` wrote")
    add("-o", dest="page", type=Path, required=True, metavar="HTML", help="page to write")
    add("--color", metavar="TABLE:COLUMN", help="colour by this column, for instance labels.tsv:family")
    add(
        "--color-as",
        choices=("auto", "category", "number"),
        default="auto",
        help="auto: number where all values are numbers, unless they are few whole ones (default %(default)s)",
    )
    add("--method", choices=("pca", "umap"), default="pca", help="of placing the points (default %(default)s)")
    add("--seed", type=int, default=0, metavar="N", help="of umap (default %(default)s)")
    add(
        "--input",
        action="append",
        default=[],
        metavar="FASTA",
        help="what STORE was made of, so that picks can be saved as FASTA; may be given several times",
    )
    add("--output", metavar="NAME", help="which vector, where the store holds several: mean, max, ...")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Draws and writes the page. ProtformerError for what cannot be drawn; returns 0."""
    from protformer.embedding.map import make_content, render
    from protformer.embedding.map.labels import split_color
    from protformer.embedding.stored import open_store
    from protformer.embedding.whole_file import whole_file

    color = split_color(args.color) if args.color is not None else None
    store = open_store(args.store, output=args.output)
    content = make_content(
        store,
        color=color,
        color_as=None if args.color_as == "auto" else args.color_as,
        fasta=args.input,
        method=args.method,
        seed=args.seed,
    )
    page = render(content)
    inputs = [store.path, *([color[0]] if color is not None else []), *map(Path, args.input)]
    with whole_file(args.page, inputs=inputs) as file:
        file.write(page)
    for note in content.notes:
        print(f"protformer: note: {note}", file=sys.stderr)
    count = len(content.data["ids"])
    explained = "".join(f"; {name}: {value}" for name, value in content.facts if name == "explained variance")
    print(f"{count:,} proteins ({store.output} vectors, {args.method}{explained}) drawn in {args.page}")
    return 0
