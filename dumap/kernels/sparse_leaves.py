"""Leaf search among sparse rows: the steps of `leaves`, with exact distances.

Products in float32 rule out most pairs of a leaf's rows and the rows that probe it; see `sparse_products`. Of the
others, and of neighbours' neighbours, one row at a time is made dense.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from scipy.sparse import csr_matrix

from dumap.kernels import projection
from dumap.kernels.codes import Codes
from dumap.kernels.leaves import HOME_PASSES, SEAM_PASSES, RowsByLeaf, fill, split_crowded
from dumap.kernels.lists import CellLists, ProbedLeaves, explore, offer
from dumap.kernels.pairs import SparseRows, sparse_distance
from dumap.kernels.sparse_products import COLUMNS, TILE_ROWS, ScaledRows, add_products, count_near, make_tile

PACK = 64
"""Rows that are ruled out at once."""
MOST_LEAF_ROWS = 16_384
"""The most home rows of a leaf; a leaf with more is split."""
MOST_LEAVES = 64
"""The most leaves of a cell for which it is known which of them were compared."""


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
def _compare(x, scaled, rows, others, same_rows, slots, room, indices, distances, ages):
    """Compare the rows of a tile with others, the last of which are the tile's own if `same_rows`: each pair once."""
    last, factors = indices.shape[1] - 1, np.empty(len(room), np.float32)
    tile, products = make_tile(x, scaled, rows, slots), np.empty(len(rows), np.float32)
    halves, means, limits = scaled.halves[rows], scaled.means[rows], np.empty(len(rows), np.float32)
    for r in range(len(rows)):
        limits[r] = distances[rows[r], last] * scaled.unit
    for q in range(len(others)):
        i = others[q]
        first = max(0, q + 1 - (len(others) - len(rows))) if same_rows else 0
        add_products(x, i, scaled.factors[i], tile, first, products, room, factors)
        mean, half, limit = scaled.means[i], scaled.halves[i], np.float32(distances[i, last] * scaled.unit)
        for low in range(first, len(rows), PACK):
            high = min(low + PACK, len(rows))
            ends = means[low:high], halves[low:high], limits[low:high]
            if count_near(products[low:high], mean, half, limit, *ends) == 0:
                continue
            for r in range(low, high):
                near = half + halves[r] - max(limit, limits[r])
                if not products[r] - mean * means[r] >= near:
                    continue
                j = rows[r]
                d = sparse_distance(x, i, j)
                if d <= distances[i, last]:
                    offer(i, j, d, indices, distances, ages)
                    limit = np.float32(distances[i, last] * scaled.unit)
                if d <= distances[j, last]:
                    offer(j, i, d, indices, distances, ages)
                    limits[r] = distances[j, last] * scaled.unit


def _compare_leaves(
    x: SparseRows, scaled: ScaledRows, members: RowsByLeaf, visitors: RowsByLeaf | None, count: int, lists: CellLists
) -> None:
    """Compare the rows of each leaf with its visitors, the rows that probe it; without visitors, with each other."""
    slots, room = np.empty(len(x.dense), np.int32), np.empty(len(x.dense) + COLUMNS, np.int64)
    for leaf in range(count):
        leaf_rows = members[leaf]
        for low in range(0, len(leaf_rows), TILE_ROWS):
            rows = leaf_rows[low : low + TILE_ROWS]
            others = leaf_rows[: low + len(rows)] if visitors is None else visitors[leaf]
            _compare(x, scaled, rows, others, visitors is None, slots, room, *lists)


def _probed_leaves(probes: np.ndarray, at_home: np.ndarray) -> ProbedLeaves:
    """Return which leaves rows probe, and in which they are at home, so that their pairs are not compared again."""
    probed, home_bits = np.zeros((2, len(probes)), np.uint64)
    if probes.max(initial=0) < MOST_LEAVES:
        for rank, leaves in enumerate(probes.T):
            bits = np.where(leaves >= 0, np.uint64(1) << np.maximum(leaves, 0).astype(np.uint64), np.uint64(0))
            probed |= bits
            home_bits = np.where(at_home, bits, np.uint64(0)) if rank == 0 else home_bits
    return ProbedLeaves(probed, home_bits)


def compare_once(probes: np.ndarray, count: int) -> np.ndarray:
    """Change the leaves that rows probe so that rows of two leaves are compared once, if most rows of both probe the
    other leaf. All rows of one then probe the other leaf: that is fewer pairs, and none is left out.

    Parameters
    ----------
    probes : ndarray of int32, shape (n, width)
        Leaves that each row probes, its own leaf first; -1 where there is none.
    count : int
        Leaves. Probes stay as they are if there are more than `MOST_LEAVES`.

    Returns
    -------
    ndarray of int32, shape (n, other width)
    """
    if count > MOST_LEAVES:
        return probes
    home_leaves, probed = probes[:, 0], np.zeros((len(probes), count), bool)
    for leaves in probes.T:
        probed[np.flatnonzero(leaves >= 0), leaves[leaves >= 0]] = True
    times = np.stack([probed[home_leaves == leaf].sum(axis=0) for leaf in range(count)])
    shares = times / np.maximum(np.bincount(home_leaves, minlength=count), 1)[:, None]
    a, b = np.indices((count, count))
    once, goes = shares + shares.T > 1, (a < b) == ((a + b) % 2 == 1)
    probed |= (once & goes)[home_leaves]
    probed &= ~(once & ~goes)[home_leaves]
    probed[np.arange(len(home_leaves)), home_leaves] = False
    out = np.full((len(home_leaves), 1 + int(probed.sum(axis=1).max(initial=0))), -1, np.int32)
    out[:, 0], filled = home_leaves, np.ones(len(home_leaves), np.int64)
    for leaf in range(count):
        rows = np.flatnonzero(probed[:, leaf])
        out[rows, filled[rows]] = leaf
        filled[rows] += 1
    return out


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
    lists, scaled = CellLists.empty(rows.shape[0], k, np.float64), ScaledRows.of(x)
    probes = split_crowded(Projections(rows, targets, metric), home, probes, seed, MOST_LEAF_ROWS)
    count = int(probes.max(initial=0)) + 1
    probes, every = compare_once(probes, count), np.arange(len(home))
    members, visitors = RowsByLeaf(every, probes[:, :1], count), RowsByLeaf(every, probes[:, 1:], count)
    _compare_leaves(x, scaled, members, None, count, lists)
    _compare_leaves(x, scaled, members, visitors, count, lists)
    if count > 1:
        for _ in range(HOME_PASSES):
            explore(x, _no_codes(len(home)), home, _probed_leaves(probes, home < 0), *lists)
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
    lists, scaled = CellLists(indices.copy(), distances, np.zeros(indices.shape, np.uint8)), ScaledRows.of(x)
    probes = split_crowded(Projections(rows, targets, metric), home, probes, seed, MOST_LEAF_ROWS)
    count = int(probes.max(initial=0)) + 1
    home_rows, guests = np.flatnonzero(~guest), np.flatnonzero(guest)
    members = RowsByLeaf(home_rows, probes[home_rows, :1], count)
    visitors = RowsByLeaf(guests, probes[guests], count)
    _compare_leaves(x, scaled, members, visitors, count, lists)
    homes = np.where(guest, 0, -1).astype(np.int32)  # guests are compared with each other in their home cells
    for _ in range(SEAM_PASSES):
        explore(x, _no_codes(len(home)), homes, _probed_leaves(probes, ~guest), *lists)
    lists.distances[lists.indices < 0] = np.inf
    return lists.indices, lists.distances
