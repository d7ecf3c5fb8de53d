"""`protformer score` as it is typed."""

import csv
import io
from pathlib import Path

import pytest
import torch

from protformer.attention import ExactAttention
from protformer.cli.main import main
from protformer.data.alphabet import TOKENS
from protformer.model import Encoder, LanguageModelHead, ProteinEncoder, ProteinModel, SequenceHead, save_model

FASTA = ">a first\nMKVLAWGGSEMKVLAWGGSE\n>b\n\n>c\nmkvjU*\n>d\nXXBZ\n>a\nMKV\n"


def save(folder: Path, *, causal: bool = False, head: torch.nn.Module | None = None) -> Path:
    torch.manual_seed(0)
    attention = lambda **shape: ExactAttention(**shape, causal=causal)  # noqa: E731
    trunk = ProteinEncoder(encoder=Encoder(hidden_size=16, num_layers=1, num_heads=2, attention=attention))
    model = ProteinModel(trunk=trunk, head=head or LanguageModelHead(hidden_size=16))  # pyright: ignore[reportArgumentType]
    save_model(model, folder / "model", tokens=TOKENS)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "in.fasta").write_text(FASTA)
    return save(tmp_path / "run")


def score(tmp_path: Path, *more: str, model: str = "run", output: str | None = "o.tsv") -> int:
    where = ["-o", str(tmp_path / output)] if output else []
    return main(["score", str(tmp_path / "in.fasta"), "--model", str(tmp_path / model), *where, *more])


def rows(text: str, delimiter: str = "\t") -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text), delimiter=delimiter))


def test_every_record_has_its_row_in_order(run, tmp_path, capsys):
    assert score(tmp_path) == 1
    found = rows((tmp_path / "o.tsv").read_text())
    assert [row["id"] for row in found] == ["a", "b", "c", "d", "a"]
    assert [row["residues"] for row in found] == ["20", "0", "5", "4", "3"]
    assert [row["scored"] for row in found] == ["20", "0", "3", "0", "3"]
    assert [row["method"] for row in found] == ["passes=16", "", "exact", "", "exact"]
    assert [bool(row["pseudo_perplexity"]) for row in found] == [True, False, True, False, True]
    assert "read as X: 'J' 1" in found[2]["notes"]
    assert "final '*' dropped" in found[2]["notes"]
    assert "no residue" in found[1]["notes"]
    assert "no standard residue" in found[3]["notes"]
    failures = rows((tmp_path / "o.tsv.failures.tsv").read_text())
    assert [(row["record"], row["id"]) for row in failures] == [("2", "b"), ("4", "d")]
    out, err = capsys.readouterr()
    assert "to compute: 344 residues in all passes (proteins by method: passes=16 1, exact 2)" in out
    assert "residues per second" in out
    assert "2 of 5 records could not be scored (the first: b, " in err


def test_exact_and_passes(run, tmp_path, capsys):
    methods = {}
    for option in (("--exact",), ("--passes", "5"), ("--passes", "3")):
        assert score(tmp_path, *option, "--force") == 1
        methods[option] = [row["method"] for row in rows((tmp_path / "o.tsv").read_text()) if row["method"]]
    assert list(methods.values()) == [
        ["exact", "exact", "exact"],
        ["passes=5", "exact", "exact"],
        ["passes=3", "exact", "exact"],
    ]
    assert score(tmp_path, "--exact", "--passes", "3") == 2
    assert "not allowed with" in capsys.readouterr().err


def test_standard_output_holds_the_table_alone(run, tmp_path, capsys):
    assert score(tmp_path, output=None) == 1
    printed, said = capsys.readouterr()
    assert len(rows(printed)) == 5
    assert printed.count("\n") == 6
    assert "to compute" in said
    assert "their rows say why" in said
    assert score(tmp_path) == 1
    assert (tmp_path / "o.tsv").read_text() == printed


def test_comma_separated_where_the_name_says_so(run, tmp_path):
    score(tmp_path, output="o.csv")
    assert len(rows((tmp_path / "o.csv").read_text(), ",")) == 5


def test_a_causal_model_takes_one_pass(run, tmp_path, capsys):
    save(tmp_path / "causal", causal=True)
    assert score(tmp_path, model="causal") == 1
    methods = [row["method"] for row in rows((tmp_path / "o.tsv").read_text())]
    assert methods == ["next_residue", "", "next_residue", "", "next_residue"]
    out = capsys.readouterr().out
    assert "to compute: 28 residues" in out
    assert "the true perplexity" in out


def test_all_well_is_0_and_old_failures_go(run, tmp_path, capsys):
    score(tmp_path)
    (tmp_path / "in.fasta").write_text(">a\nMKV\n")
    capsys.readouterr()
    assert score(tmp_path) == 1
    assert "exists already" in capsys.readouterr().err
    assert score(tmp_path, "--force") == 0
    assert not (tmp_path / "o.tsv.failures.tsv").exists()
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("text", "says"), [("id,seq\n", "not FASTA"), ("", "There is no record"), (None, "does not exist")]
)
def test_errors_are_one_sentence_and_leave_nothing(run, tmp_path, capsys, text, says):
    (tmp_path / "in.fasta").unlink()
    if text is not None:
        (tmp_path / "in.fasta").write_text(text)
    assert score(tmp_path) == 1
    told = capsys.readouterr().err
    assert says in told
    assert told.count("\n") == 1
    assert not list(tmp_path.glob("*o.tsv*"))


def test_a_model_without_a_language_model_head_is_refused(run, tmp_path, capsys):
    save(tmp_path / "classes", head=SequenceHead(hidden_size=16, outputs=2))
    assert score(tmp_path, model="classes") == 1
    assert "no language model head" in capsys.readouterr().err


def test_stopped_half_way_leaves_nothing(run, tmp_path, monkeypatch):
    def stops(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("protformer.scoring.job.score_corpus", stops)
    assert score(tmp_path) == 130
    assert not list(tmp_path.glob("*o.tsv*"))


def test_help_says_what_it_costs(capsys):
    assert main(["score", "--help"]) == 0
    told = capsys.readouterr().out
    assert "What it costs" in told
    assert "None" not in told
