"""The start: labels, smoothing, axes and the box, each against an obvious reference."""

from itertools import pairwise

import numpy as np
import pytest
import scipy.sparse as sparse
from graphs import ROWS, grid, laplacian_eigenvectors, random_graph, split_graph

from dumap.kernels import start


@pytest.fixture(scope="module")
def graph():
    """Return a random graph of a few hundred rows."""
    return random_graph()


def split_with_pages(graph: sparse.csr_matrix, row_values: np.ndarray, pages=(0, 30, 31, 100, ROWS)):
    """Cut a graph into shards; with each come calls, a page of the state each: cursor, first row, page."""
    for indptr, tails, weights, low in split_graph(graph):
        edge_cursors = indptr[:-1].copy()
        yield indptr, tails, weights, low, [(edge_cursors, a, row_values[a:b]) for a, b in pairwise(pages)]


# labels ----------------------------------------------------------------------------------------


def labels_of_tails(graph: sparse.csr_matrix, labels: np.ndarray):
    """Yield each shard with the labels at the ends of its edges."""
    for indptr, tails, weights, low, pages in split_with_pages(graph, labels):
        ends = np.full(len(tails), -99, labels.dtype)
        for page in pages:
            start.look_up_tail_labels(indptr, tails, *page, ends)
        assert np.array_equal(ends, labels[tails])
        yield indptr, tails, weights, low, ends


def test_labels_spread_along_the_strongest_edges_however_the_graph_is_cut(graph):
    labels = np.full(ROWS, start.UNLABELLED, np.int32)
    labels[::17] = np.arange(len(labels[::17]))
    dense, expected, has_no_edge = graph.toarray(), labels.copy(), np.diff(graph.indptr) == 0
    for i in np.flatnonzero(labels < 0):
        labelled_weights = np.where(labels >= 0, dense[i], 0)
        if labelled_weights.any():
            expected[i] = labels[labelled_weights.argmax()]
    expected[has_no_edge] = -2 - np.flatnonzero(has_no_edge)
    out, counts = labels.copy(), np.zeros(2, int)
    for indptr, _, weights, low, ends in labels_of_tails(graph, labels):
        labels_of_shard = out[low : low + len(indptr) - 1]
        positions = np.arange(low, low + len(indptr) - 1)
        counts += start.spread_labels(indptr, weights, ends, positions, labels_of_shard)
    assert np.array_equal(out, expected)
    assert has_no_edge.any()
    assert counts[1] == (expected == start.UNLABELLED).sum() > 0
    assert counts[0] == (labels != expected).sum() > has_no_edge.sum()


def test_rows_without_edges_are_settled_in_one_pass():
    labels = np.array([start.UNLABELLED, 0], np.int32)
    no_edges = np.zeros(3, np.int64), np.empty(0, "f4"), np.empty(0, "i4")
    for expected in ((2, 0), (0, 0)):
        assert start.spread_labels(*no_edges, np.array([5, 6]), labels) == expected
        assert labels.tolist() == [-7, -8]


def test_every_component_left_over_has_a_lowest_row_of_its_own(graph):
    labels = np.full(ROWS, start.UNLABELLED, np.int64)
    _, member = sparse.csgraph.connected_components(graph)
    labels[member == member[graph.indices[0]]] = 0
    before = labels.copy()
    counts = np.zeros(2, int)
    for indptr, tails, _, low in split_graph(graph):
        positions = np.arange(low, low + len(indptr) - 1)
        counts += start.label_lowest_hashes(indptr, tails, positions, labels[positions[0] : positions[-1] + 1], 3)
    chosen = np.flatnonzero(labels < start.UNLABELLED)
    assert np.array_equal(labels[chosen], -2 - chosen)
    assert counts.tolist() == [len(chosen), (labels == start.UNLABELLED).sum()]
    assert (before[chosen] == start.UNLABELLED).all()
    assert np.array_equal(labels[before == 0], before[before == 0])
    assert set(member[chosen]) == set(member[before < 0])
    assert not graph[chosen][:, chosen].nnz


