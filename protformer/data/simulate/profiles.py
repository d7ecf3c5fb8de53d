"""What a residue is likely to be, given where it stands: the site classes and their residue frequencies.

A site class is a structural state together with a face or a position: a helix residue that points inwards, the third
residue of a turn, the cap before a helix. Its frequencies are

    pi_class(a) ~ background(a) * propensity_class(a) * exp(face_class * CONTRAST * hydropathy(a) / 4.5) * balance(a)

with published numbers for all but CONTRAST, SHARPNESS (a power of the propensities) and the face of each class.
`balance` is one factor per residue, the same for all classes, found by iterative proportional fitting so that the
mixture of the classes, in the proportions the grammar gives them, has the background's composition: a unigram model
is then no easier here than on real proteins.

Sources. Background: mean composition of Swiss-Prot as printed in PROSITE's PS50324. Helix, strand and reverse-turn
propensities: Williams et al., Biochim Biophys Acta 916:200 (1987), as in Creighton, Proteins (2nd ed., 1993), p. 256.
Positions of a beta turn: Hutchinson & Thornton, Protein Sci 3:2207 (1994), overall potentials as PDBsum gives them.
Helix ends: Richardson & Richardson, Science 240:1648 (1988): Asn 3.5 : 1 at the N-cap, Pro 2.6 : 1 after it, and Gly,
which is the C-cap of 34 % of helices; the smaller preferences for Ser, Thr and Asp (N-cap) and Asn (C-cap) are
rounded by us. Disorder: TOP-IDP, Campen et al., Protein Pept Lett 15:956 (2008). Hydropathy: Kyte & Doolittle, J Mol
Biol 157:105 (1982), from Biopython.
"""

from enum import IntEnum
from functools import lru_cache

import numpy as np
from Bio.SeqUtils.ProtParamData import kd

from protformer.data.simulate.substitution import RESIDUES, RateModel, pair_model, rate_model, site_rates


class Site(IntEnum):
    """The site classes. The residue label of a class is its state by DSSP's habit: caps and turns count as coil."""

    LOOP = 0
    TURN_1 = 1
    TURN_2 = 2
    TURN_3 = 3
    TURN_4 = 4
    N_CAP = 5
    C_CAP = 6
    HELIX_START = 7
    HELIX_BURIED = 8
    HELIX_EXPOSED = 9
    STRAND_BURIED = 10
    STRAND_EXPOSED = 11
    MEMBRANE = 12
    DISORDER = 13


STATE_OF_SITE = "CCCCCCCHHHEEHC"
"""Site class -> H (helix), E (strand) or C (coil)."""

CONTRAST = 2.2
"""How far hydropathy separates the faces: e^(2 x 2.2), 80-fold for Ile over Arg inside, as much against it outside.
That is sharper than in real proteins, like SHARPNESS, and for the same reason."""

SHARPNESS = 2.0
"""Power to which published propensities are raised. They are averages over sites of all kinds, so any one site
prefers more sharply than they do; at 1 too little of the states shows in a sequence for a small model to find within
minutes."""

RELATIVE_RATE = np.array([1.4, 1.2, 1.1, 1.0, 1.1, 1.0, 0.7, 1.0, 0.7, 1.2, 0.7, 1.1, 0.8, 1.5])
"""Substitutions of a class against the mean: buried residues are slower, loops faster (the order of Goldman, Thorne &
Jones, Genetics 149:445, 1998; the figures are ours)."""

