"""What a run says of each protein, `per_protein.tsv`: what intervals and paired differences are made of."""

import csv
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protformer.errors import ProtformerError
from protformer.evaluation.headlines import headline_of
from protformer.evaluation.runs import trained_figures

TOLERANCE = 1e-3
"""Of a headline figure, relative: `per_protein.tsv` keeps six decimals of each sum."""


@dataclass(frozen=True)
class Proteins:
    """An evaluation set by protein, as `per_protein.tsv` has it; all [proteins], in the order of `keys`."""

    keys: tuple[tuple[str, int], ...]
    """(id, how many proteins of this id stand before it), sorted: ids need not be unique."""
    bins: np.ndarray
    targets: np.ndarray
    nll: np.ndarray
    """Nats, summed over the protein's targets; NaN where the task has none."""
    correct: np.ndarray


def contradiction(metrics: dict[str, Any], proteins: Mapping[str, Proteins]) -> str | None:
    """What the run's headline figure is in `metrics.json`, and what its proteins make it, where the two differ."""
    headline = headline_of(metrics)
    if headline is None or not (headline.is_perplexity or headline.column == "accuracy"):
        return None  # no sum over proteins
    for name, found in proteins.items():
        if name not in metrics["sets"]:
            return f"the second alone has the set {name}"
        said = trained_figures(metrics, name).get(headline.column)
        targets = found.targets.sum()
        if said is None or not targets:
            continue
        of_all = (found.nll if headline.is_perplexity else found.correct).sum() / targets
        if np.isnan(of_all):
            if said is not None:
                return f"{headline.label} on {name}: {said:.4g} in the one, not a number in the other"
            continue
        made = math.exp(min(of_all, 700)) if headline.is_perplexity else float(of_all)
        if not math.isclose(said, made, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
            return f"{headline.label} on {name}: {said:.4g} in the one, {made:.4g} in the other"
    return None


def diverged(metrics: dict[str, Any], proteins: Mapping[str, Proteins]) -> str | None:
    """The first figure that should be a perplexity and is no number, in words; None where there is none."""
    headline = headline_of(metrics)
    if headline is None or not headline.is_perplexity:
        return None
    for name, found in proteins.items():
        if found.targets.sum() and not np.isfinite(found.nll.sum()):
            return f"its {headline.label} on {name} is not a number: training diverged"
    return None


def read_proteins(file: Path) -> dict[str, Proteins]:
    """By evaluation set; empty where the run has no such file (a task without a figure by protein)."""
    if not file.is_file():
        return {}
    rows: dict[str, list[tuple[tuple[str, int], str, float, float, float]]] = {}
    seen: Counter[tuple[str, str]] = Counter()
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines, delimiter="\t"):
                name, identity = row["set"], row["id"]
                key = (identity, seen[name, identity])
                seen[name, identity] += 1
                numbers = (_number(row["targets"]), _number(row["nll"]), _number(row["correct"]))
                rows.setdefault(name, []).append((key, row["bin"] or "", *numbers))
    except (KeyError, TypeError, ValueError) as error:
        raise ProtformerError(f"{file} is not a table of set, id, bin, targets, nll and correct ({error}).") from error
    return {name: _columns(sorted(found, key=lambda row: row[0])) for name, found in rows.items()}


def _number(text: str) -> float:
    return float(text) if text else float("nan")


def _columns(rows: Iterable[tuple[tuple[str, int], str, float, float, float]]) -> Proteins:
    keys, bins, targets, nll, correct = zip(*rows, strict=True)
    return Proteins(keys, np.array(bins), np.array(targets), np.array(nll), np.array(correct))
