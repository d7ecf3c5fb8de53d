"""Several processes look at the same rows, take the same decisions and keep the same statistics as one."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from test_distributed import fasta, run  # noqa: F401

pytestmark = pytest.mark.distributed


def logged(folder: Path) -> list[tuple[int, str, float]]:
    """What was logged of the attention and of redraws: step, name, value."""
    rows = csv.DictReader((folder / "csv" / "metrics.csv").open())
    return [
        (int(row["step"]), name, float(value))
        for row in rows
        for name, value in row.items()
        if value and name.startswith(("attention/", "redraw/"))
    ]


def test_processes_and_micro_batches_see_what_one_process_sees(fasta, tmp_path):  # noqa: F811
    options = [
        *fasta, "redraw=adaptive", "redraw.every=1", "redraw.rise=1.02", "diagnostics.every=2", "diagnostics.rows=40",
        "features=optimal", "features.statistics=moving", "features.momentum=0.8", "trainer.max_steps=12",
        "optimizer.lr=1e-2", "evaluate.untrained=false", "trainer.limit_val_batches=1", "data.eval_tokens=2000",
    ]  # fmt: skip
    runs = {
        "one": ["trainer=cpu"],
        "two": ["trainer=ddp_cpu"],
        # more shares than the sequences of a step: some are empty
        "many": ["trainer=ddp_cpu", "trainer.accumulate_grad_batches=8"],
    }
    for name, trainer in runs.items():
        run(*options, *trainer, f"hydra.run.dir={tmp_path}/{name}")
    one, weights = logged(tmp_path / "one"), load_file(tmp_path / "one" / "model" / "model.safetensors")
    redraws = [(step, value) for step, name, value in one if name == "redraw/draw"]
    assert 0 < len(redraws) < 11
    assert any(name == "attention/layer1/head3/z2_p95" for _, name, _ in one)
    assert any("moving.average" in name for name in weights)
    for name in ("two", "many"):
        other = logged(tmp_path / name)
        assert [row[:2] for row in other] == [row[:2] for row in one]
        for (step, figure, value), (_, _, again) in zip(one, other, strict=True):
            assert again == pytest.approx(value, rel=2e-3, abs=1e-5), (name, step, figure)
        for tensor, values in load_file(tmp_path / name / "model" / "model.safetensors").items():
            if "projection" in tensor:
                np.testing.assert_array_equal(values, weights[tensor])
            if "moving" in tensor:
                np.testing.assert_allclose(values, weights[tensor], rtol=5e-3, atol=2e-4, err_msg=tensor)
        made = json.loads((tmp_path / name / "metrics.json").read_text())["training"]
        assert made["redraws"] == len(redraws)


def test_a_run_of_two_processes_resumes(fasta, tmp_path):  # noqa: F811
    options = [
        *fasta, "trainer=ddp_cpu", "redraw=adaptive", "redraw.every=1", "redraw.rise=1.001", "features=optimal",
        "features.statistics=moving", "evaluate.untrained=false", "callbacks.checkpoint.every_steps=5",
        "optimizer.lr=1e-2", "trainer.max_steps=8",
    ]  # fmt: skip
    run(*options, f"hydra.run.dir={tmp_path}/whole")
    checkpoint = tmp_path / "whole" / "checkpoints" / "step_0000005.ckpt"
    run(*options, f"ckpt_path={checkpoint}", f"hydra.run.dir={tmp_path}/resumed")
    whole, resumed = (load_file(tmp_path / name / "model" / "model.safetensors") for name in ("whole", "resumed"))
    for tensor, values in whole.items():
        np.testing.assert_array_equal(resumed[tensor], values, err_msg=tensor)
