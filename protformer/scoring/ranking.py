"""Spearman's rank correlation with a measured quantity, its interval, and whether a model ranks better than a floor.

Intervals are percentile bootstraps over variants (Efron & Tibshirani 1993, chapter 13). Model and floor see the same
resamples, so what makes a resample easy for both cancels in their difference. Variants share sites and are no
independent draws: the intervals say what other variants of the same experiment would move, not another protein.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from protformer.data.floors.bootstrap import Interval

RESAMPLES = 1000


@dataclass(frozen=True)
class Ranking:
    """How one column of scores ranks the targets."""

    spearman: float  # NaN where the scores or the targets are all equal
    interval: Interval  # 95 %
    lead: Interval | None = None  # 95 %, of the first column's correlation minus this one's; None for the first


def rank(
    columns: Mapping[str, np.ndarray], targets: np.ndarray, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict[str, Ranking]:
    """Each column `[variants]` against `targets` `[variants]`; the first is compared with each of the others."""
    n = len(targets)
    places = [_places(np.asarray(values, np.float64)) for values in (targets, *columns.values())]
    whole = _correlations(places, np.ones(n))
    generator = np.random.default_rng(seed)
    drawn = np.array(
        [
            _correlations(places, np.bincount(generator.integers(n, size=n), minlength=n).astype(np.float64))
            for _ in range(resamples if n > 2 else 0)
        ]
    ).reshape(-1, len(columns))
    return {
        name: Ranking(whole[i], _interval(drawn[:, i]), _interval(drawn[:, 0] - drawn[:, i]) if i else None)
        for i, name in enumerate(columns)
    }


def _places(values: Float64[np.ndarray, " n"]) -> Int64[np.ndarray, " n"]:
    """The place of each value among the distinct ones: sorted once, resamples need no sorting."""
    return np.unique(values, return_inverse=True)[1]


def _correlations(places: list[Int64[np.ndarray, " n"]], counts: Float64[np.ndarray, " n"]) -> list[float]:
    """Of the first with each of the others, where row i was drawn counts[i] times. Ties get mean ranks."""
    targets, *columns = (_ranks(place, counts) for place in places)
    return [_pearson(column, targets, counts) for column in columns]


def _ranks(places: Int64[np.ndarray, " n"], counts: Float64[np.ndarray, " n"]) -> Float64[np.ndarray, " n"]:
    drawn = np.bincount(places, weights=counts)
    return (np.cumsum(drawn) - (drawn - 1) / 2)[places]


def _pearson(x: Float64[np.ndarray, " n"], y: Float64[np.ndarray, " n"], counts: Float64[np.ndarray, " n"]) -> float:
    total = counts.sum()
    x, y = x - counts @ x / total, y - counts @ y / total
    spreads = (float(counts @ (x * x)), float(counts @ (y * y)))
    # one value among n that differs gives n^2 / 4; equal ranks leave the rounding of their mean
    if min(spreads) <= 1e-20 * total**3:
        return float("nan")
    return float(counts @ (x * y)) / float(np.sqrt(spreads[0] * spreads[1]))


def _interval(values: Float[np.ndarray, " resamples"]) -> Interval:
    if not np.isfinite(values).any():
        return Interval(float("nan"), float("nan"))
    low, high = np.nanquantile(values, [0.025, 0.975])
    return Interval(float(low), float(high))


def said(rankings: Mapping[str, Ranking], variants: int, target: str) -> Iterator[str]:
    """Lines for people: the model first, each floor with the verdict."""
    names = list(rankings)
    yield f"Spearman's rank correlation with {target!r} over {variants:,} variants (95 % bootstrap over variants):"
    width = max(map(len, names))
    for name, ranking in rankings.items():
        if np.isnan(ranking.spearman):
            yield f"  {name:<{width}}  none: all scores or all targets are equal"
            continue
        low, high = ranking.interval
        yield f"  {name:<{width}}  {ranking.spearman:6.3f}  [{low:.3f}, {high:.3f}]" + _verdict(ranking.lead)


def _verdict(lead: Interval | None) -> str:
    if lead is None or np.isnan(lead.low):
        return ""
    verdict = "ranks better" if lead.low > 0 else "ranks worse" if lead.high < 0 else "is not told apart"
    return f"  the model {verdict} ({lead.low:+.3f} to {lead.high:+.3f})"
