"""Labelled tables: sequences become a corpus, labels one array that lies along it.

    read_labelled(train.csv.gz)  ->  LabelledTable: a Corpus, and for each of its records the raw cell
    class_labels | multi_labels | residue_labels | number_targets  ->  Labelled: the records that have a target, and it

    kind        a cell holds                        values
    class       one class                           int64 [n]
    multi       classes "a;b" or ["a", "b"]         float32 [n, classes], 0 or 1
    residue     one letter a residue "CCHHHE"       int16 [residues], end to end like the tokens, IGNORE where masked
    number      a number                            float32 [n]

The vocabulary is learned from train and given to valid and test, whose unknown classes are an error: a class that no
training example has cannot be predicted, and dropping it in silence would raise the score. A record that cannot be used
(no label, a label of another length than its sequence) is skipped, counted and named in the report.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np

from protformer.data.corpus import Corpus, CorpusBuilder, Noted
from protformer.data.fasta import expand_paths
from protformer.data.tables import Cell, Wanted, cell_text, is_blank, matches, read_rows
from protformer.errors import ProtformerError

IGNORE = -100  # torch.nn.functional.cross_entropy's ignore_index

Unknown = Literal["error", "skip"]

_ID_COLUMNS = ("id", "accession", "name", "entry", "protein_id", "ID", "Accession", "Name", "Entry")
_VALUES_SHOWN = 8
_MASK = {"1": True, "0": False, "True": True, "False": False}


@dataclass
class LabelReport:
    """What became of the rows: `rows == left_out + records +` the sum of the skipped."""

    files: list[str] = field(default_factory=list)
    rows: int = 0
    left_out: int = 0  # by `where`
    records: int = 0  # with a sequence and a target
    skipped: dict[str, Noted] = field(default_factory=dict)  # reason -> how many, and the first ids
    unknown_positions: dict[str, int] = field(default_factory=dict)  # residue classes that are not in the vocabulary

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    def summary(self) -> str:
        lines = [
            f"{self.rows:,} rows, {self.records:,} used{f', {self.left_out:,} left out by where' * (self.left_out > 0)}"
        ]
        lines += [f"skipped, {reason}: {noted}" for reason, noted in self.skipped.items()]
        if self.unknown_positions:
            letters = ", ".join(f"{letter!r} {count:,}" for letter, count in sorted(self.unknown_positions.items()))
            lines.append(f"residues that do not count because their class is not in train: {letters}")
        return "\n".join(lines)

    def but(self, records: int, skipped: dict[str, Noted], unknown: dict[str, int] | None = None) -> "LabelReport":
        return LabelReport(self.files, self.rows, self.left_out, records, {**self.skipped, **skipped}, unknown or {})


@dataclass
class LabelledTable:
    """Records that have a sequence, and their cells as they stand in the table."""

    corpus: Corpus
    labels: list[Cell]  # one a record of the corpus
    masks: list[Cell] | None  # likewise, where a mask column was named
    report: LabelReport
    label_column: str
    # sequences whose text is not one letter a residue (spaces, a final "*"): what per-residue labels are aligned by
    texts: dict[int, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.corpus)

    def named(self, index: int) -> str:
        return self.corpus.id(index) or f"record {index + 1}"

    @property
    def source(self) -> str:
        return ", ".join(self.report.files)


class Labelled(NamedTuple):
    """A corpus and the targets that lie along it; see the module's table for the shapes of `values`."""

    corpus: Corpus
    values: np.ndarray
    vocabulary: tuple[str, ...]  # () for numbers
    report: LabelReport

    @property
    def class_counts(self) -> np.ndarray:
        """Examples (or residues that count) of each class: int64 [classes]; class weights are made of them."""
        if self.values.dtype == np.float32:
            return self.values.sum(axis=0, dtype=np.float64).astype(np.int64)
        return np.bincount(self.values[self.values != IGNORE], minlength=len(self.vocabulary))

    def residues(self, index: int) -> np.ndarray:
        """The classes of one sequence's residues (a view): per-residue labels only."""
        return self.values[self.corpus.offsets[index] : self.corpus.offsets[index + 1]]


