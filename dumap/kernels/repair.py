"""Repair of neighbour lists by local joins: rows that one list names, and neighbours of neighbours, are compared."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from scipy.sparse import issparse

from dumap.kernels import vectors
from dumap.kernels.neighbors import distance_function
from dumap.kernels.pairs import SparseRows, pair_distance


def choose_halo(indices: np.ndarray, first_row: int, max_halo: int) -> tuple[np.ndarray, int]:
    """Choose a cell's halo: the rows of other cells that its home rows list.

    If they are too many, the halo takes rows that stand nearest to the front of a list, and among these the rows that
    most lists hold.

    Parameters
    ----------
    indices : ndarray of int, shape (home_rows, k)
        Positions in the lists of the cell's home rows, nearest first; -1 where there is none.
    first_row : int
        Position of the cell's first row.
    max_halo : int

    Returns
    -------
    halo : ndarray of int64
        Positions, ascending.
    n_left_out : int
        Rows that are listed but not in the halo.
    """
    _, slots = np.nonzero(
        is_foreign := (indices >= 0) & ((indices < first_row) | (indices >= first_row + len(indices)))
    )
    halo, halo_indices, list_counts = np.unique(indices[is_foreign], return_inverse=True, return_counts=True)
    n_left_out = max(0, len(halo) - max_halo)
    if n_left_out:
        first_slots = np.full(len(halo), indices.shape[1])
        np.minimum.at(first_slots, halo_indices, slots)
        halo = np.sort(halo[np.lexsort((halo, -list_counts, first_slots))[:max_halo]])
    return halo.astype(np.int64), n_left_out


def to_local_rows(indices: np.ndarray, first_row: int, home_rows: int, halo: np.ndarray) -> np.ndarray:
    """Turn positions into local row numbers: a cell's home rows, then its halo; -1 for other positions.

    Parameters
    ----------
    indices : ndarray of int, shape (n, k)
    first_row, home_rows : int
        Position of the cell's first row, and the number of its home rows.
    halo : ndarray of int64
        Positions, ascending.

    Returns
    -------
    ndarray of int32, shape (n, k)
    """
    compares_home_rows = (indices >= first_row) & (indices < first_row + home_rows)
    local_rows = np.where(compares_home_rows, indices - first_row, -1).astype(np.int32)
    if len(halo):
        indices_in_halo = np.minimum(np.searchsorted(halo, indices), len(halo) - 1)
        is_in_halo = halo[indices_in_halo] == indices
        local_rows[is_in_halo] = home_rows + indices_in_halo[is_in_halo]
    return local_rows


def bundle_lists(indices: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Put lists and the bits of their float32 distances into one array, so that they are written as one object."""
    return np.concatenate([indices, np.ascontiguousarray(distances).view(np.int32)], axis=1, dtype=indices.dtype)


