"""BLOSUM62: how readily one amino acid takes another's place in related proteins (Henikoff & Henikoff, PNAS 89:10915,
1992), as Biopython carries it."""

from functools import cache
from typing import Any

import numpy as np
from Bio.Align import substitution_matrices
from jaxtyping import Float

from protformer.data.alphabet import STANDARD


@cache
def blosum62() -> Float[np.ndarray, "20 20"]:
    """Log odds in half bits, whole numbers, read-only; rows and columns are the letters of `alphabet.STANDARD`."""
    table: Any = substitution_matrices.load("BLOSUM62")  # indexed by letters, which its type does not say
    scores = np.array([[float(table[a][b]) for b in STANDARD] for a in STANDARD])
    scores.flags.writeable = False
    return scores
