"""From FASTA files to the store: every record is in it, or in the list of failures."""

import bz2
import csv
import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
import torch

from protformer.data.alphabet import TOKENS
from protformer.embedding import Options, Policies, embed_fasta
from protformer.embedding.job import model_hash
from protformer.errors import ProtformerError
from protformer.model import load_model, save_model


def read(path: Path) -> dict[str, np.ndarray]:
    with h5py.File(path) as file:
        return {str(key): np.asarray(file[key]) for key in file}


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE, escapechar="\\"))


def test_wrapped_lines_are_one_sequence(fasta, model_folder, tmp_path):
    wrapped = fasta(">a first\nMKV\r\nLAW\n\nGG\n>b\nMK\n", "wrapped.fasta")
    straight = fasta(">a\nMKVLAWGG\n>b\nMK\n", "straight.fasta")
    embed_fasta([wrapped], model_folder, tmp_path / "w.h5", options=Options(per_residue=True))
    embed_fasta([straight], model_folder, tmp_path / "s.h5", options=Options(per_residue=True))
    ours, theirs = read(tmp_path / "w.h5"), read(tmp_path / "s.h5")
    assert {key: value.shape for key, value in ours.items()} == {"a": (8, 16), "b": (2, 16)}
    assert all(np.array_equal(ours[key], theirs[key]) for key in ours)


