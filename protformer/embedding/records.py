"""FASTA files as a stream of entries: each record with its key, its residues, and what was done to it and why.

Nothing is kept but digests in a scratch file (`seen.py`), so that a billion records take the memory of one. The same
files and policies give the same entries.
"""

import hashlib
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from protformer.data import alphabet
from protformer.data.corpus import Noted, ReadReport, nucleotide_warning
from protformer.data.fasta import Record, read_fasta
from protformer.embedding.keys import safe_key
from protformer.embedding.options import Policies
from protformer.embedding.seen import Seen, digest
from protformer.errors import ProtformerError, shown_path

NO_RESIDUE = "the sequence has no residue"
EMBEDDED, FAILED, DROPPED = "embedded", "failed", "dropped"


class Entry(NamedTuple):
    """One record of the input."""

    record: int  # its number over all files, from 1
    file: str
    place: int  # its number in that file, from 1
    id: str
    description: str  # the header line, without ">"
    key: str  # "" where the record is not to be embedded
    tokens: bytes  # one byte for each residue that is embedded
    status: str  # EMBEDDED so far, FAILED or DROPPED
    reason: str  # why it failed or was dropped
    treatment: str  # what was done to its letters and length; "" for nothing
    same_as: int  # the record that had this sequence first; 0 for none
    sequence_hash: str  # of the tokens, 32 hexadecimal digits; "" without


@dataclass
class Account:
    """What reading did, beside what `ReadReport` counts."""

    read: ReadReport
    changed_keys: Noted  # ids that are not safe as keys
    dropped: Noted  # ids that came before, under keep-first
    gaps_dropped: int = 0
    windowed: int = 0
    truncated: int = 0
    residues: int = 0  # of entries to embed, equal ones each time
    computed: int = 0  # of entries to embed, equal ones once
    embeddable: int = 0  # entries
    row_bytes: int = 0  # of headers and keys of entries to embed

    @classmethod
    def empty(cls) -> "Account":
        return cls(ReadReport(), Noted(), Noted())


