"""safetensors: tensors of all proteins end to end (`packed.py`), read without a copy by `safe_open`.

Text has no type there: `keys` is uint8, UTF-8 end to end, and `key_offsets` says where each begins; `sequence_hashes`
is uint8 `[proteins, 16]`. The header's metadata has the attributes as JSON. The library's own writer wants all tensors
in memory; the format is a length, a JSON header and the tensors' bytes, written here as they come.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors import safe_open

from protformer.embedding.formats import Content
from protformer.embedding.formats.packed import Packed, gathered, numbers, unpacked
from protformer.embedding.stored import Store

_TYPES = {"float32": "F32", "float16": "F16", "int64": "I64", "uint8": "U8"}


def write(path: Path, content: Content) -> None:
    arrays = [*numbers(content), *_texts(content)]
    header: dict[str, object] = {"__metadata__": {k: json.dumps(v) for k, v in content.layout.attributes.items()}}
    end = 0
    # (the widest numbers first, so that each tensor is aligned)
    arrays.sort(key=lambda array: -array.dtype.itemsize)
    for array in arrays:
        start, end = end, end + int(np.prod(array.shape)) * array.dtype.itemsize
        header[array.name] = {"dtype": _TYPES[array.dtype.name], "shape": array.shape, "data_offsets": (start, end)}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for array in arrays:
            for block in array.blocks:
                file.write(np.ascontiguousarray(block).tobytes())


def _texts(content: Content) -> Iterator[Packed]:
    layout = content.layout
    total = sum(len(row.key.encode()) for row in content.rows())
    keys = (np.frombuffer(row.key.encode(), np.uint8) for row in content.rows())
    yield Packed("keys", np.dtype(np.uint8), (total,), gathered(keys))
    yield Packed("key_offsets", np.dtype(np.int64), (layout.proteins + 1,), gathered(_key_offsets(content)))
    hashes = (np.frombuffer(bytes.fromhex(row.sequence_hash), np.uint8)[None] for row in content.rows())
    yield Packed("sequence_hashes", np.dtype(np.uint8), (layout.proteins, 16), gathered(hashes))


def _key_offsets(content: Content) -> Iterator[np.ndarray]:
    end = 0
    yield np.zeros(1, np.int64)
    for row in content.rows():
        end += len(row.key.encode())
        yield np.array([end], np.int64)


@contextmanager
def opened(path: Path) -> Iterator[Store]:
    with safe_open(path, framework="numpy") as file:
        attributes = {name: json.loads(value) for name, value in (file.metadata() or {}).items()}
        arrays = {output["name"]: file.get_tensor(output["name"]) for output in attributes["settings"]["outputs"]}
        text = file.get_tensor("keys").tobytes()
        keys = [text[start:end].decode() for start, end in pairwise(file.get_tensor("key_offsets").tolist())]
        hashes = [row.tobytes().hex() for row in file.get_tensor("sequence_hashes")]
        yield unpacked(attributes, arrays, keys, hashes, file.get_tensor("offsets"))
