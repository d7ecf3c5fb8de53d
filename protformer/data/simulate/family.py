"""One simulated family from one seed: ancestor, tree, alignment, residues, the clades held out, the bound."""

from dataclasses import asdict, dataclass, replace
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

from protformer.data.simulate.bound import Bound, family_bound
from protformer.data.simulate.evolve import draw_alignment, draw_groups, draw_residues, presence
from protformer.data.simulate.grammar import draw_ancestor
from protformer.data.simulate.profiles import STATE_OF_SITE, contact_models, site_models
from protformer.data.simulate.substitution import RESIDUES
from protformer.data.simulate.tree import Tree, draw_clades, draw_tree

TRAIN, VALID, TEST, UNSEEN = "train", "valid", "test", "unseen"
SPLITS = (TRAIN, VALID, TEST, UNSEEN)

LAST_ELEMENT = 8.0  # residues

_LETTERS = np.frombuffer(RESIDUES.encode(), dtype=np.uint8)
_STATES = np.frombuffer(STATE_OF_SITE.encode(), dtype=np.uint8)


@dataclass(frozen=True)
class Settings:
    """What a simulated set is a pure function of.

    families, members: families with training members, and members of each (all three splits together);
    unseen_families, unseen_members: families that only `unseen` holds; held_out: share of a family's members that goes
    to valid, and as much again to test, by whole clades; median_length, length_spread, min_length, max_length: of the
    ancestors, in residues, lognormal with that standard deviation; depth: substitutions a site from root to leaf, drawn
    evenly between the two; rate_shape: of the gamma law of rates over sites; genome_bias: standard deviation over
    families of the leaning to GC-rich or AT-rich residues; seed: any whole number from 0.
    """

    families: int = 150
    members: int = 32
    unseen_families: int = 20
    unseen_members: int = 16
    held_out: float = 0.1
    median_length: float = 145.0
    length_spread: float = 0.55
    min_length: int = 60
    max_length: int = 700
    depth: tuple[float, float] = (1.0, 2.4)
    rate_shape: float = 1.0
    genome_bias: float = 0.5
    seed: int = 1

    def with_residues(self, residues: int) -> "Settings":
        """These settings with as many families as give about `residues` residues of training sequence."""
        per_family = self.members * (1 - 2 * self.held_out) * self.mean_length
        return replace(self, families=max(1, round(residues / per_family)))

    @property
    def mean_length(self) -> float:
        """Of a member, in residues: the lognormal's mean, and half of a last element and linker that finish an
        ancestor."""
        return self.median_length * float(np.exp(self.length_spread**2 / 2)) + LAST_ELEMENT

    def as_dict(self) -> dict:
        """Plain numbers and lists, for JSON."""
        return {key: list(value) if isinstance(value, tuple) else value for key, value in asdict(self).items()}


class Family(NamedTuple):
    """A family with all its members.

    columns: of every leaf its alignment columns from N to C terminus; sites: class of every column; residues [leaves,
    columns]: index into RESIDUES; split: of every leaf.
    """

    name: str
    fold: str
    tree: Tree
    contacts: Int[np.ndarray, "pairs 3"]
    sites: Int[np.ndarray, " columns"]
    columns: list[Int[np.ndarray, " residues"]]
    residues: Int[np.ndarray, "leaves columns"]
    present: Bool[np.ndarray, "leaves columns"]
    split: list[str]
    bound: Bound

    def identifier(self, leaf: int) -> str:
        return f"SIM_{self.name}_{leaf + 1:04d}"

    def sequence(self, leaf: int) -> str:
        return _LETTERS[self.residues[leaf, self.columns[leaf]]].tobytes().decode()

    def states(self, leaf: int) -> str:
        return _STATES[self.sites[self.columns[leaf]]].tobytes().decode()

    def nearest_training_identity(self, leaf: int) -> float:
        """Share of identical residues with the nearest other training member, over the columns both have; nan if
        none."""
        others = [i for i, split in enumerate(self.split) if split == TRAIN and i != leaf]
        both = self.present[others] & self.present[leaf]
        same = (self.residues[others] == self.residues[leaf]) & both
        return float((same.sum(1) / both.sum(1)).max()) if others else float("nan")


def draw_family(settings: Settings, index: int) -> Family:
    """Family `index` of the set: the first `settings.families` are trained on, the others unseen.

    It depends on the seed, its index, and the settings of single families, so a larger set begins with the smaller one.
    """
    unseen = index >= settings.families
    kind, number = (1, index - settings.families) if unseen else (0, index)
    rng = np.random.default_rng(np.random.SeedSequence(settings.seed, spawn_key=(kind, number)))
    length = settings.median_length * rng.lognormal(0.0, settings.length_spread)
    ancestor = draw_ancestor(rng, int(np.clip(length, settings.min_length, settings.max_length)))
    tree = draw_tree(rng, settings.unseen_members if unseen else settings.members, rng.uniform(*settings.depth))
    split = [UNSEEN if unseen else TRAIN] * len(tree.leaves)
    if not unseen:
        for name, clade in zip((VALID, TEST), draw_clades(rng, tree, settings.held_out, 2), strict=True):
            split = [name if inside else old for inside, old in zip(clade, split, strict=True)]
    alignment = draw_alignment(rng, ancestor, tree)
    models = site_models(rng.normal(0.0, settings.genome_bias))
    groups = draw_groups(rng, alignment, ancestor.contacts, models, contact_models(), settings.rate_shape)
    residues = draw_residues(rng, tree, groups, len(alignment.sites))[tree.leaves]
    present = presence(alignment, tree.leaves)
    training = np.array([name == TRAIN for name in split])
    return Family(
        name=f"{'U' if unseen else 'F'}{number + 1:03d}",
        fold=ancestor.fold,
        tree=tree,
        contacts=ancestor.contacts,
        sites=alignment.sites,
        columns=[alignment.orders[leaf] for leaf in tree.leaves],
        residues=residues,
        present=present,
        split=split,
        bound=family_bound(tree, groups, residues, present, training),
    )
