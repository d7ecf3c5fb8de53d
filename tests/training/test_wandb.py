"""What a run leaves: an offline W&B run that can be read back, in a run folder of its own, under names without "="."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from command import run_in, write_fasta

WANDB = Path(sys.executable).parent / "wandb"
LINE = [
    "data=fasta", "data.train=p.fasta", "data.valid=p.fasta", "data.batch_tokens=200", "model=tiny", "redraw.every=2",
    "trainer.max_steps=3", "trainer.val_check_interval=2", "trainer.log_every_n_steps=1", "evaluate.floors=false",
]  # fmt: skip


@pytest.fixture(scope="module")
def sweep(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The folder of `-m seed=1,2`, run without an account and without a network."""
    folder = tmp_path_factory.mktemp("sweep")
    write_fasta(folder / "p.fasta")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("WANDB_MODE", "WANDB_API_KEY"):
            patch.delenv(name, raising=False)
        patch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # nobody answers there
        patch.setenv("NETRC", str(folder / "none"))
        with (folder / "err.txt").open("w+") as errors, pytest.MonkeyPatch.context() as inner:
            inner.setattr(sys, "stderr", errors)
            code = run_in(folder, patch)(["-m", *LINE, "seed=1,2", "hydra.sweep.dir=out"])
        assert code == 0
        yield folder


def inspected(run: Path, *flags: str) -> str:
    found = list(run.glob("wandb/offline-run-*"))
    assert len(found) == 1
    command = [str(WANDB), "leet", "inspect", "--json", *flags, str(found[0])]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "WANDB_ERROR_REPORTING": "false"})
    if done.returncode and "No such command" in done.stderr:
        pytest.skip("this wandb has no `leet inspect`")
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def summary(sweep: Path) -> dict[str, Any]:
    return json.loads(inspected(sweep / "out" / "0", "--summary"))


def test_figures(summary):
    figures = summary["summary"]
    for name in (
        "train/loss", "train/perplexity_mask", "train/accuracy_mask", "train/gradient_norm",
        "valid/perplexity_mask", "valid/accuracy_mask", "valid/perplexity_all", "valid/accuracy_all",
        "final/valid/trained/perplexity_mask", "final/valid/trained/accuracy_mask",
        "final/valid/untrained/perplexity_mask",
        "throughput/residues_per_second", "memory/peak_gib", "redraw/draw", "redraw/step",
    ):  # fmt: skip
        assert isinstance(figures[name], int | float), name
    assert figures["throughput/residues_per_second"] > 0
    assert figures["memory/peak_gib"] > 0
    assert (figures["redraw/draw"], figures["redraw/step"]) == (1, 2)
    assert figures["trainer/global_step"] == 3


def test_figures_by_step(sweep):
    records = [json.loads(line) for line in inspected(sweep / "out" / "0").splitlines()]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    losses = {row["trainer/global_step"]: row["train/loss"] for row in history if "train/loss" in row}
    assert len(losses) == 3
    assert all(2 < loss < 5 for loss in losses.values())
    assert [row["redraw/step"] for row in history if "redraw/step" in row] == [2]
    assert any("valid/perplexity_mask" in row and "train/loss" not in row for row in history)


def test_configuration(summary):
    config = summary["config"]
    assert config["seed"] == 1
    assert config["features"]["num_features"] == 64
    assert config["trainer"]["max_steps"] == 3
    assert config["choices"]["attention"] == "performer"
    metrics = json.loads((Path(summary["file"]).parents[2] / "metrics.json").read_text())
    assert config["parameters"] == metrics["parameters"] > 100_000


def test_name_group_and_tags(sweep, summary):
    assert summary["name"] == "masked_residue performer positive tiny seed 1"
    assert summary["project"] == "protformer"
    assert not summary["entity"]
    assert {"data=fasta", "model=tiny", "seed=1"} <= set(summary["tags"])
    runs = [json.loads(line) for line in inspected(sweep / "out" / "0").splitlines()]
    described = next(record["run"] for record in runs if record["type"] == "run")
    assert described.get("run_group") == "out" or described.get("group") == "out", described.keys()


def test_a_sweep_gives_two_closed_runs(sweep, summary):
    other = json.loads(inspected(sweep / "out" / "1", "--summary"))
    assert summary["run_id"] != other["run_id"]
    assert (summary["state"], other["state"]) == ("finished", "finished")
    assert (summary["exit_code"], other["exit_code"]) == (0, 0)
    assert other["config"]["seed"] == 2
    assert "seed=2" in other["tags"]
    assert "seed=1" not in other["tags"]
    assert other["name"] != summary["name"]


def test_the_console_is_quiet(sweep):
    said = (sweep / "err.txt").read_text()
    assert "wandb" not in said
    assert "LeafSpec" not in said


def test_no_written_name_holds_an_equals_sign(sweep):
    written = [path.relative_to(sweep) for path in sweep.rglob("*")]
    names = {path.name for path in written}
    assert {"model.safetensors", "config.json", "config.yaml", "metrics.json", "last.ckpt"} <= names
    assert not [path for path in written if "=" in str(path)]


def test_wandb_mode_is_honoured(tmp_path, monkeypatch):
    write_fasta(tmp_path / "p.fasta")
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert (
        run_in(tmp_path, monkeypatch)([*LINE, "hydra.run.dir=out", "evaluate.untrained=false", "trainer.max_steps=2"])
        == 0
    )
    assert not list(tmp_path.glob("out/wandb/offline-run-*"))
