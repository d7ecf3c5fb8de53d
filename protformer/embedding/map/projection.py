"""Vectors to points in a plane: principal components, exact and the same each time; or UMAP, where it is installed.

Principal components come from the eigenvectors of the covariance [hidden, hidden], which is summed block by block in
double precision: any number of proteins fits, and nothing is random. An eigenvector's sign means nothing; here its
largest entry is positive.
"""

import warnings
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float32, Float64

from protformer.errors import ProtformerError

Method = Literal["pca", "umap"]

_BLOCK = 8192  # rows in double precision at a time
# Shares of the variance below this are rounding: two proteins lie on a line, equal vectors in a point.
_NOTHING = 1e-12
_NEIGHBOURS = 15  # of each protein in UMAP's graph, as is its default
_FEWEST = 5  # proteins: UMAP starts from eigenvectors of a graph, which fewer do not have


@dataclass(frozen=True)
class Projection:
    """Where each protein stands."""

    method: Method
    coordinates: Float64[np.ndarray, "n 2"]
    explained: tuple[float, float] | None
    """Shares of the variance along both axes; None where they have no such meaning."""

    @property
    def columns(self) -> tuple[str, str]:
        """The coordinates' names in a table."""
        return ("PC1", "PC2") if self.method == "pca" else ("UMAP1", "UMAP2")

    @property
    def axes(self) -> tuple[str, str]:
        """The axes' titles."""
        if self.method == "umap":
            return "UMAP 1", "UMAP 2"
        shares = self.explained or (0.0, 0.0)
        return f"PC 1 ({shares[0]:.1%} of the variance)", f"PC 2 ({shares[1]:.1%} of the variance)"


def project(vectors: Float32[np.ndarray, "n hidden"], method: Method = "pca", *, seed: int = 0) -> Projection:
    """Points for all vectors, which must be finite.

    Raises:
        ProtformerError: umap is asked for and not installed, or has too few proteins.
    """
    return pca(vectors) if method == "pca" else umap(vectors, seed=seed)


def pca(vectors: Float32[np.ndarray, "n hidden"]) -> Projection:
    """The first two principal components of the centred vectors, in the units of the vectors (no scaling)."""
    count, hidden = vectors.shape
    if count == 0:
        return Projection("pca", np.zeros((0, 2)), None)
    origin = vectors[0].astype(np.float64)  # so that equal vectors are zeros, without rounding
    mean = np.zeros(hidden)
    for start in range(0, count, _BLOCK):
        mean += (vectors[start : start + _BLOCK] - origin).sum(axis=0)
    mean = origin + mean / count
    scatter = np.zeros((hidden, hidden))
    for start in range(0, count, _BLOCK):
        centred = vectors[start : start + _BLOCK] - mean
        scatter += centred.T @ centred
    values, directions = np.linalg.eigh(scatter)  # ascending
    total = float(values.clip(0).sum())
    coordinates, explained = np.zeros((count, 2)), [0.0, 0.0]
    for axis, place in enumerate(range(hidden - 1, max(hidden - 3, -1), -1)):
        if values[place] <= _NOTHING * total:
            continue
        direction = directions[:, place]
        direction = direction * np.sign(direction[np.abs(direction).argmax()])
        for start in range(0, count, _BLOCK):
            rows = slice(start, start + _BLOCK)
            coordinates[rows, axis] = (vectors[rows] - mean) @ direction
        explained[axis] = float(values[place]) / total
    return Projection("pca", coordinates, (explained[0], explained[1]))


def umap(vectors: Float32[np.ndarray, "n hidden"], *, seed: int = 0) -> Projection:
    """UMAP (McInnes et al. 2018, arXiv 1802.03426) with cosine distances and its defaults: near ones stay together,
    distances between far ones mean nothing. One seed gives one picture, on one core."""
    if len(vectors) < _FEWEST:
        raise ProtformerError(f"UMAP needs {_FEWEST} proteins and here are {len(vectors)}: use --method pca.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what else might be installed
            from umap import UMAP  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ProtformerError("UMAP is not installed: pip install 'protformer[map]', or use --method pca.") from error
    neighbours = min(_NEIGHBOURS, len(vectors) - 1)
    start = "spectral" if len(vectors) > 2 * _FEWEST else "random"  # eigenvectors of small graphs fail
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that a seed costs the other cores
        model = UMAP(n_neighbors=neighbours, metric="cosine", init=start, random_state=seed)
        coordinates = np.asarray(model.fit_transform(vectors), dtype=np.float64)
    if not np.isfinite(coordinates).all():
        raise ProtformerError("UMAP found no place for some proteins (their vectors may be equal): use --method pca.")
    return Projection("umap", coordinates, None)
