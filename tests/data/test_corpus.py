"""Sequences end to end: nothing shifts, nothing is lost silently, the counts add up."""

import json
import pickle
import random

import numpy as np
import pytest

from protformer.data import alphabet, corpus
from protformer.data.corpus import Corpus
from protformer.errors import ProtformerError


def drawn(count: int, seed: int = 0, longest: int = 40) -> Corpus:
    rng = random.Random(seed)
    letters = alphabet.STANDARD + "XBUZO"
    sequences = ["".join(rng.choices(letters, k=rng.randint(1, longest))) for _ in range(count)]
    return Corpus.from_sequences([f"protein{index}" for index in range(count)], sequences)


def test_sequences_stand_end_to_end():
    made = Corpus.from_sequences(["a", "b", "c"], ["MKV", "G", "LLAT"])
    assert made.offsets.tolist() == [0, 3, 4, 8]
    assert made.lengths.tolist() == [3, 1, 4]
    assert alphabet.decode(made.tokens) == "MKVGLLAT"
    assert [made.text(index) for index in range(3)] == ["MKV", "G", "LLAT"]
    assert made.ids == [made.id(index) for index in range(3)] == ["a", "b", "c"]
    assert made.text(-1) == "LLAT"
    assert made.id(-1) == "c"
    assert made.tokens.dtype == np.uint8
    assert made.offsets.dtype == np.int64
    assert np.shares_memory(made.sequence(1), made.tokens)
    with pytest.raises(IndexError):
        made.sequence(3)


def test_the_report_counts_and_names(tmp_path):
    path = tmp_path / "mixed.fasta"
    path.write_text(";comment\n>a\nmkv*\n>b\nM-K*V1\n>\nGG\n>c\n>d\n*\n>a\nMKV\n>caf\u00e9\nMJ\n", encoding="utf-8")
    made = Corpus.from_fasta(path)
    report = made.report
    assert [made.text(index) for index in range(len(made))] == ["MKV", "MXKXVX", "GG", "MKV", "MX"]
    assert made.ids == ["a", "b", "", "a", "café"]
    assert (report.records, report.sequences, report.residues) == (7, 5, 16)
    assert (report.empty.count, report.empty.examples) == (2, ["c", "d"])
    assert report.replaced == {"-": 1, "*": 1, "1": 1, "J": 1}
    assert (report.lower_case, report.stops_dropped, report.without_id, report.comment_lines) == (3, 2, 1, 1)
    assert (report.duplicate_ids.count, report.duplicate_ids.examples) == (1, ["a"])
    assert report.equal_sequences == 1
    assert report.records == report.sequences + report.empty.count
    assert sum(report.composition.values()) == report.residues == made.tokens.size
    summary = report.summary()
    for words in ("5 sequences, 16 residues", "2 (c, d)", "- 1", "J 1", "id came before, all kept: 1 (a)"):
        assert words in summary
    assert json.loads(json.dumps(report.as_dict()))["empty"] == {"count": 2, "examples": ["c", "d"]}


def test_a_clean_file_needs_one_line(tmp_path):
    path = tmp_path / "clean.fasta"
    path.write_text(">a\nMKV\n")
    assert Corpus.from_fasta(path).report.summary().count("\n") == 0


def test_many_names_are_cut_to_the_first_few():
    made = Corpus.from_sequences([f"e{index}" for index in range(9)] + ["full"], [""] * 9 + ["MK"])
    assert made.report.empty.examples == ["e0", "e1", "e2", "e3", "e4"]
    assert "9 (e0, e1, e2, e3, e4, ...)" in made.report.summary()


def test_several_files_are_read_in_order(tmp_path):
    (tmp_path / "1.fasta").write_text(">a\nMK\n")
    (tmp_path / "2.fasta").write_text("\n")
    (tmp_path / "3.fasta").write_text(">b\nGG\n>c\nLL\n")
    made = Corpus.from_fasta([tmp_path / "3.fasta", f"{tmp_path}/[12].fasta"])
    assert made.ids == ["b", "c", "a"]
    assert [path.rsplit("/", 1)[-1] for path in made.report.files] == ["3.fasta", "1.fasta", "2.fasta"]
    assert made.report.empty_files == [str(tmp_path / "2.fasta")]
    with pytest.raises(ProtformerError, match=r"2\.fasta: no sequence"):
        Corpus.from_fasta(tmp_path / "2.fasta")


def test_the_limit_is_said(tmp_path):
    path = tmp_path / "x.fasta"
    path.write_text(">a\nMK\n>b\nGG\n>c\nLL\n")
    assert Corpus.from_fasta(path, limit=2).ids == ["a", "b"]
    assert Corpus.from_fasta(path, limit=2).report.limited
    assert not Corpus.from_fasta(path, limit=3).report.limited


def test_nucleotides_are_warned_of_file_by_file(tmp_path):
    rng = random.Random(0)
    (tmp_path / "dna.fasta").write_text(">chromosome\n" + "".join(rng.choices("acgtn", k=500)))
    (tmp_path / "protein.fasta").write_text(">p\n" + "".join(rng.choices(alphabet.STANDARD, k=5000)))
    (tmp_path / "peptide.fasta").write_text(">p\nGATTACA\n")  # too short to tell
    warnings = Corpus.from_fasta(f"{tmp_path}/*.fasta").report.warnings
    assert len(warnings) == 1
    assert "dna.fasta looks like nucleotides" in warnings[0]


@pytest.mark.parametrize("block", [1, 7, 64, 1 << 20])
def test_standard_counts_do_not_depend_on_the_block(monkeypatch, block):
    made = drawn(50)
    monkeypatch.setattr(corpus, "_BLOCK", block)
    expected = [sum(letter in alphabet.STANDARD for letter in made.text(index)) for index in range(len(made))]
    assert made.standard_counts.tolist() == expected
    assert made.standard_counts.dtype == np.int64
    assert sum(expected) == sum(made.report.composition.get(letter, 0) for letter in alphabet.STANDARD)


def test_standard_counts_stand_empty_sequences():
    empty = np.zeros(0, dtype=np.uint8)
    offsets = np.array([0, 0, 2, 2, 3, 3])
    made = Corpus(np.array([4, 24, 5], np.uint8), offsets, empty, np.zeros(6, np.int64), corpus.ReadReport())
    assert made.standard_counts.tolist() == [0, 1, 0, 1, 0]


@pytest.mark.parametrize("chosen", [[], [3], [0, 1, 2], [5, 4, 3], [2, 2, 7, 8, 9, 0], list(range(10))])
def test_a_subset_holds_the_chosen_in_their_order(chosen):
    made = drawn(10)
    part = made.subset(np.array(chosen, dtype=np.int64))
    assert part.ids == [made.id(index) for index in chosen]
    assert [part.text(index) for index in range(len(part))] == [made.text(index) for index in chosen]
    assert part.standard_counts.tolist() == made.standard_counts[chosen].tolist()
    assert not np.shares_memory(part.tokens, made.tokens)


def test_a_subset_refuses_what_is_not_there():
    with pytest.raises(IndexError):
        drawn(3).subset([3])
    with pytest.raises(IndexError):
        drawn(3).subset([-1])


def test_a_corpus_goes_to_another_process_whole():
    made = drawn(5)
    copy = pickle.loads(pickle.dumps(made))  # the test's own bytes: what a spawned worker is given
    assert copy.ids == made.ids
    assert np.array_equal(copy.tokens, made.tokens)
