"""The estimators of softmax attention that are compared, by the names of `conf/features`."""

from typing import cast

from protformer.attention import FavorAttention
from protformer.errors import ProtformerError
from protformer.features import (
    CosineFeatures,
    DenseFeatures,
    FeatureMap,
    HyperbolicFeatures,
    OptimalPositiveFeatures,
    PositiveFeatures,
    TrigonometricFeatures,
)

PROJECTIONS = ("orthogonal", "iid")
# Generalised maps (ReLU, ...) estimate no softmax: their distance from it is no error. SMREG has no iid rows.
MAPS: dict[str, type[FeatureMap]] = {
    "positive": PositiveFeatures,
    "hyperbolic": HyperbolicFeatures,
    "trigonometric": TrigonometricFeatures,
    "cosine": CosineFeatures,
    "optimal": OptimalPositiveFeatures,
    "dense": DenseFeatures,
}
CENTRED = "-centred"
"""Ending of a name: the same map with exact centring (`protformer.features.adaptive`)."""
_CAN_CENTRE = ("positive", "hyperbolic", "optimal", "dense")
_SIGNED = ("trigonometric", "cosine")
_IN_PAIRS = ("hyperbolic", "trigonometric")


def check_estimator(name: str, features: list[int]) -> None:
    """ProtformerError where there is no such estimator, or not with so many features."""
    base = name.removesuffix(CENTRED)
    if base not in MAPS or (base != name and base not in _CAN_CENTRE):
        known = [*MAPS, *(f"{one}{CENTRED}" for one in _CAN_CENTRE)]
        raise ProtformerError(
            f"approximation.methods has {name!r}, which is no estimator of softmax attention: there are"
            f" {', '.join(known)}."
        )
    odd = [number for number in features if number % 2]
    if base in _IN_PAIRS and odd:
        raise ProtformerError(
            f"{base} features come in pairs and cannot be {odd[0]}: write even numbers in approximation.features and"
            " approximation.redraw_features."
        )


def estimator(
    name: str, projection: str, num_features: int, *, num_heads: int, head_dim: int, causal: bool
) -> FavorAttention:
    """Attention through these features in evaluation mode; its projection, one of `PROJECTIONS`, is still to be drawn
    (`redraw_`)."""
    base = name.removesuffix(CENTRED)
    options = {"num_features": num_features, "orthogonal_rows": projection == "orthogonal"}
    if base != name:
        options["centred"] = True

    def features(*, num_heads: int, head_dim: int) -> FeatureMap:
        return MAPS[base](num_heads=num_heads, head_dim=head_dim, **options)  # pyright: ignore[reportArgumentType]

    return cast(
        FavorAttention,
        FavorAttention(num_heads=num_heads, head_dim=head_dim, features=features, causal=causal).eval(),
    )


def is_signed(method: str) -> bool:
    """Whether weights of a method (`performer-trigonometric`, `uniform`, ...) can be negative."""
    return method.removeprefix("performer-") in _SIGNED


def looks_ahead(name: str) -> bool:
    """Whether the estimator takes statistics of whole sequences, which causal attention may not see."""
    base = name.removesuffix(CENTRED)
    return MAPS[base](num_heads=1, head_dim=2, num_features=2).needs_future or base != name  # pyright: ignore
