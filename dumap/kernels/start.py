"""The start: labels that coarsen the graph, interpolation and smoothing of the coarse layout, PCA and random starts.

Some rows are drawn as the sources of labels. Labels spread from the sources along the strongest edges. Rows of one
label make one row of the coarse graph. They all begin at the coordinates of this coarse row; smoothing along the edges
then moves them apart.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels import hashing
from dumap.kernels.coarse import BOX_SIDE
from dumap.kernels.threads import one_thread

CONSTANT_SHARE = 1e-12
"""A component whose variance is a smaller share of its mean square is constant up to rounding."""
UNLABELLED = -1
"""The mark of a row without a label. A label is a source's number. In a component without a source it is -2 - i, where
i is a near row with a low hash."""


def edges_of_rows(
    is_chosen: np.ndarray, indptr: np.ndarray, tails: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the edges of some rows, as indptr, tails and weights; `is_chosen` says of each row whether it is one."""
    degrees = np.diff(indptr)
    edges = np.repeat(is_chosen, degrees)
    return np.append(0, np.cumsum(degrees[is_chosen])), tails[edges], weights[edges]


@nb.njit(cache=True, nogil=True)
def look_up_tail_labels(indptr, tails, edge_cursors, first_row, page_labels, tail_labels):
    """Look up the labels of a shard's tails that lie in one page (a range of rows).

    Parameters
    ----------
    indptr, tails : ndarray
        The shard's edges; tails ascend in each row.
    edge_cursors : ndarray of int64, shape (rows,)
        Each row's first edge whose tail is in the page or after it; moved to the first edge behind the page. Pages come
        in order.
    first_row : int
        The page's first row.
    page_labels : ndarray of int, shape (rows of the page,)
    tail_labels : ndarray of int, shape (edges,)
        Labels of the tails; written for tails in the page.
    """
    stop_row = first_row + page_labels.shape[0]
    for r in range(indptr.shape[0] - 1):
        e = edge_cursors[r]  # tails ascend, so the tails in one page are consecutive
        while e < indptr[r + 1] and tails[e] < stop_row:
            tail_labels[e] = page_labels[tails[e] - first_row]
            e += 1
        edge_cursors[r] = e


@nb.njit(cache=True, nogil=True)
def spread_labels(indptr, weights, tail_labels, positions, labels):
    """Give each unlabelled row the label of its strongest labelled neighbour.

    A row without edges gets a label of its own.

    Parameters
    ----------
    indptr, weights : ndarray
        The rows' edges.
    tail_labels : ndarray of int, shape (edges,)
        Labels of the tails.
    positions : ndarray of int64, shape (rows,)
    labels : ndarray of int, shape (rows,)
        Labels of the rows, `UNLABELLED` for a row without one; written.

    Returns
    -------
    n_new, n_left : int
        Rows newly labelled, and rows still without.
    """
    n_new, n_left = 0, 0
    for r in range(indptr.shape[0] - 1):
        if indptr[r] == indptr[r + 1]:
            n_new += labels[r] >= UNLABELLED
            labels[r] = -2 - positions[r]
        if labels[r] != UNLABELLED:
            continue
        best_weight = np.float32(0)
        for e in range(indptr[r], indptr[r + 1]):
            if tail_labels[e] != UNLABELLED and weights[e] > best_weight:
                best_weight = weights[e]
                labels[r] = tail_labels[e]
        if labels[r] == UNLABELLED:
            n_left += 1
        else:
            n_new += 1
    return n_new, n_left


@nb.njit(cache=True, nogil=True)
def label_lowest_hashes(indptr, tails, positions, labels, seed):
    """Give a new label to each unlabelled row whose hash is lower than the hashes of all its neighbours.

    It is called once labels no longer spread. Every component that is still unlabelled has such a row.

    Parameters
    ----------
    indptr, tails : ndarray
        The rows' edges.
    positions : ndarray of int64, shape (rows,)
    labels : ndarray of int, shape (rows,)
        Labels of the rows; written.
    seed : int

    Returns
    -------
    n_new, n_left : int
        Rows newly labelled, and rows still without.
    """
    key = hashing.derive_key(seed, hashing.LABEL_SOURCES)
    n_new, n_left = 0, 0
    for r in range(indptr.shape[0] - 1):
        i = positions[r]
        if labels[r] != UNLABELLED:
            continue
        row_hash = hashing.draw_word(key, i)
        n_lower = np.int64(0)
        for e in range(indptr[r], indptr[r + 1]):
            other_hash = hashing.draw_word(key, tails[e])
            if other_hash < row_hash or (row_hash == other_hash and tails[e] < i):
                n_lower += 1
        if n_lower == 0:
            labels[r] = -2 - i
            n_new += 1
        else:
            n_left += 1
    return n_new, n_left