# A    C     D     E     F     G     H     I     K     L     M     N     P     Q     R     S     T     V     W     Y
_BACKGROUND = [
    7.55, 1.69, 5.30, 6.32, 4.07, 6.84, 2.24, 5.72, 5.93, 9.33,
    2.35, 4.52, 4.92, 4.02, 5.15, 7.22, 5.74, 6.52, 1.25, 3.19,
]  # fmt: skip
_HELIX = [
    1.41, 0.66, 0.99, 1.59, 1.16, 0.43, 1.05, 1.09, 1.23, 1.34,
    1.30, 0.76, 0.34, 1.27, 1.21, 0.57, 0.76, 0.90, 1.02, 0.74,
]  # fmt: skip
_STRAND = [
    0.72, 1.40, 0.39, 0.52, 1.33, 0.58, 0.80, 1.67, 0.69, 1.22,
    1.14, 0.48, 0.31, 0.98, 0.84, 0.96, 1.17, 1.87, 1.35, 1.45,
]  # fmt: skip
_TURN = [
    0.82, 0.54, 1.24, 1.01, 0.59, 1.77, 0.81, 0.47, 1.07, 0.57,
    0.52, 1.34, 1.32, 0.84, 0.90, 1.22, 0.96, 0.41, 0.65, 0.76,
]  # fmt: skip
_TURN_POSITIONS = [
    [0.81, 1.42, 1.56, 0.87, 0.98, 1.09, 1.25, 0.66, 0.80, 0.73,
     0.70, 1.54, 1.48, 0.89, 0.69, 1.29, 1.08, 0.72, 0.62, 1.04],
    [0.96, 0.73, 1.24, 1.35, 0.66, 1.04, 0.95, 0.61, 1.22, 0.67,
     0.48, 1.02, 2.45, 0.94, 0.93, 1.23, 0.79, 0.70, 0.65, 0.75],
    [0.66, 0.98, 1.86, 0.92, 0.96, 2.14, 1.16, 0.42, 0.94, 0.47,
     0.41, 2.14, 0.63, 0.93, 0.75, 1.06, 0.94, 0.54, 0.76, 0.83],
    [0.89, 1.20, 0.99, 0.89, 0.95, 1.64, 0.93, 0.68, 1.10, 0.78,
     0.68, 1.06, 0.96, 1.01, 0.93, 1.03, 1.20, 0.84, 0.79, 1.10],
]  # fmt: skip
_DISORDER = [
    0.060, 0.020, 0.192, 0.736, -0.697, 0.166, 0.303, -0.486, 0.586, -0.326, -0.397, 0.007, 0.987, 0.318, 0.180, 0.341,
    0.059, -0.121, -0.884, -0.510,
]  # fmt: skip
# Van der Waals volumes in cubic angstroms (Creighton 1993, p. 4).
_VOLUME = [67, 86, 91, 109, 135, 48, 118, 124, 135, 124, 124, 96, 90, 114, 148, 73, 93, 105, 163, 141]

BACKGROUND = np.array(_BACKGROUND) / sum(_BACKGROUND)
HYDROPATHY = np.array([kd[a] for a in RESIDUES]) / 4.5
CHARGE = np.array([{"K": 1.0, "R": 1.0, "D": -1.0, "E": -1.0}.get(a, 0.0) for a in RESIDUES])
GENOME_BIAS = np.array([1.0 if a in "GARP" else -1.0 if a in "FYMINK" else 0.0 for a in RESIDUES])
"""Residues of GC-rich codons against those of AT-rich ones (Singer & Hickey, Mol Biol Evol 17:1581, 2000)."""


def _favoured(**factors: float) -> np.ndarray:
    return np.array([factors.get(a, 1.0) for a in RESIDUES])


def _raw_profiles() -> np.ndarray:
    """Propensity times face for every class [classes, 20], before the background and the balance."""
    helix, strand, turn, turns = (np.array(table) ** SHARPNESS for table in (_HELIX, _STRAND, _TURN, _TURN_POSITIONS))
    propensity = np.empty((len(Site), len(RESIDUES)))
    face = np.zeros(len(Site))
    propensity[Site.LOOP], face[Site.LOOP] = turn, -0.2
    propensity[Site.TURN_1 : Site.TURN_4 + 1] = turns
    propensity[Site.N_CAP] = turn * _favoured(N=3.5, S=2.5, T=2.5, D=2.5)
    propensity[Site.C_CAP] = turn * _favoured(G=4.0, N=2.0)
    propensity[Site.HELIX_START], face[Site.HELIX_START] = helix * _favoured(P=2.6 / 0.34**SHARPNESS), -0.3
    propensity[Site.HELIX_BURIED], face[Site.HELIX_BURIED] = helix, 1.0
    propensity[Site.HELIX_EXPOSED], face[Site.HELIX_EXPOSED] = helix, -1.0
    propensity[Site.STRAND_BURIED], face[Site.STRAND_BURIED] = strand, 1.0
    propensity[Site.STRAND_EXPOSED], face[Site.STRAND_EXPOSED] = strand, -1.0
    propensity[Site.MEMBRANE], face[Site.MEMBRANE] = 1.0, 1.2  # where beta-branched residues are no helix breakers
    propensity[Site.DISORDER] = np.exp(2.5 * np.array(_DISORDER))
    return propensity * np.exp(CONTRAST * face[:, None] * HYDROPATHY[None, :])