def test_the_edges_of_some_rows(graph):
    chosen = np.random.default_rng(2).random(ROWS) < 0.3
    indptr, tails, weights = start.edges_of_rows(chosen, graph.indptr, graph.indices, graph.data)
    edges = sparse.csr_matrix((weights, tails, indptr), (chosen.sum(), ROWS))
    assert (edges != graph[np.flatnonzero(chosen)]).nnz == 0
    assert 0 < edges.nnz < graph.nnz


def test_label_sources_are_drawn_by_rows_alone():
    whole = start.draw_label_sources(42, 0, 10_000, 500, 10_000)
    assert 400 < len(whole) < 600
    parts = [start.draw_label_sources(42, low, high, 500, 10_000) for low, high in pairwise([0, 1, 700, 10_000])]
    assert np.array_equal(np.concatenate(parts), whole)
    assert np.array_equal(start.draw_label_sources(42, 3, 9, 10_000, 10_000), np.arange(3, 9))


def test_rows_are_placed_by_their_labels():
    coarse = np.array([[1.0, 2.0], [np.nan, np.nan], [5.0, 6.0]])
    y = start.place_at_labels(np.array([2, 0, -7, -7, -9], np.int32), coarse, 42)
    assert y[:2].tolist() == [[5, 6], [1, 2]]
    anywhere = start.draw_in_box(42, np.array([5, 5, 7]), 2) / start.BOX_SIDE
    np.testing.assert_allclose(y[2:], [1, 2] + 4 * anywhere, rtol=1e-6)
    assert start.place_at_labels(np.array([-2]), coarse[:0], 42).shape == (1, 2)


# rows ------------------------------------------------------------------------------------------


