"""One comparison: from comparable runs to rows, curves, costs, and what is to be said of them."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from protformer.errors import ProtformerError
from protformer.evaluation.comparison.comparability import Arm, Knob, arms_of, differing_knobs, require_comparable
from protformer.evaluation.comparison.reading import Group, Missing, Run
from protformer.evaluation.comparison.statistics import (
    ALL,
    FEWEST,
    Row,
    common_seeds,
    in_order_of_novelty,
    plain_arm,
    set_rows,
)
from protformer.evaluation.headlines import Headline, headline_of
from protformer.evaluation.methods import FLOOR, REFERENCE
from protformer.evaluation.runs import trained_figures

BEFORE = ("untrained", "before training")
"""Rows of a run's closing table that are its own model before it learned: no floor that runs share."""


@dataclass(frozen=True)
class Comparison:
    title: str
    name: str
    """Of its files."""
    arms: list[Arm]
    headline: Headline
    sets: list[str]
    rows: list[Row]
    """Flat: a method or floor, on an evaluation set, on all proteins or those of a novelty bin."""
    curves: list[Row]
    """Flat: a run's figures on valid at a step."""
    costs: list[Row]
    """Flat: what a run took, and where."""
    knobs: list[Knob]
    missing: list[Missing]
    notes: list[str]

    @property
    def runs(self) -> list[Run]:
        return [run for arm in self.arms for run in arm.runs]

    @property
    def main_set(self) -> str:
        return "test" if "test" in self.sets else self.sets[0]

    @property
    def residues(self) -> float:
        return float(np.mean([run.comparison["budget"]["residues"] for run in self.runs]))

    def of_set(self, name: str, part: str = ALL, kind: str | None = None) -> list[Row]:
        return [r for r in self.rows if r["set"] == name and r["bin"] == part and kind in (None, r["kind"])]

    def bins(self, name: str) -> list[str]:
        found = {row["bin"] for row in self.rows if row["set"] == name} - {ALL}
        return in_order_of_novelty(sorted(found))


def compare(group: Group, *, name: str = "comparison", resamples: int = 2000) -> Comparison:
    """`name` is that of its pictures. ProtformerError where runs are not comparable or hold no known figure."""
    require_comparable(group)
    arms = arms_of(group)
    headline = headline_of(group.runs[0].metrics)
    if headline is None:
        raise ProtformerError(f"{group.runs[0].name}: its metrics.json has no figure that this version can compare.")
    sets = [one for one in group.runs[0].metrics["sets"] if trained_figures(group.runs[0].metrics, one)]
    rows = []
    for of_set in sets:
        rows += [{"comparison": group.title, **row} for row in set_rows(arms, of_set, headline, resamples=resamples)]
        rows += [{"comparison": group.title, **row} for row in _floors(arms, of_set, headline)]
        _add_before(rows, arms, of_set, headline)
    return Comparison(
        title=group.title,
        name=name,
        arms=arms,
        headline=headline,
        sets=sets,
        rows=rows,
        curves=[point for arm in arms for run in arm.runs for point in _curve(group.title, arm, run)],
        costs=[_cost(group.title, arm, run) for arm in arms for run in arm.runs],
        knobs=differing_knobs(arms),
        missing=group.missing,
        notes=_notes(arms, headline, sets),
    )


def _floors(arms: Sequence[Arm], name: str, headline: Headline) -> list[Row]:
    """What the runs scored beside themselves, as the mean over seeds (a floor counts the training set in the order and
    with the masks of a seed, whatever the method); the untrained models as their mean over runs."""
    runs = [run for arm in arms for run in arm.runs]
    found: dict[tuple[str, str], dict[int, Row]] = {}
    untrained: list[dict[str, float]] = []
    for run in runs:
        of_set = run.metrics["sets"].get(name, {})
        parts = {ALL: {"rows": of_set.get("rows", []), "proteins": of_set.get("sequences")}, **of_set.get("by_bin", {})}
        for part, content in parts.items():
            for row in content["rows"]:
                if row["name"] == "untrained" and part == ALL:
                    untrained.append(row["figures"])
                elif row["name"] not in ("trained", *BEFORE) and row["figures"]:
                    base = {"set": name, "bin": part, "kind": "floor", "method": row["name"], "family": row["name"]}
                    known = {k: v for k, v in row["figures"].items() if not k.startswith("trained_minus")}
                    of_seed = found.setdefault((part, row["name"]), {})
                    of_seed.setdefault(run.seed, {**base, "proteins": content.get("proteins"), **known})
    rows = [_mean_row(list(of_seed.values())) for of_seed in found.values()]
    for row in rows:
        if (row["proteins"] or FEWEST) < FEWEST:
            for key in [key for key in row if key.endswith(("_low", "_high"))]:
                del row[key]
    if untrained:
        columns = [c for c in (headline.column, *headline.beside) if all(c in figures for figures in untrained)]
        means = {column: float(np.mean([figures[column] for figures in untrained])) for column in columns}
        base = {"set": name, "bin": ALL, "kind": "floor", "method": "untrained", "family": "untrained"}
        rows.append({**base, "seeds": len(untrained), **means})
    return rows


