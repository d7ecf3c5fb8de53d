"""What stands on the page: facts, what was left out, sequences, and nothing that a name could break."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest
from mapped import random, store_of

from protformer import __version__
from protformer.embedding.map import make_content, render
from protformer.embedding.map.sequences import read_sequences
from protformer.errors import ProtformerError

EVIL = "</script><img src=x onerror=alert(1)>&amp;{{data}}\u2028"


def test_an_empty_store_is_a_sentence():
    with pytest.raises(ProtformerError, match="holds no protein"):
        make_content(store_of(np.zeros((0, 6))))
    with pytest.raises(ProtformerError, match="no vector is finite"):
        make_content(store_of(np.full((2, 6), np.nan)))


@pytest.mark.parametrize(
    ("vectors", "title", "words"),
    [
        (random(1), "1 protein", "One protein alone"),
        (random(2), "2 proteins", "Two proteins always lie on a line"),
        (np.ones((4, 6)), "4 proteins", "All vectors are equal"),
        (np.ones((2, 6)), "2 proteins", "All vectors are equal"),
    ],
)
def test_few_or_equal_proteins_are_a_page_that_says_so(vectors, title, words):
    content = make_content(store_of(vectors))
    assert content.title == f"proteins.h5: {title}"
    assert words in content.notes[0]
    assert len(content.data["x"]) == len(vectors)
    assert all(np.isfinite(content.data["x"] + content.data["y"]))


def test_vectors_that_are_not_finite_are_left_out_and_named():
    vectors = random(5)
    vectors[1, 2], vectors[3, 0] = np.nan, np.inf
    content = make_content(store_of(vectors))
    assert content.notes[0] == "Not drawn, since their vectors are not finite: 2 (p1, p3)."
    assert content.data["ids"] == ["p0", "p2", "p4"]


def test_the_facts_say_what_it_is_and_how_it_was_made(tmp_path):
    (tmp_path / "my labels.tsv").write_text("id\tlabel\n" + "".join(f"p{at}\tc\n" for at in range(9)))
    content = make_content(store_of(random(9), lengths=list(range(1, 10))), color=(tmp_path / "my labels.tsv", "label"))
    facts = dict(content.facts)
    first, second = re.findall(r"[\d.]+%", facts["explained variance"])
    assert float(first[:-1]) > float(second[:-1]) > 0
    assert facts["model hash"] == "0123456789abcdef"
    assert facts["vectors"] == "mean, 6 numbers each"
    assert facts["proteins"] == "9, of 1 to 9 residues"
    assert facts["made by"] == (
        f"protformer {__version__}: protformer map proteins.h5 --output mean --method pca "
        "--color 'my labels.tsv:label' --color-as category"
    )
    assert str(tmp_path) not in json.dumps(content.data) + str(content.facts), "files are named, not where they are"


def test_descriptions_stand_without_their_ids_and_names_are_unique():
    proteins = store_of(random(3), ids=["a", "a", ""], descriptions=["a kinase\tof yeast", "a", ""])
    content = make_content(proteins)
    assert content.data["titles"] == ["kinase of yeast", "", ""]
    assert content.data["ids"] == ["k0", "k1", "k2"]


class Elements(HTMLParser):
    """Start tags, and the text of each script."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.scripts: list[tuple[dict, str]] = []
        self._open: dict | None = None

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self._open = dict(attrs) if tag == "script" else None

    def handle_data(self, data):
        if self._open is not None:
            self.scripts.append((self._open, data))
            self._open = None


def test_whatever_a_file_holds_stays_text(tmp_path):
    pytest.importorskip("plotly")
    path = tmp_path / "labels.tsv"
    column = EVIL.replace("\u2028", "")
    path.write_text(f"id\t{column}\n{EVIL.split()[0]}\t{column}\nstrange{column}\tx\n", encoding="utf-8")
    proteins = store_of(random(2), ids=[EVIL.split()[0], "lone\ud800"], descriptions=[EVIL, EVIL])
    content = make_content(proteins, color=(path, column))
    page = render(content)
    page.encode("utf-8")
    elements = Elements()
    elements.feed(page)
    assert elements.tags.count("script") == 3
    assert "img" not in elements.tags
    data = json.loads(next(text for attrs, text in elements.scripts if attrs.get("id") == "data"))
    assert data["titles"][0].startswith("<img") or EVIL.split()[0] in data["ids"][0]
    assert data["label"]["texts"] == [column, None]
    assert "&lt;/script&gt;" in page, "in the notes"
    assert page.count('"ids":[') == 1, "a name that looks like a place of the template is none"


def test_the_same_store_gives_the_same_page():
    pytest.importorskip("plotly")
    pages = {render(make_content(store_of(random(9)))) for _ in range(2)}
    assert len(pages) == 1


def test_sequences_are_found_by_id_and_length(tmp_path):
    fasta = tmp_path / "in.fasta"
    fasta.write_text(">a first\nMKV*\n>b\nMK\n>a second\nmkvl\n>c\nM\n>d x\nMKV\n>a third\nAAA\n>stranger\nMMM\n")
    proteins = store_of(random(5), ids=["a", "a", "a", "c", "d"], lengths=[4, 3, 3, 2, 0])
    found = read_sequences([fasta], proteins)
    assert found.letters == ["mkvl", "MKV*", "AAA", None, "MKV"], "a store that says no length takes the id's"
    assert found.headers[:2] == ["a second", "a first"]
    assert found.notes == ["Proteins without a record of that id and length in --input, not saved as FASTA: 1 (c)."]
    with pytest.raises(ProtformerError, match="none of the 7 records"):
        read_sequences([fasta], store_of(random(1), ids=["z"]))


def test_sequences_of_aligned_and_truncated_stores(tmp_path):
    fasta = tmp_path / "in.fasta"
    fasta.write_text(">a\nM-KV.L\n")
    aligned = store_of(random(1), ids=["a"], lengths=[4], settings={"policies": {"aligned": True}})
    assert read_sequences([fasta], aligned).letters == ["M-KV.L"]
    policies = {"policies": {"on_long": "truncate", "max_length": 2}}
    truncated = store_of(random(1), ids=["a"], lengths=[2], settings=policies)
    assert read_sequences([fasta], truncated).letters == ["M-KV.L"]
    with pytest.raises(ProtformerError, match="by id and length"):
        read_sequences([fasta], store_of(random(1), ids=["a"], lengths=[2]))


def test_descriptions_of_a_store_that_has_none_come_from_the_fasta_file(tmp_path):
    fasta = tmp_path / "in.fasta"
    fasta.write_text(">p0 a kinase\nMKV\n")
    data = make_content(store_of(random(2)), fasta=[fasta]).data
    assert data["titles"] == ["a kinase", ""]
    assert data["fasta"] == {"headers": ["p0 a kinase", "p1"], "letters": ["MKV", None]}
