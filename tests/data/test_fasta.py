"""FASTA of every kind in, the same records out; what is not FASTA says so by name."""

import bz2
import gzip
import io
import lzma
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from protformer.data import fasta
from protformer.data.corpus import Corpus
from protformer.data.fasta import Record, expand_paths, open_text, read_fasta
from protformer.errors import ProtformerError

SHARED = Path(os.environ.get("PROTFORMER_SHARED_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
PLAIN = ">one first protein\nMKV\nLAT\n>two\nGGGSSE\n"
RECORDS = [Record("one", "one first protein", "MKVLAT"), Record("two", "two", "GGGSSE")]


def written(folder: Path, content: bytes | str, name: str = "some.fasta") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        PLAIN.rstrip("\n"),
        PLAIN.replace("\n", "\r\n"),
        PLAIN.replace("\n", "\r"),
        "\ufeff" + PLAIN,
        PLAIN.replace(">two", "\ufeff>two"),  # two files with byte-order marks, concatenated
        PLAIN.replace("\n", "\n\n"),
        "\n \n" + PLAIN,
        PLAIN.replace("MKV", " M KV "),
        PLAIN.replace(">two", "  >two"),
        ";old style comment\n# another\n" + PLAIN.replace("LAT", "!in between\nLAT"),
    ],
    ids=[
        *("plain", "no-final-newline", "crlf", "cr", "bom", "inner-bom", "blank-lines", "leading-blank"),
        *("spaces", "indented", "comments"),
    ],
)
def test_the_same_records_however_they_are_written(tmp_path, text):
    assert list(read_fasta(written(tmp_path, text))) == RECORDS


@pytest.mark.parametrize("compress", [gzip.compress, bz2.compress, lzma.compress, lambda data: data])
def test_compression_is_told_by_content_not_by_name(tmp_path, compress):
    assert list(read_fasta(written(tmp_path, compress(PLAIN.encode()), "misnamed.zip"))) == RECORDS


def test_zstandard_is_read_or_the_extra_is_named(tmp_path):
    module = fasta._zstd_module()
    content = module.compress(PLAIN.encode()) if module else b"\x28\xb5\x2f\xfd" + bytes(20)
    path = written(tmp_path, content)
    if module:
        assert list(read_fasta(path)) == RECORDS
    else:
        with pytest.raises(ProtformerError, match=r"protformer\[zst\]"):
            list(read_fasta(path))


def test_comments_are_counted(tmp_path):
    counts = Counter()
    list(read_fasta(written(tmp_path, ";a\n>x\n#b\nMK\n!c\n"), counts=counts))
    assert counts == {"comment lines": 3}


def test_headers_and_sequences_that_are_missing(tmp_path):
    path = written(tmp_path, ">\nMK\n>a\n>  b c \nGG\n>d")
    assert list(read_fasta(path)) == [
        Record("", "", "MK"),
        Record("a", "a", ""),
        Record("b", "  b c", "GG"),
        Record("d", "d", ""),
    ]


def test_an_empty_file_has_no_records(tmp_path):
    assert list(read_fasta(written(tmp_path, ""))) == []
    assert list(read_fasta(written(tmp_path, "\n\n;only a comment\n"))) == []


def test_bytes_that_are_not_utf8_stay_one_character_each(tmp_path):
    path = written(tmp_path, b">caf\xe9 \xc3\xa9\nMK\xe9V\n")
    (record,) = read_fasta(path)
    assert record.id == "café"
    assert record.sequence == "MKéV"
    record.description.encode("utf-8")  # can be written again


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b"not a FASTA file\n>a\nMK\n", "line 1 is 'not a FASTA file'"),
        (b"\n@read\nACGT\n+\n>>>>\n", "line 2 .* looks like FASTQ"),
        (b"# STOCKHOLM 1.0\n>a\nMK\n", "Stockholm"),
        (b"<html>\n>a\n", "XML or HTML"),
        (b"\x89PNG\r\n\x1a\n\x00\x00", "binary"),
        (PLAIN.encode("utf-16"), "UTF-16"),
        (b"PK\x03\x04rest", "zip archive"),
        (gzip.compress(b"\x00" * 100), "binary"),
        (gzip.compress(PLAIN.encode())[:-10], "cut short"),
        (b"\x1f\x8bnot gzip at all", "damaged"),
        (lzma.compress(PLAIN.encode() * 5000)[:-40], "cut short"),
        (bz2.compress(PLAIN.encode())[:30], "cut short"),
    ],
    ids=[
        *("text", "fastq", "stockholm", "html", "png", "utf-16", "zip", "binary-in-gz", "cut-gz", "bad-gz"),
        *("cut-xz", "cut-bz2"),
    ],
)
def test_what_is_not_fasta_says_so_with_its_name(tmp_path, content, says):
    path = written(tmp_path, content, "strange.fasta")
    with pytest.raises(ProtformerError, match=says) as error:
        list(read_fasta(path))
    assert "strange.fasta" in str(error.value)


def test_a_missing_file_and_a_folder_say_so(tmp_path):
    with pytest.raises(ProtformerError, match="cannot be read"):
        open_text(tmp_path / "none.fasta")
    with pytest.raises(ProtformerError, match="folder"):
        open_text(tmp_path)