def _add_before(rows: list[Row], arms: Sequence[Arm], name: str, headline: Headline) -> None:
    """What each method scored before training, where it started from trained weights."""
    for arm in arms:
        closing = [run.metrics["sets"].get(name, {}).get("rows", []) for run in arm.runs]
        before = [r["figures"].get(headline.column) for rs in closing for r in rs if r["name"] == "before training"]
        if before and None not in before:
            for row in rows:
                if row["set"] == name and row["bin"] == ALL and row["method"] == arm.label:
                    row[f"{headline.column}_before"] = float(np.mean(before))


def _curve(title: str, arm: Arm, run: Run) -> list[Row]:
    base = {"comparison": title, "method": arm.label, "family": arm.method, "seed": run.seed}
    places = ("step", "residues", "seconds", "cpu_seconds")
    return [
        {**base, **{key: point.get(key) for key in places}, **point.get("figures", {})}
        for point in run.metrics.get("curve") or []
    ]


def _cost(title: str, arm: Arm, run: Run) -> Row:
    training, measured = run.metrics["training"], run.metrics.get("measured") or {}
    hardware = measured.get("hardware") or {}
    return {
        "comparison": title,
        "method": arm.label,
        "family": arm.method,
        "seed": run.seed,
        "run": run.name,
        "processes": training.get("world_size", 1),
        "threads": training.get("threads"),
        "optimiser_steps": training.get("optimiser_steps"),
        "residues": training.get("residues"),
        "residues_per_second": training.get("residues_per_second"),
        "seconds": training.get("seconds"),
        "cpu_seconds": training.get("cpu_seconds"),
        "peak_memory_bytes": training.get("peak_memory_bytes"),
        "redraws": training.get("redraws"),
        "parameters": run.metrics.get("parameters"),
        "parameters_of_attention": run.metrics.get("parameters_of_attention"),
        "weights": run.metrics.get("weights"),
        "device": hardware.get("gpu") or hardware.get("cpu") or measured.get("cpu"),
        "commit": measured.get("commit"),
        "torch": measured.get("torch") or (run.metrics.get("versions") or {}).get("torch"),
        "time": measured.get("time"),
        "overrides": " ".join(map(str, run.metrics.get("overrides") or [])),
    }


