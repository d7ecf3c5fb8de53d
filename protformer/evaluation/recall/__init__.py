"""Long recall: which attentions find an answer thousands of residues away. `python train.py experiment=long_recall`."""

from protformer.evaluation.recall.experiment import run

__all__ = ["run"]
