"""Variants as people write them: what is read, and what is said of the rest."""

import gzip

import numpy as np
import pytest

from protformer.data.alphabet import encode
from protformer.errors import ProtformerError
from protformer.scoring import read_variants
from protformer.scoring.mutations import better_offset, written

WILD = encode("MKVLXW")


def read(path, offset=0):
    return read_variants(path, WILD, offset=offset)


def one(text, written_file, offset=0):
    (variant,) = read(written_file(f"{text}\n", "one.txt"), offset).variants
    return variant


@pytest.mark.parametrize(
    ("text", "means"),
    [
        ("M1A", "M1A"),
        ("k2R", "K2R"),
        ("W6G:M1A", "M1A:W6G"),
        ("M1A,K2R / V3L", "M1A:K2R:V3L"),
        ("wt", "wt"),
        ("_WT", "wt"),
        ("M1M", "wt"),
        ("M1M:K2R", "K2R"),
    ],
)
def test_a_line(text, means, written_file):
    variant = one(text, written_file)
    assert variant.reason is None
    assert written(variant.substitutions) == means


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("A1G", "'A1G': the wild type has M at position 1, not A"),
        ("M0G", "'M0G': position 0 is outside the wild type, 1 to 6"),
        ("W7G", "position 7 is outside"),
        ("M1X", "the mutant letter 'X' is none of the 20"),
        ("M1*", "the mutant letter '*'"),
        ("M1del", "the mutant letter 'del'"),
        ("J1G", "the wild-type letter 'J'"),
        ("X5G", "the wild-type letter 'X'"),
        ("A5G", "the wild type has X at position 5"),
        ("M1A:M1G", "position 1 is named twice"),
        ("p.Met1Ala", "'p.Met1Ala' is no substitution such as A24G"),
        ("M1A:", "'' is no substitution"),
        ("M1A;K2R", "the mutant letter 'A;K2R'"),
        ("M" * 80, "..."),
    ],
)
def test_what_cannot_be_scored_says_why(text, says, written_file):
    variant = one(text, written_file)
    assert says in variant.reason
    assert variant.substitutions == ()


def test_numbering_that_starts_elsewhere(written_file):
    variant = one("M227A:W232G", written_file, 226)
    assert [site.index for site in variant.substitutions] == [0, 5]
    assert written(variant.substitutions, 226) == "M227A:W232G"
    assert "227 to 232" in str(one("M1A", written_file, 226).reason)
    assert one("K-1R", written_file, -3).substitutions[0].index == 1
    assert better_offset(["M227A", "K228R:V229A", "nonsense"], WILD) == (226, 3, 3)


def test_a_list_has_comments_and_lines(written_file):
    found = read(written_file("# made by hand\nM1A\r\n\nwt\nA1G\n", "list.txt"))
    assert [(variant.line, variant.text) for variant in found.variants] == [(2, "M1A"), (4, "wt"), (5, "A1G")]
    assert (found.columns, found.skipped_lines) == ((), 2)


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("a.csv", 'mutant,score\nM1A,1\n"M1A,K2R",2\n,3\n'),
        ("a.csv", '\ufeffMutations;score\r\nM1A;1\r\n"M1A:K2R";2\r\n;3\r\n'),
        ("a.tsv", "sequence\tscore\nAKVLXW\t1\narvlxw\t2\nMKVLXW\t3\n"),
        ("a.txt", "variant\tscore\nM1A\t1\nM1A,K2R\t2\nwt\t3\n"),
        ("a.csv", "sequence,mutation,score\nMKVL,M1A,1\nM,M1A/K2R,2\nM,_wt,3\n"),  # mutations before sequences
    ],
)
def test_the_same_variants_from_every_table(name, text, written_file):
    found = read(written_file(text, name))
    assert [written(variant.substitutions) for variant in found.variants] == ["M1A", "M1A:K2R", "wt"]
    assert [variant.cells[found.columns.index("score")] for variant in found.variants] == ["1", "2", "3"]
    assert [variant.line for variant in found.variants] == [2, 3, 4]


def test_compressed(tmp_path):
    (tmp_path / "a.csv.gz").write_bytes(gzip.compress(b"mutant,y\nM1A,1\n"))
    assert len(read(tmp_path / "a.csv.gz").variants) == 1


def test_sequences_are_compared_place_by_place(written_file):
    found = read(written_file("sequence\nMKVLXW\nMKVL\nMKVLXWW\nMUVLXW\nMKVLGW\nMK-LXW\n\n", "s.csv")).variants
    assert [variant.reason is None for variant in found] == [True, False, False, False, False, False]
    for variant, says in zip(
        found[1:],
        ["has 4 residues where the wild type has 6", "has 7", "'U' at residue 2", "wild type has 'X' at", "'-'"],
        strict=True,
    ):
        assert says in str(variant.reason)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("a.csv", "id,score\nM1A,1\n", "no column of variants; its columns are id, score"),
        ("a.csv", "mutant,Mutant\nM1A,1\n", "2 columns named 'mutant'"),
        ("a.csv", "mutant,score\nM1A,K2R,1\n", "line 2: 3 cells under a header of 2"),
        ("a.csv", 'mutant,score\n"M1A,1\n', "cannot be parsed"),
        ("a.csv", "mutant,score\n", "holds no variant"),
        ("a.txt", "\n", "holds no variant"),
        ("a.csv", "", "holds no variant"),
    ],
)
def test_files_that_cannot_be_read(name, text, says, written_file):
    with pytest.raises(ProtformerError, match=says):
        read(written_file(text, name))


def test_tokens_are_those_of_the_wild_type(written_file):
    (site,) = one("K2R", written_file).substitutions
    assert (site.wild_type, site.mutant) == tuple(np.asarray(encode("KR")).tolist())
