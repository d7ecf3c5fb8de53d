"""The page in a real browser: curves are drawn, tables sort, methods toggle, a phone shows it, nothing is fetched."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from headless import Page, chromium
from planted_runs import Plan, write_run

from protformer.evaluation.analysis import Analysis, write_analysis
from protformer.evaluation.comparison import make_report
from protformer.evaluation.comparison.report import _page

BROWSER = chromium()

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(BROWSER is None, reason="no Chromium is installed (apt-get install chromium)"),
]

EVIL = "evil</script><img src=x onerror=console.error(1)>"


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("plotly")
    folder = tmp_path_factory.mktemp("page")
    shares = {"exact": 2.80, "uniform": 2.85, "performer-positive": 2.82, "linformer": 2.84, EVIL: 2.84}
    for number, (method, nll) in enumerate(shares.items()):
        write_run(folder / "sweep" / str(number), Plan(method=method, nll=nll, bins=True, name=EVIL))
    rows: list[dict[str, object]] = [{"part": "step", "length": n, "milliseconds": n / 8} for n in (1024, 16, 256)]
    rows[1]["milliseconds"] = None
    rows.append({"part": "slope", "exponent": 1.5})
    (folder / "cost").mkdir()
    write_analysis(
        Analysis(kind="cost", title="Cost", question="How long?", rows=rows, views=[], columns={}),
        folder / "cost",
    )
    page = folder / "index.html"
    page.write_text(_page(make_report([folder / "sweep", folder / "cost"])), encoding="utf-8")
    return page


def opened(report: Path, profile: Path, *, width: int, dark: bool = False) -> Page:
    assert BROWSER is not None
    page = Page(BROWSER, profile, width=width, dark=dark)
    page.open(report)
    return page


@pytest.fixture
def page(report: Path, tmp_path: Path) -> Iterator[Page]:
    with opened(report, tmp_path, width=1280) as page:
        yield page


def drawn(page: Page) -> None:
    """Every picture, by scrolling down to it as a reader does."""
    for number in range(page.value("document.querySelectorAll('.plot').length")):
        page.value(f"document.getElementById('plot-{number}').scrollIntoView({{behavior: 'instant'}})")
        page.wait_for(f"document.querySelector('#plot-{number} svg .trace') !== null")


def test_it_opens_offline_without_an_error_and_draws(page, report):
    drawn(page)
    assert page.problems == []
    assert page.requests == [report.resolve().as_uri()], "everything is in the page"
    lengths = page.value(
        "[...document.querySelectorAll('.plot path.js-line')].map((path) => path.getAttribute('d').length)"
    )
    assert sum(length > 20 for length in lengths) >= 15, "three axes of five methods"
    assert page.value("document.images.length") == 0, "names from runs make no elements"
    assert page.value("document.querySelector('.lead').innerText").startswith(
        "At 5.0 M residues, exact attention reaches"
    )


def test_a_click_sorts_by_value_and_again_the_other_way(page):
    headings = page.value(
        "[...document.querySelector('table.sortable').tHead.rows[0].cells].map((cell) => cell.innerText.trim())"
    )
    column = next(place for place, words in enumerate(headings) if words.startswith("perplexity at <mask>"))
    shown = (
        "[...document.querySelector('table.sortable').tBodies[0].rows]"
        f".map((row) => parseFloat(row.cells[{column}].innerText))"
    )
    before = page.value(shown)
    selector = f"table.sortable thead th:nth-child({column + 1}) button"
    page.click(selector)
    assert page.value(shown) == sorted(before) != before
    page.click(selector)
    assert page.value(shown) == sorted(before, reverse=True)
    assert page.value("document.querySelectorAll('th[aria-sort=descending]').length") == 1


def test_parts_of_an_experiment_have_tables_of_their_own_and_none_sorts_last(page):
    parts = "[...document.querySelectorAll('details')].filter((one) => one.innerText.startsWith('The rows: '))"
    page.value(f"{parts}.forEach((one) => {{ one.open = true; }})")
    heads = page.value(
        f"{parts}.map((one) => [...one.querySelectorAll('th[scope=col]')].map((th) => th.innerText.trim()))"
    )
    assert heads == [["part", "length", "milliseconds"], ["part", "exponent"]]
    lengths = f"[...{parts}[0].querySelectorAll('tbody tr')].map((row) => row.cells[1].innerText)"
    for column, orders in (("3", (["256", "1,024", "16"], ["1,024", "256", "16"])), ("2", (["16", "256", "1,024"],))):
        for order in orders:
            page.value(f"{parts}[0].querySelector('th:nth-child({column}) button').click()")
            assert page.value(lengths) == order


def test_a_method_is_taken_out_and_put_back(page):
    drawn(page)
    rows = "[...document.querySelectorAll('tr[data-label=linformer]')].filter((row) => row.offsetParent).length"
    lines = "document.querySelectorAll('.plot .trace').length"
    before = page.value(rows), page.value(lines)
    page.click(".chip[data-label=linformer]")
    page.wait_for(f"{lines} < {before[1]}")
    assert page.value(rows) == 0
    assert page.value("document.querySelector('.chip[data-label=linformer]').ariaPressed") == "false"
    page.click(".chip[data-label=linformer]")
    page.wait_for(f"{lines} === {before[1]}")
    assert page.value(rows) == before[0] > 0
    assert page.problems == []


@pytest.mark.parametrize("width", [375, 768])
def test_small_windows_show_it_without_scrolling_sideways(report, tmp_path, width):
    with opened(report, tmp_path, width=width) as page:
        drawn(page)
        page.value("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
        assert page.value("document.documentElement.scrollWidth") <= width
        parts = "[...document.querySelectorAll('.plot, p, h1, h2, h3, figcaption')]"
        assert max(page.value(f"{parts}.map((one) => one.getBoundingClientRect().right)")) <= width
        assert page.problems == []


def test_the_dark_page_is_dark(report, tmp_path):
    def lightness(page: Page) -> int:
        return page.value("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).reduce((a, b) => a + +b, 0)")

    with opened(report, tmp_path / "dark", width=1280, dark=True) as dark:
        drawn(dark)
        assert lightness(dark) < 150
        assert dark.value("getComputedStyle(document.querySelector('.plot .xtick text')).fill") != "rgb(27, 31, 36)"
    with opened(report, tmp_path / "light", width=1280) as light:
        assert lightness(light) > 700
