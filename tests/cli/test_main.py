"""The command line: help, exit codes, and one sentence for what went wrong."""

import json
import os
import subprocess
import sys
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch

from protformer import __version__
from protformer.attention import FavorAttention
from protformer.cli.main import main
from protformer.data.alphabet import TOKENS
from protformer.features import PositiveFeatures
from protformer.model import Encoder, LanguageModelHead, ProteinEncoder, ProteinModel, save_model


@pytest.fixture
def run(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    encoder = Encoder(
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        attention=lambda **shape: FavorAttention(**shape, features=lambda **s: PositiveFeatures(num_features=4, **s)),
    )
    model = ProteinModel(trunk=ProteinEncoder(encoder=encoder), head=LanguageModelHead(hidden_size=16))
    save_model(model, tmp_path / "run" / "model", tokens=TOKENS)
    (tmp_path / "in.fasta").write_text(">a\nMKV\n>b\nLLAG\n")
    return tmp_path / "run"


def embed(tmp_path: Path, *more: str, model: str = "run", fasta: str = "in.fasta") -> int:
    return main(["embed", str(tmp_path / fasta), "--model", str(tmp_path / model), "-o", str(tmp_path / "o.h5"), *more])


def sentence(capsys: pytest.CaptureFixture[str]) -> str:
    """What stands on standard error: one line, no traceback."""
    told = capsys.readouterr().err
    assert told.startswith("protformer: ")
    assert told.count("\n") == 1
    assert "Traceback" not in told
    return told


@pytest.mark.parametrize("argv", [["--help"], ["embed", "--help"], ["simulate", "--help"]])
def test_help_shows_examples_and_fits(argv, capsys):
    assert main(argv) == 0
    told = capsys.readouterr().out
    assert told.startswith("usage: protformer")
    assert "None" not in told


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == f"protformer {__version__}"


@pytest.mark.parametrize(
    "argv", [[], ["nonsense"], ["embed"], ["embed", "x", "--model", "m", "-o", "o", "--batch-tokens", "0"]]
)
def test_usage_errors_are_2(argv, capsys):
    assert main(argv) == 2
    assert "usage: protformer" in capsys.readouterr().err


def test_embed(run, tmp_path, capsys):
    assert embed(tmp_path, "--per-residue") == 0
    out, err = capsys.readouterr()
    assert err == "", "quiet where standard error is no terminal"
    assert "2 proteins embedded" in out
    assert "7 residues" in out
    assert "residues per second" in out
    with h5py.File(tmp_path / "o.h5") as file:
        assert {key: np.asarray(file[key]).shape for key in file} == {"a": (3, 16), "b": (4, 16)}


def test_a_glob(run, tmp_path):
    (tmp_path / "in2.fasta").write_text(">c\nMKV\n")
    assert embed(tmp_path, fasta="in*.fasta") == 0
    with h5py.File(tmp_path / "o.h5") as file:
        assert list(file) == ["a", "b", "c"]


def test_records_without_an_embedding_make_the_exit_code_1(run, tmp_path, capsys):
    (tmp_path / "in.fasta").write_text(">a\nMKV\n>../../evil\n\n")
    assert embed(tmp_path) == 1
    assert "1 of 2 records could not be embedded" in sentence(capsys)
    assert (tmp_path / "o.h5").exists()
    assert "evil" in (tmp_path / "o.h5.failures.tsv").read_text()


def test_an_output_is_not_replaced_without_force(run, tmp_path, capsys):
    assert embed(tmp_path) == 0
    capsys.readouterr()
    assert embed(tmp_path) == 1
    assert "exists already" in sentence(capsys)
    assert embed(tmp_path, "--force") == 0


def test_errors_are_one_sentence(run, tmp_path, capsys):
    assert embed(tmp_path, model="nowhere") == 1
    assert "There is no folder" in sentence(capsys)

    (tmp_path / "empty").mkdir()
    assert embed(tmp_path, model="empty") == 1
    assert "no model folder" in sentence(capsys)

    assert embed(tmp_path, fasta="nowhere.fasta") == 1
    assert "does not exist" in sentence(capsys)

    (tmp_path / "not.fasta").write_text("id,sequence\na,MKV\n")
    assert embed(tmp_path, fasta="not.fasta") == 1
    assert "not FASTA" in sentence(capsys)
    assert not (tmp_path / "o.h5").exists()


def test_damaged_model_folders_are_one_sentence(run, tmp_path, capsys):
    weights, config = run / "model" / "model.safetensors", run / "model" / "config.json"
    whole = weights.read_bytes()
    for damaged in (whole[: len(whole) // 2], b"not safetensors at all", b""):
        weights.write_bytes(damaged)
        assert embed(tmp_path) == 1
        assert "model.safetensors cannot be read" in sentence(capsys)
    weights.write_bytes(whole)

    text = config.read_text()
    for place, name in ((("trunk", "attention", "name"), "os.system"), (("head", "name"), "Exec")):
        changed = json.loads(text)
        inner = changed["model"]
        for key in place[:-1]:
            inner = inner[key]
        inner[place[-1]] = name
        config.write_text(json.dumps(changed))
        assert embed(tmp_path) == 1
        assert name in sentence(capsys)

    changed = json.loads(text)
    changed["model"]["trunk"]["num_layers"] = 3
    config.write_text(json.dumps(changed))
    assert embed(tmp_path) == 1
    assert "does not fit" in sentence(capsys)

    config.write_text(json.dumps(json.loads(text) | {"tokens": ["A", "B"]}))
    assert embed(tmp_path) == 1
    assert "alphabet" in sentence(capsys)

    config.write_text("{")
    assert embed(tmp_path) == 1
    assert "is not JSON" in sentence(capsys)
    assert not (tmp_path / "o.h5").exists()


@pytest.mark.parametrize("place", ["before", "after"])
def test_debug_shows_the_traceback(run, tmp_path, capsys, place):
    rest = ["embed", str(tmp_path / "in.fasta"), "--model", "nowhere", "-o", str(tmp_path / "o.h5")]
    assert main(["--debug", *rest] if place == "before" else [*rest, "--debug"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("error", "code", "told"),
    [
        (KeyboardInterrupt(), 130, "interrupted"),
        (ZeroDivisionError("two\nlines"), 1, "ZeroDivisionError: two lines (unexpected; `protformer --debug embed"),
        (RuntimeError("x" * 5000), 1, "..."),
    ],
)
def test_what_nobody_foresaw(run, tmp_path, capsys, monkeypatch, error, code, told):
    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr("protformer.embedding.embed_fasta", fails)
    assert embed(tmp_path) == code
    shown = sentence(capsys)
    assert told in shown
    assert len(shown) < 600


def test_a_reader_that_leaves_is_no_traceback():
    read_end, write_end = os.pipe()
    os.close(read_end)
    # (In a process of its own: pytest's standard output is no file.)
    script = (
        "import sys, argparse, protformer.cli.main as m, protformer.cli.embed as e\n"
        "e.run = lambda args: print('x' * 100_000) or 0\n"
        "sys.exit(m.main(['embed', 'a', '--model', 'b', '-o', 'c']))\n"
    )
    try:
        done = subprocess.run([sys.executable, "-c", script], stdout=write_end, stderr=subprocess.PIPE, text=True)
    finally:
        os.close(write_end)
    assert done.returncode == 141, done.stderr
    assert done.stderr == ""
