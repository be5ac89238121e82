"""Graphs that tests of kernels share."""

from itertools import pairwise

import numpy as np
import scipy.sparse as sparse

from dumap.kernels.edges import FRACTION_BITS, Edges
from dumap.kernels.edges import pack_edges as kernel_pack
from dumap.kernels.layout import ROW_GROUP

SHARD_BOUNDS = [0, 1, 40, 41, 90, 120]
ROWS = SHARD_BOUNDS[-1]


def random_graph() -> sparse.csr_matrix:
    """Return a random symmetric graph in a few components, with rows that have no edge."""
    rng = np.random.default_rng(0)
    upper = sparse.triu(sparse.random(ROWS, ROWS, 0.02, rng=rng, dtype=np.float32), 1)
    return sparse.csr_matrix(upper + upper.T)


def split_graph(graph: sparse.csr_matrix, shard_bounds=SHARD_BOUNDS):
    """Cut a graph: indptr, tails, weights and the first row of each shard."""
    for low, height in pairwise(shard_bounds):
        shard = graph[low:height]
        yield shard.indptr.astype(np.int64), shard.indices.astype(np.int64), shard.data, low


def adjacency(edges: list[tuple[int, int]], rows: int) -> sparse.csr_matrix:
    """Return the symmetric graph that has some edges, all of weight 1."""
    heads_of_edges, tails = np.array(edges).T
    one_way = sparse.coo_matrix((np.ones(len(edges)), (heads_of_edges, tails)), shape=(rows, rows))
    return sparse.csr_matrix(one_way + one_way.T)


def path(rows: int) -> sparse.csr_matrix:
    """Return rows in a line, each joined to the next."""
    return adjacency([(i, i + 1) for i in range(rows - 1)], rows)


def ring(rows: int) -> sparse.csr_matrix:
    """Return rows in a ring, each joined to the next."""
    return adjacency([(i, (i + 1) % rows) for i in range(rows)], rows)


def grid(height: int, width: int) -> sparse.csr_matrix:
    """Return a grid of rows, each joined to those beside, above and below it."""
    return sparse.csr_matrix(sparse.kronsum(path(width), path(height)))


def laplacian_eigenvectors(matrix: sparse.csr_matrix, n_vectors: int) -> np.ndarray:
    """Return the first eigenvectors of the normalised Laplacian after the constant, as functions of the rows."""
    scale = 1 / np.sqrt(matrix.toarray().sum(axis=1))
    laplacian = np.eye(len(scale)) - scale[:, None] * matrix.toarray() * scale
    return np.linalg.eigh(laplacian)[1][:, 1 : n_vectors + 1] * scale[:, None]


def unit_columns(y: np.ndarray) -> np.ndarray:
    """Return columns scaled to length 1."""
    return y / np.linalg.norm(y, axis=0)


LAYOUT_ROWS, LAYOUT_EPOCHS, SEED = 300, 40, 42
FIXED_POINT_UNIT = 1 << FRACTION_BITS


def layout_graph() -> sparse.csr_matrix:
    """A symmetric graph with rows of no edge, of a few and of many; 300 rows are not a whole number of groups."""
    rng = np.random.default_rng(0)
    degree_factors = np.minimum(1, rng.pareto(1.0, LAYOUT_ROWS) / 6) * (np.arange(LAYOUT_ROWS) % 29 > 0)
    is_edge = np.triu(rng.random((LAYOUT_ROWS, LAYOUT_ROWS)) < degree_factors[:, None] * degree_factors, 1)
    upper = np.where(is_edge, rng.random((LAYOUT_ROWS, LAYOUT_ROWS)) ** 2, 0).astype(np.float32)
    graph = sparse.csr_matrix(upper + upper.T)
    degrees = np.diff(graph.indptr)
    assert degrees.min() == 0
    assert degrees.max() > 100
    assert LAYOUT_ROWS % ROW_GROUP
    return graph


def pack_graph(graph, first_row=0, stop_row=LAYOUT_ROWS, n_epochs=LAYOUT_EPOCHS) -> Edges:
    """Pack the edges of some rows of a graph for the layout."""
    shard = graph[first_row:stop_row]
    indptr, tails = shard.indptr.astype(np.int64), shard.indices.astype(np.int32)
    return kernel_pack(indptr, tails, shard.data, first_row, float(graph.data.max()), n_epochs, SEED)


def heads_of_edges(edges: Edges) -> np.ndarray:
    """Return the row that each packed edge belongs to."""
    return np.repeat(np.arange(len(edges.indptr) - 1), np.diff(edges.indptr))


def expected_samples(edges: Edges, epoch: int) -> np.ndarray:
    """Return how often each packed edge is sampled in an epoch, by the formula in float64."""
    step, phase = (
        2 * edges.relative_weights.astype(np.int64) / FIXED_POINT_UNIT,
        edges.sample_phases.astype(np.int64) / FIXED_POINT_UNIT,
    )
    return (np.floor((epoch + 1) * step + phase) - np.floor(epoch * step + phase)).astype(int)