class Reader:
    """Iterates over the entries of some files, in order, once.

    Attributes:
        account: of the entries so far.
        prefix: digest over the records so far, headers and letters as they stand; hexadecimal.
    """

    def __init__(self, paths: Sequence[Path], policies: Policies) -> None:
        self._paths = paths
        self._policies = policies
        self._hash = hashlib.blake2b(digest_size=16)
        self._lengths: Counter[int] = Counter()
        self.account = Account.empty()

    @property
    def prefix(self) -> str:
        return self._hash.hexdigest()

    def __iter__(self) -> Iterator[Entry]:
        """ProtformerError: a file is no FASTA, none has a record, or a policy is "error"."""
        read = self.account.read
        with Seen() as seen:
            for path in self._paths:
                file = "standard input" if str(path) == "-" else str(path)
                before, comments = read.records, Counter[str]()
                composition = np.zeros(len(alphabet.TOKENS), np.int64)
                for place, record in enumerate(read_fasta(path, counts=comments), start=1):
                    entry = self._entry(seen, file, place, record)
                    composition += np.bincount(np.frombuffer(entry.tokens, np.uint8), minlength=composition.size)
                    yield entry
                read.files.append(file)
                read.comment_lines += comments["comment lines"]
                if read.records == before:
                    read.empty_files.append(file)
                if warning := nucleotide_warning(file, composition):
                    read.warnings.append(warning)
        if not read.records:
            raise ProtformerError(f"There is no record in {', '.join(map(shown_path, read.files))}.")
        read.median = _median(self._lengths)

    def _entry(self, seen: Seen, file: str, place: int, record: Record) -> Entry:
        for part in (record.description, record.sequence):
            text = part.encode("utf-8", "surrogatepass")
            self._hash.update(len(text).to_bytes(8, "little") + text)
        policies, read = self._policies, self.account.read
        cleaned = alphabet.clean(record.sequence, aligned=policies.aligned)
        read.take(record.id, cleaned)
        self.account.gaps_dropped += cleaned.gaps_dropped
        where = f"{shown_path(file)}, record {place} ({record.id or 'no id'})"
        notes = _notes(cleaned)
        entry = Entry(
            read.records, file, place, record.id, record.description, "", cleaned.tokens, EMBEDDED, "", notes, 0, ""
        )
        if not cleaned.tokens:
            return entry._replace(status=FAILED, reason=NO_RESIDUE)
        length = len(cleaned.tokens)
        self._count_length(length)
        invalid = {letter: count for letter, count in cleaned.replaced.items() if letter != "J"}
        if invalid and policies.on_invalid != "x":
            reason = f"letters outside the alphabet: {_counted(invalid)}"
            if policies.on_invalid == "error":
                raise ProtformerError(
                    f"{where} has {reason}. Mend it, or take --on-invalid x (each becomes an X) or skip."
                )
            return entry._replace(status=FAILED, reason=reason)
        if policies.max_length is not None and length > policies.max_length:
            if policies.on_long == "error":
                raise ProtformerError(
                    f"{where} has {length:,} residues, more than --max-length {policies.max_length:,}. Leave it out, "
                    "or take --on-long full (any length is computed whole), window or truncate."
                )
            entry = self._shorten(entry, length, policies.max_length)
        if record.id and not seen.new_id(record.id):
            if policies.on_duplicate == "error":
                raise ProtformerError(
                    f"{where}: this id came before. Mend it, or take --on-duplicate suffix (the key gets _2, _3, ...) "
                    "or keep-first."
                )
            if policies.on_duplicate == "keep-first":
                self.account.dropped.add(record.id)
                return entry._replace(status=DROPPED, reason="a record with this id came before")
            read.duplicate_ids.add(record.id)
        return self._keyed(seen, entry)

    def _shorten(self, entry: Entry, length: int, longest: int) -> Entry:
        if self._policies.on_long == "truncate":
            self.account.truncated += 1
            note = f"the first {longest:,} of {length:,} residues"
            return entry._replace(tokens=entry.tokens[:longest], treatment=_joined(entry.treatment, note))
        self.account.windowed += 1
        note = f"computed in windows of {longest:,} residues that overlap by {self._policies.overlap:,}"
        return entry._replace(treatment=_joined(entry.treatment, note))

    def _keyed(self, seen: Seen, entry: Entry) -> Entry:
        account = self.account
        key = seen.key(entry.id)
        if entry.id and safe_key(entry.id) != entry.id:
            account.changed_keys.add(ascii(entry.id[:60])[1:-1])
        same_as = seen.first(entry.tokens, entry.record)
        account.embeddable += 1
        account.residues += len(entry.tokens)
        account.row_bytes += len(entry.description.encode("utf-8", "surrogatepass")) + len(key)
        if same_as is None:
            account.computed += len(entry.tokens)
        else:
            account.read.equal_sequences += 1
        return entry._replace(key=key, same_as=same_as or 0, sequence_hash=digest(entry.tokens).hex())

    def _count_length(self, length: int) -> None:
        read = self.account.read
        read.sequences += 1
        read.residues += length
        read.shortest = min(read.shortest or length, length)
        read.longest = max(read.longest, length)
        self._lengths[length] += 1


def _notes(cleaned: alphabet.Cleaned) -> str:
    notes = []
    if cleaned.replaced:
        notes.append(f"read as X: {_counted(cleaned.replaced)}")
    if cleaned.stop_dropped:
        notes.append("a final * dropped")
    if cleaned.gaps_dropped:
        notes.append(f"gaps dropped: {cleaned.gaps_dropped:,}")
    if cleaned.lower_case:
        notes.append(f"lower case read as upper: {cleaned.lower_case:,}")
    return "; ".join(notes)


def _joined(notes: str, note: str) -> str:
    return f"{notes}; {note}" if notes else note


def _counted(letters: dict[str, int]) -> str:
    return ", ".join(f"{ascii(letter)[1:-1]} {count:,}" for letter, count in sorted(letters.items()))


def _median(lengths: Counter[int]) -> float:
    total = lengths.total()
    places = ((total - 1) // 2, total // 2)
    found, before = [], 0
    for length in sorted(lengths):
        after = before + lengths[length]
        found += [length for place in places if before <= place < after]
        before = after
    return sum(found) / len(found) if found else 0.0
