"""The sequences of a store's proteins, from the FASTA files it was made of, so that picks can be saved as FASTA."""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from protformer.data.alphabet import clean
from protformer.data.fasta import expand_paths, read_fasta
from protformer.embedding.naming import some
from protformer.embedding.stored import StoredEmbeddings
from protformer.errors import ProtformerError


@dataclass(frozen=True)
class Sequences:
    """For each protein of a store; None where the files do not have it."""

    letters: list[str | None]
    headers: list[str | None]
    """Header lines, without ">"."""
    notes: list[str] = field(default_factory=list)


def read_sequences(paths: Sequence[str | Path], store: StoredEmbeddings) -> Sequences:
    """By id and length; of records that share both, in the order of the files. Of a store that was made under
    `--on-long truncate`, the whole sequences.

    Raises:
        ProtformerError: a file that is not FASTA, or no record that is of a protein of the store.
    """
    waiting: dict[tuple[str, int], deque[int]] = defaultdict(deque)
    for place, name in enumerate(store.ids):
        waiting[name, int(store.lengths[place])].append(place)
    letters: list[str | None] = [None] * len(store.keys)
    headers: list[str | None] = [None] * len(store.keys)
    policies = store.settings.get("policies", {})
    aligned = bool(policies.get("aligned"))
    longest = policies.get("max_length") if policies.get("on_long") == "truncate" else None
    records = 0
    for path in expand_paths(paths):
        for record in read_fasta(path):
            records += 1
            length = len(clean(record.sequence, aligned=aligned).tokens)
            if longest is not None:
                length = min(length, longest)
            # 0 where a store of other origin does not say
            if places := waiting.get((record.id, length)) or waiting.get((record.id, 0)):
                place = places.popleft()
                letters[place], headers[place] = record.sequence, record.description
    missing = [store.ids[place] or store.keys[place] for place, found in enumerate(letters) if found is None]
    if store.keys and len(missing) == len(store.keys):
        raise ProtformerError(
            f"--input: none of the {records:,} records is, by id and length, a protein of {store.path}: "
            "give the FASTA file that it was embedded from."
        )
    notes = []
    if missing:
        notes.append(
            f"Proteins without a record of that id and length in --input, not saved as FASTA: {some(missing)}."
        )
    return Sequences(letters, headers, notes)
