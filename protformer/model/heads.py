"""Heads: what a task reads from the encoder's hidden states."""

from typing import Any

import torch
from jaxtyping import Float, Int32
from torch import Tensor, nn
from torch.nn.functional import linear

from protformer.model.pooling import Pooling, PoolingName


class LanguageModelHead(nn.Module):
    """ESM-2's: dense, erf GELU, layer norm, the tied embedding and a bias: `[total, hidden] -> [total, vocabulary]`."""

    def __init__(self, *, hidden_size: int, vocabulary_size: int = 33) -> None:
        super().__init__()
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.activation = nn.GELU()
        self.norm = nn.LayerNorm(hidden_size, eps=1e-5)
        self.bias = nn.Parameter(torch.zeros(vocabulary_size))

    def forward(
        self, hidden: Float[Tensor, "rows hidden"], embedding: Float[Tensor, "vocabulary hidden"]
    ) -> Float[Tensor, "rows vocabulary"]:
        return linear(self.norm(self.activation(self.dense(hidden))), embedding, self.bias)

    def config(self) -> dict[str, Any]:
        return {"name": type(self).__name__}


class SequenceHead(nn.Module):
    """One vector per sequence to class logits or a number: pooling, then a small perceptron."""

    def __init__(
        self,
        *,
        hidden_size: int,
        outputs: int,
        pooling: PoolingName = "mean",
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.outputs = outputs
        self.pooling = Pooling(hidden_size=hidden_size, pooling=pooling)
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.activation = nn.GELU()
        self.project = nn.Linear(hidden_size, outputs)

    def forward(
        self, hidden: Float[Tensor, "total hidden"], cu_seqlens: Int32[Tensor, "segments_plus_one"]
    ) -> Float[Tensor, "segments outputs"]:
        pooled = self.pooling(hidden, cu_seqlens)
        return self.project(self.dropout(self.activation(self.dense(self.dropout(pooled)))))

    def config(self) -> dict[str, Any]:
        return {
            "name": type(self).__name__,
            "outputs": self.outputs,
            "pooling": self.pooling.pooling,
            "dropout": self.dropout.p,
        }


class ResidueHead(nn.Module):
    """Class logits for every row: `[total, hidden] -> [total, outputs]`."""

    def __init__(self, *, hidden_size: int, outputs: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.outputs = outputs
        self.dropout = nn.Dropout(dropout)
        self.dense = nn.Linear(hidden_size, hidden_size)
        self.activation = nn.GELU()
        self.project = nn.Linear(hidden_size, outputs)

    def forward(self, hidden: Float[Tensor, "rows hidden"]) -> Float[Tensor, "rows outputs"]:
        return self.project(self.dropout(self.activation(self.dense(hidden))))

    def config(self) -> dict[str, Any]:
        return {"name": type(self).__name__, "outputs": self.outputs, "dropout": self.dropout.p}
