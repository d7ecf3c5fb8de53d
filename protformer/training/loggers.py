"""Loggers: W&B (offline unless the user says otherwise), CSV, or none. Each takes the same arguments from the job."""

import netrc
import os
import warnings
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

from hydra.utils import instantiate
from omegaconf import OmegaConf
from pytorch_lightning.loggers import CSVLogger, Logger, WandbLogger
from pytorch_lightning.loggers.csv_logs import ExperimentWriter

from protformer.errors import ProtformerError
from protformer.files import write_text
from protformer.training.settings import JobSettings

MODES = ("online", "offline", "disabled")


def job_logger(settings: JobSettings, **figures: Any) -> Logger | None:
    """The logger of a job's configuration, None without one; `figures` stand beside the configuration in W&B."""
    chosen = settings.config.get("logger")
    if chosen is None:
        return None
    # (by partial: `instantiate` would take the configuration among the arguments for one to instantiate)
    return instantiate(OmegaConf.create(chosen), _partial_=True, _convert_="all")(
        run_dir=settings.run_dir,
        run_name=settings.run_name,
        run_group=settings.group,
        overrides=settings.overrides,
        run_config={**settings.config, "choices": settings.choices, **figures},
    )


def wandb_logger(
    *,
    run_dir: Path | str,
    run_name: str,
    run_group: str | None,
    overrides: list[str],
    run_config: dict[str, Any],
    mode: str | None = None,
    project: str = "protformer",
    entity: str | None = None,
    name: str | None = None,
    group: str | None = None,
    tags: list[str] | None = None,
) -> Logger:
    """A W&B run in `run_dir`.

    The mode is that of the WANDB_MODE environment variable, else `mode`, else offline: no account is needed. `name`,
    `group` and `tags` are the user's; without them the run is named after its choices, grouped by its sweep, and tagged
    with its overrides.
    """
    chosen = os.environ.get("WANDB_MODE") or mode or "offline"
    if chosen == "dryrun":  # W&B's old name
        chosen = "offline"
    if chosen not in MODES:
        raise ProtformerError(f"logger.mode (or WANDB_MODE) is {chosen!r}; write one of {', '.join(MODES)}.")
    if chosen == "online" and not _logged_in():
        raise ProtformerError(
            "logger.mode=online needs a W&B account: run `wandb login` first, or leave logger.mode out to log offline"
            " and upload later with `wandb sync`."
        )
    # W&B takes tags of at most 64 letters.
    all_tags: list[str] = [tag for tag in dict.fromkeys((tags or []) + overrides) if 0 < len(tag) <= 64]
    import wandb

    logger = WandbLogger(
        project=project,
        entity=entity,
        name=name or run_name,
        group=group or run_group,
        tags=all_tags,
        save_dir=str(run_dir),
        config=run_config,
        # By argument and not by Lightning's `offline`, which would set WANDB_MODE for the rest of the process.
        mode=chosen,
        settings=wandb.Settings(silent=True, console="off"),
    )
    # Lightning 2.6 always hands this on, and W&B since 0.22 warns of it on the terminal.
    logger._wandb_init.pop("anonymous", None)
    return logger


def _logged_in() -> bool:
    """Whether `wandb login` left a key: in the environment, or in the user's netrc under the server's name."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname
    try:
        return host is not None and netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False


def csv_logger(
    *, run_dir: Path | str, run_name: str, run_group: str | None, overrides: list[str], run_config: dict[str, Any]
) -> Logger:
    """`metrics.csv` in `run_dir`/csv. A run that goes on there adds to it: Lightning's logger would begin it anew, and
    what was logged before the interruption would be gone. Steps made again since the checkpoint stand twice."""
    file = Path(run_dir) / "csv" / "metrics.csv"
    earlier = file.read_bytes().rpartition(b"\n")[0] if file.is_file() else b""  # (a line may have been cut)
    logger = CSVLogger(save_dir=str(run_dir), name="csv", version="")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Experiment logs directory")
        writer = logger.experiment
    if earlier and isinstance(writer, ExperimentWriter):  # (processes but the first have none)
        write_text(file, earlier.decode("utf-8") + "\n")
        writer.metrics_keys = earlier.partition(b"\n")[0].decode("utf-8").strip().split(",")
    logger.log_hyperparams({"overrides": list(overrides)})
    return logger


def no_logger(
    *, run_dir: Path | str, run_name: str, run_group: str | None, overrides: list[str], run_config: dict[str, Any]
) -> None:
    """Nothing is logged; `metrics.json` is still written."""