def _notes(arms: Sequence[Arm], headline: Headline, sets: Sequence[str]) -> list[str]:
    """What a reader must know before believing the figures; one sentence each."""
    runs = [run for arm in arms for run in arm.runs]
    costs = [_cost("", arm, run) for arm in arms for run in arm.runs]
    notes = []
    single = [arm.label for arm in arms if len(arm.runs) == 1]
    if single:
        who = (
            "Every method was"
            if len(single) == len(arms)
            else f"{listed(single)} {'were' if len(single) > 1 else 'was'}"
        )
        notes.append(
            f"{who} trained with one seed: intervals there are over proteins alone and do not say what another seed"
            " would give."
        )
    if any(1 < len(arm.runs) < 5 for arm in arms):
        notes.append(
            "Fewer than five seeds say little about the spread of all: intervals over few seeds are widened for it"
            " (Student's t, with Satterthwaite's degrees of freedom)."
        )
    bare = [name for name in sets if not all(name in run.proteins for run in runs)]
    if bare and headline.is_perplexity:
        lacking = list(dict.fromkeys(run.name for name in bare for run in runs if name not in run.proteins))
        notes.append(f"No paired intervals on {listed(bare)}: per_protein.tsv does not hold them in {listed(lacking)}.")
    for method in (REFERENCE, FLOOR):
        several = [arm.label for arm in arms if arm.method == method]
        if len(several) > 1:
            notes.append(
                f"{method} was run in {len(several)} settings, so nothing is measured from it: {listed(several)}."
            )
    reference = plain_arm(arms, REFERENCE)
    strangers = [arm.label for arm in arms if reference is not None and not common_seeds(arm, reference)]
    if strangers:
        notes.append(
            f"{listed(strangers)} and {REFERENCE} have no seed in common: their differences pair proteins alone."
        )
    notes += _fewer_pairs(arms)
    notes += _without_figures(arms, headline, sets)
    for key, word in (("device", "machines"), ("threads", "numbers of threads"), ("processes", "numbers of processes")):
        values = sorted({str(cost[key]) for cost in costs if cost[key] is not None})
        if len(values) > 1:
            notes.append(f"Times are not of one kind: {len(values)} {word} ({', '.join(values)}).")
    if any((cost["processes"] or 1) > 1 for cost in costs):
        notes.append(
            "Runs of several processes: peak memory and CPU time are those of the first, residues are those of all."
        )
    commits = sorted({str(cost["commit"]) for cost in costs if cost["commit"]})
    if len(commits) > 1:
        notes.append(f"The runs are of {len(commits)} commits: {', '.join(commits)}.")
    if any(commit.endswith("-dirty") for commit in commits):
        notes.append("Some runs were made from files that differ from their commit (-dirty).")
    if sum(run.metrics.get("parameters_of_attention") or 0 for run in runs):
        extras = {arm.label: arm.runs[0].metrics.get("parameters_of_attention") or 0 for arm in arms}
        told = [f"{label} has {count:,}" for label, count in extras.items() if count]
        notes.append(f"Parameters of the attention itself, beyond those all methods share: {listed(told)}.")
    return notes


def _fewer_pairs(arms: Sequence[Arm]) -> list[str]:
    """Where a method's differences are of fewer seeds than its own figures."""
    reference, floor = plain_arm(arms, REFERENCE), plain_arm(arms, FLOOR)
    notes = []
    for others, what in (((reference,), "difference from exact"), ((reference, floor), "share of the gap")):
        if None in others:
            continue
        known = [other for other in others if other is not None]
        for arm in arms:
            shared = len(common_seeds(arm, *known))
            if arm not in known and 0 < shared < len(arm.runs):
                has = "are the seeds" if shared > 1 else "is the seed"
                with_whom = listed([other.label for other in known])
                notes.append(
                    f"{arm.label}: its {what} is over {shared} of its {len(arm.runs)} seeds, which {has} that"
                    f" {with_whom} have too."
                )
    return notes


def _without_figures(arms: Sequence[Arm], headline: Headline, sets: Sequence[str]) -> list[str]:
    lacking = [
        f"{arm.label}, seed {run.seed}, on {name}"
        for name in sets
        for arm in arms
        for run in arm.runs
        if trained_figures(run.metrics, name).get(headline.column) is None
    ]
    return [f"Without a figure, so in no mean: {listed(lacking)}."] if lacking else []


def beside_the_attention(knobs: Sequence[Knob]) -> str | None:
    """A sentence where methods differ in more than their attention: no difference is then the attention's alone."""
    other = [knob.key for knob in knobs if not knob.is_attention and not knob.is_of_machine]
    if not other:
        return None
    told = f"{listed(other[:12])}{' ...' * (len(other) > 12)}"
    return f"These runs differ in more than their attention ({told}), so no difference can be laid to it alone."


def listed(words: Sequence[str]) -> str:
    """a, b and c; each once."""
    words = list(dict.fromkeys(words))
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _mean_row(rows: Sequence[Row]) -> Row:
    """The first, its figures and their bounds replaced by means; `seeds` where there are several."""
    if len(rows) == 1:
        return rows[0]
    figures = [k for k, v in rows[0].items() if isinstance(v, float) and all(isinstance(r.get(k), float) for r in rows)]
    return {**rows[0], **{k: float(np.mean([row[k] for row in rows])) for k in figures}, "seeds": len(rows)}
