"""Lists of the nearest rows of a cell, while they are filled: pairs are offered, and neighbours of neighbours.

A list's entries are numbers of rows, nearest first; -1 where there is none.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np

from dumap.kernels.codes import least_squared
from dumap.kernels.neighbors import precedes
from dumap.kernels.vectors import squared_distance

FARTHEST = np.finfo(np.float32).max
"""Squared distances beyond this are this."""
SLACK = np.float32(1.001)
"""Rounding that a bound from below is allowed."""
NEW = np.uint8(2)
"""Of an entry that came in this pass; 1 is one of the last pass, 0 an old one."""


@nb.njit(cache=True, nogil=True)
def offer(row, j, d, indices, distances, fresh):
    """Insert j into a row's list; of those as near, the pairs' hashes choose, so that equal rows form no hub."""
    at = indices.shape[1] - 1
    if not d < np.inf or not precedes(d, j, distances[row, at], indices[row, at], row):
        return
    names, lengths, ages = indices[row], distances[row], fresh[row]
    there = False
    for t in range(len(names)):  # without a way out in the middle, so that lanes are filled
        there |= names[t] == j
    if there:
        return
    while at > 0 and precedes(d, j, lengths[at - 1], names[at - 1], row):
        names[at], lengths[at], ages[at] = names[at - 1], lengths[at - 1], ages[at - 1]
        at -= 1
    names[at], lengths[at], ages[at] = j, d, NEW


@nb.njit(inline="always")
def between(x, i, j):
    """Return the squared distance of two rows of x, finite however far they lie."""
    return min(squared_distance(x[i], x[j]), FARTHEST)


@nb.njit(cache=True, nogil=True)
def _within(i, others, count, limits, codes, bounds):
    """Keep those of some rows that may be near enough to row i, or it to them; return how many they are."""
    for q in range(count):  # apart from what follows, so that the next row is fetched while this one is summed
        bounds[q] = least_squared(codes, i, others[q])
    kept = 0
    for q in range(count):
        j = others[q]
        others[kept] = j
        kept += bounds[q] <= SLACK * max(limits[i], limits[j])
    return kept


@nb.njit(cache=True, nogil=True)
def explore(x, codes, home, indices, distances, fresh):
    """Offer each row its neighbours' neighbours, and it to them, where one edge on the way is new."""
    n, k = indices.shape
    limits = distances[:, k - 1].copy()
    seen = np.full(n, -1, np.int32)
    has_new = np.zeros(n, np.bool_)
    for i in range(n):
        for s in range(k):
            fresh[i, s] >>= 1
            has_new[i] |= fresh[i, s] > 0
    others, bounds = np.empty(k * k, np.int32), np.empty(k * k, np.float32)
    for i in range(n):
        seen[i] = i
        for s in range(k):
            if indices[i, s] >= 0:
                seen[indices[i, s]] = i
        count = 0
        for s in range(k):
            via, is_new = indices[i, s], fresh[i, s] > 0
            if via < 0:
                break
            if not (is_new or has_new[via]):
                continue
            for t in range(k):
                j = indices[via, t]
                if j < 0:
                    break
                if seen[j] == i or not (is_new or fresh[via, t]):
                    continue
                if home[i] >= 0 and home[i] == home[j]:  # both are compared at home
                    continue
                seen[j] = i
                others[count] = j
                count += 1
        if codes.values.shape[1]:
            count = _within(i, others, count, limits, codes, bounds)
        for q in range(count):
            j = others[q]
            d = between(x, i, j)
            if d <= limits[i]:
                offer(i, j, d, indices, distances, fresh)
                limits[i], has_new[i] = distances[i, k - 1], True
            if d <= limits[j]:
                offer(j, i, d, indices, distances, fresh)
                limits[j], has_new[j] = distances[j, k - 1], True


@nb.njit(cache=True, nogil=True)
def score(x, indices, distances, fresh):
    """Sort lists anew, those that came in this pass by distances from the rows' differences."""
    for i in range(len(indices)):
        names, lengths, ages = indices[i], distances[i], fresh[i]
        for s in range(len(names)):
            j, age = names[s], ages[s]
            if j < 0:
                break
            d, at = between(x, i, j) if age == NEW else lengths[s], s
            while at > 0 and precedes(d, j, lengths[at - 1], names[at - 1], i):
                names[at], lengths[at], ages[at] = names[at - 1], lengths[at - 1], ages[at - 1]
                at -= 1
            names[at], lengths[at], ages[at] = j, d, age


class Lists(NamedTuple):
    """The lists of a cell's rows while they are filled."""

    indices: np.ndarray
    distances: np.ndarray
    fresh: np.ndarray

    @classmethod
    def empty(cls, rows: int, k: int) -> Lists:
        """Return lists without entries."""
        shape = (rows, k)
        return cls(np.full(shape, -1, np.int32), np.full(shape, np.inf, np.float32), np.zeros(shape, np.uint8))
