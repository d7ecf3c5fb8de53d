"""A run: its settings, its groups of contenders, and the rows that come out.

A group is what takes turns: all contenders of one length, type and direction. Exact attention does not depend on the
number of features, so that all numbers of features stand in one group.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import product

import torch

from protformer.errors import ProtformerError
from protformer.evaluation.attention_benchmark import crossover, packs
from protformer.evaluation.attention_benchmark.baselines import BASELINES, Baseline, baseline
from protformer.evaluation.attention_benchmark.cases import DIRECTIONS, DTYPE_NAMES, DTYPES, Case
from protformer.evaluation.attention_benchmark.contenders import (
    MAPS,
    Contender,
    Exact,
    Hybrid,
    Performer,
    Sdpa,
    Softmax,
)
from protformer.evaluation.attention_benchmark.group import Entry, Say, measure_group
from protformer.evaluation.attention_benchmark.peers import PEER_DISTRIBUTIONS, PerformerPytorch, TorchGeometric
from protformer.evaluation.attention_benchmark.rows import Row
from protformer.surroundings import hardware, surroundings, versions

LONG = 2048
"""Tokens from which on a sequence is long enough for its cost per token to be that of any longer one."""

IMPLEMENTATIONS: dict[str, Callable[["Settings"], list[Contender]]] = {
    "protformer": lambda chosen: [Performer(name, m) for name in chosen.maps for m in chosen.features],
    "protformer-hybrid": lambda chosen: [Hybrid(name, m) for name in chosen.maps for m in chosen.features],
    "protformer-exact": lambda chosen: [Exact()],
    "sdpa": lambda chosen: [Sdpa()],
    "softmax": lambda chosen: [Softmax()],
    "performer-pytorch": lambda chosen: [PerformerPytorch(m, "positive") for m in chosen.features],
    "performer-pytorch-relu": lambda chosen: [PerformerPytorch(m, "relu") for m in chosen.features],
    "torch-geometric-relu": lambda chosen: [TorchGeometric(m) for m in chosen.features],
    **{name: lambda chosen, name=name: [baseline(name)] for name in BASELINES},
}
PACKED = (Performer, Exact, Baseline, Sdpa)
"""Contenders that can be given a pack; `Hybrid` is a `Performer`."""


@dataclass(frozen=True)
class Settings:
    """What a run times. Names are checked: ProtformerError says which are unknown, and which there are.

    Args:
        lengths: of single sequences, in tokens; none where only a pack or the crossover is asked for.
        features, heads, dim: numbers of random features (each is a contender), of heads, and of numbers a head has.
        dtypes: `float32` or `fp32` and so on.
        device: `cpu` or `cuda`.
        directions: `forward`, `forward_backward` or `both`.
        causal: whether a token sees only those before it; our Performers are timed both ways then.
        maps: our feature maps by name, or `all`.
        implementations: names from `IMPLEMENTATIONS`, or `all`. None: ours, sdpa, softmax, and the peers of the maps.
        limit: seconds that a contender may take in a group; one whose single call takes longer is left out.
        memory: whether the peak of a call is measured, in one more call.
        pack: a FASTA file, or `demo`, for one pack of `pack_size` proteins drawn with `seed`.
        crossover: whether to search the length where the Performer overtakes sdpa.
    """

    lengths: tuple[int, ...] = (1024, 16384)
    features: tuple[int, ...] = (64, 256)
    heads: int = 8
    dim: int = 64
    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    device: str = "cpu"
    directions: tuple[str, ...] = DIRECTIONS
    causal: bool = False
    maps: tuple[str, ...] = ("positive",)
    implementations: tuple[str, ...] | None = None
    limit: float = 10.0
    memory: bool = True
    pack: str | None = None
    pack_size: int = 32
    seed: int = 0
    crossover: bool = False

    def __post_init__(self) -> None:
        def settle(name: str, values: Sequence[str]) -> None:
            object.__setattr__(self, name, tuple(dict.fromkeys(values)))

        settle("dtypes", [DTYPE_NAMES.get(name, name) for name in self.dtypes])
        _check("--dtype", self.dtypes, [*DTYPES, *DTYPE_NAMES])
        _check("--direction", self.directions, [*DIRECTIONS, "both"])
        settle("directions", DIRECTIONS if "both" in self.directions else self.directions)
        _check("--maps", self.maps, [*MAPS, "all"])
        settle("maps", tuple(MAPS) if "all" in self.maps else self.maps)
        _check("--implementations", self.implementations or (), [*IMPLEMENTATIONS, "all"])
        if self.implementations and "all" in self.implementations:
            settle("implementations", tuple(IMPLEMENTATIONS))
        if self.pack and not any(isinstance(contender, PACKED) for contender in self.contenders(pack=True)):
            known = ("protformer", "protformer-hybrid", "protformer-exact", *BASELINES, "sdpa")
            raise ProtformerError(f"--pack times {', '.join(known)}: name one.")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise ProtformerError("--device cuda: PyTorch sees no CUDA GPU here; leave it out to time the CPU.")

    def contenders(self, *, pack: bool = False) -> list[Contender]:
        """Chosen by name, or those that a comparison of the maps wants; for a pack, our other attentions too."""
        names = self.implementations
        if names is None:
            ours = ("protformer", "protformer-hybrid", "protformer-exact") if pack else ("protformer",)
            relu = ("performer-pytorch-relu", "torch-geometric-relu") if "relu" in self.maps else ()
            names = (*ours, "sdpa", "softmax", "performer-pytorch", *relu)
        return [contender for name in names for contender in IMPLEMENTATIONS[name](self)]

    def cases(self, lengths: tuple[int, ...]) -> list[Case]:
        """The same sequences in each type and direction."""
        return [
            Case(lengths, self.heads, self.dim, dtype, direction == "forward_backward", self.causal, self.device)
            for dtype, direction in product(self.dtypes, self.directions)
        ]


def _check(option: str, given: Sequence[str], known: Sequence[str]) -> None:
    for name in given:
        if name not in known:
            raise ProtformerError(f"{option} {name!r} is not known; there are {', '.join(known)}.")


def run_benchmark(settings: Settings, say: Say = lambda doing: None) -> list[Row]:
    """All rows of a run, group by group. `say` is told what is being timed.

    Raises:
        ProtformerError: the FASTA file of the pack is missing, is none, or holds too few sequences.
    """
    pack, source = packs.draw_lengths(settings.pack, settings.pack_size, settings.seed) if settings.pack else ((), None)
    around = surroundings()
    shared: Row = {
        "threads": torch.get_num_threads(),
        "limit_seconds": settings.limit,
        "source": None,
        "versions": versions(*PEER_DISTRIBUTIONS),
        "hardware": hardware(settings.device),
        **{name: around[name] for name in ("commit", "load_average", "time")},
    }
    rows: list[Row] = []
    for length in settings.lengths:
        for case in settings.cases((length,)):
            entries = [(contender, case) for contender in settings.contenders()]
            if settings.causal:
                both_ways = replace(case, causal=False)
                entries += [(contender, both_ways) for contender, _ in entries if isinstance(contender, Performer)]
            rows += measure_group(
                "single", entries, shared, limit=settings.limit, memory=settings.memory, yardsticks=True, say=say
            )
    for case in settings.cases((LONG,)):
        rows += _measure_growth(case, settings, shared, say)
    if pack:
        for case in settings.cases(pack):
            rows += _measure_pack(case, settings, shared | {"source": source}, say)
    if settings.crossover:
        for case in settings.cases((crossover.SHORTEST,)):
            rows += _measure_crossover(case, settings, shared, say)
    return rows


def _measure_growth(case: Case, settings: Settings, shared: Row, say: Say) -> list[Row]:
    """Ours at all lengths from 2,048 on in the same rounds, where there are several: does a token cost the same?"""
    lengths = [length for length in settings.lengths if length >= LONG]
    ours = [contender for contender in settings.contenders() if isinstance(contender, Performer)]
    if len(lengths) < 2 or not ours:
        return []
    entries: list[Entry] = [(contender, replace(case, lengths=(length,))) for contender in ours for length in lengths]
    return measure_group("growth", entries, shared, limit=settings.limit, memory=False, yardsticks=False, say=say)


def _measure_pack(case: Case, settings: Settings, shared: Row, say: Say) -> list[Row]:
    """Ours on the pack, and on one sequence of as many tokens; exact attention by segment; sdpa, padded."""
    alone = replace(case, lengths=(case.total,))
    entries: list[Entry] = []
    for contender in settings.contenders(pack=True):
        if isinstance(contender, PACKED):
            entries.append((contender, case))
        if isinstance(contender, Performer):
            entries.append((contender, alone))
    return measure_group(
        "pack", entries, shared, limit=settings.limit, memory=settings.memory, yardsticks=True, say=say
    )


def _measure_crossover(case: Case, settings: Settings, shared: Row, say: Say) -> list[Row]:
    """Up the grid until each of ours has left sdpa behind; a quarter of the limit a length, no memory."""
    ours = [contender for contender in IMPLEMENTATIONS["protformer"](settings) if contender.obstacle(case) is None]
    limit = settings.limit / 4
    rows: list[Row] = []
    ratios: dict[Contender, list[float]] = {contender: [] for contender in ours}
    lengths: list[int] = []
    for length in crossover.grid():
        here = replace(case, lengths=(length,))
        entries = [(contender, here) for contender in (Sdpa(), *ours)]
        group = measure_group("crossover", entries, shared, limit=limit, memory=False, yardsticks=False, say=say)
        rows += group
        if any(row["ms"] is None for row in group):
            break
        lengths.append(length)
        for contender, row in zip(ours, group[1:], strict=True):
            ratios[contender].append(row["ratio"])
        if all(map(crossover.is_settled, ratios.values())):
            break
    for contender in ours if lengths else []:
        crossed = crossover.crossing(lengths, ratios[contender])
        for row in rows:
            if (row["implementation"], row["features"]) == (contender.name, contender.features):
                row["crossover"] = crossed._asdict() | {"threshold": crossover.threshold(crossed)}
    return rows
