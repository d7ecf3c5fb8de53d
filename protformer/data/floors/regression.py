"""Floors of sequence regression: the mean, and ridge regression on k-mers or on positions.

A constant ranks nothing, so the mean's Spearman is undefined; it stands as 0, which is what chance gives. For
variants of one parent (equal lengths, as FLIP's GB1 splits; Dallago et al. 2021) ridge on one-hot positions is the
additive model that a network has to beat before it may speak of epistasis. Measured test Spearman on GB1: positions
0.75 and 1-3-mers 0.79 on three_vs_rest, 0.34 both on low_vs_high.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy import sparse
from scipy.stats import spearmanr
from sklearn.linear_model import Ridge
from sklearn.preprocessing import MaxAbsScaler

from protformer.data.floors.classification import LabelledSequences
from protformer.data.floors.kmers import OTHER, kmer_features, residue_codes
from protformer.data.floors.result import FloorResult, cap, check_lengths, joined

__all__ = ["regression_floors", "regression_metrics"]

_PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
_HELD_OUT = 0.1
_FEWEST_TO_HOLD_OUT = 20


def regression_metrics(targets: Any, predictions: Any) -> dict[str, float]:
    """Spearman's rank correlation (0 where a side is constant), and root mean square error in the targets' unit."""
    targets, predictions = np.asarray(targets, dtype=np.float64), np.asarray(predictions, dtype=np.float64)
    if targets.size == 0:
        return {"spearman": float("nan"), "rmse": float("nan")}
    constant = np.ptp(targets) == 0 or np.ptp(predictions) == 0
    spearman = 0.0 if constant else float(np.asarray(spearmanr(targets, predictions)[0]))
    return {"spearman": spearman, "rmse": float(np.sqrt(np.mean((targets - predictions) ** 2)))}


def regression_floors(
    train: LabelledSequences,
    evals: Mapping[str, LabelledSequences],
    *,
    max_sequences: int = 10_000,
    seed: int = 0,
) -> dict[str, list[FloorResult]]:
    """Fit `mean`, `1-3-mers` and, where all lengths are equal, `positions` on `train`; score on every set of `evals`.

    `labels` are numbers [n]. The ridge penalty is chosen on a held-out tenth of the training records and the model
    refitted on all; above `max_sequences` a sample drawn by `seed` is fitted, and the note says so.
    """
    for name, data in {"train": train, **evals}.items():
        check_lengths(f"targets ({name})", data.sequences, data.labels)
    if len(train.sequences) == 0:
        raise ValueError("there is no training sequence to fit a floor on")
    targets = np.asarray(train.labels, dtype=np.float64)
    mean = float(targets.mean())
    results = {
        split: [FloorResult("mean", regression_metrics(data.labels, np.full(len(data.labels), mean)), "constant")]
        for split, data in evals.items()
    }

    chosen, sampled = cap(len(targets), max_sequences, seed)
    sequences = [train.sequences[int(i)] for i in chosen]
    targets = targets[chosen]
    featurisers: list[tuple[str, Callable[[Sequence[str]], Any]]] = [("1-3-mers", kmer_features)]
    if len({len(s) for data in (train, *evals.values()) for s in data.sequences}) == 1:
        featurisers.append(("positions", _one_hot))
    for name, featurise in featurisers:
        scaler = MaxAbsScaler(copy=False)
        features = scaler.fit_transform(featurise(sequences))
        model, penalty = _ridge(features, targets, seed)
        note = joined(f"ridge regression, penalty {penalty:g}", sampled)
        for split, data in evals.items():
            rows = scaler.transform(featurise(data.sequences))
            predicted = model.predict(rows) if len(data.sequences) else np.zeros(0)
            results[split].append(FloorResult(name, regression_metrics(data.labels, predicted), note))
    return results


def _one_hot(sequences: Sequence[str]) -> sparse.csr_matrix:
    """Float32 CSR [n, length x 21], for sequences of one length."""
    codes, lengths = residue_codes(sequences)
    length, letters = int(lengths[0]) if len(lengths) else 0, OTHER + 1
    columns = codes.reshape(len(sequences), length) + np.arange(length, dtype=np.int64) * letters
    return sparse.csr_matrix(
        (np.ones(columns.size, dtype=np.float32), columns.ravel(), np.arange(len(sequences) + 1) * length),
        shape=(len(sequences), length * letters),
    )


def _ridge(features: Any, targets: np.ndarray, seed: int) -> tuple[Ridge, float]:
    penalty = _PENALTIES[len(_PENALTIES) // 2]
    if len(targets) >= _FEWEST_TO_HOLD_OUT:
        shuffled = np.random.default_rng(seed).permutation(len(targets))
        held, fitted = np.split(shuffled, [int(_HELD_OUT * len(targets))])
        errors = [
            np.mean((_fit_ridge(features[fitted], targets[fitted], p).predict(features[held]) - targets[held]) ** 2)
            for p in _PENALTIES
        ]
        penalty = _PENALTIES[int(np.argmin(errors))]
    return _fit_ridge(features, targets, penalty), penalty


def _fit_ridge(features: Any, targets: np.ndarray, penalty: float) -> Ridge:
    return Ridge(alpha=penalty, solver="lsqr", tol=1e-5).fit(features, targets)  # sparse, and nothing random in it
