"""Recall: values that stand thousands of residues before the questions (`protformer.data.simulate.recall`)."""

import numpy as np

from protformer.data.simulate.recall import RecalledValues, question_alone, question_counts
from protformer.training.tasks.base import Row, Split
from protformer.training.tasks.residue_floors import residue_floors
from protformer.training.tasks.residue_prediction import ResiduePrediction


class Recall(ResiduePrediction):
    """Residue prediction at the questions alone, each shown as `<mask>`. `questions` is that of the data."""

    def __init__(self, *, questions: int = 16) -> None:
        super().__init__()
        self.name = "recall"
        self.questions = questions

    def objective(self, split: Split, *, seed: int, training: bool) -> RecalledValues:
        return RecalledValues(split.corpus, questions=self.questions)

    def floors(
        self, train: Split, evaluations: dict[str, Split], objectives: dict[str, RecalledValues], seed: int
    ) -> dict[str, list[Row]]:
        """Those of residue prediction, and what the question says by itself: all that a short window can know."""
        found = residue_floors(train, evaluations, objectives, causal=False, headline=self.headline, seed=seed)  # pyright: ignore[reportArgumentType]
        counts = question_counts(objectives["train"])
        for name in evaluations:
            nll, hits = question_alone(objectives[name], counts)
            per_record = [part.reshape(-1, self.questions).sum(1) for part in (nll, np.ones_like(nll), hits)]
            records = np.arange(len(per_record[0]))
            figures = {"perplexity_mask": float(np.exp(nll.mean())), "accuracy_mask": float(hits.mean())}
            note = "the key before the mask, and nothing farther away"
            found[name].append(Row("question alone", figures, note, np.stack([records, *per_record], axis=1)))
        return found
