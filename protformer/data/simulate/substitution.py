"""Reversible substitution models: from a published score matrix to rates, and from rates to any branch length.

Biopython carries score matrices, not rate matrices. GONNET1992 (Gonnet, Cohen & Benner, Science 256:1443, 1992) is
given at 250 PAM as S_ij = 10 log10 O_ij with one decimal, where O_ij = P_ij / f_j, P is the conditional probability
of j after 250 PAM (2.5 substitutions a site) and f the background. Everything else follows from those two facts:

    background      sum_j f_j O_ij = 1 for every i, so f = O^-1 1 (the background that the scores imply)
    probability     P = O diag(f), reversible because O is symmetric
    rates           Q = log(P) / 2.5, through the eigenvectors of the symmetric D^1/2 O D^1/2, D = diag(f)
    exchangeability R_ij = Q_ij / f_j, symmetric: what depends on the two residues and not on the site

What is approximate: the scores are rounded to 0.1, so f sums to 0.9995 (rescaled) and single exchangeabilities are
good to some percent. As a check the rates so found give 2.4993 substitutions a site over the 250 PAM, where 2.5 is
due, and no off-diagonal rate comes out negative. (BLOSUM62's whole half-bits give one that does; JONES, one decimal
of log10, gives a P that is not positive definite.)

A site with its own equilibrium frequencies pi keeps R and has Q_ij = R_ij pi_j: the general time-reversible model of a
profile mixture (Le, Gascuel & Lartillot, Bioinformatics 24:2317, 2008), in which sites differ in what they accept.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from Bio.Align import substitution_matrices
from jaxtyping import Float

RESIDUES = "ACDEFGHIKLMNPQRSTVWY"
"""The order of residues within the simulator; files hold letters, so no one else sees it."""

GONNET_SUBSTITUTIONS = 2.5  # 250 PAM: accepted point mutations per site of the age at which the scores are given


@dataclass(frozen=True)
class RateModel:
    """A reversible Markov process on K states, kept as a spectrum so that any time costs two products.

    P(t) = left @ diag(exp(t * eigenvalues)) @ right, with time in expected substitutions a site at rate 1.
    """

    stationary: Float[np.ndarray, " states"]
    eigenvalues: Float[np.ndarray, " states"]
    left: Float[np.ndarray, "states states"]
    right: Float[np.ndarray, "states states"]

    def forward(self, rows: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Distributions [..., states] at one node -> distributions after `times` [...]: rows @ P(t)."""
        decay = np.exp(times[..., None] * self.eigenvalues)
        return np.clip(((rows @ self.left) * decay) @ self.right, 0.0, None)  # rounding leaves -1e-17 where 0 is due

    def backward(self, likelihoods: np.ndarray, times: np.ndarray) -> np.ndarray:
        """Likelihoods [..., states] at the child -> at the parent, `times` [...] earlier: P(t) @ likelihoods."""
        decay = np.exp(times[..., None] * self.eigenvalues)
        return np.clip(((likelihoods @ self.right.T) * decay) @ self.left.T, 0.0, None)


def rate_model(rates: np.ndarray, stationary: np.ndarray) -> RateModel:
    """The spectrum of a rate matrix that is reversible for `stationary`; its diagonal is set here, its scale is kept.

    `rates` [states, states] with stationary_i rates_ij = stationary_j rates_ji.
    """
    generator = rates.copy()
    np.fill_diagonal(generator, 0.0)
    np.fill_diagonal(generator, -generator.sum(1))
    root = np.sqrt(stationary)
    symmetric = root[:, None] * generator / root[None, :]
    eigenvalues, vectors = np.linalg.eigh((symmetric + symmetric.T) / 2)
    return RateModel(
        stationary=stationary,
        eigenvalues=np.minimum(eigenvalues, 0.0),
        left=vectors / root[:, None],
        right=vectors.T * root[None, :],
    )


@lru_cache(maxsize=1)
def gonnet() -> tuple[np.ndarray, np.ndarray]:
    """(exchangeabilities [20, 20], background [20]) of GONNET1992, scaled to one substitution a site and unit time."""
    table: Any = substitution_matrices.load("GONNET1992")  # indexed by letters, which its type does not say
    scores = np.array([[table[a][b] for b in RESIDUES] for a in RESIDUES])
    odds = 10.0 ** (scores / 10)
    background = np.linalg.solve(odds, np.ones(len(RESIDUES)))
    background /= background.sum()
    root = np.sqrt(background)
    eigenvalues, vectors = np.linalg.eigh(root[:, None] * odds * root[None, :])
    symmetric = (vectors * np.log(eigenvalues)) @ vectors.T / GONNET_SUBSTITUTIONS
    exchangeability = symmetric / np.outer(root, root)
    np.fill_diagonal(exchangeability, 0.0)
    return exchangeability / (background @ exchangeability @ background), background


def site_rates(frequencies: np.ndarray) -> np.ndarray:
    """Rates Q_ij = R_ij pi_j of a site whose equilibrium frequencies are `frequencies` [20]; not rescaled.

    Left at R's scale, a site that accepts few residues changes less often than one that accepts many, as it should.
    """
    exchangeability, _ = gonnet()
    return exchangeability * frequencies[None, :]


def pair_model(first: np.ndarray, second: np.ndarray, coupling: np.ndarray) -> RateModel:
    """Two sites that evolve together: 400 joint states, x * 20 + y, one substitution at a time.

    Equilibrium Pi(x, y) ~ first_x second_y exp(J_xy). A step x -> x' with y fixed has the rate
    R_xx' first_x' exp((J_x'y - J_xy) / 2): better pairs are entered faster and left more slowly, and
    Pi(x, y) Q = R_xx' first_x first_x' second_y exp((J_xy + J_x'y) / 2) is symmetric, so Pi is kept exactly. It has the
    form of Halpern & Bruno's model (Mol Biol Evol 15:910, 1998) with the symmetric square root for the fixation rate.

    `first`, `second` [20]: frequencies of each site alone; `coupling` J [20, 20] in nats.
    """
    size = len(RESIDUES)
    joint = np.outer(first, second) * np.exp(coupling)
    joint /= joint.sum()
    rates = np.zeros((size, size, size, size))  # [x, y, x', y']
    steps_first, steps_second = site_rates(first), site_rates(second)
    for y in range(size):
        rates[:, y, :, y] += steps_first * np.exp((coupling[None, :, y] - coupling[:, None, y]) / 2)
    for x in range(size):
        rates[x, :, x, :] += steps_second * np.exp((coupling[x, None, :] - coupling[x, :, None]) / 2)
    return rate_model(rates.reshape(size * size, size * size), joint.reshape(-1))
