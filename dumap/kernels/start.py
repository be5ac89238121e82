"""The start: labels that coarsen the graph, interpolation and smoothing of the coarse layout, PCA and random starts.

Some rows are drawn as the sources of labels. Labels spread from the sources along the strongest edges. Rows of one
label make one row of the coarse graph. They all begin at the coordinates of this coarse row; smoothing along the edges
then moves them apart.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels import hashing
from dumap.kernels.coarse import SPAN
from dumap.kernels.threads import one_thread

EQUAL = 1e-12
"""A component whose variance is a smaller share of its mean square is constant up to rounding."""
UNLABELLED = -1
"""The mark of a row without a label. A label is a source's number. In a component without a source it is -2 - i, where
i is a near row with a low hash."""


def edges_of_rows(
    chosen: np.ndarray, indptr: np.ndarray, tails: np.ndarray, weights: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the edges of some rows, as indptr, tails and weights; `chosen` says of each row whether it is one."""
    degrees = np.diff(indptr)
    edges = np.repeat(chosen, degrees)
    return np.append(0, np.cumsum(degrees[chosen])), tails[edges], weights[edges]


@nb.njit(cache=True, nogil=True)
def look_up(indptr, tails, cursor, first, page, out):
    """Look up the labels of a shard's tails that lie in one page (a range of rows).

    Parameters
    ----------
    indptr, tails : ndarray
        The shard's edges; tails ascend in each row.
    cursor : ndarray of int64, shape (rows,)
        Each row's first edge whose tail is in the page or after it; moved to the first edge behind the page. Pages come
        in order.
    first : int
        The page's first row.
    page : ndarray of int, shape (rows of the page,)
    out : ndarray of int, shape (edges,)
        Labels of the tails; written for tails in the page.
    """
    stop = first + page.shape[0]
    for r in range(indptr.shape[0] - 1):
        e = cursor[r]  # tails ascend, so the tails in one page are consecutive
        while e < indptr[r + 1] and tails[e] < stop:
            out[e] = page[tails[e] - first]
            e += 1
        cursor[r] = e


@nb.njit(cache=True, nogil=True)
def spread_labels(indptr, weights, ends, positions, labels):
    """Give each unlabelled row the label of its strongest labelled neighbour.

    A row without edges gets a label of its own.

    Parameters
    ----------
    indptr, weights : ndarray
        The rows' edges.
    ends : ndarray of int, shape (edges,)
        Labels of the tails.
    positions : ndarray of int64, shape (rows,)
    labels : ndarray of int, shape (rows,)
        Labels of the rows, `UNLABELLED` for a row without one; written.

    Returns
    -------
    new, left : int
        Rows newly labelled, and rows still without.
    """
    new, left = 0, 0
    for r in range(indptr.shape[0] - 1):
        if indptr[r] == indptr[r + 1]:
            new += labels[r] >= UNLABELLED
            labels[r] = -2 - positions[r]
        if labels[r] != UNLABELLED:
            continue
        best = np.float32(0)
        for e in range(indptr[r], indptr[r + 1]):
            if ends[e] != UNLABELLED and weights[e] > best:
                best = weights[e]
                labels[r] = ends[e]
        if labels[r] == UNLABELLED:
            left += 1
        else:
            new += 1
    return new, left


