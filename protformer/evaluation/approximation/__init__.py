"""How far random features are from softmax attention (`python train.py experiment=approximation_error`)."""

from protformer.evaluation.approximation.experiment import run

__all__ = ["run"]
