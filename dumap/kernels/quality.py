"""Exact neighbours, found block by block, and measures of a map against them."""

from __future__ import annotations

import numba as nb
import numpy as np


@nb.njit(cache=True, nogil=True)
def insert_by_id(indices, distances, i, d):
    """Insert id i at distance d into a full list, sorted by distance and id."""
    slot = len(indices) - 1
    while slot > 0 and (distances[slot - 1] > d or (distances[slot - 1] == d and indices[slot - 1] > i)):
        indices[slot], distances[slot] = indices[slot - 1], distances[slot - 1]
        slot -= 1
    indices[slot], distances[slot] = i, d


@nb.njit(cache=True, nogil=True)
def keep_nearest(block_distances, ids, skipped_ids, indices, distances):
    """Insert a block of distances into lists of the nearest ids. Of equal distances the lower id comes first.

    Parameters
    ----------
    block_distances : ndarray of float, shape (queries, n)
    ids : ndarray of int64, shape (n,)
        Ids of the block's columns.
    skipped_ids : ndarray of int64, shape (queries,)
        Id that each query leaves out: the query's own.
    indices, distances : ndarray, shape (queries, k)
        Ascending; written.
    """
    k = indices.shape[1]
    for q in range(block_distances.shape[0]):
        kth_distance = distances[q, k - 1]
        for j in range(block_distances.shape[1]):
            d = block_distances[q, j]
            if not d <= kth_distance:
                continue
            i = ids[j]
            if i == skipped_ids[q] or i < 0 or (d == kth_distance and i > indices[q, k - 1]):
                continue
            insert_by_id(indices[q], distances[q], i, d)
            kth_distance = distances[q, k - 1]


@nb.njit(cache=True, nogil=True)
def count_between_limits(block_distances, ids, skipped_ids, limits, counts):
    """Count, for each query, the rows of a block between one limit and the next: a histogram of distances.

    Its cumulative sums tell how many rows are nearer than each limit, hence the ranks of a map's neighbours.

    Parameters
    ----------
    block_distances : ndarray of float, shape (queries, n)
    ids : ndarray of int64, shape (n,)
    skipped_ids : ndarray of int64, shape (queries,)
    limits : ndarray of float32, shape (queries, m)
        Ascending.
    counts : ndarray of int64, shape (queries, m)
        Added to.
    """
    m = limits.shape[1]
    for q in range(block_distances.shape[0]):
        for j in range(block_distances.shape[1]):
            d = block_distances[q, j]
            if ids[j] == skipped_ids[q] or ids[j] < 0 or d >= limits[q, m - 1]:
                continue
            low, high = 0, m - 1  # bisect for the first limit beyond d
            while low < high:
                middle = (low + high) >> 1
                if d < limits[q, middle]:
                    high = middle
                else:
                    low = middle + 1
            counts[q, low] += 1


def squared_distances(queries: np.ndarray, x: np.ndarray, is_angular: bool = False) -> np.ndarray:
    """Return squared Euclidean distances by one matrix product.

    The product is in float64, since its terms cancel if rows lie far from the origin.

    Parameters
    ----------
    queries : ndarray of float64, shape (m, dims)
    x : ndarray of float64, shape (n, dims)
    is_angular : bool
        Rows have unit length or are zero. A zero row counts as at a right angle to all rows that are not zero.

    Returns
    -------
    ndarray of float64, shape (m, n)
    """
    squared_query_lengths, squared_lengths = np.einsum("ij,ij->i", queries, queries), np.einsum("ij,ij->i", x, x)
    squared = queries @ x.T
    squared *= -2
    squared += squared_lengths[None, :]
    squared += squared_query_lengths[:, None]
    if is_angular:
        squared[squared_query_lengths == 0, :], squared[:, squared_lengths == 0] = 2, 2
        squared[np.ix_(squared_query_lengths == 0, squared_lengths == 0)] = 0
    return np.maximum(squared, 0, out=squared)


@nb.njit(nogil=True)
def write_metric_distances(queries, x, distance, metric_arguments, out):
    """Fill `out` (m, n) with a metric's distances, one pair at a time."""
    for q in range(queries.shape[0]):
        for j in range(x.shape[0]):
            out[q, j] = distance(queries[q], x[j], *metric_arguments)


def listed_share(listed_ids: np.ndarray, exact_ids: np.ndarray) -> np.ndarray:
    """Return the share of each row's exact neighbours that were listed, (rows,)."""
    return (listed_ids[:, :, None] == exact_ids[:, None, :]).any(axis=1).mean(axis=1)


def trustworthiness(ranks: np.ndarray, n_rows: int) -> float | None:
    """Return a map's trustworthiness (Venna and Kaski 2001), over sampled rows.

    1 - 2 / (k (2n - 3k - 1)) times the mean over rows of the sum of max(0, rank - k). It is None if it is not defined:
    without queries, or if k is not below half the rows, as in scikit-learn.

    Parameters
    ----------
    ranks : ndarray of int64, shape (queries, k)
        Rank, by the metric, of each of the k nearest rows in the map: 1 for the nearest.
    n_rows : int
    """
    n_queries, k = ranks.shape
    if not n_queries or not 0 < 2 * k < n_rows:
        return None
    scale = k * (2 * n_rows - 3 * k - 1)
    return float(1 - 2 / scale * np.maximum(ranks - k, 0).sum(axis=1).mean())
