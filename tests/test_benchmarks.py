"""The benchmarks run at a tiny size, and what they compare holds the same proteins and targets."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from protformer.data.corpus import Corpus
from protformer.data.objectives import MaskedResidues

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
SEQUENCES = ["MKVLATGWYR" * n for n in (1, 5, 2, 9, 3, 4, 7)]


@pytest.fixture
def contenders(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("contenders")


def test_a_padded_batch_shows_the_same_tokens_and_targets(contenders):
    corpus = Corpus.from_sequences(map(str, range(len(SEQUENCES))), SEQUENCES)
    packed = contenders.pack(MaskedResidues(corpus, seed=0), np.arange(len(SEQUENCES)))
    padded = contenders.pad(packed)
    assert padded.input_ids.shape == (len(SEQUENCES), 92)
    assert torch.equal(padded.input_ids[padded.attention_mask.bool()], packed.tokens)
    assert torch.equal(padded.labels[padded.labels != -100], packed.targets)


def test_sorted_batches_come_from_every_stratum_of_lengths(contenders):
    lengths = np.random.default_rng(0).integers(10, 500, 3000)
    batches = contenders.draw_sorted_batches(lengths, 2000, 8, 0)
    longest = [int(lengths[batch].max()) for batch in batches]
    assert longest == sorted(longest)
    assert longest[0] < 250 < 450 < longest[-1]
    for batch in batches:
        assert lengths[batch].sum() <= 2000
        assert lengths[batch].max() * len(batch) < 1.1 * lengths[batch].sum()  # next to no padding


@pytest.mark.slow
def test_a_training_step_is_measured(tmp_path):
    pytest.importorskip("transformers")
    rows_file = tmp_path / "rows.json"
    command = [sys.executable, str(BENCHMARKS / "training_step.py"), "--model", "tiny", "--precision", "fp32"]
    command += ["--batch-tokens", "512", "--batches", "2", "--repeats", "1", "--threads", "1", "--json", str(rows_file)]
    environment = {name: value for name, value in os.environ.items() if name != "PROTFORMER_SHARED_DATA"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "SIMULATED" in done.stdout
    assert list(tmp_path.iterdir()) == [rows_file]
    rows = json.loads(rows_file.read_text())
    assert [row["batching"] for row in rows] == ["packed"] * 3 + ["padded, sorted", "padded, file order"]
    assert len({row["residues"] for row in rows}) == 1
    assert rows[3]["ratio_to_hf_sorted"] == 1.0
    assert rows[0]["rows_per_token"] == rows[2]["rows_per_token"] == 1.0 <= rows[4]["rows_per_token"]
    assert all(row["residues_per_second"] > 0 for row in rows)