def draw_label_sources(seed: int, first_row: int, stop_row: int, n_sources: int, n_rows: int) -> np.ndarray:
    """Return the sources of labels in [first_row, stop_row): each row is one with probability n_sources / n_rows."""
    row_ids = np.arange(first_row, stop_row)
    if n_sources >= n_rows:
        return row_ids
    max_hash = np.uint64(int(n_sources / n_rows * 2**64))
    return row_ids[hashing.draw_words(seed, hashing.LABEL_SOURCES, row_ids) < max_hash]


def place_at_labels(labels: np.ndarray, coarse_y: np.ndarray, seed: int) -> np.ndarray:
    """Place each row at the coordinates of its label's coarse row, or, without a source's label, at random in the
    coarse layout's box.

    Parameters
    ----------
    labels : ndarray of int, shape (n,)
    coarse_y : ndarray of float64, shape (coarse rows, n_components)
    seed : int

    Returns
    -------
    ndarray of float32, shape (n, n_components)
    """
    placed = coarse_y[np.isfinite(coarse_y).all(axis=1)]
    low, high = (placed.min(axis=0), placed.max(axis=0)) if len(placed) else (0.0, BOX_SIDE)
    y = coarse_y[np.maximum(labels, 0)] if len(coarse_y) else np.empty((len(labels), coarse_y.shape[1]))
    has_no_source = labels < 0
    random_y = draw_in_box(seed, -2 - labels[has_no_source].astype(np.int64), coarse_y.shape[1])
    y[has_no_source] = low + random_y / BOX_SIDE * (high - low)
    return y.astype(np.float32)


@nb.njit(cache=True, nogil=True)
def add_neighbor_coordinates(indptr, tails, weights, edge_cursors, first_row, page_y, neighbor_sums, weight_sums):
    """Add the neighbours that lie in one page to each row's weighted sum of its neighbours' coordinates.

    Parameters
    ----------
    indptr, tails, weights, edge_cursors, first_row
        As for `look_up_tail_labels`.
    page_y : ndarray of float32, shape (rows of the page, n_components)
    neighbor_sums : ndarray of float64, shape (rows, n_components)
        sum_j w_ij y_j; added to.
    weight_sums : ndarray of float64, shape (rows,)
        sum_j w_ij; added to.
    """
    stop_row = first_row + page_y.shape[0]
    for r in range(indptr.shape[0] - 1):
        e = edge_cursors[r]  # tails ascend, so the tails in one page are consecutive
        while e < indptr[r + 1] and tails[e] < stop_row:
            weight_sums[r] += weights[e]
            for c in range(page_y.shape[1]):
                neighbor_sums[r, c] += weights[e] * page_y[tails[e] - first_row, c]
            e += 1
        edge_cursors[r] = e


