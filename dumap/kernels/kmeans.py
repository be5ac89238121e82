"""k-means (Lloyd), seeded by k-means++, on one thread, so that a seed determines the result."""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels import hashing
from dumap.kernels.threads import one_thread
from dumap.kernels.vectors import scale_to_one, squared_distance

SEEDING_TRIALS, MAX_ITERATIONS = 4, 25
"""Rows tried for each first centroid, and the most rounds of Lloyd's algorithm."""


@nb.njit(cache=True, nogil=True)
def _choose_seed_rows(x, n_seeds, key):
    """Choose the rows of the first centroids by greedy k-means++ (Arthur and Vassilvitskii, SODA 2007).

    Each trial draws a row with probability proportional to its squared distance from the nearest row chosen before. The
    trial that leaves the smallest sum of these distances is chosen. Fewer rows are chosen if fewer rows differ.
    """
    n = len(x)
    seed_rows = np.empty(n_seeds, np.int64)
    nearest_squared, trial_squared = np.full(n, np.inf, np.float32), np.empty((SEEDING_TRIALS, n), np.float32)
    total, n_trials = np.inf, 1
    for seed_number in range(n_seeds):
        best_trial, best_sum = -1, np.inf
        for trial in range(n_trials):
            bits = hashing.draw_word(key, SEEDING_TRIALS * seed_number + trial)
            row = np.int64(bits % np.uint64(n))
            if seed_number:
                # Draw row i with probability nearest[i] / total: the row at which the running sum passes `remaining`.
                remaining = total * (np.float64(bits >> np.uint64(11)) / 9007199254740992.0)
                for i in range(n):
                    if nearest_squared[i] > 0:
                        row = i
                        remaining -= nearest_squared[i]
                        if remaining < 0:
                            break
            trial_sum = 0.0  # the sum of squared distances if this row is chosen
            for i in range(n):
                trial_squared[trial, i] = min(nearest_squared[i], squared_distance(x[i], x[row]))
                trial_sum += trial_squared[trial, i]
            if best_trial < 0 or trial_sum < best_sum:
                best_trial, best_sum, seed_rows[seed_number] = trial, trial_sum, row
        nearest_squared[:], total, n_trials = trial_squared[best_trial], best_sum, SEEDING_TRIALS
        if not total > 0:
            return seed_rows[: seed_number + 1]
    return seed_rows


@nb.njit(cache=True, nogil=True)
def move_centroids_to_means(x, cluster_of, centroids):
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
    scale = np.float32(1) if 1e-12 < extent < 1e12 else scale_to_one(extent)
    key = hashing.draw_words(seed, hashing.KMEANS, np.array([len(x)]))[0]
    seed_rows = _choose_seed_rows(x * scale, n_clusters, key)
    if len(seed_rows) < n_clusters:
        return np.unique(x[seed_rows], axis=0)
    centre = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    with np.errstate(over="ignore"):
        centred = (x - centre) * scale
    centroids, cluster_of = centred[seed_rows], np.empty(0, np.int64)
    with one_thread():
        for _ in range(MAX_ITERATIONS):
            squared = centred @ centroids.T
            squared *= -2
            squared += np.einsum("ij,ij->i", centroids, centroids)
            previous, cluster_of = cluster_of, squared.argmin(axis=1)
            if np.array_equal(cluster_of, previous):
                break
            move_centroids_to_means(centred, cluster_of, centroids)
    return np.unique(centroids / scale + centre, axis=0)