def unbundle_lists(bundled: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Undo `bundle_lists` for lists of k neighbours."""
    return np.ascontiguousarray(bundled[:, :k]), bundled[:, k:].astype(np.int32).view(np.float32)


@nb.njit(cache=True, nogil=True)
def invert_lists(lists: np.ndarray, home_rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Invert the lists of the first `home_rows` rows: find the lists that hold each row.

    Returns
    -------
    starts : ndarray of int64, shape (rows + 1,)
    entries : ndarray of int64
        For each row, the entries `head * k + slot` that list it.
    """
    k = lists.shape[1]
    starts = np.zeros(lists.shape[0] + 1, np.int64)
    for j in range(home_rows):
        for s in range(k):
            if lists[j, s] >= 0:
                starts[lists[j, s] + 1] += 1
    starts = np.cumsum(starts)  # a counting sort of all entries by the row that they list
    next_index, entries = starts[:-1].copy(), np.empty(starts[-1], np.int64)
    for j in range(home_rows):
        for s in range(k):
            if lists[j, s] >= 0:
                entries[next_index[lists[j, s]]] = j * k + s
                next_index[lists[j, s]] += 1
    return starts, entries


@nb.njit(cache=True, nogil=True)
def _insert_candidate(i, j, d, lists, candidates, distances):
    """Insert j into the candidates of i, unless i lists it already."""
    last = candidates.shape[1] - 1
    if not d < distances[i, last]:
        return
    for s in range(last + 1):
        if lists[i, s] == j or candidates[i, s] == j:
            return
    slot = last
    while slot > 0 and distances[i, slot - 1] > d:
        distances[i, slot], candidates[i, slot] = distances[i, slot - 1], candidates[i, slot - 1]
        slot -= 1
    distances[i, slot], candidates[i, slot] = d, j


@nb.njit(nogil=True)
def _score_pair(i, j, x, lists, max_distances, distance, metric_arguments, candidates, distances):
    d = pair_distance(x, i, j) if distance is None else np.float32(distance(x[i], x[j], *metric_arguments))
    if d < max_distances[i]:
        _insert_candidate(i, j, d, lists, candidates, distances)
    if d < max_distances[j]:
        _insert_candidate(j, i, d, lists, candidates, distances)


def _local_join(
    x,
    home_rows,
    lists,
    is_new,
    home_cells,
    compares_home_rows,
    max_distances,
    distance,
    metric_arguments,
    candidates,
    distances,
):
    """Fill `candidates` and `distances`; return how many pairs were compared.

    So many parameters are needed because numba takes each array separately.
    """
    n_rows, k = lists.shape
    starts, entries = invert_lists(lists, home_rows)
    # last_compared_with[m] == i once i and m were compared.
    # Pairs of two old entries, or of one home cell, were compared before.
    last_compared_with, n_pairs = np.full(n_rows, -1, np.int32), 0
    for i in range(n_rows):
        last_compared_with[i] = i
        for e in range(starts[i], starts[i + 1]):  # i and m are both in the list of j
            j, s = entries[e] // k, entries[e] % k
            for t in range(k):
                m = lists[j, t]
                is_untried = m > i and last_compared_with[m] != i and (is_new[j, s] or is_new[j, t])
                if is_untried and (compares_home_rows or home_cells[m] != home_cells[i]):
                    last_compared_with[m] = i
                    n_pairs += 1
                    _score_pair(i, m, x, lists, max_distances, distance, metric_arguments, candidates, distances)
        if i >= home_rows:
            continue
        for s in range(k):
            j = lists[i, s]
            if j < 0:
                continue
            if (
                is_new[i, s] and last_compared_with[j] != i and (compares_home_rows or home_cells[j] != home_cells[i])
            ):  # i lists j; j may not list i
                last_compared_with[j] = i
                n_pairs += 1
                _score_pair(i, j, x, lists, max_distances, distance, metric_arguments, candidates, distances)
            for t in range(k):  # i lists j, and j lists m
                m = lists[j, t]
                is_untried = m >= 0 and last_compared_with[m] != i and (is_new[i, s] or is_new[j, t])
                if is_untried and (compares_home_rows or home_cells[m] != home_cells[i]):
                    last_compared_with[m] = i
                    n_pairs += 1
                    _score_pair(i, m, x, lists, max_distances, distance, metric_arguments, candidates, distances)
    return n_pairs


_local_join_metric, _local_join_squared = nb.njit(nogil=True)(_local_join), nb.njit(cache=True, nogil=True)(_local_join)


@nb.njit(nogil=True)
def _write_metric_distances(x, candidates, distance, metric_arguments, distances):
    for i in range(candidates.shape[0]):
        for s in range(candidates.shape[1]):
            if candidates[i, s] >= 0:
                distances[i, s] = distance(x[i], x[candidates[i, s]], *metric_arguments)


def local_join(
    x: Any,
    home_rows: int,
    lists: np.ndarray,
    is_new: np.ndarray,
    home_cells: np.ndarray,
    compares_home_rows: bool,
    kth_distances: np.ndarray,
    metric: str,
    metric_kwds: dict,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Find nearer neighbours by a local join (Dong, Charikar and Li, WWW 2011).

    Rows that one home row lists are compared with each other. Home rows are compared with their neighbours and with
    these neighbours' neighbours. In a pair that is near enough, each row becomes a candidate for the other.
    So many parameters are needed because numba takes each array separately.

    Parameters
    ----------
    x : ndarray of float32 or csr_matrix of float32, shape (n, dims)
        The cell's home rows, then its halo.
    home_rows : int
    lists : ndarray of int32, shape (n, k)
        Each row's list, as rows of `x`; -1 for rows that are not in `x`.
    is_new : ndarray of bool, shape (n, k)
        False for entries that were there at the last join: two such entries rarely lead to a new pair, and are skipped.
    home_cells : ndarray of int32, shape (n,)
        Each row's home cell.
    compares_home_rows : bool
        Whether pairs of one home cell are compared too; the search has compared them before.
    kth_distances : ndarray of float32, shape (n,)
        The farthest distance in each row's list; infinite if the list is not full.
    metric, metric_kwds : str, dict

    Returns
    -------
    candidates : ndarray of int32, shape (n, k)
        Rows of `x` that are not in a row's list and nearer than its last entry, the nearest first; then -1.
    distances : ndarray of float32, shape (n, k)
    n_pairs : int
        Pairs that were compared.
    """
    candidates = np.full(lists.shape, -1, np.int32)
    compared = (home_rows, lists, is_new, home_cells, compares_home_rows)
    if issparse(x):  # the distances of `SparseRows` are exact from the start
        euclidean_rows: Any = SparseRows.from_csr(x, metric)
        squared = np.full(lists.shape, np.inf)
        max_distances = vectors.squared_from_metric(kth_distances.astype(np.float64), metric)
        n_pairs = _local_join_squared(euclidean_rows, *compared, max_distances, None, (), candidates, squared)
        with np.errstate(over="ignore"):
            return candidates, vectors.metric_from_squared(squared, metric).astype(np.float32), n_pairs
    distances = np.full(lists.shape, np.inf, np.float32)
    distance = vectors.great_circle if metric == vectors.SPHERICAL else distance_function(metric)
    metric_arguments = tuple(metric_kwds.values())
    if metric not in vectors.EUCLIDEAN_ORDER_METRICS:
        n_pairs = _local_join_metric(x, *compared, kth_distances, distance, metric_arguments, candidates, distances)
        return candidates, distances, n_pairs
    euclidean_rows = vectors.to_euclidean(x, metric)
    max_distances = vectors.squared_from_metric(kth_distances, metric).astype(np.float32)
    n_pairs = _local_join_squared(euclidean_rows, *compared, max_distances, None, (), candidates, distances)
    _write_metric_distances(x, candidates, distance, metric_arguments, distances)
    return candidates, distances, n_pairs


@nb.njit(cache=True, nogil=True)
def find_new_entries(lists: np.ndarray, previous_lists: np.ndarray) -> np.ndarray:
    """Return which entries of lists were in no slot of the same list before."""
    out = np.ones(lists.shape, np.bool_)
    for i in range(lists.shape[0]):
        for s in range(lists.shape[1]):
            for t in range(previous_lists.shape[1]):
                if previous_lists[i, t] == lists[i, s]:
                    out[i, s] = False
                    break
    return out