@nb.njit(cache=True, nogil=True)
def label_lowest(indptr, tails, positions, labels, seed):
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
    new, left : int
        Rows newly labelled, and rows still without.
    """
    base = hashing.key(seed, hashing.LABEL_SOURCES)
    new, left = 0, 0
    for r in range(indptr.shape[0] - 1):
        i = positions[r]
        if labels[r] != UNLABELLED:
            continue
        hash_i = hashing.draw(base, i)
        lower = np.int64(0)
        for e in range(indptr[r], indptr[r + 1]):
            other_hash = hashing.draw(base, tails[e])
            if other_hash < hash_i or (hash_i == other_hash and tails[e] < i):
                lower += 1
        if lower == 0:
            labels[r] = -2 - i
            new += 1
        else:
            left += 1
    return new, left


def draw_label_sources(seed: int, first: int, stop: int, count: int, rows: int) -> np.ndarray:
    """Return the sources of labels in [first, stop): each row is one with probability count / rows, by its hash."""
    ids = np.arange(first, stop)
    if count >= rows:
        return ids
    limit = np.uint64(int(count / rows * 2**64))
    return ids[hashing.draws(seed, hashing.LABEL_SOURCES, ids) < limit]


def interpolate(labels: np.ndarray, coarse: np.ndarray, seed: int) -> np.ndarray:
    """Place each row at the coordinates of its label's coarse row, or, without a source's label, at random in the
    coarse layout's box.

    Parameters
    ----------
    labels : ndarray of int, shape (n,)
    coarse : ndarray of float64, shape (coarse rows, n_components)
    seed : int

    Returns
    -------
    ndarray of float32, shape (n, n_components)
    """
    filled = coarse[np.isfinite(coarse).all(axis=1)]
    low, high = (filled.min(axis=0), filled.max(axis=0)) if len(filled) else (0.0, SPAN)
    y = coarse[np.maximum(labels, 0)] if len(coarse) else np.empty((len(labels), coarse.shape[1]))
    sourceless = labels < 0
    box = random_box(seed, -2 - labels[sourceless].astype(np.int64), coarse.shape[1])
    y[sourceless] = low + box / SPAN * (high - low)
    return y.astype(np.float32)


@nb.njit(cache=True, nogil=True)
def add_neighbors(indptr, tails, weights, cursor, first, page, sums, totals):
    """Add the neighbours that lie in one page to each row's weighted sum of its neighbours' coordinates.

    Parameters
    ----------
    indptr, tails, weights, cursor, first
        As for `look_up`.
    page : ndarray of float32, shape (rows of the page, n_components)
    sums : ndarray of float64, shape (rows, n_components)
        sum_j w_ij y_j; added to.
    totals : ndarray of float64, shape (rows,)
        sum_j w_ij; added to.
    """
    stop = first + page.shape[0]
    for r in range(indptr.shape[0] - 1):
        e = cursor[r]  # tails ascend, so the tails in one page are consecutive
        while e < indptr[r + 1] and tails[e] < stop:
            totals[r] += weights[e]
            for c in range(page.shape[1]):
                sums[r, c] += weights[e] * page[tails[e] - first, c]
            e += 1
        cursor[r] = e


def smooth(y: np.ndarray, sums: np.ndarray, totals: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Move rows half-way to the weighted mean of their neighbours.

    Parameters
    ----------
    y : ndarray of float32, shape (rows, n_components)
    sums, totals : ndarray of float64
        From `add_neighbors`.

    Returns
    -------
    moved : ndarray of float32, shape (rows, n_components)
    moments : ndarray of float64, shape (6, n_components)
        For `residual`: sums over rows of d, d y, d y^2, d p, d p^2 and d y p, where d is the row's degree and p its
        neighbours' mean.
    """
    mean = np.where(totals[:, None] > 0, sums / np.maximum(totals, 1e-300)[:, None], y)
    terms = np.broadcast_arrays(1.0, y, np.square(y, dtype=np.float64), mean, mean**2, y * mean)
    moments = np.stack([(totals[:, None] * term).sum(axis=0) for term in terms])
    return (0.5 * (y + mean)).astype(np.float32), moments


def residual(moments: np.ndarray) -> float | None:
    """Return how far coordinates are from being eigenvectors of the random walk on the graph, P = D^-1 W.

    Parameters
    ----------
    moments : ndarray of float64, shape (6, n_components)
        From `smooth`, added up over all rows.

    Returns
    -------
    float or None
        The greatest |P y - lambda y| / |y| of all components; lambda is Rayleigh's quotient, y is centred, lengths are
        weighted by degree. An eigenvector has 0, noise about 1. None if no component varies or there are no edges.
    """
    moments = moments[:, moments[0] > 0]
    d, y, yy, p, pp, yp = moments = moments[:, moments[2] - moments[1] ** 2 / moments[0] > EQUAL * moments[2]]
    if not moments.size:
        return None
    length = yy - y * y / d
    quotient = (yp - y * p / d) / length
    return float(np.sqrt(np.maximum((pp - p * p / d) / length - quotient**2, 0)).max())


def into_box(y: np.ndarray, low: np.ndarray, high: np.ndarray, seed: int, first: int) -> np.ndarray:
    """Stretch coordinates to the box [0, SPAN] in each axis, and add a little jitter, which separates equal
    coordinates.

    Parameters
    ----------
    y : ndarray of float, shape (n, n_components)
        Coordinates of rows `first`, `first` + 1, ...
    low, high : ndarray of float64, shape (n_components,)
        The least and the greatest coordinates of all rows.
    seed, first : int
    """
    stretched = SPAN * (y.astype(np.float64) - low) / np.where(high > low, high - low, 1)
    rows = np.arange(first, first + len(y))
    return (stretched + (random_box(seed, rows, y.shape[1]) / SPAN - 0.5) * 1e-3).astype(np.float32)


def random_box(seed: int, rows: np.ndarray, n_components: int) -> np.ndarray:
    """Draw coordinates uniformly from the box [0, SPAN]."""
    counters = rows[:, None] * n_components + np.arange(n_components)
    bits = hashing.draws(seed, hashing.RANDOM_BOX, counters.ravel())
    return SPAN * hashing.uniform(bits).reshape(len(rows), n_components)


def principal_axes(sample: np.ndarray, n_components: int, max_dims: int = 4096) -> tuple[np.ndarray, np.ndarray]:
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
                block = sample[start : start + 4096] - mean
                covariance += block.T @ block
            _, vectors = np.linalg.eigh(covariance)
    axes = np.zeros((sample.shape[1], n_components))
    count = min(n_components, vectors.shape[1])
    axes[:, :count] = vectors[:, ::-1][:, :count]
    flip = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(n_components)])
    return mean, axes * np.where(flip == 0, 1, flip)


@nb.njit(cache=True, nogil=True)
def project(x, mean, axes, out):
    """Project rows on axes, row by row, so that the result for a row does not depend on the others."""
    for i in range(x.shape[0]):
        out[i, :] = 0
        for j in range(x.shape[1]):
            v = np.float64(x[i, j]) - mean[j]
            for c in range(axes.shape[1]):
                out[i, c] += v * axes[j, c]
