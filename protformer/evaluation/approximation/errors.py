"""How far an estimate of attention is from softmax attention, on one sample.

- output error: |a - o| / |o| of the outputs of all rows, Frobenius norms, per head: a the estimate's, o softmax's.
- output MSE: the mean over entries of (a - o)^2, which the paper draws; it depends on the size of the values.
- distance: total variation between the rows of both attention matrices, mean over sampled rows (see
  `protformer.attention.diagnostics`). It does not depend on the values.

Uniform attention is measured alike: an estimate that is not below it would do better not to look.
"""

from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float64
from torch import Tensor

from protformer.attention import FavorAttention, UniformAttention
from protformer.attention.diagnostics import row_figures
from protformer.attention.exact import exact_attention
from protformer.evaluation.approximation.samples import Sample
from protformer.features import projection_generator

# Keys that make pairs with a row for |z|^2.
PAIRS = 16


class Figures(NamedTuple):
    """Of one estimate on one sample, by head."""

    output_error: Float64[np.ndarray, " heads"]
    output_mse: Float64[np.ndarray, " heads"]
    distance: Float64[np.ndarray, " heads"]
    effective_features: Float64[np.ndarray, " heads"]
    negative_share: Float64[np.ndarray, " heads"]


class Reference:
    """Softmax attention of a sample, and the rows that are looked at; both are the same for every estimator."""

    def __init__(self, sample: Sample, *, rows: int, seed: int) -> None:
        self.sample = sample
        length = sample.query.shape[0]
        self.cu_seqlens = torch.tensor([0, length], dtype=torch.int32)
        self.exact = exact_attention(sample.query, sample.key, sample.value, self.cu_seqlens, causal=sample.causal)
        generator = projection_generator(seed, sample.number, 1)
        self.rows = torch.randperm(length, generator=generator)[: min(rows, length)]
        self.picks = torch.rand(len(self.rows), PAIRS, generator=generator, dtype=torch.float64)

    def figures(self, estimate: FavorAttention) -> Figures:
        """Of an estimator whose projection is drawn."""
        looked = row_figures(estimate, self.sample.query, self.sample.key, self.cu_seqlens, self.rows, self.picks)
        error, mse = self.errors(self.output(estimate))
        return Figures(
            error,
            mse,
            looked.distance.mean(dim=1).numpy(),
            looked.effective_features.mean(dim=1).numpy(),
            looked.negative_share.mean(dim=1).numpy(),
        )

    def output(self, estimate: FavorAttention) -> Float64[Tensor, "length heads dim"]:
        return estimate(self.sample.query, self.sample.key, self.sample.value, self.cu_seqlens)

    def errors(
        self, output: Float64[Tensor, "length heads dim"]
    ) -> tuple[Float64[np.ndarray, " heads"], Float64[np.ndarray, " heads"]]:
        """Relative error and mean squared error of an output, by head."""
        difference = output - self.exact
        return self.relative(difference), difference.square().mean(dim=(0, 2)).numpy()

    def relative(self, difference: Float64[Tensor, "length heads dim"]) -> Float64[np.ndarray, " heads"]:
        """The norm of what an output differs by, over that of softmax attention's output."""
        return (difference.norm(dim=(0, 2)) / self.exact.norm(dim=(0, 2))).numpy()

    def of_uniform(self, estimate: FavorAttention) -> tuple[Figures, float, float]:
        """The figures of uniform attention, and mean and 95th percentile of |z|^2; any estimator's look tells them."""
        _, heads, dim = self.sample.query.shape
        looked = row_figures(estimate, self.sample.query, self.sample.key, self.cu_seqlens, self.rows, self.picks)
        uniform = UniformAttention(num_heads=heads, head_dim=dim, causal=self.sample.causal)
        output = uniform(self.sample.query, self.sample.key, self.sample.value, self.cu_seqlens)
        error, mse = self.errors(output)
        none = np.full(heads, np.nan)
        figures = Figures(error, mse, looked.distance_uniform.mean(dim=1).numpy(), none, np.zeros(heads))
        return figures, float(looked.z2.mean()), float(looked.z2.flatten().quantile(0.95))
