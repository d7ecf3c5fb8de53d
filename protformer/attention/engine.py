"""Which implementation serves a call of the Performer's operator: chosen by the tensors alone, said in the log once.

An engine is a module with `forward` and `backward`: `favor_fused`, Triton kernels on CUDA, and `favor_chunked`, chunks
of PyTorch operations, on every device and for every type.
"""

import functools
import logging
from types import ModuleType

from torch import Tensor

from protformer.attention import favor_chunked, favor_fused, triton

log = logging.getLogger(__name__)


def engine(query: Tensor, projection: Tensor, family: str) -> ModuleType:
    """The engine for these tensors."""
    if not query.is_cuda:
        return favor_chunked
    reason = triton.supported(query, projection, family)
    if reason is None:
        _say("Performer attention runs as fused Triton kernels.", logging.INFO)
        return favor_fused
    _say(f"Performer attention runs as chunks of PyTorch operations, not as fused kernels: {reason}.", logging.WARNING)
    return favor_chunked


@functools.cache
def _say(sentence: str, level: int) -> None:
    log.log(level, sentence)
