"""How a method looks, in every picture and on every page: its colour, dashes and marker; and in which order they stand.

Colours are Okabe and Ito's (told apart by the colour-blind), with a few dark ones of Paul Tol's for what is rarely
drawn. Relatives share a colour and differ by dashes and marker, so a picture reads in grey too.
"""

import zlib
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

Dash = Literal["solid", "dash", "dot", "dashdot"]
Marker = Literal["circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "star", "pentagon"]

REFERENCE = "exact"
"""Differences are from this method."""
FLOOR = "uniform"
"""The method that attends to nothing: what attention is worth is the way from here to `REFERENCE`."""

FLOOR_COLOUR = "#8A6D00"
"""Of lines that are no attention: residue frequencies, the untrained model."""


@dataclass(frozen=True)
class Look:
    """A colour as #RRGGBB, and what tells it from a relative of the same colour."""

    colour: str
    dash: Dash = "solid"
    marker: Marker = "circle"


# In the order of tables and legends. An implementation of a benchmark is the method that its name says.
LOOKS = {
    "exact": Look("#009E73"),
    "sdpa": Look("#117733", "dash", "square"),
    "softmax": Look("#999933", "dot", "diamond"),
    "uniform": Look("#7A7A7A", "dash", "cross"),
    "performer-positive": Look("#0072B2"),
    "performer-optimal": Look("#56B4E9", "solid", "diamond"),
    "performer-dense": Look("#56B4E9", "dash", "triangle-up"),
    "performer-hyperbolic": Look("#0072B2", "dash", "triangle-down"),
    "performer-regularized": Look("#0072B2", "dashdot", "pentagon"),
    "performer-trigonometric": Look("#AA4499", "dash", "star"),
    "performer-relu": Look("#D55E00", "solid", "square"),
    "performer-pytorch": Look("#AA4499", "dot", "pentagon"),
    "performer-pytorch-relu": Look("#AA4499", "dashdot", "triangle-down"),
    "torch-geometric-relu": Look("#661100", "dot", "star"),
    "hybrid-positive": Look("#882255", "solid", "star"),
    "linformer": Look("#E69F00", "solid", "triangle-up"),
    "reformer": Look("#CC79A7", "solid", "triangle-down"),
    "sparse-strided": Look("#AA8800", "solid", "square"),
    "sparse-fixed": Look("#AA8800", "dash", "diamond"),
    "sparse-window": Look("#AA8800", "dot", "pentagon"),
    # floors that need no model: greys and browns, no two alike
    "unigram": Look("#B0B0B0", "dot", "circle"),
    "question alone": Look("#B0B0B0", "dash", "square"),
    "own composition": Look("#8A6D00", "dot", "diamond"),
    "flanks": Look("#8A6D00", "dash", "triangle-up"),
    "majority": Look("#B0B0B0", "dot", "square"),
    "mean": Look("#B0B0B0", "dot", "diamond"),
    "single residue": Look("#B0B0B0", "solid", "triangle-down"),
    "window": Look("#8A6D00", "dashdot", "pentagon"),
    "1-3-mers": Look("#661100", "dot", "cross"),
    "1-3-mers with termini": Look("#661100", "dash", "star"),
    "positions": Look("#8A6D00", "solid", "cross"),
}
_FAMILIES = {"hybrid": "hybrid-positive", "sparse": "sparse-strided", "torch-geometric": "torch-geometric-relu"}
_SPARE = ("#332288", "#44AA99", "#661100", "#999933", "#AA4499", "#882255")
_DASHES: tuple[Dash, ...] = ("solid", "dash", "dot", "dashdot")
_MARKERS: tuple[Marker, ...] = (
    "circle", "square", "diamond", "triangle-up", "triangle-down", "cross", "star", "pentagon",
)  # fmt: skip


def canonical(implementation: str) -> str:
    """What a benchmark's implementation is: `protformer-exact` is `exact`, `protformer-relu` is `performer-relu`; and a
    method without its settings: `linformer (length=4096)` is `linformer`."""
    implementation = implementation.partition(" (")[0]
    if implementation.startswith("protformer-"):
        own = implementation.removeprefix("protformer-")
        return own if own in LOOKS or own.partition("-")[0] in _FAMILIES else f"performer-{own}"
    return implementation


def look(method: str, variant: int = 0) -> Look:
    """The same for the same method everywhere, whatever else is drawn. `variant` counts the settings of one method in
    one picture: other dashes and marker, the same colour. A method that is not known gets a look by its name."""
    name = canonical(method)
    family = "window" if name.startswith("window of ") else _FAMILIES.get(name.partition("-")[0], "")
    known = LOOKS.get(name) or LOOKS.get(family)
    if known is None:
        number = zlib.crc32(name.encode())
        known = Look(_SPARE[number % 6], _DASHES[number // 6 % 4], _MARKERS[number // 24 % 8])
    if variant == 0:
        return known
    dash = _DASHES[(_DASHES.index(known.dash) + variant) % len(_DASHES)]
    return replace(known, dash=dash, marker=_MARKERS[(_MARKERS.index(known.marker) + variant) % len(_MARKERS)])


def in_order(methods: Iterable[str]) -> list[str]:
    """Each once, as tables list them: exact, uniform, Performers, hybrids, baselines, then others by name."""
    places = {name: place for place, name in enumerate(LOOKS)}
    return sorted(set(methods), key=lambda m: (places.get(canonical(m), len(places)), m))
