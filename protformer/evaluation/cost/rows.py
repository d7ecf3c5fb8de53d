"""Flat rows of the experiment, and the pictures they are made for."""

from collections.abc import Sequence
from statistics import median, quantiles
from typing import Any

from protformer.evaluation.analysis import Row, View
from protformer.evaluation.attention_benchmark.timing import Samples, times_as_fast
from protformer.evaluation.cost.slopes import fit_slope
from protformer.evaluation.methods import canonical

PARTS = {
    "attention_forward": "one attention, forward",
    "attention_forward_backward": "one attention, forward and backward",
    "step": "a whole training step",
}
COLUMNS = {
    "part": "; ".join(f"{name}: {text}" for name, text in PARTS.items()) + "; slope: exponents fitted to those",
    "method": "attention",
    "length": "tokens of the one sequence, <cls> and <eos> included",
    "seconds": "median over calls",
    "seconds_low": "first quartile of the calls",
    "seconds_high": "third quartile of the calls",
    "calls": "that were timed",
    "residues_per_second": "tokens over the median",
    "times_as_fast_as_exact": "exact attention's time over this one's, median over rounds that both were called in",
    "peak_bytes": "at the peak of one call: beside inputs and outputs (attention), beside weights and optimiser (step)",
    "parameters": "of the whole model (step)",
    "reason": "why it was not timed",
    "other_load": "cores that other programs kept busy meanwhile",
    "of": "slope: which part",
    "quantity": "slope: seconds or peak_bytes",
    "slope": "exponent of the cost in length, least squares on logarithms over the longest half of the lengths",
    "slope_error": "its standard error",
    "from_length": "slope: shortest length of the fit",
    "to_length": "slope: longest length of the fit",
    "points": "slope: lengths in the fit",
}


def attention_row(row: dict[str, Any]) -> Row:
    """From a row of the attention benchmark."""
    quartiles = row["ms_quartiles"]
    return _row(
        part=f"attention_{row['direction']}",
        method=canonical(row["implementation"]),
        length=row["length"],
        seconds=None if row["ms"] is None else row["ms"] / 1e3,
        seconds_low=quartiles and quartiles[0] / 1e3,
        seconds_high=quartiles and quartiles[1] / 1e3,
        calls=row["calls"],
        residues_per_second=row["tokens_per_second"],
        times_as_fast_as_exact=row["ratios"].get("protformer-exact"),
        peak_bytes=row["peak_bytes"],
        reason=row["reason"],
        other_load=row["other_load"],
    )


def step_row(
    method: str,
    length: int,
    samples: Samples | None,
    exact: Samples | None,
    *,
    reason: str | None = None,
    parameters: int | None = None,
    other_load: float | None = None,
) -> Row:
    """Of a training step; without samples it was left out for `reason`."""
    if samples is None:
        return _row(part="step", method=method, length=length, reason=reason)
    seconds = samples.seconds
    quarters = quantiles(seconds, method="inclusive") if len(seconds) > 1 else None
    return _row(
        part="step",
        method=method,
        length=length,
        seconds=median(seconds),
        seconds_low=None if quarters is None else quarters[0],
        seconds_high=None if quarters is None else quarters[2],
        calls=len(seconds),
        residues_per_second=length / median(seconds),
        times_as_fast_as_exact=None if exact is None else times_as_fast(exact, samples),
        parameters=parameters,
        other_load=other_load,
    )


def slope_rows(rows: Sequence[Row]) -> list[Row]:
    """An exponent for each part, method and cost that was seen at three lengths or more."""
    found = []
    for part, method in dict.fromkeys((row["part"], row["method"]) for row in rows):
        of_both = [row for row in rows if (row["part"], row["method"]) == (part, method)]
        for quantity in ("seconds", "peak_bytes"):
            seen = [row for row in of_both if row[quantity]]
            fitted = fit_slope([row["length"] for row in seen], [row[quantity] for row in seen])
            if fitted is not None:
                slope = {"slope": fitted.slope, "slope_error": fitted.error, "points": fitted.points}
                ends = {"from_length": fitted.shortest, "to_length": fitted.longest}
                found.append(_row(part="slope", method=method, of=part, quantity=quantity, **slope, **ends))
    return found


def _row(**known: Any) -> Row:
    return {**dict.fromkeys(COLUMNS), **known}


def views() -> list[View]:
    y_labels = {
        "seconds": "seconds a call (median and quartiles)",
        "peak_bytes": "bytes at the peak of a call",
        "residues_per_second": "residues a second",
    }
    return [
        View(
            title=f"{title}: {quantity.replace('_', ' ')}",
            x="length",
            y=quantity,
            low="seconds_low" if quantity == "seconds" else None,
            high="seconds_high" if quantity == "seconds" else None,
            x_label="length of the sequence (tokens)",
            y_label=y_label,
            x_scale="log",
            y_scale="log",
            where={"part": part},
        )
        for part, title in PARTS.items()
        for quantity, y_label in y_labels.items()
    ]
