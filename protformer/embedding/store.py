"""Embeddings on disk: one HDF5 file, as biotrainer reads it, that is whole or not there.

    out.h5                        no groups; datasets in the order of the input
      attributes                  format, format_version, model_hash; as JSON: settings, versions, counts
      sp|P12345|NAME_HUMAN        float32 [hidden] or [residues, hidden]
        original_id               the id as it stood in the file
        residues                  its length

An HDF5 file that was cut short cannot be read at all, so the file grows under a temporary name in the same folder, is
flushed to the disk and then renamed. Nothing in it depends on the clock: the same vectors give the same bytes.
"""

import contextlib
import csv
import io
import json
import os
import secrets
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import h5py
import numpy as np
from jaxtyping import Float32

from protformer.embedding.keys import Keys
from protformer.errors import ProtformerError

FORMAT = "protformer embeddings"
FORMAT_VERSION = 1


class Failure(NamedTuple):
    """A record that has no embedding."""

    file: str
    record: int  # its number in that file, from 1
    id: str
    reason: str


class EmbeddingWriter:
    """Writes a store; `commit` puts it in place. Left without `commit`, nothing remains.

    Raises ProtformerError where the file cannot be written: no such folder, no permission, a full disk.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.written = 0
        self._keys = Keys()
        self._temporary = self.path.with_name(f".{self.path.name[:100]}.{secrets.token_hex(4)}.part")
        try:
            # track_order: iteration gives the order of creation, which is the order of the input
            self._file = h5py.File(self._temporary, "x", track_order=True)
        except OSError as error:
            raise self._cannot_write(error) from error

    def write(self, name: str, embedding: Float32[np.ndarray, "..."], *, residues: int) -> str:
        """Append one protein; the key that it got."""
        key = self._keys.assign(name)
        try:
            dataset = self._file.create_dataset(key, data=embedding)
            # a string in HDF5 ends at its first NUL
            dataset.attrs["original_id"] = name.replace("\0", "\\x00")
            dataset.attrs["residues"] = residues
        except OSError as error:
            raise self._cannot_write(error) from error
        self.written += 1
        return key

    def commit(
        self, *, model_hash: str, settings: dict[str, Any], versions: dict[str, str], counts: dict[str, int]
    ) -> None:
        """Write the file's attributes, flush it to the disk and rename it into place."""
        attributes = self._file.attrs
        try:
            attributes["format"], attributes["format_version"] = FORMAT, FORMAT_VERSION
            attributes["model_hash"] = model_hash
            attributes["settings"] = json.dumps(settings)
            attributes["versions"] = json.dumps(versions)
            attributes["counts"] = json.dumps(counts)
            self._file.close()
            with self._temporary.open("rb") as file:
                os.fsync(file.fileno())
            replace(self._temporary, self.path)
        except OSError as error:
            raise self._cannot_write(error) from error

    def __enter__(self) -> "EmbeddingWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # Closing flushes, which fails again on a full disk; the error that brought us here is the one to show.
        with contextlib.suppress(OSError, RuntimeError):
            self._file.close()
        self._temporary.unlink(missing_ok=True)

    def _cannot_write(self, error: OSError) -> ProtformerError:
        # h5py's messages are a page long; the system's own sentence is in its errno
        reason = os.strerror(error.errno) if error.errno else str(error)
        return ProtformerError(f"{self.path} cannot be written: {reason}.")


def replace(temporary: Path, path: Path) -> None:
    """Rename, and flush the folder too: a rename that only the cache knows is lost with the power."""
    temporary.replace(path)
    if os.name == "posix":
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def failures_path(output: Path | str) -> Path:
    output = Path(output)
    return output.with_name(output.name + ".failures.tsv")


def write_failures(output: Path | str, failures: Iterable[Failure]) -> Path:
    """`<output>.failures.tsv`: file, record, id, reason. Written whole or not at all."""
    path = failures_path(output)
    text = io.StringIO()
    table = csv.writer(text, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, escapechar="\\")
    table.writerow(Failure._fields)
    table.writerows(failures)
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(4)}.part")
    try:
        with temporary.open("w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text.getvalue())
            file.flush()
            os.fsync(file.fileno())
        replace(temporary, path)
    except OSError as error:
        raise ProtformerError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)
    return path
