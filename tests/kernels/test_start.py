from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sparse
from hypothesis import given
from hypothesis import strategies as st

from dumap.kernels import start

CUTS = [0, 1, 40, 41, 90, 120]
ROWS = CUTS[-1]


@pytest.fixture(scope="module")
def graph() -> sparse.csr_matrix:
    """A random symmetric graph in a few components, with rows that have no edge."""
    rng = np.random.default_rng(0)
    upper = sparse.triu(sparse.random(ROWS, ROWS, 0.02, rng=rng, dtype=np.float32), 1)
    return sparse.csr_matrix(upper + upper.T)


def shards(graph: sparse.csr_matrix, cuts=CUTS):
    """Cut a graph: indptr, tails, weights and the first row of each shard."""
    for low, high in pairwise(cuts):
        part = graph[low:high]
        yield part.indptr.astype(np.int64), part.indices.astype(np.int64), part.data, low


def adjacency(edges: list[tuple[int, int]], rows: int) -> sparse.csr_matrix:
    heads, tails = np.array(edges).T
    one_way = sparse.coo_matrix((np.ones(len(edges)), (heads, tails)), shape=(rows, rows))
    return sparse.csr_matrix(one_way + one_way.T)


def path(rows: int) -> sparse.csr_matrix:
    return adjacency([(i, i + 1) for i in range(rows - 1)], rows)


def ring(rows: int) -> sparse.csr_matrix:
    return adjacency([(i, (i + 1) % rows) for i in range(rows)], rows)


def grid(high: int, wide: int) -> sparse.csr_matrix:
    return sparse.csr_matrix(sparse.kronsum(path(wide), path(high)))


def spectral(matrix: sparse.csr_matrix, n_components: int, sizes=None):
    matrix = sparse.coo_matrix(matrix)
    rows = matrix.shape[0]
    sums = np.rint(matrix.data * start.WEIGHT_UNIT).astype(np.int64)
    pairs = matrix.row.astype(np.int64) * rows + matrix.col
    return start.spectral(pairs, sums, np.ones(rows) if sizes is None else sizes, n_components, 42)


def smoothest(matrix: sparse.csr_matrix, count: int) -> np.ndarray:
    """Return the first eigenvectors of the normalised Laplacian after the constant, as functions of the rows."""
    scale = 1 / np.sqrt(matrix.toarray().sum(axis=1))
    laplacian = np.eye(len(scale)) - scale[:, None] * matrix.toarray() * scale
    return np.linalg.eigh(laplacian)[1][:, 1 : count + 1] * scale[:, None]


def unit(y: np.ndarray) -> np.ndarray:
    return y / np.linalg.norm(y, axis=0)


# labels ----------------------------------------------------------------------------------------


def test_labels_spread_along_the_strongest_edges_however_the_graph_is_cut(graph):
    labels = np.full(ROWS, -1, np.int64)
    labels[::17] = np.arange(len(labels[::17]))
    dense, wanted = graph.toarray(), labels.copy()
    for i in np.flatnonzero(labels < 0):
        reach = np.where(labels >= 0, dense[i], 0)
        if reach.any():
            wanted[i] = labels[reach.argmax()]
    out = np.empty_like(labels)
    new = sum(start.spread(*shard, labels, out) for shard in shards(graph))
    assert new == (labels < 0).sum() - (wanted < 0).sum() > 0
    assert np.array_equal(out, wanted)


def test_every_component_left_over_has_a_lowest_row_of_its_own(graph):
    labels = np.full(ROWS, -1, np.int64)
    _, member = sparse.csgraph.connected_components(graph)
    labels[member == member[graph.indices[0]]] = 0
    chosen = np.concatenate([start.lowest_of_all(p, t, low, labels, 3) for p, t, _, low in shards(graph)])
    assert (labels[chosen] == -1).all()
    assert set(member[chosen]) == set(member[labels < 0])
    assert not graph[chosen][:, chosen].nnz
    assert len(np.unique(chosen)) == len(chosen)


