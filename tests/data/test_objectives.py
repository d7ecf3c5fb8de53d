"""Laws of masking and of the packed batch."""

import numpy as np
import pytest

from protformer.data import alphabet
from protformer.data.batch import collate
from protformer.data.corpus import Corpus
from protformer.data.objectives import MaskedResidues, NextResidue, ResidueTargets, SequenceTargets


@pytest.fixture(scope="module")
def corpus() -> Corpus:
    generator = np.random.default_rng(0)
    texts = ["".join(generator.choice(list(alphabet.RESIDUES), n)) for n in generator.integers(1, 400, 120)]
    return Corpus.from_sequences([f"p{i}" for i in range(120)], [*texts[:-2], "XXXX", "M"])


def test_masking_is_a_pure_function_and_changes_with_the_epoch(corpus):
    objective, again = (MaskedResidues(corpus, seed=3) for _ in range(2))
    first = objective.example(5, 0)
    for other, same in ((again.example(5, 0), True), (again.example(5, 1), False)):
        assert np.array_equal(first.tokens, other.tokens) is same
    fixed = MaskedResidues(corpus, seed=3, fixed=True)
    assert np.array_equal(fixed.example(5, 0).tokens, fixed.example(5, 9).tokens)


def test_targets_are_standard_residues_and_only_targets_change(corpus):
    objective = MaskedResidues(corpus, seed=3)
    for record in range(len(corpus)):
        example = objective.example(record, 0)
        original = np.concatenate([[alphabet.CLS], corpus.sequence(record), [alphabet.EOS]])
        assert np.array_equal(example.targets, original[example.rows])
        assert alphabet.IS_STANDARD[example.targets].all()
        untouched = np.setdiff1d(np.arange(len(original)), example.rows)
        assert np.array_equal(example.tokens[untouched], original[untouched])
        assert (example.tokens[example.rows[example.headline]] == alphabet.MASK).all()
        assert (example.tokens[example.rows[~example.headline]] != alphabet.MASK).all()
        assert len(example.targets) == objective.weight(np.array([record]))


def test_shares_are_those_asked_for(corpus):
    objective = MaskedResidues(corpus, seed=3)
    examples = [objective.example(record, epoch) for record in range(len(corpus)) for epoch in range(5)]
    targets = np.concatenate([e.targets for e in examples])
    shown = np.concatenate([e.tokens[e.rows] for e in examples])
    assert abs(len(targets) / (5 * corpus.standard_counts.sum()) - 0.15) < 0.005
    n = len(targets)
    assert abs((shown == alphabet.MASK).mean() - 0.8) < 4 * (0.8 * 0.2 / n) ** 0.5
    # a random residue is the right one once in twenty
    assert abs((shown == targets).mean() - (0.1 + 0.1 / 20)) < 4 * (0.105 * 0.895 / n) ** 0.5


def test_next_residue_predicts_each_residue_and_the_end(corpus):
    objective = NextResidue(corpus)
    example = objective.example(0, 0)
    assert np.array_equal(example.targets, example.tokens[example.rows + 1])
    assert example.targets[-1] == alphabet.EOS
    assert not example.headline[-1]
    assert example.headline[:-1].all()
    assert objective.weight(np.arange(3)) == sum(len(objective.example(i, 0).targets) for i in range(3))


def test_residue_targets_stay_with_their_residues(corpus):
    classes = corpus.tokens.astype(np.int16) % 3
    targets = np.where(alphabet.IS_STANDARD[corpus.tokens], classes, np.int16(-100))
    weights = np.array([1.0, 2.0, 3.0])
    objective = ResidueTargets(corpus, targets, class_weights=weights)
    for record in (0, 17, 118, 119):
        example = objective.example(record, 0)
        assert np.array_equal(example.targets, example.tokens[example.rows] % 3)
        assert objective.weight(np.array([record])) == pytest.approx(weights[example.targets].sum())


def test_packing_keeps_rows_and_records_straight(corpus):
    objective = MaskedResidues(corpus, seed=3)
    records = [4, 118, 9, 119]
    batch = collate([objective.example(r, 0) for r in records], records, 7.0, per_sequence=False, empty=objective.empty)
    assert batch.cu_seqlens[-1] == len(batch.tokens)
    assert batch.residues == sum(corpus.lengths[records])
    for i, record in enumerate(records):
        segment = batch.tokens[batch.cu_seqlens[i] : batch.cu_seqlens[i + 1]]
        assert segment[0] == alphabet.CLS
        assert segment[-1] == alphabet.EOS
        example = objective.example(record, 0)
        mine = batch.records == record
        assert (batch.rows[mine] - batch.cu_seqlens[i]).tolist() == example.rows.tolist()
        assert batch.targets[mine].tolist() == example.targets.tolist()


def test_a_share_without_sequences_is_one_segment_without_targets(corpus):
    for objective in (MaskedResidues(corpus, seed=3), SequenceTargets(corpus, np.zeros(len(corpus), np.int64))):
        batch = collate([], [], 7.0, per_sequence=objective.per_sequence, empty=objective.empty)
        assert batch.tokens.tolist() == [alphabet.CLS, alphabet.EOS]
        assert len(batch.targets) == len(batch.rows) == 0
        assert batch.residues == 0
