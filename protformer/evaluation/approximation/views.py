"""The pictures that the rows are made for."""

from dataclasses import replace
from typing import Any

from protformer.evaluation.analysis import View
from protformer.evaluation.approximation.estimators import is_signed
from protformer.evaluation.approximation.rows import FLOOR, Row
from protformer.evaluation.approximation.settings import Settings

_NAMES = {"synthetic": "random inputs", "real": "real activations"}
_ERROR = "relative error of the output"
_DISTANCE = "attention distance (total variation)"


def views_of(rows: list[Row], settings: Settings) -> list[View]:
    """For each source that has rows: error and distance against m; then what they hang on."""
    views = []
    sources = dict.fromkeys(row["source"] for row in rows)
    for source in sources:
        for projection in settings.projections:
            where = {"part": "features", "source": source, "projection": projection}
            for figure, label in (("output_error", _ERROR), ("distance", _DISTANCE)):
                title = f"{label[:1].upper()}{label[1:]}, {_NAMES[source]}, {projection} rows"
                views += _readable(_against_features(title, figure, label, where), source, settings)
    both = {"part": "features", "projection": "orthogonal"}
    if {"orthogonal", "iid"} <= set(settings.projections):
        title, label = "Orthogonal over iid rows (below 1: orthogonal is better)", "output error, orthogonal over iid"
        views.append(_against_features(title, "over_iid", label, both | {"signed": False}))
        if any(is_signed(method) for method in settings.methods):
            title = "Orthogonal over iid rows, estimates that can be negative"
            views.append(_against_features(title, "over_iid", label, both | {"signed": True}))
    views.append(
        View(
            title="Effective number of features",
            x="m",
            y="effective_features",
            x_label="random features m",
            y_label="effective features",
            panel="inputs",
            x_scale="log",
            y_scale="log",
            where={"part": "features", "projection": settings.projections[0]},
        )
    )
    for source in sources:
        of_source = f"{_NAMES[source]} (a fixed projection keeps the error of one draw)"
        view = View(
            title=f"Error of the mean over redrawn projections, {of_source}",
            x="draws",
            y="output_error",
            low="output_error_low",
            high="output_error_high",
            x_label=f"projections averaged over, m = {settings.redraw_features}",
            y_label=_ERROR,
            panel="inputs",
            x_scale="log",
            y_scale="log",
            where={"part": "redraw", "source": source},
        )
        views += _readable(view, source, settings)
    if "real" in sources:
        views += _of_layers(settings)
    return views


def _readable(view: View, source: str, settings: Settings) -> list[View]:
    """On real activations estimates that can be negative get a picture of their own: they err by a hundred times what
    the others do, whose lines would fall into one."""
    if source != "real" or not any(is_signed(method) for method in settings.methods):
        return [view]
    title = f"{view.title}, estimates that can be negative"
    return [
        replace(view, where=view.where | {"signed": False}),
        replace(view, title=title, where=view.where | {"signed": True}),
    ]


def _against_features(title: str, figure: str, label: str, where: dict[str, Any]) -> View:
    return View(
        title=title,
        x="m",
        y=figure,
        low=f"{figure}_low",
        high=f"{figure}_high",
        x_label="random features m",
        y_label=label,
        panel="inputs",
        x_scale="log",
        y_scale="log",
        where=where,
    )


def _of_layers(settings: Settings) -> list[View]:
    views = []
    if settings.redraw_features in settings.features and "orthogonal" in settings.projections:
        views.append(
            View(
                title=f"Attention distance by head, m = {settings.redraw_features}, orthogonal rows",
                x="head",
                y="distance",
                low="distance_low",
                high="distance_high",
                x_label="head",
                y_label=_DISTANCE,
                kind="bar",
                panel="inputs",
                where={"part": "heads"},
            )
        )
    views.append(
        View(
            title="Size of query-key pairs by layer (mean |z|^2)",
            x="layer",
            y="z2_mean",
            x_label="layer",
            y_label="mean |z|^2",
            kind="bar",
            where={
                "part": "features",
                "source": "real",
                "method": FLOOR,
                "projection": settings.projections[0],
                "m": settings.features[0],
            },
        )
    )
    return views