CLASS_SHARE = np.array(
    [0.1861, 0.0304, 0.0304, 0.0304, 0.0304, 0.0212, 0.0212, 0.0212, 0.1272, 0.1453, 0.1147, 0.0718, 0.0775, 0.0922]
)
"""The share of each class in what the grammar yields, over all folds (grammar.class_share; a test holds it to this)."""


@lru_cache(maxsize=1)
def site_profiles() -> np.ndarray:
    """Residue frequencies of every site class [classes, 20]; their mixture by CLASS_SHARE is the background."""
    raw = _raw_profiles() * BACKGROUND
    balance = np.ones(len(RESIDUES))
    for _ in range(500):
        profiles = raw * balance
        profiles /= profiles.sum(1, keepdims=True)
        balance *= BACKGROUND / (CLASS_SHARE @ profiles)
    return profiles


def biased_profiles(bias: float) -> np.ndarray:
    """The profiles [classes, 20] of a family whose genome leans to GC (bias > 0) or to AT (bias < 0)."""
    profiles = site_profiles() * np.exp(bias * GENOME_BIAS)
    return profiles / profiles.sum(1, keepdims=True)


@lru_cache(maxsize=1)
def _scale() -> float:
    """Substitutions a site and unit time at GONNET's scale, over the classes: dividing by it makes the mean one."""
    profiles = site_profiles()
    leaving = np.array([pi @ site_rates(pi).sum(1) for pi in profiles])
    return float(CLASS_SHARE @ (leaving * RELATIVE_RATE))


def site_models(bias: float) -> list[RateModel]:
    """One rate model for each site class, in a family of that bias; the mean rate over classes is about 1."""
    return [
        rate_model(site_rates(pi) * RELATIVE_RATE[site] / _scale(), pi) for site, pi in enumerate(biased_profiles(bias))
    ]


class Contact(IntEnum):
    """Kinds of pairs of positions that covary. The first two join exposed sites, the next two buried ones."""

    HELIX_CHARGE = 0
    STRAND_CHARGE = 1
    HELIX_SIZE = 2
    STRAND_SIZE = 3
    DISULFIDE = 4


SITE_OF_CONTACT = (Site.HELIX_EXPOSED, Site.STRAND_EXPOSED, Site.HELIX_BURIED, Site.STRAND_BURIED, Site.LOOP)

CHARGE_COUPLING = 1.5  # nats for opposite charges, and as much against equal ones
PAIRED_CHARGE = 2.0  # charged residues are this much more frequent where a partner is at hand
PACKED_VOLUME, VOLUME_SLACK = 230.0, 16.0  # two buried side chains share a hole of about Leu + Val
DISULFIDE_COUPLING, LONE_CYSTEINE = 11.0, -2.0  # nats for Cys with Cys, and for one Cys alone


@lru_cache(maxsize=1)
def contact_models() -> tuple[RateModel, ...]:
    """One model of 400 joint states for each kind of contact, the same in all families."""
    profiles = site_profiles()
    volume = np.array(_VOLUME, dtype=float)
    charged = -CHARGE_COUPLING * np.outer(CHARGE, CHARGE)
    packed = -((volume[:, None] + volume[None, :] - PACKED_VOLUME) ** 2) / (2 * VOLUME_SLACK**2)
    cysteine = np.array([a == "C" for a in RESIDUES], dtype=float)
    bridge = np.where(cysteine[:, None] == cysteine, DISULFIDE_COUPLING * np.outer(cysteine, cysteine), LONE_CYSTEINE)
    models = []
    for contact, site in zip(Contact, SITE_OF_CONTACT, strict=True):
        single = profiles[site].copy()
        coupling = {Contact.DISULFIDE: bridge}.get(contact, packed if "SIZE" in contact.name else charged)
        if "CHARGE" in contact.name:
            single *= np.where(CHARGE != 0, PAIRED_CHARGE, 1.0)
        single /= single.sum()
        models.append(pair_model(single, single, coupling))
    return tuple(models)
