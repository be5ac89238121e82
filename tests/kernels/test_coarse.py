"""The coarse graph: its strongest edges, its eigenvectors and its layout."""

import numpy as np
import pytest
import scipy.sparse as sparse
from graphs import ROWS, grid, laplacian_eigenvectors, path, random_graph, ring, split_graph, unit_columns
from hypothesis import given
from hypothesis import strategies as st
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackNoConvergence

from dumap.kernels import coarse, layout
from dumap.planning.budget import MAX_COARSE_ROWS


@pytest.fixture(scope="module")
def graph():
    """Return a random graph of a few hundred rows."""
    return random_graph()


def spectral(matrix: sparse.csr_matrix, n_components: int, sizes=None):
    """Embed a graph as if each of its rows were a label's."""
    matrix = sparse.coo_matrix(matrix)
    rows = matrix.shape[0]
    sums = np.rint(matrix.data * coarse.UNITS_PER_WEIGHT).astype(np.int64)
    graph = coarse.coarse_matrix(matrix.row.astype(np.int64) * rows + matrix.col, sums, rows)
    return coarse.spectral_layout(graph, np.ones(rows) if sizes is None else sizes, n_components, 42)


# edges -----------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, ROWS), max_size=6), st.integers(1, 9))
def test_coarse_edges_add_up_to_the_same_however_the_graph_is_cut(graph, cuts, count):
    labels = np.arange(ROWS) % count
    labels[np.diff(graph.indptr) == 0] = -2
    pairs, sums = np.empty(0, np.int64), np.empty(0, np.int64)
    for p, t, w, low in split_graph(graph, [0, *sorted(cuts), ROWS]):
        more = coarse.sum_edges_by_label(p, w, labels[low : low + len(p) - 1], labels[t], count)
        pairs, sums = coarse.sum_equal_pairs(np.concatenate([more[0], pairs]), np.concatenate([more[1], sums]))
    whole = coarse.sum_edges_by_label(graph.indptr, graph.data, labels, labels[graph.indices], count)
    assert np.array_equal(pairs, whole[0])
    assert np.array_equal(sums, whole[1])
    assert (np.diff(pairs) > 0).all()
    dense, onehot = np.zeros((count, count)), np.eye(count)[np.maximum(labels, 0)]
    dense[pairs // count, pairs % count] = sums / coarse.UNITS_PER_WEIGHT
    np.testing.assert_allclose(dense, onehot.T @ graph.toarray() @ onehot, atol=1e-4)


def test_components_that_no_seed_reaches_are_not_in_the_coarse_graph():
    two = sparse.block_diag([path(3), path(2)], format="csr")
    labels = np.array([0, 0, 1, -5, -5])
    pairs, sums = coarse.sum_edges_by_label(two.indptr, two.data, labels, labels[two.indices], 2)
    assert pairs.tolist() == [0, 1, 2]
    assert (sums / coarse.UNITS_PER_WEIGHT).tolist() == [2, 1, 1]


def test_a_coarse_row_keeps_its_strongest_edges():
    count = 10
    pairs = np.array([31, 32, 33, 34, 50, 71, 72, 79])
    sums = np.array([5, 9, 5, 9, 1, 7, 7, 7])
    kept, left = coarse.keep_strongest(pairs, sums, count, 2)
    assert kept.tolist() == [32, 34, 50, 71, 72]
    assert left.tolist() == [9, 9, 1, 7, 7]
    assert coarse.keep_strongest(pairs[:0], sums[:0], count, 2)[0].size == 0


def test_a_coarse_graph_of_more_rows_keeps_fewer_edges_of_each(monkeypatch):
    monkeypatch.setattr(coarse, "MAX_COARSE_EDGES", 20)
    assert [coarse.max_row_edges(count) for count in (0, 1, 5, 10, 21)] == [20, 20, 4, 2, 0]
    monkeypatch.undo()
    assert coarse.max_row_edges(1024) == coarse.MAX_ROW_EDGES
    assert 0 < coarse.max_row_edges(MAX_COARSE_ROWS) * MAX_COARSE_ROWS <= coarse.MAX_COARSE_EDGES


def test_the_leading_edges_keep_connected_what_is():
    """Two cliques whose rows have stronger edges than they keep: the link is not among them, but of the tree."""
    rng = np.random.default_rng(1)
    half = np.kron(np.eye(2), rng.uniform(0.5, 1, (40, 40)))
    half[3, 60] = half[4, 70] = 0.01
    half[5, 50] = 0.02
    graph = sparse.coo_matrix(np.pad(half + half.T, (0, 1)))
    pairs, sums = (
        graph.row.astype(np.int64) * 81 + graph.col,
        np.rint(graph.data * coarse.UNITS_PER_WEIGHT).astype(np.int64),
    )
    strongest = coarse.keep_layout_edges(coarse.coarse_matrix(pairs, sums, 81), pairs, sums)
    assert connected_components(strongest[:80, :80])[0] == 1
    assert (strongest != strongest.T).nnz == 0
    assert [strongest[i, j] > 0 for i, j in ((3, 60), (4, 70), (5, 50))] == [False, False, True]
    dense, whole = strongest.toarray()[:40, :40], half[:40, :40] + half[:40, :40].T
    np.testing.assert_allclose(dense[dense > 0], whole[dense > 0], atol=1e-5)
    strong = whole >= np.sort(whole, axis=1)[:, -coarse.LAYOUT_ROW_EDGES, None]
    assert ((dense > 0) == (strong | strong.T)).all()


# the coarse layout -----------------------------------------------------------------------------


def two_groups() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs, sums and sizes of two cliques of ten that one weak edge joins, and of a label without rows."""
    dense = np.kron(np.eye(2), np.ones((10, 10)))
    dense[9, 10] = dense[10, 9] = 0.01
    matrix = sparse.coo_matrix(np.pad(dense, (0, 1)))
    pairs, units = matrix.row.astype(np.int64) * 21 + matrix.col, np.rint(matrix.data * coarse.UNITS_PER_WEIGHT)
    return pairs, units.astype(np.int64), np.array([1000] * 10 + [10] * 10 + [0])


def test_laying_the_coarse_graph_out_lowers_the_cross_entropy():
    pairs, sums, sizes = two_groups()
    descent = layout.LayoutParameters(1.577, 0.895, 1.0, 1.0, 5.0, 200, 42)
    matrix = coarse.coarse_matrix(pairs, sums, 21)
    before, *_ = coarse.spectral_layout(matrix, sizes, 2, 42)
    after = coarse.optimize_coarse_layout(matrix, sizes, before, descent)
    assert np.isnan(after[-1]).all()
    assert coarse.optimize_coarse_layout(matrix, sizes, before, descent).tobytes() == after.tobytes()
    rows = np.random.default_rng(1).choice(21, (2, 5000), p=sizes / sizes.sum())

    def loss(y: np.ndarray) -> float:
        others = layout.estimate_loss(descent, y[rows[0]], y[rows[0]], np.ones(5000), y[rows[1]])
        edges = layout.estimate_loss(
            descent._replace(negative_sample_rate=0), y[pairs // 21], y[pairs % 21], sums, y[pairs % 21]
        )
        return others + edges

    assert loss(after) < 0.9 * loss(before)
    apart = np.linalg.norm(after[:10].mean(axis=0) - after[10:20].mean(axis=0))
    assert apart > 2 * np.linalg.norm(after[:10] - after[:10].mean(axis=0), axis=1).max()


def test_a_piece_that_nothing_pulls_does_not_stray():
    """A coarse row alone is pushed the same way at every step, however weakly."""
    graph = sparse.block_diag([np.ones((20, 20)), np.ones((10, 10)), np.ones((1, 1))], format="csr")
    sizes = np.full(31, 50)
    before, components, _ = coarse.spectral_layout(graph, sizes, 2, 42)
    assert components == 3
    after = coarse.optimize_coarse_layout(
        graph, sizes, before, layout.LayoutParameters(1.577, 0.895, 1.0, 1.0, 5.0, 500, 42)
    )
    away = np.linalg.norm(after - np.median(after, axis=0), axis=1)
    assert away[-1] < 60


def ribbon(length: int, width: int, seed: int) -> sparse.csr_matrix:
    """Return a closed ribbon's graph: rows near each other along it and across it are joined, some more strongly."""
    rows = np.arange(length * width)
    around, across = rows // width, rows % width
    apart = np.abs(around[:, None] - around)
    apart = np.minimum(apart, length - apart)
    noise = np.random.default_rng(seed).uniform(0.2, 1, (len(rows), len(rows)))
    near = (apart <= 2) & (np.abs(across[:, None] - across) <= 1)
    return sparse.csr_matrix(np.where(near, noise + noise.T, 0))


def test_a_long_closed_ribbon_stays_closed():
    """It tears where few edges are due in an epoch, since what pulls is then more noise than pull."""
    graph, seed = ribbon(600, 3, 1), 1
    sizes = np.full(graph.shape[0], 30)
    before, *_ = coarse.spectral_layout(graph, sizes, 2, seed)
    after = coarse.optimize_coarse_layout(
        graph, sizes, before, layout.LayoutParameters(1.577, 0.895, 1.0, 1.0, 5.0, 500, seed)
    )
    middle = after.reshape(600, 3, 2).mean(axis=1)
    step = np.linalg.norm(middle - np.roll(middle, 1, axis=0), axis=1)
    assert step.max() < 2.5 * np.median(step)


# eigenvectors ----------------------------------------------------------------------------------


def test_the_residual_is_infinite_if_no_eigenvector_converges(monkeypatch):
    def stall(matrix, *_, **__):
        raise ArpackNoConvergence("none", np.empty(0), np.empty((matrix.shape[0], 0)))

    monkeypatch.setattr(coarse, "eigsh", stall)
    y, components, residual = spectral(grid(9, 14), 2)
    assert np.isfinite(y).all()
    assert (components, residual) == (1, np.inf)


@pytest.mark.parametrize("matrix", [path(40), path(100), grid(9, 14), grid(5, 7)], ids=["p40", "p100", "g126", "g35"])
def test_spectral_is_the_smoothest_eigenvectors_up_to_sign(matrix):
    y, components, residual = spectral(matrix, 2)
    assert (components, y.min()) == (1, 0)
    assert y.max() == pytest.approx(coarse.BOX_SIDE)
    assert residual < 1e-3
    vectors, expected = unit_columns(y - y.mean(axis=0)), laplacian_eigenvectors(matrix, 2)
    expected = unit_columns(expected - expected.mean(axis=0))
    np.testing.assert_allclose(np.abs((vectors * expected).sum(axis=0)), 1, atol=1e-3)


@pytest.mark.parametrize("rows", [30, 101])
def test_spectral_lays_a_ring_out_as_a_circle(rows):
    y, *_ = spectral(ring(rows), 2)
    y -= y.mean(axis=0)
    plane = unit_columns(laplacian_eigenvectors(ring(rows), 2))  # any turn of the pair is as smooth
    np.testing.assert_allclose(plane @ (plane.T @ y), y, atol=1e-2)
    radius = np.linalg.norm(y / y.std(axis=0), axis=1)
    np.testing.assert_allclose(radius, radius.mean(), rtol=0.02)


def test_spectral_fixes_signs_and_gives_one_answer():
    matrix = grid(9, 14)
    y, *_ = spectral(matrix, 3)
    far = y - np.average(y, axis=0, weights=np.asarray(matrix.sum(axis=1)).ravel())  # where eigenvectors are 0
    assert (far.max(axis=0) > -far.min(axis=0) - 1e-9).all()
    assert spectral(grid(9, 14), 3)[0].tobytes() == y.tobytes()


def test_labels_without_rows_have_no_place():
    y, components, _ = spectral(path(3), 2, sizes=np.array([2.0, 1.0, 0.0]))
    assert components == 1
    assert np.isfinite(y).all(axis=1).tolist() == [True, True, False]


def test_components_lie_apart_each_as_large_as_its_rows_are_many():
    matrix = sparse.block_diag([ring(30), path(90), sparse.csr_matrix((1, 1)), grid(2, 3)], format="csr")
    member = np.repeat([0, 1, 2, 3], [30, 90, 1, 6])
    y, components, _ = spectral(matrix, 2)
    assert components == 4
    assert np.isfinite(y).all()
    components_y = [y[member == c] for c in range(4)]
    for c in range(4):
        for other in range(c):
            distance = np.linalg.norm(components_y[c][:, None] - components_y[other], axis=2)
            assert distance.min() > 0.05
    spans = [np.ptp(part, axis=0).max() for part in components_y]
    assert spans[1] > spans[0] > spans[3] > spans[2] == 0


@pytest.mark.parametrize("n_components", [1, 5, 12])
@pytest.mark.parametrize("rows", [1, 2, 3])
def test_a_graph_smaller_than_the_map_stays_finite(rows, n_components):
    matrix = path(rows) if rows > 1 else sparse.csr_matrix((1, 1))
    y, components, _ = spectral(matrix, n_components)
    assert (y.shape, components) == ((rows, n_components), 1)
    assert np.isfinite(y).all()
    assert y.min() >= 0
    assert y.max() < coarse.BOX_SIDE + 1e-9
    assert len(np.unique(y, axis=0)) == rows
