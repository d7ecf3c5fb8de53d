"""Stores of plain arrays, for tests of the map."""

from pathlib import Path

import numpy as np

from protformer.embedding.stored import StoredEmbeddings


def store_of(
    vectors: np.ndarray,
    *,
    ids: list[str] | None = None,
    keys: list[str] | None = None,
    descriptions: list[str] | None = None,
    lengths: list[int] | None = None,
    settings: dict | None = None,
) -> StoredEmbeddings:
    """Proteins p0, p1, ... with the keys k0, k1, ..., three residues long, unless said otherwise."""
    count = len(vectors)
    return StoredEmbeddings(
        path=Path("proteins.h5"),
        keys=keys if keys is not None else [f"k{number}" for number in range(count)],
        ids=ids if ids is not None else [f"p{number}" for number in range(count)],
        descriptions=descriptions if descriptions is not None else [""] * count,
        lengths=np.array(lengths if lengths is not None else [3] * count, dtype=np.int64),
        vectors=np.asarray(vectors, dtype=np.float32),
        output="mean",
        model_hash="0123456789abcdef",
        settings=settings or {},
    )


def random(count: int, hidden: int = 6, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, hidden)).astype(np.float32)
