"""Amino-acid similarity from attention (`python train.py experiment=amino_acid_similarity`)."""

from protformer.evaluation.similarity.experiment import run

__all__ = ["run"]
