"""Tasks: what a model is asked, how its answers are scored, and which floors stand beside them. One file a family."""

from protformer.training.tasks.base import Figures, Row, Split, Task
from protformer.training.tasks.classification import ResidueClassification, SequenceClassification
from protformer.training.tasks.recall import Recall
from protformer.training.tasks.regression import Regression
from protformer.training.tasks.residue_prediction import ResiduePrediction

__all__ = [
    "Figures",
    "Recall",
    "Regression",
    "ResidueClassification",
    "ResiduePrediction",
    "Row",
    "SequenceClassification",
    "Split",
    "Task",
]
