"""The Performer's attention of bf16 inputs on CPUs with AMX (Intel since Sapphire Rapids): one walk over the tokens.

The C++ beside this file (`favor_amx.cpp`) is compiled when the package is installed, where there is a compiler. It
forms features in registers, multiplies in tiles, and works on tensors where they lie; what it cannot serve is left to
`protformer.attention.favor_operator`'s PyTorch path, and `supported` says why. Its threads are PyTorch's own.
"""

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from protformer.features import NO_ADAPTATION, Adaptation

__all__ = ["MOST_DIM", "MOST_FEATURES", "backward", "forward", "supported"]

MOST_DIM = 128
MOST_FEATURES = 512
_FAMILIES = ("exponential", "relu")
_UNAVAILABLE = {
    1: "this CPU has no AVX-512 with bf16",
    2: "this CPU has no AMX with bf16",
    3: "the kernel does not let this process use AMX",
}

_Pointer, _Strides = ctypes.c_void_p, ctypes.c_int64 * 2


class _Call(ctypes.Structure):
    """`favor::Call` of `team.h`, field by field."""

    _fields_ = (
        *((name, _Pointer) for name in ("query", "key", "value", "grad_out")),
        *((name, _Pointer) for name in ("out", "grad_query", "grad_key", "grad_value")),
        *((name, _Pointer) for name in ("cu_seqlens", "projection", "norm_scale", "tilt", "offset")),
        *((name, _Pointer) for name in ("parallel", "redo")),
        *((name, ctypes.c_int64) for name in ("segments", "total", "shortest")),
        *((name, _Strides) for name in ("norm_scale_strides", "tilt_strides", "offset_strides")),
        *((name, ctypes.c_int32) for name in ("heads", "dim", "rows", "projection_heads", "family", "threads")),
        *((name, ctypes.c_float) for name in ("epsilon", "norm_weight")),
    )


def supported(query: Tensor, projection: Tensor, family: str, causal: bool, adaptation: Adaptation) -> str | None:
    """None where the engine can serve this call, otherwise the reason why not, in words."""
    if query.device.type != "cpu":
        return f"the tensors are on {query.device.type}, not on a CPU"
    if query.dtype != torch.bfloat16:
        return f"{query.dtype} is not served, only bf16"
    if family not in _FAMILIES:
        return f"the family {family!r} is not written"
    if causal:
        return "causal attention is not written"
    if adaptation.query_scale is not None or adaptation.key_scale is not None:
        return "scaled queries and keys are no bf16 numbers"
    if query.shape[-1] % 32 or not 0 < query.shape[-1] <= MOST_DIM:
        return f"heads of {query.shape[-1]} dimensions are no multiple of 32 up to {MOST_DIM}"
    if not 0 < projection.shape[-2] <= MOST_FEATURES:
        return f"{projection.shape[-2]} features are none, or more than {MOST_FEATURES}"
    return _library()[1]


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
    causal: bool = False,
    adaptation: Adaptation = NO_ADAPTATION,
    shortest: int = 0,
) -> tuple[Tensor, list[int]] | None:
    """Performer attention of packed segments; for the arguments see `favor_operator.favor_attention`.

    Returns:
        out `[total, heads, dim]`, and the indices of segments whose logits are out of the plain exponential's range:
        their rows are undefined, and have to be made by another path. Or None where nothing was done: the call is not
        `supported`, the projection has entries that are no bf16 numbers, or tensors do not fit together.
    """
    call = _prepare(
        query, key, value, cu_seqlens, projection, family, epsilon, norm_weight, causal, adaptation, shortest
    )
    if call is None:
        return None
    out = torch.zeros_like(call.query) if shortest > 1 else torch.empty_like(call.query)
    call.structure.out = out.data_ptr()
    redo = call.run("protformer_favor_forward")
    return None if redo is None else (out, redo)


def backward(
    grad_out: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    projection: Tensor,
    *,
    family: str,
    epsilon: float,
    norm_weight: float,
    causal: bool = False,
    adaptation: Adaptation = NO_ADAPTATION,
    shortest: int = 0,
) -> tuple[Tensor, Tensor, Tensor, list[int]] | None:
    """Gradients of query, key and value; and as in `forward` the segments to be redone, or None."""
    call = _prepare(
        query, key, value, cu_seqlens, projection, family, epsilon, norm_weight, causal, adaptation, shortest
    )
    if (
        call is None
        or grad_out.shape != query.shape
        or grad_out.dtype != query.dtype
        or grad_out.device != query.device
    ):
        return None
    grad_out = grad_out.contiguous()
    make = torch.zeros_like if shortest > 1 else torch.empty_like
    grads = make(call.query), make(call.query), make(call.query)
    call.structure.grad_out = grad_out.data_ptr()
    call.structure.grad_query, call.structure.grad_key, call.structure.grad_value = (x.data_ptr() for x in grads)
    redo = call.run("protformer_favor_backward")
    return None if redo is None else (*grads, redo)


