"""The contract of a task: what a model is asked, how its answers are scored, and which floors stand beside them."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, runtime_checkable

import numpy as np
from torch import Tensor, nn

from protformer.data.batch import Batch
from protformer.data.corpus import Corpus
from protformer.data.floors.result import FloorResult
from protformer.data.objectives import Objective
from protformer.model.protein_model import Head

LabelKind = Literal["none", "class", "multi_label", "residue", "number"]


@dataclass
class Split:
    """Sequences of one part of the data, with targets where the task needs labels."""

    name: str
    corpus: Corpus
    targets: np.ndarray | None = None
    classes: tuple[str, ...] = ()

    def required_targets(self) -> np.ndarray:
        """The targets; ValueError where the split has none."""
        if self.targets is None:
            raise ValueError(f"the {self.name} split has no labels")
        return self.targets

    def subset(self, indices: np.ndarray) -> "Split":
        """These sequences, with their targets, which there are one a sequence or one a residue."""
        corpus, targets = self.corpus, self.targets
        if targets is not None and len(targets) == len(corpus):
            targets = targets[indices]
        elif targets is not None:
            targets = np.concatenate([targets[corpus.offsets[i] : corpus.offsets[i + 1]] for i in indices])
        return Split(self.name, corpus.subset(indices), targets, self.classes)

    def texts(self) -> list[str]:
        """The sequences as letters, which is what the floors read."""
        return [self.corpus.text(i) for i in range(len(self.corpus))]


@dataclass
class Row:
    """One line of the closing table: a model or a floor, and its figures by name."""

    name: str
    figures: dict[str, float]
    note: str = ""
    per_sequence: np.ndarray | None = None
    """`[records, 4]` of (record, sum of the monitored NLL, targets, correct), for paired intervals over proteins."""


def floor_rows(floors: Mapping[str, Sequence[FloorResult]]) -> dict[str, list[Row]]:
    """What the data room's floors scored, by evaluation set, as rows of the closing table."""
    return {name: [Row(f.name, dict(f.metrics), f.note) for f in found] for name, found in floors.items()}


class Figures(nn.Module):
    """Scores of one evaluation set, summed over batches and ranks; a module, so that its metrics change devices."""

    def update(self, outputs: Tensor, batch: Batch) -> None:
        raise NotImplementedError

    def compute(self) -> dict[str, float]:
        """Named figures; collective, so every rank has to call it."""
        raise NotImplementedError

    def details(self) -> dict[str, Any]:
        """Whatever is no single number (per-class report, confusion matrix, sums per protein); plain JSON values."""
        return {}

    def reset(self) -> None:
        raise NotImplementedError


@runtime_checkable
class Task(Protocol):
    """One file a task. `monitor` is the figure that picks the best checkpoint, `columns` are the closing table's."""

    name: str
    label_kind: LabelKind
    causal: bool
    monitor: str
    mode: Literal["min", "max"]
    columns: dict[str, str]

    def objective(self, split: Split, *, seed: int, training: bool) -> Objective: ...

    def head(self, *, hidden_size: int, vocabulary_size: int, classes: int) -> Head: ...

    def loss_sum(self, outputs: Tensor, batch: Batch) -> Tensor:
        """The weighted sum over the batch's targets; the module divides by the weight of the whole optimiser step."""
        ...

    def step_terms(self, outputs: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        """(sum, count) of the figures that are logged at every training step."""
        ...

    def figures(self, classes: tuple[str, ...]) -> Figures: ...

    def floors(
        self, train: Split, evaluations: dict[str, Split], objectives: dict[str, Objective], seed: int
    ) -> dict[str, list[Row]]:
        """Baselines without a model, fitted on `train`, by evaluation set."""
        ...
