"""k-means (Lloyd), seeded by k-means++, on one thread, so that a seed determines the result."""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels import hashing
from dumap.kernels.threads import one_thread
from dumap.kernels.vectors import power_near, squared_distance

TRIALS, ROUNDS = 4, 25
"""Rows tried for each first centroid, and the most rounds of Lloyd's algorithm."""


@nb.njit(cache=True, nogil=True)
def _first_rows(x, count, base):
    """Choose the rows of the first centroids by greedy k-means++ (Arthur and Vassilvitskii, SODA 2007).

    Each trial draws a row with probability proportional to its squared distance from the nearest row chosen before. The
    trial that leaves the smallest sum of these distances is chosen. Fewer rows are chosen if fewer rows differ.
    """
    n = len(x)
    chosen = np.empty(count, np.int64)
    nearest, nearest_then = np.full(n, np.inf, np.float32), np.empty((TRIALS, n), np.float32)
    total, trials = np.inf, 1
    for number in range(count):
        best, least_sum = -1, np.inf
        for trial in range(trials):
            bits = hashing.draw(base, TRIALS * number + trial)
            row = np.int64(bits % np.uint64(n))
            if number:
                # Draw row i with probability nearest[i] / total: the row at which the running sum passes `left`.
                left = total * (np.float64(bits >> np.uint64(11)) / 9007199254740992.0)
                for i in range(n):
                    if nearest[i] > 0:
                        row = i
                        left -= nearest[i]
                        if left < 0:
                            break
            distance_sum = 0.0  # the sum of squared distances if this row is chosen
            for i in range(n):
                nearest_then[trial, i] = min(nearest[i], squared_distance(x[i], x[row]))
                distance_sum += nearest_then[trial, i]
            if best < 0 or distance_sum < least_sum:
                best, least_sum, chosen[number] = trial, distance_sum, row
        nearest[:], total, trials = nearest_then[best], least_sum, TRIALS
        if not total > 0:
            return chosen[: number + 1]
    return chosen


@nb.njit(cache=True, nogil=True)
def move_to_means(x, cluster_of, centroids):
    """Move each centroid, in place, to the mean of its rows. A centroid without rows stays.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
    cluster_of : ndarray of int, shape (n,)
        Each row's centroid.
    centroids : ndarray of float32, shape (clusters, dims)
    """
    # Sums are in float64 and in the order of the rows, so that the means depend on the rows alone.
    sums, counts = np.zeros(centroids.shape), np.zeros(len(centroids), np.int64)
    for i in range(len(x)):
        counts[cluster_of[i]] += 1
        row = sums[cluster_of[i]]
        for c in range(x.shape[1]):
            row[c] += x[i, c]
    for k in range(len(centroids)):
        if counts[k]:
            for c in range(x.shape[1]):
                centroids[k, c] = sums[k, c] / counts[k]


def kmeans(x: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Return the centroids of `x`.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
    n_clusters : int
    seed : int

    Returns
    -------
    ndarray of float32, shape (clusters, dims)
        Fewer than `n_clusters` if `x` has fewer distinct rows.
    """
    extent = float(max(x.max(), -x.min()))
    scale = np.float32(1) if 1e-12 < extent < 1e12 else power_near(extent)
    base = hashing.draws(seed, hashing.KMEANS, np.array([len(x)]))[0]
    chosen = _first_rows(x * scale, n_clusters, base)
    if len(chosen) < n_clusters:
        return np.unique(x[chosen], axis=0)
    middle = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    with np.errstate(over="ignore"):
        centred = (x - middle) * scale
    centroids, cluster_of = centred[chosen], np.empty(0, np.int64)
    with one_thread():
        for _ in range(ROUNDS):
            squared = centred @ centroids.T
            squared *= -2
            squared += np.einsum("ij,ij->i", centroids, centroids)
            before, cluster_of = cluster_of, squared.argmin(axis=1)
            if np.array_equal(cluster_of, before):
                break
            move_to_means(centred, cluster_of, centroids)
    return np.unique(centroids / scale + middle, axis=0)
