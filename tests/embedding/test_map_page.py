"""The map in a real browser: points are drawn, search and picks work, picks are saved, nothing in a file runs."""

import csv
import json
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from headless import Page, chromium

from protformer.embedding.map import make_content, render
from protformer.embedding.stored import StoredEmbeddings

BROWSER = chromium()

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (apt-get install chromium)"),
]

EVIL_ID = "<img/src=x/onerror=console.error(1)>"
EVIL_TEXT = "</script><script>console.error(2)</script><b onmouseover=console.error(3)>bold & <!-- {{data}}"
COUNT = 60


def store(folder: Path) -> StoredEmbeddings:
    """Two clouds of proteins; the last one stands alone, far away, and has an evil name."""
    generator = np.random.default_rng(0)
    vectors = generator.normal(size=(COUNT, 6)).astype(np.float32)
    vectors[:30, 0] += 20
    vectors[-1] = [10, 30, 0, 0, 0, 0]
    ids = [f"P{number:05}" for number in range(COUNT - 1)] + [EVIL_ID]
    descriptions = [f"{name} {'kinase' if at % 6 == 0 else 'transporter'} of yeast" for at, name in enumerate(ids)]
    descriptions[-1] = f"{EVIL_ID} {EVIL_TEXT}"
    return StoredEmbeddings(
        path=folder / "proteins.h5",
        keys=[f"k{number}" for number in range(COUNT)],
        ids=ids,
        descriptions=descriptions,
        lengths=np.full(COUNT, 70, dtype=np.int64),
        vectors=vectors,
        output="mean",
        model_hash="0123456789abcdef",
        settings={},
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three pages: coloured by categories with sequences, by numbers, and plain."""
    pytest.importorskip("plotly")
    folder = tmp_path_factory.mktemp("map")
    proteins = store(folder)
    with (folder / "labels.tsv").open("w", newline="") as file:
        table = csv.writer(file, delimiter="\t")
        table.writerow(["id", "place<i>", "mass"])
        for at, name in enumerate(proteins.ids):
            table.writerow([name, EVIL_TEXT if at == COUNT - 1 else ["nucleus", "membrane"][at < 30], at * 1.5])
    with (folder / "proteins.fasta").open("w") as file:
        for at, line in enumerate(proteins.descriptions):
            file.write(f">{line}\n{'MKVL'[at % 4] * 70}\n")
    colours = folder / "labels.tsv"
    pages = {
        "categories": make_content(proteins, color=(colours, "place<i>"), fasta=[folder / "proteins.fasta"]),
        "numbers": make_content(proteins, color=(colours, "mass")),
        "plain": make_content(proteins),
    }
    for name, content in pages.items():
        (folder / f"{name}.html").write_text(render(content), encoding="utf-8")
    return folder


def opened(path: Path, profile: Path, *, width: int = 1280, dark: bool = False) -> Page:
    assert BROWSER is not None
    page = Page(BROWSER, profile, width=width, dark=dark)
    page.open(path)
    page.wait_for("document.documentElement.dataset.drawn === 'yes'")
    return page


@pytest.fixture
def page(folder: Path, tmp_path: Path) -> Iterator[Page]:
    with opened(folder / "categories.html", tmp_path / "profile") as page:
        yield page


def problems(page: Page) -> list[str]:
    """But for what Chromium says of a machine without a graphics card."""
    return [one for one in page.problems if "software WebGL" not in one and "GPU stall" not in one]


def place(page: Page, protein: int) -> tuple[float, float]:
    """Where a protein's point is in the window."""
    x, y = page.value(
        "(() => { const plot = document.getElementById('plot'); const frame = plot.getBoundingClientRect();"
        "const { xaxis, yaxis } = plot._fullLayout;"
        "const data = JSON.parse(document.getElementById('data').textContent);"
        f"return [frame.left + xaxis._offset + xaxis.l2p(data.x[{protein}]),"
        f"frame.top + yaxis._offset + yaxis.l2p(data.y[{protein}])]; }})()"
    )
    return x, y


def coloured_pixels(path: Path) -> int:
    """Of a picture: those that are neither grey nor white nor black."""
    from PIL import Image

    pixels = np.asarray(Image.open(path).convert("RGB")).astype(int)
    return int((pixels.max(axis=2) - pixels.min(axis=2) > 60).sum())


def picked(page: Page) -> int:
    return int(page.value("document.getElementById('count').textContent"))


def saved(page: Page, button: str, path: Path) -> str:
    page.save_into(path.parent)
    page.click(button)
    end = time.monotonic() + 60
    while not path.exists() and time.monotonic() < end:
        page.value("1")
        time.sleep(0.05)
    return path.read_text(encoding="utf-8")


def test_it_opens_offline_without_an_error_and_draws(page, folder, tmp_path):
    assert problems(page) == []
    assert page.requests == [(folder / "categories.html").as_uri()], "everything is in the page"
    assert page.value("document.querySelector('#plot').data.slice(0, 3).map((trace) => trace.x.length)") == [30, 29, 1]
    page.value("document.querySelector('aside').remove()")  # whose marks are coloured too
    page.picture(tmp_path / "drawn.png")
    with_points = coloured_pixels(tmp_path / "drawn.png")
    page.value("Plotly.restyle('plot', { visible: false }).then(() => true)")
    page.picture(tmp_path / "empty.png")
    assert with_points - coloured_pixels(tmp_path / "empty.png") > COUNT * 20, "each point is some pixels large"


def test_nothing_from_a_file_runs_or_makes_an_element(page):
    assert page.value("document.title") == "proteins.h5: 60 proteins"
    page.move(*place(page, COUNT - 1))
    page.wait_for("!document.getElementById('tip').hidden")
    told = page.value("[...document.querySelectorAll('#tip p')].map((line) => line.textContent)")
    assert told == [EVIL_ID, "70 residues", EVIL_TEXT, f"place<i>: {EVIL_TEXT}"]
    page.click_at(*place(page, COUNT - 1))
    page.wait_for("document.getElementById('count').textContent === '1'")
    assert EVIL_ID in page.value("document.getElementById('list').textContent")
    assert EVIL_TEXT in page.value("document.querySelector('.chips').textContent")
    assert page.value("document.images.length") == 0
    assert page.value("document.querySelectorAll('b, i, #list script, #tip script').length") == 0
    assert page.value("document.querySelectorAll('script').length") == 3, "plotly, data, program"
    assert problems(page) == []


def test_search_emphasises_and_counts(page):
    shown = "document.querySelector('#plot').data.at(-2).x.length"
    assert page.value(shown) == 0
    page.write("#search", "KINASE yeast")
    page.wait_for(f"{shown} === 10")
    assert page.value("document.getElementById('found').textContent") == "10 of 60 found"
    assert page.value("document.querySelector('#plot').data[0].marker.opacity") < 0.3, "the others are faint"
    page.write("#search", "p00007")
    page.wait_for(f"{shown} === 1")
    page.write("#search", "no such protein")
    page.wait_for(f"{shown} === 0")
    assert page.value("document.getElementById('found').textContent") == "0 of 60 found"
    page.write("#search", "kinase")
    page.wait_for(f"{shown} === 10")
    page.click("#take")
    assert picked(page) == 10
    assert problems(page) == []


def test_a_box_and_a_lasso_pick_and_picks_are_saved(page, tmp_path):
    places = [place(page, protein) for protein in range(30)]
    left, right = min(x for x, _ in places) - 6, max(x for x, _ in places) + 6
    top, bottom = min(y for _, y in places) - 6, max(y for _, y in places) + 6
    page.click("[data-mode=select]")
    page.drag([(left, top), ((left + right) / 2, (top + bottom) / 2), (right, bottom)])
    page.wait_for("document.getElementById('count').textContent === '30'")
    assert page.value("document.querySelector('#plot').data.at(-1).x.length") == 30, "each has a ring"
    x, y = place(page, COUNT - 1)
    page.click("[data-mode=lasso]")
    page.drag([(x - 15, y - 15), (x + 15, y - 15), (x + 15, y + 15), (x - 15, y + 15), (x - 15, y - 14)])
    page.wait_for("document.getElementById('count').textContent === '31'")

    header, *rows = saved(page, "#save-tsv", tmp_path / "proteins_picks.tsv").splitlines()
    assert header.split("\t") == ["id", "length", "description", "label", "PC1", "PC2"]
    cells = {row.split("\t")[0]: row.split("\t")[1:] for row in rows}
    assert set(cells) == {*(f"P{number:05}" for number in range(30)), EVIL_ID}
    assert cells[EVIL_ID][:3] == ["70", EVIL_TEXT, EVIL_TEXT]
    data = json.loads(page.value("document.getElementById('data').textContent"))
    assert [float(cell) for cell in cells["P00004"][3:]] == [data["x"][4], data["y"][4]]

    records = saved(page, "#save-fasta", tmp_path / "proteins_picks.fasta").split(">", 1)[1].split("\n>")
    assert len(records) == 31
    assert "P00002 transporter of yeast\n" + "V" * 60 + "\n" + "V" * 10 in records
    assert problems(page) == []


def test_a_click_picks_and_again_leaves(page):
    page.click_at(*place(page, COUNT - 1))
    page.wait_for("document.getElementById('count').textContent === '1'")
    page.click_at(*place(page, COUNT - 1))
    page.wait_for("document.getElementById('count').textContent === '0'")
    assert page.value("document.getElementById('save-tsv').disabled")


def test_the_legend_takes_a_category_out(page):
    visible = "document.querySelector('#plot').data.slice(0, 3).map((trace) => trace.visible)"
    page.click(".chip")
    page.wait_for(f"{visible}.filter((one) => one).length === 2")
    page.write("#search", "kinase")
    page.wait_for("document.getElementById('found').textContent === '10 of 60 found, 5 of them hidden'")
    page.click("#none")
    page.wait_for(f"{visible}.every((one) => one === false)")
    page.click("#all")
    page.wait_for(f"{visible}.every((one) => one === true)")
    assert problems(page) == []


def test_zoom_keeps_what_is_picked_and_found(page):
    width = "(({ range }) => range[1] - range[0])(document.querySelector('#plot')._fullLayout.xaxis)"
    before = page.value(width)
    page.click("#nearer")
    page.wait_for(f"{width} < {before} * 0.6")
    page.write("#search", "kinase")
    page.wait_for("document.querySelector('#plot').data.at(-2).x.length === 10")
    assert page.value(width) < before * 0.6, "a search does not move the map"
    page.click("#whole")
    page.wait_for(f"{width} > {before} * 0.9")


def test_numbers_have_a_colour_bar(folder, tmp_path):
    with opened(folder / "numbers.html", tmp_path) as page:
        assert page.value("document.querySelector('#legend h2').textContent") == "mass"
        ends = page.value("[...document.querySelectorAll('.ends span')].map((end) => Number(end.textContent))")
        assert ends == [1.5, 87]
        assert page.value("new Set(document.querySelector('#plot').data[0].marker.color).size") > 50
        assert page.value("document.querySelector('.bar').style.background").startswith("linear-gradient")
        assert "1st and 99th percentile" in page.value("document.querySelector('.notes').textContent")
        assert problems(page) == []


def test_without_sequences_there_is_no_button_and_a_line_says_why(folder, tmp_path):
    with opened(folder / "plain.html", tmp_path) as page:
        assert page.value("document.getElementById('save-fasta').offsetParent") is None
        assert "--input" in page.value("document.getElementById('no-fasta').innerText")
        assert page.value("document.getElementById('legend').hidden")


@pytest.mark.parametrize("name", ["categories", "numbers"])
def test_a_phone_shows_it_without_scrolling_sideways(folder, tmp_path, name):
    with opened(folder / f"{name}.html", tmp_path, width=375) as page:
        assert page.value("document.documentElement.scrollWidth") <= 375
        parts = "[...document.querySelectorAll('#plot, p, h1, h2, button, input, dd')]"
        assert max(page.value(f"{parts}.map((one) => one.getBoundingClientRect().right)")) <= 375
        page.value("document.querySelector('#plot').scrollIntoView({ behavior: 'instant' })")
        page.click_at(*place(page, COUNT - 1))
        page.wait_for("document.getElementById('count').textContent === '1'")
        assert page.value("document.getElementById('tip').getBoundingClientRect().right") <= 375
        assert problems(page) == []


def test_without_webgl_points_are_drawn_all_the_same(folder, tmp_path):
    """As on a remote desktop: the page asks, and draws SVG."""
    text = (folder / "categories.html").read_text(encoding="utf-8")
    asked = '.getContext("webgl")'
    assert asked in text
    (tmp_path / "svg.html").write_text(text.replace(asked, '.getContext("nothing")'), encoding="utf-8")
    with opened(tmp_path / "svg.html", tmp_path / "profile") as page:
        assert page.value("document.querySelectorAll('#plot .trace path.point').length") == COUNT
        page.click_at(*place(page, COUNT - 1))
        page.wait_for("document.getElementById('count').textContent === '1'")
        assert problems(page) == []


def test_the_dark_page_is_dark(folder, tmp_path):
    with opened(folder / "plain.html", tmp_path, dark=True) as page:
        lightness = "getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => a + +b, 0)"
        assert page.value(lightness) < 150
