"""From folders to a report: reads, compares, and writes tables, pictures and the page."""

import csv
import io
import json
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from protformer.errors import ProtformerError
from protformer.evaluation.analysis import Analysis
from protformer.evaluation.comparison.answer import answer
from protformer.evaluation.comparison.charts import Chart, slug
from protformer.evaluation.comparison.comparability import split
from protformer.evaluation.comparison.comparison import Comparison, compare
from protformer.evaluation.comparison.drawing import draw
from protformer.evaluation.comparison.page import Section, as_json, render
from protformer.evaluation.comparison.paper import CITATION, PAPER
from protformer.evaluation.comparison.pictures import benchmark_analysis
from protformer.evaluation.comparison.reading import PICTURES, REPORT, Missing, read_inputs
from protformer.evaluation.comparison.sections import (
    analysis_section,
    comparison_section,
    method_section,
    paper_section,
)
from protformer.evaluation.comparison.tables import Table, markdown, safe_markdown
from protformer.evaluation.methods import in_order
from protformer.files import explaining, write_text

PAGE, TABLES, CONTENT, ROWS = "index.html", "comparison.md", REPORT, "comparison.csv"


@dataclass(frozen=True)
class Report:
    title: str
    comparisons: list[Comparison]
    analyses: list[tuple[str, Analysis]]
    missing: list[Missing]
    """Of all comparisons, and of groups without a run that ended."""
    left_out: list[Path] = field(default_factory=list)
    """Files of benchmarks' rows beside the runs, which were not given by name."""

    @property
    def sections(self) -> list[Section]:
        found = [comparison_section(comparison) for comparison in self.comparisons]
        found += [
            analysis_section(name, analysis, title=title)
            for (name, analysis), title in zip(self.analyses, self.analysis_titles, strict=True)
        ]
        perplexities = [one for one in self.comparisons if one.headline.is_perplexity]
        found += [paper_section(perplexities)] if perplexities else []
        return [*found, method_section()] if self.comparisons else found

    @property
    def analysis_titles(self) -> list[str]:
        """What each experiment is called: with its folder's name where another one is called the same."""
        counts = Counter(analysis.title for _, analysis in self.analyses)
        return [f"{a.title} ({name})" if counts[a.title] > 1 else a.title for name, a in self.analyses]

    @property
    def lead(self) -> list[str]:
        """The first screen: one comparison's whole answer, or the gist of each."""
        if len(self.comparisons) == 1:
            return answer(self.comparisons[0])
        if self.comparisons:
            return [f"{one.title}: {' '.join(answer(one)[:2])}" for one in self.comparisons[:4]]
        return list(dict.fromkeys(f"{analysis.title}: {analysis.question}" for _, analysis in self.analyses))[:4]


def make_report(
    sources: Sequence[Path | str], *, title: str | None = None, apart: bool = False, resamples: int = 2000
) -> Report:
    """Each sweep folder is a comparison, and so are all single runs together. With `apart`, runs that are not
    comparable become comparisons of their own; without, ProtformerError names them and what they differ in."""
    inputs = read_inputs(sources)
    groups = [part for group in inputs.groups for part in (split(group) if apart else [group])]
    names = _names([group.title for group in groups if group.runs])
    known = zip(names, (group for group in groups if group.runs), strict=True)
    comparisons = [compare(group, name=name, resamples=resamples) for name, group in known]
    analyses = [*inputs.analyses, *((name, benchmark_analysis(rows)) for name, rows in inputs.benchmarks)]
    missing = [member for group in groups for member in group.missing]
    names = _names([name for name, _ in analyses], taken=[Path(ROWS).stem])
    analyses = [(name, analysis) for name, (_, analysis) in zip(names, analyses, strict=True)]
    return Report(title or _title(comparisons, analyses), comparisons, analyses, missing, inputs.left_out)


def _title(comparisons: Sequence[Comparison], analyses: Sequence[tuple[str, Analysis]]) -> str:
    if len(comparisons) == 1:
        return f"{len(comparisons[0].arms)} methods, {len(comparisons[0].runs)} runs: {comparisons[0].title}"
    if comparisons:
        return f"{len(comparisons)} comparisons, {sum(len(one.runs) for one in comparisons)} runs"
    return analyses[0][1].title if len(analyses) == 1 else f"{len(analyses)} experiments"


def _names(titles: Sequence[str], taken: Sequence[str] = ()) -> list[str]:
    """Names that files can be told apart by, from one another and from those that are taken."""
    found: list[str] = []
    for title in titles:
        name, number = slug(title), 1
        while name in found or name in taken:
            number += 1
            name = f"{slug(title)}-{number}"
        found.append(name)
    return found


def check_output(folder: Path) -> None:
    """ProtformerError where a report in `folder` would replace what no report wrote."""
    if folder.exists() and not folder.is_dir():
        raise ProtformerError(f"{folder} is a file: give a folder for the report.")
    foreign = [name for name in (PAGE, TABLES, ROWS) if (folder / name).exists()]
    if foreign and not (folder / CONTENT).is_file():
        raise ProtformerError(
            f"{folder} has {' and '.join(foreign)}, but no {CONTENT}: a report would replace what no report wrote. Give"
            " another folder."
        )