def test_input_order_over_files_and_windows(fasta, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("protformer.embedding.windows.WINDOW_BATCHES", 2)
    rng = np.random.default_rng(0)
    lengths = rng.integers(1, 60, 50)
    records = [f">p{i}\n{'MKVLAWGGSE' * 6}"[: lengths[i] + 2 + len(f"p{i}")] + "\n" for i in range(50)]
    first, second = fasta("".join(records[:20]), "z.fasta"), fasta("".join(records[20:]), "a.fasta")
    report = embed_fasta(
        [first, second], model_folder, tmp_path / "o.h5", options=Options(per_residue=True, batch_tokens=64)
    )
    stored = read(tmp_path / "o.h5")
    assert list(stored) == [f"p{i}" for i in range(50)]
    assert [len(matrix) for matrix in stored.values()] == lengths.tolist()
    counts = report.counts
    assert (counts.embedded, counts.residues, counts.failed, counts.dropped) == (50, lengths.sum(), 0, 0)


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
    listed = table(tmp_path / "out" / "o.h5.failures.tsv")
    assert report.failures_file == tmp_path / "out" / "o.h5.failures.tsv"
    assert [(Path(row["file"]).name, row["record"], row["id"]) for row in listed] == [
        ("one.fasta", "2", "empty"),
        ("two.fasta", "2", "stop"),
    ]
    rows = table(tmp_path / "out" / "o.h5.records.tsv")
    assert [row["status"] for row in rows] == ["embedded", "failed", "embedded", "embedded", "embedded", "failed"]
    assert [row["record"] for row in rows] == list("123456")
    assert rows[0]["treatment"] == "read as X: J 1; a final * dropped"
    assert rows[2]["treatment"] == "lower case read as upper: 3"
    counts = report.counts
    assert counts.records == counts.embedded + counts.failed == 6
    assert list(stored)[:3] == ["a", "a_2", "unnamed_1"]
    assert report.account.read.replaced == {"J": 1, "-": 1, "1": 1}
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert names == {"o.h5", "o.h5.failures.tsv", "o.h5.records.tsv", "o.h5.manifest.json"}
    assert not list(tmp_path.parent.glob("**/evil"))


def test_attributes_tell_what_made_the_file(fasta, model_folder, tmp_path):
    embed_fasta([fasta(">a\nMKV\n>b\n\n")], model_folder, tmp_path / "o.h5")
    with h5py.File(tmp_path / "o.h5") as file:
        about = {name: str(value) for name, value in file.attrs.items()}
    assert about["model_hash"] == model_hash(model_folder / "model")
    assert [output["kind"] for output in json.loads(about["settings"])["outputs"]] == ["mean"]
    counts = json.loads(about["counts"])
    assert (counts["records"], counts["embedded"], counts["residues"], counts["failed"]) == (2, 1, 3, 1)
    assert {"protformer", "torch", "h5py"} <= set(json.loads(about["versions"]))


def test_a_performer_keeps_its_projections(fasta, tmp_path, tiny_model):
    model = tiny_model()
    model.trunk.encoder.redraw_(7)
    save_model(model, tmp_path / "seven", tokens=TOKENS)
    model.trunk.encoder.redraw_(0)
    save_model(model, tmp_path / "zero", tokens=TOKENS)
    path = fasta(">a\nMKVLAWSSEEDKRILP\n")
    for name in ("seven", "zero"):
        embed_fasta([path], tmp_path / name, tmp_path / f"{name}.h5", options=Options(per_residue=True))
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


def test_numbers_that_are_not_finite_are_failures(fasta, tmp_path, tiny_model):
    model = tiny_model("exact")
    with torch.no_grad():
        model.trunk.embedding.weight[24] = torch.nan  # X
    save_model(model, tmp_path / "broken", tokens=TOKENS)
    source = fasta(">e\n\n>a\nMX\n>b\nMK\n>f\n\n>again\nMX\n")
    report = embed_fasta([source], tmp_path / "broken", tmp_path / "o.h5")
    failed = table(tmp_path / "o.h5.failures.tsv")
    assert [(row["id"], row["record"]) for row in failed] == [("e", "1"), ("a", "2"), ("f", "4"), ("again", "5")]
    assert failed[3]["reason"] == failed[1]["reason"] == "the model gave numbers that are not finite"
    assert list(read(tmp_path / "o.h5")) == ["b"]
    assert report.counts.failed == 4


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


def test_policies(fasta, model_folder, tmp_path):
    text = ">a\nMKV\n>bad\nMK#V\n>a\nGGG\n>gap\nM-K\n>long\nMKVLAWMKVLAW\n>j\nMJK*\n"
    source, out = fasta(text), tmp_path / "o.h5"

    def embedded(**policies: Any) -> dict[str, int]:
        options = Options(per_residue=True, policies=Policies(**policies))
        embed_fasta([source], model_folder, out, options=options, force=True)
        return {key: len(matrix) for key, matrix in read(out).items()}

    assert embedded() == {"a": 3, "bad": 4, "a_2": 3, "gap": 3, "long": 12, "j": 3}
    assert embedded(aligned=True)["gap"] == 2
    assert embedded(on_invalid="skip") == {"a": 3, "a_2": 3, "long": 12, "j": 3}
    assert [row["id"] for row in table(tmp_path / "o.h5.failures.tsv")] == ["bad", "gap"]
    assert embedded(on_duplicate="keep-first") == {"a": 3, "bad": 4, "gap": 3, "long": 12, "j": 3}
    assert [row["status"] for row in table(tmp_path / "o.h5.records.tsv")].count("dropped") == 1
    assert embedded(on_long="truncate", max_length=5)["long"] == 5
    assert "the first 5 of 12 residues" in (tmp_path / "o.h5.records.tsv").read_text()
    assert embedded(on_long="window", max_length=5, overlap=2)["long"] == 12
    before = out.read_bytes()
    cases: list[tuple[dict[str, Any], str]] = [
        ({"on_invalid": "error"}, r"record 2 \(bad\) has letters outside the alphabet: # 1"),
        ({"on_duplicate": "error"}, r"record 3 \(a\): this id came before"),
        ({"on_long": "error", "max_length": 5}, r"record 5 \(long\) has 12 residues"),
    ]
    for policies, word in cases:
        with pytest.raises(ProtformerError, match=word):
            embedded(**policies)
    assert out.read_bytes() == before
    impossible: list[dict[str, Any]] = [{"on_long": "window"}, {"max_length": 5}]
    for policies in (*impossible, {"on_long": "window", "max_length": 5, "overlap": 5}):
        with pytest.raises(ProtformerError, match="--max-length"):
            Policies(**policies)


def test_equal_sequences_are_computed_once(fasta, model_folder, tmp_path):
    source = fasta(">a\nMKV\n>b\nMKV\n>c\nmkv*\n>d\nMKVL\n")
    report = embed_fasta([source], model_folder, tmp_path / "o.h5")
    assert report.computed == 7
    stored = read(tmp_path / "o.h5")
    assert list(stored) == ["a", "b", "c", "d"]
    np.testing.assert_array_equal(stored["a"], stored["c"])
    assert [row["same_as"] for row in table(tmp_path / "o.h5.records.tsv")] == ["0", "1", "1", "0"]


def test_a_dry_run_writes_nothing(fasta, model_folder, tmp_path):
    source = fasta(">a\nMKV\n>b\n\n>c\nMKV\n")
    report = embed_fasta([source], model_folder, tmp_path / "out" / "o.h5", dry_run=True)
    assert not (tmp_path / "out").exists()
    assert (report.account.embeddable, report.account.computed, report.account.read.records) == (2, 3, 3)
    embed_fasta([source], model_folder, tmp_path / "out" / "o.h5")
    size = (tmp_path / "out" / "o.h5").stat().st_size
    assert report.output_bytes is not None
    assert size / 4 < report.output_bytes < 4 * size


def test_a_full_disk_is_said_before(fasta, model_folder, tmp_path, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 100}))
    with pytest.raises(ProtformerError, match="has 100 bytes free, and about"):
        embed_fasta([fasta(">a\nMKV\n")], model_folder, tmp_path / "o.h5")
    assert not (tmp_path / "o.h5").exists()


def test_nucleotides_are_said(fasta, model_folder, tmp_path):
    report = embed_fasta([fasta(">a\n" + "ACGT" * 40 + "\n")], model_folder, tmp_path / "o.h5")
    assert "looks like nucleotides" in report.account.read.warnings[0]
