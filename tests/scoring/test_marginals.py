"""Masked marginals equal the formula written out, a site computed once."""

import numpy as np
import pytest
import torch

from protformer.data.alphabet import CLS, EOS, MASK, STANDARD, TOKENS, encode
from protformer.data.blosum import blosum62
from protformer.scoring import blosum_score, marginal_score, masked_marginals
from protformer.scoring.mutations import parse_mutations

WILD = encode("MKVLAWXEDRGHKL")


@pytest.mark.parametrize("batch_tokens", [1, 40, 4096])
@pytest.mark.parametrize("attention", ["exact", "performer"])
def test_the_formula_written_out(attention, batch_tokens, language_model):
    model = language_model(attention, batch_tokens=batch_tokens)
    found = masked_marginals(model, WILD, [5, 0, 5, 3])
    assert list(found) == [0, 3, 5]
    variant = parse_mutations("M1A:W6G", WILD)
    expected = 0.0
    for place, mutant in ((0, "A"), (5, "G")):
        tokens = torch.tensor([CLS, *WILD.tolist(), EOS])
        tokens[place + 1] = MASK
        cu_seqlens = torch.tensor([0, len(tokens)], dtype=torch.int32)
        with torch.no_grad():
            logits = model.model.read(model.model(tokens, cu_seqlens), cu_seqlens)[place + 1]
        expected += float(logits[TOKENS.index(mutant)] - logits[WILD[place]])
    assert abs(expected) > 1e-3
    assert marginal_score(found, variant) == pytest.approx(expected, abs=1e-5)
    assert marginal_score(found, []) == 0.0


def test_a_site_is_computed_once(language_model):
    told: list[int] = []
    masked_marginals(language_model(), WILD, [2, 2, 2, 9], on_batch=told.append)
    assert sum(told) == 2 * len(WILD)


def test_log_probabilities_sum_to_one(language_model):
    found = masked_marginals(language_model("performer"), WILD, range(4))
    assert [np.exp(np.asarray(row)).sum() for row in found.values()] == pytest.approx([1.0] * 4, abs=1e-5)


def test_the_floor_is_what_blosum_takes_from_the_wild_type():
    table, place = blosum62(), STANDARD.index
    assert blosum_score([]) == 0
    expected = table[place("M"), place("A")] - table[place("M"), place("M")]
    assert blosum_score(parse_mutations("M1A", WILD)) == expected == -6
    assert blosum_score(parse_mutations("M1A:V3I", WILD)) == -6 + 3 - 4