def smooth_coordinates(
    y: np.ndarray, neighbor_sums: np.ndarray, weight_sums: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Move rows half-way to the weighted mean of their neighbours.

    Parameters
    ----------
    y : ndarray of float32, shape (rows, n_components)
    neighbor_sums, weight_sums : ndarray of float64
        From `add_neighbor_coordinates`.

    Returns
    -------
    moved : ndarray of float32, shape (rows, n_components)
    moments : ndarray of float64, shape (6, n_components)
        For `eigenvector_residual`: sums over rows of d, d y, d y^2, d p, d p^2 and d y p, where d is the row's degree
        and p its neighbours' mean.
    """
    neighbor_means = np.where(weight_sums[:, None] > 0, neighbor_sums / np.maximum(weight_sums, 1e-300)[:, None], y)
    terms = np.broadcast_arrays(
        1.0, y, np.square(y, dtype=np.float64), neighbor_means, neighbor_means**2, y * neighbor_means
    )
    moments = np.stack([(weight_sums[:, None] * term).sum(axis=0) for term in terms])
    return (0.5 * (y + neighbor_means)).astype(np.float32), moments


def eigenvector_residual(moments: np.ndarray) -> float | None:
    """Return how far coordinates are from being eigenvectors of the random walk on the graph, P = D^-1 W.

    Parameters
    ----------
    moments : ndarray of float64, shape (6, n_components)
        From `smooth_coordinates`, added up over all rows.

    Returns
    -------
    float or None
        The greatest |P y - lambda y| / |y| of all components; lambda is Rayleigh's quotient, y is centred, lengths are
        weighted by degree. An eigenvector has 0, noise about 1. None if no component varies or there are no edges.
    """
    moments = moments[:, moments[0] > 0]
    d, y, yy, p, pp, yp = moments = moments[:, moments[2] - moments[1] ** 2 / moments[0] > CONSTANT_SHARE * moments[2]]
    if not moments.size:
        return None
    length = yy - y * y / d
    quotient = (yp - y * p / d) / length
    return float(np.sqrt(np.maximum((pp - p * p / d) / length - quotient**2, 0)).max())


def stretch_to_box(y: np.ndarray, low: np.ndarray, high: np.ndarray, seed: int, first_row: int) -> np.ndarray:
    """Stretch coordinates to the box [0, BOX_SIDE] in each axis, and add a little jitter, which separates equal
    coordinates.

    Parameters
    ----------
    y : ndarray of float, shape (n, n_components)
        Coordinates of rows `first_row`, `first_row` + 1, ...
    low, high : ndarray of float64, shape (n_components,)
        The least and the greatest coordinates of all rows.
    seed, first_row : int
    """
    stretched = BOX_SIDE * (y.astype(np.float64) - low) / np.where(high > low, high - low, 1)
    rows = np.arange(first_row, first_row + len(y))
    return (stretched + (draw_in_box(seed, rows, y.shape[1]) / BOX_SIDE - 0.5) * 1e-3).astype(np.float32)


def draw_in_box(seed: int, rows: np.ndarray, n_components: int) -> np.ndarray:
    """Draw coordinates uniformly from the box [0, BOX_SIDE]."""
    counters = rows[:, None] * n_components + np.arange(n_components)
    bits = hashing.draw_words(seed, hashing.RANDOM_BOX, counters.ravel())
    return BOX_SIDE * hashing.uniform_from_bits(bits).reshape(len(rows), n_components)


def fit_pca(sample: np.ndarray, n_components: int, max_dims: int = 4096) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the first principal axes of a sample, signs fixed.

    Parameters
    ----------
    sample : ndarray of float32, shape (m, dims)
    n_components : int
    max_dims : int
        Largest covariance matrix that is decomposed. With more dims, the axes come from the inner products of
        `max_dims` / 8 rows instead.

    Returns
    -------
    mean : ndarray of float64, shape (dims,)
    axes : ndarray of float64, shape (dims, n_components)
        Columns of zeros beyond `dims`.
    """
    with one_thread():
        mean = sample.mean(axis=0, dtype=np.float64)
        if sample.shape[1] > max_dims:
            rows = sample[:: -(-8 * len(sample) // max_dims)] - mean
            _, row_vectors = np.linalg.eigh(rows @ rows.T)
            vectors = rows.T @ row_vectors[:, max(0, len(rows) - n_components) :]  # axes, not yet of unit length
            vectors /= np.maximum(np.sqrt(np.einsum("ij,ij->j", vectors, vectors)), np.finfo(np.float64).tiny)
        else:
            covariance = np.zeros((sample.shape[1], sample.shape[1]))
            for start in range(0, len(sample), 4096):
                centred = sample[start : start + 4096] - mean
                covariance += centred.T @ centred
            _, vectors = np.linalg.eigh(covariance)
    axes = np.zeros((sample.shape[1], n_components))
    n_axes = min(n_components, vectors.shape[1])
    axes[:, :n_axes] = vectors[:, ::-1][:, :n_axes]
    signs = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(n_components)])
    return mean, axes * np.where(signs == 0, 1, signs)


@nb.njit(cache=True, nogil=True)
def project_on_axes(x, mean, axes, out):
    """Project rows on axes, row by row, so that the result for a row does not depend on the others."""
    for i in range(x.shape[0]):
        out[i, :] = 0
        for j in range(x.shape[1]):
            difference = np.float64(x[i, j]) - mean[j]
            for c in range(axes.shape[1]):
                out[i, c] += difference * axes[j, c]
