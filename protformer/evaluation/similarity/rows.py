"""The rows of the experiment: correlations of every model, layer and head, and similarities of every pair."""

from typing import Any, NamedTuple

import numpy as np

from protformer.data.alphabet import STANDARD
from protformer.data.blosum import blosum62
from protformer.evaluation.similarity.correlation import mantel
from protformer.evaluation.similarity.mass import Mass
from protformer.evaluation.similarity.resampling import Correlations, Level, Part, correlations, resampled, similarities
from protformer.evaluation.similarity.settings import Settings

Row = dict[str, Any]

COLUMNS = {
    "part": "correlation (with BLOSUM62) or pairs (of amino acids)",
    "model": "name of the run or model folder, or the floor",
    "method": "its attention; untrained and uniform are floors",
    "kind": "trained; untrained: the same shape with random weights; uniform: attention that looks at nothing",
    "like": "of an untrained model: the trained one whose shape it has",
    "level": "whose attention is summed: the model's, a layer's or a head's",
    "layer": "from 1",
    "head": "from 1",
    "estimate": "frequencies: attention over what frequencies in all proteins would give; over uniform: over what"
    " uniform attention pays in the same proteins; profiles: correlation over heads of attention received",
    "rho": "Spearman's correlation with BLOSUM62 over the 190 pairs of different amino acids",
    "rho_low": "2.5th percentile over resampled proteins",
    "rho_high": "97.5th percentile over resampled proteins",
    "mantel_p": "one-sided, amino acids permuted; not corrected for the number of layers and heads that are looked at",
    "null_low": "2.5th percentile of rho with permuted amino acids",
    "null_high": "97.5th percentile of rho with permuted amino acids",
    "over_untrained": "rho less the mean rho of its untrained models; interval over proteins, not over random weights",
    "over_uniform": "rho less that of uniform attention, likewise; empty where uniform attention has none (a constant)",
    "proteins": "that were looked at",
    "seed": "of the proteins, the untrained weights, the resampling and the permutations",
    "pair": "two amino acids",
    "identical": "whether they are one",
    "blosum62": "BLOSUM62 score of the pair, half bits",
    "similarity": "attention between them, both ways, over what frequencies would give",
    "similarity_over_uniform": "the same over what uniform attention pays in the same proteins",
    "similarity_profiles": "correlation over heads of the attention that they receive",
    "from_first": "attention from the first to the second over what frequencies would give",
    "from_second": "from the second to the first",
}  # fmt: skip


class Entry(NamedTuple):
    """A model or floor, and what was measured of it; `method` is what the pictures call it."""

    model: str
    method: str
    kind: str
    like: str | None
    mass: Mass


class Rho(NamedTuple):
    here: Correlations
    resampled: Correlations


def rows_of(entries: list[Entry], settings: Settings) -> list[Row]:
    """Correlations first, then pairs; entries in their order."""
    rhos = {
        entry.model: Rho(
            correlations(entry.mass), resampled(entry.mass, resamples=settings.resamples, seed=settings.seed)
        )
        for entry in entries
    }
    found = [row for entry in entries for row in _correlation_rows(entry, rhos, entries, settings)]
    return found + [row for entry in entries for row in _pair_rows(entry, settings)]


def _labels(entry: Entry, part: str, settings: Settings) -> Row:
    return {
        "part": part,
        "model": entry.model,
        "method": entry.method,
        "kind": entry.kind,
        "like": entry.like,
        "proteins": len(entry.mass.counts),
        "seed": settings.seed,
    }


def _correlation_rows(entry: Entry, rhos: dict[str, Rho], entries: list[Entry], settings: Settings) -> list[Row]:
    rows = []
    matrices = similarities(entry.mass, np.ones((1, len(entry.mass.counts))))
    own = rhos[entry.model]
    floors = {
        "over_untrained": [rhos[e.model] for e in entries if e.like == entry.model],
        "over_uniform": [rhos[e.model] for e in entries if e.kind == "uniform"],
    }
    for part, values in own.here.items():
        # floors are models as a whole: their only layer says nothing more
        if entry.kind != "trained" and part.level != "model":
            continue
        for place in np.ndindex(*values.shape[1:]):
            at = (0, *place)
            test = mantel(matrices[part][at], blosum62(), permutations=settings.permutations, seed=settings.seed)
            row = {
                **_labels(entry, "correlation", settings),
                "level": part.level,
                "layer": place[0] + 1 if place else None,
                "head": place[1] + 1 if len(place) > 1 else None,
                "estimate": part.estimate,
                "rho": float(values[at]),
                **_interval("rho", own.resampled[part][(slice(None), *place)]),
                "mantel_p": test.p,
                "null_low": test.low,
                "null_high": test.high,
            }
            if entry.kind == "trained" and part.level == "model":
                for name, theirs in floors.items():
                    row |= _difference(name, part, own, theirs)
            rows.append(row)
    return rows


def _difference(name: str, part: Part, own: Rho, floors: list[Rho]) -> Row:
    """Own correlation less the floors' mean, paired by resample; nothing where there is no floor."""
    if not floors:
        return {}
    here = own.here[part] - np.mean([floor.here[part] for floor in floors], axis=0)
    drawn = own.resampled[part] - np.mean([floor.resampled[part] for floor in floors], axis=0)
    return {name: float(here[0]), **_interval(name, drawn)}


def _interval(name: str, values: np.ndarray) -> Row:
    finite = values[np.isfinite(values)]
    low, high = np.quantile(finite, [0.025, 0.975]) if len(finite) else (np.nan, np.nan)
    return {f"{name}_low": float(low), f"{name}_high": float(high)}


def _pair_rows(entry: Entry, settings: Settings) -> list[Row]:
    matrices = similarities(entry.mass, np.ones((1, len(entry.mass.counts))))
    frequencies, uniform, shares = (
        matrices[Part("model", estimate)][0] for estimate in ("frequencies", "over uniform", "profiles")
    )
    attention = entry.mass.attention.sum(axis=(0, 1, 2))
    composition = entry.mass.counts.sum(axis=0) / entry.mass.counts.sum()
    one_way = attention / (np.outer(composition, composition) * attention.sum())
    order = sorted(range(len(STANDARD)), key=lambda place: STANDARD[place])
    return [
        {
            **_labels(entry, "pairs", settings),
            "pair": STANDARD[a] + STANDARD[b],
            "identical": a == b,
            "blosum62": float(blosum62()[a, b]),
            "similarity": float(frequencies[a, b]),
            "similarity_over_uniform": float(uniform[a, b]),
            "similarity_profiles": float(shares[a, b]),
            "from_first": float(one_way[a, b]),
            "from_second": float(one_way[b, a]),
        }
        for i, a in enumerate(order)
        for b in order[i:]
    ]


def headline(rows: list[Row], model: str, estimate: str, level: Level = "model") -> Row:
    """The correlation of a model as a whole."""
    return next(
        row
        for row in rows
        if (row["part"], row["model"], row.get("level"), row.get("estimate")) == ("correlation", model, level, estimate)
    )
