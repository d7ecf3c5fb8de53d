"""The fused Performer kernels beside PyTorch's flash attention, on one GPU: exact first, then how fast and how large.

    python benchmarks/gpu_attention.py rows.json             # correctness, then all timings
    python benchmarks/gpu_attention.py rows.json --tune      # a handful of block sizes per kernel instead
    python benchmarks/gpu_attention.py rows.json --longest 8192 --features 64

Needs torch, Triton and this package's kernels alone. Every row of the file is a figure with the machine and versions;
the file is written after each, so that a run that is cut off keeps what it has. `ms` are medians of a warm function,
with the L2 cache emptied in between; `graph_ms` replay a CUDA graph, without the cost of launching from Python. Peak
memory is what the call allocates beyond its inputs. The contenders take turns at each length, on the same tensors.
"""

import argparse
import datetime
import json
import math
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import triton  # pyright: ignore[reportMissingImports]
import triton.testing  # pyright: ignore[reportMissingImports]
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from protformer.attention import triton as kernels
from protformer.attention.triton import launch
from protformer.attention.triton.block_sizes import CAUSAL, KERNELS, OVERRIDES, Blocks

HEADS, DIM = 8, 64
LENGTHS = (1024, 2048, 4096, 8192, 16384, 32768, 65536, 131072)
# Residues of 64 proteins as they lie in UniProt: median about 300, a few of thousands (log-normal quantiles).
PROTEINS = tuple(round(math.exp(5.75 + 0.75 * math.sqrt(2) * x)) for x in
                 torch.erfinv(torch.linspace(-0.97, 0.97, 64, dtype=torch.float64)).tolist())  # fmt: skip
# Of the output and the gradients, relative to their norm: rounding to the type, and a share of fp32's in exponents.
BOUNDS = {torch.bfloat16: 2.0**-8, torch.float32: 2e-5}


class Inputs:
    """q, k, v and a gradient of the output `[total, heads, dim]` with their offsets and a projection."""

    def __init__(self, lengths: tuple[int, ...], features: int, dtype: torch.dtype, *, dim: int = DIM) -> None:
        generator = torch.Generator("cuda").manual_seed(0)
        shape = (4, sum(lengths), HEADS, dim)
        drawn = torch.randn(shape, generator=generator, device="cuda", dtype=torch.float32).to(dtype)
        self.query, self.key, self.value, self.grad = drawn
        weights = torch.randn(1, features, dim, generator=generator, device="cuda") * dim**-0.25
        self.projection = weights.bfloat16().float()
        self.lengths = lengths
        self.cu_seqlens = torch.tensor([0, *lengths], device="cuda").cumsum(0).to(torch.int32)

    def fused(self, causal: bool, *, backward: bool) -> Callable[[], Any]:
        settings: dict[str, Any] = {"family": "exponential", "epsilon": 0.0, "norm_weight": 1.0, "causal": causal}
        tensors = self.query, self.key, self.value, self.cu_seqlens, self.projection

        def call() -> Any:
            out, saved = kernels.forward(*tensors, **settings)
            return (out, *kernels.backward(self.grad, saved, *tensors, **settings)) if backward else (out,)

        return call

    def flash(self, causal: bool, *, backward: bool) -> Callable[[], Any]:
        leaves = [x.detach().requires_grad_(backward) for x in (self.query, self.key, self.value)]

        def attention() -> Tensor:
            if len(self.lengths) == 1:
                q, k, v = (x.transpose(0, 1).unsqueeze(0) for x in leaves)
                with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
                    return scaled_dot_product_attention(q, k, v, is_causal=causal).squeeze(0).transpose(0, 1)
            from torch.nn.attention.varlen import varlen_attn

            longest, window = max(self.lengths), (-1, 0 if causal else -1)
            bounds = self.cu_seqlens, self.cu_seqlens, longest, longest
            q, k, v = leaves
            return varlen_attn(q, k, v, *bounds, window_size=window)  # pyright: ignore[reportReturnType]

        def call() -> Any:
            if not backward:
                with torch.no_grad():
                    return (attention(),)
            return torch.autograd.grad(attention(), leaves, self.grad)

        return call

    def expected(self, causal: bool, head: int) -> list[Tensor]:
        """Output and gradients of one head in float64, a weight for each pair of rows."""
        leaves = [x[:, head].double().requires_grad_() for x in (self.query, self.key, self.value)]
        projection = self.projection[0].double()
        outs = []
        for q, k, v in zip(*(x.split(self.lengths) for x in leaves), strict=True):
            log_query, log_key = q @ projection.T, k @ projection.T - k.square().sum(1, keepdim=True) / 2 / DIM**0.5
            weights = log_query.exp() @ log_key.exp().T
            weights = weights.tril() if causal else weights
            outs.append(weights / weights.sum(1, keepdim=True) @ v)
        out = torch.cat(outs)
        return [out.detach(), *torch.autograd.grad(out, leaves, self.grad[:, head].double())]


