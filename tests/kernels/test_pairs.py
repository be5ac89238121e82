"""Exact distances of sparse rows, against those of the same rows as dense arrays."""

import numpy as np
import pytest
import scipy.sparse as sp
from scipy.spatial.distance import cdist

from dumap.kernels import pairs
from dumap.kernels.vectors import squared_distance


@pytest.fixture
def x():
    """Sparse rows, the first of them zero, the second full and constant, the third and fourth equal."""
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(30, 40)) * (rng.random((30, 40)) < 0.2)).astype("f4")
    x[0], x[1], x[3] = 0, 2.5, x[2]
    return x


def expected_distances(x, metric):
    """Return squared distances in float64, of unit rows for angular metrics."""
    x = x.astype("f8")
    if metric == "correlation":
        x = x - x.mean(axis=1, keepdims=True)
    if metric in pairs.ANGULAR_METRICS:
        length = np.linalg.norm(x, axis=1, keepdims=True)
        zero = length[:, 0] < 1e-12
        x = x / np.where(length < 1e-12, 1, length)
    squared = cdist(x, x, "sqeuclidean")
    if metric in pairs.ANGULAR_METRICS:
        squared[zero], squared[:, zero] = 2, 2
        squared[np.ix_(zero, zero)] = 0
    return squared


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "correlation"])
def test_distances_are_those_of_dense_rows(x, metric):
    rows, far = sp.csr_matrix(x), expected_distances(x, metric)
    assert np.allclose(pairs.squared_distance_matrix(rows, rows, metric), far, rtol=1e-6, atol=1e-12)
    ready = pairs.SparseRows.from_csr(rows, metric)
    distances = np.array([[pairs.sparse_distance(ready, i, j) for j in range(30)] for i in range(30)])
    assert np.allclose(distances, far, rtol=1e-12, atol=4e-15)
    assert np.array_equal(distances, distances.T), "the same to the bit from both sides"
    assert np.array_equal(distances.astype("f4"), pairs.squared_distance_matrix(rows, rows, metric)), "and by an index"
    assert distances[2, 3] == 0 == distances[5, 5]


def test_near_rows_far_from_the_origin_do_not_cancel():
    x = np.zeros((3, 50), "f4")
    x[:, ::2] = 1e6
    x[1, 4], x[2, 5] = np.nextafter(np.float32(1e6), np.float32(2e6)), 0.001
    distances = pairs.squared_distance_matrix(sp.csr_matrix(x), sp.csr_matrix(x), "euclidean")
    assert np.allclose(distances, cdist(x.astype("f8"), x.astype("f8"), "sqeuclidean"), rtol=1e-6)


def test_a_pair_of_an_array_is_as_before(x):
    assert pairs.pair_distance(x, 4, 5) == squared_distance(x[4], x[5])
    assert pairs.pair_distance(pairs.SparseRows.from_csr(sp.csr_matrix(x), "euclidean"), 4, 5) == pytest.approx(
        float(squared_distance(x[4], x[5]))
    )
