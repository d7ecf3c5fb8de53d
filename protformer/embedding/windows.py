"""Neighbours of the input in windows: what is computed together, kept together and resumed from.

    entries   a  bb  ccc | d  ee  f |         windows: a pure function of the entries, whoever computes them
    batches   [ccc bb] [a] | [ee d] [f]       longest first within a window, filled to the budget

Nothing is padded. A sequence longer than the budget is a batch by itself.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from protformer.embedding.options import Output
from protformer.embedding.records import EMBEDDED, Entry, Reader

SPECIALS = 2  # <cls> and <eos> of each segment
# A window is this many batches: enough to sort by length in. Matrices per residue are large, so their window is also
# held to this many bytes (or to one batch, where that is more).
WINDOW_BATCHES = 32
WINDOW_BYTES = 256 << 20
# What an entry counts that is not computed: a million equal records are many windows, too.
ROW_TOKENS = 8


class Window(NamedTuple):
    """Entries in the order of the input, and the digest over all records up to its last."""

    number: int  # from 0
    entries: list[Entry]
    prefix: str

    @property
    def computed(self) -> list[Entry]:
        """The entries whose sequences come for the first time."""
        return [entry for entry in self.entries if entry.status == EMBEDDED and not entry.same_as]


def window_tokens(outputs: Sequence[Output], batch_tokens: int) -> int:
    """The most tokens of a window."""
    tokens = WINDOW_BATCHES * batch_tokens
    if row_bytes := sum(4 * output.width for output in outputs if output.per_residue):
        tokens = min(tokens, WINDOW_BYTES // row_bytes)
    return max(tokens, batch_tokens)


def windows(reader: Reader, tokens: int) -> Iterator[Window]:
    """Runs of neighbours of at most `tokens` tokens each; a longer sequence is a window by itself."""
    entries: list[Entry] = []
    number = held = 0
    prefix = reader.prefix
    for entry in reader:
        computed = entry.status == EMBEDDED and not entry.same_as
        cost = ROW_TOKENS + (len(entry.tokens) + SPECIALS if computed else 0)
        if entries and held + cost > tokens:
            yield Window(number, entries, prefix)
            entries, held, number = [], 0, number + 1
        entries.append(entry)
        held += cost
        prefix = reader.prefix
    if entries:
        yield Window(number, entries, prefix)


def plan_batches(lengths: np.ndarray, batch_tokens: int) -> list[list[int]]:
    """Indices of each batch, longest first, so that neighbours in a batch are alike and memory shows its need early.

    `lengths` `[n]` are those of segments, specials included.
    """
    batches: list[list[int]] = []
    room = 0
    for index in np.argsort(-lengths, kind="stable").tolist():
        length = int(lengths[index])
        if not batches or length > room:
            batches.append([])
            room = batch_tokens
        batches[-1].append(index)
        room -= length
    return batches