def read_labelled(
    paths: str | Path | Sequence[str | Path],
    *,
    sequence_column: str = "sequence",
    label_column: str = "label",
    id_column: str | None = None,
    mask_column: str | None = None,
    where: Mapping[str, Wanted] | None = None,
    limit: int | None = None,
) -> LabelledTable:
    """Read CSV, TSV or JSON lines, any compression (see `tables.read_rows` and, for paths, `fasta.expand_paths`).

    Args:
        id_column: without it, the first of id, accession, name, entry, protein_id that exists, else `file:row`.
        mask_column: one 0 or 1 a residue; residues with 0 do not count (per-residue labels).
        where: column -> value; only rows that match all are read, for instance `{"set": "train", "validation": False}`.
            A blank cell is False; a list matches any of its values (see `tables.matches`).
        limit: stop after this many records.

    Raises:
        ProtformerError: no such file or column (the message lists those that exist), nothing matches `where`, or no row
            has a sequence.
    """
    where = dict(where or {})
    named = [column for column in (sequence_column, label_column, mask_column, id_column) if column]
    id_columns = [id_column] if id_column else _ID_COLUMNS
    builder, report = CorpusBuilder(), LabelReport()
    labels: list[Cell] = []
    masks: list[Cell] = []
    texts: dict[int, str] = {}
    values_seen: dict[str, set[str]] = {column: set() for column in where}
    for path in expand_paths(paths):
        if builder.report.limited:
            break
        report.files.append(str(path))
        start = len(builder.tokens)
        for number, row in enumerate(read_rows(path, [*named, *where], id_columns), start=1):
            if limit is not None and len(builder) >= limit:
                builder.report.limited = True
                break
            report.rows += 1
            for column, values in values_seen.items():
                if len(values) <= _VALUES_SHOWN:
                    values.add("(blank)" if is_blank(row[column]) else cell_text(row[column])[:40])
            if not all(matches(row[column], wanted) for column, wanted in where.items()):
                report.left_out += 1
                continue
            name = next((cell_text(row[c]) for c in id_columns if not is_blank(row.get(c))), f"{path.name}:{number}")
            sequence = "" if is_blank(row[sequence_column]) else str(row[sequence_column])
            before = len(builder.tokens)
            if not builder.add(name, sequence):
                report.skipped.setdefault("no sequence", Noted()).add(name)
                continue
            if len(sequence) != len(builder.tokens) - before:
                texts[len(builder) - 1] = sequence
            labels.append(row[label_column])
            if mask_column:
                masks.append(row[mask_column])
        builder.warn_of_nucleotides(str(path), start)
    source = ", ".join(report.files)
    if report.rows and report.left_out == report.rows:
        shown = "; ".join(
            f"{column} holds {', '.join(sorted(values)[:_VALUES_SHOWN])}{', ...' * (len(values) > _VALUES_SHOWN)}"
            for column, values in values_seen.items()
        )
        wanted = ", ".join(f"{column}={value}" for column, value in where.items())
        raise ProtformerError(f"{source}: no row matches where {wanted}; {shown}.")
    if not len(builder):
        raise ProtformerError(f"{source}: no row has a sequence in column {sequence_column!r}.")
    report.records = len(builder)
    builder.report.files = report.files
    return LabelledTable(builder.build(), labels, masks if mask_column else None, report, label_column, texts)


