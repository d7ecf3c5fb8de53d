"""One group: contenders that take turns at the same sequences, in one type and direction."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from protformer.evaluation.attention_benchmark.cases import Call, Case, Inputs, Layout, call_of, make_inputs
from protformer.evaluation.attention_benchmark.contenders import Contender
from protformer.evaluation.attention_benchmark.memory import peak_bytes
from protformer.evaluation.attention_benchmark.rows import Measured, Rate, Row, add_ratios, make_row
from protformer.evaluation.attention_benchmark.timing import scout, seconds_of, take_turns
from protformer.evaluation.attention_benchmark.yardsticks import Yardstick, performer_products, square_product
from protformer.surroundings import OtherPrograms

Say = Callable[[str], object]
Entry = tuple[Contender, Case]


class Started(NamedTuple):
    """A contender after its first call; no call, and the reason, where it is left out."""

    call: Call | None = None
    layout: Layout | None = None
    first: float = 0.0
    reason: str | None = None


def measure_group(
    kind: str, entries: Sequence[Entry], shared: Row, *, limit: float, memory: bool, yardsticks: bool, say: Say
) -> list[Row]:
    """A row for each entry, timed or left out.

    Args:
        kind: what the rows say they are.
        entries: contenders with their cases; all cases are of one type and direction.
        shared: what stands in every row.
        limit: seconds a contender may take.
        memory: whether the peak of a call is measured when all have been timed, of those whose call takes at most a
            quarter of the limit.
        yardsticks: whether the matrix products alone take turns too.
        say: is told what is going on.
    """
    started = _start(entries, limit, say)
    say(f"{_shown(entries[0][1])}: taking turns")
    results = _take_turns(entries, started, limit, yardsticks)
    started.clear()  # and with it the inputs, before other processes make theirs
    rows = []
    for (contender, case), measured in zip(entries, results, strict=True):
        if memory and measured.layout and measured.samples and measured.samples.seconds[0] <= limit / 4:
            say(f"{_shown(case)}: memory of {contender.name}")
            measured = measured._replace(peak_bytes=peak_bytes(contender, case, measured.layout))
        rows.append(make_row(kind, contender, case, measured, shared))
    add_ratios(rows, [measured.samples for measured in results])
    return rows


def _start(entries: Sequence[Entry], limit: float, say: Say) -> list[Started]:
    """A first call of each; those of one case and layout share their inputs."""
    inputs: dict[tuple[Case, Layout], Inputs] = {}
    started = []
    for contender, case in entries:
        say(f"{_shown(case)}: {contender.name}")
        try:
            layout, reason = _layout_or_reason(contender, case, limit)
            if layout is None:
                started.append(Started(reason=reason))
                continue
            if (case, layout) not in inputs:
                inputs[case, layout] = make_inputs(case, layout)
            call = call_of(contender.attend(case), inputs[case, layout])
            started.append(Started(call, layout, seconds_of(call, case.device)))
        except RuntimeError as error:  # a type that an implementation lacks, or memory after all
            started.append(Started(reason=f"failed: {' '.join(str(error).split())[:200]}"))
    return started


def _take_turns(
    entries: Sequence[Entry], started: Sequence[Started], limit: float, with_yardsticks: bool
) -> list[Measured]:
    case = entries[0][1]
    counts = sorted({contender.features for contender, _ in entries if contender.features})
    yardsticks: list[Yardstick] = []
    if with_yardsticks:
        yardsticks = [square_product(case), *(performer_products(case, features) for features in counts)]
    turning = [(start.call, start.first) for start in started if start.call is not None]
    turning += [(yardstick.call, seconds_of(yardstick.call, case.device)) for yardstick in yardsticks]
    calls, first = [call for call, _ in turning], [seconds for _, seconds in turning]
    others = OtherPrograms()
    taken = iter(take_turns(calls, first, limit=limit, device=case.device))
    other_load = others.cores()
    samples = [next(taken) if start.call is not None else None for start in started]
    rates = [Rate(next(taken), yardstick.operations) for yardstick in yardsticks]
    square, shapes = (rates[0], dict(zip(counts, rates[1:], strict=True))) if rates else (None, {})
    return [
        Measured(
            samples=seen,
            reason=start.reason,
            layout=start.layout,
            square=square,
            shapes=shapes.get(contender.features or 0),
            other_load=other_load,
        )
        for (contender, _), start, seen in zip(entries, started, samples, strict=True)
    ]


def _layout_or_reason(contender: Contender, case: Case, limit: float) -> tuple[Layout | None, str | None]:
    """The faster layout of the inputs, or why the contender is left out."""
    reason = contender.obstacle(case)
    if reason is not None:
        return None, reason
    needed, allowed = contender.workspace(case) + 2 * case.io_bytes, available_bytes(case.device) // 4
    if needed > allowed:
        return (
            None,
            f"would need about {needed / 1e9:,.1f} GB, and a quarter of the free memory is {allowed / 1e9:,.1f} GB",
        )
    scouted = scout(contender, case, limit)
    if scouted.seconds > limit:
        seen = f"as seen at {scouted.tokens:,} tokens"
        return None, f"one call would take about {scouted.seconds:,.0f} s, {seen}: over --limit {limit:g}"
    return scouted.layout, None


def available_bytes(device: str) -> int:
    """Memory that is free; without bound where the system does not tell."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0]
    info = Path("/proc/meminfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable")), 1 << 62)


def _shown(case: Case) -> str:
    return f"{case.dtype} {case.direction}, {case.total:,} tokens"
