"""From figures of single samples to the rows of the experiment."""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from protformer.evaluation.approximation.errors import Figures
from protformer.evaluation.approximation.estimators import is_signed
from protformer.evaluation.approximation.intervals import mean_of, ratio_of
from protformer.evaluation.approximation.redraw import Redrawn
from protformer.evaluation.approximation.samples import Place

Row = dict[str, Any]

COLUMNS = {
    "part": "features: error against m; heads: the same by head, at redraw_features; redraw: error against draws",
    "source": "synthetic (random queries, keys and values) or real (those of a trained model on proteins)",
    "inputs": "which of them: their standard deviation, or the model's layer",
    "scale": "standard deviation of the entries of random queries and keys",
    "layer": "of the model, from 1",
    "head": "of the layer, from 1; null is the mean over heads",
    "method": "estimator, or uniform attention, the floor (repeated for each m and projection)",
    "signed": "whether its weights can be negative",
    "projection": "rows of the projection: orthogonal blocks, or iid",
    "m": "random features",
    "draws": "projections over which outputs are averaged",
    "samples": "sequences, each with projections of its own: intervals are over them (Student's t, 95 %)",
    "seed": "of inputs, rows and projections",
    "output_error": "|a - o| / |o|: outputs of the estimate and of softmax attention, Frobenius norms per head",
    "output_error_median": "its median over samples",
    "output_mse": "mean squared error of the output's entries, the paper's figure",
    "distance": "total variation between attention rows and softmax rows, 0 to 1 (signed estimates can exceed 1)",
    "over_uniform": "output error over that of uniform attention, geometric mean of pairs; from 1 on no better",
    "distance_over_uniform": "attention distance over that of uniform attention, likewise",
    "over_iid": "output error with orthogonal rows over that with iid rows on the same inputs, likewise",
    "effective_features": "Kish's effective number of features in the denominator",
    "negative_share": "of attention weights",
    "z2_mean": "|x + y|^2 of query-key pairs, both scaled by dim^-1/4: variances grow as its exponential",
    "z2_p95": "its 95th percentile",
    "luckiest": "5th percentile of the output error over single draws",
    "unluckiest": "95th percentile",
    "bias_share": "of one draw's mean squared error, the part that no redrawing averages out",
}  # fmt: skip
FLOOR = "uniform"


@dataclass
class Found:
    """Everything measured at one place; lists are by sample."""

    place: Place
    seed: int
    estimates: dict[tuple[str, str, int], list[Figures]] = field(default_factory=dict)
    """By method, projection and number of features."""
    uniform: list[Figures] = field(default_factory=list)
    z2: list[tuple[float, float]] = field(default_factory=list)
    redraws: dict[str, list[Redrawn]] = field(default_factory=dict)

    def rows(self, *, redraw_features: int) -> list[Row]:
        rows = []
        for (method, projection, m), figures in self.estimates.items():
            rows.append(self._row("features", f"performer-{method}", projection, m, figures))
            if projection == "orthogonal":
                iid = self.estimates.get((method, "iid", m))
                rows[-1] |= ratio_of(_errors(figures), _errors(iid)).columns("over_iid") if iid else {}
        for projection, m in dict.fromkeys((projection, m) for _, projection, m in self.estimates):
            rows.append(self._row("features", FLOOR, projection, m, self.uniform))
        return [*rows, *self._head_rows(redraw_features), *self._redraw_rows(redraw_features)]

    def _row(
        self, part: str, method: str, projection: str, m: int, figures: list[Figures], head: int | None = None
    ) -> Row:
        """The mean over samples, of one head (from 0) or of the heads' mean."""
        errors, floor = _errors(figures, head), _errors(self.uniform, head)
        distances, floor_distances = _by_sample(figures, "distance", head), _by_sample(self.uniform, "distance", head)
        return {
            **self._labels(part, method, projection, m),
            "head": None if head is None else head + 1,
            "samples": len(figures),
            **mean_of(errors).columns("output_error"),
            "output_error_median": float(np.median(errors)),
            **mean_of(_by_sample(figures, "output_mse", head)).columns("output_mse"),
            **mean_of(distances).columns("distance"),
            **ratio_of(errors, floor).columns("over_uniform"),
            **ratio_of(distances, floor_distances).columns("distance_over_uniform"),
            "effective_features": mean_of(_by_sample(figures, "effective_features", head)).mean,
            "negative_share": mean_of(_by_sample(figures, "negative_share", head)).mean,
            "z2_mean": float(np.mean([mean for mean, _ in self.z2])),
            "z2_p95": float(np.mean([p95 for _, p95 in self.z2])),
        }

    def _labels(self, part: str, method: str, projection: str, m: int) -> Row:
        place = self.place
        return {
            "part": part,
            "source": place.source,
            "inputs": place.inputs,
            "scale": place.scale,
            "layer": place.layer,
            "method": method,
            "signed": is_signed(method),
            "projection": projection,
            "m": m,
            "seed": self.seed,
        }

    def _head_rows(self, m: int) -> list[Row]:
        heads = len(self.uniform[0].distance)
        if heads == 1:
            return []
        chosen = {name: figures for (name, *rest), figures in self.estimates.items() if rest == ["orthogonal", m]}
        rows = []
        for head in range(heads):
            for name, figures in chosen.items():
                rows.append(self._row("heads", f"performer-{name}", "orthogonal", m, figures, head))
            if chosen:
                rows.append(self._row("heads", FLOOR, "orthogonal", m, self.uniform, head))
        return rows

    def _redraw_rows(self, m: int) -> list[Row]:
        rows = []
        sizes = 0
        for method, found in self.redraws.items():
            errors = np.stack([one.errors for one in found])
            sizes = errors.shape[1]
            squared = sum(one.squared_error for one in found)
            for level in range(sizes):
                row = {
                    **self._labels("redraw", f"performer-{method}", "orthogonal", m),
                    "draws": 2**level,
                    "samples": len(found),
                    **mean_of(errors[:, level]).columns("output_error"),
                }
                if level == 0:
                    row["luckiest"] = float(np.mean([one.luckiest for one in found]))
                    row["unluckiest"] = float(np.mean([one.unluckiest for one in found]))
                    row["bias_share"] = sum(one.bias_squared for one in found) / squared if squared else math.nan
                rows.append(row)
        for level in range(sizes):
            floor = mean_of(_errors(self.uniform)).columns("output_error")
            labels = self._labels("redraw", FLOOR, "orthogonal", m)
            rows.append({**labels, "draws": 2**level, "samples": len(self.uniform), **floor})
        return rows


def _by_sample(figures: list[Figures], name: str, head: int | None = None) -> np.ndarray:
    """A figure of each sample: the mean over its heads, or one head's."""
    values = [getattr(one, name) for one in figures]
    return np.array([one.mean() if head is None else one[head] for one in values])


def _errors(figures: list[Figures], head: int | None = None) -> np.ndarray:
    return _by_sample(figures, "output_error", head)
