"""Nearest neighbours: equal to a full sort by the cosine's formula, however the work is cut."""

from pathlib import Path

import numpy as np
import pytest

from protformer.embedding import neighbours as module
from protformer.embedding.naming import names, titles
from protformer.embedding.neighbours import check_comparable, nearest, usable
from protformer.embedding.stored import StoredEmbeddings
from protformer.errors import ProtformerError


def store(
    vectors: np.ndarray,
    *,
    ids: list[str] | None = None,
    descriptions: list[str] | None = None,
    output: str = "mean",
    model_hash: str = "abc",
    path: str = "a.h5",
) -> StoredEmbeddings:
    count = len(vectors)
    return StoredEmbeddings(
        path=Path(path),
        keys=[f"k{number}" for number in range(count)],
        ids=ids if ids is not None else [f"p{number}" for number in range(count)],
        descriptions=descriptions if descriptions is not None else [""] * count,
        lengths=np.arange(1, count + 1, dtype=np.int64),
        vectors=vectors.astype(np.float32),
        output=output,
        model_hash=model_hash,
        settings={},
    )


def random(count: int, hidden: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(count, hidden)).astype(np.float32)


def by_sorting(queries: np.ndarray, targets: np.ndarray, k: int, *, itself: bool) -> list[list[int]]:
    """The whole matrix of cosines, each pair by itself, and a stable sort."""
    wanted = []
    for place, query in enumerate(queries.astype(np.float64)):
        cosines = []
        for target in targets.astype(np.float64):
            dot = sum(a * b for a, b in zip(query, target, strict=True))
            cosines.append(round(dot / float(np.sqrt((query**2).sum() * (target**2).sum())), 9))
        order = sorted(range(len(targets)), key=lambda at: -cosines[at])
        wanted.append([at for at in order if not (itself and at == place)][:k])
    return wanted


def found(targets: np.ndarray, queries: np.ndarray | None = None, **options) -> list[list[int]]:
    runs = list(nearest(targets, queries, **options))
    assert [at for run in runs for at in run.queries.tolist()] == sorted(at for run in runs for at in run.queries)
    return [row for run in runs for row in run.neighbours.tolist()]


@pytest.mark.parametrize("block", [1, 3, 7, 2048])
@pytest.mark.parametrize("k", [1, 4, 60])
def test_it_is_a_full_sort_however_it_is_cut(block, k, monkeypatch):
    monkeypatch.setattr(module, "SPARE", 2)
    targets, queries = random(50), random(9, seed=1)
    assert found(targets, queries, k=k, block=block) == by_sorting(queries, targets, k, itself=False)
    assert found(targets, k=k, block=block) == by_sorting(targets, targets, k, itself=True)


def test_cosines_are_the_formula():
    targets, queries = random(20), random(3, seed=1)
    (run,) = nearest(targets, queries, k=20)
    for row, query in enumerate(queries.astype(np.float64)):
        of = targets[run.neighbours[row]].astype(np.float64)
        formula = of @ query / (np.linalg.norm(of, axis=1) * np.linalg.norm(query))
        np.testing.assert_allclose(run.cosines[row], formula, atol=1e-11)
        assert (np.diff(run.cosines[row]) <= 0).all()


@pytest.mark.parametrize("block", [2, 5, 2048])
@pytest.mark.parametrize("spare", [0, 3])
def test_ties_go_by_position(block, spare, monkeypatch):
    """Thirty copies of three vectors, at lengths that tie too: more copies than candidates are kept."""
    monkeypatch.setattr(module, "SPARE", spare)
    kinds = random(3, hidden=33)
    which = np.random.default_rng(5).integers(0, 3, size=30)
    scale = np.random.default_rng(6).choice([0.5, 1.0, 3.0], size=30)
    targets = (kinds[which] * scale[:, None]).astype(np.float32)
    hits = found(targets, k=6, block=block)
    for query in range(30):
        copies = [at for at in range(30) if which[at] == which[query] and at != query]
        assert hits[query] == copies[:6], "its copies, in the order of the store, and never itself"


def test_a_store_against_itself_leaves_out_the_protein_by_position_alone():
    vectors = random(4)
    vectors[2] = vectors[0]
    hits = found(vectors, k=1)
    assert hits[0] == [2]
    assert hits[2] == [0]
    assert found(vectors, vectors, k=1) == [[0], [1], [0], [3]], "as queries they find themselves"


