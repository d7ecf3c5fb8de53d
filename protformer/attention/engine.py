"""Which implementation serves a call of the Performer's operator: chosen by the tensors alone, said in the log once.

An engine is a module with `forward` and `backward`: `favor_fused`, Triton kernels on CUDA; `favor_native`, compiled
code for CPUs with AVX-512 or, in bf16, AMX; and `favor_chunked`, chunks of PyTorch operations, on every device and for
every type.
"""

import functools
import logging
import os
from types import ModuleType

from torch import Tensor

from protformer.attention import favor_chunked, favor_fused, favor_native, triton
from protformer.attention.favor_settings import Settings

log = logging.getLogger(__name__)


def engine(query: Tensor, projection: Tensor, settings: Settings) -> ModuleType:
    """The engine for these tensors. `PROTFORMER_ENGINE=torch` in the environment leaves the compiled ones out."""
    if os.environ.get("PROTFORMER_ENGINE") == "torch":
        return favor_chunked
    if query.is_cuda:
        reason = triton.supported(query, projection, settings.family)
        compiled, name = favor_fused, "fused Triton kernels"
    else:
        reason = favor_native.supported(query, projection, settings)
        compiled, name = favor_native, "compiled CPU code"
    if reason is None:
        _say(f"Performer attention runs as {name}.")
        return compiled
    _say(f"Performer attention runs as chunks of PyTorch operations, not as {name}: {reason}.")
    return favor_chunked


@functools.cache
def _say(sentence: str) -> None:
    log.info(sentence)
