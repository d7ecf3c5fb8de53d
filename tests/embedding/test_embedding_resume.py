"""An interrupted run, resumed, gives the same bytes; what is not whole or not the same is never mixed in."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from protformer.embedding import Options, Policies, Watch, embed_fasta
from protformer.embedding.verify import verify
from protformer.errors import ProtformerError

OPTIONS = Options(batch_tokens=64, per_residue=True, pool=("mean",))
FORMATS = ("h5", "parquet", "npz", "safetensors")


@pytest.fixture(autouse=True)
def small_windows(monkeypatch):
    monkeypatch.setattr("protformer.embedding.windows.WINDOW_BATCHES", 2)


@pytest.fixture
def many(fasta) -> Path:
    rng = np.random.default_rng(0)
    lines = []
    for i in range(80):
        sequence = "".join(rng.choice(list("LAGVSERTIDPKQNFYMHWCX"), rng.integers(0, 60)))
        lines.append(f">p{i % 70} record {i}\n{sequence}\n")
    return fasta("".join([*lines, *lines[:10]]), "many.fasta")


class PowerCut(BaseException):
    pass


def cut_after(batches: int) -> Watch:
    left = [batches]

    def on_batch(residues: int) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise PowerCut

    return Watch(on_batch=on_batch)


@pytest.mark.parametrize("ending", FORMATS)
def test_resumed_is_uninterrupted_to_the_byte(ending, many, model_folder, tmp_path):
    if ending == "parquet":
        pytest.importorskip("pyarrow")
    whole, cut = tmp_path / "whole" / f"o.{ending}", tmp_path / "cut" / f"o.{ending}"
    embed_fasta([many], model_folder, whole, options=OPTIONS)
    computed = []
    for batches in (3, 1, 9, 4):
        with pytest.raises(PowerCut):
            embed_fasta([many], model_folder, cut, options=OPTIONS, resume=True, watch=cut_after(batches))
        assert not cut.exists()
        assert cut.with_name(cut.name + ".parts").is_dir()
    report = embed_fasta([many], model_folder, cut, options=OPTIONS, resume=True, watch=Watch(on_batch=computed.append))
    assert 0 < report.resumed_windows < report.windows
    assert 0 < sum(computed) < report.account.computed
    assert sorted(path.name for path in cut.parent.iterdir()) == sorted(path.name for path in whole.parent.iterdir())
    for path in whole.parent.iterdir():
        assert path.read_bytes() == (cut.parent / path.name).read_bytes(), path.name
    assert verify(cut, [many]).fault_count == 0
    again = embed_fasta([many], model_folder, cut, options=OPTIONS, resume=True)
    assert again.complete
    assert again.counts == report.counts


def test_a_shard_that_was_damaged_is_made_again(many, model_folder, tmp_path):
    whole, cut = tmp_path / "whole.h5", tmp_path / "cut.h5"
    embed_fasta([many], model_folder, whole, options=OPTIONS)
    with pytest.raises(PowerCut):
        embed_fasta([many], model_folder, cut, options=OPTIONS, watch=cut_after(9))
    shards = sorted((tmp_path / "cut.h5.parts").glob("*.safetensors"))
    assert len(shards) >= 2
    shards[0].write_bytes(shards[0].read_bytes()[:-7])  # cut short
    content = bytearray(shards[1].read_bytes())
    content[-3] ^= 4  # one bit
    shards[1].write_bytes(content)
    (tmp_path / "cut.h5.parts" / "shard-00000009.part").write_bytes(b"half")
    embed_fasta([many], model_folder, cut, options=OPTIONS, resume=True)
    assert whole.read_bytes() == cut.read_bytes()


def test_what_changed_is_noticed(many, fasta, model_folder, tmp_path, tiny_model):
    out = tmp_path / "o.h5"
    with pytest.raises(PowerCut):
        embed_fasta([many], model_folder, out, options=OPTIONS, watch=cut_after(9))
    with pytest.raises(ProtformerError, match="--resume"):
        embed_fasta([many], model_folder, out, options=OPTIONS)
    for other, word in (
        (Options(batch_tokens=32, per_residue=True, pool=("mean",)), "batch_tokens was 64, now 32"),
        (Options(batch_tokens=64, per_residue=True), "outputs"),
        (Options(batch_tokens=64, per_residue=True, pool=("mean",), policies=Policies(aligned=True)), "aligned"),
    ):
        with pytest.raises(ProtformerError, match=word):
            embed_fasta([many], model_folder, out, options=other, resume=True)
    text = many.read_text()
    for changed in (text.replace("p3 ", "q3 "), text[:-2], text + ">more\nMKV\n"):
        with pytest.raises(ProtformerError, match="another one"):
            embed_fasta([fasta(changed, "changed.fasta")], model_folder, out, options=OPTIONS, resume=True)
    weights = model_folder / "model" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ProtformerError, match="model_hash"):
        embed_fasta([many], model_folder, out, options=OPTIONS, resume=True)
    embed_fasta([many], model_folder, out, options=OPTIONS, force=True)
    assert verify(out, [many]).fault_count == 0
    with pytest.raises(ProtformerError, match="complete, and was made with another"):
        embed_fasta([fasta(text + ">more\nMKV\n", "c.fasta")], model_folder, out, options=OPTIONS, resume=True)


def test_two_runs_never_write_one_output(many, model_folder, tmp_path):
    out = tmp_path / "o.h5"

    def at_once(residues: int) -> None:
        with pytest.raises(ProtformerError, match="Another process"):
            embed_fasta([many], model_folder, out, options=OPTIONS, resume=True)

    embed_fasta([many], model_folder, out, options=OPTIONS, watch=Watch(on_batch=at_once))


@pytest.mark.slow
def test_killed_at_random_and_resumed(many, model_folder, tmp_path):
    # the same by kill -9 of the command, from standard input too
    text = many.read_text() * 12
    many.write_text(text)
    command = [
        sys.executable,
        "-m",
        "protformer.cli.main",
        "embed",
        "--model",
        str(model_folder),
        "--per-residue",
        "--resume",
    ]
    command += ["--batch-tokens", "16"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    begun = time.monotonic()
    subprocess.run([*command, str(many), "-o", str(tmp_path / "whole.h5")], env=environment, check=False)
    usual = time.monotonic() - begun
    rng = np.random.default_rng(1)
    for source in (str(many), "-"):
        out = tmp_path / f"cut{source == '-'}.h5"
        kills, before = 0, set(tmp_path.iterdir())
        for _ in range(40):
            with many.open() as stdin:
                process = subprocess.Popen([*command, source, "-o", str(out)], stdin=stdin, env=environment)
                deadline = time.monotonic() + rng.uniform(0.5, 1.2) * usual
                while process.poll() is None and time.monotonic() < deadline:
                    if kills == 0 and set(tmp_path.iterdir()) != before:
                        break  # at its first file: on a machine that has become faster since, the run might just end
                    time.sleep(0.02)
                if process.poll() is not None:
                    break
                process.send_signal(signal.SIGKILL)
                process.wait()
                kills += 1
        assert kills >= 1
        assert out.read_bytes() == (tmp_path / "whole.h5").read_bytes()


@pytest.mark.distributed
def test_two_processes_write_the_same_file(many, model_folder, tmp_path):
    for count in (1, 2):
        embed_fasta([many], model_folder, tmp_path / f"{count}" / "o.h5", options=OPTIONS, devices=count)
    for path in (tmp_path / "1").iterdir():
        assert path.read_bytes() == (tmp_path / "2" / path.name).read_bytes()
