"""`protformer map` at the command line: the page, what is said, and refusals."""

from pathlib import Path

import numpy as np
import pytest

from protformer.cli.main import main
from protformer.embedding.stored import StoredEmbeddings


@pytest.fixture(autouse=True)
def store(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> StoredEmbeddings:
    """Six proteins in a file that `open_store` opens; the file is there, and empty."""
    made = StoredEmbeddings(
        path=tmp_path / "proteins.h5",
        keys=[f"p{number}" for number in range(6)],
        ids=[f"p{number}" for number in range(6)],
        descriptions=[f"p{number} of yeast" for number in range(6)],
        lengths=np.full(6, 3, dtype=np.int64),
        vectors=np.random.default_rng(0).normal(size=(6, 4)).astype(np.float32),
        output="mean",
        model_hash="abc",
        settings={},
    )
    made.path.write_bytes(b"")
    (tmp_path / "labels.tsv").write_text("id\tlabel\np0\ta\np1\tb\nother\tc\n")
    monkeypatch.setattr("protformer.embedding.stored.open_store", lambda path, output=None: made)
    monkeypatch.chdir(tmp_path)
    return made


def test_a_page_is_written_and_said(tmp_path, capsys):
    pytest.importorskip("plotly")
    assert main(["map", "proteins.h5", "-o", "new/map.html", "--color", "labels.tsv:label"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith("6 proteins (mean vectors, pca; explained variance: PC 1 ")
    assert out.endswith("drawn in new/map.html\n")
    assert err.splitlines() == [
        "protformer: note: Proteins without a row in labels.tsv: 4 (p2, p3, p4, p5).",
        "protformer: note: Names in column id of labels.tsv that are of no protein here: 1 (other).",
    ]
    page = (tmp_path / "new" / "map.html").read_text(encoding="utf-8")
    for note in err.splitlines():
        assert note.removeprefix("protformer: note: ") in page
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["map.html"], "no temporary file stays"


def test_refusals_are_one_sentence_and_write_nothing(tmp_path, capsys):
    pytest.importorskip("plotly")
    (tmp_path / "folder").mkdir()
    for options, words in (
        (["-o", "folder"], "is a folder"),
        (["-o", "proteins.h5"], "is what is read"),
        (["-o", "labels.tsv", "--color", "labels.tsv:label"], "is what is read"),
        (["-o", "map.html", "--color", "labels.tsv"], "names no column"),
        (["-o", "map.html", "--color", "labels.tsv:none"], "has no column 'none'"),
        (["-o", "map.html", "--color", "labels.tsv:label", "--color-as", "number"], "is no number"),
        (["-o", "map.html", "--input", "none.fasta"], "does not exist"),
    ):
        assert main(["map", "proteins.h5", *options]) == 1
        told = capsys.readouterr().err
        assert words in told
        assert told.count("\n") == 1
    assert not (tmp_path / "map.html").exists()
    assert (tmp_path / "proteins.h5").read_bytes() == b""


def test_without_plotly_a_sentence_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(__import__("sys").modules, "plotly.offline", None)
    assert main(["map", "proteins.h5", "-o", "map.html"]) == 1
    assert "pip install 'protformer[map]'" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [[], ["a.h5"], ["a.h5", "-o", "x.html", "--method", "tsne"]])
def test_usage_errors(argv, capsys):
    assert main(["map", *argv]) == 2
    assert "usage: protformer map" in capsys.readouterr().err


def test_help_shows_what_to_type(capsys):
    assert main(["map", "--help"]) == 0
    assert "--color localization.tsv:compartment" in capsys.readouterr().out
