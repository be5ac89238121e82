from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sparse
from scipy.spatial.distance import cdist
from umap.umap_ import fuzzy_simplicial_set

from dumap.kernels import graph

ROWS, K = 150, 10


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """Rows of three densities, some of them copies: up to K + 4 alike."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(i * 4, 0.3 * (i + 1), (50, 4)) for i in range(3)]).astype(np.float32)
    rows[1:3], rows[60 : 61 + K + 3] = rows[0], rows[60]
    return rows


def knn(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    distances = cdist(x, x)
    np.fill_diagonal(distances, np.inf)
    indices = np.argsort(distances, axis=1, kind="stable")[:, :K]
    return indices, np.take_along_axis(distances, indices, axis=1).astype(np.float32)


def unite(indices, weights, ratio, cuts=(0, ROWS)):
    """Unite the directed edges shard by shard."""
    heads, slot = np.nonzero(weights)
    tails, values = indices[heads, slot], weights[heads, slot]
    shards = []
    for low, high in pairwise(cuts):
        out, back = (heads >= low) & (heads < high), (tails >= low) & (tails < high)
        forward = heads[out] - low, tails[out], values[out]
        backward = tails[back] - low, heads[back], values[back]
        shards.append(graph.union(high - low, *forward, *backward, ratio))
    return shards


def whole(shards) -> sparse.csr_matrix:
    return sparse.vstack([sparse.csr_matrix((w, t, p), shape=(len(p) - 1, ROWS)) for p, t, w in shards], "csr")


def umap_graph(indices, distances, ratio, local_connectivity):
    """Return umap-learn's graph of the same lists, which hold each row itself in front."""
    own = np.column_stack([np.arange(ROWS), np.where(np.isinf(distances), -1, indices)])
    found, sigma, rho = fuzzy_simplicial_set(
        np.empty((ROWS, 1)),
        K,
        None,
        "euclidean",
        knn_indices=own,
        knn_dists=np.column_stack([np.zeros(ROWS, np.float32), distances]),
        set_op_mix_ratio=ratio,
        local_connectivity=local_connectivity,
    )
    return found.toarray(), sigma, rho


@pytest.mark.parametrize("cut_off", [np.inf, 1.0], ids=["whole", "cut_off"])
@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("local_connectivity", [0.5, 1.0, 1.5, 3.0])
def test_the_graph_is_that_of_umap_learn(x, local_connectivity, ratio, cut_off):
    indices, distances = knn(x)
    mean = distances.sum(dtype=np.float64) / (ROWS * (K + 1)) if np.isinf(cut_off) else np.inf
    rho, sigma, weights = graph.memberships(indices, distances, mean, local_connectivity, cut_off)
    united = whole(unite(indices, weights, ratio)).toarray()
    far = np.where(distances >= cut_off, np.float32(np.inf), distances)
    wanted, wanted_sigma, wanted_rho = umap_graph(indices, far, ratio, local_connectivity)
    np.testing.assert_allclose(rho, wanted_rho, rtol=1e-5)
    np.testing.assert_allclose(sigma, wanted_sigma, rtol=1e-4)
    np.testing.assert_allclose(united, wanted, atol=1e-5)
    assert np.array_equal(united > 0, wanted > 0)
    assert np.array_equal(united, united.T)


def test_disconnection_isolates_far_rows(x):
    far = x.copy()
    far[10] += 1000
    indices, distances = knn(far)
    _, _, weights = graph.memberships(indices, distances, np.inf, 1.0, 100.0)
    assert not weights[10].any()
    indptr, tails, _ = unite(indices, weights, 1.0)[0]
    assert indptr[10] == indptr[11]
    assert 10 not in tails


def test_neighbors_that_are_missing_have_no_weight(x):
    indices, distances = knn(x)
    indices[5, 4:], distances[5, 4:] = -1, np.inf
    _, _, weights = graph.memberships(indices, distances, 1.0, 1.0, np.inf)
    assert np.isfinite(weights).all()
    assert (weights[5, :4] > 0).all()
    assert not weights[5, 4:].any()


@pytest.mark.parametrize("ratio", [1.0, 0.3])
def test_the_union_is_the_same_however_it_is_cut(x, ratio):
    indices, distances = knn(x)
    _, _, weights = graph.memberships(indices, distances, 1.0, 1.0, np.inf)
    indptr, tails, united = unite(indices, weights, ratio)[0]
    shards = unite(indices, weights, ratio, (0, 1, 64, 100, ROWS))
    assert np.concatenate([t for _, t, _ in shards]).tobytes() == tails.tobytes()
    assert np.concatenate([w for _, _, w in shards]).tobytes() == united.tobytes()
    assert np.concatenate([np.diff(p) for p, _, _ in shards]).tobytes() == np.diff(indptr).tobytes()
    assert united.dtype == np.float32
    assert indptr.dtype == np.int64
    assert all((np.diff(tails[a:b]) > 0).all() for a, b in pairwise(indptr))


def test_the_union_of_no_edges_is_empty():
    ids, weights = np.empty(0, np.int64), np.empty(0, np.float32)
    indptr, tails, united = graph.union(3, ids, ids, weights, ids, ids, weights, 1.0)
    assert indptr.tolist() == [0, 0, 0, 0]
    assert len(tails) == len(united) == 0


def test_the_fuzzy_intersection_drops_edges_of_one_direction():
    one, two = np.array([0, 1]), np.array([1, 0])
    indptr, tails, united = graph.union(
        2, one[:1], two[:1], np.float32([0.5]), two[:1], one[:1], np.float32([0.5]), 0.0
    )
    assert (indptr.tolist(), len(tails), len(united)) == ([0, 0, 0], 0, 0)
    both = np.float32([0.5, 0.25])
    indptr, tails, united = graph.union(2, one, two, both, two, one, both, 0.0)
    assert (tails.tolist(), united.tolist()) == ([1, 0], [0.125, 0.125])
