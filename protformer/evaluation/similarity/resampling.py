"""Rank correlations with BLOSUM62 of a model, its layers and its heads: on the proteins at hand, and on resamples."""

from typing import Literal, NamedTuple

import numpy as np
from jaxtyping import Float64

from protformer.data.blosum import blosum62
from protformer.evaluation.similarity.correlation import rank_correlation
from protformer.evaluation.similarity.estimates import Estimate, over_frequencies, over_uniform, profiles
from protformer.evaluation.similarity.mass import Mass

Level = Literal["model", "layer", "head"]
_NUMBERS_AT_ONCE = 20_000_000  # sums of resamples held: 160 MB


class Part(NamedTuple):
    """Whose attention is summed: all of it, that of a layer, that of a head."""

    level: Level
    estimate: Estimate


Correlations = dict[Part, Float64[np.ndarray, "resamples *parts"]]
"""By part: one for each resample; layers have an axis more, heads two."""


def similarities(mass: Mass, weights: Float64[np.ndarray, "resamples proteins"]) -> dict[Part, np.ndarray]:
    """`[resamples, ..., 20, 20]` of each part: each protein counts as often as its weight says."""
    flat = mass.attention.reshape(len(mass.attention), -1)
    heads = (weights @ flat).reshape(len(weights), *mass.attention.shape[1:])
    uniform = np.tensordot(weights, mass.uniform, axes=1)
    counts = weights @ mass.counts
    layers = heads.sum(axis=2)
    found: dict[Part, np.ndarray] = {}
    levels: tuple[tuple[Level, np.ndarray, int], ...] = (
        ("model", layers.sum(axis=1), 0), ("layer", layers, 1), ("head", heads, 2),
    )  # fmt: skip
    for level, attention, axes in levels:
        spread = (slice(None), *(None,) * axes)
        found[Part(level, "frequencies")] = over_frequencies(attention, counts[spread])
        found[Part(level, "over uniform")] = over_uniform(attention, uniform[spread])
    found[Part("model", "profiles")] = profiles(heads.reshape(len(heads), -1, 20, 20))
    return found


def correlations(mass: Mass) -> Correlations:
    """On the proteins at hand: one resample."""
    return _of_weights(mass, np.ones((1, len(mass.counts))))


def resampled(mass: Mass, *, resamples: int, seed: int) -> Correlations:
    """On proteins drawn with replacement; the same draws for every model that saw the same proteins."""
    proteins = len(mass.counts)
    weights = np.random.default_rng(seed).multinomial(proteins, np.full(proteins, 1 / proteins), size=resamples)
    size = max(1, _NUMBERS_AT_ONCE // mass.attention[0].size)
    chunks = [_of_weights(mass, weights[i : i + size].astype(np.float64)) for i in range(0, resamples, size)]
    return {part: np.concatenate([chunk[part] for chunk in chunks]) for part in chunks[0]}


def _of_weights(mass: Mass, weights: np.ndarray) -> Correlations:
    # (a resample may lack an amino acid, and then has no correlation)
    with np.errstate(invalid="ignore", divide="ignore"):
        found = similarities(mass, weights)
        return {part: rank_correlation(matrices, blosum62()) for part, matrices in found.items()}
