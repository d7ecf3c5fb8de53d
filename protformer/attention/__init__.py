"""Attention over packed sequences: `(query, key, value, cu_seqlens) -> out`, all `[total, heads, dim]`."""

from collections.abc import Callable
from typing import Any

from protformer.attention.base import Attention
from protformer.attention.exact import ExactAttention
from protformer.attention.favor import FavorAttention
from protformer.attention.hybrid import HybridAttention
from protformer.attention.linformer import LinformerAttention
from protformer.attention.naming import method_name, method_of
from protformer.attention.reformer import ReformerAttention
from protformer.attention.sparse import SparseAttention
from protformer.attention.uniform import UniformAttention
from protformer.features import factory_from_config as features_from_config

__all__ = [
    "Attention",
    "ExactAttention",
    "FavorAttention",
    "HybridAttention",
    "LinformerAttention",
    "ReformerAttention",
    "SparseAttention",
    "UniformAttention",
    "factory_from_config",
    "method_name",
    "method_of",
]


def factory_from_config(config: dict[str, Any]) -> Callable[..., Attention]:
    """The inverse of `Attention.config`: a factory `(num_heads=, head_dim=) -> Attention`.

    Only classes of this room can be named, so that a model folder from a stranger cannot call anything else.
    """
    name = config.get("name")
    attention_class = globals().get(name) if name in __all__ else None
    if not (isinstance(attention_class, type) and issubclass(attention_class, Attention)):
        raise ValueError(f"unknown attention {name!r}")
    arguments = {key: value for key, value in config.items() if key != "name"}
    if "features" in arguments:
        arguments["features"] = features_from_config(arguments["features"])
    return lambda **shape: attention_class(**shape, **arguments)
