"""A whole simulated set: its files, and the report of what can be learnt from them.

Files of a set, all plain text: `<split>.fasta` and `<split>.tsv` (columns id, family, split, states) for the splits
train, valid, test and unseen; `trees.nwk`, one Newick tree a family, named; and `demo.json`, the report.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from protformer.data.simulate.family import SPLITS, TRAIN, Family, Settings, draw_family
from protformer.data.simulate.profiles import STATE_OF_SITE, Site
from protformer.data.simulate.substitution import RESIDUES
from protformer.data.simulate.tree import newick
from protformer.errors import ProtformerError

REPORT_NAME = "demo.json"
TREES_NAME = "trees.nwk"
LINE = 80  # residues a line of FASTA


class Tally:
    """Sums over the residues of one split, from which its perplexities follow."""

    def __init__(self) -> None:
        self.counts = np.zeros((len(Site), len(RESIDUES)))  # residues by site class
        self.lengths: list[int] = []
        self.identity: list[float] = []
        self.families: dict[str, np.ndarray] = {}  # entropy, loss, paired entropy, paired alone, paired count: sums

    def add(self, family: Family, leaf: int) -> None:
        columns = family.columns[leaf]
        np.add.at(self.counts, (family.sites[columns], family.residues[leaf, columns]), 1)
        self.lengths.append(len(columns))
        if TRAIN in family.split:
            self.identity.append(family.nearest_training_identity(leaf))
        bound, paired = family.bound, family.bound.paired[columns]
        entropy, alone = bound.entropy[leaf, columns], bound.alone[leaf, columns]
        loss = bound.loss[leaf, columns].sum()
        terms = np.array([entropy.sum(), loss, entropy[paired].sum(), alone[paired].sum(), paired.sum()])
        self.families[family.name] = self.families.get(family.name, 0.0) + terms


def simulate(
    settings: Settings, out: Path, *, force: bool = False, progress: Callable[[str], None] | None = None
) -> dict:
    """Draws the set of `settings`, writes its files into the folder `out`, and returns the report.

    Every file is written under a temporary name and all are renamed at the end, the report last, so that a set that was
    interrupted is never taken for a whole one. The bytes are a function of the settings (and of numpy's generators).

    Raises ProtformerError when a file is there already and `force` is not given, or when the settings cannot be.
    """
    check(settings)
    names = [f"{split}{ending}" for split in SPLITS for ending in (".fasta", ".tsv")] + [TREES_NAME, REPORT_NAME]
    there = [name for name in names if (out / name).exists()]
    if there and not force:
        raise ProtformerError(f"{out / there[0]} is there already; pass --force to write over it, or another --out.")
    out.mkdir(parents=True, exist_ok=True)
    parts = {name: out / f".{name}.part" for name in names}
    try:
        report = _write(settings, parts, progress)
        for name in names:
            parts[name].replace(out / name)
    finally:
        for part in parts.values():
            part.unlink(missing_ok=True)
    return report


def check(settings: Settings) -> None:
    """Raises ProtformerError for settings that describe no set."""
    if settings.families < 1 or settings.unseen_families < 0:
        raise ProtformerError(
            f"--families must be at least 1, not {settings.families}, and --unseen-families at least 0."
        )
    if settings.members < 6 or settings.unseen_members < 2:
        raise ProtformerError(
            f"A family needs at least 6 members to be split into train, valid and test (--members {settings.members}), "
            f"and an unseen one at least 2 (--unseen-members {settings.unseen_members})."
        )
    if not 30 <= settings.min_length <= settings.median_length <= settings.max_length:
        raise ProtformerError(
            f"Lengths must satisfy 30 <= min <= median <= max, not {settings.min_length}, {settings.median_length:g}, "
            f"{settings.max_length}."
        )
    if not 0 < settings.held_out <= 0.3:
        raise ProtformerError(
            f"--held-out must be above 0 and at most 0.3 (it is taken twice), not {settings.held_out:g}."
        )
    if not 0 < settings.depth[0] <= settings.depth[1]:
        raise ProtformerError(f"--depth takes two positive numbers, the lower first, not {settings.depth}.")
    if settings.seed < 0:
        raise ProtformerError(f"--seed must be 0 or more, not {settings.seed}.")


def draw_families(settings: Settings) -> Iterator[Family]:
    """All families of the set, one at a time, the unseen ones last."""
    for index in range(settings.families + settings.unseen_families):
        yield draw_family(settings, index)


def _write(settings: Settings, parts: dict[str, Path], progress: Callable[[str], None] | None) -> dict:
    tallies = {split: Tally() for split in SPLITS}
    seen: set[str] = set()
    duplicates = 0
    folds: dict[str, int] = {}
    text: dict[str, list[str]] = {name: [] for name in parts}
    for split in SPLITS:
        text[f"{split}.tsv"].append("id\tfamily\tsplit\tstates\n")
    total = settings.families + settings.unseen_families
    for number, family in enumerate(draw_families(settings)):
        folds[family.fold] = folds.get(family.fold, 0) + 1
        text[TREES_NAME].append(f"SIM_{family.name}\t" + newick(family.tree, _names(family)) + "\n")
        for leaf, split in sorted(enumerate(family.split), key=lambda item: SPLITS.index(item[1])):
            sequence = family.sequence(leaf)
            if sequence in seen:  # so rare that no split needs to be weighed: the first in the order of splits stays
                duplicates += 1
                continue
            seen.add(sequence)
            name = family.identifier(leaf)
            lines = "".join(sequence[at : at + LINE] + "\n" for at in range(0, len(sequence), LINE))
            text[f"{split}.fasta"].append(f">{name} simulated family={family.name} split={split}\n{lines}")
            text[f"{split}.tsv"].append(f"{name}\t{family.name}\t{split}\t{family.states(leaf)}\n")
            tallies[split].add(family, leaf)
        if progress is not None:
            progress(f"family {number + 1} of {total}")
    report = {
        "simulated": True,
        "what": "Protein families made by protformer simulate. No sequence here is a real protein.",
        "settings": settings.as_dict(),
        "folds": dict(sorted(folds.items())),
        "duplicates_left_out": duplicates,
        "files": {},
        "perplexity": {},
    }
    for name, lines in text.items():
        if name == REPORT_NAME:
            continue
        data = "".join(lines).encode()
        parts[name].write_bytes(data)
        report["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    for split in SPLITS:
        if tallies[split].lengths:
            report["files"][f"{split}.fasta"] |= _contents(tallies[split])
            report["perplexity"][split] = perplexities(tallies[split], tallies[TRAIN].counts)
    report["perplexity_explained"] = EXPLAINED
    parts[REPORT_NAME].write_text(json.dumps(report, indent=1) + "\n")
    return report


def _names(family: Family) -> list[str]:
    return [family.identifier(leaf) for leaf in range(len(family.split))]


def _contents(tally: Tally) -> dict:
    lengths = np.array(tally.lengths)
    states = np.array([tally.counts[[s == state for s in STATE_OF_SITE]].sum() for state in "HEC"])
    contents = {
        "sequences": len(lengths),
        "residues": int(lengths.sum()),
        "families": len(tally.families),
        "shortest": int(lengths.min()),
        "median": float(np.median(lengths)),
        "longest": int(lengths.max()),
        "states": {state: round(share, 4) for state, share in zip("HEC", states / states.sum(), strict=True)},
    }
    if tally.identity:
        contents["median_identity_to_nearest_training_member"] = round(float(np.nanmedian(tally.identity)), 3)
    return contents


EXPLAINED = {
    "unigram": "residue frequencies of train.fasta, on this file",
    "three_states": "the same, given the H/E/C label of the residue",
    "state_oracle": "the same, given the site class: state and face, or position in a turn or cap",
    "best_reachable": "exp of the mean entropy given everything but the residue (protformer.data.simulate.bound); at "
    "masked positions no model that has not seen the sequence can be better, but for the luck of the draw",
    "best_reachable_95": "where the mean loss of the true posterior would fall 95 times in 100, with its scatter "
    "over families",
    "realised": "exp of the mean loss of that posterior on these very residues; differs from best_reachable by luck "
    "alone",
    "contacts": "share of residues in a covarying pair, and the best reachable perplexity at those with and without "
    "sight of the partner in the same sequence",
}


def perplexities(tally: Tally, training_counts: np.ndarray) -> dict:
    """The floors and the bound of one file, as perplexities. `training_counts` [classes, 20] of train.fasta."""
    counts = tally.counts
    states = np.array([[s == state for s in STATE_OF_SITE] for state in "HEC"], dtype=float)
    terms = np.array(list(tally.families.values()))
    entropy, loss, paired, alone, pairs = terms.sum(0)
    residues = counts.sum()
    # Scatter over families, because members of one are not independent.
    error = 1.96 * np.sqrt(((terms[:, 1] - terms[:, 0]) ** 2).sum()) / residues
    best = entropy / residues
    return {
        "unigram": _perplexity(counts.sum(0, keepdims=True), training_counts.sum(0, keepdims=True)),
        "three_states": _perplexity(states @ counts, states @ training_counts),
        "state_oracle": _perplexity(counts, training_counts),
        "best_reachable": round(float(np.exp(best)), 3),
        "best_reachable_95": [round(float(np.exp(best - error)), 3), round(float(np.exp(best + error)), 3)],
        "realised": round(float(np.exp(loss / residues)), 3),
        "contacts": {
            "share": round(float(pairs / residues), 4),
            "with_partner": round(float(np.exp(paired / max(pairs, 1))), 3),
            "without_partner": round(float(np.exp(alone / max(pairs, 1))), 3),
        },
    }


def _perplexity(counts: np.ndarray, training_counts: np.ndarray) -> float:
    """exp of the mean -log frequency; frequencies [classes, 20] from training counts, one added to each."""
    smoothed = training_counts + 1.0
    frequencies = smoothed / smoothed.sum(1, keepdims=True)
    return round(float(np.exp(-(counts * np.log(frequencies)).sum() / counts.sum())), 3)
