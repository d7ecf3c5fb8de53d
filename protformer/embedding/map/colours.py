"""Colours that the colour-blind can tell apart, on light and on dark paper."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from protformer.embedding.map.labels import Labels

# Okabe and Ito's, without black; what comes after the first seven has the colours again and another shape.
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#D55E00", "#AA8800")
SHAPES = ("circle", "diamond-open")
MOST = len(COLOURS) * len(SHAPES)  # categories with a look of their own
OTHER, NOTHING = "#6E7781", "#A8AFB8"

# Viridis without its darkest and lightest ends, which vanish on dark and light paper.
SCALE = ("#46327E", "#365C8D", "#277F8E", "#1FA187", "#4AC16D", "#A0DA39")
_ENDS = 0.01  # share of the numbers beyond each end of the scale: one titin would make all others one colour


def groups(labels: Labels) -> list[dict[str, Any]]:
    """Categories as the page draws them, the largest first: name, colour, shape, and the members' positions.

    Beyond `MOST` the rarest are one group, "other"; without a value is the last group.
    """
    members: dict[str, list[int]] = {}
    for place, text in enumerate(labels.texts):
        if text is not None:
            members.setdefault(text, []).append(place)
    order = sorted(members, key=lambda name: (-len(members[name]), name))
    own = order if len(order) <= MOST else order[: MOST - 1]
    made = [
        {"name": name, "colour": COLOURS[at % len(COLOURS)], "shape": SHAPES[at // len(COLOURS)], "of": members[name]}
        for at, name in enumerate(own)
    ]
    if rest := order[len(own) :]:
        places = sorted(place for name in rest for place in members[name])
        made.append({"name": f"other ({len(rest):,} rarer)", "colour": OTHER, "shape": "square", "of": places})
    return [*made, *without_value(labels.texts)]


def without_value(texts: Sequence[str | None]) -> list[dict[str, Any]]:
    places = [place for place, text in enumerate(texts) if text is None]
    return [{"name": "no value", "colour": NOTHING, "shape": "circle", "behind": True, "of": places}] if places else []


def scale(labels: Labels) -> tuple[float, float, float, float]:
    """Of the numbers: where the colours begin and end, and the least and greatest number."""
    numbers = sorted(number for number in labels.numbers if number is not None)
    if not numbers:
        return 0.0, 1.0, 0.0, 1.0
    last = len(numbers) - 1
    low, high = numbers[round(last * _ENDS)], numbers[round(last * (1 - _ENDS))]
    if low == high:
        low, high = numbers[0], numbers[-1]
    return low, high, numbers[0], numbers[-1]


def category_note(labels: Labels) -> list[str]:
    """Which categories are drawn as one."""
    count = Counter(text for text in labels.texts if text is not None)
    if len(count) <= MOST:
        return []
    rest = len(count) - MOST + 1
    return [f"{labels.column} has {len(count):,} values: the {rest:,} rarest are drawn as one, and hover names them."]
