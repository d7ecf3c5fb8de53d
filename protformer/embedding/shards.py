"""Shards: what one window of the input became, in one immutable file. Resume trusts these and nothing else.

A shard is a safetensors file, written under a temporary name, flushed and renamed: under its name it is whole. It
holds the row of every record of its window, and the vectors of those whose sequence came for the first time:

    rows              uint8 [bytes]            JSON, one line for each record
    records           int64 [computed]         numbers of the records that have vectors here
    offsets           int64 [computed + 1]     their residues, end to end
    OUTPUT            [computed, width], or [residues, width]

Its header says which window it is, the digest of the input up to its end, and a checksum of all that.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save_file

from protformer.embedding.compute import Made, Vectors
from protformer.embedding.options import Output
from protformer.embedding.records import FAILED, Entry
from protformer.embedding.windows import Window
from protformer.files import flush, replace


class Row(NamedTuple):
    """What became of one record: a line of the records' table."""

    record: int  # from 1, over all files
    file: str
    place: int  # in its file, from 1
    id: str
    description: str
    key: str
    residues: int  # that are embedded
    status: str
    reason: str
    treatment: str
    same_as: int
    sequence_hash: str

    @classmethod
    def of(cls, entry: Entry) -> "Row":
        shared = {name: getattr(entry, name) for name in cls._fields if name != "residues"}
        return cls(**shared, residues=len(entry.tokens))


def shard_path(folder: Path, number: int) -> Path:
    return folder / f"shard-{number:08d}.safetensors"


def write_shard(
    folder: Path, window: Window, made: Sequence[Made], outputs: Sequence[Output], dtype: np.dtype[Any]
) -> int:
    """Write what became of a window; the number of records that failed in the model.

    `made` has the vectors, or the reason why there are none, of `window.computed`.
    """
    rows = {entry.record: Row.of(entry) for entry in window.entries}
    kept: list[tuple[Entry, Vectors]] = []
    for entry, vectors in zip(window.computed, made, strict=True):
        if isinstance(vectors, str):
            rows[entry.record] = rows[entry.record]._replace(status=FAILED, reason=vectors)
        else:
            kept.append((entry, vectors))
    text = "".join(json.dumps(list(row)) + "\n" for row in rows.values())
    tensors = {
        "rows": np.frombuffer(text.encode(), np.uint8),
        "records": np.array([entry.record for entry, _ in kept], np.int64),
        "offsets": np.cumsum([0, *(len(entry.tokens) for entry, _ in kept)], dtype=np.int64),
    }
    for output in outputs:
        parts = [vectors[output.name] for _, vectors in kept]
        if not parts:
            tensors[output.name] = np.zeros((0, output.width), dtype)
        else:
            joined = np.concatenate(parts) if output.per_residue else np.stack(parts)
            tensors[output.name] = joined.astype(dtype, copy=False)
    header = {"window": str(window.number), "prefix": window.prefix, "checksum": _checksum(tensors)}
    path = shard_path(folder, window.number)
    temporary = path.with_suffix(".part")
    save_file(tensors, temporary, metadata=header)
    flush(temporary)
    replace(temporary, path)
    return len(made) - len(kept)


def is_whole(folder: Path, window: Window) -> bool | None:
    """Whether this window's shard is there, whole; None where one is there that came from another input."""
    path = shard_path(folder, window.number)
    try:
        with safe_open(path, framework="numpy") as file:
            header = file.metadata() or {}
            if header.get("prefix") != window.prefix or header.get("window") != str(window.number):
                return None
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (OSError, SafetensorError):  # not there, or damaged since: it is made again
        return False
    return header.get("checksum") == _checksum(tensors)


class Shard:
    """A shard that is read; arrays come as they are asked for."""

    def __init__(self, folder: Path, number: int, outputs: Sequence[Output]) -> None:
        self._outputs = outputs
        self._file = safe_open(shard_path(folder, number), framework="numpy").__enter__()
        lines = self._file.get_tensor("rows").tobytes().decode().splitlines()
        self.rows = [Row(*json.loads(line)) for line in lines]
        self._records = self._file.get_tensor("records")
        self._offsets = self._file.get_tensor("offsets")

    def vectors(self, record: int, names: Sequence[str]) -> Vectors:
        """Of a record whose sequence was computed in this shard."""
        at = int(np.searchsorted(self._records, record))
        found = {}
        for output in self._outputs:
            if output.name in names:
                part = slice(int(self._offsets[at]), int(self._offsets[at + 1])) if output.per_residue else at
                found[output.name] = self._file.get_slice(output.name)[part]
        return found


def _checksum(tensors: Mapping[str, np.ndarray]) -> str:
    hashed = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        array = np.ascontiguousarray(tensors[name])
        hashed.update(f"{name} {array.dtype} {array.shape};".encode())
        hashed.update(array.data if array.size else b"")
    return hashed.hexdigest()
