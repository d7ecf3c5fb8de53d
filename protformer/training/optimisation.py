"""The optimiser's parameter groups and the learning-rate schedule."""

import math
from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import nn
from torch.optim.lr_scheduler import LambdaLR

ScheduleName = Literal["constant", "linear", "cosine"]


class Optimisation:
    """An optimiser factory with warm-up and decay.

    Args:
        optimizer: factory `(params, lr=, weight_decay=) -> Optimizer` (a Hydra partial).
        lr, weight_decay: what it is given.
        warmup_steps: optimiser steps of linear warm-up.
        schedule: after the warm-up: "constant", or "linear" or "cosine" down to `final_fraction` of the learning rate
            at the last step.
        decay_vectors: whether weight decay acts on biases, norms and the embedding too; usually it acts on matrices
            only.
    """

    def __init__(
        self,
        *,
        optimizer: Callable[..., torch.optim.Optimizer],
        lr: float,
        weight_decay: float = 0.0,
        warmup_steps: int = 100,
        schedule: ScheduleName = "cosine",
        final_fraction: float = 0.1,
        decay_vectors: bool = False,
    ) -> None:
        if schedule not in ("constant", "linear", "cosine"):
            raise ValueError(f"optimizer.schedule must be constant, linear or cosine, not {schedule!r}")
        self.optimizer = optimizer
        self.lr = lr
        self.weight_decay = weight_decay
        self.warmup_steps = warmup_steps
        self.schedule = schedule
        self.final_fraction = final_fraction
        self.decay_vectors = decay_vectors

    def configure(self, model: nn.Module, total_steps: int | float) -> dict[str, Any]:
        """What Lightning's `configure_optimizers` returns; `total_steps` may be infinite for a constant schedule."""
        if math.isinf(total_steps) and self.schedule != "constant":
            raise ValueError(
                f"optimizer.schedule={self.schedule} needs an end: set trainer.max_steps or trainer.max_epochs,"
                " or write optimizer.schedule=constant"
            )
        trained = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
        if self.decay_vectors:
            groups: list[dict[str, Any]] = [{"params": [p for _, p in trained]}]
        else:
            matrices = [p for name, p in trained if p.ndim >= 2 and "embedding" not in name]
            others = [p for name, p in trained if p.ndim < 2 or "embedding" in name]
            groups = [{"params": matrices}, {"params": others, "weight_decay": 0.0}]
        optimizer = self.optimizer(
            [group for group in groups if group["params"]], lr=self.lr, weight_decay=self.weight_decay
        )
        # A plain function: LambdaLR puts a callable object's attributes into the checkpoint, a function's not.
        scheduler = LambdaLR(optimizer, lambda step: self.factor(step, total_steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def factor(self, step: int, total_steps: int | float) -> float:
        """The learning rate at optimiser step `step` (from 0) as a share of the set one."""
        if step < self.warmup_steps:
            return (step + 1) / (self.warmup_steps + 1)
        if self.schedule == "constant":
            return 1.0
        done = min(1.0, (step - self.warmup_steps) / max(1.0, total_steps - self.warmup_steps))
        left = 1.0 - done if self.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
        return self.final_fraction + (1.0 - self.final_fraction) * left
