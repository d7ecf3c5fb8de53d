"""Diagnostics look and change nothing: not the weights, not the random state, not the moving statistics."""

import logging
import os
import subprocess
import sys
import textwrap
from typing import Any

import numpy as np
import pytest
import torch
from command import ROOT, train_py, write_fasta  # noqa: F401
from helpers import random_corpus, train
from pytorch_lightning.loggers import CSVLogger

from protformer.attention import HybridAttention, ReformerAttention
from protformer.features import OptimalPositiveFeatures, TrigonometricFeatures
from protformer.training import probe as probe_module
from protformer.training.attention_diagnostics import AttentionDiagnostics
from protformer.training.probe import AttentionProbe
from protformer.training.tasks import ResiduePrediction, Split

EACH_STEP = {"every": 1}
MOVING = {"features": lambda **shape: OptimalPositiveFeatures(**shape, num_features=8, statistics="moving")}


class Recorder(CSVLogger):
    """What was logged, by step."""

    def __init__(self, folder) -> None:
        super().__init__(str(folder))
        self.rows: dict[int, dict[str, float]] = {}

    def log_metrics(self, metrics: dict[str, Any], step: int | None = None) -> None:  # pyright: ignore
        assert step is not None
        self.rows.setdefault(step, {}).update(metrics)

    def of(self, step: int) -> dict[str, float]:
        return {name: value for name, value in self.rows.get(step, {}).items() if name.startswith("attention/")}


def probe_of(trainer) -> AttentionProbe:
    return next(c for c in trainer.callbacks if isinstance(c, AttentionDiagnostics)).probe


def same_weights(one, other) -> bool:
    theirs = other.state_dict()
    return all(torch.equal(tensor, theirs[name]) for name, tensor in one.state_dict().items())


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"model": MOVING, "accumulate_grad_batches": 2, "val_check_interval": 4},
        {"model": {"checkpoint_activations": True}, "task": ResiduePrediction(causal=True)},
        {"module_options": {"freeze_trunk": True}},
    ],
    ids=["dropout", "moving statistics and micro-batches", "recomputed activations, causal", "frozen trunk"],
)
def test_training_is_the_same_to_the_bit_with_diagnostics(tmp_path, options):
    recorder = Recorder(tmp_path)
    losses, module, _ = train(max_steps=4, **options)
    watched, module_again, _ = train(max_steps=4, diagnostics=EACH_STEP, logger=recorder, **options)
    assert recorder.of(3)
    assert losses == watched
    assert same_weights(module, module_again)


@pytest.mark.slow  # a compiler, in a process of its own
def test_a_compiled_step_is_the_same_with_diagnostics():
    # in a process of its own: jaxtyping's hook wraps every function, and a compiler cannot see through it
    program = """
        import functools
        import torch
        from helpers import train
        from torch._dynamo.utils import counters

        torch.set_num_threads(1)
        torch.compile = functools.partial(torch.compile, backend="aot_eager")
        runs = []
        for every in (0, 1):
            torch._dynamo.reset()
            counters.clear()
            losses, module, _ = train(
                max_steps=4, diagnostics={"every": every}, module_options={"compile_model": True}
            )
            runs.append((losses, module.state_dict(), counters["stats"]["unique_graphs"]))
        (losses, weights, graphs), (watched, weights_again, graphs_again) = runs
        assert losses == watched
        assert all(torch.equal(tensor, weights_again[name]) for name, tensor in weights.items())
        assert graphs == graphs_again > 0, (graphs, graphs_again)  # nothing was compiled anew
    """
    environment = {**os.environ, "PROTFORMER_SHAPE_CHECKS": "0", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)],
        env={**environment, "PYTHONPATH": str(ROOT / "tests" / "training")},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]


def test_a_look_leaves_no_trace():
    _, module, trainer = train(max_steps=2, diagnostics=EACH_STEP, model=MOVING)
    trunk = module.model.trunk
    trunk.train()
    trunk.encoder.blocks[1].eval()  # pyright: ignore[reportIndexIssue]
    modes = [m.training for m in module.modules()]
    state = {name: tensor.clone() for name, tensor in trunk.named_buffers()}
    before = torch.get_rng_state()
    numbers = np.random.get_state()[1].copy()  # pyright: ignore
    assert probe_of(trainer).measure(trainer, step=7) is not None
    assert torch.equal(before, torch.get_rng_state())
    assert (numbers == np.random.get_state()[1]).all()  # pyright: ignore
    assert modes == [m.training for m in module.modules()]
    assert all(torch.equal(state[name], tensor) for name, tensor in trunk.named_buffers())
    assert not any(m._forward_pre_hooks for m in module.modules())


def test_what_is_logged(tmp_path):
    recorder = Recorder(tmp_path)
    features = {"features": lambda **shape: TrigonometricFeatures(**shape, num_features=64)}
    train(max_steps=6, diagnostics={"every": 3}, logger=recorder, model=features, accumulate_grad_batches=2)
    assert [bool(recorder.of(step)) for step in range(7)] == [True, False, False, True, False, False, False]
    logged = recorder.of(3)
    figures = [
        "distance", "distance_uniform", "z2_mean", "z2_p95", "effective_features", "log10_denominator_min",
        "negative_share",
    ]  # fmt: skip
    heads = [f"attention/layer{layer}/head{head}/{f}" for layer in (0, 1) for head in (0, 1) for f in figures]
    means = [f"attention/{where}{f}" for where in ("", "layer0/", "layer1/") for f in figures[:2]]
    assert sorted(logged) == sorted(heads + means)
    assert all(np.isfinite(value) for value in logged.values())
    of_heads = [logged[f"attention/layer{layer}/head{head}/distance"] for layer in (0, 1) for head in (0, 1)]
    assert logged["attention/layer1/distance"] == pytest.approx(np.mean(of_heads[2:]))
    assert logged["attention/distance"] == pytest.approx(np.mean(of_heads))
    assert recorder.of(0) != logged


