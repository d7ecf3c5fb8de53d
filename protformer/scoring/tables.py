"""Tables of scores: to a file that is whole or not there, or to standard output row by row."""

import csv
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from protformer.errors import ProtformerError
from protformer.files import explaining, writing


class Failure(NamedTuple):
    """What has no score."""

    file: str
    record: int  # a FASTA file's record, or a table's line, from 1
    id: str
    reason: str


def checked_output(output: Path | None, inputs: Sequence[Path], *, force: bool) -> Path | None:
    """The output, its folder made. ProtformerError: it is a folder or an input, or exists and is to stay."""
    if output is None:
        return None
    if output.is_dir():
        raise ProtformerError(f"{output} is a folder: name the file to write, for instance {output / 'scores.tsv'}.")
    if any(path.resolve() == output.resolve() for path in inputs):
        raise ProtformerError(f"{output} is an input too: choose another output.")
    if output.exists() and not force:
        raise ProtformerError(f"{output} exists already: choose another output, or replace it with --force.")
    with explaining(output):
        output.parent.mkdir(parents=True, exist_ok=True)
    return output


class Rows:
    """Writes rows of text and numbers: tab-separated, or comma-separated into a file named `.csv`."""

    def __init__(self, file: Any, delimiter: str) -> None:
        self._writer = csv.writer(file, delimiter=delimiter, lineterminator="\n")

    def write(self, cells: Sequence[Any]) -> None:
        """One row. Numbers that are not whole get seven digits, fp32's; NaN is an empty cell."""
        self._writer.writerow([_cell(cell) for cell in cells])


def _cell(cell: Any) -> str:
    if isinstance(cell, float):
        return "" if cell != cell else f"{cell:.7g}"
    return str(cell)


@contextmanager
def table(output: Path | None) -> Iterator[Rows]:
    """Rows to `output`, which is renamed into place when all are written, or to standard output where it is None."""
    if output is None:
        # ids keep bytes that were no UTF-8 as Latin-1 letters, which a C locale could not print
        if hasattr(sys.stdout, "reconfigure"):
            sys.stdout.reconfigure(errors="backslashreplace")  # pyright: ignore[reportAttributeAccessIssue]
        yield Rows(sys.stdout, "\t")
        return
    with explaining(output), writing(output) as file:
        yield Rows(file, "," if output.suffix.lower() == ".csv" else "\t")


def write_failures(output: Path | None, failures: Sequence[Failure]) -> Path | None:
    """`<output>.failures.tsv`, only where there are some; the list of an earlier output goes. None without a file."""
    if output is None:
        return None
    path = output.with_name(output.name + ".failures.tsv")
    if not failures:
        path.unlink(missing_ok=True)
        return None
    with table(path) as rows:
        rows.write(Failure._fields)
        for failure in failures:
            rows.write(failure)
    return path
