"""Weights of exact attention in a Performer, before and after some training. `python train.py experiment=transfer`."""

from protformer.evaluation.transfer.experiment import run

__all__ = ["run"]
