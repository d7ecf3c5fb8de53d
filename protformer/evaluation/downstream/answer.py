"""What the rows of the downstream tasks say, in sentences."""

from collections.abc import Sequence
from math import isfinite

from protformer.evaluation.analysis import Row


def answer(rows: Sequence[Row]) -> list[str]:
    """One sentence or two for each task, evaluation set (but valid) and way of training: figures, differences from
    exact attention, and whether anything passes the best floor."""
    groups: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        if row["set"] != "valid" and row["mode"] not in ("floor", "untrained") and row["value"] is not None:
            groups.setdefault((row["task"], row["set"], row["mode"]), []).append(row)
    return [_told(task, name, mode, of_group) for (task, name, mode), of_group in groups.items()]


def _told(task: str, name: str, mode: str, rows: list[Row]) -> str:
    where = f"{task.replace('_', ' ')}, {name}, {'from scratch' if mode == 'scratch' else mode.replace('_', '-')}"
    figures = "; ".join(f"{row['arm']} {_with_interval(row, 'value')}{_apart(row)}" for row in rows)
    floor = rows[0]["best_floor"]
    if floor is None:
        return f"{where}: {figures}."
    above = [row["arm"] for row in rows if (row["value"] if _low(row) is None else _low(row)) > floor]
    level = [row["arm"] for row in rows if _low(row) is not None and row["value_low"] <= floor <= row["value_high"]]
    verdicts = [f"{', '.join(above) or 'none'} above it"] + [f"{', '.join(level)} level with it"] * bool(level)
    shown = _number(floor, rows[0]["metric"])
    return f"{where}: {figures}. Best floor {shown} ({rows[0]['best_floor_name']}): {'; '.join(verdicts)}."


def _apart(row: Row) -> str:
    return "" if row["minus_exact"] is None else f", {_with_interval(row, 'minus_exact')} from exact attention"


def _with_interval(row: Row, column: str) -> str:
    low, high = row[f"{column}_low"], row[f"{column}_high"]
    signed, metric = column == "minus_exact", row["metric"]
    text = _number(row[column], metric, signed=signed)
    if low is None or high is None or not isfinite(low) or not isfinite(high):
        return text
    return f"{text} ({_bare(low, metric, signed)} to {_bare(high, metric, signed)})"


def _number(value: float, metric: str, *, signed: bool = False) -> str:
    """With its unit: an accuracy in percent, a difference of accuracies in points."""
    unit = (" points" if signed else " %") if metric == "accuracy" else ""
    return f"{_bare(value, metric, signed)}{unit}"


def _bare(value: float, metric: str, signed: bool) -> str:
    sign = "+" if signed else ""
    return f"{100 * value:{sign}.1f}" if metric == "accuracy" else f"{value:{sign}.3f}"


def _low(row: Row) -> float | None:
    low = row["value_low"]
    return low if low is not None and isfinite(low) else None
