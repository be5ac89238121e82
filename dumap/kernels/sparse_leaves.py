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
from dumap.kernels.leaves import GUEST_PASSES, HOME_PASSES, RowsByLeaf, fill_short_lists, split_crowded_leaves
from dumap.kernels.lists import CellLists, ProbedLeaves, compare_neighbors_of_neighbors, insert_if_nearer
from dumap.kernels.pairs import SparseRows, sparse_distance
from dumap.kernels.sparse_products import (
    DENSE_COLUMNS_AT_ONCE,
    TILE_ROWS,
    ScaledRows,
    count_near_rows,
    index_tile,
    write_tile_products,
)

BATCH_ROWS = 64
"""Rows that are ruled out at once."""
MAX_UNSPLIT_ROWS = 16_384
"""The most home rows of a leaf; a leaf with more is split."""
MAX_KNOWN_LEAVES = 64
"""The most leaves of a cell for which it is known which of them were compared."""


class ProjectedRows:
    """Projections of rows, made on access by row number.

    Parameters
    ----------
    rows : csr_matrix
    column_places, metric
        As for `projection.project_rows`.
    """

    def __init__(self, rows: csr_matrix, column_places: np.ndarray, metric: str) -> None:
        self._rows, self._column_places, self._metric = rows, column_places, metric

    def __getitem__(self, chosen_rows: np.ndarray) -> np.ndarray:
        return projection.project_rows(self._rows[chosen_rows], self._column_places, self._metric)


@nb.njit(cache=True, nogil=True)
def _compare_leaf(x, scaled, rows, visitors, is_self_join, column_numbers, column_buffer, indices, distances, ages):
    """Compare a tile's rows with visitors, which end with the tile's own rows if `is_self_join`: each pair once."""
    last, factors = indices.shape[1] - 1, np.empty(len(column_buffer), np.float32)
    tile, products = index_tile(x, scaled, rows, column_numbers), np.empty(len(rows), np.float32)
    halves, means, kth_halves = scaled.halves[rows], scaled.means[rows], np.empty(len(rows), np.float32)
    for r in range(len(rows)):
        kth_halves[r] = distances[rows[r], last] * scaled.unit
    for q in range(len(visitors)):
        i = visitors[q]
        first = max(0, q + 1 - (len(visitors) - len(rows))) if is_self_join else 0
        write_tile_products(x, i, scaled.factors[i], tile, first, products, column_buffer, factors)
        mean, half, kth_half = scaled.means[i], scaled.halves[i], np.float32(distances[i, last] * scaled.unit)
        for low in range(first, len(rows), BATCH_ROWS):
            high = min(low + BATCH_ROWS, len(rows))
            ends = means[low:high], halves[low:high], kth_halves[low:high]
            if count_near_rows(products[low:high], mean, half, kth_half, *ends) == 0:
                continue
            for r in range(low, high):
                near = half + halves[r] - max(kth_half, kth_halves[r])
                if not products[r] - mean * means[r] >= near:
                    continue
                j = rows[r]
                d = sparse_distance(x, i, j)
                if d <= distances[i, last]:
                    insert_if_nearer(i, j, d, indices, distances, ages)
                    kth_half = np.float32(distances[i, last] * scaled.unit)
                if d <= distances[j, last]:
                    insert_if_nearer(j, i, d, indices, distances, ages)
                    kth_halves[r] = distances[j, last] * scaled.unit


def _compare_leaves(
    x: SparseRows,
    scaled: ScaledRows,
    leaf_members: RowsByLeaf,
    visitors: RowsByLeaf | None,
    n_leaves: int,
    lists: CellLists,
) -> None:
    """Compare the rows of each leaf with its visitors, the rows that probe it; without visitors, with each other."""
    column_numbers, column_buffer = (
        np.empty(len(x.dense_row), np.int32),
        np.empty(len(x.dense_row) + DENSE_COLUMNS_AT_ONCE, np.int64),
    )
    for leaf in range(n_leaves):
        leaf_rows = leaf_members[leaf]
        for low in range(0, len(leaf_rows), TILE_ROWS):
            rows = leaf_rows[low : low + TILE_ROWS]
            compared_rows = leaf_rows[: low + len(rows)] if visitors is None else visitors[leaf]
            _compare_leaf(x, scaled, rows, compared_rows, visitors is None, column_numbers, column_buffer, *lists)


