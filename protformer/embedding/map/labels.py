"""Colours from a table: a column's values, put to proteins by their ids, and what did not fit counted.

The rows' names are in the first column of these that exists: id, protein, accession, key; else in the first column. A
name matches a protein's id, its key in the store, or else the accession or entry name inside `sp|P12345|NAME_HUMAN`.
"""

import csv
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from protformer.data.fasta import reading
from protformer.data.tables import cell_text, is_blank, read_rows, suffix
from protformer.embedding.naming import one_line, some
from protformer.embedding.stored import StoredEmbeddings
from protformer.errors import ProtformerError

Kind = Literal["category", "number"]

ID_COLUMNS = ("id", "protein", "accession", "key")
_MISSING = {"na", "n/a", "nan", "null", "#n/a"}  # what R, pandas and spreadsheets write for nothing
# So few different whole numbers are names of groups: 0 and 1, or the classes of a screen.
_FEW = 8


@dataclass(frozen=True)
class Labels:
    """One value for each protein of a store."""

    source: str
    column: str
    kind: Kind
    texts: list[str | None]
    """As they stand in the table; None where there is none."""
    numbers: list[float | None] = field(default_factory=list)
    """Of `texts`, where the kind is "number"."""
    notes: list[str] = field(default_factory=list)
    """What did not match, in sentences."""


def split_color(text: str) -> tuple[Path, str]:
    """`labels.tsv:column` to its parts; either may hold colons itself. ProtformerError where there is no such file."""
    if Path(text).is_file():
        raise ProtformerError(
            f"--color {text} names no column: write {text}:COLUMN; its columns are {', '.join(header(Path(text)))}."
        )
    parts = text.split(":")
    for place in range(len(parts) - 1, 0, -1):
        path = Path(":".join(parts[:place]))
        if path.is_file():
            return path, ":".join(parts[place:])
    if len(parts) == 1:
        raise ProtformerError(f"--color {text} does not exist; write it as labels.tsv:COLUMN.")
    raise ProtformerError(f"--color: there is no file {':'.join(parts[:-1])}.")


def header(path: Path) -> list[str]:
    """The columns of a CSV or TSV file, plain or compressed."""
    with reading(path) as lines:
        first = next((line for line in lines if line.strip()), "")
    delimiter = max({".csv": ",;", ".tsv": "\t", ".tab": "\t"}.get(suffix(path), "\t,;"), key=first.count)
    return [name.strip() for name in next(csv.reader([first], delimiter=delimiter), [])]


def read_labels(path: Path, column: str, store: StoredEmbeddings, *, kind: Kind | None = None) -> Labels:
    """The column's values for the proteins of a store.

    Args:
        kind: by default "number" where each value is a number, unless these are at most eight different whole numbers.

    Raises:
        ProtformerError: no such file or column, a table that cannot be read, no row that matches a protein, or a value
            that is no number where `kind` says so.
    """
    columns = header(path)
    by_name = {name.casefold(): name for name in reversed(columns)}
    id_column = next((by_name[name] for name in ID_COLUMNS if name in by_name), columns[0] if columns else column)
    of_names, strange, conflicts = _positions(store), [], set()
    values: list[str | None] = [None] * len(store.keys)
    named: set[int] = set()
    rows = 0
    for row in read_rows(path, [id_column, column]):
        if is_blank(row[id_column]):
            continue
        rows += 1
        name = cell_text(row[id_column])
        places = of_names.get(name, ())
        if not places:
            strange.append(name)
        text = _value(row[column])
        for place in places:
            named.add(place)
            if values[place] is None:
                values[place] = text
            elif text is not None and text != values[place]:
                conflicts.add(place)
    if not named and store.keys:
        raise ProtformerError(
            f"{path}: none of the {rows:,} rows is of a protein of {store.path}: column {id_column!r} holds such as "
            f"{strange[0][:40] if strange else ''!r}, the store such as {(store.ids[0] or store.keys[0])[:40]!r}."
        )
    notes = _notes(path, column, id_column, store, values, named, strange, conflicts)
    known = [text for text in values if text is not None]
    numbers = [_number(text) for text in known]
    if kind is None:
        all_numbers = bool(numbers) and None not in numbers
        few = len(set(numbers)) <= _FEW and all(number is not None and number.is_integer() for number in numbers)
        kind = "number" if all_numbers and not few else "category"
    if kind == "number" and None in numbers:
        text = known[numbers.index(None)]
        raise ProtformerError(f"{path}: {text[:40]!r} in column {column!r} is no number: use --color-as category.")
    return Labels(
        source=path.name,
        column=column,
        kind=kind,
        texts=values,
        numbers=[None if text is None else _number(text) for text in values] if kind == "number" else [],
        notes=notes,
    )


def _positions(store: StoredEmbeddings) -> dict[str, list[int]]:
    """Under each name the proteins that it means; ids go before keys, keys before parts of ids."""
    by_id: dict[str, list[int]] = {}
    for place, name in enumerate(store.ids):
        if name:
            by_id.setdefault(name, []).append(place)
    found = {key: [place] for place, key in enumerate(store.keys)} | by_id
    parts: dict[str, list[int]] = {}
    for name, places in by_id.items():
        if name.count("|") >= 2:
            for part in {*name.split("|")[1:3]} - {""}:
                parts.setdefault(part, []).extend(places)
    return parts | found


def _value(cell: object) -> str | None:
    """A cell as one line of text; None where it says nothing."""
    if is_blank(cell):
        return None
    text = one_line(cell_text(cell))
    return None if text.casefold() in _MISSING else text


def _number(text: str) -> float | None:
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _notes(
    path: Path,
    column: str,
    id_column: str,
    store: StoredEmbeddings,
    values: Sequence[str | None],
    named: set[int],
    strange: list[str],
    conflicts: set[int],
) -> list[str]:
    def proteins(places: list[int]) -> str:
        return some(store.ids[place] or store.keys[place] for place in places)

    notes = []
    without = [place for place in range(len(values)) if place not in named]
    blank = [place for place in sorted(named) if values[place] is None]
    if without:
        notes.append(f"Proteins without a row in {path.name}: {proteins(without)}.")
    if blank:
        notes.append(f"Proteins whose {column} is blank in {path.name}: {proteins(blank)}.")
    if strange:
        shown = some(one_line(name)[:60] for name in Counter(strange))
        notes.append(f"Names in column {id_column} of {path.name} that are of no protein here: {shown}.")
    if conflicts:
        notes.append(
            f"Proteins with several rows of different {column} in {path.name}, of which the first counts: "
            f"{proteins(sorted(conflicts))}."
        )
    return notes