class _Prepared:
    """A call's structure, and the tensors that it points to."""

    def __init__(self, query: Tensor, key: Tensor, value: Tensor, cu_seqlens: Tensor, projection: Tensor) -> None:
        self.query, self.key, self.value = query.contiguous(), key.contiguous(), value.contiguous()
        # (a copy: what was checked must be what is read)
        self.cu_seqlens = cu_seqlens.to("cpu", torch.int32, copy=True)
        self.projection = projection.to("cpu", torch.float32).contiguous()
        self.redo = torch.zeros(max(len(self.cu_seqlens) - 1, 0), dtype=torch.uint8)
        self.kept: list[Tensor] = []
        self.structure = _Call()
        for name in ("query", "key", "value", "cu_seqlens", "projection", "redo"):
            setattr(self.structure, name, getattr(self, name).data_ptr())

    def run(self, name: str) -> list[int] | None:
        library, _ = _library()
        assert library is not None
        if getattr(library, name)(ctypes.byref(self.structure)) != 0:
            return None
        return self.redo.nonzero().flatten().tolist() if self.redo.any() else []


def _prepare(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    projection: Tensor,
    family: str,
    epsilon: float,
    norm_weight: float,
    causal: bool,
    adaptation: Adaptation,
    shortest: int,
) -> _Prepared | None:
    """Everything the library trusts is checked here: it reads and writes wherever these numbers point."""
    if query.dim() != 3 or projection.dim() != 3 or cu_seqlens.dim() != 1 or len(cu_seqlens) < 1:
        return None
    if supported(query, projection, family, causal, adaptation) is not None:
        return None
    total, heads, dim = query.shape
    if any(x.shape != query.shape or x.dtype != query.dtype or x.device != query.device for x in (key, value)):
        return None
    if projection.shape[0] not in (1, heads) or projection.shape[2] != dim or heads < 1 or total >= 2**31:
        return None
    call = _Prepared(query, key, value, cu_seqlens, projection)
    offsets = call.cu_seqlens
    if int(offsets[0]) < 0 or int(offsets[-1]) > total or bool((offsets[1:] < offsets[:-1]).any()):
        return None
    structure = call.structure
    structure.segments, structure.total, structure.shortest = len(offsets) - 1, total, shortest
    structure.heads, structure.dim, structure.rows = heads, dim, projection.shape[1]
    structure.projection_heads, structure.family = projection.shape[0], _FAMILIES.index(family)
    structure.epsilon, structure.norm_weight = epsilon, norm_weight
    structure.parallel = _parallel()
    structure.threads = torch.get_num_threads() if structure.parallel else 1
    widths = {"norm_scale": (), "tilt": (dim,), "offset": (projection.shape[1],)}
    for name, width in widths.items():
        x = getattr(adaptation, name)
        if x is None:
            continue
        if x.shape[0] not in (1, len(offsets) - 1) or x.shape[1] not in (1, heads) or x.shape[2:] != width:
            return None
        x = x.to("cpu", torch.float32).contiguous()
        call.kept.append(x)
        strides = (x.stride(i) if x.shape[i] > 1 else 0 for i in range(2))
        setattr(structure, name, x.data_ptr())
        setattr(structure, f"{name}_strides", _Strides(*strides))
    return call


@cache
def _library() -> tuple[ctypes.CDLL | None, str | None]:
    """The compiled engine, or the reason why there is none."""
    here = Path(__file__).parent
    built = [path for suffix in EXTENSION_SUFFIXES if (path := here / f"_favor_amx{suffix}").exists()]
    if not built:
        return None, "the engine was not compiled when protformer was installed (that needs a C++ compiler, on Linux)"
    try:
        library = ctypes.CDLL(str(built[0]))
        if library.protformer_favor_call_size() != ctypes.sizeof(_Call):
            return None, f"{built[0].name} is of another version: install protformer again"
        lacking = library.protformer_favor_available()
    except (OSError, AttributeError) as error:
        return None, f"{built[0].name} cannot be loaded: {error}"
    if lacking:
        return None, _UNAVAILABLE[lacking]
    for name in ("protformer_favor_forward", "protformer_favor_backward"):
        getattr(library, name).argtypes = (ctypes.POINTER(_Call),)
    return library, None


@cache
def _parallel() -> int | None:
    """The address of GOMP_parallel in the OpenMP library that PyTorch has loaded: a second one would be a second pool.

    Symbols of a library are looked up in what it depends on, too; Intel's and LLVM's OpenMP have this one as well.
    """
    try:
        torch_cpu = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
        return ctypes.cast(torch_cpu.GOMP_parallel, ctypes.c_void_p).value
    except (OSError, AttributeError):
        return None
