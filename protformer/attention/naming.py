"""What a method is called in every table and picture: `exact`, `performer-relu`, `sparse-window`, ..."""

from collections.abc import Mapping
from typing import Any

ATTENTIONS = {
    "ExactAttention": "exact",
    "FavorAttention": "performer",
    "HybridAttention": "hybrid",
    "LinformerAttention": "linformer",
    "ReformerAttention": "reformer",
    "SparseAttention": "sparse",
    "UniformAttention": "uniform",
}
FEATURES = {
    "PositiveFeatures": "positive",
    "HyperbolicFeatures": "hyperbolic",
    "OptimalPositiveFeatures": "optimal",
    "DenseFeatures": "dense",
    "RegularizedFeatures": "regularized",
    "TrigonometricFeatures": "trigonometric",
    "CosineFeatures": "cosine",
}


def method_name(attention: str, features: str | None = None, pattern: str | None = None) -> str:
    """From the choices of a command line, such as "performer" and "relu"; what has no effect is ignored."""
    if attention in ("performer", "hybrid") and features:
        return f"{attention}-{features}"
    return f"{attention}-{pattern}" if attention == "sparse" and pattern else attention


def method_of(config: Mapping[str, Any]) -> str:
    """From `Attention.config()`, which says what was built, whatever was chosen."""
    name = ATTENTIONS.get(str(config.get("name")), str(config.get("name")))
    features = config.get("features")
    return method_name(name, _features_name(features) if features else None, config.get("pattern"))


def _features_name(config: Mapping[str, Any]) -> str:
    if config.get("kernel") == "gaussian":
        return "gaussian"
    return str(config.get("activation") or FEATURES.get(str(config.get("name")), config.get("name")))
