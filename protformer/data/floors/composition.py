"""Floors of masked (or next) residues: how well frequencies alone predict them.

`unigram` knows the training set's residue frequencies and nothing of the protein at hand. `own composition` also
counts the visible residues of the same protein, smoothed by a Dirichlet prior centred on the unigram: a model that
does not beat it has learnt which amino acids a protein is rich in, and nothing about their order. On 6,472 held-out
UniProt proteins (15 % of the standard residues hidden, scored at `<mask>`) they stand at perplexity 18.03 and 17.38
(accuracy 9.7 and 10.6 %), with the prior worth 166 residues; the Performer paper's empirical baseline on TrEMBL is
17.80 (arXiv 2009.14794).

Everything is in nats, in float64, and summed per target: divide sums by counts, never average perplexities.
"""

from __future__ import annotations

import numpy as np

from protformer.data.alphabet import CLS, STANDARD, TOKENS

__all__ = [
    "composition_log_probs",
    "composition_nll",
    "fit_prior_strength",
    "prefix_composition_log_probs",
    "residue_counts",
    "unigram_log_probs",
    "unigram_nll",
]

_FIRST = TOKENS.index(STANDARD[0])
STANDARD_TOKENS = slice(_FIRST, _FIRST + len(STANDARD))  # the twenty stand together
VOCAB_SIZE = len(TOKENS)


def unigram_log_probs(tokens: np.ndarray, vocab_size: int = VOCAB_SIZE) -> np.ndarray:
    """Log frequencies [vocab_size] of the twenty standard residues among `tokens` [residues], one added to each count.

    All other tokens get -inf: masked targets are drawn from the standard residues, and a floor that spared
    probability for X would be weaker than it needs to be.
    """
    flat, counts = np.asarray(tokens).ravel(), np.ones(vocab_size)
    for start in range(0, len(flat), 1 << 20):  # bincount wants eight bytes for each token that it is given
        counts += np.bincount(flat[start : start + (1 << 20)], minlength=vocab_size)
    counts = counts[STANDARD_TOKENS]
    log_probs = np.full(vocab_size, -np.inf)
    log_probs[STANDARD_TOKENS] = np.log(counts / counts.sum())
    return log_probs


def unigram_nll(targets: np.ndarray, log_probs: np.ndarray) -> np.ndarray:
    """NLL [n] of each target token [n] under one distribution [vocab]. ValueError for a target of probability zero."""
    return _finite(-log_probs[np.asarray(targets)], targets)


def residue_counts(
    tokens: np.ndarray, sequence_of_token: np.ndarray, sequences: int, vocab_size: int = VOCAB_SIZE
) -> np.ndarray:
    """Counts int64 [sequences, vocab] of tokens [n] by their sequence [n]; call it on the visible tokens alone."""
    cells = np.asarray(sequence_of_token, dtype=np.int64) * vocab_size + np.asarray(tokens)
    return np.bincount(cells, minlength=sequences * vocab_size).reshape(sequences, vocab_size)


def composition_log_probs(visible_counts: np.ndarray, log_unigram: np.ndarray, prior_strength: float) -> np.ndarray:
    """Log of the Dirichlet posterior mean (n_a + s u_a) / (n + s) over the standard residues, [sequences, vocab].

    `prior_strength` s > 0 is in residues: what the unigram weighs against the visible ones. As s grows this becomes
    the unigram; a protein with nothing visible has the unigram at any s.
    """
    if not prior_strength > 0:
        raise ValueError(f"prior_strength={prior_strength} must be positive")
    if np.isinf(prior_strength):
        return np.broadcast_to(log_unigram, np.shape(visible_counts)).copy()
    counts = np.zeros(np.shape(visible_counts))
    counts[:, STANDARD_TOKENS] = np.asarray(visible_counts)[:, STANDARD_TOKENS]
    posterior = counts + prior_strength * np.exp(log_unigram)
    with np.errstate(divide="ignore"):  # tokens outside the twenty: log 0
        return np.log(posterior) - np.log(counts.sum(1, keepdims=True) + prior_strength)


