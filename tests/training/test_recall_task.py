"""The task of recall: its source, its objective and floors, and that attention learns it where a window does not."""

from typing import Any

import pytest

from protformer.errors import ProtformerError
from protformer.training.simulated import RecallSource
from protformer.training.tasks import Recall, Task

SIZES: dict[str, Any] = {"train": 300, "valid": 3, "test": 60, "shortest": 24, "longest": 30}


def test_splits_by_distance():
    splits = RecallSource(**SIZES, distances=[24, 40]).load("none")
    assert list(splits) == ["train", "valid", "test", "distance_24", "distance_40"]
    assert {name.rpartition("_")[2] for name in splits["distance_40"].corpus.ids} == {"40"}
    alone = RecallSource(**SIZES, distances=[40]).load("none")
    assert alone["distance_40"].corpus.digest() == splits["distance_40"].corpus.digest()
    assert splits["test"].corpus.digest() != splits["valid"].corpus.digest()


def test_sentences_for_what_cannot_be():
    with pytest.raises(ProtformerError, match="task=recall"):
        RecallSource(**SIZES).load("class")
    with pytest.raises(ProtformerError, match="data=recall: distances"):
        RecallSource(**{**SIZES, "longest": 3}).load("none")


def test_floors_know_no_answer():
    task = Recall(questions=2)
    assert isinstance(task, Task)
    splits = RecallSource(**SIZES, keys=4, decoys=True, questions=2, repeats=1).load("none")
    objectives: dict[str, Any] = {
        name: task.objective(split, seed=0, training=name == "train") for name, split in splits.items()
    }
    tested = {"test": splits["test"]}
    rows = {row.name: row for row in task.floors(splits["train"], tested, objectives, seed=0)["test"]}
    assert set(rows) == {"unigram", "own composition", "flanks", "question alone"}
    for name, row in rows.items():
        scores = row.per_sequence
        assert scores is not None
        assert scores[:, 2].tolist() == [2.0] * 60
        hits = scores[:, 3].sum() / 120
        assert hits == pytest.approx(row.figures["accuracy_mask"])
        chance = 1 / 5 if name in ("question alone", "flanks") else 1 / 20
        assert abs(hits - chance) < 4 * (chance * (1 - chance) / 60) ** 0.5 + 0.02, name
