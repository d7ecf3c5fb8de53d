"""How far the runs' figures could move: with other proteins, and with other seeds.

One bootstrap serves all figures of an evaluation set: a draw picks proteins with replacement, and where there are
several seeds, moves their weights about the mean by normal deviates of the mean's variance. All methods see the same
drawn proteins (and the same weights of seeds, where they have them in common), so what makes a protein easy for all
cancels in differences.

Two or three seeds say little about the spread of all. So a figure is drawn twice, [2, 1 + draws]: with proteins and
seeds, and with proteins alone; from the two widths follows how much of the variance is the seeds', and with it the
degrees of freedom (Satterthwaite's), whose t quantile widens the percentile interval. With proteins alone that is
nothing; with three seeds alone it is their t interval. (With normal errors it holds the truth in 91 to 96 % with two
seeds and in 92 to 95 % with three, whatever the seeds' part of the variance; not widened, in 70 and 81 % where that is
all of it.)

Sources: Efron & Tibshirani, An Introduction to the Bootstrap (1993), chapters 8 and 13; Satterthwaite, An approximate
distribution of estimates of variance components (Biometrics Bulletin 2, 1946).
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.stats import norm
from scipy.stats import t as student

RESAMPLES = 2000
LEVEL = 0.95
NORMAL = float(norm.ppf((1 + LEVEL) / 2))
"""Half an interval of a normal figure, in standard errors."""


class Resampled:
    """Bootstrap draws over the proteins of one evaluation set (or of a bin of it), shared by all methods.

    `chosen` [proteins] says which take part. The draws are those of `seed`, and are made anew when they are asked for.
    """

    def __init__(self, chosen: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0) -> None:
        self._places = np.flatnonzero(chosen)
        self._seed, self._resamples = seed, resamples

    def totals(self, columns: np.ndarray) -> np.ndarray:
        """Sums of columns [proteins, columns] over all proteins, then over those of each draw: [1 + draws, columns]."""
        values, count = np.asarray(columns, dtype=np.float64)[self._places], len(self._places)
        generator = np.random.default_rng(self._seed)
        found = [values.sum(0, keepdims=True)]
        for start in range(0, self._resamples, 100):  # few at a time: [draws, proteins] would be large
            number = min(100, self._resamples - start)
            drawn = generator.integers(count, size=(number, count))
            found.append(np.stack([np.bincount(one, minlength=count) for one in drawn]).astype(np.float64) @ values)
        return np.concatenate(found)

    def seed_weights(self, seeds: Sequence[int]) -> np.ndarray:
        """What each seed counts, [1 + draws, seeds]: alike at first, then as drawn; the same for the same seeds.

        A mean over seeds with these weights varies as it would with other seeds: by s^2 / n.
        """
        number = len(seeds)
        even = np.full((1, number), 1 / number)
        if number == 1:
            return np.ones((1 + self._resamples, 1))
        generator = np.random.default_rng([self._seed, *(seed % 2**32 for seed in seeds)])
        drawn = generator.standard_normal((self._resamples, number))
        drawn = (drawn - drawn.mean(1, keepdims=True)) / np.sqrt(number * (number - 1))
        return np.concatenate([even, even + drawn])


def interval(
    values: np.ndarray, *, seeds: int, least: float = -np.inf, most: float = np.inf
) -> tuple[float, float, float]:
    """Estimate, low and high of [2, 1 + draws]: proteins and seeds drawn, and proteins alone. `seeds` is how many.

    Draws that have no value (infinite either way) widen both ends; an end beyond what the figure can be (`least`,
    `most`) is cut there.
    """
    estimate = float(values[0, 0])
    low, high = _percentiles(values[0, 1:])
    if seeds > 1:
        alone = _percentiles(values[1, 1:])
        factor = _widening(high - low, alone[1] - alone[0], seeds)
        low = min(low, estimate - factor * (estimate - low))
        high = max(high, estimate + factor * (high - estimate))
    return estimate, max(low, least), min(high, most)


def _percentiles(drawn: np.ndarray) -> tuple[float, float]:
    tails = [(1 - LEVEL) / 2, (1 + LEVEL) / 2]
    low = np.quantile(np.nan_to_num(drawn, nan=-np.inf), tails[0], method="lower")
    return float(low), float(np.quantile(np.nan_to_num(drawn, nan=np.inf), tails[1], method="higher"))


def _widening(total: float, alone: float, seeds: int) -> float:
    """By how much an interval of width `total` is too narrow, of which proteins alone make `alone`."""
    if total == 0 or total <= alone < np.inf:
        return 1.0
    of_seeds = 1 - (alone / total) ** 2 if np.isfinite(total) else 1.0
    return t_quantile((seeds - 1) / of_seeds**2) / NORMAL


def t_quantile(freedom: float | int) -> float:
    """Half a `LEVEL` interval, in standard errors, with so many degrees of freedom."""
    return float(student.ppf((1 + LEVEL) / 2, freedom))


def spread(values: Sequence[float | int]) -> dict[str, Any]:
    """Over seeds: extremes, and from three on the t interval of the mean."""
    found: dict[str, Any] = {"seed_min": min(values), "seed_max": max(values), "seed_low": None, "seed_high": None}
    if len(values) >= 3:
        half = t_quantile(len(values) - 1) * np.std(values, ddof=1) / np.sqrt(len(values))
        found |= {"seed_low": float(np.mean(values) - half), "seed_high": float(np.mean(values) + half)}
    return found


def mean_of_seeds(estimates: Sequence[float], halves: Sequence[float]) -> tuple[float, float, float]:
    """Estimate, low and high of a mean over seeds, from each seed's own estimate and half interval over proteins.

    The proteins are the same, so their part of the error does not shrink with seeds.
    """
    mean, of_proteins = float(np.mean(estimates)), (float(np.mean(halves)) / NORMAL) ** 2
    number = len(estimates)
    of_seeds = float(np.var(estimates, ddof=1)) / number if number > 1 else 0.0
    total = of_proteins + of_seeds
    half = t_quantile((number - 1) * (total / of_seeds) ** 2 if of_seeds else np.inf) * np.sqrt(total)
    return mean, mean - half, mean + half