def composition_nll(
    targets: np.ndarray,
    sequence_of_target: np.ndarray,
    visible_counts: np.ndarray,
    log_unigram: np.ndarray,
    prior_strength: float,
) -> np.ndarray:
    """NLL [n] of each target [n] under its own protein's visible composition.

    `sequence_of_target` [n] indexes the rows of `visible_counts` [sequences, vocab], which must not hold the targets
    themselves.
    """
    log_probs = composition_log_probs(visible_counts, log_unigram, prior_strength)
    return _finite(-log_probs[np.asarray(sequence_of_target), np.asarray(targets)], targets)


def prefix_composition_log_probs(
    shown: np.ndarray, rows: np.ndarray, log_unigram: np.ndarray, prior_strength: float
) -> np.ndarray:
    """Log of the composition of what stands before each row, [rows, 20]: the floor of next-residue training.

    `shown` [total] holds segments `<cls>` ... `<eos>` end to end, `rows` are ascending places in it. The same Dirichlet
    model as `composition_log_probs`, seen one residue at a time, so the same `prior_strength` serves.
    """
    unigram = log_unigram[STANDARD_TOKENS]
    if np.isinf(prior_strength) or not len(rows):
        return np.broadcast_to(unigram, (len(rows), len(unigram))).copy()
    start = int(np.flatnonzero(shown[: rows[0] + 1] == CLS)[-1])
    part = np.asarray(shown[start : rows[-1] + 1], dtype=np.int64)
    standard = (part >= STANDARD_TOKENS.start) & (part < STANDARD_TOKENS.stop)
    seen = np.zeros((len(part), len(unigram)))
    seen[standard, part[standard] - STANDARD_TOKENS.start] = 1.0
    running = np.cumsum(seen, axis=0) - seen  # without the row itself
    opens = np.flatnonzero(part == CLS)
    first = opens[np.searchsorted(opens, rows - start, side="right") - 1]
    counts = running[rows - start] - running[first]
    return np.log(counts + prior_strength * np.exp(unigram)) - np.log(
        counts.sum(axis=1, keepdims=True) + prior_strength
    )


def fit_prior_strength(
    tokens: np.ndarray,
    offsets: np.ndarray,
    log_unigram: np.ndarray,
    *,
    hidden_fraction: float = 0.15,
    max_sequences: int = 2000,
    seed: int = 0,
) -> float:
    """Prior strength in residues that makes hidden residues of training proteins likeliest.

    `tokens` [residues] and `offsets` [n + 1] hold the training proteins end to end. At most `max_sequences` of them,
    drawn by `seed`, have `hidden_fraction` of their standard residues hidden, and a grid over the log of the strength
    (0.1 to 1e6) is searched and twice refined: the likelihood is smooth and one-dimensional, finer than that nothing
    changes. Fit it on training proteins only; fitted on the evaluation set it would not be a floor but a peek.
    """
    generator = np.random.default_rng(seed)
    total = len(offsets) - 1
    chosen = (
        np.sort(generator.choice(total, max_sequences, replace=False)) if total > max_sequences else np.arange(total)
    )
    lengths = np.diff(offsets)[chosen]
    residues = np.concatenate([tokens[offsets[i] : offsets[i + 1]] for i in chosen]) if len(chosen) else tokens[:0]
    owner = np.repeat(np.arange(len(chosen)), lengths)
    standard = (residues >= STANDARD_TOKENS.start) & (residues < STANDARD_TOKENS.stop)
    hidden = standard & (generator.random(len(residues)) < hidden_fraction)
    if not hidden.any():
        return float("inf")  # nothing to learn from: the unigram itself
    visible = residue_counts(residues[~hidden], owner[~hidden], len(chosen), len(log_unigram))
    targets, owner = residues[hidden].astype(np.int64), owner[hidden]

    low, high = np.log(0.1), np.log(1e6)
    for _ in range(3):
        grid = np.linspace(low, high, 17)
        losses = [composition_nll(targets, owner, visible, log_unigram, float(np.exp(s))).sum() for s in grid]
        best = int(np.argmin(losses))
        low, high = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    return float(np.exp(grid[best]))


def _finite(nll: np.ndarray, targets: np.ndarray) -> np.ndarray:
    if not np.all(np.isfinite(nll)):
        token = int(np.asarray(targets)[~np.isfinite(nll)][0])
        raise ValueError(
            f"target token {token} is not one of the twenty standard residues; the floors predict only those"
        )
    return nll
