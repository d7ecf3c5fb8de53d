"""What becomes of each file of other parsers' test suites: a table that was looked through, not only recorded.

The files are no part of this project: PROTFORMER_SHARED_DATA names the folder that holds `fasta_specimens`.
"""

import os
from pathlib import Path

import pytest

from protformer.data.corpus import ReadReport
from protformer.data.fasta import _zstd_module
from protformer.embedding import embed_fasta
from protformer.embedding.assemble import Counts
from protformer.embedding.verify import verify
from protformer.errors import ProtformerError

SHARED = Path(os.environ.get("PROTFORMER_SHARED_DATA", Path(__file__).parents[2] / ".." / "shared" / "data"))
FOLDER = SHARED / "fasta_specimens"
needs_specimens = pytest.mark.skipif(not FOLDER.is_dir(), reason="no shared data: set PROTFORMER_SHARED_DATA")

# file, records embedded, records that fail, residues, what is said
TABLE = [
    ("biopython/aster.pro", 1, 0, 107, ""),
    ("biopython/aster_blast.pro", 1, 0, 107, "comments 4"),
    ("biopython/aster_no_wrap.pro", 1, 0, 107, ""),
    ("biopython/aster_pearson.pro", 0, 0, 0, "not FASTA"),
    ("biopython/centaurea.nu", 1, 0, 1002, "nucleotides"),
    ("biopython/dups.fasta", 5, 0, 24, "duplicates 1, equal 1"),
    ("biopython/elderberry.nu", 1, 0, 2050, "nucleotides"),
    ("biopython/f001", 1, 0, 79, ""),
    ("biopython/f002", 3, 0, 1517, "nucleotides"),
    ("biopython/f003.fa", 2, 0, 112, ""),
    ("biopython/fa01", 2, 0, 760, "X for -131"),
    ("biopython/flowers.pro.gz", 3, 0, 1377, ""),
    ("biopython/lavender.nu", 1, 0, 550, "nucleotides"),
    ("biopython/loveliesbleeding.pro", 1, 0, 304, ""),
    ("biopython/lupine.nu", 1, 0, 655, "nucleotides"),
    ("biopython/phlox.nu", 1, 0, 623, "nucleotides"),
    ("biopython/protein_lib.fa", 12, 0, 2267, "lower 75"),
    ("biopython/rose.pro", 1, 0, 600, ""),
    ("biopython/rosemary.pro", 1, 0, 473, ""),
    ("biopython/sweetpea.nu", 1, 0, 309, "nucleotides"),
    ("biopython/wisteria.nu", 1, 0, 2551, "nucleotides"),
    ("needletail/bad_test.fa", 0, 0, 0, "not FASTA"),
    ("needletail/specimen_aster.fasta", 1, 0, 107, ""),
    ("needletail/specimen_badfasta.fasta", 3, 0, 991, "lower 991, nucleotides"),
    ("needletail/specimen_spaced_fasta.fasta", 37, 0, 12637, "lower 12637, nucleotides"),
    ("needletail/test.fa", 2, 0, 14, ""),
    ("needletail/test.fa.bz2", 2, 0, 14, ""),
    ("needletail/test.fa.gz", 2, 0, 14, ""),
    ("needletail/test.fa.xz", 2, 0, 14, ""),
    ("pyhmmer/938293.PRJEB85.HG003687.faa", 2100, 0, 680484, "stops 2099, equal 5"),
    ("protfasta/100_seqs_with_allvalid.fasta", 100, 0, 51761, ""),
    ("protfasta/100_seqs_with_invalid.fasta", 100, 0, 50440, ""),
    ("protfasta/aligned_seq_all_valid.fasta", 3, 0, 75, "X for -15"),
    ("protfasta/aligned_seq_all_valid_convertable.fasta", 3, 0, 77, "X for -15, stops 1"),
    ("protfasta/aligned_seq_all_valid_unconvertable.fasta", 3, 0, 79, "X for $1 *1 -15"),
    ("protfasta/fixable_invalid.fasta", 1, 0, 514, "X for *3 -3"),
    ("protfasta/input_test.fasta", 61, 0, 5033, ""),
    ("protfasta/test_data_with_bad_chars.fa", 4, 0, 2308, "X for -420 .346, lower 2"),
    ("protfasta/test_data_with_nonstandard_chars.fa", 4, 0, 2308, "X for -420, lower 2"),
    ("protfasta/testset_1.fasta", 9, 0, 5056, ""),
    ("protfasta/testset_duplicate.fasta", 3, 0, 1285, "duplicates 1, equal 1"),
    ("protfasta/testset_duplicate_seqs.fasta", 3, 0, 1285, "equal 1"),
    ("protfasta/unfixable_invalid.fasta", 1, 0, 515, "X for *3 -3 @1"),
    ("pyfaidx/issue_83.fasta", 2, 0, 179, "nucleotides"),
    ("pyfastx/protein.fa", 17, 0, 2265, ""),
    ("pyfastx/rna.fa", 2, 0, 720, "nucleotides"),
    ("pyfastx/test.fa.gz", 211, 0, 86262, "nucleotides"),
    ("seqkit/Lactococcus-lactis-phage-BK5-T-ORF25.fasta", 1, 0, 228, "lower 228, nucleotides"),
    ("seqkit/a.fa", 3, 0, 9, "X for -3 12 21, lower 3, duplicates 1, equal 1"),
    ("seqkit/common_a.fasta", 7, 0, 43, "lower 4"),
    ("seqkit/contigs.fa", 9, 0, 54, ""),
    ("seqkit/empty_id_and_seq.fa", 7, 4, 7, "no id 1, equal 2"),
    ("seqkit/empty_id_and_seq2.fa", 2, 1, 8, "no id 1"),
    ("seqkit/sana_ground.fas", 12, 0, 7147, "nucleotides"),
    ("seqkit/titin.fas", 1, 0, 18141, ""),
]


