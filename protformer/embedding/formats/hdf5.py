"""HDF5, as biotrainer reads it: a dataset for each protein, named by its key, with `original_id`.

    out.h5                        no groups where one output is stored; datasets in the order of the input
      attributes                  format, format_version, model_hash; as JSON: settings, versions, counts
      sp|P12345|NAME_HUMAN        [hidden] or [residues, hidden]
        original_id               the id as it stood in the file
        description               the header line
        residues, sequence_hash   length, and BLAKE2b (128 bits) of the tokens
        treatment                 what was done to the record; absent where nothing was

With several outputs each protein is a group that has those attributes, and a dataset for each output. Nothing depends
on the clock: the same vectors give the same bytes.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from protformer.embedding.formats import Content
from protformer.embedding.shards import Row
from protformer.embedding.stored import Store, StoredProtein


def write(path: Path, content: Content) -> None:
    layout = content.layout
    names = tuple(output.name for output in layout.outputs)
    # track_order: iteration gives the order of creation, which is the order of the input
    with h5py.File(path, "w", track_order=True) as file:
        for name, value in layout.attributes.items():
            file.attrs[name] = json.dumps(value) if isinstance(value, dict | list) else value
        file.attrs["outputs"] = json.dumps(names)
        for row, vectors in content.proteins(names):
            if len(names) == 1:
                _describe(file.create_dataset(row.key, data=vectors[names[0]]), row)
                continue
            group = file.create_group(row.key)
            for name in names:
                group.create_dataset(name, data=vectors[name])
            _describe(group, row)


def _describe(item: h5py.Group | h5py.Dataset, row: Row) -> None:
    # a string in HDF5 ends at its first NUL, and an attribute has room for 64 KiB
    item.attrs["original_id"] = _text(row.id)
    if row.description:
        item.attrs["description"] = _text(row.description)
    item.attrs["residues"] = row.residues
    item.attrs["sequence_hash"] = row.sequence_hash
    if row.treatment:
        item.attrs["treatment"] = _text(row.treatment)


def _text(text: str) -> str:
    return text.replace("\0", "\\x00")[:16_000]


@contextmanager
def opened(path: Path) -> Iterator[Store]:
    """A file of `write`, or another one with a dataset for each protein."""
    with h5py.File(path) as file:
        attributes: dict[str, Any] = {
            name: json.loads(value) if isinstance(value, str) and value.startswith(("{", "[")) else value
            for name, value in file.attrs.items()
        }
        first = next(iter(file.values()), None)
        if isinstance(first, h5py.Group):
            names = [str(name) for name in attributes.get("outputs", first)]
            outputs = {name: np.asarray(first[name]).ndim == 2 for name in names}
        else:
            name = attributes.get("outputs", ["mean"])[0]
            outputs = {} if first is None else {name: first.ndim == 2}
        yield Store(attributes, outputs, _proteins(file, list(outputs)))


def _proteins(file: h5py.File, names: list[str]) -> Iterator[StoredProtein]:
    for key, item in file.items():
        if isinstance(item, h5py.Group):
            vectors = {name: np.asarray(item[name]) for name in names}
        else:
            vectors = {names[0]: np.asarray(item)}
        given = item.attrs
        name, description = given.get("original_id"), given.get("description", "")
        residues, hashed = given.get("residues", 0), given.get("sequence_hash", "")
        yield StoredProtein(
            str(key), None if name is None else str(name), str(description), int(residues), str(hashed), vectors
        )
