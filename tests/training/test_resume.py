"""A run that was interrupted and resumed gives the losses of one that was not, dropout and redraws included."""

import pytest
import torch
from command import train_py, write_fasta  # noqa: F401
from helpers import random_corpus, train

from protformer.data.packing import PackingPlan
from protformer.features import OptimalPositiveFeatures, PositiveFeatures
from protformer.training.callbacks import Throughput
from protformer.training.redraw import RedrawFeatures


def steps_in_first_epoch(batch_tokens: int = 300) -> int:
    return len(PackingPlan(random_corpus().lengths + 2, budget=batch_tokens, seed=3).epoch_steps(0))


@pytest.mark.parametrize("where", ["mid-epoch", "at the epoch's end", "in the second epoch", "before a validation"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_resumed_equals_uninterrupted(tmp_path, where, accumulate):
    first = steps_in_first_epoch()
    assert 3 < first < 8  # so that ten steps cross an epoch's end
    step = {"mid-epoch": 2, "at the epoch's end": first, "in the second epoch": first + 1, "before a validation": 4}[
        where
    ]
    options = {"accumulate_grad_batches": accumulate, "val_check_interval": 4 * accumulate}
    whole, module, _ = train(tmp_path, save_at=step, **options)
    resumed, module_again, trainer = train(tmp_path, ckpt_path=tmp_path / "saved.ckpt", **options)
    assert trainer.global_step == 10
    assert resumed == {s: whole[s] for s in range(step + 1, 11)}  # to the bit
    saved = torch.load(tmp_path / "saved.ckpt", weights_only=True)["callbacks"]["Throughput"]
    callbacks = trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]
    (throughput,) = [callback for callback in callbacks if isinstance(callback, Throughput)]
    assert throughput.whole_seconds > saved["whole_seconds"] > saved["seconds"] > 0
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, module_again.state_dict()[name]), name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_adaptive_redraws_resume(tmp_path, accumulate):
    options = {
        "redraw": {"_target_": "protformer.training.redraw.Adaptive", "every": 1, "rise": 1.0001},
        "model": {"features": lambda **shape: PositiveFeatures(**shape, num_features=32)},
        "accumulate_grad_batches": accumulate,
        "limit_val_batches": 0,
        "val_check_interval": None,
    }
    whole, module, trainer = train(tmp_path, save_at=6, **options)
    steps = redraw_steps(trainer)
    assert any(step < 6 for step in steps)
    assert any(step > 6 for step in steps)
    resumed, module_again, trainer = train(tmp_path, ckpt_path=tmp_path / "saved.ckpt", **options)
    assert redraw_steps(trainer) == steps
    assert resumed == {s: whole[s] for s in range(7, 11)}  # to the bit
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, module_again.state_dict()[name]), name


@pytest.mark.parametrize("accumulate", [1, 2])
def test_moving_statistics_resume(tmp_path, accumulate):
    features = {"features": lambda **shape: OptimalPositiveFeatures(**shape, num_features=8, statistics="moving")}
    options = {"model": features, "accumulate_grad_batches": accumulate, "val_check_interval": 4 * accumulate}
    whole, module, _ = train(tmp_path, save_at=4, max_steps=7, **options)
    resumed, module_again, _ = train(tmp_path, ckpt_path=tmp_path / "saved.ckpt", max_steps=7, **options)
    assert resumed == {s: whole[s] for s in range(5, 8)}  # to the bit
    for name, tensor in module.state_dict().items():
        assert torch.equal(tensor, module_again.state_dict()[name]), name
    assert "model.trunk.encoder.blocks.0.attention.features.moving.average" in module.state_dict()


def redraw_steps(trainer) -> list[int]:
    return next(c for c in trainer.callbacks if isinstance(c, RedrawFeatures)).steps


def test_another_schedule_goes_on_from_the_draw_of_a_checkpoint(tmp_path):
    train(tmp_path, save_at=4, max_steps=5, redraw_every=2)
    adaptive = {"_target_": "protformer.training.redraw.Adaptive", "every": 100, "rise": 2.0}
    _, module, trainer = train(tmp_path, ckpt_path=tmp_path / "saved.ckpt", redraw=adaptive, max_steps=6)
    assert module.model.trunk.encoder.draw == 1  # that of step 3, which the checkpoint after step 4 holds
    assert redraw_steps(trainer) == [2]


def test_checkpoint_holds_plain_values_only(tmp_path):
    train(tmp_path, save_at=2, max_steps=3)
    checkpoint = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 2


def test_dropout_and_redraws_change_the_losses():
    # else the test above could pass without either
    with_dropout, *_ = train(max_steps=6)
    without, *_ = train(max_steps=6, dropout=0.0)
    never, *_ = train(max_steps=6, redraw_every=100)
    assert with_dropout[6] != without[6]
    assert with_dropout[3] == never[3]
    assert with_dropout[6] != never[6]


@pytest.mark.slow  # two runs of the command
def test_other_training_sequences_are_refused(train_py, tmp_path, capsys):  # noqa: F811
    options = ("model=tiny", "trainer=cpu", "logger=none", "trainer.max_steps=2", "evaluate.untrained=false")
    files = (f"data.{name}={write_fasta(tmp_path / f'{name}.fasta')}" for name in ("train", "valid", "test"))
    line = ["data=fasta", *files, *options, "evaluate.floors=false", "hydra.run.dir=out"]
    assert train_py(line) == 0
    again = [*line, "ckpt_path=out/checkpoints/last.ckpt", "trainer.max_steps=3"]
    write_fasta(tmp_path / "train.fasta", 11)
    assert train_py(again) == 1
    said = capsys.readouterr().err
    assert "The checkpoint was trained on other sequences than data.train holds now" in said
    assert "Traceback" not in said
    write_fasta(tmp_path / "train.fasta")
    assert train_py(again) == 0
