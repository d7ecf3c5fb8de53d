"""The store is whole or not there, keeps the order, and keeps ids apart."""

import csv
from pathlib import Path

import h5py
import numpy as np
import pytest

from protformer.embedding import EmbeddingWriter, Failure
from protformer.embedding.store import write_failures
from protformer.errors import ProtformerError

ABOUT = {
    "model_hash": "00",
    "settings": {"output": "per_protein"},
    "versions": {"torch": "2"},
    "counts": {"proteins": 1},
}


def write(path: Path, ids: list[str]) -> None:
    with EmbeddingWriter(path) as writer:
        for index, name in enumerate(ids):
            writer.write(name, np.full(4, index, np.float32), residues=index)
        writer.commit(**ABOUT)


def test_order_ids_and_types(tmp_path):
    ids = ["zeta", "alpha", "../../evil", "alpha", "", "a\0b", "m" * 300, "beta gamma", "10", "9"]
    write(tmp_path / "out.h5", ids)
    assert [path.name for path in tmp_path.iterdir()] == ["out.h5"]
    with h5py.File(tmp_path / "out.h5") as file:
        assert [file[key].attrs["original_id"] for key in file] == [name.replace("\0", "\\x00") for name in ids]
        vectors = [np.asarray(file[key]) for key in file]
        assert [vector.tolist() for vector in vectors] == [[index] * 4 for index in range(len(ids))]
        assert all(vector.dtype == np.float32 for vector in vectors)
        assert [file[key].attrs["residues"] for key in file] == list(range(len(ids)))
        assert list(file)[:4:3] == ["zeta", "alpha_2"]
        assert set(file.attrs) == {"format", "format_version", "model_hash", "settings", "versions", "counts"}


def test_same_vectors_same_bytes(tmp_path):
    write(tmp_path / "a.h5", ["x", "y", "x"])
    write(tmp_path / "b.h5", ["x", "y", "x"])
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def stop_half_way(path: Path) -> None:
    with EmbeddingWriter(path) as writer:
        writer.write("a", np.zeros(4, np.float32), residues=1)
        raise KeyboardInterrupt


def test_without_commit_nothing_remains_and_an_old_file_stays(tmp_path):
    path = tmp_path / "out.h5"
    path.write_bytes(b"old")
    with pytest.raises(KeyboardInterrupt):
        stop_half_way(path)
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_is_not_there_is_told_in_a_sentence(tmp_path):
    with pytest.raises(ProtformerError, match=r"out\.h5 cannot be written: No such file"):
        EmbeddingWriter(tmp_path / "nowhere" / "out.h5")


def test_failures_are_a_table_whatever_the_id(tmp_path):
    failures = [Failure("a.fasta", 3, 'x\ty"', "no residue"), Failure("b.fasta", 1, "", "no residue")]
    path = write_failures(tmp_path / "out.h5", failures)
    assert path.name == "out.h5.failures.tsv"
    with path.open(newline="") as file:
        rows = list(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE, escapechar="\\"))
    assert rows == [["file", "record", "id", "reason"], *([f, str(n), i, r] for f, n, i, r in failures)]
    assert list(tmp_path.iterdir()) == [path]
