"""Laws of the supervised floors: planted signals are found, permuted labels are not, the mask is honoured."""

import numpy as np
import pytest
from sklearn.metrics import accuracy_score, f1_score, matthews_corrcoef

from protformer.data.alphabet import STANDARD
from protformer.data.floors.classification import LabelledSequences, classification_floors
from protformer.data.floors.kmers import chunked, kmer_features
from protformer.data.floors.regression import regression_floors, regression_metrics
from protformer.data.floors.residue import LabelledResidues, residue_floors
from protformer.data.floors.result import binary_metrics, multiclass_metrics
from protformer.errors import ProtformerError

LETTERS = np.array(list(STANDARD))


def proteins(generator, count, length=80, weights=None):
    return ["".join(generator.choice(LETTERS, length, p=weights)) for _ in range(count)]


def figures(results, split="test"):
    return {floor.name: floor.metrics for floor in results[split]}


# ---- scores


@pytest.mark.parametrize("classes", [1, 2, 5])
def test_multiclass_scores_are_scikit_learns(classes):
    generator = np.random.default_rng(classes)
    targets, predictions = generator.integers(0, classes, 200), generator.integers(0, classes + 1, 200)
    ours = multiclass_metrics(targets, predictions)
    assert ours["accuracy"] == pytest.approx(accuracy_score(targets, predictions))
    assert ours["macro_f1"] == pytest.approx(f1_score(targets, predictions, average="macro", zero_division=0.0))  # type: ignore[arg-type]
    assert ours["mcc"] == pytest.approx(matthews_corrcoef(targets, predictions))
    letters = np.array(list("ABCDEF"))
    assert multiclass_metrics(letters[targets], letters[predictions]) == ours


def test_multilabel_scores_are_scikit_learns():
    generator = np.random.default_rng(9)
    targets, predictions = generator.integers(0, 2, (100, 4)), generator.integers(0, 2, (100, 4))
    targets[:, 3] = predictions[:, 3] = 0
    ours = binary_metrics(targets, predictions)
    assert ours["accuracy"] == pytest.approx((targets == predictions).mean())
    assert ours["macro_f1"] == pytest.approx(f1_score(targets, predictions, average="macro", zero_division=0.0))  # type: ignore[arg-type]
    assert ours["mcc"] == pytest.approx(matthews_corrcoef(targets.ravel(), predictions.ravel()))


# ---- sequence floors


def test_kmer_blocks_are_frequencies_and_stop_at_sequence_ends():
    sequences = ["MKVLA" * 4, "", "MX", "mkvla", "MK"]
    features = kmer_features(sequences)
    squares = features.toarray() ** 2
    blocks = np.stack([squares[:, a:b].sum(1) for a, b in ((0, 20), (20, 420), (420, 8420))], 1)
    np.testing.assert_allclose(blocks, [[1, 1, 1], [0, 0, 0], [1, 0, 0], [1, 1, 1], [1, 1, 0]], atol=1e-6)
    alone = [kmer_features([s]).toarray()[0] for s in sequences]
    np.testing.assert_array_equal(features.toarray(), alone)  # no k-mer spans two sequences
    both = kmer_features(sequences, termini=2).toarray()
    np.testing.assert_array_equal(both[:, :8420], features.toarray())
    np.testing.assert_array_equal(both[3, 8420:16840], alone[4])  # the first two residues of mkvla are MK
    assert kmer_features([]).shape == (0, 8420)


def test_chunks_keep_every_sequence_in_order():
    sequences = ["A" * n for n in (600_000, 600_000, 3_000_000, 0, 10, 20)]
    chunks = list(chunked(sequences))
    assert [s for chunk in chunks for s in chunk] == sequences
    assert [len(chunk) for chunk in chunks] == [1, 1, 1, 3]


@pytest.fixture(scope="module")
def signal_peptides():
    """Half of the proteins begin with a stretch of leucine and alanine; all else is alike."""
    generator = np.random.default_rng(10)
    labels = np.repeat(["secreted", "cytosol"], 150)
    sequences = proteins(generator, 300, 200)
    sequences = [
        "M" + "".join(generator.choice(["L", "A"], 9)) + s if label == "secreted" else s
        for s, label in zip(sequences, labels, strict=True)
    ]
    order = generator.permutation(300)
    return [sequences[i] for i in order], labels[order]


