"""Search and merging of neighbour lists, against all distances."""

import numba as nb
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from dumap.config import METRICS
from dumap.kernels import hashing, neighbors

SCIPY = {"euclidean": "euclidean", "cosine": "cosine", "manhattan": "cityblock", "correlation": "correlation"}

ORDERS = {
    **SCIPY,
    "l2": "euclidean",
    "sqeuclidean": "euclidean",
    "dot": "cosine",  # as pynndescent has it: of rows brought to unit length
    "direct_cosine": "cosine",
    "true_angular": "cosine",
    "inner_product": lambda u, v: -(u @ v),
}
"""Metrics, and what scipy orders rows by as they do."""


def all_distances(x: np.ndarray, queries: np.ndarray, k: int, metric: str) -> tuple[np.ndarray, np.ndarray]:
    """Sort all rows by (distance, row)."""
    distances = cdist(x[queries].astype(np.float64), x.astype(np.float64), metric)
    distances[np.arange(len(queries)), queries] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distances, order, axis=1)


@pytest.mark.parametrize("metric", SCIPY)
def test_exhaustive_finds_the_nearest(metric):
    x = np.random.default_rng(0).normal(1, 1, (80, 6)).astype(np.float32)
    queries = np.array([0, 79, 40, 3, 3])
    indices, distances = neighbors.search_exhaustively(x, queries, 7, metric, {})
    expected, expected_distances = all_distances(x, queries, 7, SCIPY[metric])
    assert np.array_equal(indices, expected)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-4, atol=1e-6)


@given(st.integers(0, 999), st.integers(1, 12), st.integers(1, 15))
def test_exhaustive_breaks_ties_by_row_and_leaves_no_row_unmarked(seed, n, k):
    x = np.random.default_rng(seed).integers(0, 3, (n, 2)).astype(np.float32)
    indices, distances = neighbors.search_by_metric(x, k, "euclidean", {}, seed)
    expected, _ = all_distances(x, np.arange(n), min(k, n - 1), "euclidean")
    assert np.array_equal(indices[:, : n - 1], expected)
    assert (indices[:, n - 1 :] == -1).all()
    assert np.isinf(distances[:, n - 1 :]).all()
    assert np.isfinite(distances[:, : n - 1]).all()


@pytest.mark.parametrize("metric", sorted(set(ORDERS) & set(METRICS)))
def test_rows_of_many_lengths_are_found_in_the_metrics_order(metric):
    rng = np.random.default_rng(3)
    x = (rng.normal(0.1, 0.3, (150, 10)) * rng.uniform(0.3, 3, (150, 1))).astype(np.float32)
    indices, distances = neighbors.search_by_metric(x, 5, metric, {}, 0)
    assert np.array_equal(indices, all_distances(x, np.arange(150), 5, ORDERS[metric])[0])
    assert (np.diff(distances, axis=1) >= 0).all()
    assert metric == "inner_product" or distances.min() >= 0


@pytest.mark.parametrize(("metric", "row"), [("cosine", 0.0), ("correlation", 2.0)])
def test_rows_without_direction_hide_no_neighbors(metric, row):
    x = np.random.default_rng(5).normal(size=(200, 60)).astype(np.float32)
    x[::5] = row
    _, expected = neighbors.search_exhaustively(x, np.arange(200), 5, metric, {})
    _, distances = neighbors.search_by_metric(x, 5, metric, {}, 0)
    np.testing.assert_allclose(distances, expected, atol=1e-5)


def test_neighbors_do_not_depend_on_where_the_origin_lies():
    x = np.random.default_rng(6).integers(-20, 21, (300, 4)).astype(np.float32)
    _, expected = neighbors.search_by_metric(x, 5, "euclidean", {}, 0)
    _, distances = neighbors.search_by_metric(x + 8192, 5, "euclidean", {}, 0)
    assert np.array_equal(distances, expected)


def test_metric_arguments_reach_the_metric():
    x = np.random.default_rng(2).normal(size=(40, 3)).astype(np.float32)
    indices, _ = neighbors.search_by_metric(x, 5, "minkowski", {"p": 3.0}, 0)
    assert np.array_equal(indices, all_distances(x, np.arange(40), 5, lambda u, v: (np.abs(u - v) ** 3).sum())[0])


@pytest.mark.slow
def test_descent_finds_nearly_all_and_the_same_each_time(monkeypatch):
    monkeypatch.setattr(neighbors, "MAX_EXHAUSTIVE_SECONDS", 0.0)
    x = np.random.default_rng(0).normal(size=(1500, 8)).astype(np.float32)
    x[:30] = x[0]
    threads = nb.get_num_threads()
    indices, distances = neighbors.search_by_metric(x, 10, "euclidean", {}, 7)
    assert nb.get_num_threads() == threads
    again, _ = neighbors.search_by_metric(x, 10, "euclidean", {}, 7)
    assert again.tobytes() == indices.tobytes()
    assert (indices != np.arange(1500)[:, None]).all()
    assert (np.diff(distances, axis=1) >= 0).all()
    _, expected = all_distances(x, np.arange(1500), 10, "euclidean")
    assert (distances <= expected + 1e-5).mean() > 0.97


