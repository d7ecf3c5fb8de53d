"""The callbacks that a run's attention asks for: redraws, moving statistics, diagnostics."""

import logging

from hydra.utils import instantiate
from omegaconf import DictConfig
from pytorch_lightning import Callback

from protformer.attention import FavorAttention
from protformer.model import ProteinEncoder
from protformer.training.attention_diagnostics import AttentionDiagnostics
from protformer.training.datamodule import PackedDataModule
from protformer.training.moving_statistics import MovingStatistics, moving_features
from protformer.training.probe import AttentionProbe
from protformer.training.redraw import RedrawFeatures

log = logging.getLogger(__name__)


def attention_callbacks(config: DictConfig, trunk: ProteinEncoder, data: PackedDataModule) -> list[Callback]:
    """Those of `config.redraw` and `config.diagnostics` for this trunk, in the order in which they are to run."""

    def probe() -> AttentionProbe:
        # one for each callback: a probe keeps the sequences that it looked at last
        sizes = {"rows": config.diagnostics.rows, "tokens": config.diagnostics.tokens}
        return AttentionProbe(trunk=trunk, data=data, seed=int(config.seed), **sizes)

    encoder = trunk.encoder
    favor = next((attention for attention in encoder.attentions if isinstance(attention, FavorAttention)), None)
    callbacks: list[Callback] = []
    # A frozen trunk is a fixed function: new projections or averages would change it under its head.
    if not config.freeze and any(hasattr(attention, "redraw_") for attention in encoder.attentions):
        schedule = instantiate(config.redraw)
        if schedule.wants_error(0) and favor is None:
            log.warning(
                "redraw=adaptive goes by the error of random features, and %s has none: it keeps what it drew first."
                " Write redraw=every or redraw=geometric to draw anew.",
                type(encoder.attentions[0]).__name__,
            )
        if schedule.wants_error(0) and favor is not None and not favor.features.estimates_softmax:
            log.warning(
                "redraw=adaptive goes by the distance from softmax attention, which %s as configured do not estimate:"
                " it is no error of theirs.",
                type(favor.features).__name__,
            )
        callbacks.append(RedrawFeatures(schedule=schedule, encoder=encoder, probe=probe()))
        moving = moving_features(encoder)
        if moving:
            callbacks.append(MovingStatistics(moving))
    if config.diagnostics.every and favor is None:
        log.warning("This attention has no random features to diagnose: diagnostics.every has no effect.")
    elif config.diagnostics.every:
        callbacks.append(AttentionDiagnostics(every=config.diagnostics.every, probe=probe()))
    return callbacks
