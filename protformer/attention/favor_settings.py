"""What a call of the Performer's operator is made of, as its engines take and give it."""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from protformer.features import Adaptation

_Size = Any  # an int; or a symbol, when a compiler asks

# An engine may keep a segment's state for the backward where it has this many times more rows than features, so that
# states are small beside the inputs; and more than LONG rows.
KEPT_RATIO = 8
LONG = 512


class Inputs(NamedTuple):
    query: Tensor  # [total, heads, dim], like key and value
    key: Tensor
    value: Tensor
    cu_seqlens: Tensor
    projection: Tensor  # [1 or heads, rows, dim]


class Settings(NamedTuple):
    """What is no input."""

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


class Answer(NamedTuple):
    """What a forward gives, and its backward is given."""

    out: Tensor  # [total, heads, dim]
    row_numbers: Tensor  # [heads, total]: one number per row, mostly its denominator
    states: Tensor  # flat, what `state_numbers` says; empty for most engines


def row_numbers(query: Tensor) -> Tensor:
    """Room for one number per head and row, `[heads, total]`."""
    dtype = torch.float64 if query.dtype == torch.float64 else torch.float32
    return query.new_empty(query.shape[1], query.shape[0], dtype=dtype)


def state_numbers(query: Tensor, projection: Tensor, causal: bool) -> Tensor:
    """Room for the states that can be kept, where a compiled CPU engine may serve.

    It depends on shapes alone, since a compiler has to know it. What is not written takes no memory.
    """
    total, heads, dim = query.shape
    rows = projection.shape[-2]
    size = 0 if causal or query.device.type != "cpu" else state_size(rows, dim, query.dtype)
    return query.new_empty(total // shortest_kept(rows) * heads * size, dtype=torch.float32)


def shortest_kept(rows: _Size) -> _Size:
    """Length of the shortest segment whose state is kept."""
    return torch.sym_max(LONG + 1, KEPT_RATIO * rows)


def state_size(rows: _Size, dim: _Size, dtype: torch.dtype) -> _Size:
    """fp32 numbers that one head's state takes as the compiled engine of a type keeps it; 0 where there is none.

    Both keep sums over keys of each feature, the values' centre and the largest weight (in a line of 16); the fp32
    engine values `[features, dim]`, the bf16 engine tiles of 256 numbers, once over features and once over dimensions.
    """
    if dtype == torch.float32:
        features, width = _up(rows, 16), _up(dim, 16)
        return features * width + features + width + 16
    if dtype != torch.bfloat16 or dim % 32:
        return 0
    features = _up(rows, 32)
    tiles = features // 32 * (dim // 16 + 1) + dim // 32 * (features // 16)
    return features + dim + 16 + 256 * tiles


def _up(number: _Size, multiple: int) -> _Size:
    return -(-number // multiple) * multiple
