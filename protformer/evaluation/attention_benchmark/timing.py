"""Who takes turns, how often, and who is left out.

The contenders of a case take turns in rounds, so that a noisy minute hits all of them, and they are compared round by
round: ratios hold on a machine that others use too. A contender gets a tenth of the limit in calls, at least three
where they fit into the limit, at most ninety-six.

Before that, each is scouted: at a length where a call takes a hundredth of the limit both layouts of the inputs are
tried, and the time of one whole call is foretold from it. Above the limit the contender is left out.
"""

import time
from collections.abc import Callable, Sequence
from itertools import chain
from statistics import median
from typing import NamedTuple

import torch

from protformer.evaluation.attention_benchmark.cases import Call, Case, Layout, call_of, make_inputs
from protformer.evaluation.attention_benchmark.contenders import Contender

ROUNDS = 12
SHARE = 0.1  # of the limit, that a contender with short calls gets
# Two that are called seldom must meet in some round, so that the rounds of fewer calls are among those of more.
CALLS = (1, 2, 3, 6, 12, 24, 48, 96)
SCOUTED_TOKENS = 1024

Clock = Callable[[], float]


def seconds_of(call: Call, device: str, clock: Clock = time.perf_counter) -> float:
    """Of one call, with what it has put on a GPU's queue."""
    if device == "cuda":
        torch.cuda.synchronize()
    start = clock()
    call()
    if device == "cuda":
        torch.cuda.synchronize()
    return clock() - start


def number_of_calls(one: float, limit: float) -> int:
    """How often a contender is called whose call takes `one` second; 0 where one call is over the limit."""
    one = max(one, 1e-9)
    wanted = min(max(SHARE * limit / one, 3.0), limit / one)
    return max((calls for calls in CALLS if calls <= wanted), default=0)


class Samples(NamedTuple):
    """Seconds of a contender's calls, by round."""

    rounds: Sequence[Sequence[float]] = ()
    first: Sequence[float] = ()
    """A first call that took so long that it counts."""

    @property
    def seconds(self) -> list[float]:
        """Of all calls, in ascending order."""
        return sorted([*self.first, *chain.from_iterable(self.rounds)])


def times_as_fast(other: Samples, this: Samples) -> float:
    """What the other took over what this one took: the median over the rounds that both were called in.

    Of all their calls where there is no such round.
    """
    pairs = [(there, here) for there, here in zip(other.rounds, this.rounds, strict=True) if there and here]
    if not pairs:
        return median(other.seconds) / median(this.seconds)
    return median(median(there) / median(here) for there, here in pairs)


def take_turns(
    calls: Sequence[Call], first: Sequence[float], *, limit: float, device: str, clock: Clock = time.perf_counter
) -> list[Samples]:
    """Seconds of every call by contender; `first` is what a first call took.

    A call of a second or more has nothing left to warm up, and its first is counted.
    """
    counted = [one >= 1.0 for one in first]
    wanted = [
        number_of_calls(one, limit - one) if counts else max(number_of_calls(one, limit), 1)
        for one, counts in zip(first, counted, strict=True)
    ]
    rounds: list[list[list[float]]] = [[] for _ in calls]
    for turn in range(ROUNDS):
        for place in range(len(calls)):
            index = (place + turn) % len(calls)
            share = wanted[index] * (turn + 1) // ROUNDS - wanted[index] * turn // ROUNDS
            rounds[index].append([seconds_of(calls[index], device, clock) for _ in range(share)])
    return [Samples(taken, [one] if counts else []) for taken, one, counts in zip(rounds, first, counted, strict=True)]


class Scouted(NamedTuple):
    layout: Layout
    seconds: float
    """Of one call of the whole case: foretold, or measured where `tokens` are all."""
    tokens: int
    """What it was foretold from."""


def scout(contender: Contender, case: Case, limit: float) -> Scouted:
    """The faster layout, and what one call would take."""
    part = case.cut(SCOUTED_TOKENS)
    growth = contender.growth if len(case.lengths) == 1 else 1
    times = _try_layouts(contender, part)
    longer = int(part.total * (0.01 * limit / max(min(times.values()), 1e-9)) ** (1 / growth))
    if len(times) > 1 or growth > 1:
        further = case.cut(min(longer, case.total))
        if further.total > part.total:
            part, times = further, _try_layouts(contender, further)
    scale = (case.total / part.total) ** growth
    for _ in range(2):
        if min(times.values()) * scale <= limit:
            break
        # Nobody is left out for one busy moment of the machine.
        again = _try_layouts(contender, part)
        times = {layout: min(times[layout], again[layout]) for layout in contender.layouts}
    layout: Layout = min(contender.layouts, key=lambda tried: times[tried])
    return Scouted(layout, times[layout] * scale, part.total)


def _try_layouts(contender: Contender, case: Case) -> dict[Layout, float]:
    """The faster of two calls after a first one, by layout."""
    attend = contender.attend(case)
    calls: dict[Layout, Call] = {layout: call_of(attend, make_inputs(case, layout)) for layout in contender.layouts}
    tries = [{layout: seconds_of(call, case.device) for layout, call in calls.items()} for _ in range(3)]
    return {layout: min(tried[layout] for tried in tries[1:]) for layout in calls}