def told(read: ReadReport, counts: Counts) -> str:
    notes = []
    if read.replaced:
        notes.append("X for " + " ".join(f"{letter}{count}" for letter, count in sorted(read.replaced.items())))
    for name, count in (
        ("stops", read.stops_dropped),
        ("lower", read.lower_case),
        ("duplicates", read.duplicate_ids.count),
        ("no id", read.without_id),
        ("comments", read.comment_lines),
        ("equal", counts.equal_sequences),
    ):
        if count:
            notes.append(f"{name} {count}")
    if any("looks like nucleotides" in warning for warning in read.warnings):
        notes.append("nucleotides")
    return ", ".join(notes)


@needs_specimens
@pytest.mark.parametrize(("file", "embedded", "failed", "residues", "what"), TABLE)
def test_specimen(file, embedded, failed, residues, what, model_folder, tmp_path):
    source, out = FOLDER / file, tmp_path / "o.h5"
    if what == "not FASTA":
        with pytest.raises(ProtformerError, match=f"{Path(file).name} is not FASTA: line 1"):
            embed_fasta([source], model_folder, out)
        assert list(tmp_path.glob("o.h5*")) == []
        return
    report = embed_fasta([source], model_folder, out)
    counts = report.counts
    assert (counts.embedded, counts.failed, counts.residues) == (embedded, failed, residues)
    assert told(report.account.read, counts) == what
    assert verify(out, [source]).fault_count == 0


@needs_specimens
def test_zstandard_is_read_or_named(model_folder, tmp_path):
    source = FOLDER / "needletail" / "test.fa.zst"
    if _zstd_module() is None:
        with pytest.raises(ProtformerError, match=r"protformer\[zst\]"):
            embed_fasta([source], model_folder, tmp_path / "o.h5")
    else:
        report = embed_fasta([source], model_folder, tmp_path / "o.h5")
        assert (report.counts.embedded, report.counts.residues) == (2, 14)


@needs_specimens
def test_the_table_has_every_specimen():
    listed = [line.split("\t")[0] for line in (FOLDER / "MANIFEST.tsv").read_text().splitlines()[1:]]
    assert sorted(listed) == sorted([file for file, *_ in TABLE] + ["needletail/test.fa.zst"])
