"""Callbacks that every run has: reproducible dropout, throughput and memory, checkpoints without "=" in their names."""

import ctypes
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.callbacks import EarlyStopping, ModelCheckpoint

from protformer.data.batch import Batch
from protformer.errors import ProtformerError
from protformer.training.module import peak_memory_bytes


class SeedEachStep(Callback):
    """Makes dropout a pure function of (seed, optimiser step, micro-batch, rank).

    Lightning saves no state of the random number generators. Derived from the step instead of saved, a resumed run has
    the dropout it would have had, on any device, and no state per rank has to be gathered into a checkpoint.
    """

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        micro_batch = batch_idx % trainer.accumulate_grad_batches
        words = [self.seed, trainer.global_step, micro_batch, trainer.global_rank]
        torch.manual_seed(int(np.random.SeedSequence(words).generate_state(1, np.uint64)[0] >> 1))


class Throughput(Callback):
    """Logs residues per second (all ranks, training steps alone) and peak memory; keeps totals for the report.

    `cpu_seconds` are those of this process, over all its threads: on a shared machine they say more than the clock.
    `whole_seconds` are those of the whole of `fit`, validation included; of a resumed run, with those before.
    """

    def __init__(self) -> None:
        self._whole_before = 0.0
        self._fit_started = self._fit_ended = 0.0
        self.residues = 0
        self.seconds = 0.0
        self.cpu_seconds = 0.0
        self._window_residues = 0
        self._window_seconds = 0.0
        self._started = 0.0
        self._cpu_started = 0.0

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self._started, self._cpu_started = time.perf_counter(), time.process_time()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        if trainer.strategy.root_device.type == "cuda":
            torch.cuda.synchronize()
        self._window_seconds += time.perf_counter() - self._started
        self.cpu_seconds += time.process_time() - self._cpu_started
        self._window_residues += batch.residues
        interval = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]  (set by a connector)
        done = trainer.fit_loop.epoch_loop.total_batch_idx + 1  # micro-batches, over all epochs
        if interval and done % (interval * trainer.accumulate_grad_batches) == 0:
            self.flush(trainer, pl_module)

    @property
    def whole_seconds(self) -> float:
        """Until now, or until `fit` ended."""
        return self._whole_before + (self._fit_ended or time.perf_counter()) - self._fit_started

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit":
            self._fit_started, self._fit_ended = time.perf_counter(), 0.0

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.flush(trainer)
        self._fit_ended = time.perf_counter()

    def flush(self, trainer: Trainer, pl_module: LightningModule | None = None) -> None:
        """Add what was counted since the last call to the totals, and log its rate to `pl_module`; collective."""
        if not self._window_seconds:
            return
        # ranks take the same steps in step: their residues add up, their seconds do not
        residues = torch.tensor(float(self._window_residues), device=trainer.strategy.root_device)
        residues = float(trainer.strategy.reduce(residues, reduce_op="sum"))
        if pl_module is not None:
            options: dict[str, Any] = {"on_step": True, "on_epoch": False, "batch_size": 1}
            pl_module.log("throughput/residues_per_second", residues / self._window_seconds, prog_bar=True, **options)
            peak = peak_memory_bytes(trainer.strategy.root_device)
            pl_module.log("memory/peak_gib", peak / 2**30, **options)
        self.residues += int(residues)
        self.seconds += self._window_seconds
        self._window_residues, self._window_seconds = 0, 0.0

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        # Lightning has asked for the state already; what was seen since the last log belongs to it
        self.flush(trainer)
        if "callbacks" in checkpoint:
            checkpoint["callbacks"][self.state_key] = self.state_dict()

    def state_dict(self) -> dict[str, Any]:
        return {
            "residues": self.residues,
            "seconds": self.seconds,
            "cpu_seconds": self.cpu_seconds,
            "whole_seconds": self.whole_seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.residues = int(state_dict["residues"])
        self.seconds = float(state_dict["seconds"])
        self.cpu_seconds = float(state_dict["cpu_seconds"])
        self._whole_before = float(state_dict.get("whole_seconds", self.seconds))  # (older checkpoints: of steps alone)


class SameData(Callback):
    """Refuses to resume on other training sequences than the checkpoint's: the record would be of neither."""

    def __init__(self, digest: str) -> None:
        self.digest = digest

    def state_dict(self) -> dict[str, Any]:
        return {"training_sequences": self.digest}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["training_sequences"] != self.digest:
            raise ProtformerError(
                "The checkpoint was trained on other sequences than data.train holds now (or in another order, or split"
                " otherwise): put them back to resume. To go on with these, start from its weights (init_from=FOLDER"
                " instead of ckpt_path); to start anew, remove the folder checkpoints/ or name another run folder."
            )


class ReturnMemory(Callback):
    """Gives freed memory back to the system every `every` micro-batches, on Linux with glibc; elsewhere nothing.

    Packs differ in size, so the heap fragments: an 1.8 M-parameter run on a CPU grew from 1 to 7 GB in 400 steps, of
    which `malloc_trim` returned 5. (A lower mmap threshold would avoid it too, at 30 % of the speed.)
    """

    def __init__(self, every: int = 20) -> None:
        self.every = every
        try:
            self._trim = ctypes.CDLL(None).malloc_trim
        except (OSError, AttributeError, TypeError):
            self._trim = None

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        self._maybe(trainer, batch_idx)

    def on_test_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Batch,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        self._maybe(trainer, batch_idx)

    def _maybe(self, trainer: Trainer, batch_idx: int) -> None:
        if self._trim is not None and batch_idx % self.every == 0 and trainer.strategy.root_device.type == "cpu":
            self._trim(0)


class RunCheckpoint(ModelCheckpoint):
    """Keeps the best figure of a resumed run. Lightning forgets it where the run folder is another one, as it always is
    here; it deletes no file outside the new folder either way."""

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if Path(state_dict["best_model_path"]).is_file():
            super().load_state_dict({**state_dict, "dirpath": self.dirpath})


def checkpoint(
    *, run_dir: Path | str, monitor: str | None, mode: str, every_steps: int | None = None, keep: int = 1
) -> ModelCheckpoint:
    """Checkpoints in `run_dir`/checkpoints: `last.ckpt`, and the `keep` best by the task's figure on valid.

    Written at each validation, or every `every_steps` optimiser steps. Names hold no "=", which Hydra could not take as
    an override.
    """
    best = None if monitor is None else f"valid/{monitor}"
    return RunCheckpoint(
        dirpath=Path(run_dir) / "checkpoints",
        filename="step_{step:07d}",
        auto_insert_metric_name=False,
        monitor=best if every_steps is None else None,
        mode=mode,
        save_top_k=keep if best is not None and every_steps is None else 1,
        save_last=True,
        every_n_train_steps=every_steps,
        save_on_train_epoch_end=False,
        enable_version_counter=False,
    )


def early_stopping(*, run_dir: Path | str, monitor: str | None, mode: str, patience: int = 5) -> EarlyStopping:
    """Stop after `patience` validations without a better figure."""
    if monitor is None:
        raise ProtformerError("callbacks=early_stopping needs a validation set: give data.valid, or callbacks=default.")
    return EarlyStopping(monitor=f"valid/{monitor}", mode=mode, patience=patience)
