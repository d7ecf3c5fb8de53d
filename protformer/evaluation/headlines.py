"""The figure that a task is judged by, as `metrics.json` names it and as people read it."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Headline:
    """A task's main figure, and those beside it, as columns of `metrics.json`."""

    column: str
    label: str
    beside: tuple[str, ...]
    lower_is_better: bool

    @property
    def is_perplexity(self) -> bool:
        return self.column.startswith("perplexity")

    @property
    def direction(self) -> str:
        return f"{'lower' if self.lower_is_better else 'higher'} is better"


HEADLINES = (
    Headline("perplexity_mask", "perplexity at <mask>", ("accuracy_mask", "perplexity_all", "accuracy_all"), True),
    Headline("perplexity_residues", "perplexity of the next residue", ("accuracy_residues",), True),
    Headline("accuracy", "accuracy", ("macro_f1", "mcc"), False),
    Headline("macro_f1", "macro F1", ("accuracy", "mcc"), False),
    Headline("spearman", "Spearman's rank correlation", ("rmse",), False),
)


def headline_of(metrics: Mapping[str, Any]) -> Headline | None:
    """Of a run's `metrics.json`; None where its rows hold no figure that is known."""
    figures = {name for found in metrics["sets"].values() for row in found["rows"] for name in row["figures"]}
    return next((headline for headline in HEADLINES if headline.column in figures), None)
