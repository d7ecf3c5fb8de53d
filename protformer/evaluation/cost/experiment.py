"""Experiment 1: time, memory and residues a second of every attention and of a training step with it, against length.

The methods take turns in rounds (`attention_benchmark.timing`), so that what else the machine does hits all alike. One
whose call would take longer than the limit is left out at that length, with the reason in its row.
"""

import logging
import math
from typing import Any

import torch
from rich.console import Console
from rich.table import Table

from protformer.errors import ProtformerError
from protformer.evaluation.analysis import Analysis, Row
from protformer.evaluation.attention_benchmark.cases import DIRECTIONS, DTYPE_NAMES, DTYPES, Case
from protformer.evaluation.attention_benchmark.group import measure_group
from protformer.evaluation.attention_benchmark.timing import seconds_of, take_turns
from protformer.evaluation.cost.methods import Timed, contenders
from protformer.evaluation.cost.rows import COLUMNS, PARTS, attention_row, slope_rows, step_row, views
from protformer.evaluation.cost.step import Step, StepCase, step_peak_bytes
from protformer.evaluation.log_analysis import conclude
from protformer.surroundings import OtherPrograms, hardware, surroundings, versions
from protformer.training.settings import JobSettings

WIDTH = 132  # of tables where the output is no terminal
METHOD_WIDTH = 18  # where it is a narrow one: three names that begin with "performer-" have to be told apart

log = logging.getLogger(__name__)


def run(settings: JobSettings) -> dict[str, Any]:
    """`python train.py experiment=cost`: rows.json in the run folder."""
    chosen = settings.config["cost"]
    methods = contenders(chosen["methods"], int(chosen["features"]))
    lengths = sorted(int(length) for length in chosen["lengths"])
    dtype, device = _checked(chosen, lengths)
    shape = tuple(settings.config["model"].items())
    limit, memory = float(chosen["limit"]), bool(chosen["memory"])
    rows: list[Row] = []
    if "attention" in chosen["parts"]:
        rows += measure_attention(methods, lengths, shape, dtype=dtype, device=device, limit=limit, memory=memory)
    if "step" in chosen["parts"]:
        cases = [StepCase(length, shape, dtype, device, int(settings.config["seed"])) for length in lengths]
        rows += measure_steps(methods, cases, limit=limit, memory=memory)
    slopes = slope_rows(rows)
    model = settings.config["model"]
    analysis = Analysis(
        kind="cost",
        title="What attention costs",
        question="How do time, memory and residues a second go with the length of a sequence?",
        rows=rows + slopes,
        views=views(),
        columns=COLUMNS,
        notes=[
            f"Limit: {limit:g} seconds a call; a method is left out at a length where a call would take longer.",
            f"{dtype}, {torch.get_num_threads()} threads, {device}; one sequence, {model['num_heads']} heads of"
            f" {model['hidden_size'] // model['num_heads']}; {chosen['features']} random features.",
            "A training step is forward, backward and AdamW of masked-residue modeling, without clipping, logging,"
            " making the batch, or drawing projections anew.",
            "Slopes are exponents over the longest half of the lengths that were timed; those differ between methods"
            " where the limit ended some early.",
            "sparse-strided and sparse-fixed have strides of the root of the length; linformer has projections of each"
            " length it is timed at (their gradients and AdamW's state are part of its step).",
        ],
        settings={**chosen, "model": model, "seed": settings.config["seed"]},
        measured={**surroundings(), "hardware": hardware(device), "versions": versions()},
    )
    conclude(analysis, settings, lambda: _print(rows, slopes))
    return {"rows": len(rows)}


def _checked(chosen: dict[str, Any], lengths: list[int]) -> tuple[str, str]:
    dtype = DTYPE_NAMES.get(chosen["dtype"], chosen["dtype"])
    if dtype not in DTYPES:
        raise ProtformerError(f"cost.dtype={chosen['dtype']} is not known: write float32 or bfloat16.")
    if chosen["device"] not in ("cpu", "cuda") or (chosen["device"] == "cuda" and not torch.cuda.is_available()):
        raise ProtformerError(f"cost.device={chosen['device']}: write cpu, or cuda where PyTorch sees a CUDA GPU.")
    if not lengths or lengths[0] < 64:
        raise ProtformerError("cost.lengths are numbers of tokens from 64, such as cost.lengths=[256,1024,4096].")
    for key, what in (("limit", "seconds a call"), ("features", "random features")):
        if not chosen[key] > 0:
            raise ProtformerError(f"cost.{key}={chosen[key]} is no number of {what}: it must be above 0.")
    unknown = sorted(set(chosen["parts"]) - {"attention", "step"})
    if unknown or not chosen["parts"]:
        raise ProtformerError("cost.parts is attention, step, or both: write cost.parts=[attention,step].")
    return dtype, chosen["device"]


