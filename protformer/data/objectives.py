"""What a model is asked about a record: which tokens it is shown and which targets it is scored on.

An objective is a pure function of (seed, epoch, record), so a mask does not depend on the rank, the batch or the worker
that draws it, and the targets of an optimiser step can be counted without drawing them.
"""

from typing import Protocol, runtime_checkable

import numpy as np

from protformer.data import alphabet
from protformer.data.batch import Example, segment
from protformer.data.corpus import Corpus

_STANDARD_IDS = np.flatnonzero(alphabet.IS_STANDARD)


@runtime_checkable
class Objective(Protocol):
    """The contract: `example` and `weight` agree, the weight of records is that of the targets in their examples."""

    corpus: Corpus
    per_sequence: bool

    def example(self, record: int, epoch: int) -> Example:
        """The record as it is shown in this epoch."""
        ...

    def weight(self, records: np.ndarray) -> float:
        """Sum of the weights of all targets of these records, in any epoch."""
        ...

    @property
    def empty(self) -> Example:
        """A segment without targets."""
        ...


def without_targets() -> Example:
    """A segment that no loss reads."""
    none = np.zeros(0, np.int64)
    return Example(segment(np.zeros(0, np.uint8)), none, none, np.zeros(0, bool))


class MaskedResidues:
    """BERT's masking (arXiv 1810.04805) over standard residues: `rate` of them are targets, 80 % of those shown as
    `<mask>`, 10 % as a random residue and 10 % as they are.

    The number of targets is round(rate x standard residues), at least one, and not binomial: then it is known without
    drawing the mask. X, B, U, Z and O are never targets.
    """

    per_sequence = False

    def __init__(
        self,
        corpus: Corpus,
        *,
        seed: int,
        rate: float = 0.15,
        mask_share: float = 0.8,
        random_share: float = 0.1,
        fixed: bool = False,
    ) -> None:
        """`fixed`: every epoch has epoch 0's masks, as evaluation wants."""
        if not 0 < rate < 1 or mask_share < 0 or random_share < 0 or mask_share + random_share > 1:
            raise ValueError(
                "masking needs 0 < rate < 1 and shares that add up to at most 1,"
                f" not {rate}, {mask_share}, {random_share}"
            )
        self.corpus = corpus
        self.seed = seed
        self.rate = rate
        self.mask_share = mask_share
        self.random_share = random_share
        self.fixed = fixed
        standard = corpus.standard_counts
        self._targets = np.where(standard > 0, np.maximum(np.rint(standard * rate).astype(np.int64), 1), 0)

    def example(self, record: int, epoch: int) -> Example:
        residues = self.corpus.sequence(record)
        generator = np.random.default_rng([self.seed, 0 if self.fixed else epoch, record])
        candidates = np.flatnonzero(alphabet.IS_STANDARD[residues])
        chosen = np.sort(generator.permutation(candidates)[: self._targets[record]])
        kind = generator.random(len(chosen))
        masked = kind < self.mask_share
        random = ~masked & (kind < self.mask_share + self.random_share)
        tokens = segment(residues)
        rows = chosen + 1
        targets = tokens[rows]
        tokens[rows[masked]] = alphabet.MASK
        tokens[rows[random]] = generator.choice(_STANDARD_IDS, int(random.sum()))
        return Example(tokens, rows, targets, masked)

    def weight(self, records: np.ndarray) -> float:
        return float(self._targets[records].sum())

    @property
    def empty(self) -> Example:
        return without_targets()


class NextResidue:
    """Each residue, and the end, from what stands before it. The headline counts residues, all targets `<eos>` too."""

    per_sequence = False

    def __init__(self, corpus: Corpus) -> None:
        self.corpus = corpus
        self._targets = corpus.standard_counts + 1

    def example(self, record: int, epoch: int) -> Example:
        tokens = segment(self.corpus.sequence(record))
        following = tokens[1:]
        is_residue = alphabet.IS_STANDARD[following]
        rows = np.flatnonzero(is_residue | (np.arange(len(following)) == len(following) - 1))
        return Example(tokens, rows, following[rows], is_residue[rows])

    def weight(self, records: np.ndarray) -> float:
        return float(self._targets[records].sum())

    @property
    def empty(self) -> Example:
        return without_targets()


class SequenceTargets:
    """One target per sequence: a class (int64 `[n]`), a number (float32 `[n]`), or labels (float32 `[n, classes]`)."""

    per_sequence = True

    def __init__(self, corpus: Corpus, targets: np.ndarray, *, class_weights: np.ndarray | None = None) -> None:
        if len(corpus) != len(targets):
            raise ValueError(f"{len(corpus)} sequences and {len(targets)} targets")
        self.corpus = corpus
        self.targets = targets
        self._weights = np.ones(len(targets)) if class_weights is None else class_weights[targets]

    def example(self, record: int, epoch: int) -> Example:
        tokens = segment(self.corpus.sequence(record))
        return Example(tokens, np.zeros(1, np.int64), self.targets[record : record + 1], np.ones(1, bool))

    def weight(self, records: np.ndarray) -> float:
        return float(self._weights[records].sum())

    @property
    def empty(self) -> Example:
        bare = without_targets()
        return bare._replace(targets=self.targets[:0])


class ResidueTargets:
    """A class per residue, -100 where a residue has none: int64, end to end like the corpus's tokens."""

    per_sequence = False

    def __init__(self, corpus: Corpus, targets: np.ndarray, *, class_weights: np.ndarray | None = None) -> None:
        if len(corpus.tokens) != len(targets):
            raise ValueError(f"{len(corpus.tokens)} residues and {len(targets)} targets")
        self.corpus = corpus
        self.targets = targets
        counted = targets >= 0
        weights = (
            counted.astype(np.float64)
            if class_weights is None
            else np.where(counted, class_weights[np.maximum(targets, 0)], 0.0)
        )
        ends = np.concatenate([[0.0], np.cumsum(weights)])
        self._weights = ends[corpus.offsets[1:]] - ends[corpus.offsets[:-1]]

    def example(self, record: int, epoch: int) -> Example:
        targets = self.targets[self.corpus.offsets[record] : self.corpus.offsets[record + 1]]
        rows = np.flatnonzero(targets >= 0)
        return Example(
            segment(self.corpus.sequence(record)), rows + 1, targets[rows].astype(np.int64), np.ones(len(rows), bool)
        )

    def weight(self, records: np.ndarray) -> float:
        return float(self._weights[records].sum())

    @property
    def empty(self) -> Example:
        return without_targets()
