"""Experiment 2: how far random features are from softmax attention, on random inputs and on a trained model's own."""

import logging
import time
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from protformer.attention import ExactAttention
from protformer.data.corpus import Corpus
from protformer.evaluation.activations import LookedAt, choose_proteins, load
from protformer.evaluation.analysis import Analysis
from protformer.evaluation.approximation.errors import Reference
from protformer.evaluation.approximation.estimators import estimator, looks_ahead
from protformer.evaluation.approximation.redraw import redrawn
from protformer.evaluation.approximation.rows import COLUMNS, FLOOR, Found, Row
from protformer.evaluation.approximation.samples import Place, Sample, random_samples, real_samples
from protformer.evaluation.approximation.settings import Settings
from protformer.evaluation.approximation.views import views_of
from protformer.evaluation.log_analysis import conclude
from protformer.features import projection_generator
from protformer.training.settings import JobSettings

log = logging.getLogger(__name__)


def run(settings: JobSettings) -> dict[str, Any]:
    """`python train.py experiment=approximation_error`: rows.json in the run folder; returns the rows by part."""
    chosen = Settings.of(settings.config)
    # (what cannot be read is told before minutes are spent)
    real = None if chosen.model is None or chosen.proteins is None else _real(chosen.model, chosen.proteins, chosen)
    found = measure(random_samples(chosen), chosen)
    notes = list(_NOTES)
    if real is not None:
        found |= measure(real_samples(*real), chosen)
        notes += _notes_of_model(*real, chosen)
    rows = [row for one in found.values() for row in one.rows(redraw_features=chosen.redraw_features)]
    analysis = Analysis(
        kind="approximation_error",
        title="Approximation error of random features",
        question="How far are the Performer's estimates from softmax attention, and from how many features on are they"
        " better than not looking at all?",
        rows=rows,
        views=views_of(rows, chosen),
        columns=COLUMNS,
        notes=notes,
        settings=settings.config["approximation"] | {"seed": chosen.seed},
    )
    conclude(analysis, settings, lambda: _print(rows, chosen))
    return {"rows": len(rows)}


def _real(model: str, proteins: str | list[str], settings: Settings) -> tuple[LookedAt, Corpus]:
    looked_at = load(model)
    return looked_at, choose_proteins(proteins, count=settings.samples, longest=settings.longest, seed=settings.seed)


def measure(samples: Iterable[Sample], settings: Settings) -> dict[Place, Found]:
    """Every estimator on every sample, each sample with projections of its own; by place, in order."""
    found: dict[Place, Found] = {}
    for sample in _told(samples, settings.samples):
        one = found.setdefault(sample.place, Found(sample.place, settings.seed))
        reference = Reference(sample, rows=settings.rows, seed=settings.seed)
        heads, dim = sample.query.shape[1:]
        shape = {"num_heads": heads, "head_dim": dim, "causal": sample.causal}
        for method in settings.methods:
            if sample.causal and looks_ahead(method):
                continue
            for projection in settings.projections:
                for m in settings.features:
                    estimate = estimator(method, projection, m, **shape)
                    estimate.redraw_(_generator(sample, settings.seed, m))
                    one.estimates.setdefault((method, projection, m), []).append(reference.figures(estimate))
            estimate = estimator(method, "orthogonal", settings.redraw_features, **shape)
            generators = [_generator(sample, settings.seed, _REDRAWS + draw) for draw in range(settings.redraws)]
            one.redraws.setdefault(method, []).append(redrawn(reference, estimate, generators))
        figures, mean, high = reference.of_uniform(estimator("positive", "orthogonal", 2, **shape))
        one.uniform.append(figures)
        one.z2.append((mean, high))
    return found


# Draw numbers: below it, numbers of features, each with projections of its own; from it on, redraws.
_REDRAWS = 1_000_000