class _Kept:
    """Collects the records that have a target, and the reasons of those that have none."""

    def __init__(self, table: LabelledTable):
        self.table = table
        self.indices: list[int] = []
        self.values: list[Any] = []
        self.skipped: dict[str, Noted] = {}

    def keep(self, index: int, value: Any) -> None:
        self.indices.append(index)
        self.values.append(value)

    def skip(self, index: int, reason: str) -> None:
        self.skipped.setdefault(reason, Noted()).add(self.table.named(index))

    def labelled(
        self, values: np.ndarray, vocabulary: Sequence[str], unknown: dict[str, int] | None = None
    ) -> Labelled:
        table = self.table
        if not self.indices:
            raise ProtformerError(
                f"{table.source}: no record has a label in column {table.label_column!r}; "
                + "; ".join(f"{reason}: {noted}" for reason, noted in self.skipped.items())
            )
        whole = len(self.indices) == len(table.corpus)
        corpus = table.corpus if whole else table.corpus.subset(self.indices)
        report = table.report.but(len(self.indices), self.skipped, unknown)
        return Labelled(corpus, values, tuple(vocabulary), report)


def _sorted_classes(classes: Iterable[str]) -> tuple[str, ...]:
    """In order of the text, or of the number where all are whole numbers: 2 before 10."""
    names = set(classes)
    try:
        return tuple(sorted(names, key=int))
    except ValueError:
        return tuple(sorted(names))


def _unknown(table: LabelledTable, name: str, index: int, vocabulary: Sequence[str]) -> ProtformerError:
    shown = ", ".join(vocabulary[:20]) + (", ..." if len(vocabulary) > 20 else "")
    return ProtformerError(
        f"{table.source}: the label {name!r} of {table.named(index)} is none of the {len(vocabulary)} classes of train "
        f"({shown}). Correct it, or leave such records out, and counted, with `data.unknown_labels=skip`."
    )


def class_labels(
    table: LabelledTable, vocabulary: Sequence[str] | None = None, *, unknown: Unknown = "error"
) -> Labelled:
    """One class a record: int64 [n].

    Args:
        vocabulary: train's classes, in the order of their indices; None learns them from this table, sorted.
        unknown: what to do with a record whose class `vocabulary` lacks: ProtformerError, or skip, count and name it.
    """
    kept = _Kept(table)
    for index, cell in enumerate(table.labels):
        if isinstance(cell, list | dict):
            raise ProtformerError(
                f"{table.source}: {table.named(index)} has several labels in {table.label_column!r} ({str(cell)[:40]}) "
                "where one class is expected: use multi-label or per-residue classification."
            )
        if is_blank(cell):
            kept.skip(index, "no label")
        else:
            kept.keep(index, cell_text(cell))
    classes = tuple(vocabulary) if vocabulary is not None else _sorted_classes(kept.values)
    number = {name: position for position, name in enumerate(classes)}
    known = _Kept(table)
    known.skipped = kept.skipped
    for index, name in zip(kept.indices, kept.values, strict=True):
        if name in number:
            known.keep(index, number[name])
        elif unknown == "skip":
            known.skip(index, f"class {name!r} is not in train")
        else:
            raise _unknown(table, name, index, classes)
    return known.labelled(np.array(known.values, dtype=np.int64), classes)


def multi_labels(
    table: LabelledTable,
    vocabulary: Sequence[str] | None = None,
    *,
    separator: str = ";",
    unknown: Unknown = "error",
) -> Labelled:
    """Any number of classes a record: float32 [n, classes] of 0 and 1.

    A cell is text with a separator, or a JSON list. A blank cell is a missing label, and skipped; a record of no class
    is written as an empty list, or as the separator alone.
    """
    kept = _Kept(table)
    for index, cell in enumerate(table.labels):
        if is_blank(cell):
            kept.skip(index, "no label")
            continue
        parts = cell if isinstance(cell, list) else cell_text(cell).split(separator)
        kept.keep(index, [cell_text(part) for part in parts if not is_blank(part)])
    classes = (
        tuple(vocabulary)
        if vocabulary is not None
        else _sorted_classes(name for names in kept.values for name in names)
    )
    number = {name: position for position, name in enumerate(classes)}
    known = _Kept(table)
    known.skipped = kept.skipped
    for index, names in zip(kept.indices, kept.values, strict=True):
        strange = next((name for name in names if name not in number), None)
        if strange is None:
            known.keep(index, [number[name] for name in names])
        elif unknown == "skip":
            known.skip(index, f"class {strange!r} is not in train")
        else:
            raise _unknown(table, strange, index, classes)
    values = np.zeros((len(known.indices), len(classes)), dtype=np.float32)
    for row, positions in enumerate(known.values):
        values[row, positions] = 1
    return known.labelled(values, classes)


