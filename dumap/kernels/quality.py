"""Exact neighbours, found block by block, and measures of a map against them."""

from __future__ import annotations

import numba as nb
import numpy as np


@nb.njit(cache=True, nogil=True)
def insert(indices, distances, i, d):
    """Insert id i at distance d into a full list, sorted by distance and id."""
    at = len(indices) - 1
    while at > 0 and (distances[at - 1] > d or (distances[at - 1] == d and indices[at - 1] > i)):
        indices[at], distances[at] = indices[at - 1], distances[at - 1]
        at -= 1
    indices[at], distances[at] = i, d


@nb.njit(cache=True, nogil=True)
def keep_nearest(block, ids, skip, indices, distances):
    """Insert a block of distances into lists of the nearest ids. Of equal distances the lower id comes first.

    Parameters
    ----------
    block : ndarray of float, shape (queries, n)
    ids : ndarray of int64, shape (n,)
        Ids of the block's columns.
    skip : ndarray of int64, shape (queries,)
        Id that each query leaves out: the query's own.
    indices, distances : ndarray, shape (queries, k)
        Ascending; written.
    """
    k = indices.shape[1]
    for q in range(block.shape[0]):
        worst = distances[q, k - 1]
        for j in range(block.shape[1]):
            d = block[q, j]
            if not d <= worst:
                continue
            i = ids[j]
            if i == skip[q] or i < 0 or (d == worst and i > indices[q, k - 1]):
                continue
            insert(indices[q], distances[q], i, d)
            worst = distances[q, k - 1]


@nb.njit(cache=True, nogil=True)
def count_nearer(block, ids, skip, limits, counts):
    """Count, for each query, the rows of a block between one limit and the next: a histogram of distances.

    Its cumulative sums tell how many rows are nearer than each limit, hence the ranks of a map's neighbours.

    Parameters
    ----------
    block : ndarray of float, shape (queries, n)
    ids : ndarray of int64, shape (n,)
    skip : ndarray of int64, shape (queries,)
    limits : ndarray of float32, shape (queries, m)
        Ascending.
    counts : ndarray of int64, shape (queries, m)
        Added to.
    """
    m = limits.shape[1]
    for q in range(block.shape[0]):
        for j in range(block.shape[1]):
            d = block[q, j]
            if ids[j] == skip[q] or ids[j] < 0 or d >= limits[q, m - 1]:
                continue
            low, high = 0, m - 1  # bisect for the first limit beyond d
            while low < high:
                middle = (low + high) >> 1
                if d < limits[q, middle]:
                    high = middle
                else:
                    low = middle + 1
            counts[q, low] += 1


def squared_distances(queries: np.ndarray, x: np.ndarray, angular: bool = False) -> np.ndarray:
    """Return squared Euclidean distances by one matrix product.

    The product is in float64, since its terms cancel if rows lie far from the origin.

    Parameters
    ----------
    queries : ndarray of float64, shape (m, dims)
    x : ndarray of float64, shape (n, dims)
    angular : bool
        Rows have unit length or are zero. A zero row counts as at a right angle to all rows that are not zero.

    Returns
    -------
    ndarray of float64, shape (m, n)
    """
    query_lengths, lengths = np.einsum("ij,ij->i", queries, queries), np.einsum("ij,ij->i", x, x)
    d = queries @ x.T
    d *= -2
    d += lengths[None, :]
    d += query_lengths[:, None]
    if angular:
        d[query_lengths == 0, :], d[:, lengths == 0] = 2, 2
        d[np.ix_(query_lengths == 0, lengths == 0)] = 0
    return np.maximum(d, 0, out=d)


@nb.njit(nogil=True)
def metric_distances(queries, x, distance, arguments, out):
    """Fill `out` (m, n) with a metric's distances, one pair at a time."""
    for q in range(queries.shape[0]):
        for j in range(x.shape[0]):
            out[q, j] = distance(queries[q], x[j], *arguments)


def overlap(listed: np.ndarray, exact: np.ndarray) -> np.ndarray:
    """Return the share of each row's exact neighbours that were listed, (rows,)."""
    return (listed[:, :, None] == exact[:, None, :]).any(axis=1).mean(axis=1)


def trustworthiness(ranks: np.ndarray, rows: int) -> float | None:
    """Return a map's trustworthiness (Venna and Kaski 2001), over sampled rows.

    1 - 2 / (k (2n - 3k - 1)) times the mean over rows of the sum of max(0, rank - k). It is None if it is not defined:
    without queries, or if k is not below half the rows, as in scikit-learn.

    Parameters
    ----------
    ranks : ndarray of int64, shape (queries, k)
        Rank, by the metric, of each of the k nearest rows in the map: 1 for the nearest.
    rows : int
    """
    queries, k = ranks.shape
    if not queries or not 0 < 2 * k < rows:
        return None
    scale = k * (2 * rows - 3 * k - 1)
    return float(1 - 2 / scale * np.maximum(ranks - k, 0).sum(axis=1).mean())
