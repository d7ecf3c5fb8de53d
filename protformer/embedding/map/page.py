"""The page as one file that opens without a network: data, style, program and plotly are in it.

Names, descriptions and labels come from files that anybody may have written. In text they are escaped as HTML; the
program's data are JSON without `<`, `>` and `&`, so that nothing in them ends a script; and the program puts them on
the page as text (`textContent`), never as HTML, and gives plotly numbers alone.
"""

import html
import importlib.resources
import json
import re
from typing import Any

from protformer.embedding.map.content import Content
from protformer.errors import ProtformerError


def render(content: Content) -> str:
    """The page. ProtformerError where plotly is not installed."""
    places = {
        "title": html.escape(content.title),
        "lead": _paragraphs(content.lead),
        "notes": _paragraphs(content.notes),
        "facts": "\n".join(
            f"<dt>{html.escape(name)}</dt><dd>{html.escape(value)}</dd>" for name, value in content.facts
        ),
        "style": _file("page.css"),
        "program": _file("page.js"),
        "plotly": _plotly(),
        "data": as_json(content.data),
    }
    # in one pass, so that what a value holds is never taken for a place
    page = re.sub(r"\{\{(\w+)\}\}", lambda match: places[match[1]], _file("page.html"))
    # half of a pair, as from bytes that were no text, cannot be written as UTF-8
    return re.sub("[\ud800-\udfff]", "\N{REPLACEMENT CHARACTER}", page)


def as_json(value: Any) -> str:
    """JSON that may stand inside a script element, whatever its strings hold."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for letter in "<>&\u2028\u2029":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return text


def _paragraphs(sentences: list[str]) -> str:
    return "\n".join(f"<p>{html.escape(sentence)}</p>" for sentence in sentences)


def _file(name: str) -> str:
    return importlib.resources.files("protformer.embedding.map").joinpath(name).read_text(encoding="utf-8")


def _plotly() -> str:
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise ProtformerError("The map needs plotly: pip install 'protformer[map]'.") from error
    return get_plotlyjs()
