"""When random features are drawn anew: schedules from optimiser step to draw number, and the callback for them.

A draw number is a pure function of the optimiser step, so a resumed run has the projections it would have had, every
rank has the same, and nothing happens in evaluation. Steps are the optimiser's and not micro-batches: under
accumulation `global_step` repeats, and the projections with it.
"""

import math
from typing import Any, Protocol, runtime_checkable

from pytorch_lightning import Callback, LightningModule, Trainer

from protformer.model import Encoder


@runtime_checkable
class RedrawSchedule(Protocol):
    def draw_at(self, step: int) -> int:
        """The number of redraws done before optimiser step `step` (from 0)."""
        ...


class Never:
    """The draw of the start, kept."""

    def draw_at(self, step: int) -> int:
        return 0


class Every:
    """A new draw every `every` optimiser steps."""

    def __init__(self, every: int = 1000) -> None:
        if every < 1:
            raise ValueError(f"redraw.every must be at least 1 optimiser step, not {every}")
        self.every = every

    def draw_at(self, step: int) -> int:
        return step // self.every


class Geometric:
    """New draws at steps `every`, `every * ratio`, `every * ratio^2`, ...: often early, when features move fast."""

    def __init__(self, every: int = 100, ratio: float = 2.0) -> None:
        if every < 1 or ratio <= 1:
            raise ValueError(f"redraw needs every >= 1 and ratio > 1, not every={every} and ratio={ratio}")
        self.every = every
        self.ratio = ratio

    def draw_at(self, step: int) -> int:
        draw = 0
        while step >= math.ceil(self.every * self.ratio**draw):
            draw += 1
        return draw


class RedrawFeatures(Callback):
    """Applies a schedule to an encoder before each training step, and logs each redraw as `redraw/draw`."""

    def __init__(self, *, schedule: RedrawSchedule, encoder: Encoder) -> None:
        self.schedule = schedule
        self.encoder = encoder
        self.steps: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        draw = self.schedule.draw_at(trainer.global_step)
        if draw != self.encoder.draw:
            self.encoder.redraw_(draw)
            self.steps.append(trainer.global_step)
            for logger in trainer.loggers:
                logger.log_metrics(
                    {"redraw/draw": float(draw), "redraw/step": float(trainer.global_step)}, trainer.global_step
                )

    def state_dict(self) -> dict[str, Any]:
        return {"draw": self.encoder.draw, "steps": list(self.steps)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # The projections themselves come back with the model's buffers; the number says which draw they are.
        self.encoder.draw = int(state_dict["draw"])
        self.steps = [int(step) for step in state_dict["steps"]]
