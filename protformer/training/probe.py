"""A look at the attention of a model in training: figures of sampled rows, the same however the run is cut.

The rows are those of an optimiser step's sequences, chosen by (seed, step) alone; every rank looks at its share, and a
sum over ranks puts the table of all rows together. Means, minima and percentiles are taken of that table: so two
processes and three micro-batches see what one process sees, up to rounding.

The look is a forward pass of its own, before the training step: without gradients, in evaluation mode, with hooks that
are gone again afterwards. It draws nothing from the global generators and changes nothing that training reads, and it
does not mind whether the training step is compiled or recomputes its activations.
"""

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float64, Int32, Int64
from pytorch_lightning import Trainer
from torch import Tensor, nn

from protformer.attention import FavorAttention, HybridAttention
from protformer.attention.diagnostics import SINGLES, RowFigures, row_figures
from protformer.model import ProteinEncoder
from protformer.training.datamodule import PackedDataModule

# A protein beyond this is looked at by its first so many tokens: the features of a segment are kept whole.
LONGEST = 8192
# Keys that make pairs with a row for |z|^2.
PAIRS = 16


class Share(NamedTuple):
    """What one rank looks at: a pack, rows of it, and these rows' places among those of all ranks."""

    tokens: Int64[Tensor, "total"]
    cu_seqlens: Int32[Tensor, "segments_plus_one"]
    rows: Int64[Tensor, "rows"]
    picks: Float64[Tensor, "rows pairs"]
    places: Int64[Tensor, "rows"]


class AttentionProbe:
    """Measures the Performer attentions of `trunk` on training sequences.

    Args:
        trunk: the model's encoder, not the compiled one.
        data: the run's data; its training split is looked at, shown as in training (masks included).
        rows: rows looked at, over all ranks.
        tokens: whole sequences are taken up to this many tokens, but at least one.
        seed: of the choice of rows.
    """

    def __init__(
        self, *, trunk: ProteinEncoder, data: PackedDataModule, rows: int = 64, tokens: int = 2048, seed: int = 0
    ) -> None:
        if rows < 1 or tokens < 1:
            raise ValueError(f"diagnostics need rows >= 1 and tokens >= 1, not rows={rows} and tokens={tokens}")
        self.trunk = trunk
        self.data = data
        self.rows = rows
        self.tokens = tokens
        self.seed = seed
        self.attentions: dict[int, FavorAttention] = {
            layer: attention
            for layer, attention in enumerate(trunk.encoder.attentions)
            if isinstance(attention, FavorAttention)
        }
        # Hybrid attention is exact below its threshold: there is nothing to look at in shorter segments.
        self.shortest = max(
            (a.threshold for a in self.attentions.values() if isinstance(a, HybridAttention)), default=0
        )
        self._last: tuple[int, int, Share | None] | None = None

    def measure(self, trainer: Trainer, *, step: int) -> dict[str, Float64[Tensor, "layers heads"]] | None:
        """Figures by layer and head on rows of optimiser step `step` (see `attention.diagnostics`); collective.

        None where the step has no sequence that goes through random features.
        """
        count, share = self._share(trainer, step)
        if count == 0 or not self.attentions:
            return None
        device = trainer.strategy.root_device
        heads = self.trunk.encoder.num_heads
        table = torch.zeros(len(self.attentions), heads, count, SINGLES + PAIRS, dtype=torch.float64, device=device)
        with _as_evaluated(self.trunk), _whole_parameters(trainer), torch.no_grad():
            if share is not None:
                with self._hooks(table, share), trainer.precision_plugin.forward_context():
                    self.trunk(share.tokens.to(device), share.cu_seqlens.to(device))
        if trainer.world_size > 1:
            # (each row is zero but on one rank)
            table = trainer.strategy.reduce(table, reduce_op="sum")
        signed = any(attention.features.family.signed for attention in self.attentions.values())
        return RowFigures.of_table(table.cpu()).summary(signed=signed)

    @contextmanager
    def _hooks(self, table: Tensor, share: Share) -> Iterator[None]:
        """Fill a layer's rows of the table when the pass comes by its attention."""
        with ExitStack() as stack:
            for place, attention in enumerate(self.attentions.values()):
                handle = attention.register_forward_pre_hook(partial(_look, table[place], share))
                stack.callback(handle.remove)
            yield

    def _share(self, trainer: Trainer, step: int) -> tuple[int, Share | None]:
        """How many rows all ranks look at, and this rank's part of them; kept, since it may be asked for again."""
        if self._last is None or self._last[0] != step:
            self._last = step, *self._choose(step, trainer.global_rank, trainer.world_size)
        return self._last[1:]

    def _choose(self, step: int, rank: int, world_size: int) -> tuple[int, Share | None]:
        plan, objective = self.data.plans["train"], self.data.objectives["train"]
        epoch, place = plan.locate(step if self.data.repeat_steps is None else step % self.data.repeat_steps)
        sequences = plan.epoch_steps(epoch)[place]
        sequences = sequences[plan.lengths[sequences] >= self.shortest]
        if len(sequences) == 0:
            return 0, None
        lengths = np.minimum(plan.lengths[sequences], LONGEST)
        sequences = sequences[: max(1, int(np.searchsorted(lengths.cumsum(), self.tokens, side="right")))]
        lengths = lengths[: len(sequences)]
        offsets = np.concatenate([[0], lengths.cumsum()])
        generator = np.random.default_rng([self.seed, step])
        rows = np.sort(generator.choice(offsets[-1], min(self.rows, int(offsets[-1])), replace=False))
        picks = generator.random((len(rows), PAIRS))
        mine = np.flatnonzero(np.isin(sequences, plan.deal(sequences, world_size)[rank]))
        if len(mine) == 0:
            return len(rows), None
        tokens = [objective.example(int(sequences[i]), epoch).tokens[: lengths[i]] for i in mine]
        own_offsets = np.concatenate([[0], lengths[mine].cumsum()])
        segments = np.searchsorted(offsets, rows, side="right") - 1
        places = np.flatnonzero(np.isin(segments, mine))
        own_rows = rows[places] - offsets[segments[places]] + own_offsets[np.searchsorted(mine, segments[places])]
        return len(rows), Share(
            tokens=torch.from_numpy(np.concatenate(tokens)),
            cu_seqlens=torch.from_numpy(own_offsets.astype(np.int32)),
            rows=torch.from_numpy(own_rows),
            picks=torch.from_numpy(picks[places]),
            places=torch.from_numpy(places),
        )


def _look(table: Tensor, share: Share, attention: FavorAttention, arguments: tuple[Any, ...]) -> None:
    query, key, _, cu_seqlens = arguments
    figures = row_figures(attention, query, key, cu_seqlens, share.rows, share.picks)
    table[:, share.places.to(table.device)] = figures.table()


@contextmanager
def _as_evaluated(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, and then for each module the mode that it had (a frozen part may have another)."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


def _whole_parameters(trainer: Trainer) -> AbstractContextManager[Any]:
    """Under FSDP a part of the model cannot be called before its parameters are gathered."""
    from torch.distributed.fsdp import FullyShardedDataParallel

    model = trainer.model
    if isinstance(model, FullyShardedDataParallel):
        return FullyShardedDataParallel.summon_full_params(model, writeback=False)
    return nullcontext()
