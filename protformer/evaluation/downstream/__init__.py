"""Downstream tasks from pretrained models and from scratch. `python train.py experiment=downstream`.

tasks      the labelled sets and how their members are trained
intervals  accuracy and rank correlation with 95 % intervals over proteins
experiment all of it
"""

from protformer.evaluation.downstream.experiment import run

__all__ = ["run"]
