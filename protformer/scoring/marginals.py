"""Masked marginals: what a model gives for a substitution, from the wild type with that site masked.

    score(variant) = sum over its sites i of  log p(mutant_i | wild type without i) - log p(wild type_i | the same)

Meier et al. 2021 (bioRxiv 2021.07.09.450648), equation 1 with each site masked by itself. Sites add up: what two
substitutions do together is not in it. A site is one pass of the wild type, however many variants name it.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float32, UInt8

from protformer.data.alphabet import MASK, STANDARD, TOKENS
from protformer.data.batch import segment
from protformer.data.blosum import blosum62
from protformer.scoring.mutations import Substitution
from protformer.scoring.passes import DoesNotFit, LanguageModel, Pass, log_probabilities

Marginals = dict[int, "Float32[np.ndarray, 'tokens'] | DoesNotFit"]  # site -> log p of every token there


def masked_marginals(
    language_model: LanguageModel,
    wild_type: UInt8[np.ndarray, " length"],
    sites: Iterable[int],
    *,
    on_batch: Callable[[int], None] | None = None,
) -> Marginals:
    """log p of every token at each of these sites (indices from 0) of the wild type, masked one at a time."""
    shown = segment(wild_type)

    def passes() -> Iterator[Pass]:
        for site in sorted(set(sites)):
            rows = np.array([site + 1])
            tokens = shown.copy()
            tokens[rows] = MASK
            yield Pass(site, tokens, rows, shown[rows])

    found: Marginals = {}
    for one, read in log_probabilities(language_model, passes(), on_batch=on_batch):
        found[one.protein] = read if isinstance(read, DoesNotFit) else read[0]
    return found


def marginal_score(marginals: Marginals, substitutions: Sequence[Substitution]) -> float:
    """The sum above, in nats; 0 for the wild type, NaN where a site has no log-probabilities."""
    total = 0.0
    for site, wild_type, mutant in substitutions:
        read = marginals[site]
        total += float("nan") if isinstance(read, DoesNotFit) else float(read[mutant]) - float(read[wild_type])
    return total


def blosum_score(substitutions: Sequence[Substitution]) -> float:
    """A floor without a model: what BLOSUM62 gives the variant aligned with the wild type, minus the wild type itself.

    The sum over sites of B(wild type, mutant) - B(wild type, wild type), in half bits: like the model's score, 0 for
    the wild type. Without the second term a V for I would rank above the wild type, and the floor was lower too
    (Spearman's correlation with the fitness of 8,733 variants of GB1: 0.146 with it, 0.080 without).
    """
    table = blosum62()
    place = {TOKENS.index(letter): index for index, letter in enumerate(STANDARD)}
    sites = [(place[wild_type], place[mutant]) for _, wild_type, mutant in substitutions]
    return float(sum(table[wild_type, mutant] - table[wild_type, wild_type] for wild_type, mutant in sites))