def test_planted_signal_is_found_and_the_termini_sharpen_it(signal_peptides):
    sequences, labels = signal_peptides
    train = LabelledSequences(sequences[:200], labels[:200])
    evals = {"test": LabelledSequences(sequences[200:], labels[200:]), "empty": LabelledSequences([], [])}
    results = classification_floors(train, evals, termini=20)
    scores = figures(results)
    assert list(scores) == ["majority", "1-3-mers", "1-3-mers with termini"]
    assert scores["majority"]["mcc"] == 0
    assert scores["majority"]["accuracy"] < 0.65
    assert scores["1-3-mers"]["accuracy"] > 0.75
    assert scores["1-3-mers with termini"]["accuracy"] > 0.95
    assert np.isnan(figures(results, "empty")["majority"]["accuracy"])
    assert scores == figures(classification_floors(train, evals, termini=20))  # deterministic


def test_permuted_labels_are_not_learnt(signal_peptides):
    sequences, labels = signal_peptides
    labels = np.random.default_rng(11).permutation(labels)
    train = LabelledSequences(sequences[:200], labels[:200])
    scores = figures(classification_floors(train, {"test": LabelledSequences(sequences[200:], labels[200:])}))
    for metrics in scores.values():
        assert metrics["accuracy"] < 0.65  # a half, and three standard errors of 100 records


def test_a_sample_is_said_and_enough(signal_peptides):
    sequences, labels = signal_peptides
    data = LabelledSequences(sequences, labels)
    results = classification_floors(data, {"test": data}, termini=20, max_sequences=120)["test"]
    assert "random 120 of 300" in results[2].note
    assert "random" not in results[0].note
    assert results[2].metrics["accuracy"] > 0.9


def test_classes_the_floor_cannot_know():
    generator = np.random.default_rng(12)
    train = LabelledSequences(proteins(generator, 10), [3] * 10)
    scores = figures(classification_floors(train, {"test": LabelledSequences(proteins(generator, 4), [3, 3, 3, 8])}))
    assert {metrics["accuracy"] for metrics in scores.values()} == {0.75}  # one class known; the new one is wrong
    with pytest.raises(ValueError, match="4 sequences came with 3"):
        classification_floors(train, {"test": LabelledSequences(proteins(generator, 4), [1, 2, 3])})
    with pytest.raises(ValueError, match="no training sequence"):
        classification_floors(LabelledSequences([], []), {})


def test_many_classes_fall_back_to_their_means(monkeypatch):
    monkeypatch.setattr("protformer.data.floors.classification._MAX_WORK", 100)
    generator = np.random.default_rng(13)
    families = [proteins(generator, 1)[0] for _ in range(20)]
    labels = np.tile(np.arange(20), 6)
    members = ["".join(c if generator.random() > 0.2 else "G" for c in families[i]) for i in labels]
    train, test = (LabelledSequences(members[a:b], labels[a:b]) for a, b in ((0, 80), (80, 120)))
    results = classification_floors(train, {"test": test})
    assert "nearest mean of 20 classes" in results["test"][1].note
    assert figures(results)["1-3-mers"]["accuracy"] > 0.9


def test_several_labels_a_sequence(signal_peptides):
    sequences, labels = signal_peptides
    secreted = (labels == "secreted").astype(int)
    table = np.stack([secreted, 1 - secreted, np.zeros(300, int), np.ones(300, int)], axis=1)
    train, test = (LabelledSequences(sequences[a:b], table[a:b]) for a, b in ((0, 200), (200, 300)))
    scores = figures(classification_floors(train, {"test": test}, termini=20))
    assert scores["1-3-mers with termini"]["accuracy"] > 0.95
    assert scores["majority"]["accuracy"] < 0.85
    assert scores["1-3-mers with termini"]["macro_f1"] == pytest.approx(0.75, abs=0.05)  # the label without records: 0


# ---- regression floors


def variants(generator, count, effects):
    parent = np.zeros(effects.shape[0], dtype=int)
    choices = np.where(generator.random((count, len(parent))) < 0.3, generator.integers(0, 20, (count, len(parent))), 0)
    fitness = effects[np.arange(len(parent)), choices].sum(1)
    return ["".join(LETTERS[row]) for row in choices], fitness


def test_additive_effects_are_found_by_position():
    generator = np.random.default_rng(14)
    effects = generator.normal(size=(12, 20))
    effects[:, 0] = 0
    train = LabelledSequences(*variants(generator, 800, effects))
    test = LabelledSequences(*variants(generator, 200, effects))
    results = regression_floors(train, {"test": test})
    scores = figures(results)
    assert list(scores) == ["mean", "1-3-mers", "positions"]
    assert scores["mean"]["spearman"] == 0
    assert scores["positions"]["spearman"] > 0.95
    assert scores["positions"]["rmse"] < 0.4 * scores["mean"]["rmse"]
    assert results == regression_floors(train, {"test": test})
    permuted = LabelledSequences(train.sequences, generator.permutation(train.labels))
    for metrics in figures(regression_floors(permuted, {"test": test})).values():
        assert abs(metrics["spearman"]) < 0.3


