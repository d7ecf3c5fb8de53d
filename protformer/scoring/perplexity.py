"""How likely a model finds a protein: pseudo-perplexity under masks, perplexity of a next-residue model.

    pseudo-perplexity = exp(-1/L sum_i log p(residue i | all residues but i))       Salazar et al., arXiv 1910.14659
    perplexity        = exp(-1/L sum_i log p(residue i | residues before i))

The first takes a pass of the protein for each of its residues, so it grows with the square of the length. Masking a set
of residues at once takes fewer passes: `passes=N` deals the residues into N sets by a permutation that depends on the
seed and on their number alone (a protein's figure does not depend on the file that it stands in). Each residue is still
asked for once, but it sees 1/N fewer of the others: the figure is an estimate.

Only the 20 standard residues are asked for: no model here was trained to predict X, B, U, Z and O. They are shown.
"""

from collections.abc import Callable, Iterator
from typing import NamedTuple

import numpy as np
from jaxtyping import UInt8

from protformer.data.alphabet import IS_STANDARD, MASK
from protformer.data.batch import segment
from protformer.data.corpus import Corpus
from protformer.scoring.passes import DoesNotFit, LanguageModel, Pass, log_probabilities

NEXT_RESIDUE = "next_residue"
EXACT = "exact"
NOT_FINITE = "the model gave numbers that are not finite"
NO_STANDARD_RESIDUE = "no standard residue in it: there is nothing that the model was trained to predict"


class Score(NamedTuple):
    """A protein's figures; NaN, and the reason in `failure`, where it has none."""

    scored: int  # residues asked for
    mean_log_likelihood: float  # of a residue, natural logarithm
    method: str  # "exact", "passes=16" or "next_residue"
    failure: str | None = None

    @property
    def perplexity(self) -> float:
        """exp(-mean log-likelihood): pseudo-perplexity, or the true one where the method is "next_residue"."""
        return float(np.exp(-self.mean_log_likelihood))


def passes_of(
    residues: UInt8[np.ndarray, " length"],
    *,
    passes: int | None,
    next_residue: bool = False,
    seed: int = 0,
    protein: int = 0,
) -> Iterator[Pass]:
    """The passes that ask for each standard residue once; none where there is no standard residue.

    Args:
        passes: that many, each with its set of residues masked; None, or at least as many as standard residues: each
            residue by itself.
        next_residue: one pass, without a mask: the row before a residue answers for it.
    """
    standard = np.flatnonzero(IS_STANDARD[residues])
    if not len(standard):
        return
    shown = segment(residues)
    if next_residue:
        yield Pass(protein, shown, standard, shown[standard + 1])
        return
    count = number_of_passes(len(standard), passes)
    order = standard if count == len(standard) else np.random.default_rng([seed, len(standard)]).permutation(standard)
    for part in range(count):
        rows = np.sort(order[part::count]) + 1
        tokens = shown.copy()
        tokens[rows] = MASK
        yield Pass(protein, tokens, rows, shown[rows])


def number_of_passes(standard: int, passes: int | None, *, next_residue: bool = False) -> int:
    """Passes for a protein of so many standard residues."""
    if next_residue:
        return min(standard, 1)
    return standard if passes is None else min(passes, standard)


def method_of(standard: int, passes: int | None, *, next_residue: bool = False) -> str:
    """What stands in the table: "exact" too where the passes are enough for a residue each."""
    if next_residue:
        return NEXT_RESIDUE
    return EXACT if passes is None or standard <= passes else f"passes={passes}"


def residues_to_compute(corpus: Corpus, passes: int | None, *, next_residue: bool = False) -> int:
    """Residues of all passes over a corpus: what it will cost."""
    counts = zip(corpus.lengths.tolist(), corpus.standard_counts.tolist(), strict=True)
    return sum(length * number_of_passes(standard, passes, next_residue=next_residue) for length, standard in counts)


def score_corpus(
    language_model: LanguageModel,
    corpus: Corpus,
    *,
    passes: int | None,
    seed: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> Iterator[Score]:
    """One score for each sequence, in the order of the corpus: equal alone, packed with others and in any order.

    Args:
        passes: as in `passes_of`; a next-residue model takes one, whatever stands here.
        on_batch: called after each pack with the residues that it held.
    """
    causal = language_model.next_residue
    standard = corpus.standard_counts.tolist()
    sums: dict[int, float] = {}
    unfit: dict[int, str] = {}

    def all_passes() -> Iterator[Pass]:
        for index in range(len(corpus)):
            yield from passes_of(corpus.sequence(index), passes=passes, next_residue=causal, seed=seed, protein=index)

    def finished(index: int) -> Score:
        method = method_of(standard[index], passes, next_residue=causal)
        total = sums.pop(index, float("nan"))
        reason = unfit.pop(index, NOT_FINITE if standard[index] else NO_STANDARD_RESIDUE)
        if not np.isfinite(total):
            return Score(standard[index], float("nan"), method, reason)
        return Score(standard[index], total / standard[index], method)

    following = 0
    for one, found in log_probabilities(language_model, all_passes(), on_batch=on_batch):
        while following < one.protein:
            yield finished(following)
            following += 1
        if isinstance(found, DoesNotFit):
            value = float("nan")
            unfit[one.protein] = found.reason
        else:
            value = float(found[np.arange(len(one.rows)), one.targets].sum(dtype=np.float64))
        sums[one.protein] = sums.get(one.protein, 0.0) + value
    while following < len(corpus):
        yield finished(following)
        following += 1
