"""Several processes: the same figures as one, the same projections on every rank, and jobs of a sweep kept apart.

Through `train.py`, as a user would type it.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import random_corpus
from safetensors.numpy import load_file

pytestmark = pytest.mark.distributed
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def fasta(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("fasta")
    for name, seed, sequences in (("train", 0, 120), ("valid", 1, 33)):
        corpus = random_corpus(sequences, seed=seed)
        text = "".join(f">{corpus.id(i)}\n{corpus.text(i)}\n" for i in range(sequences))
        (folder / f"{name}.fasta").write_text(text)
    return ["data=fasta", f"data.train={folder}/train.fasta", f"data.valid={folder}/valid.fasta"]


def run(*overrides: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    common = [
        "debug=default", "logger=csv", "data.batch_tokens=300", "data.eval_tokens=200", "trainer.max_steps=6",
        "trainer.val_check_interval=3", "trainer.limit_val_batches=1.0", "trainer.limit_test_batches=1.0",
        "optimizer.warmup_steps=0", "evaluate.weights=last", "features.num_features=16", "redraw=every",
        "redraw.every=2",
    ]  # fmt: skip
    sweep = overrides[0] == "-m"
    environment = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    done = subprocess.run(
        [sys.executable, str(ROOT / "train.py"), *([overrides[0]] if sweep else []), *common, *overrides[sweep:]],
        cwd=ROOT,
        env={**environment, "OMP_NUM_THREADS": "1", "PROTFORMER_SHAPE_CHECKS": "0"},
        capture_output=True,
        text=True,
        timeout=400,
    )
    if check:
        assert done.returncode == 0, done.stdout + done.stderr
    return done


def figures(folder: Path) -> dict[str, dict[str, float]]:
    sets = json.loads((folder / "metrics.json").read_text())["sets"]
    return {f"{name} {row['name']}": row["figures"] for name, found in sets.items() for row in found["rows"]}


def test_two_processes_give_the_figures_of_one(fasta, tmp_path):
    run(*fasta, "trainer=cpu", f"hydra.run.dir={tmp_path}/one")
    run(*fasta, "trainer=ddp_cpu", f"hydra.run.dir={tmp_path}/two")
    run(*fasta, "trainer=ddp_cpu", "trainer.accumulate_grad_batches=2", f"hydra.run.dir={tmp_path}/four")
    one = figures(tmp_path / "one")
    world = {
        name: json.loads((tmp_path / name / "metrics.json").read_text())["training"] for name in ("one", "two", "four")
    }
    assert [world[name]["world_size"] for name in world] == [1, 2, 2]
    assert len({world[name]["residues"] for name in world}) == 1
    weights = {name: load_file(tmp_path / name / "model" / "model.safetensors") for name in world}
    for name in ("two", "four"):
        for row, expected in one.items():
            for figure, value in expected.items():
                assert figures(tmp_path / name)[row][figure] == pytest.approx(value, rel=2e-5), (name, row, figure)
        for tensor, values in weights["one"].items():
            np.testing.assert_allclose(weights[name][tensor], values, rtol=2e-3, atol=2e-5, err_msg=tensor)
            if "projection" in tensor:  # redrawn twice; a pure function of the step, the same on every rank count
                np.testing.assert_array_equal(weights[name][tensor], values)
    rows = (tmp_path / "two" / "csv" / "metrics.csv").read_text()
    assert "redraw/draw" in rows


def test_a_sweep_over_rank_counts_keeps_jobs_apart(fasta, tmp_path):
    run("-m", *fasta, "trainer=ddp_cpu", "trainer.devices=1,2", f"hydra.sweep.dir={tmp_path}")
    one, two = figures(tmp_path / "0"), figures(tmp_path / "1")
    assert json.loads((tmp_path / "0" / "metrics.json").read_text())["training"]["world_size"] == 1
    assert json.loads((tmp_path / "1" / "metrics.json").read_text())["training"]["world_size"] == 2
    for row, expected in one.items():
        for figure, value in expected.items():
            assert two[row][figure] == pytest.approx(value, rel=2e-5), (row, figure)


def test_a_failing_job_of_two_processes_does_not_end_the_sweep(fasta, tmp_path):
    # 7 is odd, and trigonometric features come in pairs: the first job fails in both of its processes
    done = run(
        "-m", *fasta, "trainer=ddp_cpu", "features=trigonometric", "features.num_features=7,8",
        f"hydra.sweep.dir={tmp_path}", check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "must be even, not 7" in done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "0" / "metrics.json").exists()
    assert json.loads((tmp_path / "1" / "metrics.json").read_text())["training"]["world_size"] == 2


def test_lightnings_own_launchers_are_refused_with_a_sentence(fasta, tmp_path):
    done = run(*fasta, "trainer=ddp_cpu", "trainer.strategy=ddp_spawn", f"hydra.run.dir={tmp_path}/x", check=False)
    assert done.returncode != 0
    assert "trainer.strategy=ddp" in done.stderr
