"""The Performer's attention on CPUs in one walk over the tokens: bf16 with AMX (Intel since Sapphire Rapids), fp32 with
AVX-512.

The C++ beside this file is compiled when the package is installed, where there is a compiler: one library for each
type. It forms features in registers and works on tensors where they lie; what it cannot serve is left to
`protformer.attention.favor_operator`'s PyTorch path, and `supported` says why. Its threads are PyTorch's own.
"""

import ctypes
from functools import cache
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path

import torch
from torch import Tensor

from protformer.attention.favor_settings import Answer, Inputs, Settings, row_numbers, shortest_kept, state_numbers
from protformer.features import Adaptation

__all__ = ["MOST_DIM", "MOST_FEATURES", "available", "backward", "forward", "supported"]

MOST_DIM = 128
MOST_FEATURES = 512
_FAMILIES = ("exponential", "relu")
_LIBRARIES = {torch.bfloat16: "_favor_amx", torch.float32: "_favor_avx512"}
_UNAVAILABLE = {
    torch.bfloat16: {
        1: "this CPU has no AVX-512 with bf16",
        2: "this CPU has no AMX with bf16",
        3: "the kernel does not let this process use AMX",
    },
    torch.float32: {1: "this CPU has no AVX-512", 3: "the kernel does not let this process use AVX-512"},
}

_CONSTANTS = ("query_scale", "key_scale", "norm_scale", "tilt", "offset")
_INTEGERS = ("heads", "dim", "rows", "projection_heads", "family", "threads", "causal")
_Pointer, _Strides = ctypes.c_void_p, ctypes.c_int64 * 2


class _Call(ctypes.Structure):
    """`favor::Call` of `team.h`, field by field."""

    _fields_ = (
        *((name, _Pointer) for name in ("query", "key", "value", "grad_out")),
        *((name, _Pointer) for name in ("out", "grad_query", "grad_key", "grad_value")),
        *((name, _Pointer) for name in ("row_numbers", "states")),
        *((name, _Pointer) for name in ("cu_seqlens", "projection", *_CONSTANTS)),
        *((name, _Pointer) for name in ("parallel", "redo")),
        *((name, ctypes.c_int64) for name in ("segments", "total", "shortest", "shortest_kept")),
        *((f"{name}_strides", _Strides) for name in _CONSTANTS),
        *((name, ctypes.c_int32) for name in _INTEGERS),
        *((name, ctypes.c_float) for name in ("epsilon", "norm_weight")),
    )


def supported(query: Tensor, projection: Tensor, family: str, causal: bool, adaptation: Adaptation) -> str | None:
    """None where the engine can serve this call, otherwise the reason why not, in words."""
    if query.device.type != "cpu":
        return f"the tensors are on {query.device.type}, not on a CPU"
    if query.dtype not in _LIBRARIES:
        return f"{query.dtype} is not served, only bf16 and fp32"
    if family not in _FAMILIES:
        return f"the family {family!r} is not written"
    low = query.dtype == torch.bfloat16
    if low and (adaptation.query_scale is not None or adaptation.key_scale is not None):
        return "scaled queries and keys are no bf16 numbers"
    if query.shape[-1] % (32 if low else 1) or not 0 < query.shape[-1] <= MOST_DIM:
        return f"heads of {query.shape[-1]} dimensions are no {'multiple of 32' if low else 'number'} up to {MOST_DIM}"
    if not 0 < projection.shape[-2] <= MOST_FEATURES:
        return f"{projection.shape[-2]} features are none, or more than {MOST_FEATURES}"
    return available(query.dtype)


def available(dtype: torch.dtype) -> str | None:
    """None where the engine for a type can run on this machine, otherwise the reason why not."""
    return _library(dtype)[1]


def forward(inputs: Inputs, settings: Settings) -> tuple[Answer, list[int]] | None:
    """Performer attention of packed segments.

    Returns:
        The answer, and the indices of segments with features or denominators out of fp32's range: their rows are
        undefined, and have to be made by another path. Or None where nothing was done: the call is not `supported`,
        inputs are bf16 and the projection has entries that are not, or tensors do not fit together.
    """
    call = _prepare(inputs, settings)
    if call is None:
        return None
    out = settings.output_like(call.query)
    answer = Answer(out, row_numbers(call.query), state_numbers(call.query, call.projection, settings.causal))
    call.point(out=answer.out, row_numbers=answer.row_numbers, states=answer.states)
    redo = call.run("protformer_favor_forward")
    return None if redo is None else (answer, redo)


