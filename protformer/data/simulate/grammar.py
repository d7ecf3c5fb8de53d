"""The ancestor of a family: a string of site classes from a semi-Markov grammar, and the contacts between its sites.

A fold (all alpha, all beta, alpha/beta, alpha+beta, membrane) says which element comes next; each element has a
length law; linkers of loops and turns lie between. Within a helix one face is buried, with the period of 3.6
residues; within a strand the faces alternate, and the middle strands of a sheet are buried on both. Two strands
joined by a tight turn form a hairpin: residues at equal distance from the turn face each other, and take the same
side.

Lengths are drawn from shifted gamma laws: helices of about 14 residues (a little longer than those of globular
proteins; cf. Kabsch & Sander, Biopolymers 22:2577, 1983), strands of about 6, membrane helices of 18 to 25. Some
families have disordered tails or linkers.
"""

from typing import NamedTuple

import numpy as np
from jaxtyping import Float, Int

from protformer.data.simulate.profiles import Contact, Site

FOLDS = ("alpha", "beta", "alpha/beta", "alpha+beta", "membrane")
FOLD_SHARE = (0.25, 0.20, 0.23, 0.17, 0.15)
TAIL_SHARE, DISORDERED_LINKER_SHARE = 0.16, 0.04  # of each terminus of a family, and of the linkers

MIN_SEPARATION = 24  # residues between the two sites of a distant contact
DISTANT_CONTACTS = 0.05  # distant contacts for each residue of the ancestor
HAIRPIN_CONTACTS = 0.6  # of the facing pairs of a hairpin
DISULFIDE_FAMILIES = 0.3  # of the families have one to three bridges


class Ancestor(NamedTuple):
    """The structure every member of a family inherits.

    sites: site class of each residue; contacts: (first site, second site, kind) of each covarying pair, first < second.
    """

    fold: str
    sites: Int[np.ndarray, " length"]
    contacts: Int[np.ndarray, "pairs 3"]


def helix(rng: np.random.Generator) -> list[int]:
    """A helix with its caps: N-cap, first residue, body with one buried face, C-cap."""
    length = int(np.clip(round(rng.gamma(4.0, 2.2)) + 5, 6, 36))
    angle = np.arange(length) * (2 * np.pi / 3.6) + rng.uniform(0, 2 * np.pi)
    buried = np.cos(angle) > 0.1
    body = np.where(buried, Site.HELIX_BURIED, Site.HELIX_EXPOSED).tolist()
    body[0] = Site.HELIX_START
    return [Site.N_CAP, *body, Site.C_CAP]


def strand(rng: np.random.Generator, length: int | None = None, *, central: bool, first_buried: bool) -> list[int]:
    """A strand, its faces alternating from `first_buried`; a central one is buried throughout."""
    length = length or int(np.clip(round(rng.gamma(4.0, 0.9) + 2.6), 3, 13))
    buried = np.full(length, True) if central else (np.arange(length) % 2 == 0) == first_buried
    return np.where(buried, Site.STRAND_BURIED, Site.STRAND_EXPOSED).tolist()


def membrane_helix(rng: np.random.Generator) -> list[int]:
    """A helix that spans a membrane: 18 to 25 residues, all of them among lipids."""
    return [Site.MEMBRANE] * int(rng.integers(18, 26))


def disorder(rng: np.random.Generator) -> list[int]:
    """A stretch without structure, some 12 to 60 residues."""
    return [Site.DISORDER] * int(np.clip(round(rng.gamma(2.0, 9.0)) + 10, 12, 70))


def loop(rng: np.random.Generator, mean: float) -> list[int]:
    """A stretch of loop, at least one residue, `mean` on average."""
    return [Site.LOOP] * int(rng.geometric(1 / mean))


TURN = [Site.TURN_1, Site.TURN_2, Site.TURN_3, Site.TURN_4]


def linker(rng: np.random.Generator) -> list[int]:
    """What joins two elements: loop, often with a turn in it, now and then disorder."""
    if rng.random() < DISORDERED_LINKER_SHARE:
        return disorder(rng)
    if rng.random() < 0.45:
        return loop(rng, 1.8) + TURN + loop(rng, 1.8)
    return loop(rng, 4.5)


