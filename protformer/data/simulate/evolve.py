"""One family: an ancestor's columns carried down a tree by substitutions, insertions and deletions.

Two processes that do not see each other. Insertions and deletions decide which alignment columns each node has; they
act in loops, leave contacts alone, and a column keeps its site class for ever, so that a residue's state follows it.
The residues of all columns then evolve from the root, whether or not a node has the column. For columns inserted
later this is no shortcut: the process is stationary, so the residue it has at the insertion is a draw from the
column's equilibrium, which is what an inserted residue should be.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from protformer.data.simulate.grammar import Ancestor, helix, linker, loop, strand
from protformer.data.simulate.profiles import Site
from protformer.data.simulate.substitution import RESIDUES, RateModel
from protformer.data.simulate.tree import Tree

FLEXIBLE = (Site.LOOP, Site.DISORDER)  # where insertions and deletions are tolerated
INDEL_RATE = 0.04  # events for each flexible residue and substitution a site
INDEL_MEAN = 2.5  # residues, geometric (short indels prevail: Pascarella & Argos, J Mol Biol 224:461, 1992)
NEW_ELEMENT = 0.08  # of insertions bring a helix or a strand with linkers, not loop alone


class Alignment(NamedTuple):
    """sites [columns]: class of every column of the family; orders: for every node its columns, from N to C terminus;
    ancestral: the first `ancestral` columns are the ancestor's.
    """

    sites: Int[np.ndarray, " columns"]
    orders: list[Int[np.ndarray, " residues"]]
    ancestral: int


class Group(NamedTuple):
    """The units of a family that evolve by one rate model: columns [units, 1], or pairs of columns [units, 2]."""

    model: RateModel
    columns: Int[np.ndarray, "units arity"]
    rates: Float[np.ndarray, " units"]


def draw_alignment(rng: np.random.Generator, ancestor: Ancestor, tree: Tree) -> Alignment:
    """Insertions and deletions down the tree: Poisson in number, geometric in length, in unpaired loop columns."""
    sites = ancestor.sites.tolist()
    fixed = set(ancestor.contacts[:, :2].reshape(-1).tolist())
    orders: list[list[int]] = [[] for _ in tree.parents]
    orders[0] = list(range(len(sites)))
    for node in range(1, len(orders)):
        order = list(orders[tree.parents[node]])
        loops = sum(sites[column] in FLEXIBLE for column in order)
        for _ in range(rng.poisson(INDEL_RATE * loops * tree.lengths[node])):
            open_to_change = [sites[column] in FLEXIBLE and column not in fixed for column in order]
            places = np.flatnonzero(open_to_change)
            if len(places) == 0:
                break
            place = int(rng.choice(places))
            size = int(rng.geometric(1 / INDEL_MEAN))
            if rng.random() < 0.5:
                rigid = [i for i in range(place, min(place + size, len(order))) if not open_to_change[i]]
                del order[place : min([*rigid, place + size])]
                continue
            new = [sites[order[place]]] * size
            if rng.random() < NEW_ELEMENT:
                inward = bool(rng.random() < 0.5)
                element = helix(rng) if rng.random() < 0.5 else strand(rng, central=False, first_buried=inward)
                new = [*loop(rng, 2.0), *element, *linker(rng)]
            order[place + 1 : place + 1] = range(len(sites), len(sites) + len(new))
            sites += new
        orders[node] = order
    return Alignment(np.array(sites), [np.array(order) for order in orders], len(ancestor.sites))


def draw_groups(
    rng: np.random.Generator,
    alignment: Alignment,
    contacts: np.ndarray,
    site_models: list[RateModel],
    contact_models: tuple[RateModel, ...],
    shape: float,
) -> list[Group]:
    """Columns and contacts by rate model; the rate of each is gamma distributed with mean one and the given shape."""
    rates = rng.gamma(shape, 1 / shape, len(alignment.sites))
    single = np.full(len(alignment.sites), True)
    single[contacts[:, :2]] = False
    groups = []
    for kind, model in enumerate(contact_models):
        pairs = contacts[contacts[:, 2] == kind, :2]
        if len(pairs):
            groups.append(Group(model, pairs, rates[pairs[:, 0]]))
    for site, model in enumerate(site_models):
        columns = np.flatnonzero(single & (alignment.sites == site))
        if len(columns):
            groups.append(Group(model, columns[:, None], rates[columns]))
    return groups


def draw_residues(
    rng: np.random.Generator, tree: Tree, groups: list[Group], columns: int
) -> Int[np.ndarray, "nodes columns"]:
    """The residue (index into RESIDUES) of every column at every node, present there or not."""
    residues = np.zeros((len(tree.parents), columns), dtype=np.int64)
    size = len(RESIDUES)
    for model, members, rates in groups:
        states = np.zeros((len(tree.parents), len(members)), dtype=np.int64)
        states[0] = _draw(rng, np.broadcast_to(model.stationary, (len(members), len(model.stationary))))
        identity = np.eye(len(model.stationary))
        for level in tree.levels[1:]:
            times = tree.lengths[level, None] * rates
            states[level] = _draw(rng, model.forward(identity[states[tree.parents[level]]], times))
        if members.shape[1] == 1:
            residues[:, members[:, 0]] = states
        else:
            residues[:, members[:, 0]], residues[:, members[:, 1]] = states // size, states % size
    return residues


def _draw(rng: np.random.Generator, weights: np.ndarray) -> np.ndarray:
    """One state from each row of `weights` [..., states], which need not sum to one."""
    cumulative = np.cumsum(weights, -1)
    return (cumulative < rng.random(weights.shape[:-1])[..., None] * cumulative[..., -1:]).sum(-1)


def presence(alignment: Alignment, nodes: np.ndarray) -> Bool[np.ndarray, "nodes columns"]:
    """Which columns each of `nodes` has."""
    mask = np.zeros((len(nodes), len(alignment.sites)), dtype=bool)
    for row, node in enumerate(nodes):
        mask[row, alignment.orders[node]] = True
    return mask
