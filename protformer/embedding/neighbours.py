"""Nearest neighbours by cosine: exact, in bounded memory, and the same list every time.

Products of blocks of normalised vectors in single precision find candidates, a few more than are asked for. Then the
cosine of each pair is computed once more by itself, in double precision and as the same sum whatever block the pair was
in, so that equal vectors tie to the bit and a tie goes by position in the store. Where a vector that was left out may
be as near as one that was kept, within the products' rounding, that query is asked again with products in double
precision; where even those cannot tell (more copies of one vector than candidates), it is held against the whole store.

FAISS may find the first candidates (`IndexFlatIP` on normalised vectors); the rest is the same, and so is the result.
"""

from collections.abc import Iterator
from typing import Any, Literal, NamedTuple, Protocol

import numpy as np
import torch
from jaxtyping import Bool, Float32, Float64, Int64

from protformer.embedding.stored import StoredEmbeddings
from protformer.errors import ProtformerError

Engine = Literal["exact", "faiss"]

BLOCK = 2048  # rows of queries and of targets in one product: 32 MiB of cosines
SPARE = 32  # candidates beyond k
_BUFFER = 1 << 22  # numbers: of the vectors that are gathered to compute cosines pair by pair, and of candidates kept
_TIE = 12  # decimals: a vector and three times that vector are the same neighbour


class Hits(NamedTuple):
    """The neighbours of a run of queries, nearest first."""

    queries: Int64[np.ndarray, " queries"]  # positions in the store of queries
    neighbours: Int64[np.ndarray, "queries k"]  # positions in the store of targets
    cosines: Float64[np.ndarray, "queries k"]


def usable(vectors: Float32[np.ndarray, "n hidden"]) -> Bool[np.ndarray, " n"]:
    """Which vectors have a direction: all numbers finite, and not all zero."""
    good = np.empty(len(vectors), dtype=bool)
    for start in range(0, len(vectors), BLOCK):
        block = vectors[start : start + BLOCK]
        good[start : start + BLOCK] = np.isfinite(block).all(axis=1) & (block != 0).any(axis=1)
    return good


def check_comparable(queries: StoredEmbeddings, targets: StoredEmbeddings) -> None:
    """ProtformerError where a cosine between the two stores would mean nothing: other model, pooling or width."""
    if queries.model_hash and targets.model_hash and queries.model_hash != targets.model_hash:
        raise ProtformerError(
            f"{queries.path} and {targets.path} are from different models ({queries.model_hash[:12]} and "
            f"{targets.model_hash[:12]}), so cosines between them mean nothing: embed both with one model."
        )
    if queries.output != targets.output:
        raise ProtformerError(
            f"{queries.path} gives {queries.output!r} and {targets.path} {targets.output!r}, which cannot be compared: "
            "name one that both have with --output."
        )
    if queries.vectors.shape[1] != targets.vectors.shape[1]:
        raise ProtformerError(
            f"The vectors of {queries.path} are {queries.vectors.shape[1]} wide and those of {targets.path} "
            f"{targets.vectors.shape[1]}: they are not of one model."
        )


