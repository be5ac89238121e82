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
from dumap.kernels.edges import pack_edges
from dumap.kernels.layout import LayoutParameters
from dumap.kernels.pool import draw_pool_rows, sort_pool
from dumap.kernels.threads import one_thread

BOX_SIDE = 10.0
"""Side of the box that a start fills."""
EXTRA_EIGENVECTORS = 2
"""Eigenvectors computed beyond those used: without them the solver may miss close or repeated eigenvalues."""
MAX_ROW_EDGES, MAX_COARSE_EDGES = 256, 1 << 21
"""The most edges that the coarse graph keeps, for one row and for all rows. The limits bound its memory; the strongest
edges are kept."""
LAYOUT_ROW_EDGES = 16
"""Strongest edges of a coarse row that the layout uses, its edge to itself included."""
COARSE_SAMPLES = 16.0
"""Samples of a coarse row's edges in an epoch, all edges together, its edge to itself included."""
_MAX_RELATIVE_WEIGHT = 1.99  # 2 would not fit into 16 bits
UNITS_PER_WEIGHT = float(1 << 20)
"""Units in a weight of 1. Coarse weights are summed in whole units, so that the order of the sum does not matter."""


def sum_edges_by_label(
    indptr: np.ndarray, weights: np.ndarray, labels: np.ndarray, tail_labels: np.ndarray, n_sources: int
) -> tuple[np.ndarray, np.ndarray]:
    """Sum a shard's edges by the labels of heads and tails; edges of rows without a source's label are left out.

    Parameters
    ----------
    indptr, weights : ndarray
        The shard's edges.
    labels : ndarray of int, shape (rows,)
        Labels of the shard's rows.
    tail_labels : ndarray of int, shape (edges,)
        Labels of the tails.
    n_sources : int
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
    weight_units = np.rint(weights[has_source].astype(np.float64) * UNITS_PER_WEIGHT).astype(np.int64)
    return sum_equal_pairs(heads[has_source] * n_sources + tail_labels[has_source], weight_units)


def sum_equal_pairs(pairs: np.ndarray, weight_units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort pairs, and add up the units of equal pairs."""
    order = np.argsort(pairs, kind="stable")
    pairs, weight_units = pairs[order], weight_units[order]
    starts = np.flatnonzero(np.concatenate([[True], pairs[1:] != pairs[:-1]])) if len(pairs) else np.empty(0, np.int64)
    return pairs[starts], np.add.reduceat(weight_units, starts) if len(starts) else weight_units


def _embed_component(matrix: sparse.csr_matrix, n_components: int, seed: int) -> tuple[np.ndarray, float]:
    """Embed a connected graph by eigenvectors of D^-1/2 W D^-1/2, as umap-learn's spectral start does.

    The largest eigenvalues of this matrix belong to the smallest of the normalised Laplacian. The first eigenvector is
    constant up to scale and is dropped.
    """
    n_rows = matrix.shape[0]
    if n_rows == 1:
        return np.zeros((1, n_components)), 0.0
    degrees = np.asarray(matrix.sum(axis=1)).ravel()
    scale = 1.0 / np.sqrt(np.maximum(degrees, 1e-300))
    normalized = sparse.diags(scale) @ matrix @ sparse.diags(scale)
    n_eigenvectors = n_components + 1 + EXTRA_EIGENVECTORS
    residual = np.inf
    if n_rows <= max(4 * n_eigenvectors, 64):
        residual = 0.0
        eigenvalues, eigenvectors = np.linalg.eigh(normalized.toarray())
        eigenvectors = eigenvectors[:, ::-1][:, :n_eigenvectors]
    else:
        first_vector = (
            hashing.uniform_from_bits(hashing.draw_words(seed, hashing.LABEL_SOURCES, np.arange(n_rows))) - 0.5
        )
        try:
            eigenvalues, eigenvectors = eigsh(
                normalized,
                n_eigenvectors,
                which="LA",
                v0=first_vector,
                ncv=min(n_rows, max(2 * n_eigenvectors + 1, 40)),
                tol=0,
                maxiter=300,
            )
        except ArpackNoConvergence as error:
            eigenvalues, eigenvectors = error.eigenvalues, error.eigenvectors
        order = np.argsort(-eigenvalues, kind="stable")
        eigenvalues, eigenvectors = eigenvalues[order], eigenvectors[:, order]
        if len(eigenvalues):
            residual = float(np.abs(normalized @ eigenvectors - eigenvectors * eigenvalues).max())
    out = np.zeros((n_rows, n_components))
    n_converged = min(n_components, eigenvectors.shape[1] - 1) if eigenvectors.shape[1] else 0
    if n_converged > 0:
        out[:, :n_converged] = eigenvectors[:, 1 : n_converged + 1]
    if n_converged < n_components:  # too few rows, or the solver did not converge
        noise = hashing.uniform_from_bits(
            hashing.draw_words(seed, hashing.EIGEN_NOISE, np.arange(n_rows * n_components))
        )
        out[:, n_converged:] = (noise.reshape(n_rows, n_components)[:, n_converged:] - 0.5) / np.sqrt(n_rows)
    out *= scale[:, None]
    signs = np.sign(out[np.abs(out).argmax(axis=0), np.arange(n_components)])
    out *= np.where(signs == 0, 1, signs)
    return out / max(np.abs(out).max(), 1e-300), residual


