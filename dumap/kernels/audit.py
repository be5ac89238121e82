"""Recall of neighbour lists against exact neighbours, and its confidence interval from a sample."""

from __future__ import annotations

import math

import numba as nb
import numpy as np


@nb.njit(cache=True, nogil=True)
def is_listed(
    listed_ids: np.ndarray, listed_distances: np.ndarray, exact_ids: np.ndarray, kth_limits: np.ndarray
) -> np.ndarray:
    """Return which exact neighbours the lists hold.

    Rows at equal distances are interchangeable: a listed row within the limit that is no exact neighbour counts for the
    farthest exact neighbour that is not listed.

    Parameters
    ----------
    listed_ids : ndarray of int64, shape (queries, k)
        -1 where a list is not full.
    listed_distances : ndarray of float, shape (queries, k)
        Computed as exactly as `kth_limits`.
    exact_ids : ndarray of int64, shape (queries, k)
        The k nearest, nearest first.
    kth_limits : ndarray of float, shape (queries,)
        Distance of the k-th exact neighbour, plus its rounding error.

    Returns
    -------
    ndarray of bool, shape (queries, k)
        One value for each exact neighbour.
    """
    n_queries, k = exact_ids.shape
    out = np.zeros((n_queries, k), np.bool_)
    for q in range(n_queries):
        substitutes = 0
        for s in range(listed_ids.shape[1]):
            if listed_ids[q, s] < 0:
                continue
            is_exact = False
            for t in range(k):
                if exact_ids[q, t] == listed_ids[q, s]:
                    is_exact = out[q, t] = True
                    break
            if not is_exact and listed_distances[q, s] <= kth_limits[q]:
                substitutes += 1
        for t in range(k - 1, -1, -1):
            if substitutes and not out[q, t]:
                out[q, t] = True
                substitutes -= 1
    return out


def confidence_interval(values: np.ndarray, population_size: int) -> tuple[float, float]:
    """Return the 95% interval of a population's mean, from a sample without replacement.

    The interval is Wilson's score interval (1927) with Student's quantile, for the number of yes/no rows whose mean
    would have the same variance. One yes/no row is added to the variance, so that the interval allows for rare other
    values even if all values of the sample are equal. If the sample is the whole population, both ends are the mean.

    Parameters
    ----------
    values : ndarray of float, shape (n,)
        From 0 to 1.
    population_size : int
        Rows of the population.

    Returns
    -------
    low, high : float
    """
    from scipy.special import stdtrit

    n_values = len(values)
    if not n_values:
        return 0.0, 1.0
    mean = min(1.0, float(values.mean(dtype=np.float64)))
    if n_values >= population_size:
        return mean, mean
    squared_deviations = float(((values - mean) ** 2).sum(dtype=np.float64))
    variance_ratio = (squared_deviations + 1) / (
        n_values * mean * (1 - mean) + 1
    )  # the values' variance over that of yes/no rows
    effective_rows = n_values / variance_ratio / (1 - n_values / population_size)
    quantile = float(stdtrit(max(1, n_values - 1), 0.975))
    centre, scale = (mean + quantile * quantile / (2 * effective_rows)), 1 + quantile * quantile / effective_rows
    half_width = quantile * math.sqrt(mean * (1 - mean) / effective_rows + (quantile / (2 * effective_rows)) ** 2)
    return max(0.0, min(mean, (centre - half_width) / scale)), min(1.0, max(mean, (centre + half_width) / scale))
