"""Which sequences make up each optimiser step: a pure function of (lengths, budget, seed, epoch).

One optimiser step draws sequences until a budget of tokens is full; that global batch does not know how many ranks or
micro-batches there are, so a run on two devices takes the same steps as a run on one. Each step is then dealt to
ranks x micro-batches, balanced by tokens. Every rank gets the same number of micro-batches; one may get no sequence.

Example: lengths 5 3 4 6 2, budget 8, unshuffled: steps [0 1] [2] [3 4]. A sequence longer than the budget goes alone.
"""

import heapq

import numpy as np
from jaxtyping import Int64

Indices = Int64[np.ndarray, " sequences"]


class PackingPlan:
    """The steps of every epoch.

    Args:
        lengths: tokens of each sequence, specials included; int64 [n].
        budget: tokens of one optimiser step over all ranks and micro-batches.
        seed: of the shuffling.
        shuffle: anew in every epoch; else every epoch has epoch 0's one shuffled order (evaluation: a limited
            evaluation is then a random sample whatever the order of the file).
    """

    def __init__(self, lengths: np.ndarray, *, budget: int, seed: int, shuffle: bool = True) -> None:
        if len(lengths) == 0:
            raise ValueError("there is no sequence to pack")
        self.lengths = np.asarray(lengths, np.int64)
        self.budget = budget
        self.seed = seed
        self.shuffle = shuffle
        self._epoch: int | None = None
        self._steps: list[np.ndarray] = []
        self._first_steps = [0]  # first step of each epoch that has been looked at

    def epoch_steps(self, epoch: int) -> list[np.ndarray]:
        """The sequences of every optimiser step of an epoch, `[steps][sequences of the step]`."""
        epoch = epoch if self.shuffle else 0
        if epoch != self._epoch:
            generator = np.random.default_rng([self.seed, epoch])
            order = generator.permutation(len(self.lengths))
            ends = np.cumsum(self.lengths[order])
            steps, start = [], 0
            while start < len(order):
                before = ends[start - 1] if start else 0
                stop = max(int(np.searchsorted(ends, before + self.budget, side="right")), start + 1)
                steps.append(order[start:stop])
                start = stop
            self._steps, self._epoch = steps, epoch
        return self._steps

    def locate(self, step: int) -> tuple[int, int]:
        """The epoch that optimiser step `step` (from 0) falls into, and its place in the epoch."""
        epoch = 0
        while True:
            if epoch + 1 == len(self._first_steps):
                self._first_steps.append(self._first_steps[epoch] + len(self.epoch_steps(epoch)))
            if step < self._first_steps[epoch + 1]:
                return epoch, step - self._first_steps[epoch]
            epoch += 1

    def deal(self, sequences: np.ndarray, shares: int) -> list[np.ndarray]:
        """Split one step's sequences into `shares` lists of about equal tokens; longest first to the lightest share."""
        if shares == 1:
            return [sequences]
        lightest = [(0, share) for share in range(shares)]
        dealt: list[list[int]] = [[] for _ in range(shares)]
        for place in np.argsort(-self.lengths[sequences], kind="stable").tolist():
            tokens, share = heapq.heappop(lightest)
            dealt[share].append(place)
            heapq.heappush(lightest, (tokens + int(self.lengths[sequences[place]]), share))
        return [sequences[np.sort(np.array(places, np.int64))] for places in dealt]

    @property
    def longest(self) -> int:
        return int(self.lengths.max())