def backward(
    grad_out: Tensor, answer: Answer, inputs: Inputs, settings: Settings
) -> tuple[tuple[Tensor, Tensor, Tensor], list[int]] | None:
    """Gradients of query, key and value; and as in `forward` the segments to be redone, or None."""
    call = _prepare(inputs, settings)
    if call is None:
        return None
    room = row_numbers(call.query), state_numbers(call.query, call.projection, settings.causal)
    if not (_alike(call.query, grad_out, answer.out) and all(map(_alike, room, answer[1:]))):
        return None
    grads = settings.output_like(call.query), settings.output_like(call.query), settings.output_like(call.query)
    call.point(grad_out=grad_out, out=answer.out, row_numbers=answer.row_numbers, states=answer.states)
    call.point(**dict(zip(("grad_query", "grad_key", "grad_value"), grads, strict=True)))
    redo = call.run("protformer_favor_backward")
    return None if redo is None else (grads, redo)


class _Prepared:
    """A call's structure, and the tensors that it points to."""

    def __init__(self, inputs: Inputs) -> None:
        self.query = inputs.query.contiguous()
        # (a copy: what was checked must be what is read)
        self.cu_seqlens = inputs.cu_seqlens.to("cpu", torch.int32, copy=True)
        self.projection = inputs.projection.to("cpu", torch.float32).contiguous()
        self.redo = torch.zeros(max(len(self.cu_seqlens) - 1, 0), dtype=torch.uint8)
        self.kept: list[Tensor] = []
        self.structure = _Call()
        self.point(query=self.query, key=inputs.key, value=inputs.value, projection=self.projection)
        self.point(cu_seqlens=self.cu_seqlens, redo=self.redo)

    def point(self, **tensors: Tensor) -> None:
        """The fields of these names point to the tensors' numbers, or to copies where they are not contiguous."""
        for name, tensor in tensors.items():
            self.kept.append(tensor.contiguous())
            setattr(self.structure, name, self.kept[-1].data_ptr())

    def run(self, name: str) -> list[int] | None:
        library, _ = _library(self.query.dtype)
        assert library is not None
        if getattr(library, name)(ctypes.byref(self.structure)) != 0:
            return None
        return self.redo.nonzero().flatten().tolist() if self.redo.any() else []


def _prepare(inputs: Inputs, settings: Settings) -> _Prepared | None:
    """Everything the library trusts is checked here: it reads and writes wherever these numbers point."""
    query, key, value, cu_seqlens, projection = inputs
    adaptation = settings.adaptation
    if query.dim() != 3 or projection.dim() != 3 or cu_seqlens.dim() != 1 or len(cu_seqlens) < 1:
        return None
    if supported(query, projection, settings.family, settings.causal, adaptation) is not None:
        return None
    total, heads, dim = query.shape
    if not _alike(query, key, value):
        return None
    if projection.shape[0] not in (1, heads) or projection.shape[2] != dim or heads < 1 or total >= 2**31:
        return None
    call = _Prepared(inputs)
    offsets = call.cu_seqlens
    if int(offsets[0]) < 0 or int(offsets[-1]) > total or bool((offsets[1:] < offsets[:-1]).any()):
        return None
    structure = call.structure
    structure.segments, structure.total, structure.shortest = len(offsets) - 1, total, settings.shortest
    structure.shortest_kept = shortest_kept(projection.shape[1])
    structure.heads, structure.dim, structure.rows = heads, dim, projection.shape[1]
    structure.projection_heads, structure.family = projection.shape[0], _FAMILIES.index(settings.family)
    structure.causal = settings.causal
    structure.epsilon, structure.norm_weight = settings.epsilon, settings.norm_weight
    structure.parallel = _parallel()
    structure.threads = torch.get_num_threads() if structure.parallel else 1
    widths = (dim,), (dim,), (), (dim,), (projection.shape[1],)
    for name, width in zip(_CONSTANTS, widths, strict=True):
        x = getattr(adaptation, name)
        if x is None:
            continue
        if x.shape[0] not in (1, len(offsets) - 1) or x.shape[1] not in (1, heads) or x.shape[2:] != width:
            return None
        x = x.to("cpu", torch.float32).contiguous()
        call.point(**{name: x})
        strides = (x.stride(i) if x.shape[i] > 1 else 0 for i in range(2))
        setattr(structure, f"{name}_strides", _Strides(*strides))
    return call


def _alike(like: Tensor, *others: Tensor) -> bool:
    return all(x.shape == like.shape and x.dtype == like.dtype and x.device == like.device for x in others)


@cache
def _library(dtype: torch.dtype) -> tuple[ctypes.CDLL | None, str | None]:
    """The compiled engine for inputs of a type, or the reason why there is none."""
    name = _LIBRARIES[dtype]
    here = Path(__file__).parent
    built = [path for suffix in EXTENSION_SUFFIXES if (path := here / f"{name}{suffix}").exists()]
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
        return None, _UNAVAILABLE[dtype][lacking]
    for function in ("protformer_favor_forward", "protformer_favor_backward"):
        getattr(library, function).argtypes = (ctypes.POINTER(_Call),)
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
