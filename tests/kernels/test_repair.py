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


def seamed(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Make rows, and lists of near ones of which some are forgotten."""
    rng = np.random.default_rng(seed)
    x = rng.normal(1, 1, (OFFSETS[-1], 5)).astype(np.float32)
    indices, _ = neighbors.exhaustive(x, np.arange(len(x)), 2 * K, "euclidean", {})
    kept = np.argsort(rng.random(indices.shape), axis=1)[:, :K]
    return x, np.take_along_axis(indices, np.sort(kept, axis=1), 1)


def in_hand(x: np.ndarray, lists: np.ndarray, cell: int, most: int = 999):
    """Lay out what a cell's join is given: rows at hand, lists, homes."""
    first, last = OFFSETS[cell : cell + 2]
    halo, _ = repair.choose_halo(lists[first:last], first, most)
    rows = np.append(np.arange(first, last), halo)
    members = repair.localize(lists[rows], first, last - first, halo)
    homes = (np.searchsorted(OFFSETS, rows, side="right") - 1).astype(np.int32)
    return rows, members, homes


def met(members: np.ndarray, own: int, fresh: np.ndarray, homes: np.ndarray, inside: bool) -> set[tuple[int, int]]:
    """Name the pairs that rows of a cell meet, slowly, smaller row first."""
    pairs = set()
    edges = [(j, int(m), bool(fresh[j, s])) for j in range(len(members)) for s, m in enumerate(members[j]) if m >= 0]
    for j, m, new in edges:
        if j < own and new:
            pairs.add((j, m))
        for j2, m2, new2 in edges:
            if j2 == j and j < own and (new or new2):
                pairs.add((m, m2))
            if j2 == m and j < own and (new or new2):
                pairs.add((j, m2))
    return {(min(p), max(p)) for p in pairs if p[0] != p[1] and (inside or homes[p[0]] != homes[p[1]])}


@pytest.mark.parametrize("metric", METRICS)
@given(seed=st.integers(0, 999), cell=st.integers(0, 2), inside=st.booleans(), all_fresh=st.booleans())
def test_join_finds_the_nearest_of_those_met(metric, seed, cell, inside, all_fresh):
    x, lists = seamed(seed)
    rows, members, homes = in_hand(x, lists, cell)
    own = OFFSETS[cell + 1] - OFFSETS[cell]
    truth = cdist(x[rows].astype(np.float64), x[rows].astype(np.float64), METRICS[metric])
    fresh = np.random.default_rng(seed).random(members.shape) < (2 if all_fresh else 0.3)
    fresh[own:] = True
    reach = np.sort(cdist(x[rows], x, METRICS[metric]), axis=1)[:, 9].astype(np.float32)
    reach[::7] = np.inf
    found, distances, pairs = repair.local_join(x[rows], own, members, fresh, homes, inside, reach, metric, {})
    wanted = met(members, own, fresh, homes, inside)
    assert len(wanted) <= pairs <= 2 * len(wanted)
    for i in range(len(rows)):
        others = {a + b - i for a, b in wanted if i in (a, b)} - set(members[i].tolist())
        near = sorted(d for d in (truth[i, j] for j in others) if d < reach[i] * (1 - 1e-5))[:K]
        got = distances[i][(found[i] >= 0) & (distances[i] < reach[i] * (1 - 1e-5))]
        np.testing.assert_allclose(np.sort(got), near, rtol=1e-4, atol=1e-6)
        assert set(found[i][found[i] >= 0].tolist()) <= others
        np.testing.assert_allclose(distances[i][found[i] >= 0], truth[i, found[i][found[i] >= 0]], rtol=1e-4, atol=1e-6)


@given(seed=st.integers(0, 999), rounds=st.integers(1, 3))
def test_repairs_only_make_lists_better(seed, rounds):
    """Of all rows, by whatever cell finds it, as a whole run does; with one cell's lists apart from the others'."""
    x, indices = seamed(seed)
    distances = np.take_along_axis(cdist(x, x), indices, 1).astype(np.float32)
    for _ in range(rounds):
        before, sums = indices.copy(), distances.sum(axis=1)
        for cell in range(len(OFFSETS) - 1):
            rows, members, homes = in_hand(x, before, cell)
            own, reach = OFFSETS[cell + 1] - OFFSETS[cell], distances[rows, -1]
            fresh = np.ones(members.shape, bool)
            found, scores, _ = repair.local_join(x[rows], own, members, fresh, homes, True, reach, "euclidean", {})
            neighbors.merge(indices, distances, rows, np.where(found >= 0, rows[found], -1), scores, rows)
        assert (distances.sum(axis=1) <= sums + 1e-5).all()
        assert (np.diff(distances, axis=1) >= 0).all()
        assert all(len(set(row)) == K for row in indices.tolist())
        new = [np.isin(a, b, invert=True) for a, b in zip(indices, before, strict=True)]
        assert np.array_equal(repair.is_new(indices, before), new)


@given(seed=st.integers(0, 999), most=st.integers(0, 40))
def test_the_halo_is_of_the_rows_listed_nearest(seed, most):
    _, lists = seamed(seed)
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
    _, lists = seamed(seed)
    rows, members, _ = in_hand(lists, lists, 1, most)
    place = {int(row): at for at, row in enumerate(rows)}
    assert members.dtype == np.int32
    assert members.tolist() == [[place.get(int(j), -1) for j in lists[row]] for row in rows]


@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_lists_and_distances_travel_as_one(dtype):
    indices = np.array([[5, -1], [2**31 - 1, 0]], dtype)
    distances = np.array([[0.1, np.inf], [-0.0, 3e38]], np.float32)
    packed = repair.bundle(indices, distances)
    assert packed.dtype == dtype
    for found, wanted in zip(repair.unbundle(packed, 2), (indices, distances), strict=True):
        assert found.tobytes() == wanted.tobytes()
