"""Variants of one wild type, as people write them: a list, or a table with a column of mutations or of sequences.

    A24G            one substitution: wild-type letter, position, mutant letter
    A24G:D40E       several, joined by ":", "," or "/"
    wt, _wt, ""     the wild type itself

A list has one variant a line; lines that are blank or start with "#" are none. A table (CSV or TSV, with a header) is
told by its name, or by a first line that names a column of mutations; its other columns are kept as they are.

What cannot be read as a variant of this wild type is a variant with a `reason`, never left out.
"""

import csv
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from protformer.data import alphabet
from protformer.data.fasta import as_text, reading
from protformer.data.tables import suffix
from protformer.errors import ProtformerError

MUTATION_COLUMNS = ("mutant", "mutants", "mutation", "mutations", "variant", "variants")
SEQUENCE_COLUMNS = ("sequence",)
WILD_TYPE = {"", "wt", "_wt"}
_TABLES = {".csv": ",;", ".tsv": "\t", ".tab": "\t"}
_MUTATION = re.compile(r"([A-Za-z])(-?\d+)(\S+)", re.ASCII)
_TOKEN = {letter: alphabet.TOKENS.index(letter) for letter in alphabet.STANDARD}
_SHOWN = 40


class Substitution(NamedTuple):
    index: int  # of the wild type's residues, from 0
    wild_type: int  # tokens
    mutant: int


class Variant(NamedTuple):
    line: int  # of the file, from 1
    text: str  # as it stands there
    cells: tuple[str, ...]  # the row of the table
    substitutions: tuple[Substitution, ...] = ()
    reason: str | None = None  # why it cannot be scored


@dataclass
class Variants:
    """A file of them."""

    path: Path
    columns: tuple[str, ...]  # of the table; none for a list
    column: str | None  # that was read
    variants: list[Variant]
    skipped_lines: int = 0  # of a list: blank lines and comments


class NoVariantError(Exception):
    """Why a text is no variant of the wild type that has a score."""


_Parser = Callable[[str], list[Substitution]]


def read_variants(path: Path, wild_type: UInt8[np.ndarray, " length"], *, offset: int = 0) -> Variants:
    """All variants of a file, in order.

    Args:
        path: a list, or a CSV or TSV table with one of `MUTATION_COLUMNS` or else `SEQUENCE_COLUMNS`; plain or
            compressed.
        wild_type: its tokens.
        offset: the first residue has number 1 + `offset`.

    Raises:
        ProtformerError: the file cannot be read, holds no variant, or is a table without such a column.
    """
    with reading(path) as handle:
        lines = [line if line.isascii() else as_text(line) for line in handle]
    first = next((line for line in lines if line.strip()), "")
    from_mutations = partial(parse_mutations, wild_type=wild_type, offset=offset)
    if first and _is_table(path, first):
        found = _read_table(path, lines, first, from_mutations, partial(compare_sequence, wild_type=wild_type))
    else:
        found = _read_list(path, lines, from_mutations)
    if not found.variants:
        raise ProtformerError(f"{path} holds no variant: it should have one a line, such as A24G, or be a table.")
    return found


def _is_table(path: Path, first: str) -> bool:
    names = {name.strip().strip('"').casefold() for name in re.split("[\t,;]", first)}
    return suffix(path) in _TABLES or not names.isdisjoint(MUTATION_COLUMNS + SEQUENCE_COLUMNS)


def _read_list(path: Path, lines: Sequence[str], parse: _Parser) -> Variants:
    found = Variants(path, (), None, [])
    for number, line in enumerate(lines, start=1):
        text = line.strip()
        if text and not text.startswith("#"):
            found.variants.append(_variant(number, text, (), parse))
        else:
            found.skipped_lines += 1
    return found


def _read_table(
    path: Path, lines: Sequence[str], first: str, from_mutations: _Parser, from_sequence: _Parser
) -> Variants:
    # Not `data.tables.read_rows`: that gives the columns it is asked for, and no line numbers
    delimiter = max(_TABLES.get(suffix(path), "\t,;"), key=first.count)  # of equals the first
    csv.field_size_limit(max(csv.field_size_limit(), 2**31 - 1))  # titin is 34,350 letters
    reader = csv.reader(lines, delimiter=delimiter, strict=True)
    try:
        header = next(tuple(name.strip() for name in row) for row in reader if row)
        place, is_sequence = _column(path, header)
        found = Variants(path, header, header[place], [])
        for row in filter(None, reader):
            if len(row) > len(header):
                raise ProtformerError(
                    f"{path}, line {reader.line_num}: {len(row)} cells under a header of {len(header)}; "
                    f'quote cells that hold the delimiter {delimiter!r} ("like, this").'
                )
            cells = (*row, *[""] * (len(header) - len(row)))
            parse = from_sequence if is_sequence else from_mutations
            found.variants.append(_variant(reader.line_num, cells[place].strip(), cells, parse))
    except csv.Error as error:
        raise ProtformerError(f"{path}, line {reader.line_num} cannot be parsed: {error}.") from None
    return found


