"""One number per sequence, such as the fitness of a variant."""

from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor
from torchmetrics import MeanSquaredError, SpearmanCorrCoef

from protformer.data.batch import Batch
from protformer.data.objectives import Objective, SequenceTargets
from protformer.model.heads import SequenceHead
from protformer.model.pooling import PoolingName
from protformer.training.metrics import Predictions
from protformer.training.tasks.base import Figures, LabelKind, Row, Split, floor_rows


class RegressionFigures(Figures):
    """Spearman's rank correlation and the root mean squared error, both in the labels' own unit."""

    def __init__(self, mean: float, spread: float) -> None:
        super().__init__()
        self.mean = mean
        self.spread = spread
        self.spearman = SpearmanCorrCoef()
        self.squared_error = MeanSquaredError()
        self.predictions = Predictions()

    def update(self, outputs: Tensor, batch: Batch) -> None:
        if len(batch.targets):
            predicted = outputs.squeeze(1).float() * self.spread + self.mean
            self.spearman.update(predicted, batch.targets)
            self.squared_error.update(predicted, batch.targets)
            self.predictions.update(batch.records, predicted, batch.targets)

    def compute(self) -> dict[str, float]:
        return {"spearman": float(self.spearman.compute()), "rmse": float(self.squared_error.compute()) ** 0.5}

    def details(self) -> dict[str, Any]:
        """Record, prediction and target of each sequence, for intervals over proteins."""
        return {"predictions": self.predictions.compute().cpu().tolist()}

    def reset(self) -> None:
        for metric in (self.spearman, self.squared_error, self.predictions):
            metric.reset()


class Regression:
    """Mean squared error on targets standardised by the training set's mean and spread."""

    label_kind: LabelKind = "number"
    mode: Literal["min", "max"] = "max"
    causal = False

    def __init__(self, *, pooling: PoolingName = "mean", head_dropout: float = 0.1) -> None:
        self.name = "regression"
        self.pooling: PoolingName = pooling
        self.head_dropout = head_dropout
        self.monitor = "spearman"
        self.columns = {"spearman": "Spearman", "rmse": "RMSE"}
        self.mean, self.spread = 0.0, 1.0

    def objective(self, split: Split, *, seed: int, training: bool) -> Objective:
        targets = split.required_targets()
        if training:
            self.mean = float(np.mean(targets))
            self.spread = float(np.std(targets)) or 1.0
        return SequenceTargets(split.corpus, targets.astype(np.float32))

    def head(self, *, hidden_size: int, vocabulary_size: int, classes: int) -> SequenceHead:
        return SequenceHead(hidden_size=hidden_size, outputs=1, pooling=self.pooling, dropout=self.head_dropout)

    def loss_sum(self, outputs: Tensor, batch: Batch) -> Tensor:
        return ((outputs.squeeze(1).float() - (batch.targets - self.mean) / self.spread) ** 2).sum()

    def step_terms(self, outputs: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        error = (outputs.detach().squeeze(1).float() * self.spread + self.mean - batch.targets).abs().sum()
        return {"absolute_error": (error, torch.tensor(len(batch.targets), device=outputs.device))}

    def figures(self, classes: tuple[str, ...]) -> RegressionFigures:
        return RegressionFigures(self.mean, self.spread)

    def floors(
        self, train: Split, evaluations: dict[str, Split], objectives: dict[str, Objective], seed: int
    ) -> dict[str, list[Row]]:
        """The training mean, and ridge regression on 1-3-mers and, where all lengths are equal, on positions."""
        from protformer.data.floors.classification import LabelledSequences  # scikit-learn
        from protformer.data.floors.regression import regression_floors

        def labelled(split: Split) -> LabelledSequences:
            return LabelledSequences(split.texts(), split.targets)

        found = regression_floors(labelled(train), {n: labelled(s) for n, s in evaluations.items()}, seed=seed)
        return floor_rows(found)
