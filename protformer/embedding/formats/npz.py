"""NPZ: arrays of all proteins end to end (`packed.py`), without pickle: `numpy.load(path)` reads them.

`keys` and `sequence_hashes` are arrays of text, `attributes` is JSON. The ids as they stood, and what was done to each
record, are in the table of records beside the file.
"""

import json
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from protformer.embedding.formats import Content
from protformer.embedding.formats.packed import Packed, numbers, texts, unpacked
from protformer.embedding.stored import Store

_EPOCH = (1980, 1, 1, 0, 0, 0)  # a time in the file would make two runs differ


def write(path: Path, content: Content) -> None:
    layout = content.layout
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED, allowZip64=True) as file:
        for array in numbers(content):
            _write(file, array)
        _write(file, texts(content, "key", layout.key_length)._replace(name="keys"))
        _write(file, texts(content, "sequence_hash", 32)._replace(name="sequence_hashes"))
        text = np.array(json.dumps(layout.attributes))
        _write(file, Packed("attributes", text.dtype, (), iter([text])))


def _write(file: zipfile.ZipFile, array: Packed) -> None:
    member = zipfile.ZipInfo(f"{array.name}.npy", _EPOCH)
    with file.open(member, "w", force_zip64=True) as out:
        header = {"descr": np.lib.format.dtype_to_descr(array.dtype), "fortran_order": False, "shape": array.shape}
        np.lib.format.write_array_header_1_0(out, header)
        for block in array.blocks:
            out.write(np.ascontiguousarray(block).tobytes())


@contextmanager
def opened(path: Path) -> Iterator[Store]:
    with np.load(path, allow_pickle=False) as file:
        attributes = json.loads(str(file["attributes"]))
        outputs = attributes["settings"]["outputs"]
        arrays = {output["name"]: file[output["name"]] for output in outputs}
        keys, hashes = file["keys"].tolist(), file["sequence_hashes"].tolist()
        yield unpacked(attributes, arrays, keys, hashes, file["offsets"])
