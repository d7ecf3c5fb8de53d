"""BLOSUM62 in the alphabet's order."""

import numpy as np

from protformer.data.alphabet import STANDARD
from protformer.data.blosum import blosum62


def test_scores_are_henikoffs():
    scores = blosum62()
    known = {
        "WW": 11,
        "CC": 9,
        "AA": 4,
        "IL": 2,
        "IV": 3,
        "KR": 2,
        "DE": 2,
        "FY": 3,
        "CW": -2,
        "GI": -4,
        "PW": -4,
        "AS": 1,
    }
    for (a, b), score in known.items():
        assert scores[STANDARD.index(a), STANDARD.index(b)] == score
    assert (scores == scores.T).all()
    assert (np.diag(scores) >= 4).all()
    assert not scores.flags.writeable
