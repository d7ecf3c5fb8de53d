"""What an experiment leaves to read: flat rows, and which pictures they are made for.

An experiment (`python train.py experiment=NAME`) writes `rows.json` into its run folder. `protformer compare` reads it
and knows nothing of the experiment: tables come from the rows, pictures from the views.
"""

import json
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np

from protformer.attention.naming import method_name
from protformer.errors import ProtformerError
from protformer.files import write_text
from protformer.surroundings import hardware, surroundings, versions

__all__ = ["Analysis", "View", "method_name", "read_analysis", "write_analysis"]

Row = dict[str, Any]
Scale = Literal["linear", "log"]


@dataclass(frozen=True, kw_only=True)
class View:
    """One picture of the rows. `x`, `y`, `low`, `high`, `line` and `panel` name columns.

    Rows that share `line` make one line, or one colour of bars; `panel` makes a picture for each of its values. Rows
    without a value of `y` take no part. `where` picks rows by the values of columns.
    """

    title: str
    x: str
    y: str
    x_label: str
    y_label: str
    kind: Literal["line", "bar", "scatter"] = "line"
    line: str = "method"
    low: str | None = None
    high: str | None = None
    panel: str | None = None
    x_scale: Scale = "linear"
    y_scale: Scale = "linear"
    where: Row = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Analysis:
    """An experiment's result. `rows` are flat and share their columns; `columns` says what each is, with its unit."""

    kind: str
    title: str
    question: str
    rows: list[Row]
    views: list[View]
    columns: dict[str, str]
    notes: list[str] = field(default_factory=list)
    """What the rows do not say by themselves: floors, limits of the experiment, what differs from the paper."""
    settings: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    """Machine, versions, commit and date; filled in by `write_analysis`."""


def write_analysis(analysis: Analysis, folder: Path | str) -> Path:
    """`rows.json` in `folder`, whole; NaN and infinities become null."""
    path = Path(folder) / "rows.json"
    content = asdict(analysis)
    if not content["measured"]:
        content["measured"] = {**surroundings(), "hardware": hardware("cpu"), "versions": versions()}
    write_text(path, json.dumps(_plain(content), indent=1, allow_nan=False) + "\n")
    return path


def read_analysis(path: Path | str) -> Analysis:
    """What `write_analysis` has written; ProtformerError, with the file, where it is something else."""
    file = Path(path)
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ProtformerError(f"{file} cannot be read as rows of an experiment: {error}.") from error
    wrong = _what_is_wrong(content)
    if wrong is not None:
        raise ProtformerError(
            f"{file} does not hold rows of an experiment (python train.py experiment=NAME): {wrong}. Where it has been"
            " edited, restore it, or run the experiment again."
        )
    return Analysis(**{**content, "views": [View(**view) for view in content["views"]]})


KINDS: dict[str, type] = {
    "rows": list,
    "views": list,
    "columns": dict,
    "notes": list,
    "settings": dict,
    "measured": dict,
}
"""Of an analysis; its other parts are text."""


def _what_is_wrong(content: Any) -> str | None:
    """The first part that is not of the kind that `write_analysis` writes."""
    names = {f.name for f in fields(Analysis)}
    if not isinstance(content, dict) or set(content) != names:
        return f"it has not the parts {', '.join(sorted(names))}"
    for name in sorted(names):
        if not isinstance(content[name], KINDS.get(name, str)):
            return f"{name} is no {KINDS.get(name, str).__name__}"
    if not content["rows"] or not all(isinstance(row, dict) for row in content["rows"]):
        return "rows are not all records, or there are none"
    if not all(isinstance(text, str) for text in (*content["notes"], *content["columns"].values())):
        return "notes and columns are not all text"
    return next((told for view in content["views"] if (told := _wrong_view(view, content["rows"])) is not None), None)


def _wrong_view(view: Any, rows: list[Row]) -> str | None:
    if not isinstance(view, dict) or set(view) != {f.name for f in fields(View)}:
        return "a view has not the parts of one"
    texts = ("title", "x", "y", "x_label", "y_label", "line")
    if not all(isinstance(view[key], str) for key in texts) or not isinstance(view["where"], dict):
        return "a view has parts that are no text"
    for key in ("y", "low", "high"):
        if any(isinstance(row.get(view[key]), str | list | dict) for row in rows if view[key] is not None):
            return f"the column {view[key]!r} of the view {view['title']!r} is not all numbers"
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    if isinstance(value, np.ndarray | np.generic):
        return _plain(value.tolist())
    if isinstance(value, float):
        return value if np.isfinite(value) else None
    return value