def measure_attention(
    methods: dict[str, Timed],
    lengths: list[int],
    shape: tuple[tuple[str, Any], ...],
    *,
    dtype: str,
    device: str,
    limit: float,
    memory: bool,
) -> list[Row]:
    """One attention of the model's heads, both directions, by the benchmark of attentions."""
    model = dict(shape)
    heads = model["num_heads"]
    rows = []
    for length in lengths:
        for direction in DIRECTIONS:
            backward = direction == "forward_backward"
            case = Case((length,), heads, model["hidden_size"] // heads, dtype, backward, False, device)
            log.info("one attention, %s, %s tokens", direction.replace("_", " and "), f"{length:,}")
            entries = [(timed, case) for timed in methods.values()]
            options: dict[str, Any] = {"limit": limit, "memory": memory, "yardsticks": False}
            rows += measure_group("single", entries, {}, say=log.debug, **options)
    return [attention_row(row) for row in rows]


def measure_steps(methods: dict[str, Timed], cases: list[StepCase], *, limit: float, memory: bool) -> list[Row]:
    """A training step, from the shortest sequence to the longest: what it took at the lengths before foretells the
    next, and above the limit a method is left out from there on."""
    taken: dict[str, list[tuple[int, float]]] = {name: [] for name in methods}
    rows: list[Row] = []
    for case in cases:
        log.info("a training step of %s tokens", f"{case.length:,}")
        steps: dict[str, Step] = {}
        first: dict[str, float] = {}
        reasons: dict[str, str] = {}
        for name, timed in methods.items():
            expected = _foretold(taken[name], case.length, timed.growth)
            if expected > limit:
                reasons[name] = f"a step would take about {expected:,.0f} s: over the limit of {limit:g} s"
                continue
            try:
                step = Step(timed, case)
                step.small()
                first[name] = seconds_of(step, case.device)
                if limit < first[name] < 2 * limit:  # nobody is left out for one busy moment of the machine
                    first[name] = min(first[name], seconds_of(step, case.device))
            except (RuntimeError, ValueError) as error:
                reasons[name] = f"failed: {' '.join(str(error).split())[:200]}"
                continue
            taken[name].append((case.length, first[name]))
            if first[name] > limit:
                reasons[name] = f"a step took {first[name]:,.1f} s: over the limit of {limit:g} s"
                continue
            steps[name] = step
        others = OtherPrograms()
        samples = dict(
            zip(
                steps,
                take_turns([*steps.values()], [first[n] for n in steps], limit=limit, device=case.device),
                strict=True,
            )
        )
        load = others.cores()
        parameters = {name: step.parameters for name, step in steps.items()}
        steps.clear()  # before other processes make theirs
        for name, timed in methods.items():
            if name not in samples:
                rows.append(step_row(name, case.length, None, None, reason=reasons[name]))
                continue
            taken[name][-1] = (case.length, min(samples[name].seconds))
            figures: dict[str, Any] = {"parameters": parameters[name], "other_load": load}
            row = step_row(name, case.length, samples[name], samples.get("exact"), **figures)
            row["peak_bytes"] = step_peak_bytes(timed, case) if memory else None
            rows.append(row)
    return rows


def _foretold(taken: list[tuple[int, float]], length: int, growth: int) -> float:
    """Seconds of a step, from the last lengths that were timed; 0 where there is none.

    A step's linear layers grow with the length, and a quadratic attention takes over from them: its exponent is that of
    the last two lengths, which is never more than its own.
    """
    if not taken:
        return 0.0
    last, seconds = taken[-1]
    exponent = 1.0
    if growth > 1 and len(taken) > 1:
        before, earlier = taken[-2]
        exponent = min(max(math.log(seconds / earlier) / math.log(last / before), 1.0), float(growth))
    return seconds * (length / last) ** exponent


def _print(rows: list[Row], slopes: list[Row]) -> None:
    console = Console(width=None if Console().is_terminal else WIDTH)
    for part, title in PARTS.items():
        of_part = [row for row in rows if row["part"] == part]
        if not of_part:
            continue
        lengths = sorted({row["length"] for row in of_part})
        table = Table(title=f"{title}: milliseconds by tokens (* over the limit)")
        table.add_column("method", overflow="fold", min_width=METHOD_WIDTH)
        for length in lengths:
            table.add_column(f"{length:,}", justify="right")
        for heading in ("slope of time", "of memory"):
            table.add_column(heading, justify="right")
        for method in dict.fromkeys(row["method"] for row in of_part):
            at = {row["length"]: row for row in of_part if row["method"] == method}
            cells = [_milliseconds(at[length]) if length in at else "" for length in lengths]
            table.add_row(
                method, *cells, *(_slope(slopes, part, method, quantity) for quantity in ("seconds", "peak_bytes"))
            )
        console.print(table)


def _milliseconds(row: Row) -> str:
    if row["seconds"] is None:
        return "failed" if str(row["reason"]).startswith("failed") else "*"
    return f"{1e3 * row['seconds']:,.3g}" if row["seconds"] < 1 else f"{1e3 * row['seconds']:,.0f}"


def _slope(slopes: list[Row], part: str, method: str, quantity: str) -> str:
    for row in slopes:
        if (row["of"], row["method"], row["quantity"]) == (part, method, quantity):
            return f"{row['slope']:.2f} ± {row['slope_error']:.2f}"
    return "-"
