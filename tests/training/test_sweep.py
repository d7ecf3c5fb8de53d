"""Members of a sweep: named by their configuration, skipped when done, resumed when cut, recorded to compare."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from command import ROOT, train_py  # noqa: F401
from omegaconf import OmegaConf
from test_distributed import fasta  # noqa: F401

from protformer.errors import ProtformerError
from protformer.training import entry
from protformer.training.sweep import (
    claimed,
    config_hash,
    finished_figures,
    register_resolver,
    warn_of_changes,
    written_configuration,
)

LINE = [
    "experiment=compare_attention", "method=exact,performer_relu", "seed=0", "model=tiny", "logger=none", "trainer=cpu",
    "data.batch_tokens=300", "data.eval_tokens=600", "trainer.max_steps=12", "trainer.val_check_interval=4",
    "features.num_features=16", "optimizer.warmup_steps=0", "redraw.every=5", "evaluate.sample=4",
]  # fmt: skip


def test_the_hash_is_of_what_changes_figures_alone():
    config = {
        "seed": 0,
        "trainer": {"max_steps": 3, "devices": 1},
        "logger": {"mode": None},
        "paths": {"root_dir": "."},
    }
    same = {"trainer": {"devices": 1, "max_steps": 3}, "seed": 0, "logger": None, "paths": {"root_dir": "elsewhere"}}
    assert config_hash(config) == config_hash(same)
    assert len(config_hash(config)) == 12
    assert config_hash({**config, "seed": 1}) != config_hash(config)
    register_resolver()
    whole = OmegaConf.create({**config, "hydra": {"sweep": {"subdir": "${config_hash:}"}}})
    assert whole.hydra.sweep.subdir == config_hash(config)


def test_a_folder_without_a_record_has_yet_to_run_and_a_damaged_one_is_named(tmp_path):
    assert finished_figures(tmp_path) is None
    (tmp_path / "metrics.json").write_text('{"sets": {"valid": {"rows": [{"figures": {"perplexity_mask": 9.0}}]}}}')
    assert finished_figures(tmp_path) == {"valid": {"perplexity_mask": 9.0}}
    (tmp_path / "metrics.json").write_text('{"sets": ')
    with pytest.raises(ProtformerError, match="remove it"):
        finished_figures(tmp_path)


def test_members_are_skipped_when_done_and_resumed_when_not(train_py, monkeypatch, capsys, tmp_path):  # noqa: F811
    started = []

    def run(settings, processes, *, alone):
        started.append((settings, alone))
        return {}

    monkeypatch.setattr(entry, "run", run)
    line = ["-m", *LINE, "hydra.sweep.dir=out"]
    assert train_py(line) == 0
    (first, alone), (second, _) = started
    assert alone
    folders = [Path(settings.run_dir) for settings in (first, second)]
    assert sorted(folder.name for folder in (tmp_path / "out").iterdir() if folder.is_dir()) == sorted(
        folder.name for folder in folders
    )
    (folders[0] / "metrics.json").write_text('{"sets": {}}')
    (folders[1] / "checkpoints").mkdir()
    checkpoint = folders[1] / "checkpoints" / "last.ckpt"
    checkpoint.touch()
    started.clear()
    assert train_py(line) == 1
    assert "last.ckpt is damaged: remove it" in capsys.readouterr().err
    assert "is damaged" in (folders[1] / "failure.txt").read_text()
    with ZipFile(checkpoint, "w"):  # as PyTorch's are
        pass
    assert train_py(line) == 0
    ((settings, _),) = started
    assert settings.config["ckpt_path"] == str(folders[1] / "checkpoints" / "last.ckpt")
    assert settings.config["attention"]["_target_"].endswith("FavorAttention")
    # another setting is another member
    started.clear()
    assert train_py([*line, "trainer.max_steps=13"]) == 0
    assert len(started) == 2


def test_data_that_changed_under_its_path_is_told(train_py, monkeypatch, capsys, tmp_path):  # noqa: F811
    # the folder's name is of paths, so the figures of the old file would pass for those of the new one
    data = tmp_path / "train.fasta"
    data.write_text(">a\nMKV\n")
    monkeypatch.setattr(entry, "run", lambda settings, processes, *, alone: {})
    line = ["-m", *LINE, "method=exact", "data=fasta", f"data.train={data}", "hydra.sweep.dir=out"]
    assert train_py(line) == 0
    (member,) = (folder for folder in (tmp_path / "out").iterdir() if folder.is_dir())
    checkpoint, record = member / "checkpoints" / "last.ckpt", member / "metrics.json"
    checkpoint.parent.mkdir()
    with ZipFile(checkpoint, "w"):
        pass
    for result in (checkpoint, record):  # a record comes before a checkpoint
        if result == record:
            record.write_text('{"sets": {}}')
        written = result.stat().st_mtime
        os.utime(data, (written - 10, written - 10))
        assert train_py(line) == 0
        assert "Changed after" not in "".join(capsys.readouterr())
        os.utime(data, (written + 10, written + 10))
        assert train_py(line) == 0
        said = "".join(capsys.readouterr())
        assert "Changed after" in said
        assert f"{result.name} was written: {data}." in said


def test_weights_that_changed_under_their_path_are_told(caplog, tmp_path):
    result, run = tmp_path / "metrics.json", tmp_path / "run"
    result.touch()
    (run / "model").mkdir(parents=True)
    weights = run / "model" / "model.safetensors"
    (run / "model" / "config.json").touch()
    weights.touch()
    written = result.stat().st_mtime
    for later in (-10, 10):
        os.utime(weights, (written + later, written + later))
        caplog.clear()
        warn_of_changes(result, {"init_from": str(run)})
        assert (f"was written: {weights}." in caplog.text) == (later > 0)
    caplog.clear()
    warn_of_changes(result, {"init_from": str(tmp_path / "gone")})
    warn_of_changes(result, {"init_from": None})
    assert caplog.text == ""


@pytest.mark.parametrize("damaged", [b"data: [train.fasta\n", b"\xff\xfe\x00", b"data: ${nowhere\n"])
def test_a_damaged_configuration_of_a_member_that_ended_is_told(damaged, caplog, tmp_path):
    (tmp_path / "config.yaml").write_bytes(damaged)
    assert written_configuration(tmp_path) == {}
    assert "config.yaml is damaged" in caplog.text
    assert "cannot be told" in caplog.text


def test_two_processes_never_run_one_member(tmp_path):
    hold = (
        "import sys, time; from pathlib import Path; from protformer.training.sweep import claimed\n"
        "with claimed(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    member = tmp_path / "0123456789ab"
    other = subprocess.Popen([sys.executable, "-c", hold, str(member)], stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert other.stdout is not None
    assert other.stdout.readline() == "held\n"
    with (
        pytest.raises(ProtformerError, match=r"Another process is running this member .*0123456789ab"),
        claimed(member),
    ):
        pass
    other.kill()  # and its claim ends, with no word of it
    other.wait()
    with claimed(member):
        pass


def sweep(folder: Path, data: list[str], *overrides: str) -> subprocess.Popen[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("WORLD_SIZE", "RANK", "LOCAL_RANK")}
    return subprocess.Popen(
        [sys.executable, str(ROOT / "train.py"), "-m", *LINE, *data, *overrides, f"hydra.sweep.dir={folder}"],
        env={**environment, "OMP_NUM_THREADS": "1", "PROTFORMER_SHAPE_CHECKS": "0"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def read_proteins(folder: Path) -> list[dict[str, str]]:
    with (folder / "per_protein.tsv").open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


@pytest.mark.slow  # five processes that import PyTorch
def test_a_killed_sweep_ends_as_one_that_was_not(fasta, tmp_path):  # noqa: F811
    bins = tmp_path / "bins.tsv"
    bins.write_text("id\tbin\n" + "".join(f"p{i}\t{'even' if i % 2 == 0 else 'odd'}\n" for i in range(40)))
    more = [f"evaluate.bins={bins}"]
    whole = sweep(tmp_path / "whole", fasta, *more)
    cut = sweep(tmp_path / "cut", fasta, *more)
    while cut.poll() is None and not list((tmp_path / "cut").glob("*/checkpoints/last.ckpt")):
        time.sleep(0.02)
    os.killpg(cut.pid, signal.SIGKILL)
    cut.communicate()
    resumed = sweep(tmp_path / "cut", fasta, *more)
    said, _ = resumed.communicate(timeout=300)
    assert resumed.returncode == 0, said
    output, _ = whole.communicate(timeout=300)
    assert whole.returncode == 0, output
    folders = sorted(folder.name for folder in (tmp_path / "whole").iterdir() if folder.is_dir())
    assert len(folders) == 2
    for name in folders:
        one, two = (json.loads((tmp_path / which / name / "metrics.json").read_text()) for which in ("whole", "cut"))
        assert one["sets"] == two["sets"]
        assert one["comparison"] == two["comparison"]
        for a, b in zip(one["curve"], two["curve"], strict=True):
            assert [a[key] for key in ("step", "residues", "figures")] == [
                b[key] for key in ("step", "residues", "figures")
            ]
        assert [point["step"] for point in one["curve"]] == [0, 4, 8, 12]
        assert read_proteins(tmp_path / "whole" / name) == read_proteins(tmp_path / "cut" / name)
        check_record(one, read_proteins(tmp_path / "whole" / name))
    methods = {json.loads((tmp_path / "whole" / n / "metrics.json").read_text())["method"] for n in folders}
    assert methods == {"exact", "performer-relu"}


@pytest.mark.slow  # two processes that import PyTorch
def test_a_sweep_that_is_asked_to_end_starts_no_further_member(fasta, tmp_path):  # noqa: F811
    asked = sweep(tmp_path, fasta, "trainer.max_steps=100000")
    while asked.poll() is None and not list(tmp_path.glob("*/checkpoints/last.ckpt")):
        time.sleep(0.02)
    os.kill(asked.pid, signal.SIGTERM)  # the parent alone, as a batch system may do
    said, _ = asked.communicate(timeout=60)
    assert asked.returncode == 143, said
    assert "The same command line goes on with this sweep." in said
    assert len(list(tmp_path.glob("*/config.yaml"))) == 1


@pytest.mark.slow  # three processes that import PyTorch
def test_under_submitit_members_are_jobs_and_a_failure_is_told(fasta, tmp_path):  # noqa: F811
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher")
    line = ["hydra/launcher=submitit_local", "method=exact"]
    launched = sweep(tmp_path, fasta, *line, "seed=0,-1")
    said, _ = launched.communicate(timeout=300)
    assert launched.returncode == 1, said  # (a job that failed used to be lost: exit code 0)
    assert "seed=-1: write a whole number" in said
    assert "Traceback" not in said
    assert len(list(tmp_path.glob("*/metrics.json"))) == 1
    again = sweep(tmp_path, fasta, *line, "seed=0")
    said, _ = again.communicate(timeout=300)
    assert again.returncode == 0, said
    logs = "".join(file.read_text() for file in tmp_path.glob(".submitit/*/*_log.out"))
    assert "done already" in logs


def check_record(metrics: dict, proteins: list[dict[str, str]]) -> None:
    """Figures of the whole set and of each bin are those of the proteins."""
    found = metrics["sets"]["valid"]
    assert len(proteins) == found["sequences"] == 4
    assert metrics["comparison"]["data"]["valid"]["sampled_from"] > 4
    assert "sampled_from" not in metrics["comparison"]["data"]["train"]

    def figures(rows: list[dict[str, str]]) -> list[float]:
        nll, targets, correct = (
            np.array([float(row[column]) for row in rows]) for column in ("nll", "targets", "correct")
        )
        return [np.exp(nll.sum() / targets.sum()), correct.sum() / targets.sum()]

    trained = found["rows"][-1]["figures"]
    assert [trained["perplexity_mask"], trained["accuracy_mask"]] == pytest.approx(figures(proteins), rel=1e-5)
    assert trained["perplexity_mask_low"] < trained["perplexity_mask"] < trained["perplexity_mask_high"]
    for bin_name, binned in found["by_bin"].items():
        rows = [row for row in proteins if row["bin"] == bin_name]
        assert len(rows) == binned["proteins"]
        trained = binned["rows"][-1]["figures"]
        assert [trained["perplexity_mask"], trained["accuracy_mask"]] == pytest.approx(figures(rows), rel=1e-5)
