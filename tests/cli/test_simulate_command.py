"""`protformer simulate` as it is typed."""

import argparse
import json

import pytest

from protformer.cli import simulate
from protformer.data.simulate import Settings
from protformer.errors import ProtformerError

TINY = ["--families", "2", "--members", "6", "--unseen-families", "1", "--unseen-members", "2", "--median-length", "70"]


def run(*words):
    parser = argparse.ArgumentParser(prog="protformer")
    simulate.add_parser(parser.add_subparsers())
    args = parser.parse_args(["simulate", *map(str, words)])
    return args.run(args)


def test_it_writes_a_set_and_says_what_it_allows(tmp_path, capsys):
    assert run(*TINY, "--seed", "7", "--out", tmp_path / "made") == 0
    said = capsys.readouterr().out
    assert "Simulated" in said
    assert "unseen" in said
    report = json.loads((tmp_path / "made" / "demo.json").read_text())
    assert report["settings"]["seed"] == 7
    assert report["settings"]["families"] == 2
    with pytest.raises(ProtformerError, match="--force"):
        run(*TINY, "--out", tmp_path / "made")
    assert run(*TINY, "--out", tmp_path / "made", "--force") == 0
    assert json.loads((tmp_path / "made" / "demo.json").read_text())["settings"]["seed"] == Settings().seed


def test_residues_choose_the_number_of_families(tmp_path):
    wanted = 30_000
    assert run("--residues", wanted, "--members", "8", "--unseen-families", "0", "--out", tmp_path) == 0
    report = json.loads((tmp_path / "demo.json").read_text())
    assert 0.7 * wanted < report["files"]["train.fasta"]["residues"] < 1.3 * wanted
    assert (tmp_path / "unseen.fasta").read_text() == ""


def test_help_reads_as_english(capsys):
    with pytest.raises(SystemExit) as stop:
        run("--help")
    assert stop.value.code == 0
    said = capsys.readouterr().out
    assert "--families" in said
    assert "protformer simulate --out data" in said
