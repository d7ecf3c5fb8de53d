"""When random features are drawn anew: schedules from optimiser step to draw number, and the callback for them.

A draw number is a function of the optimiser step alone, or of the step and what was measured at steps before, which is
the same on every rank and saved in checkpoints. So a resumed run has the projections it would have had, every rank has
the same, and nothing happens in evaluation. Steps are the optimiser's and not micro-batches: under accumulation
`global_step` repeats, and the projections with it.
"""

import math
from abc import ABC, abstractmethod
from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from protformer.model import Encoder
from protformer.training.probe import AttentionProbe


class RedrawSchedule(ABC):
    """Draw numbers by optimiser step. A schedule that goes by the attention's error asks for it, others never do."""

    @abstractmethod
    def draw_at(self, step: int) -> int:
        """The number of redraws done before optimiser step `step` (from 0)."""

    def wants_error(self, step: int) -> bool:
        """Whether the error of the current draw is to be measured before step `step`, and told by `observe`."""
        return False

    def observe(self, step: int, error: float) -> None:
        """Take the error that was measured before step `step`; `draw_at` and `wants_error` may change by it."""
        raise NotImplementedError(f"{type(self).__name__} asks for no error")

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run has to know beside the step and the draw number: plain values."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any], draw: int) -> None:
        """Take the state of a run that had draw number `draw`; empty where another schedule wrote it."""
        return  # (the draw follows from the step)


class Never(RedrawSchedule):
    """The draw of the start, kept."""

    def draw_at(self, step: int) -> int:
        return 0


class Every(RedrawSchedule):
    """A new draw every `every` optimiser steps."""

    def __init__(self, every: int = 1000) -> None:
        if every < 1:
            raise ValueError(f"redraw.every must be at least 1 optimiser step, not {every}")
        self.every = every

    def draw_at(self, step: int) -> int:
        return step // self.every


class Geometric(RedrawSchedule):
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


class Adaptive(RedrawSchedule):
    """A new draw when the attention's error has risen: above `rise` times the lowest since the last draw.

    It is measured every `every` optimiser steps, and right after each redraw. An error that is no number (nothing to
    measure it on, a model that diverged) changes nothing.
    """

    def __init__(self, every: int = 100, rise: float = 1.1) -> None:
        if every < 1 or rise <= 1:
            raise ValueError(f"redraw needs every >= 1 and rise > 1, not every={every} and rise={rise}")
        self.every = every
        self.rise = rise
        self.draw = 0
        self.lowest: float | None = None  # of the current draw
        self.measured: int | None = None  # the last step at which the current draw was

    def draw_at(self, step: int) -> int:
        return self.draw

    def wants_error(self, step: int) -> bool:
        return step % self.every == 0 and step != self.measured

    def observe(self, step: int, error: float) -> None:
        self.measured = step
        if not math.isfinite(error):
            return
        if self.lowest is not None and error > self.rise * self.lowest:
            self.draw += 1
            self.lowest = self.measured = None
        else:
            self.lowest = error if self.lowest is None else min(self.lowest, error)

    def state_dict(self) -> dict[str, Any]:
        return {"lowest": self.lowest, "measured": self.measured}

    def load_state_dict(self, state_dict: dict[str, Any], draw: int) -> None:
        self.draw = draw
        self.lowest = state_dict.get("lowest")
        self.measured = state_dict.get("measured")


class RedrawFeatures(Callback):
    """Applies a schedule to an encoder before each training step, and logs each redraw as `redraw/draw`.

    `probe` measures the error for a schedule that asks for it (`redraw/probe`): the mean distance to softmax attention,
    always on the rows of optimiser step 0, so that what rises is the error and not the difficulty of the rows.
    """

    def __init__(self, *, schedule: RedrawSchedule, encoder: Encoder, probe: AttentionProbe | None = None) -> None:
        self.schedule = schedule
        self.encoder = encoder
        self.probe = probe
        self.steps: list[int] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        self._draw(trainer, step)
        while self.schedule.wants_error(step):
            error = self._error(trainer)
            self.schedule.observe(step, error)
            _log(trainer, {"redraw/probe": error})
            self._draw(trainer, step)

    def _draw(self, trainer: Trainer, step: int) -> None:
        draw = self.schedule.draw_at(step)
        if draw != self.encoder.draw:
            self.encoder.redraw_(draw)
            self.steps.append(step)
            _log(trainer, {"redraw/draw": float(draw), "redraw/step": float(step)})

    def _error(self, trainer: Trainer) -> float:
        if self.probe is None:
            raise ValueError(f"{type(self.schedule).__name__} goes by the attention's error: it needs a probe")
        figures = self.probe.measure(trainer, step=0)
        return math.nan if figures is None else float(figures["distance"].mean())

    def state_dict(self) -> dict[str, Any]:
        return {"draw": self.encoder.draw, "steps": list(self.steps), "schedule": self.schedule.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        # The projections themselves come back with the model's buffers; the number says which draw they are.
        self.encoder.draw = int(state_dict["draw"])
        self.steps = [int(step) for step in state_dict["steps"]]
        self.schedule.load_state_dict(state_dict.get("schedule", {}), self.encoder.draw)


def _log(trainer: Trainer, figures: dict[str, float]) -> None:
    for logger in trainer.loggers:
        logger.log_metrics(figures, trainer.global_step)
