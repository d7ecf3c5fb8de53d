"""A run's picture is drawn from its rows, and a folder without rows says so."""

import json

import pytest

from protformer.cli.main import main


def write(folder, rows):
    content = {"run": "a run", "sets": {"valid": {"sequences": 3, "residues": 90, "rows": rows}}}
    (folder / "metrics.json").write_text(json.dumps(content))


def test_a_picture_is_written(tmp_path):
    pytest.importorskip("matplotlib")
    figures = {"perplexity_mask": 15.0, "perplexity_mask_low": 14.5, "perplexity_mask_high": 15.5}
    write(
        tmp_path, [{"name": "unigram", "figures": {"perplexity_mask": 18.0}}, {"name": "trained", "figures": figures}]
    )
    assert main(["plot", str(tmp_path), "-o", str(tmp_path / "run.png")]) == 0
    assert (tmp_path / "run.png").read_bytes().startswith(b"\x89PNG")
    assert main(["plot", str(tmp_path), "-o", str(tmp_path / "run.xyz")]) == 1
    assert sorted(p.name for p in tmp_path.iterdir()) == ["metrics.json", "run.png"]


def test_what_is_no_run_says_so(tmp_path, capsys):
    assert main(["plot", str(tmp_path), "-o", str(tmp_path / "run.png")]) == 1
    assert "metrics.json" in capsys.readouterr().err
    (tmp_path / "metrics.json").write_text("[]")
    assert main(["plot", str(tmp_path), "-o", str(tmp_path / "run.png")]) == 1
