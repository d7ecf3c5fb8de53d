"""From which length on the Performer is the faster one: what `attention=hybrid` wants to know."""

import math
from collections.abc import Sequence
from typing import NamedTuple

SHORTEST, LONGEST = 64, 4096


def grid() -> list[int]:
    """Two lengths an octave from 64 to 4,096: 64, 96, 128, 192, ..."""
    octaves = int(math.log2(LONGEST // SHORTEST))
    lengths = [SHORTEST * 2**octave * half // 2 for octave in range(octaves) for half in (2, 3)]
    return [*lengths, LONGEST]


class Crossing(NamedTuple):
    """The length where both take as long; None where ours is faster at all, or (`faster` false) not at the longest."""

    length: float | None
    faster: bool


def crossing(lengths: Sequence[int], ratios: Sequence[float]) -> Crossing:
    """The last length at which the other one stops being faster, interpolated between two measured lengths.

    `ratios` are how many times as fast ours is. Both times grow by powers of the length, so that the logarithm of
    their ratio is nearly straight in the logarithm of the length.
    """
    behind = [place for place, ratio in enumerate(ratios) if ratio < 1.0]
    if not behind:
        return Crossing(None, True)
    last = behind[-1]
    if last == len(lengths) - 1:
        return Crossing(None, False)
    below, above = math.log(lengths[last]), math.log(lengths[last + 1])
    loss, gain = math.log(ratios[last]), math.log(ratios[last + 1])
    return Crossing(math.exp(below + (above - below) * loss / (loss - gain)), True)


def is_settled(ratios: Sequence[float]) -> bool:
    """Whether longer ones need no measuring: ours was twice as fast at the last two lengths."""
    return len(ratios) > 1 and min(ratios[-2:]) > 2.0


def threshold(crossed: Crossing) -> int | None:
    """What to write as `attention.threshold`: exact attention below it. In steps of 8 tokens; None above the grid."""
    if crossed.length is not None:
        return 8 * round(crossed.length / 8)
    return 0 if crossed.faster else None
