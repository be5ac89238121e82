"""Recall of neighbour lists against exact neighbours, and its confidence interval from a sample."""

from __future__ import annotations

import math

import numba as nb
import numpy as np


@nb.njit(cache=True, nogil=True)
def is_listed(listed: np.ndarray, listed_distances: np.ndarray, exact: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Return which exact neighbours the lists hold.

    Rows at equal distances are interchangeable: a listed row within the limit that is no exact neighbour counts for the
    farthest exact neighbour that is not listed.

    Parameters
    ----------
    listed : ndarray of int64, shape (queries, k)
        -1 where a list is not full.
    listed_distances : ndarray of float, shape (queries, k)
        Computed as exactly as `limits`.
    exact : ndarray of int64, shape (queries, k)
        The k nearest, nearest first.
    limits : ndarray of float, shape (queries,)
        Distance of the k-th exact neighbour, plus its rounding error.

    Returns
    -------
    ndarray of bool, shape (queries, k)
        One value for each exact neighbour.
    """
    queries, k = exact.shape
    out = np.zeros((queries, k), np.bool_)
    for q in range(queries):
        substitutes = 0
        for s in range(listed.shape[1]):
            if listed[q, s] < 0:
                continue
            is_exact = False
            for t in range(k):
                if exact[q, t] == listed[q, s]:
                    is_exact = out[q, t] = True
                    break
            if not is_exact and listed_distances[q, s] <= limits[q]:
                substitutes += 1
        for t in range(k - 1, -1, -1):
            if substitutes and not out[q, t]:
                out[q, t] = True
                substitutes -= 1
    return out


def interval(values: np.ndarray, population: int) -> tuple[float, float]:
    """Return the 95% interval of a population's mean, from a sample without replacement.

    The interval is Wilson's score interval (1927) with Student's quantile, for the number of yes/no rows whose mean
    would have the same variance. One yes/no row is added to the variance, so that the interval allows for rare other
    values even if all values of the sample are equal. If the sample is the whole population, both ends are the mean.

    Parameters
    ----------
    values : ndarray of float, shape (n,)
        From 0 to 1.
    population : int
        Rows of the population.

    Returns
    -------
    low, high : float
    """
    from scipy.special import stdtrit

    count = len(values)
    if not count:
        return 0.0, 1.0
    mean = min(1.0, float(values.mean(dtype=np.float64)))
    if count >= population:
        return mean, mean
    spread = float(((values - mean) ** 2).sum(dtype=np.float64))
    share = (spread + 1) / (count * mean * (1 - mean) + 1)  # the values' variance over that of yes/no rows
    rows = count / share / (1 - count / population)
    z = float(stdtrit(max(1, count - 1), 0.975))
    middle, scale = (mean + z * z / (2 * rows)), 1 + z * z / rows
    half = z * math.sqrt(mean * (1 - mean) / rows + (z / (2 * rows)) ** 2)
    return max(0.0, min(mean, (middle - half) / scale)), min(1.0, max(mean, (middle + half) / scale))
