"""Progress of a run: one bar over its optimiser steps on a terminal, a line now and then elsewhere."""

import time
from typing import Any

from pytorch_lightning import LightningModule, Trainer
from pytorch_lightning.callbacks import ProgressBar
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class RunProgress(ProgressBar):
    """Steps done, loss, the last validation's figure, residues per second, time left.

    Lightning's own bars start over in every epoch; a run here is a number of optimiser steps, so this is one bar.
    `every_seconds` is how often a line is written where the output is no terminal.
    """

    def __init__(self, every_seconds: float = 15.0) -> None:
        super().__init__()
        self.every_seconds = every_seconds
        self.console = Console(stderr=True)
        self._progress: Progress | None = None
        self._task: TaskID | None = None
        self._enabled = True
        self._said = 0.0
        self._began = 0.0
        self._first_step = 0

    def disable(self) -> None:
        self._enabled = False

    def enable(self) -> None:
        self._enabled = True

    def _figures(self, trainer: Trainer) -> str:
        metrics = trainer.callback_metrics | trainer.progress_bar_metrics
        parts = []
        if "train/loss" in metrics:
            parts.append(f"loss {float(metrics['train/loss']):.3f}")
        for name, value in metrics.items():
            if name.startswith("valid/") and name in trainer.progress_bar_metrics:
                parts.append(f"{name.replace('/', ' ').replace('_', ' ')} {float(value):.3f}")
        if "throughput/residues_per_second" in metrics:
            parts.append(f"{float(metrics['throughput/residues_per_second']):,.0f} residues/s")
        return "  ".join(parts)

    def _total(self, trainer: Trainer) -> int | None:
        steps = trainer.estimated_stepping_batches
        return None if steps == float("inf") else int(steps)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._enabled:
            return
        self._began = self._said = time.monotonic()
        self._first_step = trainer.global_step
        if self.console.is_terminal:
            self._progress = Progress(
                TextColumn("[bold]training"),
                BarColumn(),
                MofNCompleteColumn(),
                TextColumn("{task.fields[figures]}"),
                TimeElapsedColumn(),
                TimeRemainingColumn(),
                console=self.console,
            )
            self._task = self._progress.add_task(
                "", total=self._total(trainer), completed=trainer.global_step, figures=""
            )
            self._progress.start()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._show(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not trainer.sanity_checking:
            self._show(trainer)

    def _show(self, trainer: Trainer) -> None:
        if not self._enabled:
            return
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=trainer.global_step, figures=self._figures(trainer))
            return
        now = time.monotonic()
        if now - self._said < self.every_seconds:
            return
        self._said = now
        total, done = self._total(trainer), trainer.global_step
        left = ""
        if total is not None and done > self._first_step:
            seconds = (now - self._began) * (total - done) / (done - self._first_step)
            left = f"  {int(seconds) // 60}:{int(seconds) % 60:02d} left"
        step = f"step {done:,}" + (f" of {total:,}" if total is not None else "")
        self.console.print(f"{step}  {self._figures(trainer)}{left}", highlight=False, soft_wrap=True)

    def _stop(self) -> None:
        if self._progress is not None:
            self._progress.stop()
            self._progress = self._task = None

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._progress is not None and self._task is not None:
            self._progress.update(self._task, completed=trainer.global_step, figures=self._figures(trainer))
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._stop()
