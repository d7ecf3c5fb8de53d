"""The rows of a finished run: its floors and models by evaluation set, from `metrics.json`."""

import json
import math
from pathlib import Path
from typing import Any

from protformer.errors import ProtformerError

ALWAYS = ("residues", "seconds", "cpu_seconds", "optimiser_steps", "peak_memory_bytes")
"""Numbers that every run has; others may be null, where nothing was measured."""


def read_metrics(run: Path | str) -> dict[str, Any]:
    """The content of a run folder's `metrics.json`; `ProtformerError` where there is none."""
    file = Path(run) / "metrics.json"
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ProtformerError(f"{run} holds no metrics.json: give the folder of a run that ended.") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ProtformerError(f"{file} is not JSON ({error}).") from error
    if not isinstance(content, dict) or "sets" not in content:
        raise ProtformerError(f"{file} is no metrics.json of protformer: it names no evaluation sets.")
    wrong = _what_is_wrong(content)
    if wrong:
        raise ProtformerError(f"{file} is damaged ({wrong}): restore it, or remove it and run this run again.")
    return content


def trained_figures(metrics: dict[str, Any], name: str) -> dict[str, float | None]:
    """The trained model's figures on an evaluation set; empty where it was not scored."""
    rows = metrics["sets"].get(name, {}).get("rows", [])
    return next((row["figures"] for row in rows if row["name"] == "trained"), {})


def _what_is_wrong(content: dict[str, Any]) -> str | None:
    """The first part that is not of the kind that training writes."""
    sets = content["sets"]
    if not isinstance(sets, dict):
        return "sets"
    for name, found in sets.items():
        if not isinstance(found, dict):
            return f"sets.{name}"
        by_bin = found.get("by_bin", {})
        if not isinstance(by_bin, dict) or not all(isinstance(part, dict) for part in by_bin.values()):
            return f"sets.{name}.by_bin"
        if not _is_number(found.get("sequences", 0)):
            return f"sets.{name}.sequences"
        for part in (found, *by_bin.values()):
            rows = part.get("rows")
            if not isinstance(rows, list) or not all(_is_row(row) for row in rows):
                return f"sets.{name}.rows"
    for key in ("comparison", "training", "measured"):
        if not isinstance(content.get(key, {}), dict):
            return key
    comparison = content.get("comparison", {})
    for key in ("data", "task", "budget"):
        if not isinstance(comparison.get(key, {}), dict):
            return f"comparison.{key}"
    for name, data in comparison.get("data", {}).items():
        if not isinstance(data, dict):
            return f"comparison.data.{name}"
        counts = (data.get("sequences", 0), data.get("residues", 0), data.get("sampled_from") or 0)  # (null: all of it)
        if not all(map(_is_number, counts)):
            return f"comparison.data.{name}"
    if not isinstance(content.get("seed", 0), int):
        return "seed"
    overrides = content.get("overrides", [])
    if not isinstance(overrides, list) or not all(isinstance(one, str) for one in overrides):
        return "overrides"
    if not isinstance(content.get("measured", {}).get("hardware", {}), dict):
        return "measured.hardware"
    numbers = {
        "": {key: content.get(key) for key in ("parameters", "parameters_of_attention")},
        "comparison.budget.": {"residues": comparison.get("budget", {}).get("residues", 0)},
        "training.": content.get("training", {}),
    }
    for place, found in numbers.items():
        for key, value in found.items():
            if not (_is_number(value) or (value is None and key not in ALWAYS)):
                return f"{place}{key}"
    curve = content.get("curve", [])
    if not isinstance(curve, list) or not all(_is_point(point) for point in curve):
        return "curve"
    return None


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_figure(value: Any) -> bool:
    """One that could not be computed is null (JSON has no NaN, though Python writes and reads it)."""
    return value is None or (isinstance(value, int | float) and not isinstance(value, bool))


def _is_row(row: Any) -> bool:
    """A model or floor with its figures."""
    if not isinstance(row, dict) or not isinstance(row.get("name"), str) or not isinstance(row.get("figures"), dict):
        return False
    return all(map(_is_figure, row["figures"].values()))


def _is_point(point: Any) -> bool:
    return (
        isinstance(point, dict)
        and isinstance(point.get("figures"), dict)
        and all(map(_is_figure, point["figures"].values()))
        and (point.get("cpu_seconds") is None or _is_number(point["cpu_seconds"]))
        and all(_is_number(point.get(key)) for key in ("step", "residues", "seconds"))
    )
