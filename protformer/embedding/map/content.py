"""What stands on the page, in plain values: sentences, facts, and columns with an entry for each protein."""

import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from protformer import __version__
from protformer.embedding.map.colours import NOTHING, SCALE, category_note, groups, scale, without_value
from protformer.embedding.map.labels import Labels, read_labels
from protformer.embedding.map.projection import Method, Projection, project
from protformer.embedding.map.sequences import Sequences, read_sequences
from protformer.embedding.naming import names, one_line, some, titles
from protformer.embedding.stored import StoredEmbeddings
from protformer.errors import ProtformerError

_PLAIN = "#0072B2"  # of proteins that nothing colours


@dataclass(frozen=True)
class Content:
    """`data` is what the page's program reads; the rest is text."""

    title: str
    lead: list[str]
    notes: list[str]
    """What the reader must know; on standard error too."""
    facts: list[tuple[str, str]]
    data: dict[str, Any]


def make_content(
    store: StoredEmbeddings,
    *,
    color: tuple[Path, str] | None = None,
    color_as: Any = None,
    fasta: Sequence[str | Path] = (),
    method: Method = "pca",
    seed: int = 0,
) -> Content:
    """Everything for the page of one store.

    Args:
        color: table and column to colour by.
        color_as: "category" or "number"; None: what the values look like.
        fasta: the files that the store was made of; with them, picks can be saved as FASTA.

    Raises:
        ProtformerError: an empty store, or whatever `project`, `read_labels` and `read_sequences` raise.
    """
    if not store.keys:
        raise ProtformerError(f"{store.path} holds no protein: there is nothing to draw.")
    finite = np.isfinite(store.vectors).all(axis=1)
    notes = []
    if not finite.all():
        named = names(store)
        left = some(named[place] for place in np.flatnonzero(~finite))
        notes.append(f"Not drawn, since their vectors are not finite: {left}.")
        store = _subset(store, np.flatnonzero(finite))
        if not store.keys:
            raise ProtformerError(f"{store.path}: no vector is finite, so there is nothing to draw.")
    projection = project(store.vectors, method, seed=seed)
    labels = read_labels(*color, store, kind=color_as) if color is not None else None
    sequences = read_sequences(fasta, store) if fasta else None
    notes += _about_points(store, projection)
    if labels is not None:
        notes += [*labels.notes, *(category_note(labels) if labels.kind == "category" else _scale_note(labels))]
    notes += sequences.notes if sequences is not None else []
    count = len(store.keys)
    return Content(
        title=f"{store.path.name}: {count:,} protein{'s' * (count != 1)}",
        lead=[_lead(store, projection, labels)],
        notes=notes,
        facts=_facts(store, projection, labels, color, fasta, seed),
        data=_data(store, projection, labels, sequences),
    )


def _subset(store: StoredEmbeddings, places: np.ndarray) -> StoredEmbeddings:
    def of(values: list[str]) -> list[str]:
        return [values[place] for place in places.tolist()]

    return StoredEmbeddings(
        store.path, of(store.keys), of(store.ids), of(store.descriptions), store.lengths[places],
        store.vectors[places], store.output, store.model_hash, store.settings,
    )  # fmt: skip


def _lead(store: StoredEmbeddings, projection: Projection, labels: Labels | None) -> str:
    how = "UMAP of cosine distances" if projection.method == "umap" else "the first two principal components"
    coloured = f", coloured by {labels.column} of {labels.source}" if labels is not None else ""
    near = "proteins that the model sees as alike lie near one another"
    if projection.method == "umap":
        near += "; distances between far groups, and the sizes of groups, mean little"
    elif projection.explained is not None and projection.explained[0] > 0:
        near += f"; the plane shows {sum(projection.explained):.1%} of the variance"
    return f"Each point is a protein, placed by {how} of its {store.output} vector{coloured}: {near}."


def _about_points(store: StoredEmbeddings, projection: Projection) -> list[str]:
    if len(store.keys) == 1:
        return ["One protein alone has no place relative to others: it stands at 0, 0."]
    if (store.vectors == store.vectors[0]).all():
        return ["All vectors are equal, so all points lie upon one another: does the model distinguish anything?"]
    if projection.method == "pca" and len(store.keys) == 2:
        return ["Two proteins always lie on a line: the first component is all there is."]
    return []


