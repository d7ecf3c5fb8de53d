"""The strongest floor of residue prediction without a network: own composition times flanking residues.

Naive Bayes: log p(a) = log composition(a) + w sum_o log [P(c_o | a) / P(c_o)], where c_o is the token shown o places
away and the odds are counted over training proteins. `w` pays for neighbours that say the same thing twice; it is
fitted on training proteins, and w = 0 is the composition alone. A model that does not beat this has learned pair
frequencies at most. `<cls>` and `<eos>` are neighbours too (most proteins start with M); hidden ones say nothing.

Everything is in nats, in float64.
"""

from typing import NamedTuple

import numpy as np

from protformer.data.alphabet import CLS, EOS, MASK, TOKENS
from protformer.data.floors.composition import STANDARD_TOKENS

__all__ = ["AROUND", "BEFORE", "Flanks", "fit_flanks", "flank_log_probs"]

AROUND = (-4, -3, -2, -1, 1, 2, 3, 4)
"""Places that masked-residue modeling sees."""
BEFORE = (-4, -3, -2, -1)
"""Places that next-residue modeling sees."""
_STANDARD = STANDARD_TOKENS.stop - STANDARD_TOKENS.start
_COUNTED = 4_000_000  # residues that are counted and fitted on, of whole proteins drawn at random
_PRIOR = 100.0  # residues that a token's odds are held to 1 by


class Flanks(NamedTuple):
    """Counted log odds, float64 [places, tokens, 20], and how much they count."""

    places: tuple[int, ...]
    log_odds: np.ndarray
    weight: float


def fit_flanks(
    tokens: np.ndarray, offsets: np.ndarray, log_unigram: np.ndarray, *, places: tuple[int, ...], seed: int = 0
) -> Flanks:
    """From training proteins `tokens` [residues], end to end with `offsets` [n + 1]; `log_unigram` [tokens]."""
    generator = np.random.default_rng(seed)
    order = generator.permutation(len(offsets) - 1)
    total = np.cumsum(np.diff(offsets)[order])
    chosen = order[: max(int(np.searchsorted(total, _COUNTED)), 1)]
    cut = max(len(chosen) * 4 // 5, 1)
    shown, rows = _segments(tokens, offsets, chosen[:cut])
    counts = _pair_counts(shown, rows, places)
    flanks = Flanks(places, _log_odds(counts), 1.0)
    shown, rows = _segments(tokens, offsets, chosen[cut:] if cut < len(chosen) else chosen)
    few = np.sort(generator.permutation(rows)[:50_000])
    prior = np.broadcast_to(log_unigram[STANDARD_TOKENS], (len(few), _STANDARD))
    targets = shown[few] - STANDARD_TOKENS.start
    grid = np.linspace(0.0, 1.2, 13)
    losses = [-_picked(flank_log_probs(prior, shown, few, flanks._replace(weight=w)), targets).mean() for w in grid]
    return flanks._replace(weight=float(grid[int(np.argmin(losses))]))


def flank_log_probs(log_composition: np.ndarray, shown: np.ndarray, rows: np.ndarray, flanks: Flanks) -> np.ndarray:
    """Log probabilities float64 [targets, 20] of the standard residues.

    `shown` [total] are the tokens as the model sees them, segments `<cls>` ... `<eos>` end to end; `rows` [targets] are
    the rows of the targets in it, `log_composition` [targets, 20] what is known without neighbours.
    """
    log_probs = log_composition + flanks.weight * _evidence(shown, rows, flanks)
    log_probs -= log_probs.max(axis=1, keepdims=True)
    return log_probs - np.log(np.exp(log_probs).sum(axis=1, keepdims=True))


def _evidence(shown: np.ndarray, rows: np.ndarray, flanks: Flanks) -> np.ndarray:
    evidence = np.zeros((len(rows), _STANDARD))
    segment = np.cumsum(shown == CLS)
    for index, place in enumerate(flanks.places):
        inside, neighbours = _neighbours(shown, segment, rows, place)
        evidence[inside] += flanks.log_odds[index, neighbours]
    return evidence


def _neighbours(shown: np.ndarray, segment: np.ndarray, rows: np.ndarray, place: int) -> tuple[np.ndarray, np.ndarray]:
    """Which rows have a token `place` away in their own segment, and that token."""
    at = np.clip(rows + place, 0, len(shown) - 1)
    inside = (at == rows + place) & (segment[at] == segment[rows])
    return inside, shown[at[inside]]


def _segments(tokens: np.ndarray, offsets: np.ndarray, chosen: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The chosen proteins as segments end to end, and the rows of their standard residues."""
    parts = [np.concatenate([[CLS], tokens[offsets[i] : offsets[i + 1]], [EOS]]) for i in chosen]
    shown = np.concatenate(parts).astype(np.int64)
    return shown, np.flatnonzero((shown >= STANDARD_TOKENS.start) & (shown < STANDARD_TOKENS.stop))


def _pair_counts(shown: np.ndarray, rows: np.ndarray, places: tuple[int, ...]) -> np.ndarray:
    """How often a token stands `place` away from each standard residue: float64 [places, tokens, 20]."""
    segment, counts = np.cumsum(shown == CLS), []
    for place in places:
        inside, neighbours = _neighbours(shown, segment, rows, place)
        cells = neighbours * _STANDARD + shown[rows[inside]] - STANDARD_TOKENS.start
        counts.append(np.bincount(cells, minlength=len(TOKENS) * _STANDARD).reshape(len(TOKENS), _STANDARD))
    return np.stack(counts).astype(np.float64)


def _log_odds(counts: np.ndarray) -> np.ndarray:
    """log P(token | residue) / P(token), smoothed towards 0; 0 for tokens that were not seen, `<mask>` among them."""
    of_token = counts.sum(axis=2, keepdims=True)
    of_residue = counts.sum(axis=1, keepdims=True)
    expected = of_token * of_residue / np.maximum(counts.sum(axis=(1, 2), keepdims=True), 1.0)
    odds = np.log((counts + _PRIOR) / (expected + _PRIOR))
    odds[:, MASK] = 0.0
    return np.where(of_token > 0, odds, 0.0)


def _picked(log_probs: np.ndarray, targets: np.ndarray) -> np.ndarray:
    return log_probs[np.arange(len(targets)), targets]
