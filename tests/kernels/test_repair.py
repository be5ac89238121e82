"""The local join of a repair, against all pairs that it should compare."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from dumap.kernels import neighbors, repair

METRICS = {"euclidean": "euclidean", "sqeuclidean": "sqeuclidean", "cosine": "cosine", "manhattan": "cityblock"}
OFFSETS = [0, 30, 55, 80]
"""Where the cells begin, and where the last ends."""
K = 4


def rows_and_lists(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make rows, and lists of near ones of which some are forgotten."""
    rng = np.random.default_rng(seed)
    x = rng.normal(1, 1, (OFFSETS[-1], 5)).astype(np.float32)
    indices, _ = neighbors.search_exhaustively(x, np.arange(len(x)), 2 * K, "euclidean", {})
    kept = np.argsort(rng.random(indices.shape), axis=1)[:, :K]
    return x, np.take_along_axis(indices, np.sort(kept, axis=1), 1)


def join_inputs(x: np.ndarray, lists: np.ndarray, cell: int, most: int = 999):
    """Lay out what a cell's join is given: rows at hand, lists, homes."""
    first, last = OFFSETS[cell : cell + 2]
    halo, _ = repair.choose_halo(lists[first:last], first, most)
    rows = np.append(np.arange(first, last), halo)
    local_lists = repair.to_local_rows(lists[rows], first, last - first, halo)
    home_cells = (np.searchsorted(OFFSETS, rows, side="right") - 1).astype(np.int32)
    return rows, local_lists, home_cells


def compared_pairs(
    lists: np.ndarray, home_rows: int, is_new: np.ndarray, home_cells: np.ndarray, compares_home_rows: bool
) -> set[tuple[int, int]]:
    """Return the pairs of rows that the join of a cell compares, smaller row first, one edge after another."""
    pairs = set()
    edges = [(j, int(m), bool(is_new[j, s])) for j in range(len(lists)) for s, m in enumerate(lists[j]) if m >= 0]
    for j, m, new in edges:
        if j < home_rows and new:
            pairs.add((j, m))
        for j2, m2, new2 in edges:
            if j2 == j and j < home_rows and (new or new2):
                pairs.add((m, m2))
            if j2 == m and j < home_rows and (new or new2):
                pairs.add((j, m2))
    return {
        (min(p), max(p)) for p in pairs if p[0] != p[1] and (compares_home_rows or home_cells[p[0]] != home_cells[p[1]])
    }


@pytest.mark.parametrize("metric", METRICS)
@given(seed=st.integers(0, 999), cell=st.integers(0, 2), compares_home_rows=st.booleans(), all_new=st.booleans())
def test_join_finds_the_nearest_of_those_met(metric, seed, cell, compares_home_rows, all_new):
    x, lists = rows_and_lists(seed)
    rows, local_lists, home_cells = join_inputs(x, lists, cell)
    home_rows = OFFSETS[cell + 1] - OFFSETS[cell]
    truth = cdist(x[rows].astype(np.float64), x[rows].astype(np.float64), METRICS[metric])
    is_new = np.random.default_rng(seed).random(local_lists.shape) < (2 if all_new else 0.3)
    is_new[home_rows:] = True
    kth_distances = np.sort(cdist(x[rows], x, METRICS[metric]), axis=1)[:, 9].astype(np.float32)
    kth_distances[::7] = np.inf
    candidates, distances, pairs = repair.local_join(
        x[rows], home_rows, local_lists, is_new, home_cells, compares_home_rows, kth_distances, metric, {}
    )
    expected = compared_pairs(local_lists, home_rows, is_new, home_cells, compares_home_rows)
    assert len(expected) <= pairs <= 2 * len(expected)
    for i in range(len(rows)):
        others = {a + b - i for a, b in expected if i in (a, b)} - set(local_lists[i].tolist())
        near = sorted(d for d in (truth[i, j] for j in others) if d < kth_distances[i] * (1 - 1e-5))[:K]
        near_distances = distances[i][(candidates[i] >= 0) & (distances[i] < kth_distances[i] * (1 - 1e-5))]
        np.testing.assert_allclose(np.sort(near_distances), near, rtol=1e-4, atol=1e-6)
        assert set(candidates[i][candidates[i] >= 0].tolist()) <= others
        np.testing.assert_allclose(
            distances[i][candidates[i] >= 0], truth[i, candidates[i][candidates[i] >= 0]], rtol=1e-4, atol=1e-6
        )


@given(seed=st.integers(0, 999), rounds=st.integers(1, 3))
def test_repairs_only_make_lists_better(seed, rounds):
    """Of all rows, by whatever cell finds it, as a whole run does; with one cell's lists apart from the others'."""
    x, indices = rows_and_lists(seed)
    distances = np.take_along_axis(cdist(x, x), indices, 1).astype(np.float32)
    for _ in range(rounds):
        before, sums = indices.copy(), distances.sum(axis=1)
        for cell in range(len(OFFSETS) - 1):
            rows, local_lists, home_cells = join_inputs(x, before, cell)
            home_rows, kth_distances = OFFSETS[cell + 1] - OFFSETS[cell], distances[rows, -1]
            is_new = np.ones(local_lists.shape, bool)
            candidates, candidate_distances, _ = repair.local_join(
                x[rows], home_rows, local_lists, is_new, home_cells, True, kth_distances, "euclidean", {}
            )
            neighbors.merge_lists(
                indices, distances, rows, np.where(candidates >= 0, rows[candidates], -1), candidate_distances, rows
            )
        assert (distances.sum(axis=1) <= sums + 1e-5).all()
        assert (np.diff(distances, axis=1) >= 0).all()
        assert all(len(set(row)) == K for row in indices.tolist())
        new = [np.isin(a, b, invert=True) for a, b in zip(indices, before, strict=True)]
        assert np.array_equal(repair.find_new_entries(indices, before), new)


@given(seed=st.integers(0, 999), most=st.integers(0, 40))
def test_the_halo_is_of_the_rows_listed_nearest(seed, most):
    _, lists = rows_and_lists(seed)
    lists[3, 1:] = -1
    first, last = OFFSETS[1:3]
    halo, left_out = repair.choose_halo(lists[first:last], first, most)
    slots: dict[int, list[int]] = {}
    for row in lists[first:last]:
        for slot, j in enumerate(row):
            if j >= 0 and not first <= j < last:
                slots.setdefault(int(j), []).append(slot)
    ranked = sorted(slots, key=lambda j: (min(slots[j]), -len(slots[j]), j))
    assert halo.tolist() == sorted(ranked[:most])
    assert left_out == len(slots) - len(halo)


@given(seed=st.integers(0, 999), most=st.integers(0, 40))
def test_rows_are_numbered_by_where_they_are_at_hand(seed, most):
    _, lists = rows_and_lists(seed)
    rows, local_lists, _ = join_inputs(lists, lists, 1, most)
    local = {int(row): at for at, row in enumerate(rows)}
    assert local_lists.dtype == np.int32
    assert local_lists.tolist() == [[local.get(int(j), -1) for j in lists[row]] for row in rows]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_lists_and_distances_travel_as_one(dtype):
    indices = np.array([[5, -1], [2**31 - 1, 0]], dtype)
    distances = np.array([[0.1, np.inf], [-0.0, 3e38]], np.float32)
    bundled = repair.bundle_lists(indices, distances)
    assert bundled.dtype == dtype
    for array, expected in zip(repair.unbundle_lists(bundled, 2), (indices, distances), strict=True):
        assert array.tobytes() == expected.tobytes()