def test_vectors_without_a_direction_are_left_out():
    vectors = random(6)
    vectors[1], vectors[3], vectors[4, 2] = 0, np.inf, np.nan
    assert usable(vectors).tolist() == [True, False, True, False, False, True]
    runs = list(nearest(vectors, k=5))
    assert [run.queries.tolist() for run in runs] == [[0, 2, 5]]
    assert {at for run in runs for at in run.neighbours.ravel().tolist()} == {0, 2, 5}
    assert found(vectors, np.zeros((2, 8), dtype=np.float32), k=2) == []


def test_huge_and_tiny_vectors_have_a_direction():
    vectors = random(5)
    scaled = vectors * np.array([[1e35], [1e-35], [1.0], [1e20], [1e-20]], dtype=np.float32)
    assert found(scaled, k=4) == found(vectors, k=4)


def test_too_few_targets_are_all_given():
    assert list(nearest(random(1), k=3)) == []
    assert list(nearest(random(0), k=3)) == []
    assert found(random(3), random(1, seed=2), k=10) == by_sorting(random(1, seed=2), random(3), 10, itself=False)
    with pytest.raises(ValueError, match="at least 1"):
        nearest(random(3), k=0)


def test_memory_is_bounded_by_the_block(monkeypatch):
    """No array of cosines grows with the store."""
    sizes = []
    whole = module.torch.topk

    def watched(values, *args, **kwargs):
        sizes.append(values.numel())
        return whole(values, *args, **kwargs)

    monkeypatch.setattr(module.torch, "topk", watched)
    monkeypatch.setattr(module, "SPARE", 2)
    list(nearest(random(400), k=3, block=16))
    assert 0 < max(sizes) <= 16 * (16 + 3 + 2)


def test_nearly_equal_vectors_are_told_apart(monkeypatch):
    """Cosines that differ by less than single precision sees: the second look is in double precision."""
    monkeypatch.setattr(module, "SPARE", 1)
    base = random(1, hidden=64)[0]
    targets = np.repeat(base[None], 40, axis=0)
    order = np.random.default_rng(1).permutation(40)
    for rank, at in enumerate(order):
        targets[at, 0] *= 1 + rank * 1e-4
    asked = []
    second = module._Products.__call__

    def watched(self, queries, *args):
        asked.append(self.precision)
        return second(self, queries, *args)

    monkeypatch.setattr(module._Products, "__call__", watched)
    assert found(targets, base[None], k=5) == by_sorting_exactly(base, targets)[:1]
    assert asked == [np.float32, np.float64]


def by_sorting_exactly(query: np.ndarray, targets: np.ndarray) -> list[list[int]]:
    """The five nearest by cosines in longer numbers than any that the program uses."""
    exact, wide = query.astype(np.longdouble), targets.astype(np.longdouble)
    cosines = (wide * exact).sum(axis=1) / np.sqrt((wide**2).sum(axis=1) * (exact**2).sum())
    return [np.argsort(-cosines, kind="stable")[:5].tolist()]


@pytest.mark.parametrize("copies", [1, 60])
def test_faiss_finds_the_same(copies):
    pytest.importorskip("faiss", reason="FAISS is not installed (pip install 'protformer[search]')")
    targets, queries = np.repeat(random(80), copies, axis=0), random(7, seed=1)
    assert found(targets, queries, k=5, engine="faiss") == found(targets, queries, k=5)
    assert found(targets[:300], k=5, engine="faiss") == found(targets[:300], k=5)
    assert found(targets[:4], k=50, engine="faiss") == found(targets[:4], k=50)


def test_without_faiss_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "faiss", None)
    with pytest.raises(ProtformerError, match=r"pip install 'protformer\[search\]'"):
        nearest(random(3), k=1, engine="faiss")


@pytest.mark.parametrize(
    ("other", "words"),
    [({"model_hash": "xyz"}, "different models"), ({"output": "max"}, "--output"), ({"hidden": 9}, "9 wide")],
)
def test_what_cannot_be_compared_is_refused(other, words):
    queries = store(random(3, hidden=other.pop("hidden", 8)), path="b.h5", **other)
    with pytest.raises(ProtformerError, match=words) as refused:
        check_comparable(queries, store(random(3)))
    assert "b.h5" in str(refused.value)
    check_comparable(store(random(3), model_hash=""), store(random(3)))


def test_names_are_unique_and_fit_into_a_table():
    repeated = store(random(5), ids=["a", "", "a", "k0", "x\ty"])
    assert names(repeated) == ["k0", "k1", "k2", "k3", "x y"]
    described = store(random(3), ids=["a", "b", ""], descriptions=["a kinase\tof\nyeast", "b", "no id"])
    assert titles(described) == ["kinase of yeast", "", "no id"]
