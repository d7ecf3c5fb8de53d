"""The best reachable perplexity: what a residue leaves open to a reader who knows everything but that residue.

A model that was trained on the training file T and reads the other residues of a sequence predicts residue X with an
expected loss of at least H(X | T, rest of the sequence), whatever the model. More knowledge can only lower an
entropy, so

    loss >= H(X | T, rest of the sequence, Z)      for any Z;

take for Z the whole truth of the simulator but the residues: tree, branch lengths, alignment, site classes, rates,
contacts and rate models. Given Z, columns are independent of each other but for the two of a contact. All that then
tells about X is its own column in the training sequences and, in a contact, the partner's column and the partner's
residue in this sequence. The posterior p(X | ...) follows exactly from Felsenstein's pruning (J Mol Evol 17:368,
1981), on 20 states for a column and on 400 for a contact, with the held-out leaf as the one whose state is asked. The
bound of a file is the mean of the entropies of these posteriors, and its perplexity the exponential of that mean.

For valid and test, T is the training members of the family. Of an unseen family T holds nothing and the posterior is
the site's equilibrium (given the partner). Training sequences are judged as if each were new: T without itself. A
model that memorises its training file gets below that; no other figure can be passed except by luck, which the
scatter of the realised losses over families measures. It speaks of masked positions: where a target is left as it is
(a tenth, under 80/10/10) a model can copy it. What is given away to the bound (the alignment, the classes) a
model has to infer: real models end well above.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from protformer.data.simulate.evolve import Group
from protformer.data.simulate.substitution import RESIDUES, RateModel
from protformer.data.simulate.tree import Tree


class Bound(NamedTuple):
    """Per leaf and column, in nats; where a leaf lacks a column the entry means nothing.

    entropy: of the posterior; loss: -log of the posterior at the residue that is there (its mean estimates the
    entropy's); alone: entropy without the partner's residue, equal to `entropy` in columns of no contact; paired:
    columns in contacts.
    """

    entropy: Float[np.ndarray, "leaves columns"]
    loss: Float[np.ndarray, "leaves columns"]
    alone: Float[np.ndarray, "leaves columns"]
    paired: Bool[np.ndarray, " columns"]


def leaf_posteriors(
    model: RateModel,
    rates: Float[np.ndarray, " units"],
    tree: Tree,
    states: Int[np.ndarray, "leaves units"],
    evidence: Bool[np.ndarray, "leaves units"],
) -> Float[np.ndarray, "leaves units states"]:
    """p(state at a leaf | states at all *other* leaves marked as evidence), for every leaf and unit.

    Upwards, below[v] is the likelihood of the evidence under v. Downwards, above[v] is the distribution at v given the
    evidence that is not under v; at a leaf it is the answer, because the leaf's own state is not in it.
    """
    nodes, units, size = len(tree.parents), len(rates), len(model.stationary)
    below = np.ones((nodes, units, size))
    below[tree.leaves] = np.where(evidence[..., None], np.eye(size)[states], 1.0)
    sent = np.ones((nodes, units, size))  # below[v], seen from v's parent
    for level in reversed(tree.levels[1:]):
        below[level] /= below[level].max(-1, keepdims=True)  # only ratios matter, and products would underflow
        sent[level] = model.backward(below[level], tree.lengths[level, None] * rates)
        left = level[level < tree.siblings[level]]
        below[tree.parents[left]] = sent[left] * sent[tree.siblings[left]]
    above = np.empty((nodes, units, size))
    above[0] = model.stationary
    for level in tree.levels[1:]:
        rows = above[tree.parents[level]] * sent[tree.siblings[level]]
        above[level] = model.forward(rows / rows.sum(-1, keepdims=True), tree.lengths[level, None] * rates)
    answer = above[tree.leaves]
    return answer / answer.sum(-1, keepdims=True)


def family_bound(
    tree: Tree,
    groups: list[Group],
    residues: Int[np.ndarray, "leaves columns"],
    present: Bool[np.ndarray, "leaves columns"],
    training: Bool[np.ndarray, " leaves"],
) -> Bound:
    """The bound of every residue of a family; `training` marks the leaves that a model may have seen."""
    entropy, loss, alone = (np.zeros(residues.shape) for _ in range(3))
    paired = np.zeros(residues.shape[1], dtype=bool)
    size = len(RESIDUES)
    for model, columns, rates in groups:
        first = columns[:, 0]
        evidence = present[:, first] & training[:, None]
        if columns.shape[1] == 1:
            posterior = leaf_posteriors(model, rates, tree, residues[:, first], evidence)
            entropy[:, first] = alone[:, first] = _entropy(posterior)
            loss[:, first] = _loss(posterior, residues[:, first])
            continue
        second = columns[:, 1]
        paired[columns] = True
        states = residues[:, first] * size + residues[:, second]
        joint = leaf_posteriors(model, rates, tree, states, evidence).reshape(*states.shape, size, size)
        for own, other, table in ((first, second, joint.swapaxes(-1, -2)), (second, first, joint)):
            # table [leaves, units, other residue, own residue]: the row of the partner's residue, made a distribution
            row = np.take_along_axis(table, residues[:, other][..., None, None], axis=-2)[..., 0, :]
            row = row / row.sum(-1, keepdims=True)
            entropy[:, own], loss[:, own] = _entropy(row), _loss(row, residues[:, own])
            alone[:, own] = _entropy(table.sum(-2))
    return Bound(entropy, loss, alone, paired)


def _entropy(probability: np.ndarray) -> np.ndarray:
    return -(probability * np.log(np.maximum(probability, 1e-300))).sum(-1)


def _loss(probability: np.ndarray, residues: np.ndarray) -> np.ndarray:
    chosen = np.take_along_axis(probability, residues[..., None], axis=-1)[..., 0]
    return -np.log(np.maximum(chosen, 1e-300))
