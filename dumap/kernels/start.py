"""The spectral start, on a graph coarsened to a fraction of its rows.

Seeds are drawn from the rows; labels spread from them along the strongest edges; rows of one label make one
row of the coarse graph, whose smoothest eigenvectors, interpolated and smoothed, are the coordinates. A coarse
graph of many rows is laid out first, from these eigenvectors, as the whole graph will be.
"""

from __future__ import annotations

import numba as nb
import numpy as np
import scipy.sparse as sparse
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import ArpackNoConvergence, eigsh

from dumap.kernels import hashing, layout
from dumap.kernels.layout import Descent
from dumap.kernels.threads import one_thread

SPAN = 10.0
"""Side of the box that first coordinates fill."""
SPARE = 2
"""Eigenvectors found beyond those wanted, and to the last bit: close or repeated eigenvalues are missed otherwise."""
UNLABELLED = -1
"""A row's label: the number of a seed, or -2 - i where no seed reaches, i being a row near it with the lowest hash."""
STRONGEST = 256
COARSE_EDGES = 1 << 21
"""Edges that the coarse graph keeps at the most, its rows' strongest, so that memory has a bound."""
LAID_OUT = 16_384
"""Rows from which on the coarse graph is laid out: the more rows, the more epochs it takes to move what is far."""
COARSE_EPOCHS = 500
COARSE_DUE = 8.0
"""Edges that a coarse row is due in an epoch, those to itself among them."""
_MOST_SHARE = 1.99  # of what 16 bits hold
WEIGHT_UNIT = float(1 << 20)
"""Coarse weights are added up as integers of 2**-20, so that order cannot matter."""


@nb.njit(cache=True, nogil=True)
def look_up(indptr, tails, cursor, first, page, out):
    """Look up the labels at the ends of a shard's edges, those that end in one page of rows.

    Parameters
    ----------
    indptr, tails : ndarray
        The shard's edges; each row's ascend.
    cursor : ndarray of int64, shape (rows,)
        Each row's first edge that ends in the page or after it; moved behind it. Pages come in order.
    first : int
        The page's first row.
    page : ndarray of int, shape (rows of the page,)
    out : ndarray of int, shape (edges,)
        Written where edges end in the page.
    """
    stop = first + page.shape[0]
    for r in range(indptr.shape[0] - 1):
        e = cursor[r]
        while e < indptr[r + 1] and tails[e] < stop:
            out[e] = page[tails[e] - first]
            e += 1
        cursor[r] = e


@nb.njit(cache=True, nogil=True)
def spread(indptr, weights, ends, first, labels):
    """Give each unlabelled row of a shard the label at the end of its strongest labelled edge.

    A row without edges is labelled as one that no seed reaches: by itself.

    Parameters
    ----------
    indptr, weights : ndarray
        The shard's edges.
    ends : ndarray of int, shape (edges,)
        Labels at their ends.
    first : int
        The shard's first row.
    labels : ndarray of int, shape (rows,)
        The shard's: `UNLABELLED` where there is none; written.

    Returns
    -------
    new, left : int
        Rows newly labelled, and rows still without.
    """
    new, left = 0, 0
    for r in range(indptr.shape[0] - 1):
        if indptr[r] == indptr[r + 1]:
            new += labels[r] >= UNLABELLED
            labels[r] = -2 - (first + r)
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
def label_lowest(indptr, tails, first, labels, seed):
    """Label a shard's unlabelled rows whose hash is lower than all their neighbours': each by itself.

    Where labels have spread as far as they can, every component without one has such a row.

    Parameters
    ----------
    indptr, tails : ndarray
        The shard's edges.
    first : int
        The shard's first row.
    labels : ndarray of int, shape (rows,)
        The shard's; written.
    seed : int

    Returns
    -------
    new, left : int
        Rows newly labelled, and rows still without.
    """
    base = hashing.key(seed, hashing.SEEDS)
    new, left = 0, 0
    for r in range(indptr.shape[0] - 1):
        i = first + r
        if labels[r] != UNLABELLED:
            continue
        own = hashing.draw(base, i)
        lower = np.int64(0)
        for e in range(indptr[r], indptr[r + 1]):
            other = hashing.draw(base, tails[e])
            if other < own or (own == other and tails[e] < i):
                lower += 1
        if lower == 0:
            labels[r] = -2 - i
            new += 1
        else:
            left += 1
    return new, left


