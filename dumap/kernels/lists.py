"""Neighbour lists of a cell's rows, and the steps that fill them: pairs of rows, and neighbours of neighbours.

An entry is the number of a row in the cell. Entries are sorted, the nearest first; an empty slot holds -1.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np
from numba.core import types
from numba.extending import overload

from dumap.kernels.codes import squared_lower_bound
from dumap.kernels.neighbors import precedes
from dumap.kernels.pairs import pair_distance
from dumap.kernels.vectors import squared_distance

MAX_SQUARED = np.finfo(np.float32).max
"""Squared distances are cut off at this, the largest float32."""
ROUND_UP = np.float32(1.001)
"""Factor that makes a limit safe against rounded lower bounds."""
NEW_AGE = np.uint8(2)
"""Age of an entry that this pass added. An entry of the pass before has age 1, an older entry has age 0."""


@nb.njit(inline="always")
def _move_up(slot, j, d, age, row, entries, distances, ages):
    """Write an entry of a row's list into the slot where it belongs, up to `slot`, and shift those that it precedes."""
    while slot > 0 and precedes(d, j, distances[slot - 1], entries[slot - 1], row):
        entries[slot], distances[slot], ages[slot] = entries[slot - 1], distances[slot - 1], ages[slot - 1]
        slot -= 1
    entries[slot], distances[slot], ages[slot] = j, d, age


@nb.njit(cache=True, nogil=True)
def insert_if_nearer(row, j, d, indices, distances, ages):
    """Insert j at distance d into a row's list, unless j is listed or too far.

    Equal distances are ordered by the hash of the pair, so that many equal rows do not all list the same few.
    """
    slot = indices.shape[1] - 1
    if not d < np.inf or not precedes(d, j, distances[row, slot], indices[row, slot], row):
        return
    entries, entry_distances, row_ages = indices[row], distances[row], ages[row]
    is_listed = False
    for t in range(len(entries)):  # no early exit, so that the loop is vectorized
        is_listed |= entries[t] == j
    if is_listed:
        return
    _move_up(slot, j, d, NEW_AGE, row, entries, entry_distances, row_ages)


def finite_distance(x, i, j):
    """Return the squared distance of two rows of an array, cut off so that it is finite, or of `SparseRows`."""
    return min(pair_distance(x, i, j), MAX_SQUARED) if isinstance(x, np.ndarray) else pair_distance(x, i, j)


@overload(finite_distance)
def _finite_distance(x, i, j):
    if isinstance(x, types.Array):
        return lambda x, i, j: min(squared_distance(x[i], x[j]), MAX_SQUARED)
    return lambda x, i, j: pair_distance(x, i, j)


@nb.njit(cache=True, nogil=True)
def _keep_possible_neighbors(i, candidates, count, kth_squared, codes, bounds):
    """Keep the candidates that, by lower bounds, may enter row i's list or may list i; return their number."""
    for q in range(count):  # a separate loop, so that the processor fetches the next rows while it sums
        bounds[q] = squared_lower_bound(codes, i, candidates[q])
    n_kept = 0
    for q in range(count):
        j = candidates[q]
        candidates[n_kept] = j
        n_kept += bounds[q] <= ROUND_UP * max(kth_squared[i], kth_squared[j])
    return n_kept


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
def compare_neighbors_of_neighbors(x, codes, guest_homes, probed_leaves, indices, distances, ages):
    """Compare each row with its neighbours' neighbours, one pass of nearest-neighbour descent.

    Rows i and j are compared if i lists a row that lists j, and one of these two entries is new since the last pass
    (Dong, Charikar and Li, WWW 2011).
    """
    n, k = indices.shape
    kth_squared = distances[:, k - 1].copy()
    last_seen_by = np.full(n, -1, np.int32)
    has_new = np.zeros(n, np.bool_)
    for i in range(n):
        for s in range(k):
            ages[i, s] >>= 1  # entries age by a pass
            has_new[i] |= ages[i, s] > 0
    candidates, bounds = np.empty(k * k, np.int32), np.empty(k * k, np.float32)
    for i in range(n):
        # Gather each candidate j once: i lists via, via lists j, and i does not list j.
        last_seen_by[i] = i
        for s in range(k):
            if indices[i, s] >= 0:
                last_seen_by[indices[i, s]] = i
        n_candidates = 0
        for s in range(k):
            neighbor, is_new = indices[i, s], ages[i, s] > 0
            if neighbor < 0:
                break
            if not (is_new or has_new[neighbor]):
                continue
            for t in range(k):
                j = indices[neighbor, t]
                if j < 0:
                    break
                if last_seen_by[j] == i or not (is_new or ages[neighbor, t]):
                    continue
                if guest_homes[i] >= 0 and guest_homes[i] == guest_homes[j]:  # their home cell compared them
                    continue
                if len(probed_leaves.home) and (
                    probed_leaves.probed[i] & probed_leaves.home[j] or probed_leaves.probed[j] & probed_leaves.home[i]
                ):
                    continue
                last_seen_by[j] = i
                candidates[n_candidates] = j
                n_candidates += 1
        # Codes rule out most candidates. The other candidates are compared exactly; a pair may enter both lists.
        if codes.values.shape[1]:
            n_candidates = _keep_possible_neighbors(i, candidates, n_candidates, kth_squared, codes, bounds)
        for q in range(n_candidates):
            j = candidates[q]
            d = finite_distance(x, i, j)
            if d <= kth_squared[i]:
                insert_if_nearer(i, j, d, indices, distances, ages)
                kth_squared[i], has_new[i] = distances[i, k - 1], True
            if d <= kth_squared[j]:
                insert_if_nearer(j, i, d, indices, distances, ages)
                kth_squared[j], has_new[j] = distances[j, k - 1], True


@nb.njit(cache=True, nogil=True)
def score_new_entries(x, indices, distances, ages):
    """Compute the distances of new entries from the rows, and sort the lists again."""
    for i in range(len(indices)):
        entries, entry_distances, row_ages = indices[i], distances[i], ages[i]
        for s in range(len(entries)):
            j, age = entries[s], row_ages[s]
            if j < 0:
                break
            d = finite_distance(x, i, j) if age == NEW_AGE else entry_distances[s]
            _move_up(s, j, d, age, i, entries, entry_distances, row_ages)


class CellLists(NamedTuple):
    """Neighbour lists while they are filled: entries, squared distances, and ages (see `NEW_AGE`)."""

    indices: np.ndarray
    distances: np.ndarray
    ages: np.ndarray

    @classmethod
    def empty(cls, rows: int, k: int, dtype: type = np.float32) -> CellLists:
        """Return empty lists, with distances of a dtype."""
        shape = (rows, k)
        return cls(np.full(shape, -1, np.int32), np.full(shape, np.inf, dtype), np.zeros(shape, np.uint8))
