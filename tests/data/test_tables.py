"""Rows from any table: the format by name or content, filters, and nothing lost to a stray quote."""

import bz2
import gzip
import json
import lzma

import pytest

from protformer.data.tables import matches, read_rows, suffix
from protformer.errors import ProtformerError

ROWS = [{"id": "a", "sequence": "MKV", "label": "x, y"}, {"id": "b", "sequence": "GG", "label": "z"}]
CSV = 'id,sequence,label\na,MKV,"x, y"\nb,GG,z\n'
TSV = "id\tsequence\tlabel\na\tMKV\tx, y\nb\tGG\tz\n"
JSONL = "".join(json.dumps(row) + "\n" for row in ROWS)
COLUMNS = ["id", "sequence", "label"]


@pytest.mark.parametrize("compress", [bytes, gzip.compress, bz2.compress, lzma.compress])
@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", CSV),
        ("t.csv.gz", CSV),
        ("t.TSV", TSV),
        ("t.tab.xz", TSV),
        ("t.jsonl", JSONL),
        ("t.json.gz", json.dumps(ROWS)),
        ("t.txt", CSV),  # from here on by content
        ("t", TSV),
        ("t.txt", JSONL),
        ("t.data", CSV.replace("x, y", "x. y").replace(",", ";").replace("x. y", "x, y")),
        ("t.csv", "\ufeff" + CSV.replace("\n", "\r\n\r\n")),
    ],
)
def test_the_same_rows_from_every_format(tmp_path, name, text, compress):
    path = tmp_path / name
    path.write_bytes(compress(text.encode()))
    assert list(read_rows(path, COLUMNS)) == ROWS


def test_only_the_asked_columns_come_and_absent_cells_are_none(tmp_path):
    path = tmp_path / "t.jsonl"
    path.write_text('{"sequence": "MK", "label": 3, "more": 1}\n{"sequence": "GG", "id": "b"}\n')
    assert list(read_rows(path, ["sequence", "label"], ["id", "accession"])) == [
        {"sequence": "MK", "label": 3},
        {"sequence": "GG", "label": None, "id": "b"},
    ]
    (tmp_path / "t.csv").write_text("sequence,label\nMK\n")
    assert list(read_rows(tmp_path / "t.csv", ["sequence", "label"])) == [{"sequence": "MK", "label": None}]


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("t.csv", "", "is empty"),
        (
            "t.csv",
            "id,Sequence,labels\na,MK,x\n",
            r"no column 'sequence'; its columns are id, Sequence, labels\. .*'Sequence'",
        ),
        ("t.jsonl", '{"seq": "MK", "id": 1, "label": 2}\n', "no column 'sequence'.* Did you mean 'seq'"),
        ("t.csv", "id,sequence,label\na,MK,x,y\n", "line 2: 4 cells under a header of 3"),
        ("t.csv", 'id,sequence,label\na,MK,"x\nb,GG,y\n', "cannot be parsed"),  # would swallow every row to the end
        ("t.csv", "id,sequence,label,label\na,MK,x,y\n", "2 columns named 'label'"),
        ("t.jsonl", '{"id": 1}\nnot json\n', "row 2 is not JSON"),
        ("t.jsonl", "[1, 2]\n", "each row is a JSON object"),
        ("t.csv", "\x00\x01", "binary"),
    ],
)
def test_what_is_no_table_says_so(tmp_path, name, text, says):
    path = tmp_path / name
    path.write_text(text)
    with pytest.raises(ProtformerError, match=says) as error:
        list(read_rows(path, COLUMNS))
    assert name in str(error.value)


def test_cells_longer_than_the_csv_modules_limit(tmp_path):
    path = tmp_path / "titin.csv"
    path.write_text(f"sequence\n{'M' * 400_000}\n")
    assert len(next(read_rows(path, ["sequence"]))["sequence"]) == 400_000


@pytest.mark.parametrize(
    ("cell", "wanted", "result"),
    [
        ("train", "train", True),
        ("train ", "train", True),
        ("Train", "train", False),
        ("test", ["train", "test"], True),
        ("True", True, True),
        ("TRUE", "true", True),
        (True, "True", True),
        (True, True, True),
        (False, True, False),
        ("1", True, True),
        ("", False, True),  # nothing written is not true
        (None, False, True),
        ("no", False, True),
        ("", True, False),
        ("maybe", False, False),
        ("", None, True),
        (" ", "", True),
        ("x", None, False),
        ("3.0", 3, True),
        (3, "3", True),
        ("", 0, False),
        ("x", 3, False),
    ],
)
def test_filters(cell, wanted, result):
    assert matches(cell, wanted) is result


def test_suffixes_are_read_below_their_compression():
    assert [suffix(name) for name in ("a.csv", "a.b.CSV.gz", "a.tsv.xz", "a.gz", "a")] == [
        ".csv",
        ".csv",
        ".tsv",
        "",
        "",
    ]
