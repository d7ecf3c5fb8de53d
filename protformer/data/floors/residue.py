"""Floors of residue classification: the majority state, the residue itself, and a window around it.

For three-state secondary structure, trained on FLIP's set and scored on CB513, the residue alone gives Q3 = 48.6 %
and a window of fifteen 62.5 % (majority 34.9 %), in 2.3 s on one core. The window is what the earliest predictors saw
(Qian & Sejnowski, J. Mol. Biol. 202, 1988: 13 to 17 residues): a network that does not beat it uses nothing from
afar.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from scipy import sparse
from sklearn.linear_model import LogisticRegression

from protformer.data.floors.kmers import OTHER, residue_codes
from protformer.data.floors.result import FloorResult, check_lengths, multiclass_metrics
from protformer.errors import ProtformerError

__all__ = ["LabelledResidues", "residue_floors"]

_BEYOND_END = OTHER + 1  # the code of a window's places outside the sequence
_CODES = OTHER + 2
_CHUNK = 500_000  # residues scored at once


class LabelledResidues(NamedTuple):
    """Per sequence, and as long as it: `states` as a string or an array, and a mask of 0/1 as a string or an array."""

    sequences: Sequence[str]
    states: Sequence[Any]
    masks: Sequence[Any] | None = None


class _Flat(NamedTuple):
    """The sequences end to end, `half` empty places around each; targets are the residues whose mask is 1.

    With half = 2, `. . M K V . . A . .`: places are 2 3 4 and 7, and place + offset never reads a neighbouring
    sequence.
    """

    codes: np.ndarray  # uint8 [residues + gaps]
    places: np.ndarray  # int64 [targets], into codes
    states: np.ndarray  # [targets]


def residue_floors(
    train: LabelledResidues,
    evals: Mapping[str, LabelledResidues],
    *,
    window: int = 15,
    max_residues: int = 300_000,
    seed: int = 0,
) -> dict[str, list[FloorResult]]:
    """Fit `majority`, `single residue` and `window of N` on `train` once; score them on every set of `evals`.

    The metrics are accuracy (Q3 for three-state secondary structure), macro-F1 and MCC. Only residues whose mask is 1
    are fitted or scored; the window still sees its masked neighbours, whose letters are known. The window model is
    fitted on at most `max_residues` residues drawn by `seed`, and its note says so. Figures are over all residues of
    a set, not means over proteins. ProtformerError where a sequence and its states or mask differ in length.
    """
    if window % 2 == 0 or window < 1:
        raise ValueError(f"window={window} must be odd, so that it has a middle")
    half = window // 2
    data = _flatten(train, half, "train")
    if len(data.places) == 0:
        raise ValueError("there is no labelled residue to fit a floor on")
    classes, states = np.unique(data.states, return_inverse=True)

    table = np.zeros((_CODES, len(classes)))
    np.add.at(table, (data.codes[data.places], states), 1)
    overall = table.sum(0)
    # A letter never seen in training takes the majority: adding less than one count decides nothing else.
    table += 0.5 * overall / overall.sum()
    weights, bias, note = _fit_window(data, states, len(classes), half, max_residues, seed)

    results = {}
    for split, records in evals.items():
        flat = _flatten(records, half, split)
        predictions = [
            ("majority", np.full(len(flat.places), overall.argmax()), f"always {classes[overall.argmax()]}"),
            ("single residue", table.argmax(1)[flat.codes[flat.places]], "likeliest state of the residue"),
            (f"window of {window}", _predict_window(flat, weights, bias, half), note),
        ]
        results[split] = [
            FloorResult(name, multiclass_metrics(flat.states, classes[predicted]), remark)
            for name, predicted, remark in predictions
        ]
    return results


def _flatten(data: LabelledResidues, half: int, split: str) -> _Flat:
    check_lengths(f"state records ({split})", data.sequences, data.states)
    masks = data.masks if data.masks is not None else [None] * len(data.sequences)
    check_lengths(f"masks ({split})", data.sequences, masks)
    states, counted = [], []
    for index, (sequence, state, mask) in enumerate(zip(data.sequences, data.states, masks, strict=True)):
        for what, given in (("states", state), ("mask values", mask)):
            if given is not None and len(given) != len(sequence):
                raise ProtformerError(
                    f"Record {index + 1} of {split} has {len(sequence)} residues but {len(given)} {what}; "
                    "give one for every residue."
                )
        states.append(_letters(state))
        counted.append(np.ones(len(sequence), dtype=bool) if mask is None else _letters(mask).astype(np.int64) == 1)

    residues, lengths = residue_codes(data.sequences)
    places = np.arange(len(residues)) + half * (np.repeat(np.arange(len(lengths)), lengths) + 1)
    codes = np.full(len(residues) + half * (len(lengths) + 1), _BEYOND_END, dtype=np.uint8)
    codes[places] = residues
    keep = np.flatnonzero(_end_to_end(counted))
    return _Flat(codes, places[keep], _end_to_end(states)[keep])


def _letters(values: Any) -> np.ndarray:
    return np.array(list(values), dtype="<U1") if isinstance(values, str) else np.asarray(values)


def _end_to_end(arrays: list[np.ndarray]) -> np.ndarray:
    filled = [array for array in arrays if len(array)]  # an empty list is of floats, and would turn the rest to floats
    return np.concatenate(filled) if filled else np.zeros(0, dtype=np.int64)


def _fit_window(
    data: _Flat, states: np.ndarray, classes: int, half: int, max_residues: int, seed: int
) -> tuple[np.ndarray, np.ndarray, str]:
    """Weights [classes, window, codes] and bias [classes] of a logistic regression on the one-hot window."""
    window = 2 * half + 1
    chosen = np.arange(len(states))
    note = "logistic regression on one-hot residues"
    if len(chosen) > max_residues:
        chosen = np.sort(np.random.default_rng(seed).choice(len(chosen), max_residues, replace=False))
        note += f"; fitted on a random {max_residues:,} of {len(states):,} training residues"
    present = np.unique(states[chosen])
    weights, bias = np.zeros((classes, window, _CODES)), np.full(classes, -np.inf)
    if len(present) == 1:  # nothing to tell apart
        bias[present] = 0.0
        return weights, bias, note

    around = data.codes[data.places[chosen, None] + np.arange(-half, half + 1)]
    columns = around + np.arange(window, dtype=np.int32) * _CODES
    features = sparse.csr_matrix(
        (np.ones(columns.size, dtype=np.float32), columns.ravel(), np.arange(len(chosen) + 1) * window),
        shape=(len(chosen), window * _CODES),
    )
    # 330 weights a state against many thousand residues: the penalty hardly matters, so scikit-learn's default stands.
    model = LogisticRegression(tol=1e-3, max_iter=300).fit(features, states[chosen])
    if len(present) == 2:  # scikit-learn keeps one row for two classes, the second's
        coefficients, intercepts = np.concatenate([-model.coef_, model.coef_]), np.repeat(model.intercept_, 2) * [-1, 1]
    else:
        coefficients, intercepts = model.coef_, model.intercept_
    weights[present], bias[present] = coefficients.reshape(-1, window, _CODES), intercepts
    return weights, bias, note


def _predict_window(data: _Flat, weights: np.ndarray, bias: np.ndarray, half: int) -> np.ndarray:
    """Index of the best state [targets]; one-hot times weights is a sum of looked-up columns, so no matrix is built."""
    best = []
    for start in range(0, len(data.places), _CHUNK):
        places = data.places[start : start + _CHUNK]
        scores = np.repeat(bias[:, None], len(places), axis=1)
        for offset in range(-half, half + 1):
            scores += weights[:, offset + half][:, data.codes[places + offset]]
        best.append(scores.argmax(0))
    return np.concatenate(best) if best else np.zeros(0, dtype=np.int64)
