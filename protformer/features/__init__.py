"""Random feature maps phi with E[phi(q) . phi(k)] = K(q, k), and how their projections are drawn.

A new map is one file here: a `FeatureMap` that names its element-wise family (`families.py`) and draws its projection.
"""

from collections.abc import Callable
from typing import Any

from protformer.features.adaptation import NO_ADAPTATION, Adaptation
from protformer.features.adaptive import AdaptiveFeatures
from protformer.features.base import FeatureMap
from protformer.features.dense import DenseFeatures
from protformer.features.generalized import GeneralizedFeatures
from protformer.features.hyperbolic import HyperbolicFeatures
from protformer.features.optimal import OptimalPositiveFeatures
from protformer.features.positive import PositiveFeatures
from protformer.features.projections import gaussian, orthogonal, projection_generator
from protformer.features.regularized import RegularizedFeatures
from protformer.features.trigonometric import CosineFeatures, TrigonometricFeatures

__all__ = [
    "NO_ADAPTATION",
    "Adaptation",
    "AdaptiveFeatures",
    "CosineFeatures",
    "DenseFeatures",
    "FeatureMap",
    "GeneralizedFeatures",
    "HyperbolicFeatures",
    "OptimalPositiveFeatures",
    "PositiveFeatures",
    "RegularizedFeatures",
    "TrigonometricFeatures",
    "factory_from_config",
    "gaussian",
    "orthogonal",
    "projection_generator",
]


def factory_from_config(config: dict[str, Any]) -> Callable[..., FeatureMap]:
    """The inverse of `FeatureMap.config`: a factory `(num_heads=, head_dim=) -> FeatureMap`.

    Only classes of this room can be named, so that a model folder from a stranger cannot call anything else.
    """
    name = config.get("name")
    map_class = globals().get(name) if name in __all__ else None
    if not (isinstance(map_class, type) and issubclass(map_class, FeatureMap)):
        raise ValueError(f"unknown feature map {name!r}")
    arguments = {key: value for key, value in config.items() if key != "name"}
    return lambda **shape: map_class(**shape, **arguments)
