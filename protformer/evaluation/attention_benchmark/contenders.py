"""Who computes it: our attentions, PyTorch's, and the formula written out. Other packages stand in `peers`.

A contender is called the way a user who wants it fast would call it. Where heads-first inputs can be contiguous or a
view of `[length, heads, dim]`, both are tried and the faster is timed. (`scaled_dot_product_attention` gets four
dimensions: with three it takes a path that is about 20 times slower on a CPU.)
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import scaled_dot_product_attention

from protformer.attention import ExactAttention, FavorAttention, HybridAttention
from protformer.attention.engine import engine
from protformer.attention.favor_settings import Settings
from protformer.evaluation.attention_benchmark.cases import Attend, Case, Layout
from protformer.features import (
    CosineFeatures,
    DenseFeatures,
    FeatureMap,
    GeneralizedFeatures,
    HyperbolicFeatures,
    OptimalPositiveFeatures,
    PositiveFeatures,
    RegularizedFeatures,
    TrigonometricFeatures,
    projection_generator,
)
from protformer.features.families import ACTIVATIONS

MAPS: dict[str, Callable[..., FeatureMap]] = {
    "positive": PositiveFeatures,
    "hyperbolic": HyperbolicFeatures,
    "regularized": RegularizedFeatures,
    "optimal": OptimalPositiveFeatures,
    "dense": DenseFeatures,
    "gaussian": partial(PositiveFeatures, kernel="gaussian"),
    "trigonometric": TrigonometricFeatures,
    "cosine": CosineFeatures,
    **{name: partial(GeneralizedFeatures, activation=name) for name in (*ACTIVATIONS, "exp")},
}
"""Our feature maps by the name of their YAML; a new one is a line here."""


@dataclass(frozen=True)
class Contender(ABC):
    """An implementation with its settings. Picklable: its memory is measured in another process."""

    layouts: ClassVar[tuple[Layout, ...]] = ("heads first", "view")
    growth: ClassVar[int] = 1
    """How time grows with a sequence's length: 1 linearly, 2 with its square."""

    @property
    @abstractmethod
    def name(self) -> str: ...

    @property
    def features(self) -> int | None:
        """Random features; None where there are none."""
        return None

    @property
    def map_name(self) -> str | None:
        return None

    def engine(self, case: Case) -> str:
        """What does the arithmetic."""
        return "torch"

    def obstacle(self, case: Case) -> str | None:
        """Why it cannot run this case, as a clause; None where it can."""
        return None

    @abstractmethod
    def attend(self, case: Case) -> Attend:
        """`(query, key, value) -> out`, in the layout that it is asked for."""

    @abstractmethod
    def products(self, case: Case) -> float:
        """Floating-point operations of the matrix products that the result needs; what is recomputed does not count."""

    def workspace(self, case: Case) -> int:
        """Bytes that it takes beside inputs and outputs, roughly, where that can be more than the machine has."""
        return 0


def linear_products(case: Case, rows: int, features: int) -> float:
    """Of a Performer: both projections, the state, the output; and twice each but for the projections' own gradient."""
    projections, mixing = 2 * rows * case.dim, 2 * features * case.dim
    return 2.0 * case.total * case.heads * ((2 * projections + 3 * mixing) if case.backward else projections + mixing)


def exact_products(case: Case) -> float:
    """Of softmax attention: two products of `length x length x dim`, and four more for the backward; half if causal."""
    return (6 if case.backward else 2) * 2.0 * case.squares * case.heads * case.dim / (2 if case.causal else 1)


