"""All proteins end to end, as batches are: what NPZ and safetensors hold.

NAME              [proteins, width], or [residues, width] per residue: protein i is offsets[i] to offsets[i + 1]
offsets           int64 [proteins + 1]
keys              text
sequence_hashes   text, 32 hexadecimal digits each
"""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from protformer.embedding.formats import Content
from protformer.embedding.options import Output
from protformer.embedding.stored import Store, StoredProtein

_BLOCK = 1 << 20  # bytes written at a time


class Packed(NamedTuple):
    """An array that is written as it comes: its blocks have `shape` together."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    blocks: Iterator[np.ndarray]


def numbers(content: Content) -> Iterator[Packed]:
    """The arrays of numbers."""
    layout = content.layout
    for output in layout.outputs:
        rows = layout.residues if output.per_residue else layout.proteins
        yield Packed(output.name, layout.dtype, (rows, output.width), gathered(_blocks(content, output)))
    offsets = gathered(_offsets(content))
    yield Packed("offsets", np.dtype(np.int64), (layout.proteins + 1,), offsets)


def _blocks(content: Content, output: Output) -> Iterator[np.ndarray]:
    for _, vectors in content.proteins((output.name,)):
        yield vectors[output.name].reshape(-1, output.width)


def _offsets(content: Content) -> Iterator[np.ndarray]:
    end = 0
    yield np.zeros(1, np.int64)
    for row in content.rows():
        end += row.residues
        yield np.array([end], np.int64)


def gathered(blocks: Iterator[np.ndarray]) -> Iterator[np.ndarray]:
    """The same numbers in fewer, larger blocks."""
    held: list[np.ndarray] = []
    size = 0
    for block in blocks:
        held.append(block)
        size += block.nbytes
        if size >= _BLOCK or len(held) >= 4096:
            yield np.concatenate(held)
            held, size = [], 0
    if held:
        yield np.concatenate(held)


def texts(content: Content, field: str, length: int) -> Packed:
    """A column of rows as NumPy text of `length` characters."""
    dtype = np.dtype(f"<U{max(length, 1)}")
    blocks = (np.array([getattr(row, field)], dtype) for row in content.rows())
    return Packed(field, dtype, (content.layout.proteins,), gathered(blocks))


def unpacked(
    attributes: dict[str, Any], arrays: dict[str, np.ndarray], keys: list[str], hashes: list[str], offsets: np.ndarray
) -> Store:
    """The proteins of such arrays."""
    kinds = {output["name"]: output["kind"] in ("residues", "logits") for output in attributes["settings"]["outputs"]}

    def proteins() -> Iterator[StoredProtein]:
        for i, (start, end) in enumerate(pairwise(offsets.tolist())):
            vectors = {name: x[start:end] if kinds[name] else x[i] for name, x in arrays.items()}
            yield StoredProtein(keys[i], None, "", end - start, hashes[i], vectors)

    return Store(attributes, kinds, proteins())
