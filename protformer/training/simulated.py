"""Splits that are simulated when they are asked for; nothing is read from disk."""

import logging
from collections.abc import Sequence
from typing import Any

from protformer.data.simulate.recall import draw_recall
from protformer.errors import ProtformerError
from protformer.training.tasks.base import LabelKind, Split

log = logging.getLogger(__name__)


class RecallSource:
    """Sequences with questions at their ends and the answers far upstream (`protformer.data.simulate.recall`).

    Args:
        train, valid, test: sequences of each split, whose distances lie between `shortest` and `longest`.
        shortest, longest: background residues between answers and questions.
        distances: further evaluation sets of `test` sequences each, `distance_N`, of that one distance.
        keys, decoys, questions, repeats: of `draw_recall`.
        data_seed: of all sequences; another number, another data set.
    """

    def __init__(
        self,
        *,
        train: int,
        valid: int,
        test: int,
        shortest: int,
        longest: int,
        distances: Sequence[int] = (),
        keys: int = 1,
        decoys: bool = False,
        questions: int = 16,
        repeats: int = 4,
        data_seed: int = 0,
    ) -> None:
        sets = {"train": (train, shortest, longest), "valid": (valid, shortest, longest)}
        sets |= {"test": (test, shortest, longest), **{f"distance_{d}": (test, d, d) for d in distances}}
        self.sets = sets
        self.options: dict[str, Any] = {"keys": keys, "decoys": decoys, "questions": questions, "repeats": repeats}
        self.data_seed = data_seed

    def load(self, kind: LabelKind) -> dict[str, Split]:
        """Splits by name, "train" first."""
        if kind != "none":
            raise ProtformerError("data=recall has no labels: it goes with task=recall.")
        splits = {}
        for place, (name, (count, low, high)) in enumerate(self.sets.items()):
            # (by the distance, so that a set stays what it is when others are added)
            seed = [self.data_seed, place if place < 3 else 1000 + low]
            try:
                corpus = draw_recall(count, (low, high), seed=seed, **self.options)
            except ValueError as error:
                raise ProtformerError(f"data=recall: {error}.") from error
            log.info("%s: %s simulated sequences, %s residues", name, f"{count:,}", f"{len(corpus.tokens):,}")
            splits[name] = Split(name, corpus)
        return splits
