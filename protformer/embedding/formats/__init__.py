"""The files that embeddings are delivered in: one writer and one reader each, chosen by name."""

from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from protformer.embedding.compute import Vectors
from protformer.embedding.options import Output
from protformer.embedding.shards import Row
from protformer.errors import ProtformerError

FORMAT = "protformer embeddings"
FORMAT_VERSION = 2
SUFFIXES = {
    "hdf5": (".h5", ".hdf5"),
    "parquet": (".parquet", ".pq"),
    "npz": (".npz",),
    "safetensors": (".safetensors",),
}


class Layout(NamedTuple):
    """What is known before the first protein is written."""

    outputs: tuple[Output, ...]
    dtype: np.dtype[Any]
    proteins: int
    residues: int  # of all proteins, equal ones each time
    key_length: int  # characters of the longest key
    attributes: dict[str, Any]  # of the whole: format, model_hash, settings, versions, counts


Stored = Iterator[tuple[Row, Vectors]]


@runtime_checkable
class Content(Protocol):
    """All proteins in order, as often as asked for."""

    layout: Layout

    def rows(self) -> Iterator[Row]: ...

    def proteins(self, names: tuple[str, ...]) -> Stored:
        """Rows with the arrays of these outputs."""
        ...


def writer(name: str) -> Callable[[Path, Content], None]:
    """`write(path, content)` of a format. ProtformerError: it needs a package that is not installed."""
    try:
        return import_module(f"protformer.embedding.formats.{name}").write
    except ImportError as error:
        raise ProtformerError(
            f'--format {name} needs {error.name}: install it with `pip install "protformer[{name}]"`, or choose '
            "another format."
        ) from error


def format_of(path: Path, name: str | None) -> str:
    """The format asked for by name, else by the output's ending, else HDF5. ProtformerError: the two disagree."""
    by_suffix = next((known for known, endings in SUFFIXES.items() if path.suffix.lower() in endings), None)
    if name is not None and by_suffix is not None and name != by_suffix:
        raise ProtformerError(f"{path} ends like {by_suffix}, and --format says {name}: change one of them.")
    return name or by_suffix or "hdf5"
