"""Floors of sequence classification: the majority class, and a linear model on short k-mers.

On DeepLoc's ten locations (Light-Attention split, 8,950 training sequences) the test accuracies are 29.1 % for the
majority, 50.1 % for 1-3-mers and 57.5 % with the termini counted apart, fitted in half a minute on one core (an
earlier measurement with plain frequencies: 49.9 and 56.2 %). A network below these has not found in a whole sequence
what three neighbouring letters tell.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.preprocessing import MaxAbsScaler

from protformer.data.floors.kmers import chunked, kmer_features
from protformer.data.floors.result import (
    FloorResult,
    binary_metrics,
    cap,
    check_lengths,
    joined,
    multiclass_metrics,
)

__all__ = ["LabelledSequences", "classification_floors"]

Predict = Callable[[Sequence[str]], np.ndarray]

_STRENGTHS = (0.01, 0.1, 1.0)  # scikit-learn's C; on localization the held-out likelihood peaks at 0.1
_MAX_ITERATIONS = 300
_MAX_WORK = 250_000  # sequences x classes that L-BFGS finishes in well under a minute on one core
_HELD_OUT = 0.1
_FEWEST_TO_HOLD_OUT = 50


class LabelledSequences(NamedTuple):
    """`labels`: a string or integer a sequence; for several, an array [n, labels] of 0 and 1; or numbers to regress."""

    sequences: Sequence[str]
    labels: Any


def classification_floors(
    train: LabelledSequences,
    evals: Mapping[str, LabelledSequences],
    *,
    termini: int = 50,
    max_sequences: int = 10_000,
    seed: int = 0,
) -> dict[str, list[FloorResult]]:
    """Fit each floor on `train` once and score it on every set of `evals`: accuracy, macro-F1, MCC.

    The floors are `majority`, `1-3-mers` and `1-3-mers with termini` (of `termini` residues). Above `max_sequences` a
    sample drawn by `seed` is fitted, and the note says so; evaluation sets are always scored whole. The
    regularisation is chosen on a held-out tenth of the training records, so no evaluation set is ever looked at.
    Several labels a sequence: one model a label, each against the rest. A class that only an evaluation set has
    counts as wrong.
    """
    for name, data in {"train": train, **evals}.items():
        check_lengths(f"labels ({name})", data.sequences, data.labels)
    if len(train.sequences) == 0:
        raise ValueError("there is no training sequence to fit a floor on")
    labels = np.asarray(train.labels)
    metrics = multiclass_metrics if labels.ndim == 1 else binary_metrics
    chosen, sampled = cap(len(labels), max_sequences, seed)
    sequences = [train.sequences[int(i)] for i in chosen]

    floors: list[tuple[str, Predict, str]] = [("majority", *_majority(labels))]
    for name, ends in (("1-3-mers", 0), ("1-3-mers with termini", termini)):
        predict, note = _kmer_model(sequences, labels[chosen], ends, seed)
        floors.append((name, predict, joined(note, sampled)))
    return {
        split: [
            FloorResult(name, metrics(np.asarray(data.labels), predict(data.sequences)), note)
            for name, predict, note in floors
        ]
        for split, data in evals.items()
    }


def _majority(labels: np.ndarray) -> tuple[Predict, str]:
    if labels.ndim == 2:
        common = (labels.mean(0) > 0.5).astype(np.int64)
        return lambda sequences: np.tile(common, (len(sequences), 1)), "per label, whether most records have it"
    classes, counts = np.unique(labels, return_counts=True)
    common = classes[counts.argmax()]
    return lambda sequences: np.repeat(common, len(sequences)), f"always {common}"


def _kmer_model(sequences: Sequence[str], labels: np.ndarray, termini: int, seed: int) -> tuple[Predict, str]:
    features = kmer_features(sequences, termini=termini)
    scaler = MaxAbsScaler(copy=False).fit(features)
    features = scaler.transform(features)
    if labels.ndim == 1:
        choose, note = _fit_classes(features, labels, seed)
    else:
        choose, note = _fit_labels(features, labels)

    def predict(sequences: Sequence[str]) -> np.ndarray:
        # In chunks: the features of a large evaluation set would outgrow the sequences hundreds of times.
        parts = [choose(scaler.transform(kmer_features(chunk, termini=termini))) for chunk in chunked(sequences)]
        return np.concatenate(parts) if parts else labels[:0]

    return predict, note


def _fit_classes(features: Any, labels: np.ndarray, seed: int) -> tuple[Callable, str]:
    classes = np.unique(labels)
    if len(classes) == 1:
        return lambda rows: np.repeat(classes[0], rows.shape[0]), "one class in training"
    if len(labels) * len(classes) > _MAX_WORK:
        # One coefficient vector a class makes the logistic model's time grow with the classes; its mean does not.
        return _nearest_mean(features, labels), f"nearest mean of {len(classes)} classes"
    strength = _choose_strength(features, labels, seed)
    model, note = _logistic(features, labels, strength)
    return model.predict, joined(f"logistic regression, C={strength:g}", note)


def _nearest_mean(features: sparse.csr_matrix, labels: np.ndarray) -> Callable:
    """argmin over classes of |x - m|^2, which is argmax of x.m - |m|^2 / 2, with means that stay sparse."""
    classes, codes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    weights = (1 / counts[codes]).astype(np.float32)
    averages = sparse.csr_matrix((weights, (codes, np.arange(len(codes)))), shape=(len(classes), len(codes)))
    means = sparse.csr_matrix(averages @ features)
    halves = np.asarray(means.power(2).sum(1)).ravel() / 2
    return lambda rows: classes[((rows @ means.T).toarray() - halves).argmax(axis=1)]


def _fit_labels(features: Any, labels: np.ndarray) -> tuple[Callable, str]:
    if labels.size > _MAX_WORK:
        common = (labels.mean(0) > 0.5).astype(np.int64)
        return lambda rows: np.tile(common, (rows.shape[0], 1)), "too many labels for a model each: majority"
    # A label that every record has, or none, needs no model.
    models = [
        _logistic(features, column, 0.1)[0] if len(np.unique(column)) == 2 else int(column[0]) for column in labels.T
    ]

    def choose(rows: Any) -> np.ndarray:
        columns = [np.full(rows.shape[0], m) if isinstance(m, int) else m.predict(rows) for m in models]
        return np.stack(columns, axis=1)

    return choose, "a logistic regression a label, C=0.1"


def _choose_strength(features: Any, labels: np.ndarray, seed: int) -> float:
    """The C of best likelihood on a held-out tenth; the accuracy of so few records would be too coarse a ruler."""
    shuffled = np.random.default_rng(seed).permutation(len(labels))
    held, fitted = np.split(shuffled, [int(_HELD_OUT * len(labels))])
    known = np.unique(labels[fitted])
    held = held[np.isin(labels[held], known)]
    if len(labels) < _FEWEST_TO_HOLD_OUT or len(known) < 2 or len(held) == 0:
        return _STRENGTHS[1]
    losses = []
    for strength in _STRENGTHS:
        model, _ = _logistic(features[fitted], labels[fitted], strength)
        log_probs = model.predict_log_proba(features[held])
        losses.append(-log_probs[np.arange(len(held)), np.searchsorted(model.classes_, labels[held])].mean())
    return _STRENGTHS[int(np.argmin(losses))]


def _logistic(features: sparse.csr_matrix, labels: np.ndarray, strength: float) -> tuple[LogisticRegression, str]:
    model = LogisticRegression(C=strength, tol=1e-3, max_iter=_MAX_ITERATIONS)  # L-BFGS from zero: nothing random in it
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # said in the note instead
        model.fit(features, labels)
    stopped = int(np.max(model.n_iter_)) >= _MAX_ITERATIONS
    return model, f"stopped at {_MAX_ITERATIONS} iterations" if stopped else ""
