"""Rank correlations: scipy's, on every resample, and intervals that cover."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from protformer.scoring import ranking
from protformer.scoring.ranking import rank, said


def test_the_correlation_is_scipys_with_ties():
    generator = np.random.default_rng(0)
    targets, scores = generator.integers(0, 9, 200), generator.integers(0, 5, 200)
    found = rank({"model": scores, "floor": targets + scores}, targets, resamples=10)
    assert found["model"].spearman == pytest.approx(spearmanr(scores, targets)[0])
    assert found["floor"].spearman == pytest.approx(spearmanr(targets + scores, targets)[0])


def test_resamples_are_those_of_drawn_rows():
    generator = np.random.default_rng(1)
    targets, scores = generator.normal(size=50), generator.integers(0, 4, 50).astype(float)
    drawn = np.random.default_rng(7).integers(50, size=50)
    places = [ranking._places(values) for values in (targets, scores)]
    (ours,) = ranking._correlations(places, np.bincount(drawn, minlength=50).astype(float))
    assert ours == pytest.approx(spearmanr(scores[drawn], targets[drawn])[0])


def test_the_interval_is_as_wide_as_other_experiments_would_spread():
    """Against the spread of the correlation over 400 experiments drawn anew."""
    generator = np.random.default_rng(2)
    x, noise = generator.normal(size=(2, 400, 300))
    y = 0.5 * x + np.sqrt(0.75) * noise
    whole = np.array([spearmanr(one, other)[0] for one, other in zip(x, y, strict=True)])
    spread = np.subtract(*np.quantile(whole, [0.975, 0.025]))
    (found,) = rank({"model": x[0]}, y[0], resamples=300).values()
    assert found.interval.low < found.spearman < found.interval.high
    # a normal's 2.5 % quantile from n draws has the standard error 2.67 / sqrt(n) of its deviation; the width is 3.92
    error = 2.67 * np.sqrt(2) / 3.92 * np.sqrt(1 / 400 + 1 / 300)
    assert abs(np.subtract(found.interval.high, found.interval.low) / spread - 1) < 4 * error


def test_the_verdict_on_better_and_worse_and_neither():
    generator = np.random.default_rng(3)
    targets = generator.normal(size=400)
    model = targets + generator.normal(size=400)
    columns = {"model": model, "worse": generator.normal(size=400), "better": targets, "alike": model + 1e-9}
    lines = list(said(rank(columns, targets, resamples=200), 400, "fitness"))
    assert "over 400 variants" in lines[0]
    for line, verdict in zip(lines[2:], ("ranks better", "ranks worse", "is not told apart"), strict=True):
        assert verdict in line


def test_nothing_to_rank_is_said():
    targets = np.arange(30.0)
    found = rank({"model": targets, "constant": np.full(30, -1.0)}, targets, resamples=50)
    assert found["model"].spearman == pytest.approx(1.0)
    assert np.isnan(found["constant"].spearman)
    assert "all scores or all targets are equal" in list(said(found, 30, "y"))[-1]
    few = rank({"model": targets[:2]}, targets[:2])
    assert np.isnan(few["model"].interval.low)