def nearest(
    targets: Float32[np.ndarray, "targets hidden"],
    queries: Float32[np.ndarray, "queries hidden"] | None = None,
    *,
    k: int,
    engine: Engine = "exact",
    block: int = BLOCK,
) -> Iterator[Hits]:
    """The `k` targets of highest cosine for each query, in the order of the queries, a run of queries at a time.

    Vectors without a direction (`usable`) are no neighbours and have none: they are not among the hits. Of fewer than
    `k` targets there are all.

    Args:
        queries: by default the targets themselves, each without itself (by position: its copies are neighbours).
        engine: what finds candidates.
        block: rows of one product. Memory grows with its square, not with the store.

    Raises:
        ProtformerError: `engine` is "faiss" and FAISS is not installed.
        ValueError: k is below 1.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    itself = queries is None
    queries = targets if queries is None else queries
    of_targets, of_queries = np.flatnonzero(usable(targets)), np.flatnonzero(usable(queries))
    k = min(k, len(of_targets) - itself)
    first: _Finder = _Faiss(targets, of_targets) if engine == "faiss" else _Products(targets, of_targets, block)
    finders = [first, _Products(targets, of_targets, block, precision=np.float64)]
    return _in_order(targets, queries, of_queries, itself, k, finders) if k > 0 else iter(())


def _in_order(
    targets: np.ndarray, queries: np.ndarray, of_queries: np.ndarray, itself: bool, k: int, finders: "list[_Finder]"
) -> Iterator[Hits]:
    step = max(1, min(BLOCK, _BUFFER // (k + SPARE)))
    for start in range(0, len(of_queries), step):
        yield _hits(targets, queries, of_queries[start : start + step], itself, k, finders)


def _hits(
    targets: np.ndarray, queries: np.ndarray, at: np.ndarray, itself: bool, k: int, finders: "list[_Finder]"
) -> Hits:
    """Of the queries `at` these positions. The finders are asked in turn, each for what those before could not tell."""
    find, *others = finders
    available = len(find.positions) - itself
    wanted = min(k + SPARE, available)
    candidates, bounds = find(_normalised(queries[at]), wanted, at if itself else None)
    cosines = _cosines(queries, at, targets, candidates)
    order = np.lexsort((candidates, -cosines), axis=1)[:, :k]
    neighbours, cosines = (np.take_along_axis(values, order, axis=1) for values in (candidates, cosines))
    if wanted < available:
        unsure = np.flatnonzero(bounds >= cosines[:, -1] - 2 * find.rounding)
        if others and unsure.size:
            _, neighbours[unsure], cosines[unsure] = _hits(targets, queries, at[unsure], itself, k, others)
        else:
            for row in unsure.tolist():
                neighbours[row], cosines[row] = _of_one(targets, find.positions, queries, int(at[row]), itself, k)
    return Hits(at, neighbours, cosines)


def _of_one(
    targets: np.ndarray, positions: np.ndarray, queries: np.ndarray, query: int, itself: bool, k: int
) -> tuple[np.ndarray, np.ndarray]:
    """The neighbours of one query, from its cosine with every target."""
    positions = positions[positions != query] if itself else positions
    cosines = _cosines(queries, np.array([query]), targets, positions[None])[0]
    order = np.lexsort((positions, -cosines))[:k]
    return positions[order], cosines[order]


def _cosines(
    queries: np.ndarray, at: np.ndarray, targets: np.ndarray, candidates: Int64[np.ndarray, "n m"]
) -> Float64[np.ndarray, "n m"]:
    """Each pair by itself, in double precision: the same number for the same two vectors, wherever they stand."""
    found = np.empty(candidates.shape)
    width = max(1, _BUFFER // max(1, targets.shape[1]))  # pairs at once
    for row, query in enumerate(_normalised(queries[at])):
        for start in range(0, candidates.shape[1], width):
            of = candidates[row, start : start + width]
            # a sum along rows adds each row in the same order; a matrix product may not
            found[row, start : start + width] = (_normalised(targets[of]) * query).sum(axis=1)
    return np.clip(np.round(found, _TIE), -1.0, 1.0)


def _normalised(vectors: np.ndarray) -> Float64[np.ndarray, "n hidden"]:
    """Of length 1, in double precision; scaled first, so that no square over- or underflows."""
    wide = vectors.astype(np.float64)
    wide /= np.abs(wide).max(axis=1, keepdims=True)
    wide /= np.sqrt((wide * wide).sum(axis=1, keepdims=True))
    return wide


class _Finder(Protocol):
    positions: np.ndarray  # int64: of the targets that have a direction
    rounding: float  # a cosine that it computes is at most so far from the true one

    def __call__(
        self, queries: np.ndarray, wanted: int, selves: np.ndarray | None
    ) -> tuple[Int64[np.ndarray, "queries wanted"], Float64[np.ndarray, " queries"]]:
        """`wanted` candidates of each normalised query, and a cosine (as computed) that none left out exceeds.

        `selves`: the query's own position among the targets, which is no candidate.
        """
        ...


def _rounding(hidden: int, precision: type[np.floating]) -> float:
    """Bound on the error of a sum of `hidden` products of two vectors of length 1, in whatever order it is added
    (Higham, Accuracy and Stability of Numerical Algorithms, 2002, section 3.1); the vectors were rounded before."""
    return (hidden + 8) * float(np.finfo(precision).eps) / 2


class _Products:
    """Candidates from products of blocks."""

    def __init__(
        self, targets: np.ndarray, positions: np.ndarray, block: int, precision: type[np.floating] = np.float32
    ) -> None:
        self.targets, self.positions, self.block, self.precision = targets, positions, block, precision
        # what the cosines themselves are rounded to counts too
        self.rounding = _rounding(targets.shape[1], precision) + 10.0**-_TIE

    def __call__(
        self, queries: np.ndarray, wanted: int, selves: np.ndarray | None
    ) -> tuple[Int64[np.ndarray, "queries wanted"], Float64[np.ndarray, " queries"]]:
        kept = np.empty((len(queries), wanted), dtype=np.int64)
        bounds = np.empty(len(queries))
        for start in range(0, len(queries), self.block):
            rows = slice(start, start + self.block)
            own = None if selves is None else selves[rows]
            kept[rows], bounds[rows] = self._of(queries[rows].astype(self.precision), wanted, own)
        return kept, bounds

    def _of(self, queries: np.ndarray, wanted: int, selves: np.ndarray | None) -> tuple[np.ndarray, np.ndarray]:
        kept = np.empty((len(queries), 0), dtype=np.int64)
        cosines = np.empty((len(queries), 0), dtype=self.precision)
        bounds = np.full(len(queries), -np.inf)
        for start in range(0, len(self.positions), self.block):
            positions = self.positions[start : start + self.block]
            new = queries @ _normalised(self.targets[positions]).astype(self.precision).T
            if selves is not None:
                new[selves[:, None] == positions] = -np.inf
            cosines = np.concatenate([cosines, new], axis=1)
            best, order = torch.topk(torch.from_numpy(cosines), min(wanted + 1, cosines.shape[1]), dim=1)
            cosines, order = best.numpy(), order.numpy()
            if cosines.shape[1] > wanted:
                bounds = np.maximum(bounds, cosines[:, wanted])
                cosines, order = cosines[:, :wanted], order[:, :wanted]
            earlier = order < kept.shape[1]
            among_new = positions[np.where(earlier, 0, order - kept.shape[1])]
            if kept.shape[1]:
                of_kept = np.take_along_axis(kept, np.where(earlier, order, 0), axis=1)
                among_new = np.where(earlier, of_kept, among_new)
            kept = among_new
        return kept, bounds


class _Faiss:
    """Candidates from FAISS's flat index: all products, in single precision."""

    def __init__(self, targets: np.ndarray, positions: np.ndarray) -> None:
        try:
            import faiss  # pyright: ignore[reportMissingImports]
        except ImportError as error:
            raise ProtformerError(
                "FAISS is not installed: pip install 'protformer[search]', or leave --faiss out."
            ) from error
        self.positions = positions
        self.rounding = _rounding(targets.shape[1], np.float32) + 10.0**-_TIE
        self._index: Any = faiss.IndexFlatIP(targets.shape[1])
        for start in range(0, len(positions), BLOCK):
            self._index.add(_normalised(targets[positions[start : start + BLOCK]]).astype(np.float32))

    def __call__(
        self, queries: np.ndarray, wanted: int, selves: np.ndarray | None
    ) -> tuple[Int64[np.ndarray, "queries wanted"], Float64[np.ndarray, " queries"]]:
        ask = min(wanted + 1, len(self.positions))
        cosines, found = self._index.search(queries.astype(np.float32), ask)
        found = self.positions[found]
        if selves is not None:
            # one of each row goes: itself, or else (among more copies than were asked for) the last
            own = found == selves[:, None]
            at = np.where(own.any(axis=1), own.argmax(axis=1), ask - 1)
            found = found[np.arange(ask) != at[:, None]].reshape(len(found), ask - 1)
        return found[:, :wanted], cosines[:, -1].astype(np.float64)