def smooth_by_pages(graph: sparse.csr_matrix, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Smooth coordinates shard by shard; add up the moments."""
    out, moments = np.empty_like(y), np.zeros((6, y.shape[1]))
    for indptr, tails, weights, low, pages in split_with_pages(graph, y):
        shard = slice(low, low + len(indptr) - 1)
        sums, totals = np.zeros((len(indptr) - 1, y.shape[1])), np.zeros(len(indptr) - 1)
        for edge_cursors, first, page in pages:
            start.add_neighbor_coordinates(indptr, tails, weights, edge_cursors, first, page, sums, totals)
        out[shard], shard_moments = start.smooth_coordinates(y[shard], sums, totals)
        moments += shard_moments
    return out, moments


def test_smooth_moves_rows_half_way_to_their_neighbors_however_the_graph_is_cut(graph):
    y = np.random.default_rng(1).normal(size=(ROWS, 2)).astype(np.float32)
    dense = graph.toarray().astype(np.float64)
    total = dense.sum(axis=1, keepdims=True)
    expected = np.where(total > 0, (y + dense @ y / np.where(total > 0, total, 1)) / 2, y)
    np.testing.assert_allclose(smooth_by_pages(graph, y)[0], expected, rtol=1e-6, atol=1e-7)
    assert (total == 0).any()


def test_the_residual_is_that_of_eigenvectors_of_the_walk():
    matrix = grid(9, 12)
    small, large = matrix.shape[0], ROWS
    padded = sparse.csr_matrix(
        (matrix.data, matrix.indices, [*matrix.indptr, *[matrix.nnz] * (large - small)]), (large,) * 2
    )
    y = np.zeros((large, 2), np.float32)
    y[:small] = 3 + laplacian_eigenvectors(matrix, 2)
    assert start.eigenvector_residual(smooth_by_pages(padded, y)[1]) < 1e-5
    y[:small] = np.random.default_rng(0).normal(size=(small, 2))
    degree = np.asarray(matrix.sum(axis=1)).ravel()
    centred = y[:small] - np.average(y[:small], axis=0, weights=degree)
    neighbor_means = matrix @ centred / degree[:, None]
    square = lambda v: (degree[:, None] * v**2).sum(axis=0)  # noqa: E731
    quotient = (degree[:, None] * centred * neighbor_means).sum(axis=0) / square(centred)
    expected = np.sqrt(square(neighbor_means - quotient * centred) / square(centred)).max()
    assert start.eigenvector_residual(smooth_by_pages(padded, y)[1]) == pytest.approx(expected, rel=1e-4)
    assert expected > 0.3


@pytest.mark.parametrize("edges", [True, False])
def test_coordinates_that_are_the_same_all_over_have_no_residual(edges):
    matrix = grid(9, 12) if edges else sparse.csr_matrix((108, 108))
    y = np.random.default_rng(0).normal(size=(108, 2)).astype(np.float32)
    if edges:
        y[:] = 0.1, 7
    assert start.eigenvector_residual(smooth_by_pages(matrix, y)[1]) is None
    if edges:
        y[:, :1] = laplacian_eigenvectors(matrix, 1)
        assert start.eigenvector_residual(smooth_by_pages(matrix, y)[1]) < 1e-5


def test_the_box_is_filled_and_equal_rows_are_parted():
    y = np.random.default_rng(0).normal(size=(100, 3)).astype(np.float32)
    y[50:] = y[50]
    y[:, 2] = 7
    low, high = y.min(axis=0).astype(float), y.max(axis=0).astype(float)
    box = start.stretch_to_box(y, low, high, 42, 0)
    assert box.dtype == np.float32
    np.testing.assert_allclose(box[:, :2].min(axis=0), 0, atol=1e-3)
    np.testing.assert_allclose(box[:, :2].max(axis=0), start.BOX_SIDE, atol=1e-3)
    assert len(np.unique(box, axis=0)) == 100
    assert np.ptp(box[50:], axis=0).max() < 2e-3
    assert np.array_equal(start.stretch_to_box(y[30:], low, high, 42, 30), box[30:])


def test_random_coordinates_belong_to_rows():
    box = start.draw_in_box(42, np.arange(3000), 2)
    assert np.array_equal(start.draw_in_box(42, np.array([7, 2999]), 2), box[[7, 2999]])
    assert box.min() >= 0
    assert box.max() < start.BOX_SIDE
    np.testing.assert_allclose(box.mean(axis=0), start.BOX_SIDE / 2, atol=0.2)
    assert abs(np.corrcoef(box.T)[0, 1]) < 0.1


def test_principal_axes_of_many_dims_are_found_from_the_products_of_rows():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(40, 3)) * [9, 5, 2] @ rng.normal(size=(3, 400)) + 7).astype(np.float32)
    mean, axes = start.fit_pca(x, 3)
    other_mean, other = start.fit_pca(x, 3, max_dims=320)
    np.testing.assert_array_equal(mean, other_mean)
    np.testing.assert_allclose(other, axes, atol=1e-5)
    flat = start.fit_pca(np.ones((5, 400), np.float32), 8, max_dims=200)[1]
    assert flat.shape == (400, 8)
    assert np.isfinite(flat).all()


def test_principal_axes_are_those_of_the_sample():
    x = np.random.default_rng(0).normal(2, [5, 3, 2, 1, 0.5], (5000, 5)).astype(np.float32)
    mean, axes = start.fit_pca(x, 3)
    np.testing.assert_allclose(mean, x.mean(axis=0), rtol=1e-4)
    directions = np.linalg.svd(x - x.mean(axis=0, dtype=np.float64), full_matrices=False)[2][:3]
    np.testing.assert_allclose(np.abs((directions.T * axes).sum(axis=0)), 1, atol=1e-6)
    assert (axes[np.abs(axes).argmax(axis=0), np.arange(3)] > 0).all()
    assert not start.fit_pca(x[:, :2], 4)[1][:, 2:].any()
    out = np.empty((5000, 3))
    start.project_on_axes(x, mean, axes, out)
    np.testing.assert_allclose(out, (x - mean) @ axes, atol=1e-9)
