"""Differences between two runs on the same proteins, with intervals: what `per_protein.tsv` of both says.

What makes a protein easy for both cancels, so these intervals are much narrower than those of the two figures.
"""

from pathlib import Path
from typing import Literal, NamedTuple

import numpy as np

from protformer.data.floors.bootstrap import mean, paired_difference_interval, perplexity
from protformer.errors import ProtformerError
from protformer.evaluation.comparison.proteins import read_proteins

PER_PROTEIN = "per_protein.tsv"


class Difference(NamedTuple):
    value: float
    low: float
    """Of the 95 % interval over proteins."""
    high: float


def paired_difference(
    run: Path, reference: Path, name: str, figure: Literal["accuracy", "perplexity"], *, seed: int = 0
) -> Difference | None:
    """`figure` of `run` minus that of `reference` on the evaluation set `name`; both are run folders.

    None where one of them has no figures by protein of this set. ProtformerError where they scored other targets.
    """
    one, other = (read_proteins(folder / PER_PROTEIN).get(name) for folder in (run, reference))
    if one is None or other is None:
        return None
    if one.keys != other.keys or not np.array_equal(one.targets, other.targets):
        raise ProtformerError(f"{run} and {reference} scored other proteins or targets of {name}: remove one of them.")
    statistic, column = (mean, "correct") if figure == "accuracy" else (perplexity, "nll")
    sums, others = getattr(one, column), getattr(other, column)
    if not one.targets.sum() or np.isnan(sums).any() or np.isnan(others).any():
        return None
    targets = one.targets.sum()
    value = float(statistic(sums.sum(), targets) - statistic(others.sum(), targets))
    return Difference(value, *paired_difference_interval(sums, others, one.targets, statistic, seed=seed))
