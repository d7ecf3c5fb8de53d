"""Rows: one dictionary a contender and case, with all that a table or a later comparison needs."""

import json
import os
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from protformer.errors import ProtformerError
from protformer.evaluation.attention_benchmark.cases import Case, Layout
from protformer.evaluation.attention_benchmark.contenders import Contender
from protformer.evaluation.attention_benchmark.timing import Samples, times_as_fast
from protformer.files import write_text

Row = dict[str, Any]
REFERENCE = "sdpa"


class Rate(NamedTuple):
    """A yardstick as it was timed among the contenders."""

    samples: Samples
    operations: float
    """Floating-point operations of one call."""

    @property
    def gflops(self) -> float:
        return self.operations / statistics.median(self.samples.seconds) / 1e9


class Measured(NamedTuple):
    """What was seen of one contender; no samples, and the reason, where it was left out."""

    samples: Samples | None = None
    reason: str | None = None
    layout: Layout | None = None
    peak_bytes: int | None = None
    square: Rate | None = None
    """A large matrix product, and the Performer's own shapes, timed in the same rounds."""
    shapes: Rate | None = None
    other_load: float | None = None
    """Cores that other programs kept busy meanwhile."""


def make_row(kind: str, contender: Contender, case: Case, measured: Measured, shared: Row) -> Row:
    """`ratio` and its like are null until `add_ratios` has seen the whole group."""
    seconds = measured.samples.seconds if measured.samples else []
    middle = statistics.median(seconds) if seconds else None
    quartiles = statistics.quantiles(seconds, method="inclusive") if len(seconds) > 1 else None
    return {
        "kind": kind,
        "implementation": contender.name,
        "map": contender.map_name,
        "features": contender.features,
        "length": case.total,
        "segments": len(case.lengths),
        "longest": case.longest,
        "heads": case.heads,
        "dim": case.dim,
        "dtype": case.dtype,
        "direction": case.direction,
        "causal": case.causal,
        "device": case.device,
        "layout": measured.layout,
        "engine": contender.engine(case) if seconds else None,
        "ms": 1e3 * middle if middle is not None else None,
        "ms_min": 1e3 * seconds[0] if seconds else None,
        "ms_max": 1e3 * seconds[-1] if seconds else None,
        "ms_spread": 1e3 * (quartiles[2] - quartiles[0]) if quartiles else None,
        "ms_quartiles": [1e3 * quartiles[0], 1e3 * quartiles[2]] if quartiles else None,
        "calls": len(seconds),
        "reason": measured.reason,
        "tokens_per_second": case.total / middle if middle else None,
        "reference": REFERENCE,
        "ratio": None,
        "ratios": {},
        "pack_overhead": None,
        "token_cost": None,
        "causal_overhead": None,
        "crossover": None,
        "peak_bytes": measured.peak_bytes,
        "io_bytes": case.io_bytes,
        "matmul_share": _share(contender.products(case), measured) if seconds else None,
        "matmul_gflops": measured.square.gflops if measured.square else None,
        "matmul_gflops_shapes": measured.shapes.gflops if measured.shapes else None,
        "other_load": measured.other_load,
        **shared,
    }


def _share(products: float, measured: Measured) -> float | None:
    """What the products alone would take at the rate of a large one, over what the call took."""
    if measured.square is None or measured.samples is None:
        return None
    return products / measured.square.operations * times_as_fast(measured.square.samples, measured.samples)


def label(row: Row) -> str:
    """The implementation with its features: what tells the rows of a group apart."""
    return f"{row['implementation']} {row['features'] or ''}".rstrip()


def add_ratios(rows: Sequence[Row], samples: Sequence[Samples | None]) -> None:
    """Within one group, of the same rounds: how many times as fast as each other contender on the same sequences.

    `ratios` is by `label`; `ratio` is that to the reference, null where either was not timed. `pack_overhead` is what a
    pack takes over what as many tokens take as one sequence; `token_cost` what a token costs over what it costs in the
    shortest sequence of the group; `causal_overhead` what causal attention takes over attention both ways.
    """
    shortest = min(row["length"] for row in rows)
    for row, this in zip(rows, samples, strict=True):
        for other, there in zip(rows, samples, strict=True):
            if this is None or there is None:
                continue
            same = {key for key in ("length", "segments", "causal") if row[key] == other[key]}
            if len(same) == 3:
                row["ratios"][label(other)] = times_as_fast(there, this)
            elif label(row) != label(other):
                continue
            elif same == {"length", "causal"} and other["segments"] == 1:
                row["pack_overhead"] = times_as_fast(this, there)
            elif same == {"length", "segments"} and row["causal"]:
                row["causal_overhead"] = times_as_fast(this, there)
            elif same == {"segments", "causal"} and other["length"] == shortest:
                row["token_cost"] = times_as_fast(this, there) * shortest / row["length"]
        row["ratio"] = row["ratios"].get(REFERENCE)


def check_rows_file(path: Path) -> None:
    """ProtformerError where rows could not be written there: before minutes of measuring, not after."""
    if path.is_dir():
        raise ProtformerError(f"{path} is a folder: give the name of a file in it, such as {path / 'rows.json'}.")
    if not path.parent.is_dir():
        raise ProtformerError(f"The folder {path.parent} does not exist: make it, or name a file elsewhere.")
    if not os.access(path.parent, os.W_OK):
        raise ProtformerError(f"The folder {path.parent} cannot be written to: name a file elsewhere.")


def write_rows(rows: Sequence[Row], path: Path) -> None:
    """A JSON array, or one row a line where the name ends in .jsonl; the file appears when it is whole."""
    check_rows_file(path)
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(row) + "\n" for row in rows)
    else:
        text = json.dumps(rows, indent=1) + "\n"
    write_text(path, text)


def read_rows(path: Path) -> list[Row]:
    """What `write_rows` has written. ProtformerError, with the file, where it is something else."""
    try:
        text = path.read_text(encoding="utf-8")
        rows = [json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl" else json.loads(text)
    except (OSError, ValueError) as error:
        raise ProtformerError(f"{path} cannot be read as rows of a benchmark: {error}.") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) and "kind" in row and "ms" in row for row in rows):
        raise ProtformerError(f"{path} does not hold rows of `protformer benchmark attention --json`.")
    return rows
