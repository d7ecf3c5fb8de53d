"""Redraw schedules are pure functions of the optimiser step."""

import pytest
from helpers import train

from protformer.training.redraw import Every, Geometric, Never


def test_schedules():
    assert [Never().draw_at(s) for s in (0, 10, 10**6)] == [0, 0, 0]
    assert [Every(3).draw_at(s) for s in range(8)] == [0, 0, 0, 1, 1, 1, 2, 2]
    geometric = Geometric(every=2, ratio=2.0)
    assert [geometric.draw_at(s) for s in range(10)] == [0, 0, 1, 1, 2, 2, 2, 2, 3, 3]


@pytest.mark.parametrize("bad", [lambda: Every(0), lambda: Geometric(every=0), lambda: Geometric(ratio=1.0)])
def test_schedules_that_cannot_be(bad):
    with pytest.raises(ValueError, match="every"):
        bad()


@pytest.mark.parametrize("accumulate", [1, 3])
def test_redraws_happen_at_optimiser_steps_and_not_in_evaluation(accumulate):
    _, module, trainer = train(accumulate_grad_batches=accumulate, val_check_interval=4 * accumulate)
    callback = next(c for c in trainer.callbacks if hasattr(c, "schedule"))  # pyright: ignore[reportAttributeAccessIssue]
    assert callback.steps == [3, 6, 9]
    assert module.model.trunk.encoder.draw == 3
    before = module.model.trunk.encoder.attentions[0].state_dict()
    trainer.validate(module, datamodule=trainer.datamodule, verbose=False)  # pyright: ignore[reportAttributeAccessIssue]
    after = module.model.trunk.encoder.attentions[0].state_dict()
    assert all((before[name] == after[name]).all() for name in before)