def max_row_edges(n_rows: int) -> int:
    """Return the most edges that a row of a coarse graph of `n_rows` rows keeps."""
    return min(MAX_ROW_EDGES, MAX_COARSE_EDGES // max(n_rows, 1))


def keep_strongest(pairs: np.ndarray, sums: np.ndarray, n_rows: int, max_edges: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep the `max_edges` greatest sums of each head; of equal sums, the lower tails. Pairs stay ascending."""
    heads = pairs // n_rows
    degrees = np.bincount(heads - heads[0]) if len(heads) else np.empty(0, np.int64)
    if degrees.max(initial=0) <= max_edges:
        return pairs, sums
    order = np.lexsort((pairs, -sums, heads))
    ranks = np.arange(len(order)) - np.repeat(np.cumsum(degrees) - degrees, degrees)
    kept = np.sort(order[ranks < max_edges])
    return pairs[kept], sums[kept]


def coarse_matrix(pairs: np.ndarray, sums: np.ndarray, n_rows: int) -> sparse.csr_matrix:
    """Return the coarse graph as a symmetric matrix; a pair that is kept in one direction counts in both.

    Parameters
    ----------
    pairs, sums : ndarray of int64
        From `sum_edges_by_label`, added up over all shards.
    n_rows : int
        Coarse rows.
    """
    matrix = sparse.csr_matrix((sums / UNITS_PER_WEIGHT, (pairs // n_rows, pairs % n_rows)), shape=(n_rows, n_rows))
    return matrix.maximum(matrix.T).tocsr()


def keep_layout_edges(matrix: sparse.csr_matrix, pairs: np.ndarray, sums: np.ndarray) -> sparse.csr_matrix:
    """Return the strongest edges of each coarse row, and a maximum spanning tree, which keeps components connected.

    Parameters
    ----------
    matrix : csr_matrix, shape (coarse rows, coarse rows)
        The whole coarse graph, from `coarse_matrix`.
    pairs, sums : ndarray of int64
        As for `coarse_matrix`.
    """
    n_rows, costs = matrix.shape[0], matrix.copy()  # costs are ranks: no two are equal, so the tree is unique
    costs.data[np.argsort(-matrix.data, kind="stable")] = np.arange(1.0, matrix.nnz + 1)
    tree = minimum_spanning_tree(costs).astype(bool)
    return (
        coarse_matrix(*keep_strongest(pairs, sums, n_rows, LAYOUT_ROW_EDGES), n_rows)
        .maximum(matrix.multiply(tree + tree.T))
        .tocsr()
    )


def spectral_layout(
    matrix: sparse.csr_matrix, sizes: np.ndarray, n_components: int, seed: int
) -> tuple[np.ndarray, int, float]:
    """Embed each connected component of the coarse graph by itself, and put the components on a spiral around the
    largest.

    A component's volume in the map is in proportion to its rows.

    Parameters
    ----------
    matrix : csr_matrix, shape (coarse rows, coarse rows)
        From `coarse_matrix`.
    sizes : ndarray of int64, shape (coarse rows,)
        Rows of each label.
    n_components, seed : int

    Returns
    -------
    coordinates : ndarray of float64, shape (coarse rows, n_components)
        In the box [0, BOX_SIDE]; NaN where a label has no rows.
    n_components_of_graph : int
    residual : float
        The greatest |A v - lambda v| over all eigenvectors; infinite if no eigenvector of a component converged.
    """
    used_labels = np.flatnonzero(sizes)
    n_components_of_graph, component_of = connected_components(matrix[used_labels][:, used_labels], directed=False)
    order = used_labels[np.argsort(component_of, kind="stable")]
    matrix, component_stops = (
        sparse.csr_matrix(matrix[order][:, order]),
        np.cumsum(np.bincount(component_of, minlength=n_components_of_graph)),
    )
    component_rows = np.bincount(component_of, weights=sizes[used_labels], minlength=n_components_of_graph)
    out = np.full((len(sizes), n_components), np.nan)
    max_residual, placed_area = 0.0, 0.0
    with one_thread():
        for rank, component in enumerate(np.argsort(-component_rows, kind="stable")):
            in_component = slice(component_stops[component - 1] if component else 0, component_stops[component])
            component_y, component_residual = _embed_component(matrix[in_component, in_component], n_components, seed)
            max_residual = max(max_residual, component_residual)
            radius = float(component_rows[component] / component_rows.max()) ** (1 / max(n_components, 2))
            centre = np.zeros(n_components)
            if rank:  # the golden angle spreads the components evenly around the spiral
                placed_area += float(component_rows[component] / component_rows.max())
                distance = 1.2 + radius + np.sqrt(placed_area)
                angle = 2.399963229728653 * rank
                centre[0] = distance * np.cos(angle)
                centre[1 % n_components] += distance * np.sin(angle) if n_components > 1 else 0.0
            out[order[in_component]] = centre + radius * component_y
    if n_components_of_graph:
        low, high = np.nanmin(out, axis=0), np.nanmax(out, axis=0)
        out = BOX_SIDE * (out - low) / np.where(high > low, high - low, 1)
    return out, int(n_components_of_graph), max_residual


def optimize_coarse_layout(
    matrix: sparse.csr_matrix, sizes: np.ndarray, y: np.ndarray, parameters: LayoutParameters
) -> np.ndarray:
    """Lay out the coarse graph with the kernel of the layout.

    An edge is sampled in proportion to its share of its head's weight. A coarse row is drawn as a negative sample in
    proportion to the rows of its label.

    Parameters
    ----------
    matrix, sizes
        As for `spectral_layout`; the matrix comes from `keep_layout_edges`.
    y : ndarray of float64, shape (coarse rows, n_components)
        From `spectral_layout`.
    parameters : LayoutParameters

    Returns
    -------
    ndarray of float64, shape (coarse rows, n_components)
        In units of the map; NaN where a label has no rows.
    """
    used_labels = np.flatnonzero(sizes)
    matrix, cumulative_sizes = matrix[used_labels][:, used_labels], np.cumsum(sizes[used_labels])
    matrix.sort_indices()
    degrees = np.maximum(np.asarray(matrix.sum(axis=1)).ravel(), 1e-300)
    relative_weights = np.minimum(
        COARSE_SAMPLES / 2 * matrix.data / np.repeat(degrees, np.diff(matrix.indptr)), _MAX_RELATIVE_WEIGHT
    )
    indptr, weights = matrix.indptr.astype(np.int64), relative_weights.astype(np.float32)
    edges = pack_edges(indptr, matrix.indices, weights, 0, 1.0, parameters.n_epochs, parameters.seed)
    current_y = y[used_labels].astype(np.float32)
    m, v, next_y = np.zeros_like(current_y), np.zeros_like(current_y), np.empty_like(current_y)
    for epoch in range(parameters.n_epochs):
        pool_labels = np.searchsorted(
            cumulative_sizes, draw_pool_rows(parameters.seed, epoch, int(cumulative_sizes[-1])), side="right"
        )
        pool = sort_pool(current_y[pool_labels])
        layout.step_epoch(parameters, epoch, 0, len(current_y), 0, 0, edges, current_y, m, v, pool, next_y)
        current_y, next_y = next_y, current_y
    out = np.full(y.shape, np.nan)
    out[used_labels] = current_y
    return out
