"""Leaf search among sparse rows, against all distances."""

import numpy as np
import pytest
import scipy.sparse as sp

from dumap.kernels import pairs, projection, sparse_leaves
from dumap.kernels.sparse_products import EVERY_PAIR, ScaledRows
from dumap.kernels.tree import grow_tree, nearest_leaves

DIMS, K = 300, 8


@pytest.fixture(scope="module")
def rows():
    """Counts of 1500 rows around ten profiles; a zero row, and two that are equal."""
    rng = np.random.default_rng(0)
    profiles = rng.gamma(0.1, 1, (10, DIMS))
    x = rng.poisson(profiles[rng.integers(10, size=1500)]).astype("f4")
    x[3], x[4] = 0, x[5]
    return sp.csr_matrix(x)


def exact(rows, metric, others=None):
    d = pairs.squared_distance_matrix(rows, rows, metric).astype("f8")
    np.fill_diagonal(d, np.inf)
    if others is not None:
        d[~others] = np.inf
    return np.sort(d, axis=1)[:, :K]


def probes_of(rows, metric, count, width):
    x = projection.project_rows(rows, projection.draw_column_places(DIMS, 0), metric)
    return nearest_leaves(x, grow_tree(x, count, 0), width)


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "correlation"])
def test_one_leaf_is_searched_exactly(rows, metric):
    leaf_rows = rows[:400]
    indices, squared = sparse_leaves.search_home_rows(
        leaf_rows, projection.draw_column_places(DIMS, 0), metric, np.zeros((400, 1), np.int32), K, 0
    )
    assert np.array_equal(squared.astype("f4"), exact(leaf_rows, metric).astype("f4"))
    assert (indices[4, 0], indices[5, 0]) == (5, 4)
    assert not (indices == np.arange(400)[:, None]).any()


@pytest.mark.parametrize("metric", ["euclidean", "cosine"])
def test_leaves_find_nearly_all(rows, metric):
    probes = probes_of(rows, metric, 8, 4)
    indices, squared = sparse_leaves.search_home_rows(
        rows, projection.draw_column_places(DIMS, 0), metric, probes, K, 0
    )
    within = squared <= exact(rows, metric)[:, -1:] * (1 + 1e-6)
    assert within.mean() > 0.97
    distances = pairs.squared_distance_matrix(rows, rows, metric)[np.arange(1500)[:, None], indices]
    assert np.array_equal(distances, squared.astype("f4")), "distances are exact"


def test_home_rows_and_guests_find_each_other(rows):
    targets, home = projection.draw_column_places(DIMS, 0), np.where(np.arange(1500) % 3 == 0, 7, -1).astype(np.int32)
    probes = probes_of(rows, "cosine", 8, 4)
    at_home = np.flatnonzero(home < 0)
    home_indices, squared_home = sparse_leaves.search_home_rows(rows[at_home], targets, "cosine", probes[at_home], K, 0)
    indices, squared = np.full((1500, K), -1, np.int32), np.full((1500, K), 4.0)
    indices[at_home], squared[at_home] = np.where(home_indices >= 0, at_home[home_indices], -1), squared_home
    indices, squared = sparse_leaves.search_with_guests(rows, targets, "cosine", home, probes, indices, squared, 0)
    assert (squared[at_home] <= exact(rows, "cosine")[at_home, -1:] * (1 + 1e-6)).mean() > 0.97
    guests = home >= 0
    assert (home[indices[guests][indices[guests] >= 0]] < 0).all(), "guests of one home are not compared"
    there = exact(rows, "cosine", np.broadcast_to(~guests, (1500, 1500)))
    assert (squared[guests] <= there[guests, -1:] * (1 + 1e-6)).mean() > 0.95


def test_a_crowded_leaf_is_split(rows, monkeypatch):
    monkeypatch.setattr(sparse_leaves, "MAX_UNSPLIT_ROWS", 400)
    targets, probes = projection.draw_column_places(DIMS, 0), np.zeros((1500, 1), np.int32)
    _, squared = sparse_leaves.search_home_rows(rows, targets, "cosine", probes, K, 0)
    assert (squared <= exact(rows, "cosine")[:, -1:] * (1 + 1e-6)).mean() > 0.9


@pytest.mark.parametrize("metric", ["euclidean", "cosine", "correlation"])
def test_lists_do_not_depend_on_what_is_ruled_out(rows, metric, monkeypatch):
    """Small tiles, and bounds that rule out no pair, give the same bytes."""
    probes, targets = probes_of(rows, metric, 8, 4), projection.draw_column_places(DIMS, 0)
    lists = sparse_leaves.search_home_rows(rows, targets, metric, probes, K, 0)
    scaled = ScaledRows.from_sparse_rows

    def no_bounds(x):
        return scaled(x)._replace(halves=np.full(len(x.squared_lengths), EVERY_PAIR, np.float32))

    monkeypatch.setattr(ScaledRows, "from_sparse_rows", no_bounds)
    monkeypatch.setattr(sparse_leaves, "TILE_ROWS", 70)
    for one, other in zip(lists, sparse_leaves.search_home_rows(rows, targets, metric, probes, K, 0), strict=True):
        assert one.tobytes() == other.tobytes()


def test_rows_of_two_leaves_are_compared_once():
    rng = np.random.default_rng(0)
    home_leaves = rng.integers(5, size=400)
    is_probed = rng.random((400, 5)) < np.array([0.9, 0.9, 0.7, 0.2, 0.05])
    is_probed[np.arange(400), home_leaves] = False
    probes = np.hstack([home_leaves[:, None], np.where(is_probed, np.arange(5), -1)]).astype(np.int32)
    changed = sparse_leaves.make_probes_one_way(probes, 5)
    assert np.array_equal(changed[:, 0], home_leaves)

    def compared(probes):
        probed = np.zeros((400, 5), int)
        row, rank = np.nonzero(probes >= 0)
        np.add.at(probed, (row, probes[row, rank]), 1)
        return probed[:, home_leaves] + probed[:, home_leaves].T  # how often each pair is

    before, after = compared(probes), compared(changed)
    assert (after >= (before > 0)).all(), "no pair is left out"
    of_both = np.ix_(home_leaves == 0, home_leaves == 1)
    assert before[of_both].max() == 2
    assert (after[of_both] == 1).all()
    assert np.array_equal(
        after[np.ix_(home_leaves == 3, home_leaves == 4)], before[np.ix_(home_leaves == 3, home_leaves == 4)]
    )
