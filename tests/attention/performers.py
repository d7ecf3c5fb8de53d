"""What the numeric tests of the Performer share: maps of a realistic kind, inputs, and one step forward and back."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from protformer.attention import FavorAttention
from protformer.features import (
    CosineFeatures,
    DenseFeatures,
    GeneralizedFeatures,
    HyperbolicFeatures,
    OptimalPositiveFeatures,
    PositiveFeatures,
    RegularizedFeatures,
    TrigonometricFeatures,
    projection_generator,
)
from protformer.features.moments import MovingMoments

# name: (class, options). All but the last two are positive, so that no denominator passes through zero.
PERFORMERS = {
    "positive": (PositiveFeatures, {}),
    "positive centred": (PositiveFeatures, {"centred": True}),
    "positive moving": (PositiveFeatures, {"centred": True, "statistics": "moving"}),
    "gaussian": (PositiveFeatures, {"kernel": "gaussian"}),
    "hyperbolic": (HyperbolicFeatures, {}),
    "regularized": (RegularizedFeatures, {}),
    "optimal": (OptimalPositiveFeatures, {}),
    "optimal centred per head": (OptimalPositiveFeatures, {"centred": True, "per_head": True}),
    "optimal moving": (OptimalPositiveFeatures, {"centred": True, "statistics": "moving"}),
    "dense": (DenseFeatures, {}),
    "dense centred": (DenseFeatures, {"centred": True}),
    "relu": (GeneralizedFeatures, {}),
    "exp": (GeneralizedFeatures, {"activation": "exp"}),
    "trigonometric": (TrigonometricFeatures, {}),
    "cosine": (CosineFeatures, {}),
}
SIGNED = ("trigonometric", "cosine")
POSITIVE = [name for name in PERFORMERS if name not in SIGNED]
# Statistics of a segment hold its future.
SEGMENT_STATISTICS = ("positive centred", "optimal", "optimal centred per head", "dense", "dense centred")
# One of each kind of arithmetic.
KINDS = ("positive", "hyperbolic", "optimal moving", "optimal centred per head", "dense centred", "relu", *SIGNED)


def both_ways(names: Iterable[str]) -> list[tuple[str, bool]]:
    """(name, causal) as far as a map may be causal."""
    return [(name, causal) for name in names for causal in (False, True) if not (causal and name in SEGMENT_STATISTICS)]


class Inputs(NamedTuple):
    """q, k, v, and a gradient of the output, `[total, heads, dim]`."""

    query: Tensor
    key: Tensor
    value: Tensor
    grad: Tensor

    def to(self, dtype: torch.dtype) -> "Inputs":
        return Inputs(*(x.to(dtype) for x in self))

    def rows(self, start: int, stop: int) -> "Inputs":
        return Inputs(*(x[start:stop] for x in self))


class Step(NamedTuple):
    """The output and gradients of q, k, v."""

    out: Tensor
    query: Tensor
    key: Tensor
    value: Tensor


def build(name: str, causal: bool = False, *, heads: int = 2, dim: int = 8, num_features: int = 32) -> FavorAttention:
    map_class, options = PERFORMERS[name]
    attention = FavorAttention(
        num_heads=heads,
        head_dim=dim,
        features=lambda **shape: map_class(num_features=num_features, **shape, **options),
        causal=causal,
    )
    attention.redraw_(projection_generator(0, 0, 0))
    moving = moving_of(attention)
    if moving is not None:
        sample = inputs(50, norm=1.0, heads=heads, dim=dim, seed=5)
        moving.observe(sample.query.float() + 0.3, sample.key.float() - 0.2)
        moving.update_()
    return attention.eval()


def head_dim(dtype: torch.dtype) -> int:
    """8, but in bf16 32: engines in compiled code ask for it, and are then under test where a machine has them."""
    return 32 if dtype == torch.bfloat16 else 8


def moving_of(attention: FavorAttention) -> MovingMoments | None:
    return getattr(attention.features, "moving", None)


def inputs(total: int, norm: float | None = None, *, heads: int = 2, dim: int = 8, seed: int = 0) -> Inputs:
    """Random rows in float64, those of q and k of length `norm` if one is given."""
    generator = torch.Generator().manual_seed(1000 * dim + seed)
    q, k, v, grad = torch.randn(4, total, heads, dim, generator=generator, dtype=torch.float64)
    if norm is not None:
        q, k = (x / x.norm(dim=-1, keepdim=True) * norm for x in (q, k))
    return Inputs(q, k, v, grad)


def offsets(*lengths: int) -> Tensor:
    return torch.tensor([0, *torch.tensor(lengths).cumsum(0).tolist()], dtype=torch.int32)


def step(attention: FavorAttention, given: Inputs, cu_seqlens: Tensor, *, shortest: int = 0) -> Step:
    q, k, v = (x.detach().requires_grad_() for x in given[:3])
    out = attention.attend(q, k, v, cu_seqlens, shortest=shortest)
    return Step(out.detach(), *torch.autograd.grad(out, (q, k, v), given.grad.to(out.dtype)))


def relative_errors(got: Step, expected: Step) -> Step:
    """|got - expected| / |expected| of the output and of each gradient, over all rows."""
    return Step(
        *(
            (x.double() - y.double()).norm() / y.double().norm().clamp_min(1e-300)
            for x, y in zip(got, expected, strict=True)
        )
    )
