from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sparse
from hypothesis import given
from hypothesis import strategies as st

from dumap.kernels import layout, start
from dumap.plan import MOST_COARSE_ROWS

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


def paged(graph: sparse.csr_matrix, state: np.ndarray, pages=(0, 30, 31, 100, ROWS)):
    """Cut a graph into shards; with each come calls, a page of the state each: cursor, first row, page."""
    for indptr, tails, weights, low in shards(graph):
        cursor = indptr[:-1].copy()
        yield indptr, tails, weights, low, [(cursor, a, state[a:b]) for a, b in pairwise(pages)]


# labels ----------------------------------------------------------------------------------------


def labels_at_ends(graph: sparse.csr_matrix, labels: np.ndarray):
    """Yield each shard with the labels at the ends of its edges."""
    for indptr, tails, weights, low, pages in paged(graph, labels):
        ends = np.full(len(tails), -99, labels.dtype)
        for page in pages:
            start.look_up(indptr, tails, *page, ends)
        assert np.array_equal(ends, labels[tails])
        yield indptr, tails, weights, low, ends


def test_labels_spread_along_the_strongest_edges_however_the_graph_is_cut(graph):
    labels = np.full(ROWS, start.UNLABELLED, np.int32)
    labels[::17] = np.arange(len(labels[::17]))
    dense, wanted, alone = graph.toarray(), labels.copy(), np.diff(graph.indptr) == 0
    for i in np.flatnonzero(labels < 0):
        reach = np.where(labels >= 0, dense[i], 0)
        if reach.any():
            wanted[i] = labels[reach.argmax()]
    wanted[alone] = -2 - np.flatnonzero(alone)
    out, counts = labels.copy(), np.zeros(2, int)
    for indptr, _, weights, low, ends in labels_at_ends(graph, labels):
        own = out[low : low + len(indptr) - 1]
        counts += start.spread(indptr, weights, ends, low, own)
    assert np.array_equal(out, wanted)
    assert alone.any()
    assert counts[1] == (wanted == start.UNLABELLED).sum() > 0
    assert counts[0] == (labels != wanted).sum() > alone.sum()


def test_rows_without_edges_are_settled_in_one_pass():
    labels = np.array([start.UNLABELLED, 0], np.int32)
    for wanted in ((2, 0), (0, 0)):
        assert start.spread(np.zeros(3, np.int64), np.empty(0, "f4"), np.empty(0, "i4"), 5, labels) == wanted
        assert labels.tolist() == [-7, -8]


def test_every_component_left_over_has_a_lowest_row_of_its_own(graph):
    labels = np.full(ROWS, start.UNLABELLED, np.int64)
    _, member = sparse.csgraph.connected_components(graph)
    labels[member == member[graph.indices[0]]] = 0
    before = labels.copy()
    counts = np.sum(
        [start.label_lowest(p, t, low, labels[low : low + len(p) - 1], 3) for p, t, _, low in shards(graph)], 0
    )
    chosen = np.flatnonzero(labels < start.UNLABELLED)
    assert np.array_equal(labels[chosen], -2 - chosen)
    assert counts.tolist() == [len(chosen), (labels == start.UNLABELLED).sum()]
    assert (before[chosen] == start.UNLABELLED).all()
    assert np.array_equal(labels[before == 0], before[before == 0])
    assert set(member[chosen]) == set(member[before < 0])
    assert not graph[chosen][:, chosen].nnz


def test_seeds_are_drawn_by_rows_alone():
    whole = start.draw_seeds(42, 0, 10_000, 500, 10_000)
    assert 400 < len(whole) < 600
    parts = [start.draw_seeds(42, low, high, 500, 10_000) for low, high in pairwise([0, 1, 700, 10_000])]
    assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(start.draw_seeds(42, 3, 9, 10_000, 10_000), np.arange(3, 9))