def draw_seeds(seed: int, first: int, stop: int, wanted: int, rows: int) -> np.ndarray:
    """Draw about `wanted` of `rows` rows by their hashes, those in [first, stop)."""
    ids = np.arange(first, stop)
    if wanted >= rows:
        return ids
    limit = np.uint64(int(wanted / rows * 2**64))
    return ids[hashing.draws(seed, hashing.SEEDS, ids) < limit]


def coarse_edges(
    indptr: np.ndarray, weights: np.ndarray, labels: np.ndarray, ends: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Add up a shard's edges by the labels at their ends, those that seeds gave.

    Parameters
    ----------
    indptr, weights : ndarray
        The shard's edges.
    labels : ndarray of int, shape (rows,)
        The shard's.
    ends : ndarray of int, shape (edges,)
        Labels at the ends of edges.
    count : int
        Seeds of the whole graph.

    Returns
    -------
    pairs : ndarray of int64, shape (m,)
        label of the head * count + label of the tail, ascending.
    sums : ndarray of int64, shape (m,)
        In units of 2**-20.
    """
    heads = np.repeat(labels, np.diff(indptr)).astype(np.int64)
    seeded = heads >= 0  # then so are their ends
    units = np.rint(weights[seeded].astype(np.float64) * WEIGHT_UNIT).astype(np.int64)
    return add_pairs(heads[seeded] * count + ends[seeded], units)


def add_pairs(pair: np.ndarray, units: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort pairs and add up those that are equal."""
    order = np.argsort(pair, kind="stable")
    pair, units = pair[order], units[order]
    begin = np.flatnonzero(np.concatenate([[True], pair[1:] != pair[:-1]])) if len(pair) else np.empty(0, np.int64)
    return pair[begin], np.add.reduceat(units, begin) if len(begin) else units


def _connected(matrix: sparse.csr_matrix, n_components: int, seed: int) -> tuple[np.ndarray, float]:
    """Embed one connected graph by the eigenvectors of its normalised Laplacian."""
    size = matrix.shape[0]
    if size == 1:
        return np.zeros((1, n_components)), 0.0
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


def most_edges(count: int) -> int:
    """Return how many edges a row of a coarse graph of `count` rows keeps at the most."""
    return min(STRONGEST, COARSE_EDGES // max(count, 1))


def strongest(pairs: np.ndarray, sums: np.ndarray, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Keep the `most_edges` greatest sums of each head, the lower tails among equal ones; pairs stay ascending."""
    most = most_edges(count)
    heads = pairs // count
    degrees = np.bincount(heads - heads[0]) if len(heads) else np.empty(0, np.int64)
    if degrees.max(initial=0) <= most:
        return pairs, sums
    order = np.lexsort((pairs, -sums, heads))
    rank = np.arange(len(order)) - np.repeat(np.cumsum(degrees) - degrees, degrees)
    kept = np.sort(order[rank < most])
    return pairs[kept], sums[kept]


def _matrix(pairs: np.ndarray, sums: np.ndarray, count: int) -> sparse.csr_matrix:
    matrix = sparse.csr_matrix((sums / WEIGHT_UNIT, (pairs // count, pairs % count)), shape=(count, count))
    return matrix.maximum(matrix.T).tocsr()


def spectral(
    pairs: np.ndarray, sums: np.ndarray, sizes: np.ndarray, n_components: int, seed: int
) -> tuple[np.ndarray, int, float]:
    """Embed the coarse graph, each connected component by itself.

    Components lie on a spiral around the largest, each in a ball of volume in proportion to its rows.

    Parameters
    ----------
    pairs, sums : ndarray of int64
        From `coarse_edges`; of a pair that is there one way only, the other has the same sum.
    sizes : ndarray of int64, shape (coarse rows,)
        Rows of each label.
    n_components, seed : int

    Returns
    -------
    coordinates : ndarray of float64, shape (coarse rows, n_components)
        In the box [0, SPAN]; not a number where a label has no rows.
    components : int
    residual : float
        The greatest |A v - lambda v| of the eigenvectors.
    """
    count, matrix = len(sizes), _matrix(pairs, sums, len(sizes))
    filled = np.flatnonzero(sizes)
    components, member = connected_components(matrix[filled][:, filled], directed=False)
    order = filled[np.argsort(member, kind="stable")]
    matrix, stops = sparse.csr_matrix(matrix[order][:, order]), np.cumsum(np.bincount(member, minlength=components))
    rows = np.bincount(member, weights=sizes[filled], minlength=components)
    out = np.full((count, n_components), np.nan)
    worst, area = 0.0, 0.0
    with one_thread():
        for place, c in enumerate(np.argsort(-rows, kind="stable")):
            own = slice(stops[c - 1] if c else 0, stops[c])
            inner, short = _connected(matrix[own, own], n_components, seed)
            worst = max(worst, short)
            radius = float(rows[c] / rows.max()) ** (1 / max(n_components, 2))
            centre = np.zeros(n_components)
            if place:
                area += float(rows[c] / rows.max())
                away = 1.2 + radius + np.sqrt(area)
                angle = 2.399963229728653 * place
                centre[0] = away * np.cos(angle)
                centre[1 % n_components] += away * np.sin(angle) if n_components > 1 else 0.0
            out[order[own]] = centre + radius * inner
    if components:
        low, high = np.nanmin(out, axis=0), np.nanmax(out, axis=0)
        out = SPAN * (out - low) / np.where(high > low, high - low, 1)
    return out, int(components), worst


def lay_out(pairs: np.ndarray, sums: np.ndarray, sizes: np.ndarray, y: np.ndarray, descent: Descent) -> np.ndarray:
    """Lay the coarse graph out, as all rows will be: each coarse row stands for its rows.

    An edge is due in proportion to its share of its head's weight; negatives are rows of the whole set.

    Parameters
    ----------
    pairs, sums, sizes : ndarray of int64
        As `spectral`'s.
    y : ndarray of float64, shape (coarse rows, n_components)
        From `spectral`.
    descent : Descent
        The layout's; its number of epochs is not taken.

    Returns
    -------
    ndarray of float64, shape (coarse rows, n_components)
        In units of the map; not a number where a label has no rows.
    """
    filled = np.flatnonzero(sizes)
    matrix, stops = _matrix(pairs, sums, len(sizes))[filled][:, filled], np.cumsum(sizes[filled])
    matrix.sort_indices()
    degree = np.maximum(np.asarray(matrix.sum(axis=1)).ravel(), 1e-300)
    shares = np.minimum(COARSE_DUE / 2 * matrix.data / np.repeat(degree, np.diff(matrix.indptr)), _MOST_SHARE)
    indptr, weights = matrix.indptr.astype(np.int64), shares.astype(np.float32)
    edges = layout.pack(indptr, matrix.indices, weights, 0, 1.0, COARSE_EPOCHS, descent.seed)
    shared = descent._replace(n_epochs=COARSE_EPOCHS)
    here = y[filled].astype(np.float32)
    m, v, after = np.zeros_like(here), np.zeros_like(here), np.empty_like(here)
    for epoch in range(COARSE_EPOCHS):
        drawn = np.searchsorted(stops, layout.pool_rows(descent.seed, epoch, int(stops[-1])), side="right")
        pool = layout.lay_pool(here[drawn])
        layout.generation(shared, epoch, 0, len(here), 0, 0, edges, here, m, v, pool, after)
        here, after = after, here
    out = np.full(y.shape, np.nan)
    out[filled] = here
    return out


def interpolate(labels: np.ndarray, coarse: np.ndarray, seed: int) -> np.ndarray:
    """Place rows where their labels are: seeds by the coarse graph, others anywhere in the box, by hash.

    Parameters
    ----------
    labels : ndarray of int, shape (n,)
    coarse : ndarray of float64, shape (coarse rows, n_components)
    seed : int

    Returns
    -------
    ndarray of float32, shape (n, n_components)
    """
    y = coarse[np.maximum(labels, 0)] if len(coarse) else np.empty((len(labels), coarse.shape[1]))
    apart = labels < 0
    y[apart] = random_box(seed, -2 - labels[apart].astype(np.int64), coarse.shape[1])
    return y.astype(np.float32)


@nb.njit(cache=True, nogil=True)
def pull(indptr, tails, weights, cursor, first, page, sums, totals):
    """Add up the coordinates at the ends of a shard's edges, by weight, those that end in one page of rows.

    Parameters
    ----------
    indptr, tails, weights, cursor, first
        As `look_up`'s.
    page : ndarray of float32, shape (rows of the page, n_components)
    sums : ndarray of float64, shape (rows, n_components)
        Added to.
    totals : ndarray of float64, shape (rows,)
        Weights are added to it.
    """
    stop = first + page.shape[0]
    for r in range(indptr.shape[0] - 1):
        e = cursor[r]
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
        From `pull`.

    Returns
    -------
    moved : ndarray of float32, shape (rows, n_components)
    moments : ndarray of float64, shape (6, n_components)
        For `residual`: sums over rows of d, d y, d y^2, d p, d p^2 and d y p; d is the row's degree, p the mean.
    """
    mean = np.where(totals[:, None] > 0, sums / np.maximum(totals, 1e-300)[:, None], y)
    terms = np.broadcast_arrays(1.0, y, np.square(y, dtype=np.float64), mean, mean**2, y * mean)
    moments = np.stack([(totals[:, None] * term).sum(axis=0) for term in terms])
    return (0.5 * (y + mean)).astype(np.float32), moments


def residual(moments: np.ndarray) -> float:
    """Return how far coordinates are from eigenvectors of the walk on the graph, P = D^-1 W.

    Parameters
    ----------
    moments : ndarray of float64, shape (6, n_components)
        From `smooth`, added up over all rows.

    Returns
    -------
    float
        The greatest |P y - lambda y| / |y| of all components, lambda being Rayleigh's quotient, y centred, lengths
        weighted by degree. 0 is an eigenvector; 1 is about what noise has.
    """
    d, y, yy, p, pp, yp = moments
    d = np.maximum(d, 1e-300)
    length = np.maximum(yy - y * y / d, 1e-300)
    quotient = (yp - y * p / d) / length
    return float(np.sqrt(np.maximum((pp - p * p / d) / length - quotient**2, 0)).max())


def into_box(y: np.ndarray, low: np.ndarray, high: np.ndarray, seed: int, first: int) -> np.ndarray:
    """Stretch coordinates to the box [0, SPAN] in each axis, and part equal ones by a little noise.

    Parameters
    ----------
    y : ndarray of float, shape (n, n_components)
        Of rows `first`, `first` + 1, ...
    low, high : ndarray of float64, shape (n_components,)
        The least and the greatest of all rows.
    seed, first : int
    """
    stretched = SPAN * (y.astype(np.float64) - low) / np.where(high > low, high - low, 1)
    rows = np.arange(first, first + len(y))
    return (stretched + (random_box(seed, rows, y.shape[1]) / SPAN - 0.5) * 1e-3).astype(np.float32)


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
