"""The picture of a benchmark's rows: drawn from the rows alone, with the right slopes, or refused in words."""

import json
from typing import Any

import pytest

from protformer.cli.main import main
from protformer.errors import ProtformerError
from protformer.evaluation.attention_benchmark import plot as module
from protformer.evaluation.attention_benchmark import plot_rows, read_rows
from protformer.evaluation.methods import look


def row(implementation: str, length: int, ms: float | None, features: int | None = None, **other: Any) -> dict:
    return {
        "kind": "single", "implementation": implementation, "features": features, "length": length, "dtype": "float32",
        "direction": "forward", "causal": False, "heads": 8, "dim": 64, "threads": 2, "ms": ms,
        "ms_min": ms and 0.9 * ms, "ms_max": ms and 1.2 * ms, "peak_bytes": length * 100,
        "hardware": {"cpu": "a processor"}, "versions": {"torch": "2.13"}, **other,
    }  # fmt: skip


ROWS = [
    *(row("sdpa", n, n**2 * 1e-5) for n in (256, 1024, 4096)),
    row("sdpa", 16384, None),
    *(row("protformer-positive", n, n * 1e-3, 64) for n in (256, 1024, 4096, 16384)),
    *(row("protformer-positive", n, n * 3e-3, 256) for n in (256, 1024, 4096, 16384)),
]


@pytest.mark.parametrize("ending", ["png", "svg"])
def test_rows_become_a_picture(ending, tmp_path):
    rows, picture = tmp_path / "rows.json", tmp_path / f"cost.{ending}"
    rows.write_text(json.dumps(ROWS))
    assert main(["plot", str(rows), "-o", str(picture)]) == 0
    assert picture.read_bytes().startswith({"png": b"\x89PNG", "svg": b"<?xml"}[ending])
    if ending == "svg":
        drawn = picture.read_text()
        for words in ("sdpa", "protformer-positive, 64 features", "protformer-positive, 256 features", "2.00", "1.00"):
            assert f"<!-- {words} -->" in drawn
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted([rows.name, picture.name])


def test_lines_are_told_apart():
    lines = [("protformer-positive", 64), ("protformer-positive", 256), ("sdpa", None), ("performer-pytorch", 64)]
    assert len({module._look(line, lines) for line in lines}) == 4
    ours = ("protformer-positive", "protformer-hybrid-positive", "protformer-exact", "protformer-linformer", "reformer")
    assert len({look(name).colour for name in ours}) == len(ours)


def test_what_cannot_be_drawn_is_said(tmp_path):
    with pytest.raises(ProtformerError, match="no timed sequence"):
        plot_rows([row("sdpa", 16384, None)], tmp_path / "cost.png")
    with pytest.raises(ProtformerError, match=r"cost\.gif2"):
        plot_rows(ROWS, tmp_path / "cost.gif2")
    assert not list(tmp_path.iterdir())
    wrong = tmp_path / "other.json"
    for text in ("{", '{"a": 1}', '[{"a": 1}]'):
        wrong.write_text(text)
        with pytest.raises(ProtformerError, match=r"other\.json"):
            read_rows(wrong)
