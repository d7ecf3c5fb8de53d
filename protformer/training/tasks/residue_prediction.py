"""Predicting residues: masked (bidirectional) and next (causal). Both score tokens and share their figures."""

from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from protformer.data.batch import Batch
from protformer.data.objectives import MaskedResidues, NextResidue, Objective
from protformer.model.heads import LanguageModelHead
from protformer.training.metrics import SequenceSums, SumOverCount
from protformer.training.tasks.base import Figures, LabelKind, Row, Split
from protformer.training.tasks.residue_floors import residue_floors


class ResidueFigures(Figures):
    """Perplexity and accuracy over the headline targets and over all targets, and the headline NLL per protein."""

    def __init__(self, headline: str) -> None:
        super().__init__()
        self.headline = headline
        self.perplexity = SumOverCount(exponential=True)
        self.accuracy = SumOverCount()
        self.all_perplexity = SumOverCount(exponential=True)
        self.all_accuracy = SumOverCount()
        self.per_sequence = SequenceSums()

    def update(self, outputs: Tensor, batch: Batch) -> None:
        nll, correct = _terms(outputs, batch)
        chosen = batch.headline
        self.perplexity.update(nll[chosen].double().sum(), chosen.sum())
        self.accuracy.update(correct[chosen].sum(), chosen.sum())
        count = torch.tensor(len(nll), device=nll.device)
        self.all_perplexity.update(nll.double().sum(), count)
        self.all_accuracy.update(correct.sum(), count)
        self.per_sequence.update(batch.records[chosen], nll[chosen], correct[chosen])

    def compute(self) -> dict[str, float]:
        return {
            f"perplexity_{self.headline}": float(self.perplexity.compute()),
            f"accuracy_{self.headline}": float(self.accuracy.compute()),
            "perplexity_all": float(self.all_perplexity.compute()),
            "accuracy_all": float(self.all_accuracy.compute()),
        }

    def details(self) -> dict[str, Any]:
        return {"per_sequence": self.per_sequence.compute().cpu().tolist()}

    def reset(self) -> None:
        for metric in (self.perplexity, self.accuracy, self.all_perplexity, self.all_accuracy, self.per_sequence):
            metric.reset()


class ResiduePrediction:
    """Masked-residue modeling; with `causal`, next-residue modeling (the paper's BID and UNI rows)."""

    label_kind: LabelKind = "none"
    mode: Literal["min", "max"] = "min"

    def __init__(
        self, *, causal: bool = False, rate: float = 0.15, mask_share: float = 0.8, random_share: float = 0.1
    ) -> None:
        self.causal = causal
        self.name = "next_residue" if causal else "masked_residue"
        self.rate = rate
        self.mask_share = mask_share
        self.random_share = random_share
        self.headline = "residues" if causal else "mask"
        self.monitor = f"perplexity_{self.headline}"
        where = "residues" if causal else "<mask>"
        self.columns = {
            f"perplexity_{self.headline}": f"perplexity {where}",
            f"accuracy_{self.headline}": f"accuracy {where}",
            "perplexity_all": "perplexity all targets",
            "accuracy_all": "accuracy all targets",
        }

    def objective(self, split: Split, *, seed: int, training: bool) -> Objective:
        if self.causal:
            return NextResidue(split.corpus)
        return MaskedResidues(
            split.corpus,
            seed=seed,
            rate=self.rate,
            mask_share=self.mask_share,
            random_share=self.random_share,
            fixed=not training,
        )

    def head(self, *, hidden_size: int, vocabulary_size: int, classes: int) -> LanguageModelHead:
        return LanguageModelHead(hidden_size=hidden_size, vocabulary_size=vocabulary_size)

    def loss_sum(self, outputs: Tensor, batch: Batch) -> Tensor:
        return cross_entropy(outputs.float(), batch.targets, reduction="sum")

    def step_terms(self, outputs: Tensor, batch: Batch) -> dict[str, tuple[Tensor, Tensor]]:
        nll, correct = _terms(outputs.detach(), batch)
        count = batch.headline.sum()
        return {
            f"nll_{self.headline}": (nll[batch.headline].double().sum(), count),
            f"accuracy_{self.headline}": (correct[batch.headline].double().sum(), count),
        }

    def figures(self, classes: tuple[str, ...]) -> ResidueFigures:
        return ResidueFigures(self.headline)

    def floors(
        self, train: Split, evaluations: dict[str, Split], objectives: dict[str, Objective], seed: int
    ) -> dict[str, list[Row]]:
        """Training frequencies (unigram), each protein's own composition, and that times its flanking residues."""
        return residue_floors(train, evaluations, objectives, causal=self.causal, headline=self.headline, seed=seed)


def _terms(outputs: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
    outputs = outputs.float()
    return cross_entropy(outputs, batch.targets, reduction="none"), outputs.argmax(dim=1) == batch.targets
