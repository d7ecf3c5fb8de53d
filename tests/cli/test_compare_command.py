"""`protformer compare` at the command line: help, and one sentence for what cannot be compared."""

import pytest

from protformer.cli.main import main


def test_help_shows_what_to_type(capsys):
    assert main(["compare", "--help"]) == 0
    told = capsys.readouterr().out
    assert "protformer compare multirun/compare_attention -o report" in told
    assert "--split" in told


@pytest.mark.parametrize("argv", [["compare"], ["compare", "runs/a"]])
def test_a_source_and_a_folder_are_needed(argv, capsys):
    assert main(argv) == 2
    assert "usage: protformer compare" in capsys.readouterr().err


def test_what_is_no_run_is_named(tmp_path, capsys):
    for source, words in (("nowhere", "does not exist"), (".", "holds no run")):
        assert main(["compare", str(tmp_path / source), "-o", str(tmp_path / "report")]) == 1
        told = capsys.readouterr().err
        assert told.startswith("protformer: ")
        assert words in told
        assert told.count("\n") == 1
    assert not (tmp_path / "report").exists()


def test_a_report_does_not_replace_a_file(tmp_path, capsys):
    (tmp_path / "report").write_text("mine")
    assert main(["compare", str(tmp_path), "-o", str(tmp_path / "report")]) == 1
    assert "is a file" in capsys.readouterr().err
    assert (tmp_path / "report").read_text() == "mine"
