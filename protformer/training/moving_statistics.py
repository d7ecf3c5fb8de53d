"""Keeps the moving statistics of feature maps: one update an optimiser step, from what all ranks have seen in it."""

from collections.abc import Sequence

import torch
from pytorch_lightning import Callback, LightningModule, Trainer

from protformer.data.batch import Batch
from protformer.errors import ProtformerError
from protformer.features import AdaptiveFeatures
from protformer.features.moments import MovingMoments
from protformer.model import Encoder


def moving_features(encoder: Encoder) -> list[AdaptiveFeatures]:
    """The feature maps of an encoder that keep moving statistics."""
    return [m for m in encoder.modules() if isinstance(m, AdaptiveFeatures) and m.moving is not None]


class MovingStatistics(Callback):
    """Moves the averages of `features` after the last backward of an optimiser step, before the weights change.

    At that moment every micro-batch of the step has been observed and none of the next; a checkpoint of the step holds
    the new average. Sums are added over ranks, so that the average is that of one process.

    DDP broadcasts rank 0's buffers before the forward of each step (not of each micro-batch): sums and counts are zero
    then, and averages equal everywhere, so nothing is lost.
    """

    def __init__(self, features: Sequence[AdaptiveFeatures]) -> None:
        self.features = features

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Batch, batch_idx: int) -> None:
        # A rank without a sequence of its own gets a segment that no loss reads; nor is it to be observed.
        for features in self.features:
            features.train(batch.residues > 0)

    def on_before_optimizer_step(
        self, trainer: Trainer, pl_module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        moments = [features.moving for features in self.features if features.moving is not None]
        if any(m.average.dtype != torch.float32 for m in moments):
            raise ProtformerError(
                f"Moving statistics need fp32, and trainer.precision={trainer.precision} rounds them with this trainer:"
                " write trainer.precision=bf16-mixed (with trainer=fsdp 32-true), or features.statistics=segment."
            )
        if trainer.world_size > 1:
            _add_over_ranks(trainer, moments)
        for each in moments:
            each.update_()


def _add_over_ranks(trainer: Trainer, moments: list[MovingMoments]) -> None:
    """Sums and counts of all maps in one exchange."""
    observed = torch.stack([torch.cat([m.sums.flatten(), m.count.reshape(1)]) for m in moments])
    observed = trainer.strategy.reduce(observed, reduce_op="sum")
    for each, row in zip(moments, observed, strict=True):
        each.sums.copy_(row[:-1].view_as(each.sums))
        each.count.copy_(row[-1])
