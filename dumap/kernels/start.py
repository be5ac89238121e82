"""The spectral start, on a graph coarsened to a fraction of its rows.

Seeds are drawn from the rows; labels spread from them along the strongest edges; rows of one label make one
row of the coarse graph, whose smoothest eigenvectors, interpolated and smoothed, are the coordinates.
"""

from __future__ import annotations

import numba as nb
import numpy as np
import scipy.sparse as sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackNoConvergence, eigsh

from dumap.kernels import hashing
from dumap.kernels.threads import one_thread

SPAN = 10.0
"""Side of the box that first coordinates fill."""
SPARE = 2
"""Eigenvectors found beyond those wanted, and to the last bit: close or repeated eigenvalues are missed otherwise."""
WEIGHT_UNIT = float(1 << 20)
"""Coarse weights are added up as integers of 2**-20, so that order cannot matter."""


@nb.njit(cache=True, nogil=True)
def spread(indptr, tails, weights, first, labels, out):
    """Give each unlabelled row of a shard the label at the end of its strongest labelled edge.

    Parameters
    ----------
    indptr, tails, weights : ndarray
        The shard's edges.
    first : int
        The shard's first row.
    labels : ndarray of int64, shape (all rows,)
        -1 where there is none; only read.
    out : ndarray of int64, shape (all rows,)
        The shard's rows are written.

    Returns
    -------
    int
        Rows newly labelled.
    """
    new = 0
    for r in range(indptr.shape[0] - 1):
        i = first + r
        out[i] = labels[i]
        if labels[i] >= 0:
            continue
        best = np.float32(0)
        for e in range(indptr[r], indptr[r + 1]):
            label = labels[tails[e]]
            if label >= 0 and weights[e] > best:
                best = weights[e]
                out[i] = label
        new += out[i] >= 0
    return new


@nb.njit(cache=True, nogil=True)
def lowest_of_all(indptr, tails, first, labels, seed):
    """Find a shard's unlabelled rows whose hash is lower than all their neighbours'.

    Where labels have spread as far as they can, every component without one has such a row.

    Returns
    -------
    ndarray of int64
    """
    base = hashing.key(seed, hashing.SEEDS)
    out = np.empty(indptr.shape[0] - 1, np.int64)
    found = 0
    for r in range(indptr.shape[0] - 1):
        i = first + r
        if labels[i] >= 0:
            continue
        own = hashing.draw(base, i)
        lower = np.int64(0)
        for e in range(indptr[r], indptr[r + 1]):
            other = hashing.draw(base, tails[e])
            if other < own or (own == other and tails[e] < i):
                lower += 1
        if lower == 0:
            out[found] = i
            found += 1
    return out[:found]