def _variant(line: int, text: str, cells: tuple[str, ...], parse: _Parser) -> Variant:
    try:
        return Variant(line, text, cells, tuple(parse(text)))
    except NoVariantError as reason:
        return Variant(line, text, cells, reason=str(reason))


def _column(path: Path, header: Sequence[str]) -> tuple[int, bool]:
    """Where the variants stand, and whether they are whole sequences."""
    folded = [name.casefold() for name in header]
    for names in (MUTATION_COLUMNS, SEQUENCE_COLUMNS):
        for name in names:
            if folded.count(name) > 1:
                raise ProtformerError(f"{path} has {folded.count(name)} columns named {name!r}: rename all but one.")
            if name in folded:
                return folded.index(name), names is SEQUENCE_COLUMNS
    raise ProtformerError(
        f"{path} has no column of variants; its columns are {', '.join(header)}. Name one "
        f"{', '.join(MUTATION_COLUMNS[::2])} (A24G:D40E) or sequence (all residues of the variant)."
    )


def parse_mutations(text: str, wild_type: UInt8[np.ndarray, " length"], offset: int = 0) -> list[Substitution]:
    """`A24G:D40E` as substitutions, in the order of the sequence; `A24A` changes nothing and is none."""
    if text.strip().casefold() in WILD_TYPE:
        return []
    found: dict[int, Substitution] = {}
    for part in re.split("[:,/]", text):
        match = _MUTATION.fullmatch(part.strip())
        if match is None:
            raise NoVariantError(f"{_shown(part.strip())} is no substitution such as A24G")
        number = int(match[2])
        index = number - 1 - offset
        named = _shown(part.strip())
        if not 0 <= index < len(wild_type):
            raise NoVariantError(
                f"{named}: position {number} is outside the wild type, {1 + offset} to {len(wild_type) + offset}"
            )
        stands = alphabet.TOKENS[wild_type[index]]
        for letter, role in ((match[1], "wild-type"), (match[3], "mutant")):
            if letter.upper() not in _TOKEN:
                raise NoVariantError(f"{named}: the {role} letter {_shown(letter)} is none of the 20 standard residues")
        if match[1].upper() != stands:
            raise NoVariantError(f"{named}: the wild type has {stands} at position {number}, not {match[1].upper()}")
        if index in found:
            raise NoVariantError(f"position {number} is named twice")
        found[index] = Substitution(index, int(wild_type[index]), _TOKEN[match[3].upper()])
    return [found[index] for index in sorted(found) if found[index].mutant != found[index].wild_type]


def compare_sequence(text: str, wild_type: UInt8[np.ndarray, " length"]) -> list[Substitution]:
    """The substitutions that lead from the wild type to this sequence."""
    tokens = np.frombuffer(alphabet.clean(text).tokens, np.uint8)
    if len(tokens) != len(wild_type):
        raise NoVariantError(
            f"the sequence has {len(tokens):,} residues where the wild type has {len(wild_type):,}: "
            "insertions and deletions have no masked-marginal score"
        )
    found = []
    for index in np.flatnonzero(tokens != wild_type).tolist():
        for token, role in ((tokens[index], "variant"), (wild_type[index], "wild type")):
            if not alphabet.IS_STANDARD[token]:
                letter = text[index] if role == "variant" and len(text) == len(tokens) else alphabet.TOKENS[token]
                raise NoVariantError(
                    f"the {role} has {letter!r} at residue {index + 1}, which is none of the 20 standard residues"
                )
        found.append(Substitution(index, int(wild_type[index]), int(tokens[index])))
    return found


def written(substitutions: Sequence[Substitution], offset: int = 0) -> str:
    """`A24G:D40E`; "wt" for none."""
    letters = alphabet.TOKENS
    named = [f"{letters[wild_type]}{index + 1 + offset}{letters[mutant]}" for index, wild_type, mutant in substitutions]
    return ":".join(named) or "wt"


def better_offset(texts: Sequence[str], wild_type: UInt8[np.ndarray, " length"]) -> tuple[int, int, int]:
    """The offset under which most substitutions name the letter that stands there, how many do, and of how many.

    A hint for people whose variants disagree with their wild type; it looks at the first 1,000 sites alone.
    """
    named = {
        (match[1].upper(), int(match[2]))
        for text in texts
        for part in re.split("[:,/]", text)
        if (match := _MUTATION.fullmatch(part.strip()))
    }
    sites = sorted(named, key=lambda site: site[1])[:1000]
    votes = Counter(
        number - 1 - index
        for letter, number in sites
        for index in np.flatnonzero(wild_type == _TOKEN.get(letter, alphabet.PAD)).tolist()
    )
    best = max(votes, key=lambda offset: (votes[offset], -abs(offset)), default=0)
    return best, votes[best], len(sites)


def _shown(text: str) -> str:
    return repr(text if len(text) <= _SHOWN else text[:_SHOWN] + "...")
