"""`protformer variants` as it is typed."""

import csv
import gzip
import io
import re
from pathlib import Path

import pytest
import torch

from protformer.attention import ExactAttention
from protformer.cli.main import main
from protformer.data.alphabet import TOKENS
from protformer.model import Encoder, LanguageModelHead, ProteinEncoder, ProteinModel, save_model

SEQUENCE = "MKVLAWGGSE"


def save(folder: Path, *, causal: bool = False) -> Path:
    torch.manual_seed(0)
    attention = lambda **shape: ExactAttention(**shape, causal=causal)  # noqa: E731
    trunk = ProteinEncoder(encoder=Encoder(hidden_size=16, num_layers=1, num_heads=2, attention=attention))
    save_model(ProteinModel(trunk=trunk, head=LanguageModelHead(hidden_size=16)), folder / "model", tokens=TOKENS)
    return folder


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "wild.fasta").write_text(f">wild\n{SEQUENCE}\n")
    return save(tmp_path / "run")


def variants(
    tmp_path: Path, text: str | bytes, *more: str, name: str = "v.txt", model: str = "run", output: str | None = "o.tsv"
) -> int:
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    where = ["-o", str(tmp_path / output), "--force"] if output else []
    files = [str(tmp_path / "wild.fasta"), "--mutations", str(tmp_path / name)]
    return main(["variants", *files, "--model", str(tmp_path / model), *where, *more])


def rows(text: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(text), delimiter="\t"))


def mutated(*places: tuple[int, str]) -> str:
    letters = list(SEQUENCE)
    for place, letter in places:
        letters[place - 1] = letter
    return "".join(letters)


def test_a_list(run, tmp_path, capsys):
    assert variants(tmp_path, "M1A\nwt\nM1A:K2R\nK2R/M1G\n") == 0
    found = rows((tmp_path / "o.tsv").read_text())
    assert [row["variant"] for row in found] == ["M1A", "wt", "M1A:K2R", "K2R/M1G"]
    assert [row["substitutions"] for row in found] == ["M1A", "wt", "M1A:K2R", "M1G:K2R"]
    assert [row["substitution_count"] for row in found] == ["1", "0", "2", "2"]
    assert [row["masked_marginal"] == "0" for row in found] == [False, True, False, False]
    out, err = capsys.readouterr()
    assert "to compute: 20 residues, a pass for each of 2 sites" in out
    assert "4 variants scored" in out
    assert err == ""


def test_sequences_mutations_and_offsets_agree(run, tmp_path):
    scores = []
    for text, name, more in (
        ("M1A\nM1A,L4G\n", "v.txt", ()),
        ("M227A\nM227A:L230G\n", "v.txt", ("--offset", "226")),
        ("mutant,x\nM1A,1\nM1A:L4G,2\n", "v.csv", ()),
        (gzip.compress(f"sequence\n{mutated((1, 'A'))}\n{mutated((1, 'A'), (4, 'G'))}\n".encode()), "v.csv.gz", ()),
    ):
        assert variants(tmp_path, text, *more, name=name) == 0
        scores.append([row["masked_marginal"] for row in rows((tmp_path / "o.tsv").read_text())])
    assert scores[0] == scores[1] == scores[2] == scores[3]
    assert scores[0][0] != scores[0][1]


def test_what_cannot_be_scored_is_named_and_the_others_go_on(run, tmp_path, capsys):
    assert variants(tmp_path, "M1A\nA1G\nM1A:K2R\nM99A\nM1X\n") == 1
    found = rows((tmp_path / "o.tsv").read_text())
    assert [bool(row["masked_marginal"]) for row in found] == [True, False, True, False, False]
    assert "wild type has M at position 1" in found[1]["notes"]
    failures = rows((tmp_path / "o.tsv.failures.tsv").read_text())
    assert [(row["record"], row["id"]) for row in failures] == [("2", "A1G"), ("4", "M99A"), ("5", "M1X")]
    assert "3 of 5 variants could not be scored (the first: A1G, " in capsys.readouterr().err