def _probed_leaves(probes: np.ndarray, at_home: np.ndarray) -> ProbedLeaves:
    """Return which leaves rows probe, and in which they are at home, so that their pairs are not compared again."""
    probed, home_bits = np.zeros((2, len(probes)), np.uint64)
    if probes.max(initial=0) < MAX_KNOWN_LEAVES:
        for rank, leaves in enumerate(probes.T):
            bits = np.where(leaves >= 0, np.uint64(1) << np.maximum(leaves, 0).astype(np.uint64), np.uint64(0))
            probed |= bits
            home_bits = np.where(at_home, bits, np.uint64(0)) if rank == 0 else home_bits
    return ProbedLeaves(probed, home_bits)


def make_probes_one_way(probes: np.ndarray, n_leaves: int) -> np.ndarray:
    """Change the leaves that rows probe so that rows of two leaves are compared once, if most rows of both probe the
    other leaf. All rows of one then probe the other leaf: that is fewer pairs, and none is left out.

    Parameters
    ----------
    probes : ndarray of int32, shape (n, width)
        Leaves that each row probes, its own leaf first; -1 where there is none.
    n_leaves : int
        Leaves. Probes stay as they are if there are more than `MAX_KNOWN_LEAVES`.

    Returns
    -------
    ndarray of int32, shape (n, other width)
    """
    if n_leaves > MAX_KNOWN_LEAVES:
        return probes
    home_leaves, probed = probes[:, 0], np.zeros((len(probes), n_leaves), bool)
    for leaves in probes.T:
        probed[np.flatnonzero(leaves >= 0), leaves[leaves >= 0]] = True
    probe_counts = np.stack([probed[home_leaves == leaf].sum(axis=0) for leaf in range(n_leaves)])
    shares = probe_counts / np.maximum(np.bincount(home_leaves, minlength=n_leaves), 1)[:, None]
    a, b = np.indices((n_leaves, n_leaves))
    is_mutual, is_kept_side = shares + shares.T > 1, (a < b) == ((a + b) % 2 == 1)
    probed |= (is_mutual & is_kept_side)[home_leaves]
    probed &= ~(is_mutual & ~is_kept_side)[home_leaves]
    probed[np.arange(len(home_leaves)), home_leaves] = False
    out = np.full((len(home_leaves), 1 + int(probed.sum(axis=1).max(initial=0))), -1, np.int32)
    out[:, 0], n_filled = home_leaves, np.ones(len(home_leaves), np.int64)
    for leaf in range(n_leaves):
        rows = np.flatnonzero(probed[:, leaf])
        out[rows, n_filled[rows]] = leaf
        n_filled[rows] += 1
    return out


def _empty_codes(n_rows: int) -> Codes:
    """Return codes without columns, which rule out no pair."""
    zeros = np.zeros(n_rows, np.int32)
    return Codes(np.zeros((n_rows, 0), np.int8), np.zeros(n_rows, np.float32), zeros, zeros, np.float32(1))