def _is_strand_next(fold: str, previous_strand: bool, progress: float, rng: np.random.Generator) -> bool:
    share = {
        "alpha": 0.04,
        "beta": 0.95,
        "alpha/beta": 0.1 if previous_strand else 0.9,
        "alpha+beta": 0.85 if progress < 0.5 else 0.15,
        "membrane": 0.06,
    }[fold]
    return rng.random() < share


def draw_ancestor(rng: np.random.Generator, length: int) -> Ancestor:
    """An ancestor of about `length` residues (at least; the last element is finished)."""
    fold = FOLDS[rng.choice(len(FOLDS), p=FOLD_SHARE)]
    central_share = 0.6 if fold == "alpha/beta" else 0.15
    sites: list[int] = disorder(rng) if rng.random() < TAIL_SHARE else loop(rng, 4.0)
    facing: list[tuple[int, int]] = []
    is_strand = bool(rng.random() < 0.5)
    while len(sites) < length:
        is_strand = _is_strand_next(fold, is_strand, len(sites) / length, rng)
        if not is_strand:
            sites += membrane_helix(rng) if fold == "membrane" and rng.random() < 0.75 else helix(rng)
        else:
            central = bool(rng.random() < central_share)
            first = strand(rng, central=central, first_buried=bool(rng.random() < 0.5))
            sites += first
            while fold in ("beta", "alpha+beta") and rng.random() < 0.5:  # hairpin: the next strand mirrors this one
                sites += TURN
                facing += [(len(sites) - len(TURN) - 1 - k, len(sites) + k) for k in range(len(first))]
                first = first[::-1]
                sites += first
        sites += linker(rng)
    if rng.random() < TAIL_SHARE:
        sites += disorder(rng)
    array = np.array(sites, dtype=np.int64)
    return Ancestor(fold, array, _draw_contacts(array, facing, rng))


def _draw_contacts(sites: np.ndarray, facing: list[tuple[int, int]], rng: np.random.Generator) -> np.ndarray:
    """Contacts of hairpins, distant ones between sites of one class, and disulfides; a site has one partner at most."""
    free = np.full(len(sites), True)
    contacts: list[tuple[int, int, int]] = []
    kind_of_site = {
        Site.HELIX_EXPOSED: Contact.HELIX_CHARGE,
        Site.STRAND_EXPOSED: Contact.STRAND_CHARGE,
        Site.HELIX_BURIED: Contact.HELIX_SIZE,
        Site.STRAND_BURIED: Contact.STRAND_SIZE,
        Site.LOOP: Contact.DISULFIDE,
    }

    def join(a: int, b: int) -> None:
        free[a] = free[b] = False
        contacts.append((min(a, b), max(a, b), kind_of_site[Site(sites[a])]))

    for a, b in facing:
        if free[a] and free[b] and rng.random() < HAIRPIN_CONTACTS:
            join(a, b)

    def distant(candidates: np.ndarray, wanted: int) -> None:
        for _ in range(wanted):
            left = candidates[free[candidates]]
            if len(left) == 0:
                return
            a = int(rng.choice(left))
            partners = left[(np.abs(left - a) >= MIN_SEPARATION) & (sites[left] == sites[a])]
            if len(partners):
                join(a, int(rng.choice(partners)))

    structured = np.flatnonzero(
        np.isin(sites, [Site.HELIX_EXPOSED, Site.STRAND_EXPOSED, Site.HELIX_BURIED, Site.STRAND_BURIED])
    )
    distant(structured, round(DISTANT_CONTACTS * len(sites)))
    if rng.random() < DISULFIDE_FAMILIES:
        distant(np.flatnonzero(sites == Site.LOOP), int(rng.integers(1, 4)))
    return np.array(sorted(contacts), dtype=np.int64).reshape(-1, 3)


def class_share(draws: int = 400, length: int = 180, seed: int = 0) -> Float[np.ndarray, " classes"]:
    """The share of each site class in `draws` ancestors: where profiles.CLASS_SHARE comes from."""
    rng = np.random.default_rng(seed)
    sites = np.concatenate([draw_ancestor(rng, length).sites for _ in range(draws)])
    return np.bincount(sites, minlength=len(Site)) / len(sites)
