"""Nearest neighbours within a cell for metrics without leaf search, and the merge of lists of several cells."""

from __future__ import annotations

import threading
import warnings

import numba as nb
import numpy as np

from dumap.kernels import hashing, vectors

MAX_EXHAUSTIVE_SECONDS = 8.0
"""A cell is searched exhaustively if that takes about this long or less: compiling pynndescent takes longer."""
PAIR_SECONDS, DIM_SECONDS = 5e-9, 1e-9
"""Seconds that one distance by a metric's own function takes: for the pair, and for each dim (measured)."""

_build_lock = threading.Lock()  # numba's workqueue aborts on concurrent parallel regions


def distance_function(metric: str):
    """Return pynndescent's compiled distance of a metric. For metrics of bits it takes rows with a number for each
    bit.
    """
    from pynndescent.distances import named_distances  # a slow import, which Euclidean metrics do not need

    return named_distances[vectors.BIT_METRICS.get(metric, metric)]


@nb.njit(nogil=True)
def _search_exhaustively(x, queries, k, distance, metric_arguments, indices, distances):
    for q in range(queries.shape[0]):
        i = queries[q]
        n_listed = 0  # entries of the list so far, kept sorted by insertion
        for j in range(x.shape[0]):
            if j == i:
                continue
            d = np.float32(distance(x[i], x[j], *metric_arguments))
            if n_listed == k and not d < distances[q, k - 1]:
                continue
            slot = min(n_listed, k - 1)
            while slot > 0 and distances[q, slot - 1] > d:
                distances[q, slot], indices[q, slot] = distances[q, slot - 1], indices[q, slot - 1]
                slot -= 1
            distances[q, slot], indices[q, slot] = d, j
            n_listed = min(n_listed + 1, k)


def search_exhaustively(
    x: np.ndarray, queries: np.ndarray, k: int, metric: str, metric_kwds: dict
) -> tuple[np.ndarray, np.ndarray]:
    """Find the exact k nearest other rows of each query. Of equal distances the lower row comes first.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
    queries : ndarray of int64, shape (m,)
        Rows of `x`.
    k : int
    metric, metric_kwds : str, dict

    Returns
    -------
    indices : ndarray of int64, shape (m, k)
        -1 if there are fewer than k other rows.
    distances : ndarray of float32, shape (m, k)
    """
    indices = np.full((len(queries), k), -1, np.int64)
    distances = np.full((len(queries), k), np.inf, np.float32)
    metric_arguments = tuple(metric_kwds.values())
    _search_exhaustively(x, queries, k, distance_function(metric), metric_arguments, indices, distances)
    return indices, distances


def max_exhaustive_rows(dims: int) -> int:
    """Return the most rows of a cell that is searched exhaustively."""
    return int(np.sqrt(MAX_EXHAUSTIVE_SECONDS / (PAIR_SECONDS + DIM_SECONDS * dims)))


def search_by_metric(x: np.ndarray, k: int, metric: str, metric_kwds: dict, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Find about the k nearest other rows of every row of a cell.

    pynndescent searches by nearest-neighbour descent (Dong, Charikar and Li, WWW 2011). It runs on one numba thread,
    since its result depends on the number of threads.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims), C order
    k : int
    metric, metric_kwds : str, dict
    seed : int

    Returns
    -------
    indices : ndarray of int64, shape (n, k)
        Self excluded; -1 beyond the n - 1 other rows.
    distances : ndarray of float32, shape (n, k)
        Ascending.
    """
    if len(x) <= max(max_exhaustive_rows(x.shape[1]), 4 * k):
        return search_exhaustively(x, np.arange(len(x)), k, metric, metric_kwds)
    from pynndescent import NNDescent

    random_state = int(hashing.draw_words(seed, hashing.PYNNDESCENT, np.array([len(x)]))[0] >> np.uint64(33))
    n_threads = nb.get_num_threads()
    with _build_lock, warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Failed to correctly find n_neighbors")
        nb.set_num_threads(1)
        try:
            index = NNDescent(
                x,
                vectors.BIT_METRICS.get(metric, metric),
                metric_kwds,
                n_neighbors=k + 1,
                random_state=random_state,
                n_jobs=1,
                max_candidates=min(60, k + 1),
            )
            listed_ids, distances = index.neighbor_graph
        finally:
            nb.set_num_threads(n_threads)
    indices, distances = drop_self(listed_ids, distances.astype(np.float32))
    incomplete_rows = np.flatnonzero((indices < 0).any(axis=1))
    if len(incomplete_rows):
        indices[incomplete_rows], distances[incomplete_rows] = search_exhaustively(
            x, incomplete_rows, k, metric, metric_kwds
        )
    return indices, distances


def drop_self(listed_ids: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Remove each row from its own list, or the list's last entry if the row is not in its list.

    Parameters
    ----------
    listed_ids : ndarray of int, shape (n, k + 1)
    distances : ndarray of float32, shape (n, k + 1)

    Returns
    -------
    indices, distances : ndarray, shape (n, k)
    """
    is_self = listed_ids == np.arange(len(listed_ids))[:, None]
    is_self[~is_self.any(axis=1), -1] = True
    is_other = ~is_self
    shape = (len(listed_ids), listed_ids.shape[1] - 1)
    return listed_ids[is_other].reshape(shape).astype(np.int64), distances[is_other].reshape(shape)


