"""Vectors to points: principal components equal a singular value decomposition, and are the same each time."""

import sys

import numpy as np
import pytest
from mapped import random

from protformer.embedding.map import projection as module
from protformer.embedding.map.projection import pca, project
from protformer.errors import ProtformerError


@pytest.mark.parametrize("block", [3, 7, 8192])
def test_principal_components_are_those_of_a_singular_value_decomposition(block, monkeypatch):
    monkeypatch.setattr(module, "_BLOCK", block)
    vectors = random(40) * np.array([5, 3, 2, 1, 1, 1], dtype=np.float32) + 100
    found = pca(vectors)
    centred = vectors.astype(np.float64) - vectors.mean(axis=0, dtype=np.float64)
    left, singular, right = np.linalg.svd(centred, full_matrices=False)
    signs = np.sign(right[np.arange(2), np.abs(right[:2]).argmax(axis=1)])
    np.testing.assert_allclose(found.coordinates, left[:, :2] * singular[:2] * signs, atol=1e-9)
    np.testing.assert_allclose(found.explained or (), (singular**2 / (singular**2).sum())[:2])


def test_the_order_of_proteins_changes_nothing_and_a_mirrored_cloud_is_mirrored():
    vectors = random(30)
    order = np.random.default_rng(1).permutation(30)
    np.testing.assert_allclose(pca(vectors[order]).coordinates, pca(vectors).coordinates[order], atol=1e-9)
    np.testing.assert_allclose(pca(-vectors).coordinates, -pca(vectors).coordinates, atol=1e-9)


def test_it_does_not_depend_on_where_the_cloud_is():
    vectors = np.round(random(20) * 64) / 64  # so that the shift is exact
    np.testing.assert_allclose(pca(vectors + 4096).coordinates, pca(vectors).coordinates, atol=1e-9)


def test_few_proteins():
    assert pca(random(0)).coordinates.shape == (0, 2)
    one = pca(random(1))
    assert one.coordinates.tolist() == [[0, 0]]
    assert one.explained == (0, 0)
    vectors = random(2)
    two = pca(vectors)
    assert two.explained == pytest.approx((1, 0))
    apart = float(np.linalg.norm(vectors[0].astype(np.float64) - vectors[1]))
    assert abs(two.coordinates[0, 0] - two.coordinates[1, 0]) == pytest.approx(apart)
    assert (two.coordinates[:, 1] == 0).all()


@pytest.mark.parametrize("value", [0.0, 0.1, 1e6])
def test_equal_vectors_are_one_point(value):
    found = pca(np.full((50, 6), value, dtype=np.float32))
    assert (found.coordinates == 0).all()
    assert found.explained == (0, 0)
    assert found.axes[0] == "PC 1 (0.0% of the variance)"


def test_a_vector_of_one_number_has_one_axis():
    found = pca(np.array([[1.0], [3.0], [2.0]], dtype=np.float32))
    assert found.coordinates.tolist() == [[-1, 0], [1, 0], [0, 0]]
    assert found.explained == pytest.approx((1, 0))


def test_without_umap_a_sentence_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "umap", None)
    with pytest.raises(ProtformerError, match=r"pip install 'protformer\[map\]'"):
        project(random(20), "umap")


def test_umap_needs_some_proteins():
    with pytest.raises(ProtformerError, match="--method pca"):
        project(random(4), "umap")


@pytest.mark.slow
@pytest.mark.parametrize("count", [5, 9, 11, 40])
def test_umap_is_the_same_for_a_seed(count):
    pytest.importorskip("umap", reason="umap-learn is not installed (pip install 'protformer[map]')")
    vectors = random(count)
    vectors[: count // 2] += 20
    first, again = project(vectors, "umap", seed=1), project(vectors, "umap", seed=1)
    np.testing.assert_array_equal(first.coordinates, again.coordinates)
    assert first.coordinates.shape == (count, 2)
    assert np.isfinite(first.coordinates).all()
    assert first.explained is None
