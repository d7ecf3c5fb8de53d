"""Rows of CSV, TSV and JSON lines, as dicts from column to cell.

The format is told by the name, its compression stripped, and else by the first line. What would lose rows in silence is
an error here: a quote that never closes, a row longer than its header, a column that is not there.
"""

import csv
import difflib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from protformer.data.fasta import as_text, reading
from protformer.errors import ProtformerError

Cell = Any  # str in CSV and TSV; in JSON whatever stands there
Wanted = str | bool | int | float | None | Sequence[Any]

_COMPRESSIONS = {".gz", ".bz2", ".xz", ".zst", ".bgz"}
_JSON = {".jsonl", ".ndjson", ".json"}
_DELIMITERS = {".csv": ",;", ".tsv": "\t", ".tab": "\t"}
_TRUE = {"true", "t", "yes", "y", "1"}
_FALSE = {"false", "f", "no", "n", "0"}


def is_blank(cell: Cell) -> bool:
    """Nothing, spaces or NaN: the cell is there and says nothing."""
    return (
        cell is None or (isinstance(cell, str) and not cell.strip()) or (isinstance(cell, float) and math.isnan(cell))
    )


def cell_text(cell: Cell) -> str:
    """A cell as text: CSV's `3` and JSON's 3 and 3.0 are the same label."""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return str(cell).strip()


def matches(cell: Cell, wanted: Wanted) -> bool:
    """Whether a cell is what a filter wants.

    A list wants any of its members; None or "" wants a blank; True and False compare as truth values in any spelling,
    and a blank is False (`validation=false` takes the rows where nothing is written); numbers compare as numbers; all
    else as text.
    """
    if isinstance(wanted, Sequence) and not isinstance(wanted, str):
        return any(matches(cell, one) for one in wanted)
    if is_blank(wanted):
        return is_blank(cell)
    text, want = ("" if is_blank(cell) else cell_text(cell)), cell_text(wanted)
    if isinstance(wanted, bool):
        return text.casefold() in (_TRUE if wanted else _FALSE | {""})
    if text == want or (want.casefold() in {"true", "false"} and text.casefold() == want.casefold()):
        return True
    try:
        return float(text) == float(want)
    except ValueError:
        return False


def suffix(path: str | Path) -> str:
    """The last suffix in lower case, compressions stripped: `.csv` of `train.CSV.gz`."""
    suffixes = [part.lower() for part in Path(path).suffixes]
    while suffixes and suffixes[-1] in _COMPRESSIONS:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_rows(path: str | Path, columns: Sequence[str], optional: Sequence[str] = ()) -> Iterator[dict[str, Cell]]:
    """The rows of one table, in order, with these columns alone; a cell that a row lacks is None.

    Args:
        path: CSV, TSV or JSON lines, plain or compressed (see `fasta.open_text`).
        columns: must be there, each once.
        optional: in the rows if they are there.

    Raises:
        ProtformerError: no such column (the message lists those that exist), a row that cannot be parsed, an unreadable
            file.
    """
    asked = {*columns, *optional}
    seen: dict[str, None] = {}
    with reading(path) as handle:
        lines = (line if line.isascii() else as_text(line) for line in handle)
        first = next((line for line in lines if line.strip()), None)
        if first is None:
            raise ProtformerError(f"{path} is empty: it should have a header line and rows, or JSON lines.")
        name = suffix(path)
        is_json = name in _JSON or (name not in _DELIMITERS and first.lstrip()[0] in "{[")
        rows = _json_rows if is_json else _delimited_rows
        for row in rows(itertools.chain([first], lines), first, path, seen, columns):
            yield {column: row.get(column) for column in asked if column in row or column in columns}
    _require(columns, list(seen), path)


def _require(columns: Sequence[str], existing: list[str], path: str | Path) -> None:
    for column in columns:
        if column not in existing:
            folded = {name.casefold(): name for name in existing}
            close = difflib.get_close_matches(column.casefold(), list(folded), n=1, cutoff=0.5)
            hint = f" Did you mean {folded[close[0]]!r}?" if close else ""
            raise ProtformerError(f"{path} has no column {column!r}; its columns are {', '.join(existing)}.{hint}")


def _json_rows(
    lines: Iterator[str], first: str, path: str | Path, seen: dict[str, None], columns: Sequence[str]
) -> Iterator[dict[str, Cell]]:
    if first.lstrip().startswith("["):  # one array of objects
        try:
            numbered = enumerate(json.loads("".join(lines)), start=1)
        except ValueError as error:
            raise ProtformerError(f"{path} is not JSON: {error}.") from None
    else:
        numbered = ((number, _parsed(line, number, path)) for number, line in enumerate(lines, 1) if line.strip())
    for number, row in numbered:
        if not isinstance(row, dict):
            raise ProtformerError(
                f"{path}, row {number}: each row is a JSON object with its columns, not {str(row)[:40]!r}."
            )
        seen.update(dict.fromkeys(row))
        yield row


def _parsed(line: str, number: int, path: str | Path) -> Any:
    try:
        return json.loads(line)
    except ValueError as error:
        raise ProtformerError(f"{path}, row {number} is not JSON: {error}.") from None


def _delimited_rows(
    lines: Iterator[str], first: str, path: str | Path, seen: dict[str, None], columns: Sequence[str]
) -> Iterator[dict[str, Cell]]:
    delimiter = max(_DELIMITERS.get(suffix(path), "\t,;"), key=first.count)  # of equals the first
    # Titin is 34,350 letters, and the csv module's limit is 131,072 by default: a few labels a residue would pass it.
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = [name.strip() for name in next(reader)]
        _require(columns, header, path)
        seen.update(dict.fromkeys(header))
        for column in columns:
            if header.count(column) > 1:
                raise ProtformerError(
                    f"{path} has {header.count(column)} columns named {column!r}: rename all but one."
                )
        for row in reader:
            if len(row) > len(header):
                raise ProtformerError(
                    f"{path}, line {reader.line_num}: {len(row)} cells under a header of {len(header)}; "
                    f'quote cells that hold the delimiter {delimiter!r} ("like, this").'
                )
            if row:
                yield dict(zip(header, row, strict=False))
    except csv.Error as error:
        raise ProtformerError(f"{path}, line {reader.line_num} cannot be parsed: {error}.") from None
