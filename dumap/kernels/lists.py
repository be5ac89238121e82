"""Neighbour lists of a cell's rows, and the steps that fill them: pairs of rows, and neighbours of neighbours.

An entry is the number of a row in the cell. Entries are sorted, the nearest first; an empty slot holds -1.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np
from numba.core import types
from numba.extending import overload

from dumap.kernels.codes import least_squared
from dumap.kernels.neighbors import precedes
from dumap.kernels.pairs import pair_distance
from dumap.kernels.vectors import squared_distance

FARTHEST = np.finfo(np.float32).max
"""Squared distances are cut off at this, the largest float32."""
ROUND_UP = np.float32(1.001)
"""Factor that makes a limit safe against rounded lower bounds."""
NEW = np.uint8(2)
"""Age of an entry that this pass added. An entry of the pass before has age 1, an older entry has age 0."""


@nb.njit(cache=True, nogil=True)
def offer(row, j, d, indices, distances, ages):
    """Insert j at distance d into a row's list, unless j is listed or too far.

    Equal distances are ordered by the hash of the pair, so that many equal rows do not all list the same few.
    """
    at = indices.shape[1] - 1
    if not d < np.inf or not precedes(d, j, distances[row, at], indices[row, at], row):
        return
    entries, entry_distances, row_ages = indices[row], distances[row], ages[row]
    listed = False
    for t in range(len(entries)):  # no early exit, so that the loop is vectorized
        listed |= entries[t] == j
    if listed:
        return
    while at > 0 and precedes(d, j, entry_distances[at - 1], entries[at - 1], row):
        entries[at], entry_distances[at], row_ages[at] = entries[at - 1], entry_distances[at - 1], row_ages[at - 1]
        at -= 1
    entries[at], entry_distances[at], row_ages[at] = j, d, NEW


def between(x, i, j):
    """Return the squared distance of two rows of an array, cut off so that it is finite, or of `SparseRows`."""
    return min(pair_distance(x, i, j), FARTHEST) if isinstance(x, np.ndarray) else pair_distance(x, i, j)


@overload(between)
def _between(x, i, j):
    if isinstance(x, types.Array):
        return lambda x, i, j: min(squared_distance(x[i], x[j]), FARTHEST)
    return lambda x, i, j: pair_distance(x, i, j)


@nb.njit(cache=True, nogil=True)
def _may_be_near(i, others, count, limits, codes, bounds):
    """Keep the rows of `others` that, by lower bounds, may enter row i's list or may list i; return their number."""
    for q in range(count):  # a separate loop, so that the processor fetches the next rows while it sums
        bounds[q] = least_squared(codes, i, others[q])
    kept = 0
    for q in range(count):
        j = others[q]
        others[kept] = j
        kept += bounds[q] <= ROUND_UP * max(limits[i], limits[j])
    return kept


class ProbedLeaves(NamedTuple):
    """Leaves of at most 64, a bit each: those that a row probes, and the one where it is at home. A row was compared
    with the rows at home in the leaves that it probes. Empty arrays if that is not known.
    """

    probed: np.ndarray
    home: np.ndarray

    @classmethod
    def unknown(cls) -> ProbedLeaves:
        """Return empty arrays."""
        return cls(np.empty(0, np.uint64), np.empty(0, np.uint64))


@nb.njit(cache=True, nogil=True)
def _share_leaf(leaves, i, j):
    """Return whether one of two rows is known to probe the leaf where the other is at home."""
    return len(leaves.home) and (leaves.probed[i] & leaves.home[j] or leaves.probed[j] & leaves.home[i])


@nb.njit(cache=True, nogil=True)
def explore(x, codes, guest_home, probed_leaves, indices, distances, ages):
    """Compare each row with its neighbours' neighbours, one pass of nearest-neighbour descent.

    Rows i and j are compared if i lists a row that lists j, and one of these two entries is new since the last pass
    (Dong, Charikar and Li, WWW 2011).
    """
    n, k = indices.shape
    limits = distances[:, k - 1].copy()
    seen = np.full(n, -1, np.int32)
    has_new = np.zeros(n, np.bool_)
    for i in range(n):
        for s in range(k):
            ages[i, s] >>= 1  # entries age by a pass
            has_new[i] |= ages[i, s] > 0
    others, bounds = np.empty(k * k, np.int32), np.empty(k * k, np.float32)
    for i in range(n):
        # Gather each candidate j once: i lists via, via lists j, and i does not list j.
        seen[i] = i
        for s in range(k):
            if indices[i, s] >= 0:
                seen[indices[i, s]] = i
        count = 0
        for s in range(k):
            via, is_new = indices[i, s], ages[i, s] > 0
            if via < 0:
                break
            if not (is_new or has_new[via]):
                continue
            for t in range(k):
                j = indices[via, t]
                if j < 0:
                    break
                if seen[j] == i or not (is_new or ages[via, t]):
                    continue
                if guest_home[i] >= 0 and guest_home[i] == guest_home[j]:  # their home cell compared them
                    continue
                if len(probed_leaves.home) and (
                    probed_leaves.probed[i] & probed_leaves.home[j] or probed_leaves.probed[j] & probed_leaves.home[i]
                ):
                    continue
                seen[j] = i
                others[count] = j
                count += 1
        # Codes rule out most candidates. The other candidates are compared exactly; a pair may enter both lists.
        if codes.values.shape[1]:
            count = _may_be_near(i, others, count, limits, codes, bounds)
        for q in range(count):
            j = others[q]
            d = between(x, i, j)
            if d <= limits[i]:
                offer(i, j, d, indices, distances, ages)
                limits[i], has_new[i] = distances[i, k - 1], True
            if d <= limits[j]:
                offer(j, i, d, indices, distances, ages)
                limits[j], has_new[j] = distances[j, k - 1], True


@nb.njit(cache=True, nogil=True)
def score(x, indices, distances, ages):
    """Compute the distances of new entries from the rows, and sort the lists again."""
    for i in range(len(indices)):
        entries, entry_distances, row_ages = indices[i], distances[i], ages[i]
        for s in range(len(entries)):
            j, age = entries[s], row_ages[s]
            if j < 0:
                break
            d, at = between(x, i, j) if age == NEW else entry_distances[s], s
            while at > 0 and precedes(d, j, entry_distances[at - 1], entries[at - 1], i):
                entries[at], entry_distances[at], row_ages[at] = (
                    entries[at - 1],
                    entry_distances[at - 1],
                    row_ages[at - 1],
                )
                at -= 1
            entries[at], entry_distances[at], row_ages[at] = j, d, age


class CellLists(NamedTuple):
    """Neighbour lists while they are filled: entries, squared distances, and ages (see `NEW`)."""

    indices: np.ndarray
    distances: np.ndarray
    ages: np.ndarray

    @classmethod
    def empty(cls, rows: int, k: int, dtype: type = np.float32) -> CellLists:
        """Return empty lists, with distances of a dtype."""
        shape = (rows, k)
        return cls(np.full(shape, -1, np.int32), np.full(shape, np.inf, dtype), np.zeros(shape, np.uint8))
