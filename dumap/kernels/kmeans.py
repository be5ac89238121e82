"""k-means, on one thread: one seed gives one answer."""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels import hashing
from dumap.kernels.threads import one_thread
from dumap.kernels.vectors import power_near, squared_distance

TRIALS, ROUNDS = 4, 25
"""Rows that are drawn for each of the seeds, and rounds at the most."""


@nb.njit(cache=True, nogil=True)
def _seeds(x, count, base):
    """Choose rows that lie apart (k-means++, Arthur and Vassilvitskii, SODA 2007); fewer where fewer differ.

    Of some that are drawn, the one is chosen that leaves the least.
    """
    n = len(x)
    chosen = np.empty(count, np.int64)
    nearest, own = np.full(n, np.inf, np.float32), np.empty((TRIALS, n), np.float32)
    total, trials = np.inf, 1
    for number in range(count):
        best, least = -1, np.inf
        for trial in range(trials):
            bits = hashing.draw(base, TRIALS * number + trial)
            row = np.int64(bits % np.uint64(n))
            if number:
                left = total * (np.float64(bits >> np.uint64(11)) / 9007199254740992.0)
                for i in range(n):
                    if nearest[i] > 0:
                        row = i
                        left -= nearest[i]
                        if left < 0:
                            break
            rest = 0.0
            for i in range(n):
                own[trial, i] = min(nearest[i], squared_distance(x[i], x[row]))
                rest += own[trial, i]
            if best < 0 or rest < least:
                best, least, chosen[number] = trial, rest, row
        nearest[:], total, trials = own[best], least, TRIALS
        if not total > 0:
            return chosen[: number + 1]
    return chosen


@nb.njit(cache=True, nogil=True)
def move_to_means(x, own, centroids):
    """Move each centroid, in place, to the mean of its rows; one without rows stays.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
    own : ndarray of int, shape (n,)
        Each row's centroid.
    centroids : ndarray of float32, shape (clusters, dims)
    """
    sums, counts = np.zeros(centroids.shape), np.zeros(len(centroids), np.int64)
    for i in range(len(x)):
        counts[own[i]] += 1
        row = sums[own[i]]
        for c in range(x.shape[1]):
            row[c] += x[i, c]
    for k in range(len(centroids)):
        if counts[k]:
            for c in range(x.shape[1]):
                centroids[k, c] = sums[k, c] / counts[k]


def kmeans(x: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Return centroids of `x`; one thread, so that one seed gives one answer.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
    n_clusters : int
    seed : int

    Returns
    -------
    ndarray of float32, shape (clusters, dims)
        Fewer than asked for where `x` has fewer distinct rows.
    """
    extent = float(max(x.max(), -x.min()))
    scale = np.float32(1) if 1e-12 < extent < 1e12 else power_near(extent)
    base = hashing.draws(seed, hashing.KMEANS, np.array([len(x)]))[0]
    chosen = _seeds(x * scale, n_clusters, base)
    if len(chosen) < n_clusters:
        return np.unique(x[chosen], axis=0)
    middle = x.mean(axis=0, dtype=np.float64).astype(np.float32)
    with np.errstate(over="ignore"):
        placed = (x - middle) * scale
    centroids, own = placed[chosen], np.empty(0, np.int64)
    with one_thread():
        for _ in range(ROUNDS):
            squared = placed @ centroids.T
            squared *= -2
            squared += np.einsum("ij,ij->i", centroids, centroids)
            before, own = own, squared.argmin(axis=1)
            if np.array_equal(own, before):
                break
            move_to_means(placed, own, centroids)
    return np.unique(centroids / scale + middle, axis=0)
