"""Proteins joined into longer segments: the same rows, targets and owners, fewer boundaries."""

from itertools import pairwise

import numpy as np
import pytest
import torch

from protformer.data.batch import Batch, collate, concatenated
from protformer.data.corpus import Corpus
from protformer.data.objectives import MaskedResidues


def batch_of(*lengths: int) -> Batch:
    """Proteins of so many residues; two tokens more each."""
    rng = np.random.default_rng(0)
    texts = ["".join(rng.choice(list("LAGVSERT"), length)) for length in lengths]
    objective = MaskedResidues(Corpus.from_sequences([f"p{i}" for i in range(len(lengths))], texts), seed=0)
    records = list(range(len(lengths)))
    examples = [objective.example(record, 0) for record in records]
    return collate(examples, records, objective.weight(np.array(records)), per_sequence=False, empty=objective.empty)


def test_neighbours_are_joined_up_to_the_limit():
    batch = batch_of(3, 2, 1)  # 5 + 4 + 3 tokens
    assert concatenated(batch, 9).cu_seqlens.tolist() == [0, 9, 12]
    assert concatenated(batch, 8).cu_seqlens.tolist() == [0, 5, 12]
    assert concatenated(batch, 100).cu_seqlens.tolist() == [0, 12]


def test_nothing_is_cut_dropped_or_given_to_another_protein():
    batch = batch_of(30, 4, 9, 50, 2, 7)
    joined = concatenated(batch, 20)
    assert joined.cu_seqlens.tolist() == [0, 32, 49, 101, 114]  # a protein beyond the limit stays alone, and whole
    assert joined.cu_seqlens.dtype == batch.cu_seqlens.dtype
    for name in ("tokens", "rows", "targets", "headline", "records", "step_weight"):
        assert torch.equal(getattr(joined, name), getattr(batch, name)), name
    assert joined.residues == batch.residues == 102


@pytest.mark.parametrize("limit", [3, 17, 64])
def test_segments_are_as_long_as_they_may_be(limit):
    batch = batch_of(*np.random.default_rng(1).integers(1, 40, 25).tolist())
    ends = batch.cu_seqlens.tolist()
    joined = concatenated(batch, limit).cu_seqlens.tolist()
    assert set(joined) <= set(ends)
    for start, end in pairwise(joined):
        proteins = sum(start < e <= end for e in ends)
        assert end - start <= limit or proteins == 1
        following = [e for e in ends if e > end]
        assert not following or following[0] - start > limit  # the next protein did not fit