def test_positions_need_equal_lengths_and_rank_correlation_is_never_nan_for_a_constant():
    generator = np.random.default_rng(15)
    sequences = proteins(generator, 30, 20) + proteins(generator, 10, 21)
    data = LabelledSequences(sequences, [float(s.count("W")) for s in sequences])
    assert "positions" not in figures(regression_floors(data, {"test": data}))
    assert regression_metrics([1.0, 2.0, 3.0], [5.0, 5.0, 5.0])["spearman"] == 0
    assert regression_metrics([1.0, 2.0, 30.0], [1.0, 4.0, 5.0])["spearman"] == pytest.approx(1.0)
    assert regression_metrics([0.0, 0.0], [3.0, 4.0])["rmse"] == pytest.approx(np.sqrt(12.5))


# ---- residue floors


def neighbour_states(generator, count, shift):
    """A residue's state is whether the residue `shift` places on is one of the first ten letters."""
    sequences = proteins(generator, count, 100)
    first = [np.isin(list(s), list(STANDARD[:10])) for s in sequences]
    states = ["".join(np.where(np.append(f[shift:], np.zeros(shift, bool)), "H", "C")) for f in first]
    return LabelledResidues(sequences, states)


def test_the_residue_itself_is_found_by_every_floor_but_the_majority():
    generator = np.random.default_rng(16)
    train, test = neighbour_states(generator, 40, 0), neighbour_states(generator, 10, 0)
    scores = figures(residue_floors(train, {"test": test}))
    assert list(scores) == ["majority", "single residue", "window of 15"]
    assert scores["majority"]["accuracy"] < 0.6
    assert scores["single residue"]["accuracy"] == 1
    assert scores["window of 15"]["accuracy"] > 0.99


@pytest.mark.parametrize(("shift", "window", "seen"), [(3, 7, True), (3, 5, False), (7, 15, True)])
def test_a_window_sees_as_far_as_it_reaches(shift, window, seen):
    generator = np.random.default_rng(17)
    train, test = neighbour_states(generator, 60, shift), neighbour_states(generator, 20, shift)
    scores = figures(residue_floors(train, {"test": test}, window=window))
    assert scores["single residue"]["accuracy"] < 0.6
    accuracy = scores[f"window of {window}"]["accuracy"]
    assert accuracy > 0.98 if seen else accuracy < 0.6


def test_what_the_mask_hides_changes_nothing():
    generator = np.random.default_rng(18)
    truth = neighbour_states(generator, 30, 2)
    masks = [generator.integers(0, 2, len(s)) for s in truth.sequences]
    spoilt = [
        "".join(c if m else "E" for c, m in zip(s, k, strict=True)) for s, k in zip(truth.states, masks, strict=True)
    ]
    clean = LabelledResidues(truth.sequences, truth.states, ["".join(map(str, k)) for k in masks])
    dirty = LabelledResidues(truth.sequences, spoilt, [k.astype(bool) for k in masks])
    assert residue_floors(clean, {"test": clean}) == residue_floors(dirty, {"test": dirty})
    numbers = LabelledResidues(truth.sequences, [(np.array(list(s)) == "H").astype(int) for s in truth.states], masks)
    assert figures(residue_floors(numbers, {"test": numbers})) == figures(residue_floors(clean, {"test": clean}))


def test_sampled_three_states_and_one_state():
    generator = np.random.default_rng(19)
    sequences = proteins(generator, 60, 100)
    kinds = dict(zip(STANDARD, "HHHHHHHEEEEEEECCCCCC", strict=True))
    data = LabelledResidues(sequences, ["".join(kinds[c] for c in s) for s in sequences])
    floor = residue_floors(data, {"test": data}, max_residues=2000)["test"][2]
    assert "random 2,000 of 6,000" in floor.note
    assert floor.metrics["accuracy"] > 0.99
    constant = LabelledResidues(sequences, ["H" * len(s) for s in sequences])
    assert all(m["accuracy"] == 1 for m in figures(residue_floors(constant, {"test": constant})).values())
    empty = LabelledResidues(["", "MK"], ["", "HE"])
    assert np.isfinite(figures(residue_floors(data, {"test": empty}))["window of 15"]["accuracy"])


def test_a_record_whose_states_do_not_fit_is_named():
    good = LabelledResidues(["MKV", "AAL"], ["HHC", "HHH"])
    for bad in (
        LabelledResidues(["MKV", "AAL"], ["HHC", "HH"]),
        LabelledResidues(["MK", "AAL"], ["HH", "HHH"], ["11", "1"]),
    ):
        with pytest.raises(ProtformerError, match="Record 2 of valid has 3 residues"):
            residue_floors(good, {"valid": bad})
    with pytest.raises(ValueError, match="odd"):
        residue_floors(good, {}, window=4)