@dataclass(frozen=True)
class Performer(Contender):
    """Our `FavorAttention` with one of our maps."""

    map: str
    num_features: int

    layouts: ClassVar[tuple[Layout, ...]] = ("packed",)

    @property
    def name(self) -> str:
        return f"protformer-{self.map}"

    @property
    def features(self) -> int:
        return self.num_features

    @property
    def map_name(self) -> str:
        return self.map

    def attention(self, case: Case) -> FavorAttention:
        """The module that is timed; ValueError where it cannot be for this case."""
        return FavorAttention(**self._arguments(case))

    def _arguments(self, case: Case) -> dict[str, Any]:
        features = partial(MAPS[self.map], num_features=self.num_features)
        return {"num_heads": case.heads, "head_dim": case.dim, "features": features, "causal": case.causal}

    def engine(self, case: Case) -> str:
        """The operator's engine that serves such a call."""
        features = self.attention(case).features.to(case.device)
        query = torch.zeros(1, case.heads, case.dim, dtype=case.torch_dtype, device=case.device)
        settings = Settings(
            adaptation=features.adapt(query, query, replace(case, lengths=(1,)).offsets()),
            family=features.family_name,
            epsilon=features.epsilon,
            norm_weight=features.norm_weight,
            causal=case.causal,
            shortest=0,
        )
        return engine(query, features.projection, settings).__name__.rpartition(".")[2]

    def obstacle(self, case: Case) -> str | None:
        try:
            self.attention(case)
        except ValueError as error:
            return str(error)
        return None

    def attend(self, case: Case) -> Attend:
        attention = self.attention(case)
        attention.redraw_(projection_generator(0, 0, 0))
        return partial(attention.to(case.device), cu_seqlens=case.offsets())

    def products(self, case: Case) -> float:
        return linear_products(case, self.attention(case).features.rows, self.num_features)


@dataclass(frozen=True)
class Hybrid(Performer):
    """Our `HybridAttention` with its own threshold: exact attention for short segments."""

    @property
    def name(self) -> str:
        return f"protformer-hybrid-{self.map}"

    def attention(self, case: Case) -> HybridAttention:
        return HybridAttention(**self._arguments(case))

    def products(self, case: Case) -> float:
        threshold = self.attention(case).threshold
        short = replace(case, lengths=tuple(length for length in case.lengths if length < threshold))
        long = replace(case, lengths=tuple(length for length in case.lengths if length >= threshold))
        return exact_products(short) + super().products(long)


@dataclass(frozen=True)
class Exact(Contender):
    """Our `ExactAttention`: segment by segment on a CPU."""

    layouts: ClassVar[tuple[Layout, ...]] = ("packed",)
    growth: ClassVar[int] = 2

    @property
    def name(self) -> str:
        return "protformer-exact"

    def attention(self, case: Case) -> ExactAttention:
        """The module that is timed."""
        return ExactAttention(num_heads=case.heads, head_dim=case.dim, causal=case.causal)

    def attend(self, case: Case) -> Attend:
        return partial(self.attention(case), cu_seqlens=case.offsets())

    def products(self, case: Case) -> float:
        return exact_products(case)


@dataclass(frozen=True)
class Sdpa(Contender):
    """`torch.nn.functional.scaled_dot_product_attention`; a pack is padded to its longest sequence, as users pad."""

    growth: ClassVar[int] = 2

    @property
    def name(self) -> str:
        return "sdpa"

    def attend(self, case: Case) -> Attend:
        mask: Tensor | None = None
        # With padding on the right, a causal row never sees it.
        if len(set(case.lengths)) > 1 and not case.causal:
            ends = torch.tensor(case.lengths, device=case.device)
            mask = (torch.arange(case.longest, device=case.device) < ends[:, None])[:, None, None, :]
        return partial(scaled_dot_product_attention, attn_mask=mask, is_causal=case.causal)

    def products(self, case: Case) -> float:
        return exact_products(case)


@dataclass(frozen=True)
class Softmax(Contender):
    """softmax(q k^T / sqrt(dim)) v in three lines of PyTorch, which keep all its weights."""

    growth: ClassVar[int] = 2

    @property
    def name(self) -> str:
        return "softmax"

    def attend(self, case: Case) -> Attend:
        length, causal = case.longest, case.causal
        future = torch.ones(length, length, dtype=torch.bool, device=case.device).triu(1) if causal else None

        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            logits = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
            if future is not None:
                logits = logits.masked_fill(future, -torch.inf)
            return logits.softmax(dim=-1) @ value

        return attend

    def products(self, case: Case) -> float:
        return exact_products(case)

    def workspace(self, case: Case) -> int:
        matrices = (4 if case.backward else 2) + case.causal
        return matrices * case.heads * case.squares * case.torch_dtype.itemsize
