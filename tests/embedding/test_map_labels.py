"""Colours from tables: which row is of which protein, what is a number, and what did not fit."""

import gzip
from pathlib import Path

import pytest
from mapped import random, store_of

from protformer.embedding.map.colours import COLOURS, MOST, category_note, groups, scale
from protformer.embedding.map.labels import Labels, read_labels, split_color
from protformer.embedding.stored import StoredEmbeddings
from protformer.errors import ProtformerError


@pytest.fixture
def proteins() -> StoredEmbeddings:
    ids = ["p0", "sp|P12345|NAME_HUMAN", "", "p0", "a b"]
    return store_of(random(5), ids=ids, keys=["p0", "sp|P12345|NAME_HUMAN", "unnamed_1", "p0_2", "a_b_12"])


def table(folder: Path, text: str, name: str = "labels.tsv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def read(folder: Path, text: str, proteins: StoredEmbeddings, column: str = "label", **options) -> Labels:
    return read_labels(table(folder, text), column, proteins, **options)


def test_ids_keys_and_parts_of_uniprots_ids_match(tmp_path, proteins):
    found = read(tmp_path, "x\tlabel\nP12345\ta\nunnamed_1\tb\np0\tc\na_b_12\td\n", proteins)
    assert found.texts == ["c", "a", "b", "c", "d"], "an id that comes twice means both proteins"
    assert found.notes == []
    assert read(tmp_path, "x\tlabel\nNAME_HUMAN\ta\n", proteins).texts[1] == "a"
    assert read(tmp_path, "x\tlabel\np0_2\tb\n", proteins).texts == [None, None, None, "b", None]


@pytest.mark.parametrize("column", ["id", "Protein", "ACCESSION", "key"])
def test_a_column_of_ids_is_told_by_its_name_wherever_it_stands(tmp_path, proteins, column):
    assert read(tmp_path, f"label\tother\t{column}\na\tx\tp0\n", proteins).texts[0] == "a"


def test_commas_compression_and_quotes(tmp_path, proteins):
    path = tmp_path / "labels.csv.gz"
    path.write_bytes(gzip.compress(b'id,label\np0,"one, two"\n'))
    assert read_labels(path, "label", proteins).texts[0] == "one, two"


def test_what_does_not_match_is_counted_and_named(tmp_path, proteins):
    found = read(tmp_path, "id\tlabel\np0\ta\nstranger\tb\nP12345\t\nunnamed_1\tNA\n", proteins)
    assert found.texts == ["a", None, None, "a", None]
    assert found.notes == [
        "Proteins without a row in labels.tsv: 1 (a b).",
        "Proteins whose label is blank in labels.tsv: 2 (sp|P12345|NAME_HUMAN, unnamed_1).",
        "Names in column id of labels.tsv that are of no protein here: 1 (stranger).",
    ]


def test_of_several_rows_the_first_that_says_something_counts(tmp_path, proteins):
    found = read(tmp_path, "id\tlabel\nP12345\t\nP12345\ta\nP12345\ta\np0\tb\np0\tc\n", proteins)
    assert found.texts[:2] == ["b", "a"]
    assert found.notes[-1].endswith("of which the first counts: 2 (p0, p0).")


def test_nothing_that_matches_is_an_error_that_shows_both_sides(tmp_path, proteins):
    with pytest.raises(ProtformerError, match="none of the 1 rows") as error:
        read(tmp_path, "id\tlabel\nstranger\ta\n", proteins)
    assert "stranger" in str(error.value)
    assert "'p0'" in str(error.value)
    with pytest.raises(ProtformerError, match=r"no column 'labell'.*Did you mean 'label'"):
        read(tmp_path, "id\tlabel\np0\ta\n", proteins, column="labell")


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        (["1.5", "2", "-3e4"], "number"),
        (["1", "0", "1"], "category"),
        ([str(number) for number in range(20)], "number"),
        (["1", "b", "2"], "category"),
        (["1.5", "inf", ""], "category"),
    ],
)
def test_numbers_are_told_from_categories(tmp_path, values, kind):
    proteins = store_of(random(20))
    text = "id\tlabel\n" + "".join(f"p{at}\t{value}\n" for at, value in enumerate(values))
    found = read(tmp_path, text, proteins)
    assert found.kind == kind
    assert [text for text in found.texts if text is not None] == [value for value in values if value]
    if kind == "number":
        assert found.numbers[:3] == [float(value) for value in values[:3]]
    assert read(tmp_path, text, proteins, kind="category").kind == "category"


