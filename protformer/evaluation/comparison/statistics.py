"""What the runs' figures say, with their intervals (`resampling`): of each method alone, and beside the others.

A method's figure is the mean over its seeds; perplexity is that of the set's summed NLL, never a mean over proteins.

The **share of the gap** of a method is (uniform's NLL - its NLL) / (uniform's - exact's), per target: 0 % is no better
than attending to all alike, 100 % is as good as exact attention. Where the interval of uniform - exact holds zero there
is no gap to have a share of.
"""

import re
from collections.abc import Sequence
from typing import Any

import numpy as np

from protformer.evaluation.comparison.comparability import Arm
from protformer.evaluation.comparison.reading import Run
from protformer.evaluation.comparison.resampling import RESAMPLES, Resampled, interval, spread
from protformer.evaluation.headlines import Headline
from protformer.evaluation.methods import FLOOR, REFERENCE
from protformer.evaluation.runs import trained_figures

ALL = "all"
"""The bin of all proteins."""
UNBINNED = "not in the table"
FEWEST = 10
"""Proteins of a bin below which nothing is said about others like them: no interval, no share of a gap."""
NOVELTY = ("nohit", "remote", "mid", "close", "homolog")
"""From proteins that resemble nothing in the training set to those that resemble something closely."""

Row = dict[str, Any]


class Scores:
    """NLL and accuracy per target of every run on one set, in all proteins and in each draw."""

    def __init__(self, runs: Sequence[Run], name: str, draws: Resampled) -> None:
        self._draws = draws
        of_set = [run.proteins[name] for run in runs]
        columns = [of_set[0].targets, *(p.nll for p in of_set), *(p.correct for p in of_set)]
        targets, *sums = draws.totals(np.stack(columns, axis=1)).T
        with np.errstate(invalid="ignore", divide="ignore"):  # a draw of a tiny bin may hold no target
            per_target = [column / targets for column in sums]
        self._nll = {id(run): per_target[place] for place, run in enumerate(runs)}
        self._accuracy = {id(run): per_target[len(runs) + place] for place, run in enumerate(runs)}

    def mean(self, arm: Arm, seeds: Sequence[int], figure: str) -> np.ndarray:
        """Of `figure` ("nll", "perplexity", "accuracy") over seeds, [2, 1 + draws]: with the seeds drawn, and with each
        counted alike. The first of both is the estimate itself."""
        runs = arm.by_seed()
        source = self._accuracy if figure == "accuracy" else self._nll
        values = np.stack([source[id(runs[seed])] for seed in seeds], axis=1)
        if figure == "perplexity":
            values = np.exp(values)
        return np.stack([(self._draws.seed_weights(seeds) * values).sum(1), values.mean(1)])


def common_seeds(*arms: Arm) -> list[int]:
    """Seeds that all have: their runs saw the data in one order. Empty where there are none."""
    shared = set.intersection(*(set(arm.by_seed()) for arm in arms))
    return sorted(shared)


def _fewest_seeds(shared: Sequence[int], *arms: Arm) -> int:
    """Of which an interval knows the spread: those in common, or else of the arm that has fewest, but several."""
    return len(shared) or min((len(arm.runs) for arm in arms if len(arm.runs) > 1), default=1)


def set_rows(arms: Sequence[Arm], name: str, headline: Headline, *, resamples: int = RESAMPLES) -> list[Row]:
    """The rows of one evaluation set: each method on all proteins, then by novelty bin where the runs know bins."""
    runs = [run for arm in arms for run in arm.runs]
    if not all(name in run.proteins for run in runs):
        return [_row_of_figures(arm, name, headline) for arm in arms]
    bins = next((r.proteins[name].bins for r in runs if r.proteins[name].knows_bins), runs[0].proteins[name].bins)
    chosen = {ALL: np.ones(len(bins), dtype=bool)}
    if any(bins.tolist()):  # (runs that know bins agree on them: comparability)
        # (a bin that its table calls by one of our own names stays a bin)
        ours = (ALL, UNBINNED)
        named = {b: f"{b} (bin)" if b in ours else str(b) or UNBINNED for b in in_order_of_novelty(bins.tolist())}
        chosen |= {name: bins == b for b, name in named.items()}
    rows = []
    for part, members in chosen.items():
        draws = Resampled(members, resamples=resamples)
        scores = Scores(runs, name, draws)
        targets = int(runs[0].proteins[name].targets[members].sum())
        for arm in arms:
            row = _row_of_figures(arm, name, headline) if part == ALL else _base(arm, name, part)
            row |= {"proteins": int(members.sum()), "targets": targets}
            row |= _absolute(arm, scores, headline)
            row |= _against_reference(arm, arms, scores, headline)
            if headline.is_perplexity:
                row |= _share(arm, arms, scores)
            rows.append(row if members.sum() >= FEWEST else _without_intervals(row))
    return rows


def _without_intervals(row: Row) -> Row:
    kept = {k: v for k, v in row.items() if not k.endswith(("_low", "_high")) and k not in ("share", "gap")}
    return {**kept, "share_note": f"fewer than {FEWEST} proteins"} if "gap" in row else kept


def in_order_of_novelty(bins: Sequence[str]) -> list[str]:
    """Each once, most novel first; other names by the alphabet."""

    def place(name: str) -> int:
        # (names may go on, as in "mid_id30_qcov50")
        known = (index for index, word in enumerate(NOVELTY) if re.match(rf"{word}(?![a-z])", name))
        return next(known, len(NOVELTY))

    return sorted(set(bins), key=lambda name: (place(name), name))