def test_closing_the_text_closes_the_file_below(tmp_path, recwarn):
    text = open_text(written(tmp_path, gzip.compress(PLAIN.encode())))
    assert isinstance(text, io.TextIOWrapper)
    text.close()
    assert text._below.closed  # type: ignore[attr-defined]


def test_standard_input():
    program = "from protformer.data.fasta import read_fasta; print(*[r.id for r in read_fasta('-')])"
    result = subprocess.run(
        [sys.executable, "-c", program], input=gzip.compress(PLAIN.encode()), capture_output=True, check=True
    )
    assert result.stdout.split() == [b"one", b"two"]


def test_paths_globs_and_lists(tmp_path):
    names = ["b.fasta", "a.fasta", "c.faa", "odd[1].fasta"]
    for name in names:
        written(tmp_path, PLAIN, name)
    inner = tmp_path / "deep" / "er"
    inner.mkdir(parents=True)
    written(inner, PLAIN, "d.fasta")

    def found(spec):
        return [path.name for path in expand_paths(spec)]

    assert found(tmp_path / "a.fasta") == ["a.fasta"]
    assert found(f"{tmp_path}/*.fasta") == ["a.fasta", "b.fasta", "odd[1].fasta"]
    assert found(f"{tmp_path}/**/*.fasta")[-1] == "odd[1].fasta"
    assert "d.fasta" in found(f"{tmp_path}/**/*.fasta")
    assert found([f"{tmp_path}/c.faa", f"{tmp_path}/[ab].fasta", f"{tmp_path}/a.fasta"]) == [
        "c.faa",
        "a.fasta",
        "b.fasta",
    ]
    assert found(f"{tmp_path}/odd[1].fasta") == ["odd[1].fasta"]  # exists, so it is no pattern
    assert expand_paths("-") == [Path("-")]
    for wrong, says in (
        (f"{tmp_path}/*.nope", r"\*\.nope' matches no file"),
        (f"{tmp_path}/none.fasta", "none.fasta' does not exist"),
        (str(tmp_path), "is a folder"),
        ([], "No file"),
    ):
        with pytest.raises(ProtformerError, match=says):
            expand_paths(wrong)


# What becomes of other parsers' specimens, where it is not simply "all records, nothing noted".
REFUSED = {
    "biopython/aster_pearson.pro": "Some header",
    "needletail/bad_test.fa": "not a valid FASTA file",
    "biopython/README": "not FASTA",
    "MANIFEST.tsv": "not FASTA",
}
NOTED = {  # sequences, then fields of the report
    "biopython/aster_blast.pro": (1, {"comment_lines": 4, "residues": 107}),
    "biopython/dups.fasta": (5, {"equal_sequences": 1}),
    "biopython/fa01": (2, {"replaced": {"-": 131}}),
    "biopython/protein_lib.fa": (12, {"lower_case": 75}),
    "protfasta/aligned_seq_all_valid_unconvertable.fasta": (3, {"replaced": {"$": 1, "*": 1, "-": 15}}),
    "protfasta/aligned_seq_all_valid_convertable.fasta": (3, {"replaced": {"-": 15}, "stops_dropped": 1}),
    "protfasta/unfixable_invalid.fasta": (1, {"replaced": {"*": 3, "-": 3, "@": 1}}),
    "pyhmmer/938293.PRJEB85.HG003687.faa": (2100, {"stops_dropped": 2099, "equal_sequences": 5}),
    "seqkit/a.fa": (3, {"replaced": {"-": 3, "1": 2, "2": 1}, "lower_case": 3}),
    "seqkit/empty_id_and_seq.fa": (7, {"records": 11, "without_id": 1}),
    "seqkit/empty_id_and_seq2.fa": (2, {"records": 3, "without_id": 1}),
    "seqkit/titin.fas": (1, {"residues": 18141}),
}


@pytest.mark.skipif(not (SHARED / "fasta_specimens").is_dir(), reason="no shared data: set PROTFORMER_SHARED_DATA")
def test_every_specimen_of_other_parsers_is_read_or_refused_by_name():
    root = SHARED / "fasta_specimens"
    manifest = [line.split("\t") for line in (root / "MANIFEST.tsv").read_text().splitlines()[1:]]
    for name in {row[0] for row in manifest} | set(REFUSED) | set(NOTED):
        row = next((row for row in manifest if row[0] == name), None)
        refused = REFUSED.get(name)
        if name.endswith(".zst") and fasta._zstd_module() is None:
            refused = "Zstandard"
        if refused:
            with pytest.raises(ProtformerError, match=refused) as error:
                Corpus.from_fasta(root / name)
            assert str(root / name) in str(error.value)
            continue
        report = Corpus.from_fasta(root / name).report
        assert report.records == report.sequences + report.empty.count
        assert report.residues == sum(report.composition.values())
        if row is not None and row[3]:
            assert report.records == int(row[3]), name
            if not report.comment_lines:
                characters = int(row[4])
                assert report.residues + report.stops_dropped == characters, name
            assert bool(report.warnings) == ("nucleotide" in row[5] and report.residues >= 100), name
        sequences, fields = NOTED.get(name, (report.sequences, {}))
        assert report.sequences == sequences, name
        for field, expected in fields.items():
            assert getattr(report, field) == expected, (name, field)