def test_ranks_share_the_rows_of_one_process():
    _, _, trainer = train(max_steps=1, diagnostics=EACH_STEP)
    probe = probe_of(trainer)
    for step in range(6):
        count, whole = probe._choose(step, 0, 1)
        assert whole is not None
        assert count == len(whole.rows) == 16
        shares = [share for rank in range(3) if (share := probe._choose(step, rank, 3)[1]) is not None]
        assert sorted(torch.cat([share.places for share in shares]).tolist()) == list(range(16))
        assert sum(len(share.tokens) for share in shares) == len(whole.tokens)
        for share in shares:
            assert torch.equal(share.tokens[share.rows], whole.tokens[whole.rows[share.places]])
            assert torch.equal(share.picks, whole.picks[share.places])
            assert share.cu_seqlens[-1] == len(share.tokens)


def test_rows_are_those_of_the_step_that_is_to_be_taken():
    _, _, trainer = train(max_steps=1, diagnostics={**EACH_STEP, "tokens": 10_000})
    probe = probe_of(trainer)
    plan, objective = probe.data.plans["train"], probe.data.objectives["train"]
    for step in (0, 2, 9):
        epoch, place = plan.locate(step)
        shown = [objective.example(int(r), epoch).tokens for r in plan.epoch_steps(epoch)[place]]
        share = probe._choose(step, 0, 1)[1]
        assert share is not None
        assert share.tokens.tolist() == np.concatenate(shown).tolist()
    assert not torch.equal(probe._choose(0, 0, 1)[1].rows, probe._choose(2, 0, 1)[1].rows)  # pyright: ignore


def test_a_long_sequence_is_looked_at_by_its_first_tokens(monkeypatch):
    monkeypatch.setattr(probe_module, "LONGEST", 30)
    splits = {"train": Split("train", random_corpus(1, longest=90, seed=3))}
    assert splits["train"].corpus.lengths[0] > 40
    _, _, trainer = train(max_steps=1, diagnostics={**EACH_STEP, "tokens": 20}, splits=splits, limit_val_batches=0)
    count, share = probe_of(trainer)._choose(0, 0, 1)
    assert share is not None
    assert (count, share.cu_seqlens.tolist()) == (16, [0, 30])


def test_hybrid_attention_is_looked_at_where_it_estimates(tmp_path):
    def hybrid(threshold: int):
        return {"attention": lambda **shape: HybridAttention(**shape, threshold=threshold)}

    recorder = Recorder(tmp_path)
    _, _, trainer = train(max_steps=3, diagnostics=EACH_STEP, logger=recorder, model=hybrid(25))
    for step in range(3):
        share = probe_of(trainer)._choose(step, 0, 1)[1]
        assert share is not None
        assert share.cu_seqlens.diff().min() >= 25
        assert recorder.of(step)["attention/distance"] > 0
    recorder = Recorder(tmp_path)
    redraw = {"_target_": "protformer.training.redraw.Adaptive", "every": 1}
    train(max_steps=3, diagnostics=EACH_STEP, logger=recorder, model=hybrid(1000), redraw=redraw)
    assert not any(recorder.of(step) for step in range(3))  # all is exact


def test_exact_attention_has_nothing_to_diagnose(caplog):
    with caplog.at_level(logging.WARNING):
        train(max_steps=1, exact=True, diagnostics=EACH_STEP)
    said = [r.getMessage() for r in caplog.records if "diagnostics" in r.getMessage()]
    assert said == ["This attention has no random features to diagnose: diagnostics.every has no effect."]


def test_adaptive_redrawing_of_what_has_no_error_is_told(caplog):
    def reformer(*, num_heads: int, head_dim: int, causal: bool, **_: Any) -> ReformerAttention:
        return ReformerAttention(num_heads=num_heads, head_dim=head_dim, causal=causal)

    redraw = {"_target_": "protformer.training.redraw.Adaptive", "every": 1}
    with caplog.at_level(logging.WARNING):
        train(max_steps=1, redraw=redraw, model={"attention": reformer})
    said = [r.getMessage() for r in caplog.records if "redraw=adaptive" in r.getMessage()]
    assert len(said) == 1
    assert "ReformerAttention has none: it keeps what it drew first" in said[0]


@pytest.mark.parametrize("bad", [{"every": -1}, {"every": 1, "rows": 0}, {"every": 1, "tokens": 0}])
def test_settings_that_cannot_be(bad):
    with pytest.raises(ValueError, match="diagnostics"):
        train(max_steps=1, diagnostics=bad)


def test_the_command_logs_them(train_py, tmp_path):  # noqa: F811
    fasta = write_fasta(tmp_path / "train.fasta", 40)
    files = [f"data.{split}={fasta}" for split in ("train", "valid", "test")]
    command = [
        "data=fasta", *files, "debug=default", "logger=csv", "trainer=cpu", "data.batch_tokens=300",
        "features.num_features=8", "diagnostics.every=2", "redraw=adaptive", "redraw.every=2", "hydra.run.dir=run",
        "evaluate.untrained=false",
    ]  # fmt: skip
    assert train_py(command) == 0
    header, *rows = (tmp_path / "run" / "csv" / "metrics.csv").read_text().splitlines()
    assert {"attention/distance", "attention/layer1/head3/z2_p95", "redraw/probe"} <= set(header.split(","))
    measured = header.split(",").index("attention/distance")
    assert sum(bool(row.split(",")[measured]) for row in rows) == 2  # before steps 0 and 2
