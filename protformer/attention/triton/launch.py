"""The host's side of the kernels: buffers, the adaptation's record, and the order of launches.

Nothing here waits for the device. A forward is a work list, states, their sum over splits, then the queries; a backward
recomputes the states, and makes those of the queries in the same buffers once dq has been taken from the first.

Memory beyond the tensors themselves: a state per split and head, features x (dim + 2) fp32 numbers. Splits are so long
that all heads together have about `SPLITS_PER_PROCESSOR` of them on each multiprocessor, and one per segment at least.
With very many short segments that could pass `STATE_BYTES`; then the heads go in groups, which share the buffers.
"""

import contextlib
import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from protformer.attention.triton.arithmetic import CODES
from protformer.attention.triton.bidirectional import key_gradient_kernel, query_gradient_kernel, query_kernel
from protformer.attention.triton.block_sizes import block_sizes
from protformer.attention.triton.causal_backward import causal_key_gradient_kernel, causal_query_gradient_kernel
from protformer.attention.triton.causal_forward import causal_kernel
from protformer.attention.triton.states import (
    AFTER,
    BEFORE,
    SKIP_FIRST,
    SKIP_LAST,
    SKIP_NONE,
    SUM,
    combine_kernel,
    state_kernel,
    work_list_kernel,
)

SPLITS_PER_PROCESSOR = 4
STATE_BYTES = 512 * 2**20
WORK_LIST_BLOCK = 64
# bf16 terms that hold a number of that type exactly (see `arithmetic`)
TERMS = {torch.bfloat16: 1, torch.float16: 2, torch.float32: 3}


class Settings(NamedTuple):
    """What of a call is not a tensor."""

    family: str
    epsilon: float
    norm_weight: float
    causal: bool


def forward(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    projection: Tensor,
    settings: Settings,
    adaptation: object,
) -> tuple[Tensor, Tensor]:
    """See `protformer.attention.triton.forward`."""
    out = torch.empty_like(value)
    saved = query.new_empty(query.shape[1], query.shape[0], dtype=torch.float32)
    if query.shape[0] == 0:
        return out, saved
    with _on(query.device):
        call = _Call({"q": query, "k": key, "v": value}, cu_seqlens, projection, settings, adaptation)
        rows = {**_named("out", out), "saved": saved}
        for _ in call.groups():
            call.key_states()
            if settings.causal:
                call.over_splits(causal_kernel, **rows)
            else:
                call.over_rows(query_kernel, **rows)
    return out, saved


def backward(
    grad_out: Tensor,
    saved: Tensor,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    cu_seqlens: Tensor,
    projection: Tensor,
    settings: Settings,
    adaptation: object,
) -> tuple[Tensor, Tensor, Tensor]:
    """See `protformer.attention.triton.backward`."""
    grads = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
    if query.shape[0] == 0:
        return grads
    with _on(query.device):
        tensors = {"q": query, "k": key, "v": value, "grad_out": grad_out}
        call = _Call(tensors, cu_seqlens, projection, settings, adaptation)
        exponential = settings.family == "exponential"
        # rows' scales: of queries and keys apart (exponential, causal), or of the row (signed families)
        scales = {"query_scales": torch.empty_like(saved)}
        if exponential and settings.causal:
            scales["key_scales"] = torch.empty_like(saved)
        rows = {"saved": saved, "deltas": torch.empty_like(saved), "key_scales": saved, **scales}
        rows |= {**_named("grad_q", grads[0]), **_named("grad_k", grads[1]), **_named("grad_v", grads[2])}
        of_queries = {"denominators": saved, "log_scales": saved if exponential else rows["query_scales"]}
        for _ in call.groups():
            call.key_states()
            if settings.causal:
                call.over_splits(causal_query_gradient_kernel, **rows)
            else:
                call.over_rows(query_gradient_kernel, **rows)
            call.query_states(**rows, **of_queries)
            if settings.causal:
                call.over_splits(causal_key_gradient_kernel, **rows)
            else:
                call.over_rows(key_gradient_kernel, **rows)
    return grads


