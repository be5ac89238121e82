"""Figures of quality, beside those of scikit-learn."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from sklearn.manifold import trustworthiness

from dumap.kernels import neighbors, quality


def empty_lists(queries: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Return empty lists of ids and distances."""
    return np.full((queries, k), -1, np.int64), np.full((queries, k), np.inf, np.float32)


@given(
    seed=st.integers(0, 999), n=st.integers(1, 30), k=st.integers(1, 8), cuts=st.lists(st.integers(0, 30), max_size=4)
)
def test_the_nearest_of_all_blocks_are_kept_ties_by_id(seed, n, k, cuts):
    rng = np.random.default_rng(seed)
    block = rng.integers(0, 6, (3, n)).astype(np.float32)
    ids = rng.permutation(100)[:n]
    ids[rng.random(n) < 0.1] = -1
    skip = np.array([ids[0], 1000, ids[-1]])
    indices, distances = empty_lists(3, k)
    parts = np.split(rng.permutation(n), sorted(min(cut, n) for cut in cuts))
    for part in parts:
        quality.keep_nearest(np.ascontiguousarray(block[:, part]), ids[part], skip, indices, distances)
    for q in range(3):
        ordered = sorted((d, i) for d, i in zip(block[q], ids, strict=True) if i not in (-1, skip[q]))[:k]
        pad = k - len(ordered)
        assert indices[q].tolist() == [i for _, i in ordered] + [-1] * pad
        assert distances[q].tolist() == [d for d, _ in ordered] + [np.inf] * pad


@given(seed=st.integers(0, 999), cut=st.integers(0, 20))
def test_counts_add_up_to_the_rows_nearer_than_each_limit(seed, cut):
    rng = np.random.default_rng(seed)
    block = rng.integers(0, 9, (3, 20)).astype(np.float32)
    ids, skip = rng.permutation(20), np.array([3, 4, 50])
    ids[0] = -1
    limits = np.sort(rng.integers(0, 10, (3, 5)).astype(np.float32), axis=1)
    counts = np.zeros((3, 5), np.int64)
    for part in (slice(0, cut), slice(cut, 20)):
        quality.count_between_limits(np.ascontiguousarray(block[:, part]), ids[part], skip, limits, counts)
    others = (ids != skip[:, None]) & (ids >= 0)
    expected = (others[:, :, None] & (block[:, :, None] < limits[:, None])).sum(axis=1)
    assert np.array_equal(np.cumsum(counts, axis=1), expected)


def test_squared_distances_are_never_below_zero():
    x = np.random.default_rng(0).normal(100, 1, (50, 20)).astype(np.float32)
    x[7] = x[3]
    squared = quality.squared_distances(x[:10], x)
    assert squared.dtype == np.float32
    assert squared.min() >= 0
    np.testing.assert_allclose(squared, cdist(x[:10], x, "sqeuclidean"), atol=0.2)


def test_distances_of_a_metric_fill_the_block():
    x = np.random.default_rng(0).normal(size=(30, 4)).astype(np.float32)
    out = np.empty((5, 30), np.float32)
    quality.write_metric_distances(x[:5], x, neighbors.distance_function("manhattan"), (), out)
    np.testing.assert_allclose(out, cdist(x[:5], x, "cityblock"), rtol=1e-5)


def test_overlap_is_the_share_found_wherever_it_stands():
    listed, exact = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]]), np.array([[3, 1], [9, 4], [0, 1]])
    assert quality.listed_share(listed, exact).tolist() == [1.0, 0.5, 0.0]


@pytest.mark.parametrize("k", [1, 5, 15])
@pytest.mark.parametrize("noise", [0.1, 3.0])
def test_trustworthiness_is_that_of_scikit_learn(k, noise):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(90, 5)).astype(np.float32)
    y = x[:, :2] + noise * rng.normal(size=(90, 2)).astype(np.float32)
    queries = np.arange(90)
    near, _ = neighbors.search_exhaustively(y, queries, k, "euclidean", {})
    distances = cdist(x, x).astype(np.float32)
    limits = np.sort(np.take_along_axis(distances, near, axis=1), axis=1)
    counts = np.zeros(limits.shape, np.int64)
    quality.count_between_limits(distances, queries, queries, limits, counts)
    trust = quality.trustworthiness(np.cumsum(counts, axis=1) + 1, 90)
    assert trust == pytest.approx(trustworthiness(x, y, n_neighbors=k), abs=1e-9)
    assert trust < 1


@pytest.mark.parametrize(("k", "rows"), [(3, 6), (3, 5), (15, 16), (15, 30), (0, 20)])
def test_trustworthiness_is_undefined_where_scikit_learn_refuses_it(k, rows):
    ranks = np.tile(np.arange(1, k + 1), (rows, 1))
    assert quality.trustworthiness(ranks, rows) is None
    x = np.random.default_rng(0).normal(size=(rows, 2))
    with pytest.raises(ValueError, match="n_neighbors"):
        trustworthiness(x, x, n_neighbors=k)


def test_trustworthiness_of_no_rows_is_undefined():
    assert quality.trustworthiness(np.empty((0, 5), np.int64), 100) is None


def test_trustworthiness_is_defined_just_below_half_of_the_rows():
    assert quality.trustworthiness(np.tile(np.arange(1, 4), (7, 1)), 7) == 1.0
    assert quality.trustworthiness(np.tile(np.arange(4, 7), (7, 1)), 7) == 0.0


def test_a_map_of_itself_is_trusted_wholly():
    assert quality.trustworthiness(np.tile(np.arange(1, 6), (10, 1)), 100) == 1.0
