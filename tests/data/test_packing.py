"""Laws of the packing plan: every sequence once an epoch, within the budget, whatever the ranks."""

import numpy as np
import pytest

from protformer.data.packing import PackingPlan


def lengths(n: int = 200, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(3, 90, n)


@pytest.mark.parametrize("budget", [10, 100, 1000, 10**6])
def test_an_epoch_has_every_sequence_once_and_keeps_to_the_budget(budget):
    plan = PackingPlan(lengths(), budget=budget, seed=1)
    for epoch in range(3):
        steps = plan.epoch_steps(epoch)
        assert sorted(np.concatenate(steps).tolist()) == list(range(200))
        for step in steps:
            assert plan.lengths[step].sum() <= budget or len(step) == 1  # a longer one goes alone, whole


def test_epochs_differ_and_each_is_a_pure_function_of_seed_and_epoch():
    plan, again = (PackingPlan(lengths(), budget=300, seed=1) for _ in range(2))
    third = [s.tolist() for s in again.epoch_steps(3)]  # without looking at those before
    assert [s.tolist() for s in plan.epoch_steps(0)] != [s.tolist() for s in plan.epoch_steps(1)]
    assert [s.tolist() for s in plan.epoch_steps(3)] == third
    assert [s.tolist() for s in PackingPlan(lengths(), budget=300, seed=2).epoch_steps(3)] != third


def test_locate_walks_through_epochs():
    plan = PackingPlan(lengths(), budget=300, seed=1)
    places = [(epoch, i) for epoch in range(4) for i in range(len(plan.epoch_steps(epoch)))]
    assert [plan.locate(step) for step in range(len(places))] == places
    assert PackingPlan(lengths(), budget=300, seed=1).locate(len(places) - 1) == places[-1]


@pytest.mark.parametrize("shares", [1, 2, 3, 8, 50])
def test_dealing_splits_a_step_evenly_and_loses_nothing(shares):
    plan = PackingPlan(lengths(), budget=1000, seed=1)
    for step in plan.epoch_steps(0):
        dealt = plan.deal(step, shares)
        assert len(dealt) == shares
        assert sorted(np.concatenate(dealt).tolist()) == sorted(step.tolist())
        loads = [plan.lengths[share].sum() for share in dealt]
        assert max(loads) - min(loads) <= plan.lengths[step].max()  # the law of longest-first dealing


def test_the_documented_example():
    plan = PackingPlan(np.array([5, 3, 4, 6, 2]), budget=8, seed=0, shuffle=False)
    order = np.concatenate(plan.epoch_steps(0)).tolist()
    assert sorted(order) == [0, 1, 2, 3, 4]
    assert plan.epoch_steps(5) is plan.epoch_steps(0)
