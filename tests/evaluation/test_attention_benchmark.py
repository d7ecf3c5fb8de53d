"""`protformer benchmark attention`: its rows, who is left out and why, its arithmetic, and its command line."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from rich.console import Console

from protformer.cli.main import main
from protformer.errors import ProtformerError
from protformer.evaluation.attention_benchmark import (
    Settings,
    crossover,
    group,
    peers,
    print_rows,
    run_benchmark,
    timing,
    write_rows,
    yardsticks,
)
from protformer.evaluation.attention_benchmark.packs import DEMO, draw_lengths
from protformer.evaluation.attention_benchmark.table import figure

TINY = Settings(
    lengths=(24,), features=(8,), heads=2, dim=8, dtypes=("float32",), directions=("forward",), limit=20.0, memory=False
)
SMALL = ["--heads", "2", "--dim", "8", "--features", "8", "--limit", "20", "--no-memory"]
KEYS = {
    "implementation": str, "length": int, "heads": int, "dim": int, "dtype": str, "direction": str, "causal": bool,
    "device": str, "ms": float, "ms_min": float, "ms_max": float, "calls": int, "ratio": float,
    "tokens_per_second": float, "matmul_share": float, "matmul_gflops": float, "threads": int, "versions": dict,
    "hardware": dict, "commit": str, "engine": str, "layout": str,
}  # fmt: skip


@pytest.fixture(autouse=True)
def short(monkeypatch):
    """Three calls each, and no limit that a busy machine could pass."""
    monkeypatch.setattr(yardsticks, "SIDE", {"cpu": 64, "cuda": 64})
    monkeypatch.setattr(timing, "SHARE", 1e-6)


@pytest.fixture
def no_peers(monkeypatch):
    def missing(module):
        raise ModuleNotFoundError(f"No module named {module!r}", name=module.partition(".")[0])

    monkeypatch.setattr(peers, "import_peer", missing)


def benchmark(*options):
    return main(["benchmark", "attention", *options])


def test_rows_have_their_keys_and_survive_json(tmp_path, capsys, no_peers):
    file = tmp_path / "rows.json"
    options = ("--lengths", "24,32", "--dtype", "fp32,bf16", "--direction", "both", *SMALL)
    assert benchmark(*options, "--json", str(file)) == 0
    assert f"32 rows in {file}" in capsys.readouterr().out
    rows = json.loads(file.read_text())
    write_rows(rows, tmp_path / "rows.jsonl")
    assert [json.loads(line) for line in (tmp_path / "rows.jsonl").read_text().splitlines()] == rows
    assert sorted(file.name for file in tmp_path.iterdir()) == ["rows.json", "rows.jsonl"], "no temporary file is left"
    assert {(row["length"], row["dtype"], row["direction"]) for row in rows} == {
        (length, dtype, direction)
        for length in (24, 32)
        for dtype in ("float32", "bfloat16")
        for direction in ("forward", "forward_backward")
    }
    for row in rows:
        assert set(row) == set(rows[0])
        if row["ms"] is None:
            assert row["implementation"] == "performer-pytorch"
            assert row["reason"] == "not installed: pip install 'protformer[peers]'"
            assert row["ratio"] is row["tokens_per_second"] is row["peak_bytes"] is None
            assert row["calls"] == 0
            continue
        for key, kind in KEYS.items():
            assert isinstance(row[key], kind), key
        assert row["reason"] is None
        assert 0 < row["ms_min"] <= row["ms"] <= row["ms_max"]
        assert row["features"] == (8 if row["implementation"] == "protformer-positive" else None)
        assert row["tokens_per_second"] == pytest.approx(1e3 * row["length"] / row["ms"])
        assert row["io_bytes"] == (8 if row["direction"] == "forward_backward" else 4) * row["length"] * 2 * 8 * (
            4 if row["dtype"] == "float32" else 2
        )
    assert {row["ratio"] for row in rows if row["implementation"] == "sdpa"} == {1.0}


def test_what_is_left_out_is_named(capsys, no_peers, monkeypatch):
    monkeypatch.setattr(group, "available_bytes", lambda device: 4_000_000)
    assert benchmark("--lengths", "400", "--dtype", "fp32", "--direction", "forward", *SMALL) == 0
    told = capsys.readouterr().out
    assert "Left out: performer-pytorch 8" in told
    assert "not installed: pip install 'protformer[peers]'" in told
    assert "Left out: softmax" in told
    assert "a quarter of the free memory is 0.0 GB" in told
    assert "Left out: sdpa" not in told


def test_a_call_over_the_limit_is_not_made():
    rows = run_benchmark(replace(TINY, lengths=(1 << 16,), limit=1e-3, implementations=("protformer", "sdpa")))
    for row in rows:
        assert row["ms"] is None
        assert "over --limit 0.001" in row["reason"]
        assert "as seen at" in row["reason"]


def test_the_cost_of_a_token_is_told_of_long_sequences(capsys):
    assert benchmark("--lengths", "24,2048,4096", "--dtype", "fp32", "--direction", "forward", "--maps", "relu",
                     "--implementations", "protformer", *SMALL) == 0  # fmt: skip
    told = capsys.readouterr().out
    assert "protformer-relu 8, float32 forward: a token costs" in told
    assert "times at 4,096 tokens what it costs at 2,048" in told


def test_causal_attention_stands_beside_both_ways(capsys, no_peers):
    options = ("--causal", "--lengths", "32", "--dtype", "fp32", "--direction", "forward", *SMALL)
    assert benchmark(*options) == 0
    told = capsys.readouterr().out
    assert "forward, causal, 2 heads of 8" in told
    assert "protformer-positive 8 both ways" in told
    assert "protformer-positive 8, float32 causal forward, 32 tokens: " in told
    assert "times as long as both ways" in told


def test_a_map_that_cannot_be_says_why():
    (row,) = run_benchmark(replace(TINY, maps=("hyperbolic",), features=(7,), implementations=("protformer",)))
    assert row["ms"] is None
    assert "even" in row["reason"]


def test_the_crossing_of_powers_is_found():
    lengths = crossover.grid()
    assert lengths[0] == 64
    assert lengths[-1] == 4096
    assert all(1.3 < longer / shorter < 1.6 for shorter, longer in pairwise(lengths))
    ratios = [length / 720 for length in lengths]
    found = crossover.crossing(lengths, ratios)
    assert found.length == pytest.approx(720)
    assert crossover.threshold(found) == 720
    assert crossover.threshold(crossover.crossing(lengths, [1.5] * len(lengths))) == 0
    nowhere = crossover.crossing(lengths, [0.5] * len(lengths))
    assert nowhere == (None, False)
    assert crossover.threshold(nowhere) is None
    assert crossover.crossing(lengths, [100.0, *ratios[1:]]).length == pytest.approx(720), "noise is no crossing"
    assert crossover.is_settled([0.1, 2.1, 2.1])
    assert not crossover.is_settled([9.0, 1.9])
    assert not crossover.is_settled([9.0])


def test_the_crossover_is_searched_and_printed(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(crossover, "LONGEST", 128)
    file = tmp_path / "rows.json"
    options = ("--crossover", "--dtype", "fp32", "--direction", "forward", "--json", str(file), *SMALL)
    assert benchmark(*options) == 0
    told = capsys.readouterr().out
    assert "Crossover with sdpa: float32, forward" in told
    assert "attention.threshold=" in told or "not faster than sdpa at 128 tokens" in told
    rows = json.loads(file.read_text())
    assert {row["kind"] for row in rows} == {"crossover"}, "single sequences are not timed unasked"
    assert [row["length"] for row in rows if row["implementation"] == "sdpa"] == [64, 96, 128][: len(rows) // 2]
    assert all((row["crossover"] is None) == (row["implementation"] == "sdpa") for row in rows)


def test_a_pack_of_the_demo_set(capsys, tmp_path):
    lengths, source = draw_lengths("demo", 4, 0)
    assert draw_lengths("demo", 4, 0) == (lengths, source)
    assert draw_lengths("demo", 4, 1) != (lengths, source)
    assert "SIMULATED" in source
    file = tmp_path / "rows.json"
    options = ("--pack", "demo", "--pack-size", "4", "--dtype", "fp32", "--direction", "forward", "--json", str(file))
    assert benchmark(*options, *SMALL) == 0
    told = capsys.readouterr().out
    assert "SIMULATED" in told
    assert "a pack of 4 takes" in told
    rows = json.loads(file.read_text())
    seen = [(row["implementation"], row["segments"]) for row in rows]
    ours = ["protformer-positive", "protformer-hybrid-positive"]
    assert seen == [*((name, n) for name in ours for n in (4, 1)), ("protformer-exact", 4), ("sdpa", 4)]
    assert {row["length"] for row in rows} == {sum(lengths)}
    assert rows[0]["longest"] == max(lengths)
    assert [row["pack_overhead"] is None for row in rows] == [False, True, False, True, True, True]
    assert rows[0]["pack_overhead"] > 0


def test_a_narrow_terminal_gets_fewer_columns_and_no_cut_figure(capsys):
    rows = run_benchmark(TINY)
    for width in (120, 72):
        print_rows(rows, Console(width=width))
        told = capsys.readouterr().out
        assert "…" not in told
        assert ("min to max" in told) == (width == 120)
        assert "x sdpa" in told


def test_packs_that_cannot_be(tmp_path):
    file = tmp_path / "two.fasta"
    file.write_text(">a\nMKV\n>b\nLLAG\n")
    with pytest.raises(ProtformerError, match="--pack-size 2 at most"):
        draw_lengths(str(file), 3, 0)
    assert sorted(draw_lengths(str(file), 2, 0)[0]) == [5, 6]
    with pytest.raises(ProtformerError, match="does not exist"):
        draw_lengths(str(tmp_path / "none.fasta"), 3, 0)
    assert DEMO.name == "train.fasta"


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["--dtype", "fp12"], "--dtype 'fp12' is not known; there are float32, bfloat16"),
        (["--maps", "possitive"], "--maps 'possitive' is not known; there are positive, hyperbolic"),
        (["--implementations", "flash"], "--implementations 'flash' is not known; there are protformer, "),
        (["--pack", "demo", "--implementations", "softmax"], "--pack times protformer, protformer-hybrid, "),
        (["--direction", "sideways"], "--direction 'sideways' is not known; there are forward, forward_backward, both"),
    ],
)
def test_unknown_names_are_one_sentence(options, told, capsys):
    assert benchmark(*options) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"protformer: {told}")
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--lengths", "1024,none"],
        ["--lengths", "0"],
        ["--features", "-3"],
        ["--limit", "0"],
        ["--limit", "nan"],
        ["--dtype", "fp32,"],
        ["--device", "tpu"],
        ["--pack-size", "x"],
    ],
)
def test_numbers_that_cannot_be_are_2(options, capsys):
    assert benchmark(*options) == 2
    err = capsys.readouterr().err
    assert f"error: argument {options[0]}: " in err
    assert "Traceback" not in err


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there(capsys):
    assert benchmark("--device", "cuda") == 2
    assert "PyTorch sees no CUDA GPU" in capsys.readouterr().err


def test_rows_that_could_not_be_written_are_refused_before_measuring(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("protformer.evaluation.attention_benchmark.run_benchmark", lambda *_: pytest.fail("measured"))
    assert benchmark("--json", str(tmp_path / "none" / "rows.json")) == 1
    assert "does not exist: make it" in capsys.readouterr().err
    assert benchmark("--json", str(tmp_path)) == 1
    assert "is a folder" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["benchmark", "--help"], ["benchmark", "attention", "--help"]])
def test_help(argv, capsys):
    assert main(argv) == 0
    told = capsys.readouterr().out
    assert told.startswith("usage: protformer benchmark")
    assert "None" not in told


def test_what_to_time_must_be_said(capsys):
    assert main(["benchmark"]) == 2
    assert "usage: protformer benchmark" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "shown"),
    [(1234.5, "1,234"), (123.4, "123"), (99.96, "100"), (12.34, "12.3"), (1.234, "1.23"), (0.0123, "0.012")],
)
def test_figures(value, shown):
    assert figure(value) == shown
