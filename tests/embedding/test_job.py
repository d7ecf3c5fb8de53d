"""From FASTA files to the store: every record is in it, or in the list of failures."""

import bz2
import gzip
import json
import lzma
from pathlib import Path

import h5py
import numpy as np
import pytest

from protformer.data.alphabet import TOKENS
from protformer.embedding import embed_fasta, job
from protformer.embedding.job import model_hash
from protformer.errors import ProtformerError
from protformer.model import load_model, save_model


def read(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {str(key): np.asarray(file[key]) for key in file}


def test_wrapped_lines_are_one_sequence(fasta, model_folder, tmp_path):
    wrapped = fasta(">a first\nMKV\r\nLAW\n\nGG\n>b\nMK\n", "wrapped.fasta")
    straight = fasta(">a\nMKVLAWGG\n>b\nMK\n", "straight.fasta")
    embed_fasta([wrapped], model_folder, tmp_path / "w.h5", per_residue=True)
    embed_fasta([straight], model_folder, tmp_path / "s.h5", per_residue=True)
    ours, theirs = read(tmp_path / "w.h5"), read(tmp_path / "s.h5")
    assert {key: value.shape for key, value in ours.items()} == {"a": (8, 16), "b": (2, 16)}
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_input_order_over_files_and_windows(fasta, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("protformer.embedding.embed.WINDOW_BATCHES", 2)
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 60, 50)
    records = [f">p{i}\n{'MKVLAWGGSE' * 6}"[: lengths[i] + 2 + len(f"p{i}")] + "\n" for i in range(50)]
    first, second = fasta("".join(records[:20]), "z.fasta"), fasta("".join(records[20:]), "a.fasta")
    report = embed_fasta([first, second], model_folder, tmp_path / "o.h5", per_residue=True, batch_tokens=64)
    stored = read(tmp_path / "o.h5")
    assert list(stored) == [f"p{i}" for i in range(50)]
    assert [len(matrix) for matrix in stored.values()] == lengths.tolist()
    assert (report.embedded, report.residues, report.failures) == (50, lengths.sum(), [])


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress])
def test_compressed_input(compress, model_folder, tmp_path):
    path = tmp_path / "in.fasta"  # told by content, not by name
    path.write_bytes(compress(b">a\nMKV\n>b\nLLL\n"))
    embed_fasta([str(path)], model_folder, tmp_path / "o.h5")
    assert list(read(tmp_path / "o.h5")) == ["a", "b"]


def test_every_record_is_accounted_for(fasta, model_folder, tmp_path):
    one = fasta(">a\nMKJV*\n>empty\n\n>a\nmkv\n>\nMK\n", "one.fasta")
    two = fasta(">../../evil\nM-K1\n>stop only\n*\n", "two.fasta")
    report = embed_fasta([one, two], model_folder, tmp_path / "out" / "o.h5")
    stored = read(tmp_path / "out" / "o.h5")
    assert [(Path(f.file).name, f.record, f.id) for f in report.failures] == [
        ("one.fasta", 2, "empty"),
        ("two.fasta", 2, "stop"),
    ]
    assert report.read.records == report.embedded + len(report.failures) == 6
    assert list(stored)[:3] == ["a", "a_2", "unnamed_1"]
    assert report.read.replaced == {"J": 1, "-": 1, "1": 1}
    listed = tmp_path / "out" / "o.h5.failures.tsv"
    assert report.failures_file == listed
    assert len(listed.read_text().splitlines()) == 3
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["o.h5", "o.h5.failures.tsv"]
    assert not list(tmp_path.parent.glob("**/evil"))
    summary = report.summary()
    for told in ("J 1", "4 proteins embedded", "id came before", "../../evil", "end in _2"):
        assert told in summary


def test_attributes_tell_what_made_the_file(fasta, model_folder, tmp_path):
    embed_fasta([fasta(">a\nMKV\n>b\n\n")], model_folder, tmp_path / "o.h5")
    with h5py.File(tmp_path / "o.h5") as file:
        about = {name: str(value) for name, value in file.attrs.items()}
    assert about["model_hash"] == model_hash(model_folder / "model")
    assert json.loads(about["settings"])["pooling"] == "mean"
    counts = json.loads(about["counts"])
    assert (counts["records"], counts["proteins"], counts["residues"], counts["failures"]) == (2, 1, 3, 1)
    assert {"protformer", "torch", "h5py", "numpy"} <= set(json.loads(about["versions"]))


