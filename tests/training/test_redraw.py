"""Redraw schedules are functions of the optimiser step, or of the step and the errors measured before it."""

import math

import pytest
import torch
from helpers import train

from protformer.features import PositiveFeatures
from protformer.training.probe import AttentionProbe
from protformer.training.redraw import Adaptive, Every, Geometric, Never, RedrawFeatures, RedrawSchedule

ADAPTIVE = {"_target_": "protformer.training.redraw.Adaptive", "every": 1, "rise": 1.0001}


def test_schedules():
    assert [Never().draw_at(s) for s in (0, 10, 10**6)] == [0, 0, 0]
    assert [Every(3).draw_at(s) for s in range(8)] == [0, 0, 0, 1, 1, 1, 2, 2]
    geometric = Geometric(every=2, ratio=2.0)
    assert [geometric.draw_at(s) for s in range(10)] == [0, 0, 1, 1, 2, 2, 2, 2, 3, 3]
    for pure in (Never(), Every(3), geometric):
        assert not any(pure.wants_error(s) for s in range(10))
        assert pure.state_dict() == {}


@pytest.mark.parametrize(
    "bad",
    [
        lambda: Every(0),
        lambda: Geometric(every=0),
        lambda: Geometric(ratio=1.0),
        lambda: Adaptive(every=0),
        lambda: Adaptive(rise=1.0),
    ],
)
def test_schedules_that_cannot_be(bad):
    with pytest.raises(ValueError, match="every"):
        bad()


def told(schedule: RedrawSchedule, errors: dict[int, list[float]], steps: int) -> list[tuple[int, int]]:
    """Steps and draws of the redraws, when measurements give `errors` in turn."""
    draws, draw = [], 0
    for step in range(steps):
        for _micro_batch in range(2):
            while schedule.wants_error(step):
                schedule.observe(step, errors[step].pop(0))
                if schedule.draw_at(step) != draw:
                    draw = schedule.draw_at(step)
                    draws.append((step, draw))
    assert not any(errors.values())  # each was asked for once
    return draws


def test_adaptive_redraws_when_the_error_rises_above_the_lowest():
    errors = {
        0: [1.0],
        10: [0.8],  # the lowest from here on
        20: [0.95],  # less than 1.2 x 0.8
        30: [0.97, 0.9],  # above: drawn anew, and measured at once
        40: [1.0],  # less than 1.2 x 0.9: what the old draw had is forgotten
        50: [1.1, 1.5],
        60: [1.79],
        70: [1.81, 1.0],
    }
    assert told(Adaptive(every=10, rise=1.2), errors, 75) == [(30, 1), (50, 2), (70, 3)]


def test_adaptive_takes_no_notice_of_what_is_no_number():
    errors = {0: [math.nan], 10: [1.0], 20: [math.inf], 30: [math.nan], 40: [1.3, math.nan], 50: [9.0], 60: [9.1]}
    assert told(Adaptive(every=10, rise=1.2), errors, 65) == [(40, 1)]


def test_adaptive_goes_on_from_its_state():
    errors = {0: [1.0], 10: [1.3, 0.5], 20: [0.55]}
    schedule = Adaptive(every=10, rise=1.2)
    told(schedule, errors, 25)
    again = Adaptive(every=10, rise=1.2)
    again.load_state_dict(schedule.state_dict(), draw=1)
    assert not again.wants_error(20)  # measured before the checkpoint
    assert again.draw_at(21) == 1
    again.observe(30, 0.61)
    assert again.draw_at(30) == 2
    from_another_schedule = Adaptive(every=10)
    from_another_schedule.load_state_dict({}, draw=7)
    assert from_another_schedule.draw_at(20) == 7
    assert from_another_schedule.wants_error(20)


def redraws(trainer) -> RedrawFeatures:
    return next(c for c in trainer.callbacks if isinstance(c, RedrawFeatures))


@pytest.mark.parametrize("accumulate", [1, 3])
def test_redraws_happen_at_optimiser_steps_and_not_in_evaluation(accumulate):
    _, module, trainer = train(accumulate_grad_batches=accumulate, val_check_interval=4 * accumulate)
    assert redraws(trainer).steps == [3, 6, 9]
    assert module.model.trunk.encoder.draw == 3
    before = module.model.trunk.encoder.attentions[0].state_dict()
    trainer.validate(module, datamodule=trainer.datamodule, verbose=False)  # pyright: ignore[reportAttributeAccessIssue]
    after = module.model.trunk.encoder.attentions[0].state_dict()
    assert all((before[name] == after[name]).all() for name in before)


def test_adaptive_redraws_do_not_depend_on_micro_batches():
    steps = []
    for accumulate in (1, 3):
        _, module, trainer = train(
            redraw=ADAPTIVE,
            max_steps=8,
            accumulate_grad_batches=accumulate,
            limit_val_batches=0,
            val_check_interval=None,
            gradient_clip_val=None,
            dropout=0.0,
        )
        steps.append(redraws(trainer).steps)
        assert module.model.trunk.encoder.draw == len(steps[-1])
    assert steps[0] == steps[1]
    assert 0 < len(steps[0]) < 7  # some measurements led to a redraw, others did not


def test_adaptive_looks_at_the_same_rows_every_time(monkeypatch):
    looked: list[int] = []
    measure = AttentionProbe.measure

    def noted(self, trainer, *, step):
        looked.append(step)
        return measure(self, trainer, step=step)

    monkeypatch.setattr(AttentionProbe, "measure", noted)
    train(redraw=ADAPTIVE, max_steps=3, limit_val_batches=0, val_check_interval=None)
    assert len(looked) >= 3
    assert set(looked) == {0}


def test_the_projections_are_those_of_the_draw_number():
    _, module, trainer = train(redraw=ADAPTIVE, max_steps=5, limit_val_batches=0, val_check_interval=None)
    encoder = module.model.trunk.encoder
    held = [attention.state_dict()["features.projection"].clone() for attention in encoder.attentions]
    encoder.redraw_(len(redraws(trainer).steps))
    for attention, projection in zip(encoder.attentions, held, strict=True):
        assert torch.equal(attention.state_dict()["features.projection"], projection)


def test_a_schedule_that_measures_needs_a_probe():
    _, module, trainer = train(max_steps=1)
    callback = RedrawFeatures(schedule=Adaptive(every=1), encoder=module.model.trunk.encoder)
    with pytest.raises(ValueError, match="Adaptive goes by the attention's error: it needs a probe"):
        callback.on_train_batch_start(trainer, module, None, 0)


def test_adaptive_says_what_it_watches(caplog):
    from protformer.features import GeneralizedFeatures

    for features, said in ((GeneralizedFeatures, 1), (PositiveFeatures, 0)):
        caplog.clear()
        train(redraw=ADAPTIVE, max_steps=1, model={"features": lambda f=features, **s: f(**s, num_features=8)})
        found = [r for r in caplog.records if "redraw=adaptive goes by the distance" in r.getMessage()]
        assert len(found) == said
