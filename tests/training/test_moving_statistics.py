"""Moving statistics move once an optimiser step, from all that the step has seen, however it is cut."""

from typing import Any

import pytest
import torch
from command import train_py, write_fasta  # noqa: F401
from helpers import random_corpus, train

from protformer.errors import ProtformerError
from protformer.features import DenseFeatures, OptimalPositiveFeatures, PositiveFeatures
from protformer.features.moments import MovingMoments
from protformer.training.moving_statistics import MovingStatistics
from protformer.training.tasks import ResiduePrediction, Split

CAUSAL = ResiduePrediction(causal=True)


def moving(map_class: Any = OptimalPositiveFeatures, **options: Any) -> dict[str, Any]:
    settings = {"num_features": 8, "statistics": "moving", "centred": True, "momentum": 0.8, **options}
    return {"features": lambda **shape: map_class(**shape, **settings)}


def averages(module) -> list[MovingMoments]:
    return [m for m in module.modules() if isinstance(m, MovingMoments)]


@pytest.mark.parametrize("map_class", [OptimalPositiveFeatures, DenseFeatures])
def test_micro_batches_move_the_average_as_one_batch_does(map_class):
    runs = []
    for accumulate in (1, 3):
        _, module, _ = train(
            task=CAUSAL, model=moving(map_class), max_steps=3, dropout=0.0, accumulate_grad_batches=accumulate,
            val_check_interval=2 * accumulate, gradient_clip_val=None,
        )  # fmt: skip
        runs.append(averages(module))
    for one, parts in zip(*runs, strict=True):
        assert float(one.updates) == float(parts.updates) == 3  # and not once a micro-batch, nor in validation
        assert one.average.abs().max() > 0.01
        torch.testing.assert_close(one.average, parts.average, rtol=1e-3, atol=1e-5)
        assert float(one.count) == float(parts.count) == 0


def test_the_average_is_that_of_the_queries_and_keys(monkeypatch):
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    observe = MovingMoments.observe

    def noted(self, query, key):
        seen.append((query.detach().clone(), key.detach().clone()))
        observe(self, query, key)

    monkeypatch.setattr(MovingMoments, "observe", noted)
    _, module, _ = train(model=moving(momentum=0.0), max_steps=1, accumulate_grad_batches=2, val_check_interval=2)
    layers = averages(module)
    assert len(seen) == 4  # two micro-batches, two layers
    for layer, held in enumerate(layers):
        query, key = (torch.cat(parts) for parts in zip(seen[layer], seen[layer + 2], strict=True))
        expected = torch.stack([query.mean(0), query.square().mean(0), key.mean(0), key.square().mean(0)])
        torch.testing.assert_close(held.average, expected, rtol=1e-5, atol=1e-6)


def test_recomputed_activations_leave_the_average_as_it_is():
    _, module, _ = train(model=moving(), max_steps=3)
    _, again, _ = train(model={**moving(), "checkpoint_activations": True}, max_steps=3)
    for one, other in zip(averages(module), averages(again), strict=True):
        torch.testing.assert_close(one.average, other.average, rtol=1e-6, atol=1e-7)


def test_a_share_without_a_sequence_is_not_observed():
    splits = {"train": Split("train", random_corpus(3))}
    runs = []
    for accumulate in (1, 5):  # five micro-batches of three sequences: two have none
        _, module, _ = train(
            model=moving(momentum=0.0), splits=splits, max_steps=1, dropout=0.0, limit_val_batches=0,
            accumulate_grad_batches=accumulate, val_check_interval=None,
        )  # fmt: skip
        runs.append(averages(module))
    for one, parts in zip(*runs, strict=True):
        torch.testing.assert_close(one.average, parts.average, rtol=1e-5, atol=1e-6)


def test_only_runs_with_moving_statistics_have_the_callback():
    def has_it(**options: Any) -> bool:
        _, _, trainer = train(max_steps=1, **options)
        return any(isinstance(c, MovingStatistics) for c in trainer.callbacks)  # pyright: ignore

    assert has_it(model=moving())
    assert not has_it(model=moving(statistics="segment"))
    assert not has_it(model=moving(PositiveFeatures, centred=False))  # looks at no statistics
    assert not has_it(model=moving(), module_options={"freeze_trunk": True})


def test_a_frozen_trunk_keeps_its_average():
    _, module, _ = train(model=moving(), module_options={"freeze_trunk": True}, max_steps=2)
    assert all(float(m.updates) == float(m.count) == 0 for m in averages(module))


def test_statistics_that_the_precision_rounds_are_refused():
    with pytest.raises(ProtformerError, match=r"trainer\.precision=bf16-true .* features\.statistics=segment"):
        train(model=moving(), max_steps=1, precision="bf16-true")


def test_causal_training_asks_for_moving_statistics(train_py, tmp_path, capsys):  # noqa: F811
    fasta = write_fasta(tmp_path / "train.fasta", 40)
    command = [
        "data=fasta", *(f"data.{split}={fasta}" for split in ("train", "valid", "test")), "debug=default",
        "trainer=cpu", "data.batch_tokens=300", "features=optimal", "features.num_features=8", "task=next_residue",
        "evaluate.untrained=false", "hydra.run.dir=run",
    ]  # fmt: skip
    assert train_py(command) == 1
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("protformer: ")]
    assert said == [
        "protformer: OptimalPositiveFeatures takes statistics of whole segments, which causal attention may not see:"
        " use features.statistics=moving"
    ]
    assert not (tmp_path / "run" / "traceback.txt").exists()
