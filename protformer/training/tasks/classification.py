"""Classes: of a sequence (one, or several at once) and of each residue."""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits, cross_entropy
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassConfusionMatrix,
    MulticlassF1Score,
    MulticlassMatthewsCorrCoef,
    MulticlassPrecision,
    MulticlassRecall,
    MultilabelAccuracy,
    MultilabelF1Score,
    MultilabelMatthewsCorrCoef,
)

from protformer.data.batch import Batch
from protformer.data.objectives import Objective, ResidueTargets, SequenceTargets
from protformer.model.heads import ResidueHead, SequenceHead
from protformer.model.pooling import PoolingName
from protformer.training.metrics import SequenceSums, SumOverCount
from protformer.training.tasks.base import Figures, LabelKind, Row, Split, floor_rows

CLASS_COLUMNS = {"accuracy": "accuracy", "macro_f1": "macro F1", "mcc": "MCC"}


class ClassFigures(Figures):
    """torchmetrics' accuracy, macro-F1 and MCC, with a report per class and the confusion matrix."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.classes = classes
        number: dict[str, Any] = {"num_classes": max(len(classes), 2), "validate_args": False}
        self.scores = MetricCollection(
            {
                "accuracy": MulticlassAccuracy(average="micro", **number),
                "macro_f1": MulticlassF1Score(average="macro", **number),
                "mcc": MulticlassMatthewsCorrCoef(**number),
            }
        )
        self.per_class = MetricCollection(
            {
                "precision": MulticlassPrecision(average="none", **number),
                "recall": MulticlassRecall(average="none", **number),
                "f1": MulticlassF1Score(average="none", **number),
            }
        )
        self.confusion = MulticlassConfusionMatrix(**number)
        self.nll = SumOverCount()
        self.per_sequence = SequenceSums()

    def update(self, outputs: Tensor, batch: Batch) -> None:
        if len(batch.targets) == 0:
            return
        predicted = outputs.argmax(dim=1)
        for metric in (self.scores, self.per_class, self.confusion):
            metric.update(predicted, batch.targets)
        nll = cross_entropy(outputs.float(), batch.targets, reduction="none")
        self.nll.update(nll.double().sum(), torch.tensor(len(batch.targets), device=nll.device))
        self.per_sequence.update(batch.records, nll, predicted == batch.targets)

    def compute(self) -> dict[str, float]:
        return {**{k: float(v) for k, v in self.scores.compute().items()}, "nll": float(self.nll.compute())}

    def details(self) -> dict[str, Any]:
        confusion = self.confusion.compute().tolist()
        columns = {name: values.tolist() for name, values in self.per_class.compute().items()}
        report = {
            name: {**{column: values[i] for column, values in columns.items()}, "count": sum(confusion[i])}
            for i, name in enumerate(self.classes)
        }
        scores = {"classes": list(self.classes), "per_class": report, "confusion": confusion}
        return {**scores, "per_sequence": self.per_sequence.compute().cpu().tolist()}

    def reset(self) -> None:
        for metric in (self.scores, self.per_class, self.confusion, self.nll, self.per_sequence):
            metric.reset()


class MultiLabelFigures(Figures):
    """The same three over labels: accuracy and MCC over all (sequence, label) pairs, F1 the mean over labels."""

    def __init__(self, classes: tuple[str, ...]) -> None:
        super().__init__()
        self.classes = classes
        number: dict[str, Any] = {"num_labels": max(len(classes), 2), "validate_args": False}
        self.scores = MetricCollection(
            {
                "accuracy": MultilabelAccuracy(average="micro", **number),
                "macro_f1": MultilabelF1Score(average="macro", **number),
                "mcc": MultilabelMatthewsCorrCoef(**number),
            }
        )
        self.per_label: Metric = MultilabelF1Score(average="none", **number)

    def update(self, outputs: Tensor, batch: Batch) -> None:
        if len(batch.targets) == 0:
            return
        labels = batch.targets.long()
        # torchmetrics would take logits that all happen to lie in [0, 1] for probabilities
        probabilities = outputs.float().sigmoid()
        self.scores.update(probabilities, labels)
        self.per_label.update(probabilities, labels)

    def compute(self) -> dict[str, float]:
        return {k: float(v) for k, v in self.scores.compute().items()}

    def details(self) -> dict[str, Any]:
        scores = self.per_label.compute().tolist()
        return {"classes": list(self.classes), "per_class": {n: {"f1": scores[i]} for i, n in enumerate(self.classes)}}

    def reset(self) -> None:
        self.scores.reset()
        self.per_label.reset()


class SequenceClassification:
    """One class per sequence, or with `multi_label` any number of them.

    Args:
        pooling: "mean" or "attention" over residues, or the "first" or "last" token.
        class_weights: "none", or "balanced" (inversely proportional to the training frequencies).
        head_dropout: in the classifier.
    """

    mode: Literal["min", "max"] = "max"
    causal = False

    def __init__(
        self,
        *,
        pooling: PoolingName = "mean",
        multi_label: bool = False,
        class_weights: Literal["none", "balanced"] = "none",
        head_dropout: float = 0.1,
    ) -> None:
        if multi_label and class_weights != "none":
            raise ValueError("task.class_weights=balanced is for one class per sequence; drop it or task.multi_label")
        self.name = "sequence_classification"
        self.label_kind: LabelKind = "multi_label" if multi_label else "class"
        self.pooling: PoolingName = pooling
        self.class_weights = class_weights
        self.head_dropout = head_dropout
        self.monitor = "macro_f1" if multi_label else "accuracy"
        self.columns = dict(CLASS_COLUMNS)
        self._weights: np.ndarray | None = None

    def objective(self, split: Split, *, seed: int, training: bool) -> Objective:
        targets = split.required_targets()
        if training and self.class_weights == "balanced":
            self._weights = balanced_weights(targets, len(split.classes))
        return SequenceTargets(split.corpus, targets, class_weights=self._weights if training else None)

    def head(self, *, hidden_size: int, vocabulary_size: int, classes: int) -> SequenceHead:
        return SequenceHead(hidden_size=hidden_size, outputs=classes, pooling=self.pooling, dropout=self.head_dropout)

    def loss_sum(self, outputs: Tensor, batch: Batch) -> Tensor:
        if self.label_kind == "multi_label":
            return (
                binary_cross_entropy_with_logits(outputs.float(), batch.targets.float(), reduction="none").mean(1).sum()
            )
        return cross_entropy(outputs.float(), batch.targets, weight=_as_tensor(self._weights, outputs), reduction="sum")

    def step_terms(self, outputs: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        if self.label_kind == "multi_label":
            correct = ((outputs.detach() > 0) == (batch.targets > 0.5)).float().mean(1)
        else:
            correct = outputs.detach().argmax(dim=1) == batch.targets
        return {"accuracy": (correct.sum(), torch.tensor(len(correct), device=outputs.device))}

    def figures(self, classes: tuple[str, ...]) -> Figures:
        return MultiLabelFigures(classes) if self.label_kind == "multi_label" else ClassFigures(classes)

    def floors(
        self, train: Split, evaluations: dict[str, Split], objectives: dict[str, Objective], seed: int
    ) -> dict[str, list[Row]]:
        """The majority class; logistic regression on 1-3-mers, also with the termini apart."""
        from protformer.data.floors.classification import LabelledSequences, classification_floors  # scikit-learn

        def labelled(split: Split) -> LabelledSequences:
            targets = split.required_targets()
            names = targets if self.label_kind == "multi_label" else np.array(train.classes)[targets]
            return LabelledSequences(split.texts(), names)

        found = classification_floors(labelled(train), {n: labelled(s) for n, s in evaluations.items()}, seed=seed)
        return floor_rows(found)


class ResidueClassification:
    """A class for each residue that has one, such as three-state secondary structure (accuracy is then Q3)."""

    label_kind: LabelKind = "residue"
    mode: Literal["min", "max"] = "max"
    causal = False

    def __init__(self, *, class_weights: Literal["none", "balanced"] = "none", head_dropout: float = 0.1) -> None:
        self.name = "residue_classification"
        self.class_weights = class_weights
        self.head_dropout = head_dropout
        self.monitor = "accuracy"
        self.columns = {**CLASS_COLUMNS, "accuracy": "accuracy (Q3 for three states)"}
        self._weights: np.ndarray | None = None

    def objective(self, split: Split, *, seed: int, training: bool) -> Objective:
        targets = split.required_targets()
        if training and self.class_weights == "balanced":
            self._weights = balanced_weights(targets[targets >= 0], len(split.classes))
        return ResidueTargets(split.corpus, targets, class_weights=self._weights if training else None)

    def head(self, *, hidden_size: int, vocabulary_size: int, classes: int) -> ResidueHead:
        return ResidueHead(hidden_size=hidden_size, outputs=classes, dropout=self.head_dropout)

    def loss_sum(self, outputs: Tensor, batch: Batch) -> Tensor:
        return cross_entropy(outputs.float(), batch.targets, weight=_as_tensor(self._weights, outputs), reduction="sum")

    def step_terms(self, outputs: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        correct = outputs.detach().argmax(dim=1) == batch.targets
        return {"accuracy": (correct.sum(), torch.tensor(len(correct), device=outputs.device))}

    def figures(self, classes: tuple[str, ...]) -> Figures:
        return ClassFigures(classes)

    def floors(
        self, train: Split, evaluations: dict[str, Split], objectives: dict[str, Objective], seed: int
    ) -> dict[str, list[Row]]:
        """The majority class, the residue itself, and a window of 15 residues."""
        from protformer.data.floors.residue import LabelledResidues, residue_floors  # scikit-learn

        def labelled(split: Split) -> LabelledResidues:
            states = np.split(split.required_targets(), split.corpus.offsets[1:-1])
            return LabelledResidues(split.texts(), states, [(s >= 0).astype(int) for s in states])

        found = residue_floors(labelled(train), {n: labelled(s) for n, s in evaluations.items()}, seed=seed)
        return floor_rows(found)


def balanced_weights(targets: np.ndarray, classes: int) -> np.ndarray:
    """n / (classes present x n_c) for each class, as scikit-learn's "balanced"; 0 for a class that the targets lack."""
    counts = np.bincount(targets, minlength=classes)
    return np.where(counts > 0, len(targets) / (np.count_nonzero(counts) * np.maximum(counts, 1)), 0.0)


def _as_tensor(weights: np.ndarray | None, like: Tensor) -> Tensor | None:
    return None if weights is None else torch.as_tensor(weights, dtype=torch.float32, device=like.device)
