"""The attentions whose cost is measured: each a contender of the benchmark, with the options of its YAML."""

from collections.abc import Sequence

from protformer.errors import ProtformerError
from protformer.evaluation.attention_benchmark.baselines import BASELINES, Baseline, baseline
from protformer.evaluation.attention_benchmark.contenders import MAPS, Exact, Hybrid, Performer

Timed = Exact | Performer | Baseline
"""Contenders that are one of our attentions, and so can stand in a model."""


def contender(method: str, features: int) -> Timed:
    """By its name: `exact`, `performer-relu`, `hybrid-positive`, ...; ProtformerError where there is none."""
    family, _, kind = method.partition("-")
    if method == "exact":
        return Exact()
    if family in ("performer", "hybrid") and kind in MAPS:
        return (Performer if family == "performer" else Hybrid)(kind, features)
    if method in BASELINES:
        return baseline(method)
    known = ("exact", *BASELINES, *(f"performer-{name}" for name in MAPS), "hybrid-positive")
    raise ProtformerError(f"cost.methods: {method!r} is not known; there are {', '.join(known)}.")


def contenders(methods: Sequence[str], features: int) -> dict[str, Timed]:
    """By name, in order; ProtformerError for a name that is not known, or none at all."""
    if not methods:
        raise ProtformerError("cost.methods is empty: write for example cost.methods=[exact,performer-positive].")
    return {str(method): contender(str(method), features) for method in methods}
