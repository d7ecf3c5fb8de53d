"""Figures as sums over counts: added over batches and ranks, divided once at the end. Never means of batch means."""

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor
from torchmetrics import Metric


class SumOverCount(Metric):
    """sum / count of per-target terms, in float64; NaN while nothing was counted.

    `exponential` gives a perplexity of an NLL.
    """

    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, *, exponential: bool = False) -> None:
        super().__init__()
        self.exponential = exponential
        self.add_state("total", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")
        self.add_state("count", torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, total: Tensor, count: Tensor) -> None:
        self.total += total.detach().double()
        self.count += count.detach().double()

    def compute(self) -> Tensor:
        mean = self.total / self.count  # 0/0 is NaN: no target is no figure
        return mean.exp() if self.exponential else mean


class SequenceSums(Metric):
    """NLL, targets and hits per record, for intervals over proteins: `compute` gives `[records, 4]` of (record, sum of
    NLL, targets, correct), by record."""

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, records: Tensor, nll: Tensor, correct: Tensor) -> None:
        ids, where = torch.unique(records, return_inverse=True)
        sums = torch.zeros(len(ids), dtype=torch.float64, device=nll.device).index_add_(0, where, nll.double())
        counts = torch.bincount(where, minlength=len(ids)).double()
        hits = torch.bincount(where, weights=correct.double(), minlength=len(ids))
        self.rows.append(torch.stack([ids.double(), sums, counts, hits], dim=1))

    def compute(self) -> Float[Tensor, "records 4"]:
        rows: Any = self.rows  # a list, or one tensor where torchmetrics has gathered it
        if not isinstance(rows, Tensor):
            rows = torch.cat(rows) if rows else torch.zeros(0, 4, dtype=torch.float64)
        return rows[rows[:, 0].argsort()]  # the order of records, not that of batches and ranks


class Predictions(Metric):
    """What was predicted for each record: `compute` gives `[records, 3]` of (record, prediction, target), by record."""

    full_state_update = False
    rows: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("rows", [], dist_reduce_fx="cat")

    def update(self, records: Tensor, predicted: Tensor, targets: Tensor) -> None:
        self.rows.append(torch.stack([records.double(), predicted.double(), targets.double()], dim=1))

    def compute(self) -> Float[Tensor, "records 3"]:
        rows: Any = self.rows  # (a list or one tensor, as above)
        if not isinstance(rows, Tensor):
            rows = torch.cat(rows) if rows else torch.zeros(0, 3, dtype=torch.float64)
        return rows[rows[:, 0].argsort()]
