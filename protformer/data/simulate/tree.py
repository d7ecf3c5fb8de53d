"""Family trees: a Yule tree with a relaxed clock, its clades, and its Newick text.

A tree is a handful of arrays. Node 0 is the root, a parent's number is below its children's, every inner node has two
children. Leaves are numbered 0, 1, ... in the order in which a walk meets them, so that a clade is a range of leaves.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

MIN_BRANCH = 0.05  # substitutions a site: equal members are then so rare that leaving them out biases nothing


class Tree(NamedTuple):
    """parents, siblings [nodes] (-1 at the root); lengths [nodes] of the branch above, in substitutions a site;
    levels: nodes by distance from the root, so that work on one level has no dependence within it;
    leaves [leaves]: node of each leaf; first_leaf, last_leaf [nodes]: the range of leaves below a node, last excluded.
    """

    parents: Int[np.ndarray, " nodes"]
    siblings: Int[np.ndarray, " nodes"]
    lengths: Float[np.ndarray, " nodes"]
    levels: tuple[Int[np.ndarray, " level"], ...]
    leaves: Int[np.ndarray, " leaves"]
    first_leaf: Int[np.ndarray, " nodes"]
    last_leaf: Int[np.ndarray, " nodes"]


def draw_tree(rng: np.random.Generator, leaves: int, depth: float, clock: float = 0.3) -> Tree:
    """A pure-birth (Yule) tree with `leaves` >= 2 leaves, `depth` substitutions a site from root to leaf on average.

    Waiting times between splits are exponential with the number of lineages as rate, from the first split until the
    one that would have made another leaf. Each branch then runs at its own speed, lognormal with standard deviation
    `clock`.
    """
    if leaves < 2:
        raise ValueError(f"a family tree needs at least two leaves, not {leaves}")
    parents, born, ended = [-1], [0.0], [0.0]
    alive, now = [0], 0.0
    while len(alive) < leaves:
        split = alive.pop(int(rng.integers(len(alive))))
        ended[split] = now
        for _ in range(2):
            alive.append(len(parents))
            parents.append(split)
            born.append(now)
            ended.append(0.0)
        now += rng.exponential(1 / len(alive))
    for node in alive:
        ended[node] = now
    lengths = (np.array(ended) - np.array(born)) * (depth / now)
    lengths = np.maximum(lengths * rng.lognormal(-(clock**2) / 2, clock, len(lengths)), MIN_BRANCH)
    lengths[0] = 0.0
    return build_tree(np.array(parents), lengths)


def build_tree(parents: np.ndarray, lengths: np.ndarray) -> Tree:
    """A `Tree` from parents (each below its children's numbers, two children or none) and branch lengths [nodes]."""
    nodes = len(parents)
    children: list[list[int]] = [[] for _ in range(nodes)]
    siblings = np.full(nodes, -1)
    depth = np.zeros(nodes, dtype=np.int64)
    for node in range(1, nodes):
        children[parents[node]].append(node)
        depth[node] = depth[parents[node]] + 1
    for pair in children:
        if pair:
            siblings[pair[0]], siblings[pair[1]] = pair[1], pair[0]
    leaves: list[int] = []
    stack = [0]
    while stack:
        node = stack.pop()
        stack += reversed(children[node])
        if not children[node]:
            leaves.append(node)
    first, last = np.full(nodes, nodes), np.zeros(nodes, dtype=np.int64)
    first[leaves], last[leaves] = np.arange(len(leaves)), np.arange(len(leaves)) + 1
    for node in range(nodes - 1, 0, -1):
        first[parents[node]] = min(first[parents[node]], first[node])
        last[parents[node]] = max(last[parents[node]], last[node])
    levels = tuple(np.flatnonzero(depth == level) for level in range(depth.max() + 1))
    return Tree(np.asarray(parents), siblings, np.asarray(lengths), levels, np.array(leaves), first, last)


def draw_clades(rng: np.random.Generator, tree: Tree, fraction: float, count: int) -> list[Bool[np.ndarray, " leaves"]]:
    """`count` disjoint whole clades, each of about `fraction` of the leaves, as masks over the leaves.

    Each is drawn from the clades (single leaves too) of half to twice the wanted size, or from the nearest in size
    where there is none. No clade takes more than a share 1 / (count + 1) of the leaves, so that as much is left over.
    """
    leaves = len(tree.leaves)
    wanted = max(1.0, fraction * leaves)
    sizes = tree.last_leaf - tree.first_leaf
    taken = np.zeros(leaves, dtype=bool)
    masks = []
    for _ in range(count):
        free = np.array([not taken[a:b].any() for a, b in zip(tree.first_leaf, tree.last_leaf, strict=True)])
        free &= sizes * (count + 1) <= leaves
        misfit = np.abs(np.log(sizes / wanted))
        candidates = np.flatnonzero(free & (misfit <= max(np.log(2), misfit[free].min())))
        node = int(rng.choice(candidates))
        mask = np.zeros(leaves, dtype=bool)
        mask[tree.first_leaf[node] : tree.last_leaf[node]] = True
        masks.append(mask)
        taken |= mask
    return masks


def newick(tree: Tree, names: list[str]) -> str:
    """The tree in Newick format, branch lengths to three decimals; `names` of the leaves in order."""
    text = [""] * len(tree.parents)
    for name, node in zip(names, tree.leaves, strict=True):
        text[node] = name
    joined: list[list[str]] = [[] for _ in tree.parents]
    for node in range(len(tree.parents) - 1, 0, -1):
        own = text[node] or f"({','.join(reversed(joined[node]))})"
        joined[tree.parents[node]].append(f"{own}:{tree.lengths[node]:.3f}")
    return f"({','.join(reversed(joined[0]))});"
