"""A split is a function of the sequences and the seed: not of their order, nor of the process."""

import random

import numpy as np
import pytest

from protformer.data import alphabet
from protformer.data.corpus import Corpus
from protformer.data.splits import homology_warning, split_by_cluster, split_by_hash
from protformer.errors import ProtformerError

FRACTIONS = {"train": 0.8, "valid": 0.1, "test": 0.1}


def drawn(count: int, seed: int = 0) -> Corpus:
    rng = random.Random(seed)
    sequences = ["".join(rng.choices(alphabet.STANDARD, k=rng.randint(5, 30))) for _ in range(count)]
    sequences[count // 2 :: 7] = sequences[: len(sequences[count // 2 :: 7])]  # some twice
    return Corpus.from_sequences([f"p{index}" for index in range(count)], sequences)


def by_name(corpus: Corpus, split: dict[str, np.ndarray]) -> dict[str, set[str]]:
    return {name: {corpus.id(index) for index in indices} for name, indices in split.items()}


def test_a_split_is_a_partition_of_about_the_right_sizes():
    corpus = drawn(4000)
    split = split_by_hash(corpus, FRACTIONS)
    assert list(split) == list(FRACTIONS)
    assert sorted(np.concatenate(list(split.values())).tolist()) == list(range(4000))
    for name, share in FRACTIONS.items():
        error = 4 * np.sqrt(share * (1 - share) / 4000)  # four standard errors, seed fixed
        assert abs(len(split[name]) / 4000 - share) < error
        assert (np.diff(split[name]) > 0).all()


def test_order_does_not_matter_and_the_seed_does():
    corpus = drawn(300)
    shuffled = corpus.subset(np.random.default_rng(0).permutation(300))
    assert by_name(corpus, split_by_hash(corpus, FRACTIONS)) == by_name(shuffled, split_by_hash(shuffled, FRACTIONS))
    one, other = split_by_hash(corpus, FRACTIONS, seed=0), split_by_hash(corpus, FRACTIONS, seed=1)
    assert by_name(corpus, one) != by_name(corpus, other)
    part = corpus.subset(np.arange(100))  # a record stays where it was when others are gone
    kept = by_name(part, split_by_hash(part, FRACTIONS))
    whole = by_name(corpus, one)
    assert all(kept[name] <= whole[name] for name in FRACTIONS)


def test_the_split_is_the_same_in_every_process_and_release():
    # One golden value: a changed hash would silently move test records into train for whoever resumes.
    corpus = Corpus.from_sequences("abcdefgh", ["MKV", "GAL", "LLT", "WWW", "HHE", "PPQ", "CCD", "NNR"])
    assert split_by_hash(corpus, {"train": 0.5, "test": 0.5}, seed=3)["test"].tolist() == [0, 4, 6, 7]


def test_equal_sequences_stay_together():
    corpus = drawn(300)
    split = split_by_hash(corpus, FRACTIONS)
    texts = [{corpus.text(index) for index in indices} for indices in split.values()]
    assert sum(map(len, texts)) == len(set.union(*texts))


def test_clusters_stay_whole(tmp_path):
    corpus = drawn(300)
    cluster = {f"p{index}": f"c{index % 60}" for index in range(300)}
    table = tmp_path / "clusters.tsv"
    table.write_text("".join(f"{cluster[name]}\t{name}\n" for name in sorted(cluster)))
    split = split_by_cluster(corpus, table, FRACTIONS)
    found = [{cluster[corpus.id(index)] for index in indices} for indices in split.values()]
    assert sum(map(len, found)) == 60
    assert sorted(np.concatenate(list(split.values())).tolist()) == list(range(300))
    shuffled = corpus.subset(np.random.default_rng(0).permutation(300))
    assert by_name(corpus, split) == by_name(shuffled, split_by_cluster(shuffled, table, FRACTIONS))


def test_mmseqs_accessions_are_found(tmp_path):
    corpus = Corpus.from_sequences(["sp|P1|A_HUMAN", "tr|P2|B_HUMAN", "P3"], ["MKV", "MKL", "GGA"])
    table = tmp_path / "clusters.tsv"
    table.write_text("P1\tP1\nP1\tP2\nP3\tP3\n")
    split = split_by_cluster(corpus, table, {"train": 1.0})
    assert split["train"].tolist() == [0, 1, 2]


def test_records_that_the_table_lacks_are_named_or_placed_alone(tmp_path):
    corpus = drawn(50)
    table = tmp_path / "clusters.tsv"
    table.write_text("".join(f"c\tp{index}\n" for index in range(40)))
    with pytest.raises(ProtformerError, match=r"lacks 10 of 50 records .*p40, p41, p42, p43, p44, \.\.\."):
        split_by_cluster(corpus, table, {"train": 0.5, "test": 0.5})
    split = split_by_cluster(corpus, table, {"train": 0.5, "test": 0.5}, allow_missing=True)
    assert sum(map(len, split.values())) == 50
    together = [set(range(40)) & set(indices.tolist()) for indices in split.values()]
    assert sorted(map(len, together)) == [0, 40]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("a b\n", "line 1: a cluster table has two columns"),
        ("c\tp1\nd\tp1\n", "line 2: 'p1' is a member of 'c' and of 'd'"),
    ],
)
def test_a_table_that_is_none_says_so(tmp_path, text, says):
    table = tmp_path / "clusters.tsv"
    table.write_text(text)
    with pytest.raises(ProtformerError, match=says):
        split_by_cluster(drawn(5), table, {"train": 1.0})


def test_fractions_that_cannot_be():
    for wrong in ({}, {"train": 0.9}, {"train": 1.5, "test": -0.5}):
        with pytest.raises(ProtformerError, match="sum to 1"):
            split_by_hash(drawn(5), wrong)
    with pytest.raises(ProtformerError, match=r"'valid' .* got none of the 3"):
        split_by_hash(drawn(3), {"train": 0.999999, "valid": 0.000001})
    assert len(split_by_hash(drawn(5), {"train": 1.0, "valid": 0.0})["train"]) == 5


def test_the_warning_shows_the_way():
    assert "data.clusters=" in homology_warning()
    assert "mmseqs easy-cluster" in homology_warning()
