"""The coarse graph, which has a row for each label: its edges, its spectral embedding and its layout.

The layout starts from the spectral embedding and uses only the strongest edges of each coarse row. With all edges, the
sum of many weak edges would put classes on top of each other that could lie side by side at the same loss.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sparse
from scipy.sparse.csgraph import connected_components, minimum_spanning_tree
from scipy.sparse.linalg import ArpackNoConvergence, eigsh

from dumap.kernels import hashing, layout
from dumap.kernels.edges import pack
from dumap.kernels.layout import LayoutParameters
from dumap.kernels.pool import pool_rows, sort_pool
from dumap.kernels.threads import one_thread

SPAN = 10.0
"""Side of the box that a start fills."""
EXTRA_EIGENVECTORS = 2
"""Eigenvectors computed beyond those used: without them the solver may miss close or repeated eigenvalues."""
STRONGEST, COARSE_EDGES = 256, 1 << 21
"""The most edges that the coarse graph keeps, for one row and for all rows. The limits bound its memory; the strongest
edges are kept."""
LEADING = 16
"""Strongest edges of a coarse row that the layout uses, its edge to itself included."""
COARSE_SAMPLES = 16.0
"""Samples of a coarse row's edges in an epoch, all edges together, its edge to itself included."""
_MAX_RELATIVE_WEIGHT = 1.99  # 2 would not fit into 16 bits
WEIGHT_UNIT = float(1 << 20)
"""Units in a weight of 1. Coarse weights are summed in whole units, so that the order of the sum does not matter."""


