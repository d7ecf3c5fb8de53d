"""What `train.py` calls for each job: the resolved configuration is written down, checked, and run."""

import logging
import os
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from protformer.errors import ProtformerError, shown_path
from protformer.files import write_text
from protformer.training.launch import finish_logging, launched_outside, resolve_devices, run
from protformer.training.settings import JobSettings
from protformer.training.sweep import (
    FAILURE,
    TRACEBACK,
    claimed,
    config_hash,
    finished_figures,
    last_checkpoint,
    warn_of_changes,
)

log = logging.getLogger(__name__)
GROUPS = (
    "data",
    "task",
    "model",
    "attention",
    "features",
    "redraw",
    "optimizer",
    "trainer",
    "callbacks",
    "logger",
    "experiment",
    "method",
    "debug",
)


def train(config: DictConfig) -> dict[str, Any]:
    """Run one job of a Hydra command line; returns the figures by evaluation set."""
    hydra = HydraConfig.get()
    run_dir = Path(hydra.runtime.output_dir)
    if hydra.mode == RunMode.MULTIRUN and int(os.environ.get("WORLD_SIZE", "1")) > 1:
        raise ProtformerError(
            "-m under torchrun would mix the jobs of the sweep: leave torchrun out and write trainer.devices=N; each"
            " job gets processes of its own."
        )
    sweeps = hydra.mode == RunMode.MULTIRUN
    if launched_outside() and not sweeps and not any(o.startswith("hydra.run.dir=") for o in hydra.overrides.hydra):
        raise ProtformerError(
            "Under torchrun or srun each process would make a run folder of its own: write hydra.run.dir=runs/NAME, the"
            " same for all. (For one machine leave the launcher out and write trainer.devices=N.)"
        )
    seed = config.seed
    if not isinstance(seed, int) or not 0 <= seed < 2**32:  # what NumPy's generator takes
        raise ProtformerError(f"seed={seed}: write a whole number from 0 to {2**32 - 1:,}.")
    # (before anything is settled for this machine: the name of the folder was found from the same)
    named = sweeps and run_dir.name == config_hash(_plain(config))
    processes = resolve_devices(config.trainer)
    choices = {group: str(hydra.runtime.choices[group]) for group in GROUPS if hydra.runtime.choices.get(group)}
    overrides = list(hydra.overrides.task)
    plain = _plain(config)
    settings = JobSettings(
        config={k: v for k, v in plain.items() if k != "paths"},
        run_dir=str(run_dir),
        choices=choices,
        overrides=overrides,
        group=_group(hydra, choices, run_dir),
    )
    with claimed(run_dir) if named and not launched_outside() else nullcontext():
        if named:
            done = finished_figures(run_dir)
            if done is not None:
                log.info("done already: %s  (%s)", shown_path(run_dir), settings.run_name)
                warn_of_changes(run_dir / "metrics.json", plain)
                return done
            resumed = last_checkpoint(run_dir)
            if resumed is not None and settings.config["ckpt_path"] is None:
                log.info("going on from %s", shown_path(resumed))
                warn_of_changes(Path(resumed), plain)
                settings.config["ckpt_path"] = resumed
        _write_resolved(plain, run_dir)
        for told in (FAILURE, TRACEBACK):  # of an earlier start
            (run_dir / told).unlink(missing_ok=True)
        if choices["attention"] == "exact" and settings.chose("features", "redraw"):
            log.warning("attention=exact has no random features: what you set for features and redraw has no effect.")
        try:
            figures = run(settings, processes, alone=sweeps)
        finally:
            finish_logging()
        return figures


def _group(hydra: Any, choices: dict[str, str], run_dir: Path) -> str | None:
    if hydra.mode == RunMode.MULTIRUN:
        return run_dir.parent.name
    return choices.get("experiment")


def _plain(config: DictConfig) -> dict[str, Any]:
    plain = OmegaConf.to_container(config, resolve=True)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _write_resolved(config: dict[str, Any], run_dir: Path) -> None:
    write_text(run_dir / "config.yaml", OmegaConf.to_yaml(OmegaConf.create(config)))