def test_text_cannot_be_asked_for_as_numbers(tmp_path, proteins):
    assert read(tmp_path, "id\tlabel\np0\t1\n", proteins, kind="number").numbers[0] == 1.0
    with pytest.raises(ProtformerError, match="'high' in column 'label' is no number"):
        read(tmp_path, "id\tlabel\np0\thigh\n", proteins, kind="number")


def test_table_and_column_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table(tmp_path, "id\tGO:0005634\n")
    table(tmp_path, "id\tlabel\n", name="a:b.tsv")
    assert split_color("labels.tsv:GO:0005634") == (Path("labels.tsv"), "GO:0005634")
    assert split_color("a:b.tsv:label") == (Path("a:b.tsv"), "label")
    for text, words in (
        ("labels.tsv", "labels.tsv:COLUMN; its columns are id, GO:0005634"),
        ("none.tsv:label", "no file none.tsv"),
        ("none.tsv", "write it as labels.tsv:COLUMN"),
    ):
        with pytest.raises(ProtformerError, match=words):
            split_color(text)


def categories(texts: list[str | None]) -> Labels:
    return Labels(source="labels.tsv", column="label", kind="category", texts=texts)


def test_categories_have_looks_of_their_own_and_the_rarest_are_one():
    texts = [f"c{number:02}" for number in range(20) for _ in range(40 - number)] + [None, None]
    labels = categories([*texts])
    made = groups(labels)
    assert [group["name"] for group in made[: MOST - 1]] == [f"c{number:02}" for number in range(MOST - 1)]
    assert [group["name"] for group in made[MOST - 1 :]] == [f"other ({20 - MOST + 1} rarer)", "no value"]
    looks = {(group["colour"], group["shape"]) for group in made}
    assert len(looks) == len(made), "each look once"
    assert sorted(place for group in made for place in group["of"]) == list(range(len(texts))), "each protein once"
    assert "the 7 rarest" in category_note(labels)[0]
    assert category_note(categories(["a", "b"])) == []
    assert [group["name"] for group in groups(categories([f"c{at:02}" for at in range(MOST)]))][-1] == f"c{MOST - 1}"


def test_the_first_colours_are_apart_for_the_colour_blind():
    """Viénot, Brettel and Mollon (1999): how a protanope and a deuteranope see them, compared by CIE 1976 distances."""
    import itertools

    import numpy as np

    def lab(linear: np.ndarray) -> np.ndarray:
        to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
        x, y, z = np.cbrt(to_xyz @ linear.clip(1e-4) / (to_xyz @ np.ones(3)))
        return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])

    def linear(colour: str) -> np.ndarray:
        parts = np.array([int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)])
        return np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4)

    to_lms = np.array([[17.8824, 43.5161, 4.11935], [3.45565, 27.1554, 3.86714], [0.0299566, 0.184309, 1.46709]])
    protan = np.array([[0, 2.02344, -2.52581], [0, 1, 0], [0, 0, 1]])
    deutan = np.array([[1, 0, 0], [0.494207, 0, 1.24827], [0, 0, 1]])
    for seen_by in (np.eye(3), protan, deutan):
        change = np.linalg.inv(to_lms) @ seen_by @ to_lms
        for one, other in itertools.combinations(COLOURS[:6], 2):
            assert np.linalg.norm(lab(change @ linear(one)) - lab(change @ linear(other))) > 10, (one, other)


def test_one_titin_does_not_take_all_colours():
    numbers = [float(number) for number in range(100, 500)] + [34_350.0]
    labels = Labels("t", "length", "number", [str(number) for number in numbers], [*numbers, None])
    low, high, least, greatest = scale(labels)
    assert (least, greatest) == (100, 34_350)
    assert 100 <= low < high < 500
    same = Labels("t", "length", "number", ["1"] * 3, [1.0] * 3)
    assert scale(same) == (1, 1, 1, 1)
