"""Memberships and the symmetric graph, beside umap-learn; components and shards."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sparse
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import brentq
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist
from umap_learn import umap_in_python

from dumap.kernels import graph

ROWS, K = 150, 10


@pytest.fixture(scope="module")
def x() -> np.ndarray:
    """Return rows of three densities, some of which are equal: up to K + 4."""
    rng = np.random.default_rng(0)
    rows = np.concatenate([rng.normal(i * 4, 0.3 * (i + 1), (50, 4)) for i in range(3)]).astype(np.float32)
    rows[1:3], rows[60 : 61 + K + 3] = rows[0], rows[60]
    return rows


def nearest_neighbors(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest others of each row and their distances, by all pairs."""
    distances = cdist(x, x)
    np.fill_diagonal(distances, np.inf)
    indices = np.argsort(distances, axis=1, kind="stable")[:, :K]
    return indices, np.take_along_axis(distances, indices, axis=1).astype(np.float32)


def unite_by_shard(indices, weights, ratio, shard_bounds=(0, ROWS)):
    """Unite the directed edges shard by shard."""
    heads, slot = np.nonzero(weights)
    tails, values = indices[heads, slot], weights[heads, slot]
    shards = []
    for low, high in pairwise(shard_bounds):
        leads_out, leads_in = (heads >= low) & (heads < high), (tails >= low) & (tails < high)
        forward = heads[leads_out] - low, tails[leads_out], values[leads_out]
        backward = tails[leads_in] - low, heads[leads_in], values[leads_in]
        shards.append(graph.fuzzy_union(high - low, *forward, *backward, ratio))
    return shards


def stack_shards(shards) -> sparse.csr_matrix:
    """Stack the shards of a graph as one matrix."""
    return sparse.vstack([sparse.csr_matrix((w, t, p), shape=(len(p) - 1, ROWS)) for p, t, w in shards], "csr")


def umap_graph(indices, distances, ratio, local_connectivity):
    """Return umap-learn's graph of the same lists, which hold each row itself in front."""
    with_self = np.column_stack([np.arange(ROWS), np.where(np.isinf(distances), -1, indices)])
    with umap_in_python() as umap_:
        graph, sigma, rho = umap_.fuzzy_simplicial_set(
            np.empty((ROWS, 1)),
            K + 1,
            None,
            "euclidean",
            knn_indices=with_self,
            knn_dists=np.column_stack([np.zeros(ROWS, np.float32), distances]),
            set_op_mix_ratio=ratio,
            local_connectivity=local_connectivity,
        )
    return graph.toarray(), sigma, rho


@pytest.mark.parametrize("ratio", [1.0, 0.5, 0.0])
@pytest.mark.parametrize("local_connectivity", [0.5, 1.0, 1.5, 3.0])
def test_the_graph_is_that_of_umap_learn(x, local_connectivity, ratio):
    indices, distances = nearest_neighbors(x)
    mean = distances.sum(dtype=np.float64) / (ROWS * (K + 1))
    rho, sigma, weights = graph.compute_memberships(indices, distances, mean, local_connectivity, np.inf)
    united = stack_shards(unite_by_shard(indices, weights, ratio)).toarray()
    expected, expected_sigma, expected_rho = umap_graph(indices, distances, ratio, local_connectivity)
    np.testing.assert_allclose(rho, expected_rho, rtol=1e-5)
    np.testing.assert_allclose(sigma, expected_sigma, rtol=1e-4)
    np.testing.assert_allclose(united, expected, atol=3e-5)  # umap-learn rounds sums to float32 as it is compiled
    assert np.array_equal(united > 0, expected > 0)
    assert np.array_equal(united, united.T)


def test_disconnection_isolates_far_rows(x):
    far = x.copy()
    far[10] += 1000
    indices, distances = nearest_neighbors(far)
    _, _, weights = graph.compute_memberships(indices, distances, np.inf, 1.0, 100.0)
    assert not weights[10].any()
    indptr, tails, _ = unite_by_shard(indices, weights, 1.0)[0]
    assert indptr[10] == indptr[11]
    assert 10 not in tails


def test_neighbors_that_are_missing_have_no_weight(x):
    indices, distances = nearest_neighbors(x)
    indices[5, 4:], distances[5, 4:] = -1, np.inf
    _, _, weights = graph.compute_memberships(indices, distances, 1.0, 1.0, np.inf)
    assert np.isfinite(weights).all()
    assert (weights[5, :4] > 0).all()
    assert not weights[5, 4:].any()