def _base(arm: Arm, name: str, part: str) -> Row:
    return {
        "set": name, "bin": part, "kind": "method", "method": arm.label, "family": arm.method, "seeds": len(arm.runs),
    }  # fmt: skip


def _row_of_figures(arm: Arm, name: str, headline: Headline) -> Row:
    """From the runs' own closing figures: means and spread over seeds, without proteins."""
    row: Row = {**_base(arm, name, ALL), "proteins": arm.runs[0].metrics["sets"].get(name, {}).get("sequences")}
    for column in (headline.column, *headline.beside):
        values = {str(run.seed): trained_figures(run.metrics, name).get(column) for run in arm.runs}
        by_seed = {seed: value for seed, value in values.items() if value is not None}
        known = list(by_seed.values())
        if not known:
            continue
        row[column] = float(np.mean(known))
        row |= {"seeds": len(known)} if column == headline.column else {}
        row |= {f"{column}_by_seed": by_seed} if column == headline.column else {}
        row |= {f"{column}_{key}": value for key, value in spread(known).items()}
        if len(known) == 1:
            figures = trained_figures(arm.runs[0].metrics, name)
            row |= {f"{column}_{end}": figures.get(f"{column}_{end}") for end in ("low", "high")}
    return row


def _measures(headline: Headline) -> list[tuple[str, str]]:
    """(column, figure) of what proteins tell."""
    if headline.is_perplexity:
        return [(headline.column, "perplexity"), (headline.beside[0], "accuracy")]
    return [("accuracy", "accuracy")] if "accuracy" in (headline.column, *headline.beside) else []


def _absolute(arm: Arm, scores: Scores, headline: Headline) -> Row:
    row: Row = {}
    seeds = list(arm.by_seed())
    for column, figure in _measures(headline):
        ends = {"accuracy": {"least": 0.0, "most": 1.0}, "perplexity": {"least": 1.0}}.get(figure, {})
        found = interval(scores.mean(arm, seeds, figure), seeds=len(seeds), **ends)
        row[column], row[f"{column}_low"], row[f"{column}_high"] = found
        single = [float(scores.mean(arm, [seed], figure)[0, 0]) for seed in seeds]
        row |= {f"{column}_{key}": value for key, value in spread(single).items()}
        row[f"{column}_by_seed"] = dict(zip(map(str, seeds), single, strict=True))
    if headline.is_perplexity:
        row["nll"], row["nll_low"], row["nll_high"] = interval(scores.mean(arm, seeds, "nll"), seeds=len(seeds))
    return row


def plain_arm(arms: Sequence[Arm], method: str) -> Arm | None:
    """The arm of a method that others are held against: none where the method itself was run in several settings."""
    found = [arm for arm in arms if arm.method == method]
    return found[0] if len(found) == 1 else None


def _against_reference(arm: Arm, arms: Sequence[Arm], scores: Scores, headline: Headline) -> Row:
    reference = plain_arm(arms, REFERENCE)
    if reference is None or arm is reference:
        return {}
    shared = common_seeds(arm, reference)
    row: Row = {"paired_seeds": len(shared)}
    for column, figure in _measures(headline):
        mine = scores.mean(arm, shared or list(arm.by_seed()), figure)
        theirs = scores.mean(reference, shared or list(reference.by_seed()), figure)
        estimate, low, high = interval(mine - theirs, seeds=_fewest_seeds(shared, arm, reference))
        row |= {f"{column}_difference": estimate, f"{column}_difference_low": low, f"{column}_difference_high": high}
    return row


def _share(arm: Arm, arms: Sequence[Arm], scores: Scores) -> Row:
    reference, floor = plain_arm(arms, REFERENCE), plain_arm(arms, FLOOR)
    if reference is None or floor is None:
        return {}
    _, best, worst = _three(arm=reference, reference=reference, floor=floor, scores=scores)
    of_both = _fewest_seeds(common_seeds(reference, floor), reference, floor)
    gap, gap_low, gap_high = interval(worst - best, seeds=of_both)
    row: Row = {"gap": gap, "gap_low": gap_low, "gap_high": gap_high}
    if gap_high < 0:
        return {**row, "share_note": "uniform attention is better than exact: there is no gap to close"}
    if not gap_low > 0:  # (so that NaN counts as no gap)
        return {**row, "share_note": "uniform ties with exact: these runs show nothing about attention"}
    if arm in (reference, floor):
        return row
    mine, best, worst = _three(arm=arm, reference=reference, floor=floor, scores=scores)
    shared = common_seeds(arm, reference, floor)
    row["share_seeds"] = len(shared)
    seeds = _fewest_seeds(shared, arm, reference, floor)
    if not interval(worst - best, seeds=seeds)[1] > 0:
        return {**row, "share_note": "uniform ties with exact in the seeds that this method has"}
    with np.errstate(divide="ignore", invalid="ignore"):
        shares = np.where(worst > best, (worst - mine) / (worst - best), np.nan)
    row["share"], row["share_low"], row["share_high"] = interval(shares, seeds=seeds)
    return row


def _three(*, arm: Arm, reference: Arm, floor: Arm, scores: Scores) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """NLL of all three over the seeds that they have in common, or over all that each has; [2, 1 + draws]."""
    shared = common_seeds(arm, reference, floor)
    mine, best, worst = (scores.mean(one, shared or list(one.by_seed()), "nll") for one in (arm, reference, floor))
    return mine, best, worst