class _Call:
    """One call's tensors and constants by the names that kernels give them, and the launches over them."""

    def __init__(
        self,
        tensors: dict[str, Tensor],
        cu_seqlens: Tensor,
        projection: Tensor,
        settings: Settings,
        adaptation: object,
    ) -> None:
        query = tensors["q"]
        self.causal = settings.causal
        self.total, self.heads, dim = query.shape
        self.segments = len(cu_seqlens) - 1
        rows, parts = projection.shape[1], 2 if settings.family == "trigonometric" else 1
        self.features, block_d = rows * parts, max(16, 1 << (dim - 1).bit_length())
        full = any(x.dtype == torch.float32 for x in tensors.values())
        self.sizes = block_sizes(block_d, full, query.device)
        record, adapted, scaled = _record(adaptation, dim, rows, projection)
        self.names: dict[str, Any] = {
            **{name: x for key, tensor in tensors.items() for name, x in _named(key, _dense_rows(tensor)).items()},
            "projection": projection.to(torch.bfloat16).contiguous(),
            "projection_head": 0 if projection.shape[0] == 1 else rows * dim,
            "record": record,
            "record_segment": 0 if record.shape[0] == 1 else record.stride(0),
            "record_head": 0 if record.shape[1] == 1 else record.stride(1),
            "cu_seqlens": cu_seqlens.contiguous(),
            "segments": self.segments,
            "total": self.total,
            "norm_factor": settings.norm_weight / (2.0 * math.sqrt(dim)),
            "epsilon": settings.epsilon,
            "FAMILY": CODES[settings.family],
            "ADAPTED": adapted,
            "SCALED": scaled,
            "ROWS": rows,
            "PARTS": parts,
            "FEATURES": self.features,
            "DIM": dim,
            "BLOCK_D": block_d,
            "OWN_TERMS": 3 if full else 2,
            **{f"{name[0].upper()}_TERMS": TERMS[tensor.dtype] for name, tensor in tensors.items()},
        }
        if scaled:
            self.names |= {"Q_TERMS": TERMS[torch.float32], "K_TERMS": TERMS[torch.float32]}
        self._make_buffers(query, dim)

    def _make_buffers(self, query: Tensor, dim: int) -> None:
        processors = _processors(query.device)
        tokens = max(size.tokens for size in self.sizes.values())
        split = math.ceil(self.total * self.heads / (SPLITS_PER_PROCESSOR * processors * tokens)) * tokens
        self.one_split = split >= self.total
        self.slots = self.total // split + self.segments
        self.group = min(self.heads, max(1, STATE_BYTES // (self.slots * self.features * (dim + 2) * 4)))
        shape = self.group, self.slots, self.features
        self.names |= {"split": split, **self._work_list("slot", split, self.slots)}
        self.names |= {name: query.new_empty(shape, dtype=torch.float32) for name in ("maxima", "sums")}
        self.names["states"] = query.new_empty(*shape, dim, dtype=torch.float32)
        self.names["slots"] = self.slots

    def groups(self) -> Iterator[None]:
        """Over the groups of heads that the state buffers hold; launches are for the group at hand."""
        for first in range(0, self.heads, self.group):
            self.names["first_head"] = first
            self.heads_at_hand = min(self.group, self.heads - first)
            yield

    def key_states(self) -> None:
        """States of keys: of each segment in its first slot; causal, of the slots before each in the slot."""
        unused = dict.fromkeys(("log_scales", "denominators", "deltas"), self.names["sums"])
        self._states("k", "v", of_keys=True, **unused)

    def query_states(self, **rows: Any) -> None:
        """States of queries over their denominators: of each segment; causal, of the slots after each in the slot."""
        self._states("q", "grad_out", of_keys=False, **rows)

    def _states(self, x: str, added: str, *, of_keys: bool, **rows: Any) -> None:
        if self.causal and self.one_split:
            return  # no split has one before or after it
        skip = (SKIP_LAST if of_keys else SKIP_FIRST) if self.causal else SKIP_NONE
        named = {
            **_named("x", self.names[x]),
            **_named("u", self.names[added]),
            "X_TERMS": self.names[f"{x[0].upper()}_TERMS"],
            "U_TERMS": self.names[f"{added[0].upper()}_TERMS"],
        }
        programs = self.slots * self._feature_blocks(state_kernel)
        self._run(state_kernel, programs, OF_KEYS=of_keys, SKIP=skip.value, **named, **rows)
        if not self.one_split:
            how = (BEFORE if of_keys else AFTER) if self.causal else SUM
            programs = self.segments * _ceil_div(self.features, self.sizes["combine_kernel"].features)
            self._run(combine_kernel, programs, HOW=how.value)

    def over_splits(self, kernel: Any, **named: Any) -> None:
        """One program for each split, which walks its blocks of rows."""
        self._run(kernel, self.slots, **named)

    def over_rows(self, kernel: Any, **named: Any) -> None:
        """One program for each block of rows."""
        tokens = self.sizes[kernel.__name__].tokens
        programs = self.total // tokens + self.segments
        self._run(kernel, programs, **self._work_list("block", tokens, programs), **named)

    def _run(self, kernel: Any, programs: int, **named: Any) -> None:
        size = self.sizes[kernel.__name__]
        named = {**self.names, **named, "BLOCK_T": size.tokens, "BLOCK_F": size.features}
        named["BLOCK_J"] = self.sizes["state_kernel"].features
        wanted = {name: named[name] for name in kernel.arg_names}
        grid = (programs, self.heads_at_hand, 2 if kernel is key_gradient_kernel else 1)
        kernel[grid](**wanted, num_warps=size.warps, num_stages=size.stages)

    def _feature_blocks(self, kernel: Any) -> int:
        return self.names["PARTS"] * _ceil_div(self.names["ROWS"], self.sizes[kernel.__name__].features)

    def _work_list(self, piece: str, length: int, pieces: int) -> dict[str, Tensor]:
        cu_seqlens = self.names["cu_seqlens"]
        lists = {name: cu_seqlens.new_empty(pieces) for name in ("slot_segment", "slot_start")}
        lists["segment_slot"] = cu_seqlens.new_empty(self.segments + 1)
        grid = (_ceil_div(pieces, WORK_LIST_BLOCK),)
        work_list_kernel[grid](cu_seqlens, self.segments, pieces, length, **lists, BLOCK=WORK_LIST_BLOCK)
        if piece == "slot":
            return lists
        return {f"{piece}_segment": lists["slot_segment"], f"{piece}_start": lists["slot_start"]}


def _record(adaptation: object, dim: int, rows: int, projection: Tensor) -> tuple[Tensor, bool, bool]:
    """What an adaptation says of each segment and head as one fp32 row (see `arithmetic`), whether it says anything,
    and whether it scales. `[S, H, numbers]`, contiguous; S and H are 1 where all its tensors serve all."""
    names = ("query_scale", "key_scale", "tilt", "offset", "norm_scale")
    given = [getattr(adaptation, name, None) for name in names]
    if all(x is None for x in given):
        return projection.new_empty(1, 1, 1, dtype=torch.float32), False, False
    given[4] = None if given[4] is None else given[4].unsqueeze(2)
    present = [x for x in given if x is not None]
    segments, heads = (max(x.shape[axis] for x in present) for axis in range(2))
    parts = []
    for x, size, absent in zip(given, (dim, dim, dim, rows, 1), (1.0, 1.0, 0.0, 0.0, 1.0), strict=True):
        part = projection.new_full((1, 1, size), absent, dtype=torch.float32) if x is None else x.float()
        parts.append(part.expand(segments, heads, size))
    return torch.cat(parts, dim=2), True, given[0] is not None or given[1] is not None


def _ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def _named(name: str, x: Tensor) -> dict[str, Any]:
    return {name: x, f"{name}_stride": x.stride(0), f"{name}_head": x.stride(1)}


def _dense_rows(x: Tensor) -> Tensor:
    """x with the numbers of one row and head side by side, as slices of a fused projection have them already."""
    return x if x.stride(2) == 1 else x.contiguous()


def _processors(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1


def _on(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Kernels launch on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()
