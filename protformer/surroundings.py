"""Where a figure was measured: machine, versions, commit, date. Every benchmark's rows carry it."""

import importlib.metadata
import os
import platform
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import protformer

CHECKOUT = Path(__file__).resolve().parents[1]
"""The folder that holds the package: a checkout of the repository, or `site-packages`."""


def surroundings() -> dict[str, Any]:
    """Flat figures of the machine as it is now; `commit` is "unknown" outside a checkout."""
    return {
        "cpu": _processor(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "commit": commit() or "unknown",
        "time": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def commit() -> str | None:
    """The commit of the checkout that the package runs from, with `-dirty` where files differ; None elsewhere."""
    git = ["git", "-C", str(CHECKOUT)]
    try:
        top = subprocess.run([*git, "rev-parse", "--show-toplevel"], capture_output=True, text=True, check=False)
        # An installed package may lie in a virtual environment inside somebody else's checkout.
        if top.returncode or Path(top.stdout.strip()).resolve() != CHECKOUT:
            return None
        describe = [*git, "describe", "--always", "--dirty", "--exclude", "*"]
        return subprocess.run(describe, capture_output=True, text=True, check=False).stdout.strip() or None
    except OSError:  # no git
        return None


def hardware(device: str) -> dict[str, Any]:
    """Processor, cores, and the instructions that matrix products live on; on CUDA, the GPU."""
    flags = set(_of_processor("flags").split())
    found: dict[str, Any] = {"cpu": _processor(), "cores": os.cpu_count()}
    found["instructions"] = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    if device == "cuda":
        found["gpu"] = torch.cuda.get_device_name()
    return found


def versions(*distributions: str) -> dict[str, str]:
    """Python, PyTorch, and those of `distributions` that are installed."""
    found = {"python": platform.python_version(), "torch": torch.__version__, "protformer": protformer.__version__}
    for name in distributions:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


class OtherPrograms:
    """How much of the machine others had since this was made: figures are doubtful where it is much. Linux only."""

    def __init__(self) -> None:
        self._start = time.perf_counter(), _busy_seconds(), time.process_time()

    def cores(self) -> float | None:
        """Cores that other programs kept busy, on average; None where the system does not tell, or too soon to tell."""
        wall, busy, own = self._start
        elapsed, now = time.perf_counter() - wall, _busy_seconds()
        if busy is None or now is None or elapsed < 0.2:
            return None
        return round(max(now - busy - (time.process_time() - own), 0.0) / elapsed, 2)


def _busy_seconds() -> float | None:
    """Of all cores since the machine started, the hypervisor's other guests included."""
    statistics = Path("/proc/stat")
    if not statistics.exists():
        return None
    user, nice, system, _idle, _wait, *rest = map(int, statistics.read_text(encoding="utf-8").split()[1:9])
    return (user + nice + system + sum(rest)) / os.sysconf("SC_CLK_TCK")


def _processor() -> str:
    return _of_processor("model name") or platform.processor()


def _of_processor(entry: str) -> str:
    """What Linux says of the first core; empty elsewhere."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(entry)), "")
