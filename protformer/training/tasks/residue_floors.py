"""Floors of residue prediction, as rows: training frequencies, the protein's composition, flanking residues."""

from typing import NamedTuple

import numpy as np

from protformer.data import alphabet
from protformer.data.corpus import Corpus
from protformer.data.floors import composition
from protformer.data.floors.composition import STANDARD_TOKENS
from protformer.data.floors.flanks import AROUND, BEFORE, fit_flanks, flank_log_probs
from protformer.data.objectives import Objective
from protformer.training.tasks.base import Row, Split

NOTES = {
    "unigram": "residue frequencies of the training set",
    "own composition": "the protein's visible residues, smoothed with the unigram",
    "flanks": "own composition times flanking residues (naive Bayes)",
}
_AT_ONCE = 200_000  # targets whose distributions are held at a time: 32 MB each


class _Targets(NamedTuple):
    """Headline targets of an evaluation set, and what is shown around them."""

    targets: np.ndarray
    """Token ids, int64 [n]."""
    owners: np.ndarray
    """The record of each, int64 [n]."""
    shown: np.ndarray
    """What the model sees, segments end to end, int64 [total]."""
    rows: np.ndarray
    """Where in `shown` each target stands, int64 [n]."""
    visible: np.ndarray
    """Each record's residues that are no target, int64 [records, 33]."""


def residue_floors(
    train: Split,
    evaluations: dict[str, Split],
    objectives: dict[str, Objective],
    *,
    causal: bool,
    headline: str,
    seed: int,
) -> dict[str, list[Row]]:
    """Rows by evaluation set, with NLL, targets and hits of each protein; with `causal`, from what stands before."""
    corpus = train.corpus
    log_unigram = composition.unigram_log_probs(corpus.tokens)
    strength = composition.fit_prior_strength(corpus.tokens, corpus.offsets, log_unigram, seed=seed)
    places = BEFORE if causal else AROUND
    flanks = fit_flanks(corpus.tokens, corpus.offsets, log_unigram, places=places, seed=seed)
    found: dict[str, list[Row]] = {}
    for name, split in evaluations.items():
        scored = _next_targets(split.corpus) if causal else _masked_targets(objectives[name])
        own = None if causal else composition.composition_log_probs(scored.visible, log_unigram, strength)
        sums: dict[str, list[np.ndarray]] = {floor: [] for floor in NOTES}
        for start in range(0, len(scored.targets), _AT_ONCE):
            part = slice(start, start + _AT_ONCE)
            prior = (
                composition.prefix_composition_log_probs(scored.shown, scored.rows[part], log_unigram, strength)
                if own is None
                else own[scored.owners[part], STANDARD_TOKENS]
            )
            each = {
                "unigram": np.broadcast_to(log_unigram[STANDARD_TOKENS], prior.shape),
                "own composition": prior,
                "flanks": flank_log_probs(prior, scored.shown, scored.rows[part], flanks),
            }
            targets = scored.targets[part] - STANDARD_TOKENS.start
            for floor, log_probs in each.items():
                nll = -log_probs[np.arange(len(targets)), targets]
                sums[floor].append(np.stack([nll, log_probs.argmax(axis=1) == targets]))
        scores = {floor: np.concatenate(parts, axis=1) for floor, parts in sums.items() if parts}
        found[name] = [_row(floor, each, scored.owners, headline) for floor, each in scores.items()]
    return found


def _row(name: str, scores: np.ndarray, owners: np.ndarray, headline: str) -> Row:
    """`scores` are NLL and hits, [2, targets]."""
    nll, correct = scores
    records, where, counts = np.unique(owners, return_inverse=True, return_counts=True)
    columns = [records, np.bincount(where, weights=nll), counts, np.bincount(where, weights=correct)]
    figures = {f"perplexity_{headline}": float(np.exp(nll.mean())), f"accuracy_{headline}": float(correct.mean())}
    return Row(name, figures, NOTES[name], np.stack(columns, axis=1).astype(np.float64))


def _masked_targets(objective: Objective) -> _Targets:
    corpus = objective.corpus
    targets, owners, shown, rows = [], [], [], []
    visible = np.zeros((len(corpus), len(alphabet.TOKENS)), np.int64)
    before = 0
    for record in range(len(corpus)):
        example = objective.example(record, 0)
        masked = example.targets[example.headline]
        targets.append(masked)
        owners.append(np.full(len(masked), record, np.int64))
        shown.append(example.tokens)
        rows.append(example.rows[example.headline] + before)
        before += len(example.tokens)
        visible[record] = np.bincount(corpus.sequence(record), minlength=len(alphabet.TOKENS))
        visible[record] -= np.bincount(example.targets, minlength=len(alphabet.TOKENS))
    flat = [np.concatenate(part).astype(np.int64) for part in (targets, owners, shown, rows)]
    return _Targets(flat[0], flat[1], flat[2], flat[3], visible)


def _next_targets(corpus: Corpus) -> _Targets:
    lengths = corpus.lengths
    shown = np.full(int(lengths.sum()) + 2 * len(corpus), alphabet.EOS, np.int64)
    starts = corpus.offsets[:-1] + 2 * np.arange(len(corpus))
    shown[starts] = alphabet.CLS
    owners = np.repeat(np.arange(len(corpus)), lengths)
    rows = np.arange(len(corpus.tokens)) + 2 * owners + 1
    shown[rows] = corpus.tokens
    standard = alphabet.IS_STANDARD[corpus.tokens]
    none = np.zeros((len(corpus), len(alphabet.TOKENS)), np.int64)
    return _Targets(corpus.tokens[standard].astype(np.int64), owners[standard], shown, rows[standard], none)
