"""Every format gives back what was stored, in order, without pickle; and the verdict on it."""

import json

import h5py
import numpy as np
import pytest
from safetensors.numpy import load_file

from protformer.embedding import Options, embed_fasta
from protformer.embedding.formats import format_of
from protformer.embedding.stored import open_store, reading_store
from protformer.embedding.verify import verify
from protformer.errors import ProtformerError

TEXT = ">zeta the first\nMKVLAW\n>alpha\nMKJ*\n>../../evil\nGG\n>none\n\n>alpha\nMKVLAW\n>\nC\n>sp|P1|X a <b>\nmkv\n"
IDS = ["zeta", "alpha", "../../evil", "alpha", "", "sp|P1|X"]
LENGTHS = [6, 3, 2, 6, 1, 3]
FORMATS = ["h5", "parquet", "npz", "safetensors"]


@pytest.fixture(params=FORMATS)
def ending(request) -> str:
    if request.param == "parquet":
        pytest.importorskip("pyarrow")
    return request.param


def test_what_was_stored_is_read(ending, fasta, model_folder, tmp_path):
    options = Options(per_residue=True, pool=("mean", "cls"), layers=(-1, 0), logits=True)
    source, out = fasta(TEXT), tmp_path / f"o.{ending}"
    report = embed_fasta([source], model_folder, out, options=options)
    assert (report.counts.embedded, report.counts.failed, report.counts.equal_sequences) == (6, 1, 1)
    with reading_store(out) as store:
        proteins = list(store.proteins)
        assert list(store.outputs) == [output.name for output in report.outputs]
        assert store.attributes["counts"]["embedded"] == 6
    assert [p.residues for p in proteins] == LENGTHS
    assert len({p.key for p in proteins}) == 6
    for p in proteins:
        assert p.vectors["residues_layer2"].shape == (p.residues, 16)
        assert p.vectors["logits"].shape == (p.residues, 33)
        np.testing.assert_allclose(p.vectors["mean_layer0"], p.vectors["residues_layer0"].mean(0), atol=1e-6)
    for name, value in proteins[0].vectors.items():  # equal sequences, computed once
        np.testing.assert_array_equal(value, proteins[3].vectors[name])
    assert proteins[0].sequence_hash == proteins[3].sequence_hash != proteins[1].sequence_hash
    pooled = open_store(out, output="cls_layer2")
    assert pooled.ids == IDS
    assert pooled.descriptions[0] == "zeta the first"
    assert pooled.lengths.tolist() == LENGTHS
    assert pooled.vectors.shape == (6, 16)
    assert pooled.model_hash
    with pytest.raises(ProtformerError, match="several outputs"):
        open_store(out)
    assert verify(out, [source]).fault_count == 0


def test_half_precision(ending, fasta, model_folder, tmp_path):
    source = fasta(TEXT)
    for dtype in ("fp32", "fp16"):
        embed_fasta([source], model_folder, tmp_path / dtype / f"o.{ending}", options=Options(dtype=dtype))
    with (
        reading_store(tmp_path / "fp16" / f"o.{ending}") as half,
        reading_store(tmp_path / "fp32" / f"o.{ending}") as full,
    ):
        for one, other in zip(half.proteins, full.proteins, strict=True):
            assert one.vectors["mean"].dtype == np.float16
            np.testing.assert_array_equal(one.vectors["mean"], other.vectors["mean"].astype(np.float16))


def test_the_libraries_read_them(fasta, model_folder, tmp_path):
    source = fasta(TEXT)
    for ending in ("npz", "safetensors", "h5"):
        embed_fasta([source], model_folder, tmp_path / f"o.{ending}", options=Options(per_residue=True))
    with np.load(tmp_path / "o.npz", allow_pickle=False) as arrays:
        packed = {name: arrays[name] for name in arrays}
    tensors = load_file(tmp_path / "o.safetensors")
    np.testing.assert_array_equal(packed["residues"], tensors["residues"])
    np.testing.assert_array_equal(packed["offsets"], np.cumsum([0, *LENGTHS]))
    np.testing.assert_array_equal(tensors["offsets"], packed["offsets"])
    with h5py.File(tmp_path / "o.h5") as file:
        assert list(file) == packed["keys"].tolist()
        # as biotrainer reads it: datasets at the root, `original_id`, in the order of the input
        assert [file[key].attrs["original_id"] for key in file] == IDS
        assert file["alpha"].attrs["treatment"] == "read as X: J 1; a final * dropped"
        np.testing.assert_array_equal(np.asarray(file["alpha_2"]), packed["residues"][11:17])


def test_a_folder_is_an_output_too(fasta, model_folder, tmp_path):
    source = fasta(TEXT)
    report = embed_fasta([source], model_folder, f"{tmp_path / 'out'}/", format_name="npz")
    assert report.output == tmp_path / "out" / "embeddings.npz"
    names = {path.name.removeprefix("embeddings.npz") for path in (tmp_path / "out").iterdir()}
    assert names == {"", ".manifest.json", ".records.tsv", ".failures.tsv"}
    assert open_store(tmp_path / "out").ids == IDS
    assert verify(tmp_path / "out", [source]).fault_count == 0


def test_names_of_formats(tmp_path):
    assert format_of(tmp_path / "a.h5", None) == format_of(tmp_path / "a", None) == "hdf5"
    assert format_of(tmp_path / "a.parquet", None) == "parquet"
    assert format_of(tmp_path / "a.out", "npz") == "npz"
    with pytest.raises(ProtformerError, match="ends like"):
        format_of(tmp_path / "a.h5", "npz")


@pytest.mark.parametrize("content", [b"", b"hello", b"\x89HDF\r\n\x1a\nxxxx", b"PAR1xxxx", b"PK\x03\x04xx"])
def test_files_that_are_none_are_refused(content, tmp_path):
    path = tmp_path / "file"
    path.write_bytes(content)
    with pytest.raises(ProtformerError, match=r"embeddings|pyarrow"):
        open_store(path)


class TestVerdict:
    @pytest.fixture
    def stored(self, fasta, model_folder, tmp_path):
        source = fasta(TEXT)
        embed_fasta([source], model_folder, tmp_path / "o.h5")
        return tmp_path / "o.h5", source

    def test_another_input_is_told(self, stored, fasta):
        out, _ = stored
        for text, word in (
            (TEXT.replace("GG", "GA"), "another sequence"),
            (TEXT + ">more\nMKV\n", "missing: record 8"),
            (TEXT.replace(">\nC\n", ""), "stands where|not in the input"),
            (TEXT.replace("the first", "the last"), "not the one that was embedded"),
        ):
            verdict = verify(out, [fasta(text, "other.fasta")])
            assert any(word.split("|")[0] in fault or word.split("|")[-1] in fault for fault in verdict.faults), text

    def test_a_file_that_was_changed_is_told(self, stored):
        out, source = stored
        with h5py.File(out, "a") as file:
            file["zeta"][0] = np.nan  # pyright: ignore[reportIndexIssue]
            del file["alpha"]
        faults = " ".join(verify(out, [source]).faults)
        for word in ("SHA-256", "zeta: mean has numbers that are not finite", "5 proteins, the manifest says 6"):
            assert word in faults

    def test_without_a_manifest_nothing_is_proved(self, stored):
        out, source = stored
        manifest = out.with_name("o.h5.manifest.json")
        known = json.loads(manifest.read_text())
        assert known["counts"]["records"] == 7
        manifest.unlink()
        with pytest.raises(ProtformerError, match="does not exist"):
            verify(out, [source])