@pytest.mark.parametrize("how", ["missing", "cut off"])
@pytest.mark.parametrize("at", [0, 2, 4])
def test_missing_neighbors_leave_the_weights_of_the_others(how, at):
    """One of five neighbours is not there: sigma is solved by the other four, for log2 of six."""
    kept = np.array([1, 1.2, 1.5, 2])
    solved = brentq(lambda s: np.exp(-(kept - 1) / s).sum() - np.log2(6), 1e-3, 1e3)
    at = 4 if how == "cut off" else at
    distances = np.insert(kept, at, 100 if how == "cut off" else np.inf)[None].astype(np.float32)
    indices = np.insert(np.arange(1, 5), at, 5 if how == "cut off" else -1)[None]
    rho, sigma, weights = graph.compute_memberships(indices, distances, 1.0, 1.0, 50.0)
    assert rho[0] == 1
    assert sigma[0] == pytest.approx(solved, rel=1e-4)
    np.testing.assert_allclose(np.delete(weights[0], at), np.exp(-(kept - 1) / solved), atol=1e-5)
    assert weights[0, at] == 0


@pytest.mark.parametrize("connectivity", [0.0, 0.5, 1.0, 2.5])
@pytest.mark.parametrize("left", [[], [0.0], [0.7], [0.0, 0.0], [0.0, 3.0]])
def test_rows_with_few_neighbors_left_have_finite_weights(left, connectivity):
    distances = np.full((2, 5), np.inf, np.float32)
    distances[0, : len(left)] = left
    distances[1, : len(left)] = left
    distances[1, len(left) :] = 1e30
    indices = np.tile(np.arange(5), (2, 1))
    indices[0, len(left) :] = -1
    rho, sigma, weights = graph.compute_memberships(indices, distances, 0.5, connectivity, 1e20)
    assert np.isfinite([rho, sigma]).all()
    assert not weights[:, len(left) :].any()
    np.testing.assert_allclose(weights[:, : len(left)], 1, atol=1e-5)


def test_a_neighbor_far_off_that_is_missing_leaves_sigmas_floor_as_it_is():
    """Four of five are as near: sigma is the thousandth of the mean distance of those and the row itself."""
    distances = np.float32([[2, 2, 2, 2, np.inf]])
    _, sigma, _ = graph.compute_memberships(np.array([[1, 2, 3, 4, -1]]), distances, 7.0, 1.0, np.inf)
    assert sigma[0] == pytest.approx(1e-3 * 8 / 5)


@pytest.mark.parametrize("ratio", [1.0, 0.3])
def test_the_union_is_the_same_however_it_is_cut(x, ratio):
    indices, distances = nearest_neighbors(x)
    _, _, weights = graph.compute_memberships(indices, distances, 1.0, 1.0, np.inf)
    indptr, tails, united = unite_by_shard(indices, weights, ratio)[0]
    shards = unite_by_shard(indices, weights, ratio, (0, 1, 64, 100, ROWS))
    assert np.concatenate([t for _, t, _ in shards]).tobytes() == tails.tobytes()
    assert np.concatenate([w for _, _, w in shards]).tobytes() == united.tobytes()
    assert np.concatenate([np.diff(p) for p, _, _ in shards]).tobytes() == np.diff(indptr).tobytes()
    assert united.dtype == np.float32
    assert indptr.dtype == np.int64
    assert all((np.diff(tails[a:b]) > 0).all() for a, b in pairwise(indptr))


def test_the_union_of_no_edges_is_empty():
    ids, weights = np.empty(0, np.int64), np.empty(0, np.float32)
    indptr, tails, united = graph.fuzzy_union(3, ids, ids, weights, ids, ids, weights, 1.0)
    assert indptr.tolist() == [0, 0, 0, 0]
    assert len(tails) == len(united) == 0


def test_the_fuzzy_intersection_drops_edges_of_one_direction():
    one, two = np.array([0, 1]), np.array([1, 0])
    indptr, tails, united = graph.fuzzy_union(
        2, one[:1], two[:1], np.float32([0.5]), two[:1], one[:1], np.float32([0.5]), 0.0
    )
    assert (indptr.tolist(), len(tails), len(united)) == ([0, 0, 0], 0, 0)
    both = np.float32([0.5, 0.25])
    indptr, tails, united = graph.fuzzy_union(2, one, two, both, two, one, both, 0.0)
    assert (tails.tolist(), united.tolist()) == ([1, 0], [0.125, 0.125])


@given(st.integers(1, 60), st.integers(0, 80), st.integers(0, 2**32 - 1), st.data())
def test_components_are_those_of_the_whole_graph_however_it_is_cut(rows, edges, seed, data):
    rng = np.random.default_rng(seed)
    ends = rng.integers(0, rows, (2, edges))
    links = sparse.csr_matrix((np.ones(edges, np.float32), ends), shape=(rows, rows))
    links = (links + links.T).tocsr()
    count, member = connected_components(links, directed=False)
    shard_bounds = sorted({0, rows, *data.draw(st.lists(st.integers(0, rows), max_size=4))})
    sets = np.full(rows, -1, data.draw(st.sampled_from([np.int32, np.int64])))
    for low, high in data.draw(st.permutations(list(pairwise(shard_bounds)))):
        shard = links[low:high]
        graph.connect_components(shard.indptr.astype(np.int64), shard.indices.astype(sets.dtype), low, sets)
    sizes = -sets[sets < 0]
    assert len(sizes) == count
    assert sorted(sizes.tolist()) == sorted(np.bincount(member).tolist())


