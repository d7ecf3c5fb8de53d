"""What is known of simulated files is said of those files, and of no other that was put in their place."""

import json
from pathlib import Path

import pytest

from protformer.errors import ProtformerError
from protformer.training.sources import FastaSource

DATA = Path(__file__).parents[2] / "data"
KNOWN = json.loads((DATA / "demo.json").read_text(encoding="utf-8"))["perplexity"]


def source(tmp_path: Path, **options) -> FastaSource:
    files = {name: DATA / f"{name}.fasta" for name in ("train", "valid", "test")}
    return FastaSource(**{**files, "reference": str(DATA / "demo.json"), **options})


def test_each_set_has_what_is_known_of_its_file(tmp_path):
    found = source(tmp_path, more={"unseen": DATA / "unseen.fasta"}).references()
    for name in ("valid", "test", "unseen"):
        figures = {row.name: row.figures["perplexity_mask"] for row in found[name]}
        assert figures["best reachable"] == KNOWN[name]["best_reachable"]
        assert figures["knowing the true state"] == KNOWN[name]["state_oracle"]


def test_nothing_is_said_of_another_file(tmp_path, caplog):
    mine = tmp_path / "test.fasta"
    mine.write_text((DATA / "test.fasta").read_text().replace("A", "G", 1))
    with caplog.at_level("INFO", logger="protformer.training.sources"):
        found = source(tmp_path, test=mine, valid=[DATA / "valid.fasta", mine]).references()
    assert set(found) <= {"train"}
    assert any("test: not a file that demo.json tells of" in message for message in caplog.messages)


def test_a_known_file_by_another_name(tmp_path):
    copy = tmp_path / "copy.fasta"
    copy.write_bytes((DATA / "unseen.fasta").read_bytes())
    (row,) = (r for r in source(tmp_path, test=copy).references()["test"] if r.name == "best reachable")
    assert row.figures["perplexity_mask"] == KNOWN["unseen"]["best_reachable"]


@pytest.mark.parametrize("text", [None, "", "[]", '{"perplexity": {"test": {}}}', '{"perplexity": 3, "files": {}}'])
def test_a_reference_that_is_none(tmp_path, text):
    path = tmp_path / "own.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(ProtformerError, match=r"own\.json: .*data\.reference=null"):
        source(tmp_path, reference=str(path)).references()
