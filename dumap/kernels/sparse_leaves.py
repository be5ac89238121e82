"""Leaf search among sparse rows: the steps of `leaves`, with exact distances from an index of a leaf's entries.

To compare a row with the rows of a leaf costs as many steps as they share entries. One row at a time is made dense.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from scipy.sparse import csr_matrix

from dumap.kernels import projection
from dumap.kernels.codes import Codes
from dumap.kernels.leaves import HOME_PASSES, SEAM_PASSES, RowsByLeaf, fill, split_crowded
from dumap.kernels.lists import CellLists, explore, offer
from dumap.kernels.pairs import SparseRows, add_products, clear, make_index, squared_of


class Projections:
    """Projections of rows, made on access by row number.

    Parameters
    ----------
    rows : csr_matrix
    targets, metric
        As for `projection.project`.
    """

    def __init__(self, rows: csr_matrix, targets: np.ndarray, metric: str) -> None:
        self._rows, self._targets, self._metric = rows, targets, metric

    def __getitem__(self, chosen: np.ndarray) -> np.ndarray:
        return projection.project(self._rows[chosen], self._targets, self._metric)


@nb.njit(cache=True, nogil=True)
def _compare(x, leaf_rows, others, same_rows, slots, indices, distances, ages):
    """Compare the rows of a leaf with others. If both are the same rows, each pair is compared twice, once in each
    direction.
    """
    last = indices.shape[1] - 1
    index, products, limits = make_index(x, leaf_rows, slots), np.empty(len(leaf_rows)), np.empty(len(leaf_rows))
    for r in range(len(leaf_rows)):
        limits[r] = distances[leaf_rows[r], last]
    for i in others:
        add_products(x, i, index, products)
        limit = distances[i, last]
        for r in range(len(leaf_rows)):
            j = leaf_rows[r]
            if j == i:
                continue
            d = squared_of(x, i, x, j, products[r])
            if d <= limit:
                offer(i, j, d, indices, distances, ages)
                limit = distances[i, last]
            if not same_rows and d <= limits[r]:
                offer(j, i, d, indices, distances, ages)
                limits[r] = distances[j, last]
    clear(x, leaf_rows, slots)


def _compare_leaves(
    x: SparseRows, members: RowsByLeaf, visitors: RowsByLeaf | None, count: int, lists: CellLists
) -> None:
    """Compare the rows of each leaf with its visitors, the rows that probe it; without visitors, with each other."""
    slots = np.full(len(x.dense), -1, np.int32)
    for leaf in range(count):
        leaf_rows = members[leaf]
        others = leaf_rows if visitors is None else visitors[leaf]
        if len(leaf_rows) and len(others):
            _compare(x, leaf_rows, others, visitors is None, slots, *lists)


def _no_codes(rows: int) -> Codes:
    """Return codes without columns, which rule out no pair."""
    none = np.zeros(rows, np.int32)
    return Codes(np.zeros((rows, 0), np.int8), np.zeros(rows, np.float32), none, none, np.float32(1))


def search(
    rows: csr_matrix, targets: np.ndarray, metric: str, probes: np.ndarray, k: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find about the k nearest other rows of each home row of a cell, among the home rows.

    Parameters
    ----------
    rows : csr_matrix of float32, shape (n, dims)
        Home rows, best in the order of `leaves.order`.
    targets : ndarray
        From `projection.places`. Crowded leaves are split by projected rows.
    metric : str
        One of `pairs.SPARSE`.
    probes : ndarray of int32, shape (n, width)
        Leaves that each row probes, its own leaf first; -1 where there is none.
    k, seed : int

    Returns
    -------
    indices : ndarray of int32, shape (n, k)
        -1 where there are fewer other rows.
    squared : ndarray of float64, shape (n, k)
        Ascending squared distances, from `pairs.squared_of`.
    """
    x, home = SparseRows.of(rows, metric), np.full(rows.shape[0], -1, np.int32)
    lists = CellLists.empty(rows.shape[0], k, np.float64)
    probes = split_crowded(Projections(rows, targets, metric), home, probes, seed)
    count = int(probes.max(initial=0)) + 1
    every = np.arange(len(home))
    members, visitors = RowsByLeaf(every, probes[:, :1], count), RowsByLeaf(every, probes[:, 1:], count)
    _compare_leaves(x, members, None, count, lists)
    _compare_leaves(x, members, visitors, count, lists)
    if count > 1:
        for _ in range(HOME_PASSES):
            explore(x, _no_codes(len(home)), home, *lists)
    fill(x, home, *lists)
    lists.distances[lists.indices < 0] = np.inf
    return lists.indices, lists.distances


def search_with_guests(
    rows: csr_matrix,
    targets: np.ndarray,
    metric: str,
    home: np.ndarray,
    probes: np.ndarray,
    indices: np.ndarray,
    squared: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Find nearer neighbours of a cell's home rows among its guests, and of guests among the home rows.

    Parameters
    ----------
    rows, targets, metric
        As for `search`: home rows and guests.
    home, probes, indices, squared, seed
        As for `leaves.search_with_guests`.

    Returns
    -------
    indices : ndarray of int32, shape (n, k)
        Lists of all rows. A guest's list holds only nearer rows, then -1.
    squared : ndarray of float64, shape (n, k)
    """
    x, guest, distances = SparseRows.of(rows, metric), home >= 0, squared.copy()
    tiny = np.finfo(np.float64).tiny  # not 0, so that equal rows of two cells list each other
    distances[guest] = np.maximum(distances[guest], tiny)
    distances[(indices < 0) & ~guest[:, None]] = np.inf
    lists = CellLists(indices.copy(), distances, np.zeros(indices.shape, np.uint8))
    probes = split_crowded(Projections(rows, targets, metric), home, probes, seed)
    count = int(probes.max(initial=0)) + 1
    home_rows, guests = np.flatnonzero(~guest), np.flatnonzero(guest)
    members = RowsByLeaf(home_rows, probes[home_rows, :1], count)
    visitors = RowsByLeaf(guests, probes[guests], count)
    _compare_leaves(x, members, visitors, count, lists)
    for _ in range(SEAM_PASSES):
        explore(x, _no_codes(len(home)), home, *lists)
    lists.distances[lists.indices < 0] = np.inf
    return lists.indices, lists.distances