def search_home_rows(
    rows: csr_matrix, column_places: np.ndarray, metric: str, probes: np.ndarray, k: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find about the k nearest other rows of each home row of a cell, among the home rows.

    Parameters
    ----------
    rows : csr_matrix of float32, shape (n, dims)
        Home rows, best in the order of `leaves.order_by_leaf`.
    column_places : ndarray
        From `projection.draw_column_places`. Crowded leaves are split by projected rows.
    metric : str
        One of `pairs.SPARSE_METRICS`.
    probes : ndarray of int32, shape (n, width)
        Leaves that each row probes, its own leaf first; -1 where there is none.
    k, seed : int

    Returns
    -------
    indices : ndarray of int32, shape (n, k)
        -1 where there are fewer other rows.
    squared : ndarray of float64, shape (n, k)
        Ascending squared distances, from `pairs.squared_from_product`.
    """
    x, guest_homes = SparseRows.from_csr(rows, metric), np.full(rows.shape[0], -1, np.int32)
    lists, scaled = CellLists.empty(rows.shape[0], k, np.float64), ScaledRows.from_sparse_rows(x)
    probes = split_crowded_leaves(
        ProjectedRows(rows, column_places, metric), guest_homes, probes, seed, MAX_UNSPLIT_ROWS
    )
    n_leaves = int(probes.max(initial=0)) + 1
    probes, all_rows = make_probes_one_way(probes, n_leaves), np.arange(len(guest_homes))
    leaf_members, visitors = (
        RowsByLeaf(all_rows, probes[:, :1], n_leaves),
        RowsByLeaf(all_rows, probes[:, 1:], n_leaves),
    )
    _compare_leaves(x, scaled, leaf_members, None, n_leaves, lists)
    _compare_leaves(x, scaled, leaf_members, visitors, n_leaves, lists)
    if n_leaves > 1:
        for _ in range(HOME_PASSES):
            compare_neighbors_of_neighbors(
                x, _empty_codes(len(guest_homes)), guest_homes, _probed_leaves(probes, guest_homes < 0), *lists
            )
    fill_short_lists(x, guest_homes, *lists)
    lists.distances[lists.indices < 0] = np.inf
    return lists.indices, lists.distances


def search_with_guests(
    rows: csr_matrix,
    column_places: np.ndarray,
    metric: str,
    guest_homes: np.ndarray,
    probes: np.ndarray,
    indices: np.ndarray,
    squared: np.ndarray,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Find nearer neighbours of a cell's home rows among its guests, and of guests among the home rows.

    Parameters
    ----------
    rows, column_places, metric
        As for `search_home_rows`: home rows and guests.
    guest_homes, probes, indices, squared, seed
        As for `leaves.search_with_guests`.

    Returns
    -------
    indices : ndarray of int32, shape (n, k)
        Lists of all rows. A guest's list holds only nearer rows, then -1.
    squared : ndarray of float64, shape (n, k)
    """
    x, is_guest, distances = SparseRows.from_csr(rows, metric), guest_homes >= 0, squared.copy()
    min_distance = np.finfo(np.float64).tiny  # not 0, so that equal rows of two cells list each other
    distances[is_guest] = np.maximum(distances[is_guest], min_distance)
    distances[(indices < 0) & ~is_guest[:, None]] = np.inf
    lists, scaled = (
        CellLists(indices.copy(), distances, np.zeros(indices.shape, np.uint8)),
        ScaledRows.from_sparse_rows(x),
    )
    probes = split_crowded_leaves(
        ProjectedRows(rows, column_places, metric), guest_homes, probes, seed, MAX_UNSPLIT_ROWS
    )
    n_leaves = int(probes.max(initial=0)) + 1
    home_rows, guests = np.flatnonzero(~is_guest), np.flatnonzero(is_guest)
    leaf_members = RowsByLeaf(home_rows, probes[home_rows, :1], n_leaves)
    visitors = RowsByLeaf(guests, probes[guests], n_leaves)
    _compare_leaves(x, scaled, leaf_members, visitors, n_leaves, lists)
    homes = np.where(is_guest, 0, -1).astype(np.int32)  # guests are compared with each other in their home cells
    for _ in range(GUEST_PASSES):
        compare_neighbors_of_neighbors(
            x, _empty_codes(len(guest_homes)), homes, _probed_leaves(probes, ~is_guest), *lists
        )
    lists.distances[lists.indices < 0] = np.inf
    return lists.indices, lists.distances
