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

COLUMNS = ("set", "id", "bin", "targets", "nll", "correct")
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

    @property
    def knows_bins(self) -> bool:
        return any(self.bins.tolist())


def contradiction(metrics: dict[str, Any], proteins: Mapping[str, Proteins]) -> str | None:
    """What the run's figures are in `metrics.json`, and what its proteins make them, where the two differ."""
    headline = headline_of(metrics)
    if headline is None or not (headline.is_perplexity or headline.column == "accuracy"):
        return None  # no sum over proteins
    for name in metrics["sets"]:
        if headline.is_perplexity and name not in proteins and trained_figures(metrics, name).get(headline.column):
            return f"the first alone has the set {name}"
    for name, found in proteins.items():
        if name not in metrics["sets"]:
            return f"the second alone has the set {name}"
        known = metrics["sets"][name].get("sequences")
        if known is not None and known < len(found.keys):  # (a protein without targets has no line)
            return f"{name}: {known:,} sequences in the one, {len(found.keys):,} in the other"
        figures, targets = trained_figures(metrics, name), found.targets.sum()
        of_proteins = {headline.column: found.nll if headline.is_perplexity else found.correct}
        if headline.is_perplexity:
            of_proteins[headline.beside[0]] = found.correct
        for column, sums in of_proteins.items():
            if column not in figures or not targets:
                continue
            said, mean = figures[column], float(sums.sum() / targets)
            made = math.exp(min(mean, 700)) if column.startswith("perplexity") else mean
            if said is None and (np.isnan(made) or column != headline.column):
                continue
            if said is None or not math.isclose(said, made, rel_tol=TOLERANCE, abs_tol=TOLERANCE):
                told = ["not a number" if one is None or np.isnan(one) else f"{one:.4g}" for one in (said, made)]
                label = headline.label if column == headline.column else column
                return f"{label} on {name}: {told[0]} in the one, {told[1]} in the other"
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
    """By evaluation set; empty where the run has no such file, or no protein in it (a task without such figures)."""
    if not file.is_file():
        return {}
    rows: dict[str, list[tuple[tuple[str, int], str, float, float, float]]] = {}
    seen: Counter[tuple[str, str]] = Counter()
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            reader = csv.DictReader(lines, delimiter="\t")
            if reader.fieldnames is None:
                raise ValueError("it is empty")
            for row in reader:
                name, identity = row["set"], row["id"]
                key = (identity, seen[name, identity])
                seen[name, identity] += 1
                cut = [column for column in COLUMNS if row.get(column) is None]
                if cut:
                    raise ValueError(f"line {reader.line_num} has no {cut[0]}")
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
