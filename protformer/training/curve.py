"""The learning curve of a run: its figures on valid at each validation, against residues seen and seconds trained."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer
from pytorch_lightning.trainer.states import TrainerFn

from protformer.training.callbacks import Throughput

Point = dict[str, Any]


class LearningCurve(Callback):
    """Points of (step, residues, wall and processor seconds of training steps alone, figures on valid).

    They are saved with every checkpoint, so a resumed run has the whole curve.
    """

    def __init__(self, throughput: Throughput) -> None:
        self.throughput = throughput
        self.points: list[Point] = []

    def start(self, figures: dict[str, float]) -> None:
        """The point before training."""
        self.points = [{"step": 0, "residues": 0, "seconds": 0.0, "cpu_seconds": 0.0, "figures": dict(figures)}]

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking:
            return
        done = self.throughput
        done.flush(trainer)
        figures = {
            name.removeprefix("valid/"): float(value)
            for name, value in trainer.callback_metrics.items()
            if name.startswith("valid/")
        }
        times = {"seconds": done.seconds, "cpu_seconds": done.cpu_seconds}
        self.points.append({"step": trainer.global_step, "residues": done.residues, **times, "figures": figures})

    def state_dict(self) -> dict[str, Any]:
        return {"points": self.points}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.points = list(state_dict["points"])
