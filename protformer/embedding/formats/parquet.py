"""Parquet: a row for each protein, a column for each output.

Columns: record, id, key, description, length, sequence_hash, treatment, same_as, and each output as a list of
`width` numbers, or a list of such lists per residue. The file's metadata has the attributes as JSON.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from protformer.embedding.compute import Vectors
from protformer.embedding.formats import Content
from protformer.embedding.options import Output
from protformer.embedding.shards import Row
from protformer.embedding.stored import Store, StoredProtein

_TEXT = ("id", "key", "description", "sequence_hash", "treatment")
_COLUMNS = ("record", "id", "key", "description", "length", "sequence_hash", "treatment", "same_as")
# A group of rows is what a reader takes at once.
_GROUP_ROWS, _GROUP_BYTES = 16_384, 64 << 20


def write(path: Path, content: Content) -> None:
    layout = content.layout
    number = pa.float16() if layout.dtype == np.float16 else pa.float32()
    fields = [pa.field(name, pa.string() if name in _TEXT else pa.int64()) for name in _COLUMNS]
    for output in layout.outputs:
        vector = pa.list_(number, output.width)
        fields.append(pa.field(output.name, pa.list_(vector) if output.per_residue else vector))
    schema = pa.schema(fields, metadata={name: json.dumps(value) for name, value in layout.attributes.items()})
    rows: list[Row] = []
    arrays: list[Vectors] = []
    held = 0
    with pq.ParquetWriter(path, schema, compression="zstd", use_dictionary=False) as file:
        for row, vectors in content.proteins(tuple(output.name for output in layout.outputs)):
            rows.append(row)
            arrays.append(vectors)
            held += sum(x.nbytes for x in vectors.values())
            if len(rows) >= _GROUP_ROWS or held >= _GROUP_BYTES:
                file.write_table(_table(schema, layout.outputs, rows, arrays))
                rows, arrays, held = [], [], 0
        if rows:
            file.write_table(_table(schema, layout.outputs, rows, arrays))


def _table(schema: pa.Schema, outputs: tuple[Output, ...], rows: list[Row], arrays: list[Vectors]) -> pa.Table:
    columns: list[pa.Array] = [
        pa.array([getattr(row, "residues" if name == "length" else name) for row in rows], schema.field(name).type)
        for name in _COLUMNS
    ]
    for output in outputs:
        parts = [vectors[output.name] for vectors in arrays]
        numbers = pa.array(np.concatenate([part.reshape(-1) for part in parts]))
        vectors = pa.FixedSizeListArray.from_arrays(numbers, output.width)
        if output.per_residue:
            offsets = pa.array(np.cumsum([0, *map(len, parts)]), pa.int32())
            vectors = pa.ListArray.from_arrays(offsets, vectors)
        columns.append(vectors)
    return pa.Table.from_arrays(columns, schema=schema)


@contextmanager
def opened(path: Path) -> Iterator[Store]:
    with pq.ParquetFile(path) as file:
        schema = file.schema_arrow
        metadata = {k.decode(): v for k, v in (schema.metadata or {}).items() if not k.startswith(b"ARROW:")}
        outputs = {
            field.name: not pa.types.is_fixed_size_list(field.type)
            for field in schema
            if pa.types.is_fixed_size_list(field.type) or pa.types.is_list(field.type)
        }
        yield Store({name: json.loads(value) for name, value in metadata.items()}, outputs, _proteins(file, outputs))


def _proteins(file: pq.ParquetFile, outputs: dict[str, bool]) -> Iterator[StoredProtein]:
    for batch in file.iter_batches(batch_size=256):
        known = (batch.column(name).to_pylist() for name in ("key", "id", "description", "length", "sequence_hash"))
        arrays = {name: list(_rows(batch.column(name), per_residue)) for name, per_residue in outputs.items()}
        for i, (key, name, description, residues, hashed) in enumerate(zip(*known, strict=True)):
            vectors = {output: x[i] for output, x in arrays.items()}
            yield StoredProtein(key, name, description, residues, hashed, vectors)


def _rows(column: pa.Array, per_residue: bool) -> Iterator[np.ndarray]:
    if not per_residue:
        numbers = column.flatten().to_numpy(zero_copy_only=False)
        yield from numbers.reshape(len(column), -1)
        return
    for i in range(len(column)):
        matrix = column[i].values
        yield matrix.flatten().to_numpy(zero_copy_only=False).reshape(len(matrix), -1)
