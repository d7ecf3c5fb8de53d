"""How many processes a job takes, and a process group of its own for each job of several.

Lightning's own `ddp` launcher re-runs the command line in every rank: under Hydra's multirun that is the whole sweep,
and jobs mix in silence. Here a job of several processes is started by torch's elastic launcher, which gives it fresh
processes, a rendezvous on a free loopback port, and ends all of them when one fails; the ranks get the resolved
configuration and the run folder of the one parent, so they cannot disagree.
"""

import contextlib
import ctypes
import logging
import os
import signal
import uuid
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_method
from omegaconf import DictConfig, open_dict

from protformer.errors import ProtformerError
from protformer.training.sentences import explained
from protformer.training.settings import JobSettings


def resolve_devices(trainer: DictConfig) -> int:
    """Settle "auto" and -1 in the trainer's configuration; the number of processes on this machine."""
    with open_dict(trainer):
        if trainer.accelerator == "auto":
            trainer.accelerator = "gpu" if torch.cuda.is_available() else "cpu"
        if trainer.accelerator == "gpu" and not torch.cuda.is_available():
            raise ProtformerError(
                "This trainer needs a CUDA GPU and PyTorch sees none: write trainer=cpu, or trainer=ddp_cpu for "
                "several processes."
            )
        found = torch.cuda.device_count() if trainer.accelerator == "gpu" else 1
        if trainer.devices in (-1, "-1", "auto"):
            trainer.devices = found
        devices = trainer.devices
        if not isinstance(devices, int) or devices < 1:
            raise ProtformerError(f"trainer.devices={devices}: write how many devices to use, or -1 for all GPUs.")
        if trainer.accelerator == "gpu" and devices > found:
            raise ProtformerError(
                f"trainer.devices={devices}, but PyTorch sees {found} GPUs: write trainer.devices={found}."
            )
        if devices > 1 and trainer.strategy == "auto":
            trainer.strategy = "ddp"
        if trainer.strategy in ("ddp_spawn", "ddp_fork", "ddp_notebook"):
            raise ProtformerError(
                f"trainer.strategy={trainer.strategy}: write trainer.strategy=ddp; protformer starts the processes of "
                "each job itself."
            )
        if trainer.strategy == "fsdp" and trainer.accelerator != "gpu":
            raise ProtformerError(
                "trainer=fsdp shards over GPUs: write trainer=ddp_cpu to try several processes on a CPU."
            )
    return devices


def launched_outside() -> bool:
    """Whether torchrun or SLURM already made this process one rank of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 or (
        int(os.environ.get("SLURM_NTASKS", "1")) > 1 and "SLURM_PROCID" in os.environ
    )


def run(settings: JobSettings, processes: int, *, alone: bool = False) -> dict[str, Any]:
    """Run the job: here when it takes one process, else in `processes` new ones. Returns rank 0's figures.

    `alone`: in a new process even when it takes one, as a member of a sweep does: nothing is left over from the member
    before, its peak memory is its own, and its death is not the sweep's.
    """
    if launched_outside() or (processes == 1 and not alone):
        return get_method(settings.config["job"])(settings)
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    # The agent reports a failed rank with a page of its own; the sentence below says the same.
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="127.0.0.1:0",
        local_addr="127.0.0.1",
        max_restarts=0,
        monitor_interval=0.2,
        start_method="spawn",
    )
    threads = os.environ.get("OMP_NUM_THREADS")
    os.environ["OMP_NUM_THREADS"] = threads or str(max(1, (os.cpu_count() or 1) // processes))
    try:
        return elastic_launch(config, _rank)(settings)[0]
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise ProtformerError(_sentence(failure.message, failure.exitcode, rank, processes)) from error
    finally:
        if threads is None:
            os.environ.pop("OMP_NUM_THREADS", None)
        else:
            os.environ["OMP_NUM_THREADS"] = threads


def end_with_parent() -> None:
    """On Linux: be terminated when the parent dies, however it dies, or a member would go on beside its next start."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(1, signal.SIGTERM)  # PR_SET_PDEATHSIG


def _rank(settings: JobSettings) -> dict[str, Any]:
    end_with_parent()
    level = logging.INFO if os.environ.get("RANK") == "0" else logging.ERROR
    handlers: list[logging.Handler] = [logging.StreamHandler()]
    if level == logging.INFO:
        handlers.append(logging.FileHandler(Path(settings.run_dir) / "train.log", encoding="utf-8"))
    logging.basicConfig(level=level, format="%(message)s", handlers=handlers, force=True)
    for noisy in ("torch.distributed", "fsspec", "asyncio"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    try:
        return get_method(settings.config["job"])(settings)
    except Exception as error:
        raise ProtformerError(explained(error, Path(settings.run_dir))) from error
    finally:
        finish_logging()
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


def finish_logging() -> None:
    """Close the W&B run of this process, so that the next job gets its own."""
    import wandb

    if wandb.run is not None:
        wandb.finish()


def _sentence(message: Any, code: int, rank: int, processes: int) -> str:
    where = f"process {rank} of {processes}" if processes > 1 else "its process"
    if code < 0:
        name = signal.Signals(-code).name
        memory = " (what Linux sends where memory runs out)" if name == "SIGKILL" else ""
        return f"{where.capitalize()} was ended by {name}{memory}."
    text = message.get("message", "") if isinstance(message, dict) else str(message)
    text = text.removeprefix("ProtformerError: ").strip()
    if not text:
        return f"{where.capitalize()} ended without a word."
    return f"{text} (in {where})" if processes > 1 else text
