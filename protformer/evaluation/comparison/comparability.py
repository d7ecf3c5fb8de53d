"""Which runs may stand in one table, and which settings tell them apart.

Comparable runs saw the same data with the same masks for the same budget: what `metrics.json` says under `comparison`.
The order of the data is compared between runs of one seed alone; between seeds it is meant to differ.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from protformer.errors import ProtformerError
from protformer.evaluation.comparison.reading import Group, Run, flat
from protformer.evaluation.methods import in_order

RESIDUE_TOLERANCE = 0.01
"""Of the residues seen by two runs of one seed in one number of steps: whole proteins are packed to a budget of tokens,
so numbers of processes differ by a little. Seeds have other orders, and in few steps, or with very long proteins, see
other numbers of residues: the report says how many."""
NOWHERE = ("seed", "paths", "logger", "callbacks", "ckpt_path", "job")
"""Settings that change no figure, or whose difference is no choice. (And `features`, which only has an effect as
`attention.features`.)"""
SELECTION = "evaluate.weights"
"""Whether the best weights on valid are scored or the last ones: another figure, though the training is the same."""
MACHINE = ("data", "diagnostics", "evaluate", "compile", "trainer.accelerator", "trainer.devices", "trainer.num_nodes",
           "trainer.strategy", "trainer.accumulate_grad_batches", "trainer.log_every_n_steps",
           "trainer.enable_progress_bar", "data.num_workers")  # fmt: skip
"""Settings that make no other method of a method: how it ran, and data, which are compared by their hashes."""
DRAW_NOTHING = ("ExactAttention", "LinformerAttention", "SparseAttention", "UniformAttention")
"""Attentions on which the schedule of redrawing has no effect."""
ABSENT = "(not set)"
MOST_TOLD = 3
"""Settings in a label, which has to fit beside a curve."""


@dataclass(frozen=True)
class Arm:
    """The runs of one method with one choice of settings: they differ by seed alone."""

    label: str
    method: str
    variant: int
    """Counts the arms of this method in the comparison."""
    runs: tuple[Run, ...]

    def by_seed(self) -> dict[int, Run]:
        return {run.seed: run for run in self.runs}


@dataclass(frozen=True)
class Knob:
    """A setting that differs within a comparison, with the methods that have each value."""

    key: str
    values: dict[str, list[str]]

    @property
    def is_attention(self) -> bool:
        return self.key.startswith(("attention.", "redraw."))

    @property
    def is_of_machine(self) -> bool:
        """Whether it makes no other method of a method."""
        return _is_of_machine(self.key)


def differences(one: Run, other: Run) -> list[str]:
    """Why two runs are not comparable, in words; empty where they are."""
    mine, theirs = one.comparison, other.comparison
    found = []
    data, others = mine.get("data", {}), theirs.get("data", {})
    for name in sorted(data.keys() | others.keys()):
        if name not in data or name not in others:
            found.append(f"only one of them has the set {name}")
        elif data[name] != others[name]:
            found.append(f"{name} is other data ({_told(data[name])} and {_told(others[name])})")
    settings, other_settings = flat(mine.get("task", {})), flat(theirs.get("task", {}))
    found += [f"task.{line}" for line in _differing(settings, other_settings)]
    keys = ["evaluation_seed"] + ["order_seed"] * (one.seed == other.seed)
    found += _differing({k: mine.get(k) for k in keys}, {k: theirs.get(k) for k in keys})
    budget, other_budget = dict(mine.get("budget", {})), dict(theirs.get("budget", {}))
    seen = float(budget.pop("residues", 0)), float(other_budget.pop("residues", 0))
    found += [f"budget.{line}" for line in _differing(budget, other_budget)]
    if one.seed == other.seed and abs(seen[0] - seen[1]) > RESIDUE_TOLERANCE * max(seen):
        found.append(f"budget.residues is {seen[0]:,.0f} and {seen[1]:,.0f}")
    return found or _other_targets(one, other)


def _other_targets(one: Run, other: Run) -> list[str]:
    """Proteins scored at other residues, whatever the settings say: that would make a paired difference senseless."""
    for name in one.proteins.keys() & other.proteins.keys():
        mine, theirs = one.proteins[name], other.proteins[name]
        if mine.keys != theirs.keys:
            return [f"per_protein.tsv lists other proteins of {name}"]
        if not np.array_equal(mine.targets, theirs.targets):
            place = int(np.flatnonzero(mine.targets != theirs.targets)[0])
            return [f"protein {mine.keys[place][0]} of {name} was scored at other targets: the masks differ"]
        if mine.knows_bins and theirs.knows_bins and not np.array_equal(mine.bins, theirs.bins):
            place = int(np.flatnonzero(mine.bins != theirs.bins)[0])
            told = " and ".join(str(one.bins[place]) or "none" for one in (mine, theirs))
            return [f"protein {mine.keys[place][0]} of {name} is in other novelty bins ({told})"]
    return []


def _differing(mine: dict[str, Any], theirs: dict[str, Any]) -> list[str]:
    keys = [key for key in sorted(mine.keys() | theirs.keys()) if mine.get(key) != theirs.get(key)]
    return [f"{key} is {mine.get(key, ABSENT)} and {theirs.get(key, ABSENT)}" for key in keys]


def _told(data: dict[str, Any]) -> str:
    sampled = f", {data['sampled_from']:,} sampled" if data.get("sampled_from") else ""
    return f"{data.get('sequences', 0):,} sequences{sampled}, sha256 {str(data.get('sha256'))[:8]}"


def split(group: Group) -> list[Group]:
    """Groups within which all runs are comparable, each run in the first that has room for it; the largest first."""
    parts: list[list[Run]] = []
    for run in group.runs:
        home = next((part for part in parts if not any(differences(run, other) for other in part)), None)
        if home is None:
            parts.append([run])
        else:
            home.append(run)
    parts.sort(key=len, reverse=True)
    if len(parts) <= 1:
        return [group]
    titles = [f"{group.title}: {_what_tells_apart(part, parts)}" for part in parts]
    return [
        Group(title, part, group.missing if place == 0 else [])
        for place, (title, part) in enumerate(zip(titles, parts, strict=True))
    ]


def _what_tells_apart(part: list[Run], parts: list[list[Run]]) -> str:
    """The settings of a part that the others do not share, in the words of its `comparison`."""
    mine = flat(part[0].comparison)
    others = [flat(other[0].comparison) for other in parts if other is not part]
    ends = (".sha256", "order_seed", ".residues", "sampled_from")
    keys = [k for k in mine if not k.endswith(ends) and any(o.get(k) != mine[k] for o in others)]
    if not keys:
        keys = [k for k in mine if k.endswith(".sha256") and any(o.get(k) != mine[k] for o in others)]
    told = [f"{k.removeprefix('data.')} {str(mine[k])[:8] if k.endswith('sha256') else mine[k]}" for k in keys[:3]]
    return ", ".join(told) or part[0].name


def require_comparable(group: Group) -> None:
    """ProtformerError that names the runs that differ, in what, and by which settings."""
    first, *rest = split(group)
    if not rest:
        return
    reference = first.runs[0]
    told = []
    odd = [run for part in rest for run in part.runs]
    for run in odd[:4]:
        reasons = next(filter(None, (differences(other, run) for other in first.runs)))
        knobs = _differing(*(_settings(r) for r in (reference, run)))
        knobs = [k for k in knobs if not k.startswith(("attention.", "redraw.", "data.", "features."))]
        words = f"; their settings: {', '.join(knobs[:4])}" if knobs else ""
        told.append(f"{run.name} against {reference.name}: {', '.join(reasons[:4])}{words}")
    more = f" (and {len(odd) - 4} more)" if len(odd) > 4 else ""
    raise ProtformerError(
        f"The runs of {group.title} are not comparable. {'. '.join(told)}{more}. Leave them out, or write --split for"
        " one report with a comparison for each kind."
    )


def _settings(run: Run) -> dict[str, Any]:
    return {
        key: value
        for key, value in run.config.items()
        if key.partition(".")[0] not in (*NOWHERE, "features") and not key.endswith("._partial_")
    }


def arms_of(group: Group) -> list[Arm]:
    """The group's runs by method, and by those settings in which runs of one method differ. ProtformerError where two
    runs are the same in all of it: counted as two seeds, they would make a spread that is none; and where a run has no
    `config.yaml` while others have one."""
    bare = next((run for run in group.runs if not run.config), None)
    if bare is not None and any(run.config for run in group.runs):
        raise ProtformerError(
            f"{bare.name} has no config.yaml, so nobody can say in what it differs from the others: put it back, or"
            " leave this run out."
        )
    arms = []
    for method in in_order(run.method for run in group.runs):
        runs = [run for run in group.runs if run.method == method]
        settings = [_of_variant(_effective(run), run) for run in runs]
        if _with_twins(settings, runs):  # one line of a sweep may hold exact attention with each schedule of redrawing
            settings = [_of_variant(_settings(run), run) for run in runs]
        keys = [
            key for key in dict.fromkeys(k for s in settings for k in s) if len({_text(s, key) for s in settings}) > 1
        ]
        variants: dict[tuple[str, ...], list[Run]] = {}
        for run, chosen in zip(runs, settings, strict=True):
            variants.setdefault(tuple(_text(chosen, key) for key in keys), []).append(run)
        labels = _labels(keys, list(variants))
        for variant, (values, members) in enumerate(sorted(variants.items(), key=lambda item: _natural(item[0]))):
            seeds = [run.seed for run in members]
            twice = next((run for run in members if seeds.count(run.seed) > 1), None)
            if twice is not None:
                names = " and ".join(run.name for run in members if run.seed == twice.seed)
                raise ProtformerError(f"{names} are one method with one seed and the same settings: give one of them.")
            label = f"{method} ({labels[values]})" if labels[values] else method
            arms.append(Arm(label, method, variant, tuple(sorted(members, key=lambda run: run.seed))))
    return arms


def _labels(keys: list[str], variants: Sequence[tuple[str, ...]]) -> dict[tuple[str, ...], str]:
    """The settings that tell variants apart, in few words; "" for a single one.

    A class stands for the settings that it brings with it. Of more than `MOST_TOLD` settings those that suffice to tell
    the variants apart are named and the others counted (a table of the report has them all).
    """
    places = [place for place, key in enumerate(keys) if not _goes_without_saying(key, place, keys, variants)]
    named = places
    if len(places) > MOST_TOLD:
        named, known = [], 1
        for place in places:
            parts = len({tuple(values[p] for p in (*named, place)) for values in variants})
            if parts > known:
                named.append(place)
                known = parts
    labels = {}
    for values in variants:
        told = [_setting(keys[place], values[place]) for place in named if values[place] != ABSENT]
        others = sum(values[place] != ABSENT for place in places if place not in named)
        labels[values] = ", ".join([*told, *([f"{others} more settings"] if others else [])])
    return labels


def _goes_without_saying(key: str, place: int, keys: list[str], variants: Sequence[tuple[str, ...]]) -> bool:
    """A setting of a class that is told, where all that have this class have the same value."""
    owner = f"{key.rpartition('.')[0]}._target_"
    if key == owner or owner not in keys:
        return False
    pairs = {(values[keys.index(owner)], values[place]) for values in variants}
    return len(pairs) == len({which for which, _ in pairs})


def _effective(run: Run) -> dict[str, Any]:
    """Its settings without those of redrawing where its attention has nothing random to draw anew."""
    chosen = _settings(run)
    fixed = str(chosen.get("attention._target_", "")).rpartition(".")[2] in DRAW_NOTHING
    return {k: v for k, v in chosen.items() if k.partition(".")[0] != "redraw"} if fixed else chosen


def _with_twins(settings: Sequence[dict[str, Any]], runs: Sequence[Run]) -> bool:
    told = [
        (run.seed, sorted((key, str(value)) for key, value in s.items())) for s, run in zip(settings, runs, strict=True)
    ]
    return any(told.count(one) > 1 for one in told)


def _of_variant(settings: dict[str, Any], run: Run) -> dict[str, Any]:
    chosen = {k: v for k, v in settings.items() if not _is_of_machine(k)}
    return {**chosen, "training.processes": run.metrics["training"].get("world_size", 1)}


def _is_of_machine(key: str) -> bool:
    return key != SELECTION and any(key == name or key.startswith(f"{name}.") for name in MACHINE)


def _setting(key: str, value: str) -> str:
    """As a label has it: "lr 0.001"; "redraw Geometric" for `redraw._target_`."""
    *_, group, name = ["", *key.split(".")]
    return f"{group if name == '_target_' else name} {value}"


def _text(settings: dict[str, Any], key: str) -> str:
    return shown(settings[key]) if key in settings else ABSENT


def shown(value: Any) -> str:
    """A setting as people read it: a class without its module."""
    text = str(value)
    return text.rpartition(".")[2] if text.startswith(("protformer.", "torch.")) else text


def _natural(values: Sequence[str]) -> list[tuple[float, str]]:
    """So that 64 stands before 256."""
    return [(float(v), "") if v.replace(".", "", 1).isdigit() else (float("inf"), v) for v in values]


def differing_knobs(arms: Iterable[Arm]) -> list[Knob]:
    """Settings that differ within a comparison: the attention's own, which are what is compared, then all others."""
    settings = [(arm.label, _effective(run)) for arm in arms for run in arm.runs]
    keys = dict.fromkeys(key for _, chosen in settings for key in chosen)
    knobs = []
    for key in keys:
        values: dict[str, list[str]] = {}
        for label, chosen in settings:
            holders = values.setdefault(_text(chosen, key), [])
            if label not in holders:
                holders.append(label)
        if len(values) > 1:
            knobs.append(Knob(key, values))
    return sorted(knobs, key=lambda knob: not knob.is_attention)