class Report:
    """Rows of figures, printed and kept."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rows: list[dict[str, Any]] = []
        self.surroundings = {
            "gpu": torch.cuda.get_device_name(),
            "torch": torch.__version__,
            "triton": triton.__version__,
            "command": " ".join(["benchmarks/gpu_attention.py", *sys.argv[1:]]),
            "date": datetime.date.today().isoformat(),
        }

    def add(self, **figures: Any) -> None:
        print("  ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in figures.items()), flush=True)
        self.rows.append({**figures, **self.surroundings})
        self.path.write_text(json.dumps(self.rows, indent=1) + "\n")


def check(report: Report) -> bool:
    """Whether the kernels are within their bounds of float64, at lengths around blocks and splits, and in a pack."""
    good = True
    for dtype, bound in BOUNDS.items():
        for features in (64, 256):
            for causal in (False, True):
                for lengths in ((4097,), (1, 63, 700, 64, 65, 129)):
                    inputs = Inputs(lengths, features, dtype)
                    got = inputs.fused(causal, backward=True)()
                    errors = [
                        max(float((x[:, head] - y).norm() / y.norm()) for head, y in expected)
                        for x, expected in zip(got, _by_tensor(inputs, causal), strict=True)
                    ]
                    good &= max(errors) < bound
                    names = ("out", "dq", "dk", "dv")
                    figures = dict(zip(names, errors, strict=True))
                    kind = f"{dtype}".removeprefix("torch.")
                    report.add(kind="error", type=kind, rows=sum(lengths), features=features, causal=causal, **figures)
    return good


def _by_tensor(inputs: Inputs, causal: bool) -> list[list[tuple[int, Tensor]]]:
    heads = (0, HEADS - 1)
    of_heads = [inputs.expected(causal, head) for head in heads]
    return [[(head, of_head[i]) for head, of_head in zip(heads, of_heads, strict=True)] for i in range(4)]


def measure(call: Callable[[], Any], *, graph: bool) -> dict[str, float]:
    """Milliseconds of a call, of its graph, and MiB that it allocates at most."""
    call()
    torch.cuda.synchronize()
    held = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    call()
    torch.cuda.synchronize()
    figures = {"peak_mib": (torch.cuda.max_memory_allocated() - held) / 2**20}
    figures["ms"] = float(triton.testing.do_bench(call, warmup=50, rep=200, return_mode="median"))  # pyright: ignore[reportArgumentType]
    if graph:
        figures["graph_ms"] = float(triton.testing.do_bench_cudagraph(call, rep=100, return_mode="median"))  # pyright: ignore[reportArgumentType]
    return figures


def time_all(report: Report, longest: int, features: list[int]) -> None:
    packs: list[tuple[int, ...]] = [(length,) for length in LENGTHS if length <= longest]
    for lengths in [*packs, PROTEINS]:
        for causal in (False, True):
            for backward in (False, True):
                what = {"proteins": len(lengths), "rows": sum(lengths), "causal": causal, "backward": backward}
                inputs = Inputs(lengths, features[0], torch.bfloat16)
                exact = measure(inputs.flash(causal, backward=backward), graph=False)
                report.add(kind="time", contender="flash", **what, **exact)
                for count in features:
                    inputs = Inputs(lengths, count, torch.bfloat16)
                    ours = measure(inputs.fused(causal, backward=backward), graph=sum(lengths) <= 16384)
                    figures = {"times_flash": exact["ms"] / ours["ms"], **ours}
                    report.add(kind="time", contender="performer", features=count, **what, **figures)


def tune(report: Report, features: int) -> None:
    """Of each kernel a handful of block sizes, the other kernels as they are; the best is kept for the next kernel."""
    rows = [Blocks(t, f, w, s) for t, f, w in ((64, 64, 4), (64, 32, 4), (128, 64, 8), (128, 32, 8)) for s in (1, 2, 3)]
    causal_rows = [Blocks(64, 32, 4, 1), Blocks(64, 64, 4, 1), Blocks(64, 16, 4, 1), Blocks(32, 32, 4, 1)]
    combine = [Blocks(16, f, w, s) for f, w, s in ((16, 4, 2), (16, 4, 4), (32, 4, 2), (16, 2, 2), (16, 8, 3))]
    inputs = Inputs((32768,), features, torch.bfloat16)
    for kernel in KERNELS:
        candidates = combine if kernel == "combine_kernel" else causal_rows if kernel in CAUSAL else rows
        call = inputs.fused(kernel in CAUSAL, backward=True)
        times: dict[Blocks, float] = {}
        for size in candidates:
            OVERRIDES[kernel] = size
            try:
                times[size] = float(triton.testing.do_bench(call, warmup=25, rep=100, return_mode="median"))  # pyright: ignore[reportArgumentType]
            except Exception as error:  # more shared memory or registers than there are
                print(f"{kernel} {tuple(size)}: {type(error).__name__}", flush=True)
                continue
            report.add(kind="tune", kernel=kernel, features=features, blocks=list(size), ms=times[size])
        OVERRIDES[kernel] = best = min(times, key=times.__getitem__)
        report.add(kind="best", kernel=kernel, features=features, blocks=list(best), ms=times[best])
    for causal in (False, True):
        for splits in (1, 2, 4, 8):
            launch.SPLITS_PER_PROCESSOR = splits
            ms = float(triton.testing.do_bench(inputs.fused(causal, backward=True), return_mode="median"))  # pyright: ignore[reportArgumentType]
            report.add(kind="splits", causal=causal, features=features, splits=splits, ms=ms)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("rows", type=Path, help="the JSON file to write")
    parser.add_argument("--tune", action="store_true", help="try block sizes instead of timing")
    parser.add_argument("--longest", type=int, default=LENGTHS[-1], help="leave out lengths beyond this")
    parser.add_argument("--features", type=int, nargs="+", default=[64, 256])
    arguments = parser.parse_args()
    report = Report(arguments.rows)
    if not check(report):
        print("The kernels are further from float64 than their rounding: nothing was timed.", file=sys.stderr)
        return 1
    if arguments.tune:
        tune(report, arguments.features[-1])
    else:
        time_all(report, arguments.longest, arguments.features)
    return 0


if __name__ == "__main__":
    sys.exit(main())
