"""Logs what random features do to the attention while it trains."""

from typing import Any

from pytorch_lightning import Callback, LightningModule, Trainer

from protformer.training.probe import AttentionProbe


class AttentionDiagnostics(Callback):
    """Every `every` optimiser steps, from step 0, the probe's figures on rows of the step that is to be taken.

    `attention/layer{i}/head{j}/{figure}` (the figures: `protformer.attention.diagnostics`), of `distance` and
    `distance_uniform` the means `attention/layer{i}/{figure}` and `attention/{figure}` too.
    """

    def __init__(self, *, every: int, probe: AttentionProbe) -> None:
        if every < 1:
            raise ValueError(f"diagnostics.every must be at least 1 optimiser step (0 is off), not {every}")
        self.every = every
        self.probe = probe
        self._done: int | None = None

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step % self.every or step == self._done:  # (under accumulation a step has several batches)
            return
        self._done = step
        figures = self.probe.measure(trainer, step=step)
        if figures is None:
            return
        logged: dict[str, float] = {}
        for name, by_layer in figures.items():
            for layer, by_head in zip(self.probe.attentions, by_layer, strict=True):
                for head, value in enumerate(by_head.tolist()):
                    logged[f"attention/layer{layer}/head{head}/{name}"] = value
                if name.startswith("distance"):
                    logged[f"attention/layer{layer}/{name}"] = float(by_head.mean())
            if name.startswith("distance"):
                logged[f"attention/{name}"] = float(by_layer.mean())
        for logger in trainer.loggers:
            logger.log_metrics(logged, step)