@given(st.integers(1, 60), st.integers(0, 80), st.integers(1, 5), st.integers(0, 2**32 - 1))
def test_components_are_found_from_the_pieces_of_ranges(rows, edges, parts, seed):
    rng = np.random.default_rng(seed)
    ends = rng.integers(0, rows, (2, edges))
    links = sparse.csr_matrix((np.ones(edges, np.float32), ends), shape=(rows, rows))
    links = (links + links.T).tocsr()
    _, member = connected_components(links, directed=False)
    bounds = np.linspace(0, rows, parts + 1).astype(int)
    labels, count = np.empty(rows, np.int64), 0
    for low, high in pairwise(bounds):
        inside = links[low:high]
        tails = np.where((inside.indices >= low) & (inside.indices < high), inside.indices - low, -1)
        local = graph.find_components(inside.indptr.astype(np.int64), tails)
        labels[low:high], count = count + local, count + int(local.max(initial=-1)) + 1
    heads, tails = links.nonzero()
    pairs = np.stack([labels[heads], labels[tails]], axis=1)
    reduced = graph.spanning_forest(pairs[labels[heads] != labels[tails]])
    assert len(reduced) < count
    sizes = graph.component_sizes(reduced, np.bincount(labels, minlength=count))
    assert sorted(sizes.tolist()) == sorted(np.bincount(member).tolist())


def test_a_long_chain_is_one_component():
    rows = 20_000
    chain = sparse.diags([np.ones(rows - 1)] * 2, [-1, 1], format="csr")
    sets = np.full(rows, -1, np.int32)
    graph.connect_components(chain.indptr.astype(np.int64), chain.indices, 0, sets)
    assert sets.min() == -rows
    assert (sets < 0).sum() == 1


@given(st.lists(st.integers(1, 4), min_size=1, max_size=30))
def test_rows_take_as_many_places_as_they_are_told(times):
    times, rows = np.array(times), np.arange(len(times))
    repeated = np.flatnonzero(times > 1)
    listed = graph.rows_of_occurrences(np.arange(times.sum()), repeated, times[repeated].astype(np.int32))
    assert listed.tolist() == np.repeat(rows, times).tolist()


def test_places_beyond_32_bits():
    repeated, times = np.array([5, 3_000_000_000]), np.array([2_000_000_000, 2_000_000_000])
    occurrences = np.array(
        [4, 5, 2_000_000_004, 2_000_000_005, 4_999_999_998, 4_999_999_999, 6_999_999_998, 6_999_999_999]
    )
    expected = [4, 5, 5, 6, 2_999_999_999, 3_000_000_000, 3_000_000_000, 3_000_000_001]
    assert graph.rows_of_occurrences(occurrences, repeated, times.astype(np.int32)).tolist() == expected


# shards of a bounded number of edges ----------------------------------------------------------------


@given(
    st.lists(st.integers(0, 50_000), min_size=1, max_size=60),
    st.integers(1, graph.GRAIN_ROWS),
    st.integers(2, 30),
    st.integers(1, 8),
    st.integers(1, 10**6),
)
def test_shards_have_no_more_rows_and_edges_than_they_may(into, last, k, most, most_edges):
    rows, most = (len(into) - 1) * graph.GRAIN_ROWS + last, most * graph.GRAIN_ROWS
    offsets = graph.divide_into_shards(np.array(into), rows, k, most, most_edges)
    assert offsets[0] == 0
    assert offsets[-1] == rows
    assert (offsets[:-1] % graph.GRAIN_ROWS == 0).all()
    sizes, ends = np.diff(offsets), np.cumsum([0, *into])
    assert (sizes > 0).all()
    assert (sizes <= most).all()
    grains = -(-offsets // graph.GRAIN_ROWS)
    edges = ends[grains[1:]] - ends[grains[:-1]] + k * sizes
    assert ((edges <= most_edges) | (sizes <= graph.GRAIN_ROWS)).all(), "but for a single grain"
    for this, following in pairwise(range(len(sizes))):
        more = int(into[grains[following]]) + k * int(min(graph.GRAIN_ROWS, rows - offsets[following]))
        grown = sizes[this] + min(graph.GRAIN_ROWS, rows - offsets[following])
        assert edges[this] + more > most_edges or grown > most, "as full as may be"


def test_shards_are_even_where_no_row_is_listed_by_many():
    into = np.full(200, 15 * graph.GRAIN_ROWS)
    offsets = graph.divide_into_shards(into, 200 * graph.GRAIN_ROWS - 7, 15, 65_536, int(2.5 * 15 * 65_536))
    assert np.array_equal(offsets[:-1], np.arange(len(offsets) - 1) * 65_536)