def coarse_edges(
    indptr: np.ndarray, weights: np.ndarray, labels: np.ndarray, ends: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sum a shard's edges by the labels of heads and tails; edges of rows without a source's label are left out.

    Parameters
    ----------
    indptr, weights : ndarray
        The shard's edges.
    labels : ndarray of int, shape (rows,)
        Labels of the shard's rows.
    ends : ndarray of int, shape (edges,)
        Labels of the tails.
    count : int
        Sources of labels in the whole graph.

    Returns
    -------
    pairs : ndarray of int64, shape (m,)
        label of the head * count + label of the tail, ascending.
    sums : ndarray of int64, shape (m,)
        In units of 2**-20.
    """
    heads = np.repeat(labels, np.diff(indptr)).astype(np.int64)
    has_source = heads >= 0  # a tail has a source if its head has: both are in one component
    units = np.rint(weights[has_source].astype(np.float64) * WEIGHT_UNIT).astype(np.int64)
    return add_pairs(heads[has_source] * count + ends[has_source], units)


def add_pairs(pair: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort pairs, and add up the units of equal pairs."""
    order = np.argsort(pair, kind="stable")
    pair, units = pair[order], units[order]
    begin = np.flatnonzero(np.concatenate([[True], pair[1:] != pair[:-1]])) if len(pair) else np.empty(0, np.int64)
    return pair[begin], np.add.reduceat(units, begin) if len(begin) else units


def _connected(matrix: sparse.csr_matrix, n_components: int, seed: int) -> tuple[np.ndarray, float]:
    """Embed a connected graph by eigenvectors of D^-1/2 W D^-1/2, as umap-learn's spectral start does.

    The largest eigenvalues of this matrix belong to the smallest of the normalised Laplacian. The first eigenvector is
    constant up to scale and is dropped.
    """
    size = matrix.shape[0]
    if size == 1:
        return np.zeros((1, n_components)), 0.0
    degree = np.asarray(matrix.sum(axis=1)).ravel()
    scale = 1.0 / np.sqrt(np.maximum(degree, 1e-300))
    normal = sparse.diags(scale) @ matrix @ sparse.diags(scale)
    k = n_components + 1 + EXTRA_EIGENVECTORS
    residual = np.inf
    if size <= max(4 * k, 64):
        residual = 0.0
        values, vectors = np.linalg.eigh(normal.toarray())
        vectors = vectors[:, ::-1][:, :k]
    else:
        v0 = hashing.uniform(hashing.draws(seed, hashing.LABEL_SOURCES, np.arange(size))) - 0.5
        try:
            values, vectors = eigsh(normal, k, which="LA", v0=v0, ncv=min(size, max(2 * k + 1, 40)), tol=0, maxiter=300)
        except ArpackNoConvergence as stalled:
            values, vectors = stalled.eigenvalues, stalled.eigenvectors
        order = np.argsort(-values, kind="stable")
        values, vectors = values[order], vectors[:, order]
        if len(values):
            residual = float(np.abs(normal @ vectors - vectors * values).max())
    out = np.zeros((size, n_components))
    converged = min(n_components, vectors.shape[1] - 1) if vectors.shape[1] else 0
    if converged > 0:
        out[:, :converged] = vectors[:, 1 : converged + 1]
    if converged < n_components:  # too few rows, or the solver did not converge
        noise = hashing.uniform(hashing.draws(seed, hashing.EIGEN_NOISE, np.arange(size * n_components)))
        out[:, converged:] = (noise.reshape(size, n_components)[:, converged:] - 0.5) / np.sqrt(size)
    out *= scale[:, None]
    flip = np.sign(out[np.abs(out).argmax(axis=0), np.arange(n_components)])
    out *= np.where(flip == 0, 1, flip)
    return out / max(np.abs(out).max(), 1e-300), residual


def most_edges(count: int) -> int:
    """Return the most edges that a row of a coarse graph of `count` rows keeps."""
    return min(STRONGEST, COARSE_EDGES // max(count, 1))


def strongest(pairs: np.ndarray, sums: np.ndarray, count: int, most: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep the `most` greatest sums of each head; of equal sums, the lower tails. Pairs stay ascending."""
    heads = pairs // count
    degrees = np.bincount(heads - heads[0]) if len(heads) else np.empty(0, np.int64)
    if degrees.max(initial=0) <= most:
        return pairs, sums
    order = np.lexsort((pairs, -sums, heads))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(degrees) - degrees, degrees)
    kept = np.sort(order[rank < most])
    return pairs[kept], sums[kept]


def matrix_of(pairs: np.ndarray, sums: np.ndarray, count: int) -> sparse.csr_matrix:
    """Return the coarse graph as a symmetric matrix; a pair that is kept in one direction counts in both.

    Parameters
    ----------
    pairs, sums : ndarray of int64
        From `coarse_edges`, added up over all shards.
    count : int
        Coarse rows.
    """
    matrix = sparse.csr_matrix((sums / WEIGHT_UNIT, (pairs // count, pairs % count)), shape=(count, count))
    return matrix.maximum(matrix.T).tocsr()


def leading(matrix: sparse.csr_matrix, pairs: np.ndarray, sums: np.ndarray) -> sparse.csr_matrix:
    """Return the strongest edges of each coarse row, and a maximum spanning tree, which keeps components connected.

    Parameters
    ----------
    matrix : csr_matrix, shape (coarse rows, coarse rows)
        The whole coarse graph, from `matrix_of`.
    pairs, sums : ndarray of int64
        As for `matrix_of`.
    """
    count, cost = matrix.shape[0], matrix.copy()  # costs are ranks: no two are equal, so the tree is unique
    cost.data[np.argsort(-matrix.data, kind="stable")] = np.arange(1.0, matrix.nnz + 1)
    tree = minimum_spanning_tree(cost).astype(bool)
    return matrix_of(*strongest(pairs, sums, count, LEADING), count).maximum(matrix.multiply(tree + tree.T)).tocsr()


def spectral(
    matrix: sparse.csr_matrix, sizes: np.ndarray, n_components: int, seed: int
) -> tuple[np.ndarray, int, float]:
    """Embed each connected component of the coarse graph by itself, and put the components on a spiral around the
    largest.

    A component's volume in the map is in proportion to its rows.

    Parameters
    ----------
    matrix : csr_matrix, shape (coarse rows, coarse rows)
        From `matrix_of`.
    sizes : ndarray of int64, shape (coarse rows,)
        Rows of each label.
    n_components, seed : int

    Returns
    -------
    coordinates : ndarray of float64, shape (coarse rows, n_components)
        In the box [0, SPAN]; NaN where a label has no rows.
    components : int
    residual : float
        The greatest |A v - lambda v| over all eigenvectors; infinite if no eigenvector of a component converged.
    """
    filled = np.flatnonzero(sizes)
    components, member = connected_components(matrix[filled][:, filled], directed=False)
    order = filled[np.argsort(member, kind="stable")]
    matrix, stops = sparse.csr_matrix(matrix[order][:, order]), np.cumsum(np.bincount(member, minlength=components))
    rows = np.bincount(member, weights=sizes[filled], minlength=components)
    out = np.full((len(sizes), n_components), np.nan)
    max_residual, area = 0.0, 0.0
    with one_thread():
        for rank, c in enumerate(np.argsort(-rows, kind="stable")):
            inside = slice(stops[c - 1] if c else 0, stops[c])
            local, component_residual = _connected(matrix[inside, inside], n_components, seed)
            max_residual = max(max_residual, component_residual)
            radius = float(rows[c] / rows.max()) ** (1 / max(n_components, 2))
            centre = np.zeros(n_components)
            if rank:  # the golden angle spreads the components evenly around the spiral
                area += float(rows[c] / rows.max())
                distance = 1.2 + radius + np.sqrt(area)
                angle = 2.399963229728653 * rank
                centre[0] = distance * np.cos(angle)
                centre[1 % n_components] += distance * np.sin(angle) if n_components > 1 else 0.0
            out[order[inside]] = centre + radius * local
    if components:
        low, high = np.nanmin(out, axis=0), np.nanmax(out, axis=0)
        out = SPAN * (out - low) / np.where(high > low, high - low, 1)
    return out, int(components), max_residual


def lay_out(matrix: sparse.csr_matrix, sizes: np.ndarray, y: np.ndarray, parameters: LayoutParameters) -> np.ndarray:
    """Lay out the coarse graph with the kernel of the layout.

    An edge is sampled in proportion to its share of its head's weight. A coarse row is drawn as a negative sample in
    proportion to the rows of its label.

    Parameters
    ----------
    matrix, sizes
        As for `spectral`; the matrix comes from `leading`.
    y : ndarray of float64, shape (coarse rows, n_components)
        From `spectral`.
    parameters : LayoutParameters

    Returns
    -------
    ndarray of float64, shape (coarse rows, n_components)
        In units of the map; NaN where a label has no rows.
    """
    filled = np.flatnonzero(sizes)
    matrix, stops = matrix[filled][:, filled], np.cumsum(sizes[filled])
    matrix.sort_indices()
    degree = np.maximum(np.asarray(matrix.sum(axis=1)).ravel(), 1e-300)
    relative_weights = np.minimum(
        COARSE_SAMPLES / 2 * matrix.data / np.repeat(degree, np.diff(matrix.indptr)), _MAX_RELATIVE_WEIGHT
    )
    indptr, weights = matrix.indptr.astype(np.int64), relative_weights.astype(np.float32)
    edges = pack(indptr, matrix.indices, weights, 0, 1.0, parameters.n_epochs, parameters.seed)
    before = y[filled].astype(np.float32)
    m, v, after = np.zeros_like(before), np.zeros_like(before), np.empty_like(before)
    for epoch in range(parameters.n_epochs):
        drawn = np.searchsorted(stops, pool_rows(parameters.seed, epoch, int(stops[-1])), side="right")
        pool = sort_pool(before[drawn])
        layout.step_epoch(parameters, epoch, 0, len(before), 0, 0, edges, before, m, v, pool, after)
        before, after = after, before
    out = np.full(y.shape, np.nan)
    out[filled] = before
    return out
