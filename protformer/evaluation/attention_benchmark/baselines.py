"""The baseline attentions of a comparison as contenders: timed where `--implementations` names them.

Each has the options of its YAML, but that Linformer's longest sequence is the case's. `products` counts the pairs that
a pattern holds, not those that chunks compute beside them and mask.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from protformer.attention import (
    Attention,
    LinformerAttention,
    ReformerAttention,
    SparseAttention,
    UniformAttention,
)
from protformer.evaluation.attention_benchmark.cases import Attend, Case, Layout
from protformer.evaluation.attention_benchmark.contenders import Contender

BASELINES: dict[str, Callable[..., Attention]] = {
    "uniform": UniformAttention,
    "linformer": LinformerAttention,
    "reformer": ReformerAttention,
    "sparse-strided": partial(SparseAttention, pattern="strided"),
    "sparse-fixed": partial(SparseAttention, pattern="fixed"),
    "sparse-window": partial(SparseAttention, pattern="window"),
}


@dataclass(frozen=True)
class Baseline(Contender):
    """One of `BASELINES`, by its name."""

    kind: str

    layouts: ClassVar[tuple[Layout, ...]] = ("packed",)

    @property
    def name(self) -> str:
        return f"protformer-{self.kind}"

    def attention(self, case: Case) -> Attention:
        """The module that is timed; ValueError where it cannot be for this case."""
        longest = {"length": case.longest} if self.kind == "linformer" else {}
        return BASELINES[self.kind](num_heads=case.heads, head_dim=case.dim, causal=case.causal, **longest)

    def obstacle(self, case: Case) -> str | None:
        try:
            self.attention(case)
        except ValueError as error:
            return str(error)
        return None

    def attend(self, case: Case) -> Attend:
        return partial(self.attention(case).to(case.device), cu_seqlens=case.offsets())

    def products(self, case: Case) -> float:
        attention = self.attention(case)
        size = 2.0 * case.heads * case.dim
        if isinstance(attention, LinformerAttention):
            # projections of k and v and the gradients of both; softmax attention to `rank` keys
            return size * case.total * attention.rank * (10 if case.backward else 4)
        if isinstance(attention, ReformerAttention):
            pairs, hashes = map(sum, zip(*(_hashed(attention, length) for length in case.lengths), strict=True))
            return size * (pairs * (6 if case.backward else 2) + hashes)
        if isinstance(attention, SparseAttention):
            pairs = sum(pattern_pairs(attention, length) for length in case.lengths)
            return size * pairs * (6 if case.backward else 2)
        return 0.0


@dataclass(frozen=True)
class RootBaseline(Baseline):
    """One whose time grows as length^1.5, which is foretold as its square: the next whole number."""

    growth: ClassVar[int] = 2


def baseline(name: str) -> Baseline:
    return RootBaseline(name) if name in ("sparse-strided", "sparse-fixed") else Baseline(name)


def _hashed(attention: ReformerAttention, length: int) -> tuple[float, float]:
    """Pairs of all rounds, if each bucket gets as many tokens, and products of a token with a direction."""
    low, high = (int(x) for x in attention.digits(torch.tensor([length])))
    rounds = attention.rounds if low > 1 else 1
    pairs = rounds * length * length / (low * high)
    directions = (low // 2 + (high // 2 if high > 1 else 0)) * rounds
    return pairs / (2 if attention.causal else 1), float(length * directions)


def pattern_pairs(attention: SparseAttention, length: int) -> int:
    """How many pairs of a segment of `length` tokens its pattern holds."""
    i = torch.arange(length)
    after = length - 1 - i
    if attention.pattern == "window":
        window, few = attention.window, attention.global_tokens

        def before(i: Tensor) -> Tensor:
            return i.clamp_max(window) + (i - window).clamp(0, few)

        seen = before(i) + 1
        if not attention.causal:
            seen = torch.where(i < few, length, seen + after.clamp_max(window))
        return int(seen.sum())
    stride = int(attention.strides(torch.tensor([0, length])))
    if attention.pattern == "strided":

        def before(i: Tensor) -> Tensor:
            return i.clamp_max(stride) + (i // stride - 1).clamp_min(0)

        return int((before(i) + 1 + (0 if attention.causal else before(after))).sum())
    shown = i % stride >= stride - attention.expressivity
    counted = torch.bincount(i // stride, weights=shown.double(), minlength=1).long()  # in each block
    others = counted.cumsum(0) - counted if attention.causal else counted.sum() - counted
    own = i % stride + 1 if attention.causal else torch.bincount(i // stride)[i // stride]
    return int((own + others[i // stride]).sum())
