"""What of a call of the Performer's operator is no input, as its engines take it."""

from typing import NamedTuple

import torch
from torch import Tensor

from protformer.features import Adaptation


class Settings(NamedTuple):
    adaptation: Adaptation
    family: str
    epsilon: float
    norm_weight: float
    causal: bool
    shortest: int

    @classmethod
    def of(cls, constants: tuple) -> "Settings":
        """From the operator's arguments behind the projection (an operator takes no Python objects)."""
        *adaptation, family, epsilon, norm_weight, causal, shortest = constants
        return cls(Adaptation(*adaptation), family, epsilon, norm_weight, causal, shortest)

    def output_like(self, x: Tensor) -> Tensor:
        """Room for rows of a pack: zero where segments are left out, else whatever, for all rows will be written."""
        return torch.zeros_like(x) if self.shortest > 1 else torch.empty_like(x)


def row_numbers(query: Tensor) -> Tensor:
    """Room for one number per head and row, `[heads, total]`, which an engine's forward may leave to its backward."""
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    return query.new_empty(query.shape[1], query.shape[0], dtype=dtype)
