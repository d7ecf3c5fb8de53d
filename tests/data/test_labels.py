"""Labels lie along their sequences: aligned after cleaning, every row accounted for, no class unknown in silence."""

import json
import os
import random
from pathlib import Path

import numpy as np
import pytest

from protformer.data import alphabet
from protformer.data.labels import (
    IGNORE,
    LabelledTable,
    class_labels,
    multi_labels,
    number_targets,
    read_labelled,
    residue_labels,
)
from protformer.errors import ProtformerError

SHARED = Path(os.environ.get("PROTFORMER_SHARED_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))


def table(folder: Path, rows: list[dict], name: str = "rows.jsonl", **options) -> LabelledTable:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return read_labelled(path, **options)


def test_classes_are_sorted_and_carried_from_train_to_test(tmp_path):
    rows = [{"sequence": "MK", "label": label} for label in ("nucleus", "cytoplasm", "nucleus")]
    train = class_labels(table(tmp_path, rows))
    assert train.vocabulary == ("cytoplasm", "nucleus")
    assert train.values.tolist() == [1, 0, 1]
    assert train.values.dtype == np.int64
    assert train.class_counts.tolist() == [1, 2]
    test = class_labels(table(tmp_path, [{"sequence": "GG", "label": "nucleus"}]), train.vocabulary)
    assert test.values.tolist() == [1]
    assert test.class_counts.tolist() == [0, 1]


def test_whole_numbers_are_classes_in_their_order(tmp_path):
    rows = [{"sequence": "MK", "label": label} for label in (10, "2", 3.0)]
    assert class_labels(table(tmp_path, rows)).vocabulary == ("2", "3", "10")


def test_an_unknown_class_is_named_or_skipped_and_counted(tmp_path):
    rows = [{"id": f"p{index}", "sequence": "MK", "label": label} for index, label in enumerate("abca")]
    with pytest.raises(ProtformerError, match=r"label 'c' of p2 is none of the 2 classes of train \(a, b\)"):
        class_labels(table(tmp_path, rows), ("a", "b"))
    skipped = class_labels(table(tmp_path, rows), ("a", "b"), unknown="skip")
    assert skipped.corpus.ids == ["p0", "p1", "p3"]
    assert skipped.values.tolist() == [0, 1, 0]
    assert skipped.report.skipped["class 'c' is not in train"].examples == ["p2"]


def test_rows_that_cannot_be_used_are_counted_and_named(tmp_path):
    rows = [
        {"id": "a", "sequence": "MK", "label": "x", "set": "train"},
        {"id": "b", "sequence": "", "label": "x", "set": "train"},
        {"id": "c", "sequence": "MK", "label": " ", "set": "train"},
        {"id": "d", "sequence": "MK", "label": "x", "set": "test"},
        {"id": "e", "sequence": "*", "label": "x", "set": "train"},
        {"id": "f", "sequence": "GG", "set": "train"},
        {"id": "g", "sequence": "LL", "label": "y", "set": "train"},
    ]
    made = class_labels(table(tmp_path, rows, where={"set": "train"}))
    report = made.report
    assert made.corpus.ids == ["a", "g"]
    assert (report.rows, report.left_out, report.records) == (7, 1, 2)
    assert {reason: noted.examples for reason, noted in report.skipped.items()} == {
        "no sequence": ["b", "e"],
        "no label": ["c", "f"],
    }
    assert report.rows == report.left_out + report.records + sum(noted.count for noted in report.skipped.values())
    assert "skipped, no label: 2 (c, f)" in report.summary()
    json.dumps(report.as_dict())


def test_many_labels(tmp_path):
    rows = [
        {"sequence": "MK", "label": "b; a"},
        {"sequence": "GG", "label": ["c"]},
        {"sequence": "LL", "label": []},
        {"sequence": "LT", "label": ";"},
        {"sequence": "TT", "label": ""},
    ]
    made = multi_labels(table(tmp_path, rows))
    assert made.vocabulary == ("a", "b", "c")
    assert made.values.tolist() == [[1, 1, 0], [0, 0, 1], [0, 0, 0], [0, 0, 0]]
    assert made.values.dtype == np.float32
    assert made.class_counts.tolist() == [1, 1, 1]
    assert made.report.skipped["no label"].count == 1
    with pytest.raises(ProtformerError, match="label 'c'"):
        multi_labels(table(tmp_path, rows), ("a", "b"))
    assert len(multi_labels(table(tmp_path, rows), ("a", "b"), unknown="skip").corpus) == 3
    with pytest.raises(ProtformerError, match="several labels"):
        class_labels(table(tmp_path, rows[1:]))


def test_residue_labels_lie_along_the_residues(tmp_path):
    rows = [
        {"id": "plain", "sequence": "MKV", "label": "HEC", "mask": "110"},
        {"id": "stop", "sequence": "MKV*", "label": "HECC"},  # the stop's label goes with it
        {"id": "spaced", "sequence": "M KV *", "label": "H?EC?C"},
        {"id": "spaced too", "sequence": "M KV *", "label": "HECC"},
        {"id": "stop, bare labels", "sequence": "MKV*", "label": "HEC", "mask": [1, 0, True]},
        {"id": "gap", "sequence": "M-V", "label": "HEC"},  # a gap is an X in its place
        {"id": "short", "sequence": "MKV", "label": "HE"},
        {"id": "short mask", "sequence": "MKV", "label": "HEC", "mask": "11"},
        {"id": "odd mask", "sequence": "MKV", "label": "HEC", "mask": "1x1"},
        {"id": "none counts", "sequence": "MKV", "label": "HEC", "mask": "000"},
        {"id": "unlabelled", "sequence": "MKV", "label": None},
    ]
    made = residue_labels(table(tmp_path, rows, mask_column="mask"))
    c, e, h = 0, 1, 2
    assert made.vocabulary == ("C", "E", "H")
    assert [made.residues(index).tolist() for index in range(len(made.corpus))] == [
        [h, e, IGNORE],
        [h, e, c],
        [h, e, c],
        [h, e, c],
        [h, IGNORE, c],
        [h, e, c],
    ]
    assert made.values.dtype == np.int16
    assert made.values.size == made.corpus.tokens.size
    assert made.class_counts.tolist() == [5, 5, 6]
    assert {reason: noted.examples for reason, noted in made.report.skipped.items()} == {
        "labels and sequence differ in length": ["short"],
        "mask and sequence differ in length": ["short mask"],
        "the mask holds more than 0 and 1": ["odd mask"],
        "no residue of it counts": ["none counts"],
        "no label": ["unlabelled"],
    }


def test_residue_labels_follow_their_letters_through_any_cleaning(tmp_path):
    # The label of each character is the character itself: whatever cleaning does, label and token must agree.
    rng = random.Random(0)
    rows = []
    for index in range(200):
        text = "".join(rng.choices(alphabet.STANDARD + "-* ", k=rng.randint(1, 20))) + rng.choice(["", "*", " *", "* "])
        rows.append({"id": f"p{index}", "sequence": text, "label": text})
    made = residue_labels(table(tmp_path, rows))
    assert len(made.corpus) > 150
    for token, label in zip(made.corpus.tokens, made.values, strict=True):
        letter = made.vocabulary[label]
        assert alphabet.TOKENS[token] == (letter if letter in alphabet.STANDARD else "X")


def test_residue_classes_under_a_zero_mask_are_no_classes(tmp_path):
    rows = [{"sequence": "MKV", "label": "H?C", "mask": "101"}]
    assert residue_labels(table(tmp_path, rows, mask_column="mask")).vocabulary == ("C", "H")
    assert residue_labels(table(tmp_path, rows, mask_column="mask"), ("C", "H")).values.tolist() == [1, IGNORE, 0]
    unmasked = [{"id": "p", "sequence": "MKV", "label": "H?C"}]
    with pytest.raises(ProtformerError, match=r"'\?' of p"):
        residue_labels(table(tmp_path, unmasked), ("C", "H"))
    skipped = residue_labels(table(tmp_path, unmasked), ("C", "H"), unknown="skip")
    assert skipped.values.tolist() == [1, IGNORE, 0]
    assert skipped.report.unknown_positions == {"?": 1}


def test_numbers(tmp_path):
    path = tmp_path / "fitness.csv"
    path.write_text("sequence,target\nMK,1.5\nGG,\nLL,nan\nTT,-2e-1\nAA,inf\n")
    made = number_targets(read_labelled(path, label_column="target"))
    assert made.values.tolist() == pytest.approx([1.5, -0.2])
    assert made.values.dtype == np.float32
    assert made.corpus.ids == ["fitness.csv:1", "fitness.csv:4"]
    assert made.report.skipped["no label"].examples == ["fitness.csv:2"]
    assert made.report.skipped["the label is not finite"].count == 2
    path.write_text("sequence,target\nMK,high\n")
    with pytest.raises(ProtformerError, match=r"fitness.csv:1 has 'high' in column 'target'"):
        number_targets(read_labelled(path, label_column="target"))


def test_a_filter_that_matches_nothing_shows_what_is_there(tmp_path):
    rows = [{"sequence": "MK", "label": 1, "set": name} for name in ("train", "test", None)]
    with pytest.raises(ProtformerError, match=r"no row matches where set=tset; set holds \(blank\), test, train"):
        table(tmp_path, rows, where={"set": "tset"})


def test_the_id_is_named_found_or_made(tmp_path):
    rows = [{"accession": "P1", "code": 7, "sequence": "MK", "label": 1}]
    assert table(tmp_path, rows).corpus.ids == ["P1"]
    assert table(tmp_path, rows, id_column="code").corpus.ids == ["7"]
    with pytest.raises(ProtformerError, match=r"no column 'codes'.*'code'"):
        table(tmp_path, rows, id_column="codes")


def test_several_files_and_a_limit(tmp_path):
    for name in ("1.jsonl", "2.jsonl"):
        table(tmp_path, [{"sequence": "MK", "label": 1}] * 3, name)
    assert len(read_labelled(f"{tmp_path}/*.jsonl")) == 6
    limited = read_labelled(f"{tmp_path}/*.jsonl", limit=2)
    assert len(limited) == len(limited.labels) == 2
    assert limited.corpus.report.limited
    with pytest.raises(ProtformerError, match="no row has a sequence"):
        table(tmp_path, [{"sequence": "", "label": 1}])
    with pytest.raises(ProtformerError, match="no record has a label"):
        class_labels(table(tmp_path, [{"sequence": "MK", "label": ""}]))


@pytest.mark.skipif(not (SHARED / "gb1").is_dir(), reason="no shared data: set PROTFORMER_SHARED_DATA")
def test_the_real_tables():
    secondary = SHARED / "secondary_structure" / "cb513.jsonl.gz"
    made = residue_labels(read_labelled(secondary, sequence_column="seq", label_column="ss3", mask_column="mask"))
    assert (len(made.corpus), made.vocabulary) == (511, ("C", "E", "H"))
    assert int((made.values == IGNORE).sum()) == 3525
    gb1 = SHARED / "gb1" / "three_vs_rest.csv.gz"
    sizes = [
        len(number_targets(read_labelled(gb1, label_column="target", where=where)).values)
        for where in ({"set": "train", "validation": False}, {"set": "train", "validation": True}, {"set": "test"})
    ]
    assert sizes == [2691, 299, 5743]
    test = class_labels(read_labelled(SHARED / "localization" / "test.csv.gz"))
    assert (len(test.corpus), len(test.vocabulary)) == (2768, 10)
    val = read_labelled(SHARED / "localization" / "val.csv.gz")
    with pytest.raises(ProtformerError, match="Cytoplasm-Nucleus"):
        class_labels(val, test.vocabulary)
    assert len(class_labels(val, test.vocabulary, unknown="skip").corpus) == 1655