def test_drop_self_drops_each_rows_own_id_else_the_farthest():
    listed = np.array([[0, 5, 6], [7, 1, 8], [9, 3, 4], [5, 6, 3]])
    indices, distances = neighbors.drop_self(listed, np.tile(np.float32([0, 1, 2]), (4, 1)))
    assert indices.tolist() == [[5, 6], [7, 8], [9, 3], [5, 6]]
    assert distances.tolist() == [[1, 2], [0, 2], [0, 1], [0, 1]]


def precedence(row_id: int):
    """Order a row's neighbours {id: distance}: the nearest first, of those as near by the pair's hash."""
    return lambda distances: sorted(distances, key=lambda j: (distances[j], int(hashing.hash_pair(row_id, j))))


def lists_of(neighbors_of: list[dict[int, int]], row_ids: list[int], k: int) -> tuple[np.ndarray, np.ndarray]:
    """Lay out {id: distance} as ascending lists of k."""
    indices = np.full((len(neighbors_of), k), -1, np.int64)
    distances = np.full(indices.shape, np.inf, np.float32)
    for row, (distances_of, row_id) in enumerate(zip(neighbors_of, row_ids, strict=True)):
        best = precedence(row_id)(distances_of)[:k]
        indices[row, : len(best)], distances[row, : len(best)] = best, [distances_of[j] for j in best]
    return indices, distances


@st.composite
def cells_lists(draw):
    """Draw the lists that several cells have found for one row, and their length."""
    k = draw(st.integers(1, 5))
    neighbors_of = st.dictionaries(st.integers(0, 9), st.integers(0, 4), max_size=k)
    return k, draw(st.lists(neighbors_of, min_size=1, max_size=5))


@given(cells_lists(), st.integers(0, 10**12), st.randoms(use_true_random=False))
def test_merge_keeps_the_first_k_of_the_union_in_any_order(case, row_id, random):
    k, per_cell = case
    union: dict[int, int] = {}
    for neighbors_of in per_cell:
        for j, d in neighbors_of.items():
            union[j] = min(d, union.get(j, d))
    expected = precedence(row_id)(union)[:k]
    random.shuffle(per_cell)
    indices, distances = lists_of([{}] * 3, [0] * 3, k)
    for neighbors_of in per_cell:
        any_id = random.randint(0, 99)  # neighbours at equal distances come in an order of its own
        indices_of, distances_of = lists_of([neighbors_of], [any_id], k)
        neighbors.merge_lists(indices, distances, np.array([1]), indices_of, distances_of, np.array([row_id]))
    assert indices[1].tolist() == expected + [-1] * (k - len(expected))
    assert distances[1].tolist() == [union[j] for j in expected] + [np.inf] * (k - len(expected))
    assert (indices[[0, 2]] == -1).all()


def test_merge_takes_each_row_to_its_own_list():
    indices, distances = lists_of([{1: 1}, {2: 2}, {3: 3}], [70, 71, 72], 2)
    more = lists_of([{9: 1}, {8: 5, 7: 0}], [72, 70], 2)
    neighbors.merge_lists(indices, distances, np.array([2, 0]), *more, np.array([72, 70]))
    assert indices.tolist() == [[7, 1], [2, -1], [9, 3]]
    assert distances.tolist() == [[0, 1], [2, np.inf], [1, 3]]


def test_rows_keep_different_ones_of_many_equally_near():
    """By their ids, all would keep the same few."""
    n, k = 400, 5
    indices, distances = lists_of([{}] * n, [0] * n, k)
    rows = np.arange(n)
    for shift in range(1, n, k):
        others = (rows[:, None] + np.arange(shift, min(shift + k, n))) % n
        more = np.pad(others, ((0, 0), (0, k - others.shape[1])), constant_values=-1)
        neighbors.merge_lists(indices, distances, rows, more, np.zeros(more.shape, np.float32), rows + 10**6)
    assert (indices >= 0).all()
    assert np.bincount(indices.ravel(), minlength=n).max() < 4 * k


def reference_first_fault(indices, distances, first, rows):
    """Look at one slot after another."""
    for i, row in enumerate(indices.tolist()):
        for s, j in enumerate(row):
            if j != -1 and j not in range(rows):
                return neighbors.UNKNOWN_ID, i, s
            if j != -1 and j in row[:s]:
                return neighbors.REPEATED_ID, i, s
            if j not in (-1, first + i) and not (np.isfinite(distances[i, s]) and distances[i, s] >= 0):
                return neighbors.INVALID_DISTANCE, i, s
    return neighbors.NO_FAULT, 0, 0


@given(st.integers(0, 2**32), st.integers(0, 6), st.integers(1, 6), st.integers(0, 3))
def test_the_first_fault_of_lists_is_found(seed, n, columns, spoilt):
    rng = np.random.default_rng(seed)
    indices = np.array([rng.permutation(np.arange(-1, 9))[:columns] for _ in range(n)], np.int64).reshape(n, columns)
    distances = rng.random((n, columns)).astype(np.float32)
    for _ in range(spoilt * min(n, 1)):
        row, slot = rng.integers(n), rng.integers(columns)
        indices[row, slot] = rng.choice([-2, 9, 2**40, *indices[row]])
        distances[rng.integers(n), slot] = rng.choice([np.nan, np.inf, -np.inf, -0.1, -0.0])
    fault = neighbors.find_first_fault(indices, distances, 3, 9)
    assert fault == reference_first_fault(indices, distances, 3, 9)
    assert spoilt or fault == (neighbors.NO_FAULT, 0, 0)