def coarse_edges(
    indptr: np.ndarray, tails: np.ndarray, weights: np.ndarray, first: int, labels: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Add up a shard's edges by the labels at their ends.

    Returns
    -------
    pairs : ndarray of int64, shape (m,)
        label of the head * count + label of the tail, ascending.
    sums : ndarray of int64, shape (m,)
        In units of 2**-20.
    """
    head = labels[first + np.repeat(np.arange(len(indptr) - 1), np.diff(indptr))]
    pair = head * count + labels[tails]
    units = np.rint(weights.astype(np.float64) * WEIGHT_UNIT).astype(np.int64)
    return add_pairs(pair, units)


def add_pairs(pair: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort pairs and add up those that are equal."""
    order = np.argsort(pair, kind="stable")
    pair, units = pair[order], units[order]
    begin = np.flatnonzero(np.concatenate([[True], pair[1:] != pair[:-1]])) if len(pair) else np.empty(0, np.int64)
    return pair[begin], np.add.reduceat(units, begin) if len(begin) else units


def _connected(matrix: sparse.csr_matrix, n_components: int, seed: int) -> tuple[np.ndarray, float]:
    """Embed one connected graph by the eigenvectors of its normalised Laplacian."""
    size = matrix.shape[0]
    degree = np.asarray(matrix.sum(axis=1)).ravel()
    scale = 1.0 / np.sqrt(np.maximum(degree, 1e-300))
    normal = sparse.diags(scale) @ matrix @ sparse.diags(scale)
    k = n_components + 1 + SPARE
    residual = 0.0
    if size <= max(4 * k, 64):
        values, vectors = np.linalg.eigh(normal.toarray())
        vectors = vectors[:, ::-1][:, :k]
    else:
        v0 = hashing.uniform(hashing.draws(seed, hashing.SEEDS, np.arange(size))) - 0.5
        try:
            values, vectors = eigsh(normal, k, which="LA", v0=v0, ncv=min(size, max(2 * k + 1, 40)), tol=0, maxiter=300)
        except ArpackNoConvergence as stalled:
            values, vectors = stalled.eigenvalues, stalled.eigenvectors
        order = np.argsort(-values, kind="stable")
        values, vectors = values[order], vectors[:, order]
        if len(values):
            residual = float(np.abs(normal @ vectors - vectors * values).max())
    out = np.zeros((size, n_components))
    found = min(n_components, vectors.shape[1] - 1) if vectors.shape[1] else 0
    if found > 0:
        out[:, :found] = vectors[:, 1 : found + 1]
    if found < n_components:  # a graph of fewer rows, or eigenvectors that did not converge
        noise = hashing.uniform(hashing.draws(seed, hashing.RANDOM_START, np.arange(size * n_components)))
        out[:, found:] = (noise.reshape(size, n_components)[:, found:] - 0.5) / np.sqrt(size)
    out *= scale[:, None]
    flip = np.sign(out[np.abs(out).argmax(axis=0), np.arange(n_components)])
    out *= np.where(flip == 0, 1, flip)
    return out / max(np.abs(out).max(), 1e-300), residual


def spectral(
    pairs: np.ndarray, sums: np.ndarray, sizes: np.ndarray, n_components: int, seed: int
) -> tuple[np.ndarray, int, float]:
    """Embed the coarse graph, each connected component by itself.

    Components lie on a spiral around the largest, each in a ball of volume in proportion to its rows.

    Parameters
    ----------
    pairs, sums : ndarray of int64
        From `coarse_edges`.
    sizes : ndarray of int64, shape (coarse rows,)
        Rows of each label.
    n_components, seed : int

    Returns
    -------
    coordinates : ndarray of float64, shape (coarse rows, n_components)
    components : int
    residual : float
        The greatest |A v - lambda v| of the eigenvectors.
    """
    count = len(sizes)
    matrix = sparse.csr_matrix((sums / WEIGHT_UNIT, (pairs // count, pairs % count)), shape=(count, count))
    components, member = connected_components(matrix, directed=False)
    rows = np.bincount(member, weights=sizes, minlength=components)
    out = np.zeros((count, n_components))
    worst, filled = 0.0, 0.0
    with one_thread():
        for place, c in enumerate(np.argsort(-rows, kind="stable")):
            own = np.flatnonzero(member == c) if components > 1 else np.arange(count)
            inner, residual = _connected(matrix[own][:, own], n_components, seed)
            worst = max(worst, residual)
            radius = float(rows[c] / rows.max()) ** (1 / max(n_components, 2))
            centre = np.zeros(n_components)
            if place:
                filled += float(rows[c] / rows.max())
                away = 1.2 + radius + np.sqrt(filled)
                angle = 2.399963229728653 * place
                centre[0] = away * np.cos(angle)
                centre[1 % n_components] += away * np.sin(angle) if n_components > 1 else 0.0
            out[own] = centre + radius * inner
    return out, int(components), worst


@nb.njit(cache=True, nogil=True)
def smooth(indptr, tails, weights, first, y, out):
    """Move each row of a shard half-way to the weighted mean of its neighbours."""
    components = y.shape[1]
    for r in range(indptr.shape[0] - 1):
        i = first + r
        total = 0.0
        for c in range(components):
            out[i, c] = 0.0
        for e in range(indptr[r], indptr[r + 1]):
            total += weights[e]
            for c in range(components):
                out[i, c] += weights[e] * y[tails[e], c]
        for c in range(components):
            out[i, c] = 0.5 * (y[i, c] + out[i, c] / total) if total > 0 else y[i, c]


def into_box(y: np.ndarray, seed: int, rows: np.ndarray) -> np.ndarray:
    """Stretch coordinates to the box [0, SPAN] in each axis, and part equal ones by a little noise.

    Parameters
    ----------
    y : ndarray of float64, shape (n, n_components)
    seed : int
    rows : ndarray of int64, shape (n,)
        Keys of the noise.
    """
    low, high = y.min(axis=0), y.max(axis=0)
    y = SPAN * (y - low) / np.where(high > low, high - low, 1)
    return (y + (random_box(seed, rows, y.shape[1]) / SPAN - 0.5) * 1e-3).astype(np.float32)


def random_box(seed: int, rows: np.ndarray, n_components: int) -> np.ndarray:
    """Draw coordinates evenly from the box [0, SPAN]."""
    counters = rows[:, None] * n_components + np.arange(n_components)
    bits = hashing.draws(seed, hashing.NOISE, counters.ravel())
    return SPAN * hashing.uniform(bits).reshape(len(rows), n_components)


def principal_axes(sample: np.ndarray, n_components: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the mean and the first principal axes of a sample, signs fixed.

    Parameters
    ----------
    sample : ndarray of float32, shape (m, dims)
    n_components : int

    Returns
    -------
    mean : ndarray of float64, shape (dims,)
    axes : ndarray of float64, shape (dims, n_components)
        Columns of zeros beyond `dims`.
    """
    with one_thread():
        mean = sample.mean(axis=0, dtype=np.float64)
        covariance = np.zeros((sample.shape[1], sample.shape[1]))
        for start in range(0, len(sample), 4096):
            block = sample[start : start + 4096] - mean
            covariance += block.T @ block
        _, vectors = np.linalg.eigh(covariance)
    axes = np.zeros((sample.shape[1], n_components))
    found = min(n_components, sample.shape[1])
    axes[:, :found] = vectors[:, ::-1][:, :found]
    flip = np.sign(axes[np.abs(axes).argmax(axis=0), np.arange(n_components)])
    return mean, axes * np.where(flip == 0, 1, flip)


@nb.njit(cache=True, nogil=True)
def project(x, mean, axes, out):
    """Project rows to axes, each row by itself."""
    for i in range(x.shape[0]):
        out[i, :] = 0
        for j in range(x.shape[1]):
            v = np.float64(x[i, j]) - mean[j]
            for c in range(axes.shape[1]):
                out[i, c] += v * axes[j, c]