def _scale_note(labels: Labels) -> list[str]:
    low, high, least, greatest = scale(labels)
    if low == least and high == greatest:
        return []
    return [
        f"Colours of {labels.column} end at the 1st and 99th percentile, {low:g} and {high:g}; the numbers go from "
        f"{least:g} to {greatest:g}, and hover shows each."
    ]


def _facts(
    store: StoredEmbeddings,
    projection: Projection,
    labels: Labels | None,
    color: tuple[Path, str] | None,
    fasta: Sequence[str | Path],
    seed: int,
) -> list[tuple[str, str]]:
    """Names and values; files by name alone, and no clock, so that the same inputs give the same page."""
    words = ["protformer", "map", store.path.name, "--output", store.output, "--method", projection.method]
    words += ["--seed", str(seed)] if projection.method == "umap" else []
    words += ["--color", f"{color[0].name}:{color[1]}"] if color is not None and labels is not None else []
    words += ["--color-as", labels.kind] if labels is not None else []
    words += [word for path in fasta for word in ("--input", Path(path).name)]
    facts = [
        ("proteins", f"{len(store.keys):,}, of {int(store.lengths.min()):,} to {int(store.lengths.max()):,} residues"),
        ("vectors", f"{store.output}, {store.vectors.shape[1]:,} numbers each"),
        ("model hash", store.model_hash or "not known"),
    ]
    if projection.explained is not None:
        first, second = projection.explained
        facts.append(("explained variance", f"PC 1 {first:.1%}, PC 2 {second:.1%}"))
    return [*facts, ("made by", f"protformer {__version__}: {shlex.join(words)}")]


def _data(
    store: StoredEmbeddings, projection: Projection, labels: Labels | None, sequences: Sequences | None
) -> dict[str, Any]:
    headers = sequences.headers if sequences is not None else [None] * len(store.keys)
    described = titles(store)
    if sequences is not None and not any(store.descriptions):  # a store of other origin
        lines = [line or "" for line in headers]
        described = [one_line(line.partition(" ")[2]) for line in lines]
    fasta = None
    if sequences is not None:
        lines = [
            line or described_line or name
            for line, described_line, name in zip(headers, store.descriptions, names(store), strict=True)
        ]
        fasta = {"headers": [one_line(line) for line in lines], "letters": sequences.letters}
    return {
        "stem": store.path.stem,
        "axes": projection.axes,
        "columns": projection.columns,
        "ids": names(store),
        "titles": described,
        "lengths": store.lengths.tolist(),
        "x": _rounded(projection.coordinates[:, 0]),
        "y": _rounded(projection.coordinates[:, 1]),
        "label": None if labels is None else {"name": one_line(labels.column), "texts": labels.texts},
        "groups": _drawn(store, labels),
        "scale": _scale(labels),
        "fasta": fasta,
    }


def _drawn(store: StoredEmbeddings, labels: Labels | None) -> list[dict[str, Any]]:
    """What is drawn and toggled together; colour null: by the number."""
    everything = list(range(len(store.keys)))
    if labels is None:
        return [{"name": "all", "colour": _PLAIN, "shape": "circle", "of": everything}]
    if labels.kind == "category":
        return groups(labels)
    numbered = [place for place in everything if labels.numbers[place] is not None]
    with_value = [{"name": "with a value", "colour": None, "shape": "circle", "of": numbered}] if numbered else []
    return [*with_value, *without_value(labels.texts)]


def _scale(labels: Labels | None) -> dict[str, Any] | None:
    if labels is None or labels.kind != "number":
        return None
    low, high, *_ = scale(labels)
    return {"low": low, "high": high, "colours": SCALE, "nothing": NOTHING, "numbers": labels.numbers}


def _rounded(numbers: np.ndarray) -> list[float]:
    """Six digits: a picture has no more, and the page is half as large."""
    return [float(f"{number:.6g}") for number in numbers.tolist()]