def test_a_performer_keeps_its_projections(fasta, tmp_path, tiny_model):
    model = tiny_model()
    model.trunk.encoder.redraw_(7)
    save_model(model, tmp_path / "seven", tokens=TOKENS)
    model.trunk.encoder.redraw_(0)
    save_model(model, tmp_path / "zero", tokens=TOKENS)
    path = fasta(">a\nMKVLAWSSEEDKRILP\n")
    for name in ("seven", "zero"):
        embed_fasta([path], tmp_path / name, tmp_path / f"{name}.h5", per_residue=True)
    seven, zero = read(tmp_path / "seven.h5")["a"], read(tmp_path / "zero.h5")["a"]
    assert np.abs(seven - zero).max() > 1e-4
    assert load_model(tmp_path / "seven")[0].trunk.encoder.draw == 7


@pytest.mark.parametrize("head", ["sequence", "residue"])
def test_any_task_embeds_the_trunk(head, fasta, model_folder, tmp_path, tiny_model):
    model = tiny_model(head=head)
    model.trunk.load_state_dict(load_model(model_folder)[0].trunk.state_dict())
    save_model(model, tmp_path / "other", tokens=TOKENS)
    path = fasta(">a\nMKVLAW\n")
    embed_fasta([path], model_folder, tmp_path / "one.h5")
    embed_fasta([path], tmp_path / "other", tmp_path / "two.h5")
    np.testing.assert_array_equal(read(tmp_path / "one.h5")["a"], read(tmp_path / "two.h5")["a"])


def test_stopped_half_way_leaves_nothing(fasta, model_folder, tmp_path, monkeypatch):
    def stops(*args, **kwargs):
        yield np.zeros(16, np.float32)
        raise RuntimeError("power cut")

    monkeypatch.setattr(job, "embed_corpus", stops)
    with pytest.raises(RuntimeError, match="power cut"):
        embed_fasta([fasta(">a\nMK\n>b\nMK\n")], model_folder, tmp_path / "out" / "o.h5")
    assert list((tmp_path / "out").iterdir()) == []


def test_numbers_that_are_not_finite_are_failures(fasta, model_folder, tmp_path, monkeypatch):
    def broken(*args, **kwargs):
        yield np.full(16, np.nan, np.float32)
        yield np.zeros(16, np.float32)

    monkeypatch.setattr(job, "embed_corpus", broken)
    report = embed_fasta([fasta(">e\n\n>a\nMK\n>b\nMK\n>f\n\n")], model_folder, tmp_path / "o.h5")
    assert [(f.id, f.record) for f in report.failures] == [("e", 1), ("a", 2), ("f", 4)]
    assert list(read(tmp_path / "o.h5")) == ["b"]


def test_force_replaces_and_forgets_old_failures(fasta, model_folder, tmp_path):
    out = tmp_path / "o.h5"
    embed_fasta([fasta(">a\nMK\n>b\n\n", "bad.fasta")], model_folder, out)
    assert (tmp_path / "o.h5.failures.tsv").exists()
    good = fasta(">c\nMK\n", "good.fasta")
    with pytest.raises(ProtformerError, match="--force"):
        embed_fasta([good], model_folder, out)
    embed_fasta([good], model_folder, out, force=True)
    assert list(read(out)) == ["c"]
    assert not (tmp_path / "o.h5.failures.tsv").exists()


def test_an_input_is_never_overwritten(fasta, model_folder):
    path = fasta(">a\nMK\n")
    with pytest.raises(ProtformerError, match="input too"):
        embed_fasta([path], model_folder, path, force=True)
    assert path.read_text() == ">a\nMK\n"


def test_nothing_to_embed_is_said(fasta, model_folder, tmp_path):
    with pytest.raises(ProtformerError, match="no record"):
        embed_fasta([fasta("", "none.fasta")], model_folder, tmp_path / "o.h5")
    with pytest.raises(ProtformerError, match="None of the 1 records"):
        embed_fasta([fasta(">a\n", "empty.fasta")], model_folder, tmp_path / "o.h5")
    assert (tmp_path / "o.h5.failures.tsv").exists()
    assert not (tmp_path / "o.h5").exists()
