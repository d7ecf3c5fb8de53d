"""Reading what `protformer embed` wrote, in any of its formats, and HDF5 files of other tools with a vector a protein.

Two doors: `reading_store`, all proteins one after the other, whatever is stored of them; and `open_store`, one pooled
vector for each, in memory.
"""

import csv
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from zipfile import BadZipFile

import numpy as np
from jaxtyping import Float32, Int64
from safetensors import SafetensorError

from protformer.embedding.assemble import sidecar
from protformer.embedding.compute import Vectors
from protformer.embedding.formats import FORMAT, SUFFIXES
from protformer.errors import ProtformerError

_MAGIC = {b"\x89HDF\r\n\x1a\n": "hdf5", b"PAR1": "parquet", b"PK\x03\x04": "npz"}


class StoredProtein(NamedTuple):
    key: str
    id: str | None  # None where the file does not say
    description: str
    residues: int
    sequence_hash: str
    vectors: Vectors


class Store(NamedTuple):
    """An open file."""

    attributes: dict[str, Any]
    outputs: dict[str, bool]  # name: whether it is per residue
    proteins: Iterator[StoredProtein]


@dataclass(frozen=True)
class StoredEmbeddings:
    """Vectors of proteins and what is known of each, in the order of the store."""

    path: Path
    keys: list[str]  # safe, unique
    ids: list[str]  # as they stood in the FASTA file; may repeat, may be ""
    descriptions: list[str]  # header lines without ">"; "" where not known
    lengths: Int64[np.ndarray, " n"]  # residues
    vectors: Float32[np.ndarray, "n hidden"]
    output: str  # which pooled output: "mean", "max", "cls", "mean_layer6", ...
    model_hash: str  # of the model's weights; "" where not known
    settings: dict[str, Any]  # of the run that made it


def open_store(path: Path | str, *, output: str | None = None) -> StoredEmbeddings:
    """One pooled vector for each protein of a file, or of the file `embeddings.*` in a folder.

    Args:
        output: which; by default "mean", or the one that is there.

    Raises:
        ProtformerError: it is no such file, or has no such output.
    """
    path = find_store(path)
    with reading_store(path) as store:
        pooled = [name for name, per_residue in store.outputs.items() if not per_residue]
        if not pooled:
            raise ProtformerError(
                f"{path} holds a matrix for each protein and no vector: "
                "embed again without --per-residue, or with --pool mean."
            )
        chosen = output or next((name for name in pooled if name == "mean"), pooled[0])
        if chosen not in pooled:
            raise ProtformerError(f"{path} has no output {chosen!r}: it has {', '.join(pooled)}.")
        if output is None and len(pooled) > 1 and chosen != "mean":
            raise ProtformerError(f"{path} has several outputs, {', '.join(pooled)}: choose one by --output.")
        proteins = [(p.key, p.id, p.description, p.residues, p.vectors[chosen]) for p in store.proteins]
        attributes = store.attributes
    known: dict[str, tuple[str, str]] = {}
    if any(p[1] is None for p in proteins):
        known = {row["key"]: (row["id"], row["description"]) for row in records_of(path) if row["key"]}
    width = len(proteins[0][4]) if proteins else 0
    return StoredEmbeddings(
        path=path,
        keys=[key for key, *_ in proteins],
        ids=[known.get(key, (key, ""))[0] if name is None else name for key, name, *_ in proteins],
        descriptions=[text or known.get(key, ("", ""))[1] for key, _, text, *_ in proteins],
        lengths=np.array([residues for *_, residues, _ in proteins], np.int64),
        vectors=np.array([vector for *_, vector in proteins], np.float32).reshape(len(proteins), width),
        output=chosen,
        model_hash=str(attributes.get("model_hash", "")),
        settings=attributes.get("settings", {}),
    )


def find_store(path: Path | str) -> Path:
    """The file itself, or that in a folder. ProtformerError: there is none."""
    path = Path(path)
    if path.is_dir():
        endings = [ending for known in SUFFIXES.values() for ending in known]
        found = [path / f"embeddings{ending}" for ending in endings if (path / f"embeddings{ending}").exists()]
        if len(found) != 1:
            raise ProtformerError(f"{path} is a folder with {len(found)} files of embeddings: name one file.")
        return found[0]
    if not path.exists():
        raise ProtformerError(f"{path} does not exist.")
    return path


@contextmanager
def reading_store(path: Path) -> Iterator[Store]:
    """The file's proteins, in order. ProtformerError: it was not written by `protformer embed`, or is damaged."""
    with path.open("rb") as file:
        start = file.read(9)
    kind = next((known for magic, known in _MAGIC.items() if start.startswith(magic)), None)
    if kind is None and start[8:9] == b"{":
        kind = "safetensors"
    if kind is None:
        raise ProtformerError(f"{path} is no file of embeddings: HDF5, Parquet, NPZ and safetensors are read.")
    try:
        opened = import_module(f"protformer.embedding.formats.{kind}").opened
    except ImportError as error:
        raise ProtformerError(
            f'{path} is {kind}, which needs {error.name}: install it with `pip install "protformer[{kind}]"`.'
        ) from error
    with ExitStack() as stack:
        try:
            store = stack.enter_context(opened(path))
        except (OSError, ValueError, KeyError, BadZipFile, SafetensorError) as error:
            raise ProtformerError(f"{path} cannot be read as embeddings ({error}): make it again.") from error
        if store.attributes.get("format", FORMAT) != FORMAT:
            raise ProtformerError(f"{path} was not written by `protformer embed`.")
        yield store


def records_of(path: Path) -> Iterator[dict[str, str]]:
    """The rows of the table of records beside the file; none where it is not there."""
    table = sidecar(path, "records.tsv")
    if table.exists():
        with table.open(encoding="utf-8", newline="") as file:
            yield from csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE, escapechar="\\")