@given(st.lists(st.integers(0, ROWS), max_size=6), st.integers(1, 9))
def test_coarse_edges_add_up_to_the_same_however_the_graph_is_cut(graph, cuts, count):
    labels = np.arange(ROWS) % count
    pairs, sums = np.empty(0, np.int64), np.empty(0, np.int64)
    for p, t, w, low in shards(graph, [0, *sorted(cuts), ROWS]):
        more = start.coarse_edges(p, t, w, low, labels, count)
        pairs, sums = start.add_pairs(np.concatenate([more[0], pairs]), np.concatenate([more[1], sums]))
    whole = start.coarse_edges(graph.indptr, graph.indices, graph.data, 0, labels, count)
    assert np.array_equal(pairs, whole[0])
    assert np.array_equal(sums, whole[1])
    assert (np.diff(pairs) > 0).all()
    dense, onehot = np.zeros((count, count)), np.eye(count)[labels]
    dense[pairs // count, pairs % count] = sums / start.WEIGHT_UNIT
    np.testing.assert_allclose(dense, onehot.T @ graph.toarray() @ onehot, atol=1e-4)


# eigenvectors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("matrix", [path(40), path(100), grid(9, 14), grid(5, 7)], ids=["p40", "p100", "g126", "g35"])
def test_spectral_is_the_smoothest_eigenvectors_up_to_sign(matrix):
    y, components, residual = spectral(matrix, 2)
    assert (components, np.abs(y).max()) == (1, 1.0)
    assert residual < 1e-3
    wanted = unit(smoothest(matrix, 2))
    np.testing.assert_allclose(np.abs((unit(y) * wanted).sum(axis=0)), 1, atol=1e-3)


@pytest.mark.parametrize("rows", [30, 101])
def test_spectral_lays_a_ring_out_as_a_circle(rows):
    y, *_ = spectral(ring(rows), 2)
    plane = unit(smoothest(ring(rows), 2))  # any turn of the pair is as smooth
    np.testing.assert_allclose(plane @ (plane.T @ y), y, atol=1e-3)
    radius = np.linalg.norm(y / y.std(axis=0), axis=1)
    np.testing.assert_allclose(radius, radius.mean(), rtol=0.02)


def test_spectral_fixes_signs_and_gives_one_answer():
    y, *_ = spectral(grid(9, 14), 3)
    assert (y[np.abs(y).argmax(axis=0), np.arange(3)] > 0).all()
    assert spectral(grid(9, 14), 3)[0].tobytes() == y.tobytes()


def test_components_lie_apart_each_as_large_as_its_rows_are_many():
    matrix = sparse.block_diag([ring(30), path(90), sparse.csr_matrix((1, 1)), grid(2, 3)], format="csr")
    member = np.repeat([0, 1, 2, 3], [30, 90, 1, 6])
    y, components, _ = spectral(matrix, 2)
    assert components == 4
    assert np.isfinite(y).all()
    own = [y[member == c] for c in range(4)]
    for c in range(4):
        for other in range(c):
            distance = np.linalg.norm(own[c][:, None] - own[other], axis=2)
            assert distance.min() > 0.05
    spans = [np.ptp(part, axis=0).max() for part in own]
    assert spans[1] > spans[0] > spans[3] > spans[2] == 0


@pytest.mark.parametrize("n_components", [1, 5, 12])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_graph_smaller_than_the_map_stays_finite(rows, n_components):
    matrix = path(rows) if rows > 1 else sparse.csr_matrix((1, 1))
    y, components, _ = spectral(matrix, n_components)
    assert (y.shape, components) == ((rows, n_components), 1)
    assert np.isfinite(y).all()
    assert np.abs(y).max() <= 1
    assert len(np.unique(y, axis=0)) == rows


# rows ------------------------------------------------------------------------------------------


def test_smooth_moves_rows_half_way_to_their_neighbors_however_the_graph_is_cut(graph):
    y = np.random.default_rng(1).normal(size=(ROWS, 2))
    dense = graph.toarray().astype(np.float64)
    total = dense.sum(axis=1, keepdims=True)
    wanted = np.where(total > 0, (y + dense @ y / np.where(total > 0, total, 1)) / 2, y)
    out = np.empty_like(y)
    for shard in shards(graph):
        start.smooth(*shard, y, out)
    np.testing.assert_allclose(out, wanted, rtol=1e-12)
    assert (total == 0).any()


def test_the_box_is_filled_and_equal_rows_are_parted():
    y = np.random.default_rng(0).normal(size=(100, 3))
    y[50:] = y[50]
    y[:, 2] = 7
    rows = np.arange(100)
    box = start.into_box(y, 42, rows)
    assert box.dtype == np.float32
    np.testing.assert_allclose(box[:, :2].min(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(box[:, :2].max(axis=0), start.SPAN, atol=1e-3)
    assert len(np.unique(box, axis=0)) == 100
    assert np.ptp(box[50:], axis=0).max() < 2e-3


def test_random_coordinates_belong_to_rows():
    box = start.random_box(42, np.arange(3000), 2)
    assert np.array_equal(start.random_box(42, np.array([7, 2999]), 2), box[[7, 2999]])
    assert box.min() >= 0
    assert box.max() < start.SPAN
    np.testing.assert_allclose(box.mean(axis=0), start.SPAN / 2, atol=0.2)
    assert abs(np.corrcoef(box.T)[0, 1]) < 0.1


def test_principal_axes_are_those_of_the_sample():
    x = np.random.default_rng(0).normal(2, [5, 3, 2, 1, 0.5], (5000, 5)).astype(np.float32)
    mean, axes = start.principal_axes(x, 3)
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-4)
    directions = np.linalg.svd(x - x.mean(axis=0, dtype=np.float64), full_matrices=False)[2][:3]
    np.testing.assert_allclose(np.abs((directions.T * axes).sum(axis=0)), 1, atol=1e-6)
    assert (axes[np.abs(axes).argmax(axis=0), np.arange(3)] > 0).all()
    assert not start.principal_axes(x[:, :2], 4)[1][:, 2:].any()
    out = np.empty((5000, 3))
    start.project(x, mean, axes, out)
    np.testing.assert_allclose(out, (x - mean) @ axes, atol=1e-9)
