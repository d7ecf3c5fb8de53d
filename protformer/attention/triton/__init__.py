"""The Performer's attention as fused Triton kernels: one pass over the tokens for projection, features and state.

`supported` says whether these kernels can serve a call, in words where they cannot; it can be asked without Triton, and
without a GPU. `forward` and `backward` compute what `protformer.attention.favor_operator` documents, in memory
O(total x dim): features live in registers, and the states of segments in buffers of bounded size.
"""

import importlib.util
import os

import torch
from torch import Tensor

__all__ = ["MOST_DIM", "MOST_FEATURES", "backward", "forward", "supported"]

MOST_DIM = 128
MOST_FEATURES = 512
_FAMILIES = ("exponential", "trigonometric", "cosine", "relu", "squared_relu", "elu", "softplus", "sigmoid")


def supported(query: Tensor, projection: Tensor, family: str) -> str | None:
    """None where the kernels can serve this call, otherwise the reason why not, in words.

    Reads shapes, types and devices only: nothing is synchronised. On a CPU the kernels run in Triton's interpreter
    alone (`TRITON_INTERPRET=1` before Triton is imported), for tests.
    """
    features = projection.shape[-2] * (2 if family == "trigonometric" else 1)
    if family not in _FAMILIES:
        return f"the family {family!r} has no kernel"
    if query.dtype not in (torch.float32, torch.bfloat16, torch.float16):
        return f"{query.dtype} is not served, only fp32, bf16 and fp16"
    if query.shape[-1] > MOST_DIM:
        return f"heads of {query.shape[-1]} dimensions are wider than {MOST_DIM}"
    if features > MOST_FEATURES:
        return f"{features} features are more than {MOST_FEATURES}"
    if query.shape[1] > 65535:
        return f"{query.shape[1]} heads are more than a grid holds"
    if importlib.util.find_spec("triton") is None:
        return "Triton is not installed"
    if not query.is_cuda:
        if query.device.type == "cpu" and os.environ.get("TRITON_INTERPRET") == "1":
            return None
        return f"the tensors are on {query.device.type}, not on a CUDA device"
    if torch.version.hip is not None:
        return "the kernels were never run on ROCm"
    if torch.cuda.get_device_capability(query.device) < (8, 0):
        return "the GPU is older than compute capability 8.0 (Ampere)"
    return None


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    projection: Tensor,
    *,
    family: str,
    epsilon: float,
    norm_weight: float,
    causal: bool,
    adaptation: object = None,
) -> tuple[Tensor, Tensor]:
    """Performer attention of packed segments, and the one number per row that the backward wants.

    Args:
        query, key, value: `[total, heads, dim]`, fp32, bf16 or fp16, on one device.
        cu_seqlens: int32 `[segments + 1]`, first 0, last total; never read by the host.
        projection: `[1 or heads, rows, dim]` fp32, the scale dim^-1/4 in it. With bf16 and fp16 inputs its entries are
            taken as bf16: they must be representable there, as `protformer.features` draws them.
        family, epsilon, norm_weight: see `protformer.features.families`.
        causal: whether row t sees only rows up to t of its segment.
        adaptation: None, or an object with `query_scale`, `key_scale`, `norm_scale`, `tilt` and `offset` (fp32, or
            None), `[segments or 1, heads or 1, ...]`.

    Returns:
        out `[total, heads, dim]` in the type of `value`, and fp32 `[heads, total]`: the log denominator of each row for
        the exponential family, its denominator otherwise.
    """
    from protformer.attention.triton import launch  # imports Triton, which need not be there

    settings = launch.Settings(family, epsilon, norm_weight, causal)
    return launch.forward(query, key, value, cu_seqlens, projection, settings, adaptation)


def backward(
    grad_out: Tensor,
    saved: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    projection: Tensor,
    *,
    family: str,
    epsilon: float,
    norm_weight: float,
    causal: bool,
    adaptation: object = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of query, key and value, each in the type of its tensor, from `forward`'s second result."""
    from protformer.attention.triton import launch

    settings = launch.Settings(family, epsilon, norm_weight, causal)
    return launch.backward(grad_out, saved, query, key, value, cu_seqlens, projection, settings, adaptation)