def write_report(report: Report, folder: Path) -> list[Path]:
    """Everything into `folder`, which is made; what stands there of an earlier report is replaced. The written files,
    the page first. ProtformerError where matplotlib or plotly is not installed, and as in `check_output`."""
    check_output(folder)
    page = _page(report)  # first: it fails where plotly is not installed
    pictures = folder / PICTURES
    with explaining(folder):
        pictures.mkdir(parents=True, exist_ok=True)
        _remove_earlier(folder)
    sections = report.sections
    charts = [item for section in sections for item in section.content if isinstance(item, Chart)]
    drawn = [path for chart in charts for path in draw(chart, pictures)]
    tables = {f"{name}.csv": as_csv(analysis.rows) for name, analysis in report.analyses}
    content = _content(report)
    content["files"] = [*(path.relative_to(folder).as_posix() for path in drawn), *tables]
    texts = {
        PAGE: page,
        TABLES: _markdown(report, sections),
        ROWS: as_csv([row for one in report.comparisons for row in one.rows]),
    }
    if not report.comparisons:
        del texts[ROWS]
    texts |= tables
    # first: it says of a report that was cut short, too, whose files these are
    write_text(folder / CONTENT, json.dumps(json.loads(as_json(content)), indent=1) + "\n")
    for name, text in texts.items():
        write_text(folder / name, text)
    return [*(folder / name for name in (*texts, CONTENT)), *drawn]


def _page(report: Report) -> str:
    runs = [run for one in report.comparisons for run in one.runs]
    methods = in_order(run.method for run in runs)
    facts = [f"{len(runs)} runs of {len(methods)} methods"] if runs else []
    facts += [f"{len(report.missing)} missing: {', '.join(m.name for m in report.missing[:6])}"] * bool(report.missing)
    costs = [cost for one in report.comparisons for cost in one.costs]
    for key, word in (("commit", "commit"), ("device", "on"), ("torch", "PyTorch")):
        values = sorted({str(cost[key]) for cost in costs if cost[key]})
        facts += [f"{word} {', '.join(values[:3])}{' ...' * (len(values) > 3)}"] if values else []
    facts.append(f"report of {datetime.now(UTC):%Y-%m-%d}")
    sections = report.sections
    if len(report.comparisons) == 1:
        sections[0].sentences = []  # they are the lead
    return render(report.title, report.lead, facts, sections)


def _content(report: Report) -> dict[str, Any]:
    return {
        "title": report.title,
        "made": datetime.now(UTC).isoformat(timespec="seconds"),
        "comparisons": [
            {
                "title": one.title,
                "answer": answer(one),
                "headline": one.headline.column,
                "comparison": one.runs[0].comparison,
                "rows": one.rows,
                "curves": one.curves,
                "runs": one.costs,
                "knobs": [asdict(knob) for knob in one.knobs],
                "missing": [{"member": str(m.folder), "why": m.reason} for m in one.missing],
                "notes": one.notes,
            }
            for one in report.comparisons
        ],
        "analyses": [{"name": name, **asdict(analysis)} for name, analysis in report.analyses],
        "missing": [{"member": str(m.folder), "why": m.reason} for m in report.missing],
        "paper": {"source": CITATION, "rows": [row._asdict() for row in PAPER]},
    }


def _markdown(report: Report, sections: Sequence[Section]) -> str:
    lines = [f"# {safe_markdown(report.title)}", ""]
    if not report.comparisons:
        lines += [f"{safe_markdown(sentence)}\n" for sentence in report.lead]
    for section in sections:
        lines += [f"{'#' * section.level} {safe_markdown(section.title)}", ""]
        lines += [f"{safe_markdown(sentence)}\n" for sentence in section.sentences]
        for item in (*section.content, *section.folded):
            if isinstance(item, Chart):
                lines += [
                    f"![{safe_markdown(item.title)}]({PICTURES}/{item.name}.png)\n",
                    f"{safe_markdown(item.caption)}\n",
                ]
            elif isinstance(item, Table):
                lines.append(
                    markdown(item) if len(item.lines) <= 60 else f"{len(item.lines)} rows: see the .csv file.\n"
                )
            else:
                lines.append(f"{safe_markdown(item)}\n")
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)) + "\n"


def as_csv(rows: Sequence[dict[str, Any]]) -> str:
    """One line a row, all columns that any row has; values that are no scalars as JSON."""
    columns = list(dict.fromkeys(key for row in rows for key in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    for row in rows:
        writer.writerow({k: json.dumps(v) if isinstance(v, dict | list) else v for k, v in row.items()})
    return text.getvalue()


def _remove_earlier(folder: Path) -> None:
    """Pictures and tables that the report that stands here lists: one of other runs would leave some behind."""
    try:
        names = json.loads((folder / CONTENT).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return
    for name in map(str, names if isinstance(names, list) else []):
        place = {".png": folder / PICTURES, ".svg": folder / PICTURES, ".csv": folder}.get(Path(name).suffix)
        if place is not None:  # (the last part of the name: whatever it says, nothing outside is touched)
            (place / Path(name).name).unlink(missing_ok=True)
