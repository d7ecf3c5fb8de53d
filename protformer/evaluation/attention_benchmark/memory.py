"""The peak of one call above its inputs and outputs.

On a CPU it is the resident memory of a process of its own: what an allocator asks the system for is what other
programs cannot have. The processes are forked from a server that has imported PyTorch and computed nothing.
"""

import gc
import multiprocessing
from collections.abc import Callable
from dataclasses import replace
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch

from protformer.evaluation.attention_benchmark.cases import Case, Layout, call_of, make_inputs
from protformer.evaluation.attention_benchmark.contenders import Contender

STATUS = Path("/proc/self/status")


def peak_bytes(contender: Contender, case: Case, layout: Layout) -> int | None:
    """Bytes beside q, k, v, out and their gradients (unpadded) at the peak of one call.

    None where the system does not tell (a CPU without Linux's `/proc`), or the process died of it.
    """
    if case.device == "cuda":
        return _peak_on_cuda(contender, case, layout)
    return of_new_process(_report, contender, case, layout, torch.get_num_threads())


def of_new_process(report: Callable[..., None], *arguments: Any) -> int | None:
    """What `report(sender, *arguments)` sends from a process of its own, in bytes; None as `peak_bytes` says."""
    if not STATUS.exists():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["protformer.evaluation.attention_benchmark.preload"])
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=report, args=(sender, *arguments))
    process.start()
    sender.close()
    try:
        return receiver.recv()
    except EOFError:
        return None
    finally:
        process.join()
        receiver.close()


def _report(sender: Connection, contender: Contender, case: Case, layout: Layout, threads: int) -> None:
    torch.set_num_threads(threads)
    # Libraries set themselves up and threads start in a first call; it is small, so that it leaves no room behind.
    small = replace(case, lengths=(min(64, case.longest),))
    call_of(contender.attend(small), make_inputs(small, layout))()
    gc.collect()
    before = peak_resident_bytes()
    kept = call_of(contender.attend(case), make_inputs(case, layout))()
    peak = peak_resident_bytes()
    del kept
    sender.send(max(peak - before - case.io_bytes, 0))
    sender.close()


def peak_resident_bytes() -> int:
    """Of this process since it began. Linux only."""
    # Not getrusage: its maximum is inherited from the parent over fork and exec.
    status = STATUS.read_text(encoding="utf-8")
    return 1024 * next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))


def _peak_on_cuda(contender: Contender, case: Case, layout: Layout) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    kept = call_of(contender.attend(case), make_inputs(case, layout))()
    torch.cuda.synchronize()
    peak = torch.cuda.max_memory_allocated()
    del kept
    return max(peak - before - case.io_bytes, 0)
