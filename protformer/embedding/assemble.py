"""From shards to the delivered file, in the order of the input, and the tables beside it.

    out.h5                    the vectors
    out.h5.records.tsv        a row for every record of the input
    out.h5.failures.tsv       those that have no embedding, with the reason; only where there are some
    out.h5.manifest.json      model, settings, policies, versions, counts, checksums: written last

All are made in the folder of shards first and renamed when all are whole.
"""

import csv
import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from protformer.embedding.compute import Vectors
from protformer.embedding.formats import Layout, Stored, writer
from protformer.embedding.options import Output
from protformer.embedding.records import DROPPED, EMBEDDED, FAILED
from protformer.embedding.shards import Row, Shard
from protformer.files import flush, replace, writing

_OPEN_SHARDS = 8
TABLE = (
    *("record", "file", "place", "id", "key", "residues"),
    *("status", "reason", "treatment", "same_as", "sequence_hash", "description"),
)


@dataclass
class Counts:
    """Of a finished run. `records == embedded + failed + dropped`."""

    records: int = 0
    embedded: int = 0
    failed: int = 0
    dropped: int = 0
    residues: int = 0  # of the embedded, equal ones each time
    equal_sequences: int = 0  # embedded, computed once for an earlier record


class Shards:
    """All shards of a run, as the content of a file (`formats.Content`)."""

    layout: Layout

    def __init__(self, folder: Path, count: int, outputs: Sequence[Output]) -> None:
        self._folder = folder
        self._outputs = tuple(outputs)
        self._open = lru_cache(_OPEN_SHARDS)(self._shard)
        self._firsts: list[int] = []  # the first record of each shard
        self.counts = Counts()
        self.key_length = 0
        for number in range(count):
            shard = self._open(number)
            self._firsts.append(shard.rows[0].record)
            for row in self._final(shard):
                self._count(row)

    def all_rows(self) -> Iterator[Row]:
        """Of every record of the input."""
        for number in range(len(self._firsts)):
            yield from self._final(self._open(number))

    def rows(self) -> Iterator[Row]:
        """Of every protein that has vectors."""
        return (row for row in self.all_rows() if row.status == EMBEDDED)

    def proteins(self, names: tuple[str, ...]) -> Stored:
        for row in self.rows():
            yield row, self._vectors(row.same_as or row.record, names)

    def _shard(self, number: int) -> Shard:
        return Shard(self._folder, number, self._outputs)

    def _of(self, record: int) -> Shard:
        return self._open(bisect_right(self._firsts, record) - 1)

    def _vectors(self, record: int, names: tuple[str, ...]) -> Vectors:
        return self._of(record).vectors(record, names)

    def _final(self, shard: Shard) -> Iterator[Row]:
        """An equal sequence that failed before fails here too."""
        for row in shard.rows:
            if row.status == EMBEDDED and row.same_as:
                first = self._of(row.same_as)
                known = first.rows[row.same_as - first.rows[0].record]
                if known.status == FAILED:
                    row = row._replace(status=FAILED, reason=known.reason)
            yield row

    def _count(self, row: Row) -> None:
        counts = self.counts
        counts.records += 1
        counts.failed += row.status == FAILED
        counts.dropped += row.status == DROPPED
        if row.status == EMBEDDED:
            counts.embedded += 1
            counts.residues += row.residues
            counts.equal_sequences += row.same_as > 0
            self.key_length = max(self.key_length, len(row.key))


def sidecar(output: Path, name: str) -> Path:
    return output.with_name(f"{output.name}.{name}")


def assemble(
    shards: Shards, format_name: str, dtype: "np.dtype[Any]", attributes: dict[str, Any], folder: Path
) -> dict[str, Path]:
    """The files of the run in `folder`, by what is to follow the output's name: "" for the output itself."""
    counts = shards.counts
    shards.layout = Layout(
        shards._outputs, dtype, counts.embedded, counts.residues, shards.key_length, attributes
    )  # fmt: skip
    made = {"records.tsv": folder / "records.tsv"}
    _table(made["records.tsv"], TABLE, shards.all_rows())
    if counts.failed:
        made["failures.tsv"] = folder / "failures.tsv"
        failed = (row for row in shards.all_rows() if row.status == FAILED)
        _table(made["failures.tsv"], ("file", "place", "id", "reason"), failed)
    if counts.embedded:
        made[""] = folder / "assembled"
        writer(format_name)(made[""], shards)
        flush(made[""])
    return made


def deliver(made: dict[str, Path], output: Path, manifest: dict[str, Any]) -> None:
    """Rename the files into place, the manifest last: where it stands, the rest does."""
    sidecar(output, "manifest.json").unlink(missing_ok=True)
    if "failures.tsv" not in made:
        sidecar(output, "failures.tsv").unlink(missing_ok=True)
    for name, path in made.items():
        replace(path, sidecar(output, name) if name else output)
    if "" in made:
        with writing(sidecar(output, "manifest.json")) as file:
            json.dump(manifest, file, indent=1)
            file.write("\n")


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _table(path: Path, columns: Sequence[str], rows: Iterator[Row]) -> None:
    with writing(path) as file:
        table = csv.writer(file, delimiter="\t", lineterminator="\n", quoting=csv.QUOTE_NONE, escapechar="\\")
        table.writerow(["record" if name == "place" and "record" not in columns else name for name in columns])
        table.writerows([_cell(getattr(row, name)) for name in columns] for row in rows)


def _cell(value: str | int) -> str | int:
    return value.replace("\t", " ") if isinstance(value, str) else value