def residue_labels(
    table: LabelledTable, vocabulary: Sequence[str] | None = None, *, unknown: Unknown = "error"
) -> Labelled:
    """One class a residue: int16 [residues] along `corpus.tokens`, IGNORE (-100) where the mask has 0.

    A cell is text with a letter for each residue, or a JSON list. It may be as long as the sequence's text (what
    cleaning took from the sequence, spaces and a final `*`, is then taken from it too) or as its residues; any other
    length, and a mask of another length, skips the record. Classes that stand only under a mask of 0 are no classes.
    """
    kept = _Kept(table)
    for index, cell in enumerate(table.labels):
        if cell is None or cell == "" or cell == []:
            kept.skip(index, "no label")
            continue
        names = _along(cell, table, index)
        if names is None:
            kept.skip(index, "labels and sequence differ in length")
            continue
        mask = table.masks[index] if table.masks is not None else None
        if not is_blank(mask):
            counts = _along(mask, table, index)
            if counts is None:
                kept.skip(index, "mask and sequence differ in length")
                continue
            if not _MASK.keys() >= set(counts):
                kept.skip(index, "the mask holds more than 0 and 1")
                continue
            names = [name if _MASK[count] else None for name, count in zip(names, counts, strict=True)]
        if all(name is None for name in names):
            kept.skip(index, "no residue of it counts")
        else:
            kept.keep(index, names)
    found = {name for names in kept.values for name in names} - {None}
    classes = tuple(vocabulary) if vocabulary is not None else _sorted_classes(found)
    number: dict[str | None, int] = {name: position for position, name in enumerate(classes)}
    number[None] = IGNORE
    strange: dict[str, int] = {}
    for index, names in zip(kept.indices, kept.values, strict=True):
        if found <= number.keys():
            break
        for name in names:
            if name not in number:
                if unknown == "error":
                    raise _unknown(table, name, index, classes)
                strange[name] = strange.get(name, 0) + 1
    values = np.fromiter((number.get(name, IGNORE) for names in kept.values for name in names), dtype=np.int16)
    return kept.labelled(values, classes, strange)


def _along(cell: Cell, table: LabelledTable, index: int) -> list[Any] | None:
    """One item for each residue kept, from a text or list along the sequence's text; None where the lengths differ."""
    items = (
        [None if is_blank(item) else cell_text(item) for item in cell] if isinstance(cell, list) else list(str(cell))
    )
    residues = int(table.corpus.offsets[index + 1] - table.corpus.offsets[index])
    if index not in table.texts:
        return items if len(items) == residues else None
    letters = [position for position, letter in enumerate(table.texts[index]) if not letter.isspace()]
    if len(items) == len(table.texts[index]):
        return [items[position] for position in letters[:residues]]  # the only letter beyond is a final "*"
    return items[:residues] if len(items) in (len(letters), residues) else None


def number_targets(table: LabelledTable) -> Labelled:
    """One number a record: float32 [n]. Blank, NaN and infinite are skipped; other text is a ProtformerError."""
    kept = _Kept(table)
    for index, cell in enumerate(table.labels):
        if is_blank(cell):
            kept.skip(index, "no label")
            continue
        try:
            value = float(cell)
        except (TypeError, ValueError):
            raise ProtformerError(
                f"{table.source}: {table.named(index)} has {str(cell)[:40]!r} in column {table.label_column!r}, "
                "where regression needs a number: name another column with `data.label_column=`."
            ) from None
        if math.isfinite(value):
            kept.keep(index, value)
        else:
            kept.skip(index, "the label is not finite")
    return kept.labelled(np.array(kept.values, dtype=np.float32), ())
