"""Train, valid and test from one corpus, as a pure function of the sequences (or their clusters) and a seed.

A record's place is a point in [0, 1), the hash of its sequence with the seed, and the fractions cut that interval. So
equal sequences never part, a record keeps its place when others are added, removed or reordered, and every rank finds
the same split without a word to the others. With a cluster table the point is the hash of the cluster's name, and
homologs stay together too; what a split then gets differs from its fraction by as much as the clusters are large.
"""

import re
from collections.abc import Callable, Mapping
from hashlib import blake2b
from pathlib import Path

import numpy as np

from protformer.data.corpus import Corpus
from protformer.data.fasta import reading
from protformer.errors import ProtformerError

Split = dict[str, np.ndarray]

_NAMED = 5
# `>sp|Q8WZ42|TITIN_HUMAN`: mmseqs2 writes the accession between the bars where the header is UniProt's or NCBI's
_ACCESSION = re.compile(r"^(?:sp|tr|ref|gb|emb|dbj|pdb|pir|prf|lcl|gnl)\|([^|]+)")


def homology_warning(how_split: str = "by the hash of each sequence") -> str:
    """What training says when it splits a single file without clusters."""
    return (
        f"Train, valid and test were split {how_split}: equal sequences stay together, but homologs may stand on both "
        "sides, and then valid and test look better than they are. To keep families apart, cluster the sequences, for "
        "instance `mmseqs easy-cluster proteins.fasta clusters tmp --min-seq-id 0.3 -c 0.8`, and pass its table: "
        "`data.clusters=clusters_cluster.tsv`; or give files of your own: `data.valid=FILE data.test=FILE`."
    )


def split_by_hash(corpus: Corpus, fractions: Mapping[str, float], seed: int = 0) -> Split:
    """Indices of each split, ascending, by the hash of the sequence.

    Args:
        fractions: split -> share of the sequences, for instance `{"train": 0.9, "valid": 0.1}`; they sum to 1.
        seed: another seed, another split.

    Raises:
        ProtformerError: the fractions do not sum to 1, or a split that is to have records got none.
    """
    place = _placer(seed)
    points = np.fromiter((place(corpus.sequence(index).data) for index in range(len(corpus))), np.float64, len(corpus))
    return _cut(points, fractions)


def sample_by_hash(corpus: Corpus, size: int, seed: int = 0) -> np.ndarray:
    """Indices, ascending, of `size` sequences: those whose hash with the seed is lowest; all where there are fewer.

    Which are taken does not depend on their order, and a larger sample holds the smaller one.
    """
    if size < 1:
        raise ProtformerError(f"A sample holds at least one sequence, not {size}.")
    place = _placer(seed)
    points = np.fromiter((place(corpus.sequence(index).data) for index in range(len(corpus))), np.float64, len(corpus))
    return np.sort(np.argsort(points, kind="stable")[:size])


def split_by_cluster(
    corpus: Corpus,
    table_path: str | Path,
    fractions: Mapping[str, float],
    seed: int = 0,
    *,
    allow_missing: bool = False,
) -> Split:
    """Indices of each split, ascending, whole clusters together.

    Args:
        table_path: lines of `cluster<TAB>member`, as `mmseqs easy-cluster` writes them; any compression.
        allow_missing: a record that the table does not name is placed by its sequence, as a cluster of its own.

    Raises:
        ProtformerError: besides `split_by_hash`'s reasons, the table is no such table, puts a member in two clusters,
            or (without `allow_missing`) lacks records of the corpus.
    """
    cluster_of = _read_clusters(table_path)
    place = _placer(seed)
    points = np.empty(len(corpus), dtype=np.float64)
    missing: list[str] = []
    for index in range(len(corpus)):
        name = corpus.id(index)
        cluster = cluster_of.get(name)
        if cluster is None and (accession := _ACCESSION.match(name)):
            cluster = cluster_of.get(accession[1])
        if cluster is None:
            missing.append(name or f"(record {index + 1}, without an id)")
            points[index] = place(corpus.sequence(index).data)
        else:
            points[index] = place(cluster.encode("utf-8", "surrogateescape"))
    if missing and not allow_missing:
        raise ProtformerError(
            f"{table_path} lacks {len(missing):,} of {len(corpus):,} records of the corpus "
            f"({', '.join(missing[:_NAMED])}{', ...' if len(missing) > _NAMED else ''}): cluster the same FASTA file, "
            "or take each of them as a cluster of its own with `data.allow_missing_clusters=true`."
        )
    return _cut(points, fractions)


def _placer(seed: int) -> Callable[[bytes | memoryview], float]:
    """bytes -> a point in [0, 1), uniform and independent of the process."""
    salt = (seed % (1 << 128)).to_bytes(16, "little")

    def place(content: bytes | memoryview) -> float:
        digest = blake2b(content, digest_size=8, salt=salt).digest()
        return (int.from_bytes(digest, "little") >> 11) * 2.0**-53  # 53 bits: never rounded up to 1

    return place


def _cut(points: np.ndarray, fractions: Mapping[str, float]) -> Split:
    shares = np.array(list(fractions.values()), dtype=np.float64)
    if not shares.size or (shares < 0).any() or abs(shares.sum() - 1) > 1e-6:
        written = ", ".join(f"{name} {share:g}" for name, share in fractions.items())
        raise ProtformerError(f"The fractions of a split are not negative and sum to 1, not {written or 'nothing'}.")
    bounds = np.cumsum(shares)
    bounds[-1] = 1.0
    chosen = np.searchsorted(bounds, points, side="right")
    # where the last fractions are 0, their bound is 1 as well: no point lies beyond it
    split = {name: np.flatnonzero(chosen == number) for number, name in enumerate(fractions)}
    for name, share in fractions.items():
        if share > 0 and not len(split[name]) and len(points):
            raise ProtformerError(
                f"The split {name!r} ({share:g} of the data) got none of the {len(points):,} sequences: "
                "give it a larger fraction, another seed, or a file of its own."
            )
    return split


def _read_clusters(path: str | Path) -> dict[str, str]:
    """member -> cluster. Names of clusters are shared strings, so that a table of millions stays small."""
    cluster_of: dict[str, str] = {}
    names: dict[str, str] = {}
    with reading(path) as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            fields = line.rstrip("\n").split("\t")
            if len(fields) != 2:
                raise ProtformerError(
                    f"{path}, line {number}: a cluster table has two columns, cluster<TAB>member; not {len(fields)}."
                )
            cluster, member = fields[0].strip(), fields[1].strip()
            cluster = names.setdefault(cluster, cluster)
            if cluster_of.setdefault(member, cluster) != cluster:
                raise ProtformerError(
                    f"{path}, line {number}: {member!r} is a member of {cluster_of[member]!r} and of {cluster!r}; "
                    "a record belongs to one cluster."
                )
    return cluster_of