def test_other_columns_are_carried_through_and_the_target_ranked(run, tmp_path, capsys):
    table = ("name;mutant;fitness;more", "first;M1A;1.5;x", "second;K2R;0.5;y", "wild;wt;;z", "3;L4G;-2;w", "4;V3I;1;")
    assert variants(tmp_path, "\n".join(table), "--target", "fitness", name="v.csv") == 0
    text = (tmp_path / "o.tsv").read_text()
    assert text.startswith("name\tmutant\tfitness\tmore\tsubstitutions\t")
    assert [(row["name"], row["fitness"]) for row in rows(text)][2:4] == [("wild", ""), ("3", "-2")]
    out = capsys.readouterr().out
    assert "1 variant without a number in 'fitness'" in out
    assert "over 4 variants" in out
    assert "the model" in out
    # BLOSUM62 minus the wild type's own: M1A -6, K2R -3, L4G -8, V3I -1; of 1.5, 0.5, -2, 1 by ranks
    assert re.search(r"BLOSUM62 +0\.400", out)
    assert "fewer substitutions  none: all scores or all targets are equal" in out


def test_the_output_may_be_scored_again(run, tmp_path, capsys):
    assert variants(tmp_path, "mutant\nM1A\n", name="v.csv") == 0
    capsys.readouterr()
    assert variants(tmp_path, (tmp_path / "o.tsv").read_text(), name="again.tsv", output="two.tsv") == 0
    (row,) = rows((tmp_path / "two.tsv").read_text())
    assert row["masked_marginal"] == row["masked_marginal_2"]
    assert "masked_marginal_2" in capsys.readouterr().out


def test_a_numbering_that_is_off_gets_a_hint(run, tmp_path, capsys):
    assert variants(tmp_path, "M3A\nK4R\nV5I\n") == 1
    assert "with --offset 2 the letters of 3 of 3 sites" in capsys.readouterr().out


def test_one_wild_type(run, tmp_path, capsys):
    (tmp_path / "wild.fasta").write_text(f">none\n\n>other\nMMMM\n>wild\n{SEQUENCE.lower()}*\n>twice\nM\n>twice\nM\n")
    assert variants(tmp_path, "M1A\n") == 1
    assert "holds 5 records: name the wild type with --wildtype ID (none, other, wild" in capsys.readouterr().err
    for wanted, says in (("nobody", "no record 'nobody'"), ("none", "has no residue"), ("twice", "has 2 records")):
        assert variants(tmp_path, "M1A\n", "--wildtype", wanted) == 1
        assert says in capsys.readouterr().err
    assert variants(tmp_path, "W6G\n", "--wildtype", "wild") == 0
    assert "final '*' dropped" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "name", "says"),
    [
        ("M1A\n", "v.txt", "it is a list without columns"),
        ("mutant,y\nM1A,1\n", "v.csv", "has no column 'fitness' for --target; its columns are mutant, y"),
        ("mutant,fitness\nM1A,high\n", "v.csv", "holds no number"),
    ],
)
def test_a_target_that_is_not_there(run, tmp_path, capsys, text, name, says):
    assert variants(tmp_path, text, "--target", "fitness", name=name) == 1
    assert says in capsys.readouterr().err
    assert not (tmp_path / "o.tsv").exists()


def test_standard_output_holds_the_table_alone(run, tmp_path, capsys):
    assert variants(tmp_path, "M1A\nA1G\n", output=None) == 1
    printed, said = capsys.readouterr()
    assert len(rows(printed)) == 2
    assert "1 variant scored" in said


def test_a_causal_model_is_refused(run, tmp_path, capsys):
    save(tmp_path / "causal", causal=True)
    assert variants(tmp_path, "M1A\n", model="causal") == 1
    assert "never shown a mask" in capsys.readouterr().err


def test_help_reads_as_english(capsys):
    assert main(["variants", "--help"]) == 0
    told = capsys.readouterr().out
    assert "--wildtype ID" in told
    assert "None" not in told
