"""What attention is estimated on: random inputs as in the paper's figure, or what a trained model's layers get."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Float64
from torch import Tensor

from protformer.data.corpus import Corpus
from protformer.evaluation.activations import LookedAt, attention_inputs
from protformer.evaluation.approximation.settings import Settings
from protformer.features import projection_generator


class Place(NamedTuple):
    """Where samples are from: they share a line of the table."""

    source: str
    """"synthetic" or "real"."""
    inputs: str
    """What the pictures call it."""
    scale: float | None = None
    """Standard deviation of random queries' and keys' entries."""
    layer: int | None = None
    """Of the model, from 1."""


class Sample(NamedTuple):
    """One sequence's attention, in float64: what is measured is the estimator's error and not the type's rounding."""

    place: Place
    number: int
    query: Float64[Tensor, "length heads dim"]
    key: Float64[Tensor, "length heads dim"]
    value: Float64[Tensor, "length heads dim"]
    causal: bool


def random_samples(settings: Settings) -> Iterator[Sample]:
    """One head's queries and keys with independent N(0, scale^2) entries and values with N(0, 1) entries.

    The paper (arXiv 2009.14794, figure 4) says "appropriately normalized random matrix input data" and no more; hence
    several scales. |z|^2, which rules the variance, has the mean 2 scale^2 sqrt(dim). All scales share their numbers.
    """
    for scale in settings.scales:
        place = Place("synthetic", f"random, std {scale:g}", scale=scale)
        for number in range(settings.samples):
            generator = projection_generator(settings.seed, number, 0)
            shape = (3, settings.length, 1, settings.dim)
            query, key, value = torch.randn(shape, generator=generator, dtype=torch.float64)
            yield Sample(place, number, query * scale, key * scale, value, causal=False)


def real_samples(looked_at: LookedAt, corpus: Corpus) -> Iterator[Sample]:
    """Each layer's queries, keys and values of a trained model on proteins, one protein a sample; nothing is masked."""
    attentions = looked_at.model.trunk.encoder.attentions
    for number in range(len(corpus)):
        layers, _, _ = attention_inputs(looked_at.model, [corpus.sequence(number)])
        for layer, (given, attention) in enumerate(zip(layers, attentions, strict=True), 1):
            place = Place("real", f"of layer {layer}", layer=layer)
            query, key, value = (x.double() for x in given)
            yield Sample(place, number, query, key, value, causal=attention.causal)
