"""The files in data/ are what their report says, and what the simulator gives."""

import csv
import hashlib
import json
from io import StringIO
from pathlib import Path

import pytest
from Bio.Phylo import NewickIO
from Bio.SeqIO.FastaIO import SimpleFastaParser

from protformer.data.simulate import Settings, draw_family
from protformer.data.simulate.family import SPLITS

DATA = Path(__file__).parents[2] / "data"
REPORT = json.loads((DATA / "demo.json").read_text())


def records(split):
    with (DATA / f"{split}.fasta").open() as file:
        return list(SimpleFastaParser(file))


@pytest.fixture(scope="module")
def sequences():
    return {split: {title.split()[0]: sequence for title, sequence in records(split)} for split in SPLITS}


def test_files_are_those_of_the_report_and_small():
    for name, entry in REPORT["files"].items():
        content = (DATA / name).read_bytes()
        assert len(content) == entry["bytes"]
        assert hashlib.sha256(content).hexdigest() == entry["sha256"]
    assert sum(path.stat().st_size for path in DATA.iterdir() if path.is_file()) < 3_000_000
    assert REPORT["settings"] == Settings().as_dict()  # so `protformer simulate --out data` makes this set


def test_every_record_says_that_it_is_simulated(sequences):
    for split in SPLITS:
        titles = [title for title, _ in records(split)]
        assert all(title.startswith("SIM_") and " simulated family=" in title for title in titles)
        assert all(title.endswith(f"split={split}") for title in titles)
        assert len(sequences[split]) == len(titles) == REPORT["files"][f"{split}.fasta"]["sequences"]
        assert sum(map(len, sequences[split].values())) == REPORT["files"][f"{split}.fasta"]["residues"]
        assert set("".join(sequences[split].values())) == set("ACDEFGHIKLMNPQRSTVWY")


def test_no_sequence_is_in_two_places(sequences):
    everything = [sequence for split in SPLITS for sequence in sequences[split].values()]
    assert len(everything) == len(set(everything))
    trained = {name.split("_")[1] for name in sequences["train"]}
    assert {name.split("_")[1] for split in ("valid", "test") for name in sequences[split]} <= trained
    assert not {name.split("_")[1] for name in sequences["unseen"]} & trained


def test_labels_go_with_the_sequences(sequences):
    for split in SPLITS:
        with (DATA / f"{split}.tsv").open() as file:
            rows = list(csv.DictReader(file, delimiter="\t"))
        assert [row["id"] for row in rows] == list(sequences[split])
        for row in rows:
            assert row["split"] == split
            assert row["family"] == row["id"].split("_")[1]
            assert len(row["states"]) == len(sequences[split][row["id"]])
            assert set(row["states"]) <= set("HEC")


def test_valid_and_test_are_whole_clades(sequences):
    split_of = {name: split for split in SPLITS for name in sequences[split]}
    for line in (DATA / "trees.nwk").read_text().splitlines():
        tree = next(NewickIO.parse(StringIO(line.split("\t")[1])))
        tips = [tip for tip in tree.get_terminals() if tip.name in split_of]  # one equal to another is left out
        for held_out in ("valid", "test"):
            inside = [tip for tip in tips if split_of.get(tip.name) == held_out]
            if inside:
                assert tree.common_ancestor(inside).count_terminals() == len(inside)
            assert bool(inside) == (split_of[tips[0].name] != "unseen")


def test_the_simulator_still_gives_this_set(sequences):
    for index in (0, Settings().families):
        family = draw_family(Settings(), index)
        for leaf, split in enumerate(family.split):
            assert sequences[split][family.identifier(leaf)] == family.sequence(leaf)


def test_the_report_orders_what_knowledge_is_worth():
    for found in REPORT["perplexity"].values():
        order = [found[key] for key in ("best_reachable", "state_oracle", "three_states", "unigram")]
        assert order == sorted(order)
        low, high = found["best_reachable_95"]
        assert low < found["best_reachable"] < high
        assert found["contacts"]["with_partner"] < found["contacts"]["without_partner"]


def test_the_readme_says_what_the_report_says():
    text = (DATA / "README.md").read_text()
    assert "simulated" in text.splitlines()[0]
    for key in ("unigram", "three_states", "state_oracle", "best_reachable"):
        figures = " | ".join(f"{REPORT['perplexity'][split][key]:.2f}" for split in SPLITS)
        assert f"| {figures} |" in text