@given(st.lists(st.integers(0, ROWS), max_size=6), st.integers(1, 9))
def test_coarse_edges_add_up_to_the_same_however_the_graph_is_cut(graph, cuts, count):
    labels = np.arange(ROWS) % count
    labels[np.diff(graph.indptr) == 0] = -2
    pairs, sums = np.empty(0, np.int64), np.empty(0, np.int64)
    for p, t, w, low in shards(graph, [0, *sorted(cuts), ROWS]):
        more = start.coarse_edges(p, w, labels[low : low + len(p) - 1], labels[t], count)
        pairs, sums = start.add_pairs(np.concatenate([more[0], pairs]), np.concatenate([more[1], sums]))
    whole = start.coarse_edges(graph.indptr, graph.data, labels, labels[graph.indices], count)
    assert np.array_equal(pairs, whole[0])
    assert np.array_equal(sums, whole[1])
    assert (np.diff(pairs) > 0).all()
    dense, onehot = np.zeros((count, count)), np.eye(count)[np.maximum(labels, 0)]
    dense[pairs // count, pairs % count] = sums / start.WEIGHT_UNIT
    np.testing.assert_allclose(dense, onehot.T @ graph.toarray() @ onehot, atol=1e-4)


def test_components_that_no_seed_reaches_are_not_in_the_coarse_graph():
    two = sparse.block_diag([path(3), path(2)], format="csr")
    labels = np.array([0, 0, 1, -5, -5])
    pairs, sums = start.coarse_edges(two.indptr, two.data, labels, labels[two.indices], 2)
    assert pairs.tolist() == [0, 1, 2]
    assert (sums / start.WEIGHT_UNIT).tolist() == [2, 1, 1]


def test_a_coarse_row_keeps_its_strongest_edges(monkeypatch):
    monkeypatch.setattr(start, "STRONGEST", 2)
    count = 10
    pairs = np.array([31, 32, 33, 34, 50, 71, 72, 79])
    sums = np.array([5, 9, 5, 9, 1, 7, 7, 7])
    kept, left = start.strongest(pairs, sums, count)
    assert kept.tolist() == [32, 34, 50, 71, 72]
    assert left.tolist() == [9, 9, 1, 7, 7]
    assert start.strongest(pairs[:0], sums[:0], count)[0].size == 0


def test_a_coarse_graph_of_more_rows_keeps_fewer_edges_of_each(monkeypatch):
    monkeypatch.setattr(start, "COARSE_EDGES", 20)
    assert [start.most_edges(count) for count in (0, 1, 5, 10, 21)] == [20, 20, 4, 2, 0]
    monkeypatch.undo()
    assert start.most_edges(1024) == start.STRONGEST
    assert 0 < start.most_edges(MOST_COARSE_ROWS) * MOST_COARSE_ROWS <= start.COARSE_EDGES


# the coarse layout -----------------------------------------------------------------------------


def two_groups() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the pairs, sums and sizes of two cliques of ten that one weak edge joins, and of a label without rows."""
    own = np.kron(np.eye(2), np.ones((10, 10)))
    own[9, 10] = own[10, 9] = 0.01
    matrix = sparse.coo_matrix(np.pad(own, (0, 1)))
    pairs, units = matrix.row.astype(np.int64) * 21 + matrix.col, np.rint(matrix.data * start.WEIGHT_UNIT)
    return pairs, units.astype(np.int64), np.array([1000] * 10 + [10] * 10 + [0])


def test_laying_the_coarse_graph_out_lowers_the_cross_entropy():
    pairs, sums, sizes = two_groups()
    descent = layout.Descent(1.577, 0.895, 1.0, 1.0, 5.0, 200, 42)
    before, *_ = start.spectral(pairs, sums, sizes, 2, 42)
    after = start.lay_out(pairs, sums, sizes, before, descent)
    assert np.isnan(after[-1]).all()
    assert start.lay_out(pairs, sums, sizes, before, descent).tobytes() == after.tobytes()
    rows = np.random.default_rng(1).choice(21, (2, 5000), p=sizes / sizes.sum())

    def loss(y: np.ndarray) -> float:
        others = layout.loss(descent, y[rows[0]], y[rows[0]], np.ones(5000), y[rows[1]])
        edges = layout.loss(
            descent._replace(negative_sample_rate=0), y[pairs // 21], y[pairs % 21], sums, y[pairs % 21]
        )
        return others + edges

    assert loss(after) < 0.9 * loss(before)
    apart = np.linalg.norm(after[:10].mean(axis=0) - after[10:20].mean(axis=0))
    assert apart > 2 * np.linalg.norm(after[:10] - after[:10].mean(axis=0), axis=1).max()


# eigenvectors ----------------------------------------------------------------------------------


@pytest.mark.parametrize("matrix", [path(40), path(100), grid(9, 14), grid(5, 7)], ids=["p40", "p100", "g126", "g35"])
def test_spectral_is_the_smoothest_eigenvectors_up_to_sign(matrix):
    y, components, residual = spectral(matrix, 2)
    assert (components, y.min()) == (1, 0)
    assert y.max() == pytest.approx(start.SPAN)
    assert residual < 1e-3
    found, wanted = unit(y - y.mean(axis=0)), smoothest(matrix, 2)
    wanted = unit(wanted - wanted.mean(axis=0))
    np.testing.assert_allclose(np.abs((found * wanted).sum(axis=0)), 1, atol=1e-3)


@pytest.mark.parametrize("rows", [30, 101])
def test_spectral_lays_a_ring_out_as_a_circle(rows):
    y, *_ = spectral(ring(rows), 2)
    y -= y.mean(axis=0)
    plane = unit(smoothest(ring(rows), 2))  # any turn of the pair is as smooth
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
    assert y.min() >= 0
    assert y.max() < start.SPAN + 1e-9
    assert len(np.unique(y, axis=0)) == rows


def test_rows_are_placed_by_their_labels():
    coarse = np.array([[1.0, 2.0], [np.nan, np.nan], [5.0, 6.0]])
    y = start.interpolate(np.array([2, 0, -7, -7, -9], np.int32), coarse, 42)
    assert y[:2].tolist() == [[5, 6], [1, 2]]
    np.testing.assert_allclose(y[2:], start.random_box(42, np.array([5, 5, 7]), 2), rtol=1e-6)
    assert start.interpolate(np.array([-2]), coarse[:0], 42).shape == (1, 2)


# rows ------------------------------------------------------------------------------------------


def smoothed(graph: sparse.csr_matrix, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smooth coordinates shard by shard; add up the moments."""
    out, moments = np.empty_like(y), np.zeros((6, y.shape[1]))
    for indptr, tails, weights, low, pages in paged(graph, y):
        own = slice(low, low + len(indptr) - 1)
        sums, totals = np.zeros((len(indptr) - 1, y.shape[1])), np.zeros(len(indptr) - 1)
        for cursor, first, page in pages:
            start.pull(indptr, tails, weights, cursor, first, page, sums, totals)
        out[own], more = start.smooth(y[own], sums, totals)
        moments += more
    return out, moments


def test_smooth_moves_rows_half_way_to_their_neighbors_however_the_graph_is_cut(graph):
    y = np.random.default_rng(1).normal(size=(ROWS, 2)).astype(np.float32)
    dense = graph.toarray().astype(np.float64)
    total = dense.sum(axis=1, keepdims=True)
    wanted = np.where(total > 0, (y + dense @ y / np.where(total > 0, total, 1)) / 2, y)
    np.testing.assert_allclose(smoothed(graph, y)[0], wanted, rtol=1e-6, atol=1e-7)
    assert (total == 0).any()


def test_the_residual_is_that_of_eigenvectors_of_the_walk():
    matrix = grid(9, 12)
    small, large = matrix.shape[0], ROWS
    padded = sparse.csr_matrix(
        (matrix.data, matrix.indices, [*matrix.indptr, *[matrix.nnz] * (large - small)]), (large,) * 2
    )
    y = np.zeros((large, 2), np.float32)
    y[:small] = 3 + smoothest(matrix, 2)
    assert start.residual(smoothed(padded, y)[1]) < 1e-5
    y[:small] = np.random.default_rng(0).normal(size=(small, 2))
    degree = np.asarray(matrix.sum(axis=1)).ravel()
    centred = y[:small] - np.average(y[:small], axis=0, weights=degree)
    walked = matrix @ centred / degree[:, None]
    square = lambda v: (degree[:, None] * v**2).sum(axis=0)  # noqa: E731
    quotient = (degree[:, None] * centred * walked).sum(axis=0) / square(centred)
    wanted = np.sqrt(square(walked - quotient * centred) / square(centred)).max()
    assert start.residual(smoothed(padded, y)[1]) == pytest.approx(wanted, rel=1e-4)
    assert wanted > 0.3


def test_the_box_is_filled_and_equal_rows_are_parted():
    y = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    y[50:] = y[50]
    y[:, 2] = 7
    low, high = y.min(axis=0).astype(float), y.max(axis=0).astype(float)
    box = start.into_box(y, low, high, 42, 0)
    assert box.dtype == np.float32
    np.testing.assert_allclose(box[:, :2].min(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(box[:, :2].max(axis=0), start.SPAN, atol=1e-3)
    assert len(np.unique(box, axis=0)) == 100
    assert np.ptp(box[50:], axis=0).max() < 2e-3
    assert np.array_equal(start.into_box(y[30:], low, high, 42, 30), box[30:])


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
