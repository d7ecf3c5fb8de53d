"""`protformer neighbours`: the nearest proteins of each protein, by the cosine of their embeddings, as a table."""

import argparse
import csv
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from protformer.cli.arguments import positive

if TYPE_CHECKING:
    from protformer.embedding.neighbours import Hits
    from protformer.embedding.stored import StoredEmbeddings

COLUMNS = ("query", "rank", "neighbour", "cosine", "query_length", "neighbour_length", "neighbour_description")

DESCRIPTION = """\
The nearest neighbours of proteins by the cosine of their embeddings, exact, as a table (TSV).
Without --query, each protein of STORE among all others of STORE.
"""

EPILOG = """\
examples:
  protformer neighbours proteome.h5 -k 5 -o hits.tsv
  protformer neighbours swissprot.h5 --query mine.h5 -k 10 -o hits.tsv
  protformer neighbours proteome.h5 --output cls | head

Columns: query, rank (from 1), neighbour, cosine, query_length, neighbour_length and
neighbour_description. A protein is named by its id, or by its key in the store where it has no id
or shares it with another. Equal cosines stand in the order of STORE. A protein whose vector is
zero or not finite has no direction: it is left out, as query and as neighbour, and named on
standard error. Both stores must be of one model and one output (mean, max, ...): cosines
between different models mean nothing, and are refused.
"""


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the subcommand `neighbours` to the parser of `protformer`."""
    parser = subparsers.add_parser(
        "neighbours",
        help="the most alike proteins of each protein, by their embeddings",
        description=DESCRIPTION,
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("store", type=Path, metavar="STORE", help="what `protformer embed` wrote: the proteins to search in")
    add("--query", type=Path, metavar="STORE", help="the proteins to search for (default: STORE, each without itself)")
    add("-k", type=positive, default=10, metavar="N", help="neighbours of each query (default %(default)s)")
    add("-o", dest="table", type=Path, metavar="TSV", help="table to write (default: standard output)")
    add("--output", metavar="NAME", help="which vector, where the stores hold several: mean, max, ...")
    engine = parser.add_mutually_exclusive_group()
    engine.add_argument(
        "--exact", dest="engine", action="store_const", const="exact", default="exact", help="this is the default"
    )
    engine.add_argument(
        "--faiss",
        dest="engine",
        action="store_const",
        const="faiss",
        help="let FAISS look first: the same table, sooner on many cores (pip install 'protformer[search]')",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Searches and writes the table. ProtformerError for stores that cannot be compared; returns 0."""
    from protformer.embedding.neighbours import check_comparable, nearest
    from protformer.embedding.stored import open_store
    from protformer.embedding.whole_file import whole_file

    targets = open_store(args.store, output=args.output)
    queries = targets
    if args.query is not None:
        queries = open_store(args.query, output=args.output)
        check_comparable(queries, targets)
    _warn(args, queries, targets)
    hits = nearest(targets.vectors, None if args.query is None else queries.vectors, k=args.k, engine=args.engine)
    lines = _lines(queries, targets, hits)
    if args.table is None:
        _write(sys.stdout, lines)
        return 0
    with whole_file(args.table, inputs=[path for path in (args.store, args.query) if path is not None]) as file:
        rows = _write(file, lines)
    print(
        f"{rows:,} neighbours of {len(queries.keys):,} proteins among {len(targets.keys):,} "
        f"({targets.output} vectors): {args.table}"
    )
    return 0


def _warn(args: argparse.Namespace, queries: "StoredEmbeddings", targets: "StoredEmbeddings") -> None:
    """What the reader of the table must know, on standard error."""
    from protformer.embedding.naming import names, some
    from protformer.embedding.neighbours import usable

    directed = usable(targets.vectors)
    for store, good in (
        (targets, directed),
        *(((queries, usable(queries.vectors)),) if queries is not targets else ()),
    ):
        if not good.all():
            left = some(name for name, one in zip(names(store), good.tolist(), strict=True) if not one)
            _say(f"left out, since their vectors are zero or not finite: {left} of {store.path}")
    if queries is not targets and not (queries.model_hash and targets.model_hash):
        unknown = " and ".join(str(store.path) for store in (queries, targets) if not store.model_hash)
        _say(f"{unknown}: the model is not known, so nothing shows that both stores are of one model")
    if args.query is not None and args.query.exists() and args.query.samefile(args.store):
        _say("the queries are STORE itself, so each finds itself first: without --query it is left out")
    available = int(directed.sum()) - (queries is targets)
    if args.k > available:
        _say(f"-k {args.k:,} is more than there are: each query gets all {max(available, 0):,} neighbours")


def _say(warning: str) -> None:
    print(f"protformer: warning: {warning}", file=sys.stderr)


def _lines(queries: "StoredEmbeddings", targets: "StoredEmbeddings", hits: "Iterator[Hits]") -> Iterator[tuple]:
    """The rows, those of a query one behind the other."""
    from protformer.embedding.naming import names, titles

    of_targets, described = names(targets), titles(targets)
    of_queries = of_targets if queries is targets else names(queries)
    for at, neighbours, cosines in hits:
        for query, row, similar in zip(at.tolist(), neighbours.tolist(), cosines.tolist(), strict=True):
            for rank, (neighbour, cosine) in enumerate(zip(row, similar, strict=True), start=1):
                yield (
                    of_queries[query], rank, of_targets[neighbour], f"{cosine:.6f}", int(queries.lengths[query]),
                    int(targets.lengths[neighbour]), described[neighbour],
                )  # fmt: skip


def _write(file, lines: Iterator[tuple]) -> int:
    """Header and rows; how many rows. No cell holds a tab or a line break, so none is quoted."""
    table = csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, quotechar=None)
    table.writerow(COLUMNS)
    rows = 0
    for line in lines:
        table.writerow(line)
        rows += 1
    return rows
