"""The lists of a cell: what they keep of what they are offered."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumap.kernels import lists
from dumap.kernels.codes import encode_rows


@given(st.integers(0, 999), st.integers(1, 6))
def test_a_list_keeps_the_nearest_of_all_that_was_offered(seed, k):
    """Whatever the order; of equal distances always the same ones."""
    rng = np.random.default_rng(seed)
    rows, d = rng.permutation(30).astype(np.int32), rng.integers(0, 6, 30).astype(np.float32)
    results = []
    for order in (np.arange(30), rng.permutation(30)):
        kept = lists.CellLists.empty(2, k)
        for at in (*order, *order[:5]):
            lists.insert_if_nearer(1, rows[at], d[at], *kept)
        assert np.array_equal(kept.distances[1], np.sort(d)[:k])
        assert (d[np.argsort(rows)][kept.indices[1]] == kept.distances[1]).all()
        assert (kept.ages[1] == lists.NEW_AGE).all()
        assert (kept.indices[0] == -1).all()
        results.append(kept.indices[1].tolist())
    assert results[0] == results[1]


def test_rows_that_are_not_near_enough_are_not_listed():
    kept = lists.CellLists.empty(1, 2)
    for j, d in ((3, np.inf), (4, np.nan), (5, 1.0), (5, 0.5), (6, 2.0), (7, 3.0)):
        lists.insert_if_nearer(0, j, np.float32(d), *kept)
    assert kept.indices[0].tolist() == [5, 6]
    assert kept.distances[0].tolist() == [1, 2]


def test_new_entries_are_sorted_by_exact_distances():
    x = np.array([[0.0], [3.0], [1.0], [1e30], [2.0]], np.float32)
    cell_lists = lists.CellLists(
        np.array([[3, 1, 4, 2, -1], [0, -1, -1, -1, -1]], np.int32),
        np.array([[0, 1, 2, 3, 9], [5, 7, 7, 7, 7]], np.float32),
        np.array([[lists.NEW_AGE, lists.NEW_AGE, 0, 1, 0], [lists.NEW_AGE, 0, 0, 0, 0]], np.uint8),
    )
    lists.score_new_entries(x, *cell_lists)
    assert cell_lists.indices.tolist() == [[4, 2, 1, 3, -1], [0, -1, -1, -1, -1]]
    assert cell_lists.distances.tolist() == [[2, 3, 9, float(lists.MAX_SQUARED), 9], [9, 7, 7, 7, 7]]
    assert cell_lists.ages.tolist() == [[0, 1, lists.NEW_AGE, lists.NEW_AGE, 0], [lists.NEW_AGE, 0, 0, 0, 0]]


@pytest.mark.parametrize("has_guests", [False, True])
def test_neighbours_of_neighbours_are_offered(has_guests):
    """About as many as a pass would find over lists that stay as they were; rows of one home met there already."""
    rng = np.random.default_rng(5)
    n, k, dims = 200, 4, 60
    x = rng.normal(size=(n, dims)).astype(np.float32)
    home = rng.integers(0, 3, n).astype(np.int32) if has_guests else np.full(n, -1, np.int32)
    first = lists.CellLists.empty(n, k)
    first_indices = np.array([rng.choice(np.delete(np.arange(n), i), k, replace=False) for i in range(n)]).astype(
        np.int32
    )
    for i, j in np.ndenumerate(first_indices):
        lists.insert_if_nearer(i[0], j, np.square(x[i[0]] - x[j]).sum(), *first)
    first.ages[rng.random(first.ages.shape) < 0.5] = 0
    is_new, first_entries = first.ages > 0, first.indices
    offered = [{*first_entries[i]} for i in range(n)]
    for i in range(n):
        for s in range(k):
            for t in range(k):
                neighbor, j = first_entries[i, s], first_entries[first_entries[i, s], t]
                if j != i and (is_new[i, s] or is_new[neighbor, t]) and not (has_guests and home[i] == home[j]):
                    offered[i].add(j)
                    offered[j].add(i)
    squared = np.square(x[:, None] - x).sum(axis=2)
    expected_sum = sum(np.sort(squared[i, [*offered[i]]])[:k].sum() for i in range(n))
    empty_codes = encode_rows(x[:, :0])
    results = []
    for codes in (empty_codes, encode_rows(x)):
        kept = lists.CellLists(*(array.copy() for array in first))
        lists.compare_neighbors_of_neighbors(x, codes, home, lists.ProbedLeaves.unknown(), *kept)
        results.append(kept)
    for one, other in zip(*results, strict=True):
        assert np.array_equal(one, other), "bounds from below pass over nothing that is near enough"
    np.testing.assert_allclose(kept.distances, np.take_along_axis(squared, kept.indices.astype(int), 1), rtol=1e-5)
    assert (np.diff(kept.distances, axis=1) >= 0).all()
    assert all(len({i, *kept.indices[i]}) == k + 1 for i in range(n))
    assert kept.distances.sum() < 1.03 * expected_sum < 0.95 * first.distances.sum()
    has_come = (kept.indices[:, :, None] != first_entries[:, None]).all(axis=2)
    assert not (has_guests and (home[kept.indices] == home[:, None])[has_come].any())
    assert not kept.ages[~has_come & (kept.indices == first_entries)].max() > 1