@nb.njit(inline="always")
def precedes(d, j, other_d, other, i):
    """Return whether neighbour j of row i sorts before `other`: by distance, then by the hash of the pair."""
    if d != other_d:
        return d < other_d
    return hashing.hash_pair(i, j) < hashing.hash_pair(i, other)


@nb.njit(inline="always")
def insert_neighbor(row, i, j, d, indices, distances):
    """Insert neighbour j at distance d into the list at `row`, which belongs to the row with id i."""
    last = indices.shape[1] - 1
    if indices[row, last] >= 0 and not precedes(d, j, distances[row, last], indices[row, last], i):
        return
    slot = last  # the slot of j if it is listed already, else the last
    for t in range(last + 1):
        if indices[row, t] == j:
            slot = t
            break
    if indices[row, slot] == j and distances[row, slot] <= d:
        return
    while slot > 0 and (
        indices[row, slot - 1] < 0 or precedes(d, j, distances[row, slot - 1], indices[row, slot - 1], i)
    ):
        indices[row, slot], distances[row, slot] = indices[row, slot - 1], distances[row, slot - 1]
        slot -= 1
    indices[row, slot], distances[row, slot] = j, d


@nb.njit(cache=True, nogil=True)
def merge_lists(
    indices: np.ndarray,
    distances: np.ndarray,
    rows: np.ndarray,
    other_indices: np.ndarray,
    other_distances: np.ndarray,
    row_ids: np.ndarray,
) -> None:
    """Merge lists from another cell into lists of the same rows, in place.

    Entries are sorted by distance, then by the hash of the pair. So cells may be merged in any order. Many equal rows
    list different rows of their kind; sorted by id, all would list the same few.

    Parameters
    ----------
    indices, distances : ndarray, shape (n, k)
        Ascending lists, -1 and inf where empty.
    rows : ndarray of int64, shape (m,)
        Row of `indices` that each row of `other_indices` is merged into.
    other_indices, other_distances : ndarray, shape (m, k)
    row_ids : ndarray of int64, shape (m,)
        Ids of these rows, as lists hold them.
    """
    for other_row in range(rows.shape[0]):
        for s in range(other_indices.shape[1]):
            if other_indices[other_row, s] >= 0:
                insert_neighbor(
                    rows[other_row],
                    row_ids[other_row],
                    other_indices[other_row, s],
                    other_distances[other_row, s],
                    indices,
                    distances,
                )


NO_FAULT, UNKNOWN_ID, REPEATED_ID, INVALID_DISTANCE = range(4)
"""Faults of a slot of a given list: none, an id without a row, an id listed twice, an invalid distance."""


@nb.njit(cache=True, nogil=True)
def find_first_fault(indices: np.ndarray, distances: np.ndarray, first_row: int, n_rows: int) -> tuple[int, int, int]:
    """Find the first invalid slot in the given lists of consecutive rows.

    Parameters
    ----------
    indices : ndarray of int64, shape (n, columns)
        -1 in an empty slot. A row may list itself, at any distance.
    distances : ndarray of float32, shape (n, columns)
        Checked in slots with an id.
    first_row : int
        Id of the first of these rows.
    n_rows : int
        Rows of the data set; ids are below it.

    Returns
    -------
    fault, row, slot : int
        The fault is `NO_FAULT` if all slots are valid.
    """
    for i in range(indices.shape[0]):
        for s in range(indices.shape[1]):
            j = indices[i, s]
            if j == -1:
                continue
            if j < -1 or j >= n_rows:
                return UNKNOWN_ID, i, s
            for t in range(s):
                if indices[i, t] == j:
                    return REPEATED_ID, i, s
            if j != first_row + i and not 0 <= distances[i, s] < np.inf:
                return INVALID_DISTANCE, i, s
    return NO_FAULT, 0, 0