def _generator(sample: Sample, seed: int, number: int) -> torch.Generator:
    """Of a projection: of this sample and layer, the same for every method, so that methods differ by nothing else."""
    # (random inputs are drawn with small numbers in the same place)
    layer = 1_000_000 + (sample.place.layer or 0)
    return projection_generator(seed, layer, 2 * _REDRAWS * sample.number + number)


def _told(samples: Iterable[Sample], count: int) -> Iterator[Sample]:
    """A line in the log every fifth sample: the whole takes minutes."""
    start, last = time.monotonic(), None
    for sample in samples:
        if sample.number % 5 == 0 and (sample.place.source, sample.number) != last:
            last = sample.place.source, sample.number
            log.info(f"{sample.place.inputs}: sample {sample.number + 1} of {count} ({time.monotonic() - start:.0f} s)")
        yield sample


_NOTES = [
    "Uniform attention, the floor, looks at nothing: an estimate above its line does worse than no attention at all.",
    "The same number of features is compared, which costs about the same; hyperbolic features are pairs of half as many"
    " directions, trigonometric ones sines and cosines of half as many.",
    "All is float64, so errors are the estimator's; projections are rounded to bf16, as in training.",
    "The paper (arXiv 2009.14794, figure 4) draws the mean squared error of the output (column output_mse) and says of"
    " the inputs only that they are appropriately normalised; so several standard deviations are drawn.",
    "Redrawing: every draw is on the same inputs. At one draw stands what a fixed projection has in every step; a ratio"
    " of estimates is biased, and that part (bias_share) stays however often the projection is redrawn.",
]


def _notes_of_model(looked_at: LookedAt, corpus: Corpus, settings: Settings) -> list[str]:
    encoder = looked_at.model.trunk.encoder
    notes = [
        f"Real activations are of {looked_at.name} ({looked_at.method}, {encoder.num_layers} layers of"
        f" {encoder.num_heads} heads of {encoder.hidden_size // encoder.num_heads}), on {len(corpus)} proteins of"
        f" {corpus.lengths.min():,} to {corpus.lengths.max():,} residues, nothing masked; errors of one layer do not"
        " run on into the next."
    ]
    if not isinstance(encoder.attentions[0], ExactAttention):
        notes.append(f"That model was not trained with exact attention but with {looked_at.method}.")
    left_out = [method for method in settings.methods if looks_ahead(method)]
    if encoder.attentions[0].causal and left_out:
        notes.append(f"The model is causal: left out are {', '.join(left_out)}, which look at whole sequences.")
    return notes


def _print(rows: list[Row], settings: Settings) -> None:
    """Output error and attention distance at the least and the most features, orthogonal rows where they are made."""
    projection = settings.projections[0]
    few, many = min(settings.features), max(settings.features)
    table = Table(title=f"Output error / attention distance, {projection} rows (uniform looks at nothing)")
    for heading in ("inputs", "mean |z|^2", "method"):
        table.add_column(heading)
    for heading in (f"m = {few}", f"m = {many}", f"mean of {settings.redraws} draws, m = {settings.redraw_features}"):
        table.add_column(heading, justify="right")
    by_key = {(r["part"], r["inputs"], r["method"], r["projection"], r["m"], r.get("draws")): r for r in rows}
    inputs = None
    for row in rows:
        if (row["part"], row["projection"], row["m"]) != ("features", projection, few):
            continue
        most = by_key["features", row["inputs"], row["method"], projection, many, None]
        redrawn_at = "orthogonal", settings.redraw_features, settings.redraws
        drawn = by_key.get(("redraw", row["inputs"], row["method"], *redrawn_at))
        first, inputs = row["inputs"] != inputs, row["inputs"]
        table.add_row(
            inputs if first else "",
            f"{row['z2_mean']:.1f}" if first else "",
            row["method"].removeprefix("performer-"),
            *(f"{one['output_error']:.3g} / {one['distance']:.3f}" for one in (row, most)),
            f"{drawn['output_error']:.3g}" if drawn else "",
            end_section=row["method"] == FLOOR,
        )
    Console(width=None if Console().is_terminal else 120).print(table)
