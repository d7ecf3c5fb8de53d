"""Windows to shards: by this process, reading and writing beside the computing, or by several.

Who computes a window changes nothing in it: batches are planned from the window alone, and the engines give the same
bytes on any number of threads.
"""

import logging
import queue
import signal
import threading
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from protformer.embedding.compute import Embedder
from protformer.embedding.options import Options, Output
from protformer.embedding.shards import write_shard
from protformer.embedding.windows import Window
from protformer.errors import ProtformerError
from protformer.model import load_model

log = logging.getLogger(__name__)

_AHEAD = 2  # windows that are read before they are needed, for each worker
_T = TypeVar("_T")


class Work(NamedTuple):
    """What a worker has to know; it can be sent to another process."""

    model_folder: Path
    outputs: tuple[Output, ...]
    options: Options
    shards: Path

    @property
    def dtype(self) -> np.dtype[Any]:
        return np.dtype(np.float16 if self.options.dtype == "fp16" else np.float32)

    def embedder(self, device: torch.device) -> Embedder:
        model, _ = load_model(self.model_folder)
        options, policies = self.options, self.options.policies
        return Embedder(
            model.to(device).eval(),
            self.outputs,
            batch_tokens=options.batch_tokens,
            precision=options.precision,
            compile=options.compile,
            max_length=policies.max_length if policies.on_long == "window" else None,
            overlap=policies.overlap,
        )

    def compute(self, embedder: Embedder, window: Window, on_batch: Callable[[int], None]) -> Any:
        sequences = [np.frombuffer(entry.tokens, np.uint8) for entry in window.computed]
        return embedder(sequences, on_batch)

    def write(self, window: Window, made: Any) -> None:
        write_shard(self.shards, window, made, self.outputs, self.dtype)


def compute_here(work: Work, embedder: Embedder, windows: Iterable[Window], on_batch: Callable[[int], None]) -> None:
    """Compute the windows in this process; the next ones are read and the last one is written meanwhile."""
    written: Future[None] | None = None
    with ThreadPoolExecutor(1) as writer, closing(_ahead(windows, _AHEAD)) as coming:
        for window in coming:
            made = work.compute(embedder, window, on_batch)
            if written is not None:
                written.result()
            written = writer.submit(work.write, window, made)
        if written is not None:
            written.result()


def compute_in_processes(
    work: Work, devices: list[str], windows: Iterable[Window], on_batch: Callable[[int], None]
) -> None:
    """Compute the windows in one process for each device; on a CPU they share its threads.

    Raises ProtformerError where a process failed or was killed. What the others have written stays.
    """
    context = torch.multiprocessing.get_context("spawn")
    tasks, results = context.Queue(maxsize=_AHEAD * len(devices)), context.Queue()
    threads = max(1, torch.get_num_threads() // len(devices))
    processes = [
        context.Process(target=_serve, args=(work, device, threads, tasks, results), daemon=True) for device in devices
    ]
    for process in processes:
        process.start()
    given = done = 0

    def take(wait: float) -> None:
        nonlocal done
        try:
            kind, value = results.get(timeout=wait)
        except queue.Empty:
            for process in processes:
                if process.exitcode:
                    raise ProtformerError(_ended(process.exitcode)) from None
            return
        if kind == "failed":
            raise ProtformerError(value)
        if kind == "batch":
            on_batch(value)
        else:
            done += 1

    def give(window: Window | None) -> None:
        while True:
            try:
                tasks.put(window, timeout=0.05)
                return
            except queue.Full:
                take(0.5)

    try:
        for window in windows:
            give(window)
            given += 1
            while not results.empty():
                take(0.0)
        for _ in processes:
            give(None)  # there is no more
        while done < given:
            take(1.0)
        for process in processes:
            process.join()
    finally:
        for process in processes:
            if process.is_alive():
                process.terminate()


def _serve(work: Work, device: str, threads: int, tasks: Any, results: Any) -> None:
    """A worker: windows in, shards on the disk."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent is interrupted too, and ends this one
    torch.set_num_threads(threads)
    try:
        embedder = work.embedder(torch.device(device))
        while (window := tasks.get()) is not None:
            work.write(window, work.compute(embedder, window, lambda residues: results.put(("batch", residues))))
            results.put(("done", window.number))
    except ProtformerError as error:
        results.put(("failed", str(error)))
    except Exception as error:
        results.put(("failed", f"a worker on {device} failed: {type(error).__name__}: {error}"))


def _ended(code: int) -> str:
    if code == -signal.SIGKILL:
        return (
            "A worker process was killed, probably for lack of memory: take fewer --devices or --batch-tokens, and go "
            "on with --resume."
        )
    return f"A worker process ended with code {code}: go on with --resume."


def _ahead(items: Iterable[_T], count: int) -> Generator[_T, None, None]:
    """The items in order, up to `count` of them made before they are asked for, in a thread."""
    ready: queue.Queue[tuple[str, Any]] = queue.Queue(count)
    stopped = threading.Event()

    def put(kind: str, value: Any) -> None:
        while not stopped.is_set():
            try:
                ready.put((kind, value), timeout=0.2)
                return
            except queue.Full:
                continue

    def make() -> None:
        try:
            for item in items:
                put("item", item)
                if stopped.is_set():
                    return
            put("end", None)
        except BaseException as error:  # (it is raised where the items are taken)
            put("error", error)

    thread = threading.Thread(target=make, daemon=True)
    thread.start()
    try:
        while True:
            kind, value = ready.get()
            if kind == "error":
                raise value
            if kind == "end":
                return
            yield value
    finally:
        stopped.set()
        thread.join()
