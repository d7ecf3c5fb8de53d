"""`protformer neighbours` at the command line: the table, its warnings and its refusals."""

import csv
from pathlib import Path

import numpy as np
import pytest

from protformer.cli.main import main
from protformer.cli.neighbours import COLUMNS
from protformer.embedding.stored import StoredEmbeddings

VECTORS = [[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [1.0, 0.1]]


@pytest.fixture
def stores(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, StoredEmbeddings]:
    """By file name what `open_store` gives; the files are there, and empty."""

    def one(name: str, vectors: list[list[float]], model_hash: str = "m", output: str = "mean") -> StoredEmbeddings:
        (tmp_path / name).write_bytes(b"")
        count = len(vectors)
        ids = [f"{name[0]}{number}" for number in range(count)]
        return StoredEmbeddings(
            path=tmp_path / name,
            keys=ids,
            ids=ids,
            descriptions=[f"{own} protein {number}" for number, own in enumerate(ids)],
            lengths=np.arange(10, 10 + count, dtype=np.int64),
            vectors=np.array(vectors, dtype=np.float32),
            output=output,
            model_hash=model_hash,
            settings={},
        )

    made = {
        "targets.h5": one("targets.h5", VECTORS),
        "queries.h5": one("queries.h5", [[0.0, 2.0]]),
        "other.h5": one("other.h5", VECTORS, model_hash="n"),
        "unknown.h5": one("unknown.h5", VECTORS, model_hash=""),
        "zero.h5": one("zero.h5", [[0.0, 0.0], *VECTORS]),
    }
    monkeypatch.setattr("protformer.embedding.stored.open_store", lambda path, output=None: made[Path(path).name])
    monkeypatch.chdir(tmp_path)
    return made


def rows(text: str) -> list[list[str]]:
    return list(csv.reader(text.splitlines(), delimiter="\t", quoting=csv.QUOTE_NONE))


def test_a_table_of_a_store_against_itself(stores, capsys):
    assert main(["neighbours", "targets.h5", "-k", "2"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    header, *lines = rows(out)
    assert header == list(COLUMNS)
    assert lines[0] == ["t0", "1", "t3", "0.995037", "10", "13", "protein 3"]
    assert lines[1][:4] == ["t0", "2", "t1", "0.707107"]
    assert [line[0] for line in lines] == ["t0", "t0", "t1", "t1", "t2", "t2", "t3", "t3"]
    assert all(line[0] != line[2] for line in lines)


def test_queries_of_another_store_to_a_file(stores, tmp_path, capsys):
    assert main(["neighbours", "targets.h5", "--query", "queries.h5", "-k", "3", "-o", "new/hits.tsv"]) == 0
    out, err = capsys.readouterr()
    assert out == "3 neighbours of 1 proteins among 4 (mean vectors): new/hits.tsv\n"
    assert err == ""
    lines = rows((tmp_path / "new" / "hits.tsv").read_text())[1:]
    assert [line[:3] for line in lines] == [["q0", "1", "t2"], ["q0", "2", "t1"], ["q0", "3", "t3"]]
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["hits.tsv"], "no temporary file stays"


def test_what_the_reader_must_know_is_said(stores, capsys):
    assert main(["neighbours", "targets.h5"]) == 0
    assert "-k 10 is more than there are: each query gets all 3 neighbours" in capsys.readouterr().err
    assert main(["neighbours", "zero.h5", "-k", "3"]) == 0
    out, err = capsys.readouterr()
    assert "zero or not finite: 1 (z0)" in err
    assert "z0" not in out
    assert main(["neighbours", "unknown.h5", "--query", "targets.h5", "-k", "1"]) == 0
    assert "unknown.h5: the model is not known" in capsys.readouterr().err
    assert main(["neighbours", "targets.h5", "--query", "targets.h5", "-k", "1"]) == 0
    out, err = capsys.readouterr()
    assert "each finds itself first" in err
    assert rows(out)[1][:4] == ["t0", "1", "t0", "1.000000"]


def test_refusals_are_one_sentence_and_write_nothing(stores, tmp_path, capsys):
    assert main(["neighbours", "targets.h5", "--query", "other.h5", "-o", "hits.tsv"]) == 1
    told = capsys.readouterr().err
    assert "different models" in told
    assert told.count("\n") == 1
    assert not (tmp_path / "hits.tsv").exists()
    (tmp_path / "folder").mkdir()
    for output, words in (("folder", "is a folder"), ("targets.h5", "is what is read")):
        assert main(["neighbours", "targets.h5", "-k", "1", "-o", output]) == 1
        assert words in capsys.readouterr().err
    assert (tmp_path / "targets.h5").read_bytes() == b""


@pytest.mark.parametrize("argv", [[], ["a.h5", "-k", "0"], ["a.h5", "--exact", "--faiss"]])
def test_usage_errors(argv, capsys):
    assert main(["neighbours", *argv]) == 2
    assert "usage: protformer neighbours" in capsys.readouterr().err


def test_help_says_what_happens_to_zero_vectors(capsys):
    assert main(["neighbours", "--help"]) == 0
    assert "left out" in capsys.readouterr().out
