"""Leaf search: a cell's nearest neighbours, by comparing the rows of each leaf with the rows that probe it.

For metrics of `EUCLIDEAN_ORDER_METRICS`. Within a leaf, distances come from products of the rows' byte codes; pairs
that are near enough are then computed exactly. Passes over neighbours of neighbours (Dong, Charikar and Li, WWW 2011)
find most of the neighbours that share no leaf.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from dumap.kernels import tree
from dumap.kernels.codes import (
    MAX_CODE_COLUMNS,
    TILE_CODE_BYTES,
    code_scale,
    distances_or_bounds,
    encode_left_rows,
    encode_right_packs,
    encode_rows,
)
from dumap.kernels.instructions import COLUMN_GROUP, PACK_ROWS
from dumap.kernels.kmeans import kmeans
from dumap.kernels.lists import (
    MAX_SQUARED,
    CellLists,
    ProbedLeaves,
    compare_neighbors_of_neighbors,
    finite_distance,
    insert_if_nearer,
    score_new_entries,
)
from dumap.kernels.products import LEFT_ROWS, LEFT_TYPE, multiply_packs
from dumap.kernels.vectors import scale_to_one

LEAF_ROWS = 200
"""About how many rows a leaf has: with fewer, a search takes fewer distances and finds fewer neighbours (measured)."""
MAX_LEAF_ROWS = 8192
"""The most rows of a leaf of which all pairs are compared; a leaf with more is split again."""
ROWS_AFTER_SPLIT, EQUAL_ROWS_AFTER_SPLIT = 1024, 128
"""Rows of the leaves that a crowded leaf is split into; and if all its rows are equal."""
HOME_PASSES, GUEST_PASSES = 1, 2
"""Passes over neighbours of neighbours: among a cell's home rows, and with its guests."""
MAX_SPLIT_ROUNDS = 8
"""Most rounds of splitting; leaves that are still crowded then are searched as they are."""
CODE_RESOLUTION = np.float32(64**2)
"""Squared distances below this, in units of the codes, are computed from the rows: codes are too coarse for them."""
LEAF_SAMPLE_ROWS = 15
"""Rows of a leaf that set the unit of its codes."""
SCALE_SAMPLE_ROWS = 4096
"""Rows of a cell that decide whether it is scaled."""


@nb.njit(cache=True, nogil=True)
def _count_near_rows(squared, row_kth_squared, kth_squared):
    """Count the distances that are within the limit of either row."""
    count = np.int32(0)
    for j in range(len(squared)):
        count += np.int32((squared[j] <= row_kth_squared) | (squared[j] <= kth_squared[j]))
    return count


@nb.njit(cache=True, nogil=True)
def _insert_pairs(x, row, columns, squared, resolution, kth_squared, indices, distances, ages):
    """Offer a row to the rows it was compared with, and them to it."""
    last = indices.shape[1] - 1
    row_kth_squared = distances[row, last]
    for low in range(0, len(columns), PACK_ROWS):
        high = min(low + PACK_ROWS, len(columns))
        if _count_near_rows(squared[low:high], row_kth_squared, kth_squared[low:high]) == 0:
            continue
        for j in range(low, high):
            d, column = squared[j], columns[j]
            if not (d <= row_kth_squared or d <= kth_squared[j]) or column == row:
                continue
            if d <= resolution:
                d = finite_distance(x, row, column)
            if d <= row_kth_squared:
                insert_if_nearer(row, column, d, indices, distances, ages)
                row_kth_squared = distances[row, last]
            if d <= kth_squared[j]:
                insert_if_nearer(column, row, d, indices, distances, ages)
                kth_squared[j] = distances[column, last]


@nb.njit(cache=True, nogil=True)
def _compare_leaf(x, leaf_rows, visitors, centre, unit, width, resolution, is_self_join, indices, distances, ages):
    """Compare the rows of a leaf with others by their codes; if both are the same rows, each pair once.

    Squared distances up to `resolution` are computed from the rows themselves, larger ones are those of the codes.
    """
    last = indices.shape[1] - 1
    tile_columns = max(PACK_ROWS, TILE_CODE_BYTES // width // PACK_ROWS * PACK_ROWS)
    left_rows = np.zeros((-(-len(leaf_rows) // LEFT_ROWS) * LEFT_ROWS, width), LEFT_TYPE)
    n_packs = -(-min(tile_columns, len(visitors)) // PACK_ROWS)
    packs = np.zeros((n_packs, width // COLUMN_GROUP, PACK_ROWS, COLUMN_GROUP), np.int8)
    row_squared_lengths, row_errors = np.empty(len(leaf_rows), np.int32), np.empty(len(leaf_rows), np.float32)
    corrected_lengths, errors = np.empty(tile_columns, np.int32), np.empty(tile_columns, np.float32)
    kth_squared, squared = np.empty(tile_columns, np.float32), np.empty(tile_columns, np.float32)
    products = np.empty((LEFT_ROWS, PACK_ROWS * len(packs)), np.int32)
    encode_left_rows(x, leaf_rows, centre, unit, left_rows, row_squared_lengths, row_errors)
    # Tiles: so many columns (`visitors`) that their codes stay in the cache, times four rows at once.
    for tile_start in range(0, len(visitors), tile_columns):
        columns = visitors[tile_start : tile_start + tile_columns]
        encode_right_packs(x, columns, centre, unit, packs, corrected_lengths, errors)
        for j in range(len(columns)):
            kth_squared[j] = distances[columns[j], last]
        tile_packs = packs[: -(-len(columns) // PACK_ROWS)]
        stop = min(len(leaf_rows), tile_start + len(columns)) if is_self_join else len(leaf_rows)
        for low in range(0, stop, LEFT_ROWS):
            first_pack = max(0, low - tile_start) // PACK_ROWS if is_self_join else 0  # those before were left rows
            compared = slice(PACK_ROWS * first_pack, len(columns))
            multiply_packs(left_rows[low : low + LEFT_ROWS], tile_packs, first_pack, products)
            for i in range(low, min(low + LEFT_ROWS, len(leaf_rows))):
                row_code = products[i - low][compared], row_squared_lengths[i], row_errors[i]
                column_codes = corrected_lengths[compared], errors[compared]
                distances_or_bounds(*row_code, *column_codes, unit, resolution, squared[compared])
                pairs = columns[compared], squared[compared], resolution, kth_squared[compared]
                _insert_pairs(x, leaf_rows[i], *pairs, indices, distances, ages)


@nb.njit(cache=True, nogil=True)
def _sort_by_leaf(rows, probes, n_leaves):
    """Sort rows by each leaf that they probe, in the order of the rows; return also where each leaf begins."""
    starts = np.zeros(n_leaves + 1, np.int64)
    for r in range(probes.shape[0]):
        for s in range(probes.shape[1]):
            if probes[r, s] >= 0:
                starts[probes[r, s] + 1] += 1
    starts = np.cumsum(starts)  # a counting sort
    next_index, sorted_rows = starts[:-1].copy(), np.empty(starts[-1], np.int32)
    for r in range(probes.shape[0]):
        for s in range(probes.shape[1]):
            if probes[r, s] >= 0:
                sorted_rows[next_index[probes[r, s]]] = rows[r]
                next_index[probes[r, s]] += 1
    return sorted_rows, starts


class RowsByLeaf:
    """The rows that probe each leaf.

    Parameters
    ----------
    rows : ndarray of int, shape (m,)
        Ascending.
    probes : ndarray of int32, shape (m, width)
        Leaves that each row probes; -1 where there is none.
    n_leaves : int
        Leaves.
    """

    def __init__(self, rows: np.ndarray, probes: np.ndarray, n_leaves: int) -> None:
        self.rows, self.starts = _sort_by_leaf(rows, probes, n_leaves)

    def __getitem__(self, leaf: int) -> np.ndarray:
        return self.rows[self.starts[leaf] : self.starts[leaf + 1]]


def _code_scales(x: np.ndarray, leaf_members: RowsByLeaf, n_leaves: int) -> list[tuple[np.ndarray, np.float32]]:
    """Return the centre and unit of each leaf's codes; those of empty leaves are not used."""
    rows_of_leaves = (leaf_members[leaf] for leaf in range(n_leaves))
    return [code_scale(x[rows[:: -(-len(rows) // LEAF_SAMPLE_ROWS)] if len(rows) else [0]]) for rows in rows_of_leaves]


def _compare_leaves(
    x: np.ndarray,
    leaf_members: RowsByLeaf,
    visitors: RowsByLeaf | None,
    code_scales: list[tuple[np.ndarray, np.float32]],
    lists: CellLists,
) -> None:
    """Compare the rows of each leaf with its visitors, the rows that probe it, or with each other without visitors.

    If there is only one leaf, codes only rule pairs out: all others are computed from the rows.
    """
    width = -(-min(x.shape[1], MAX_CODE_COLUMNS) // COLUMN_GROUP) * COLUMN_GROUP
    for leaf, (centre, unit) in enumerate(code_scales):
        leaf_rows = leaf_members[leaf]
        compared_rows = leaf_rows if visitors is None else visitors[leaf]
        if len(leaf_rows) and len(compared_rows):
            resolution = CODE_RESOLUTION * unit * unit if len(code_scales) > 1 else np.float32(np.inf)
            _compare_leaf(x, leaf_rows, compared_rows, centre, unit, width, resolution, visitors is None, *lists)


@nb.njit(cache=True, nogil=True)
def fill_short_lists(x, guest_homes, indices, distances, ages):
    """Compare home rows that have met fewer than k others with all rows.

    Parameters
    ----------
    x : ndarray of float32, or SparseRows
    guest_homes : ndarray of int32, shape (n,)
    indices, distances, ages
        See `CellLists`.
    """
    last = indices.shape[1] - 1
    for i in range(len(indices)):
        if guest_homes[i] >= 0 or indices[i, last] >= 0:
            continue
        for j in range(len(indices)):
            if j != i:
                insert_if_nearer(i, j, finite_distance(x, i, j), indices, distances, ages)


def _split_leaf(
    x: Any, leaf_rows: np.ndarray, visitors: np.ndarray, seed: int, split_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split a crowded leaf by k-means, or by number if its rows are equal.

    Returns
    -------
    ndarray of int32, shape (leaf rows, 3 or 2)
        New leaves that each of its rows probes, its own first.
    ndarray of int32, shape (others, 2 or 1)
        New leaves that the other rows probe, which probed the crowded one.
    """
    n_leaves = -(-len(leaf_rows) // split_rows)
    sampled_rows = leaf_rows[:: max(1, len(leaf_rows) // (32 * n_leaves))]
    centroids = kmeans(x[sampled_rows], n_leaves, seed)
    if len(centroids) > 1:
        split_tree = tree.Tree.with_one_group(centroids)
        return tree.nearest_leaves(x[leaf_rows], split_tree, 3), tree.nearest_leaves(x[visitors], split_tree, 2)
    n_leaves = -(-len(leaf_rows) // EQUAL_ROWS_AFTER_SPLIT)
    leaf = np.arange(len(leaf_rows), dtype=np.int32) // EQUAL_ROWS_AFTER_SPLIT  # each leaf is linked to the next
    return np.stack([leaf, (leaf + 1) % n_leaves], axis=1), np.arange(len(visitors), dtype=np.int32)[:, None] % n_leaves


def _add_probe(probes: np.ndarray, rows: np.ndarray, added_leaves: np.ndarray) -> np.ndarray:
    """Add one leaf to those that each row probes, in its first empty slot; -1 adds none."""
    rows, added_leaves = rows[added_leaves >= 0], added_leaves[added_leaves >= 0]
    if (probes[rows] >= 0).all(axis=1).any():
        probes = np.concatenate([probes, np.full((len(probes), 1), -1, np.int32)], axis=1)
    probes[rows, (probes[rows] < 0).argmax(axis=1)] = added_leaves
    return probes


def split_crowded_leaves(
    x: Any, guest_homes: np.ndarray, probes: np.ndarray, seed: int, max_rows: int | None = None
) -> np.ndarray:
    """Split leaves with more than `max_rows` home rows, or `MAX_LEAF_ROWS`; return the leaves that rows probe then.

    Parameters
    ----------
    x : ndarray of float32, or what gives rows as such an array by their numbers: `x[rows]`
    guest_homes, probes, seed, max_rows
        As of `search_with_guests`.
    """
    max_leaf_rows, split_rows = (MAX_LEAF_ROWS, ROWS_AFTER_SPLIT) if max_rows is None else (max_rows, -(-max_rows // 2))
    for _ in range(MAX_SPLIT_ROUNDS):
        home_rows_of_leaf = np.bincount(probes[guest_homes < 0, 0])
        crowded_leaves = np.flatnonzero(home_rows_of_leaf > max_leaf_rows)
        if not len(crowded_leaves):
            break
        probes = probes.copy()
        for leaf in crowded_leaves:
            n_leaves = int(probes.max()) + 1
            is_probe_of_leaf = probes == leaf
            leaf_rows = np.flatnonzero(is_probe_of_leaf[:, 0] & (guest_homes < 0))
            visitors = np.setdiff1d(np.flatnonzero(is_probe_of_leaf.any(axis=1)), leaf_rows)
            new_probes = _split_leaf(x, leaf_rows, visitors, seed, split_rows)
            for rows, new_leaves in zip((leaf_rows, visitors), new_probes, strict=True):
                numbered_leaves = np.where(new_leaves >= 0, new_leaves + n_leaves, -1)
                probes[rows, is_probe_of_leaf[rows].argmax(axis=1)] = numbered_leaves[:, 0]
                for probe in range(1, new_leaves.shape[1]):
                    probes = _add_probe(probes, rows, numbered_leaves[:, probe])
    return probes


def _scale_to_range(x: np.ndarray) -> tuple[np.ndarray, float]:
    """Scale rows, in place, by a power of two, if the squares of most would overflow or underflow."""
    sample = x[:: -(-len(x) // SCALE_SAMPLE_ROWS)]
    extents = np.maximum(sample.max(axis=1), -sample.min(axis=1))
    extent = float(np.median(extents[extents > 0].astype(np.float64))) if extents.any() else 1.0
    if 1e-12 < extent < 1e12:
        return x, 1.0
    with np.errstate(over="ignore"):
        x *= (scale := scale_to_one(extent))
    return np.clip(x, -MAX_SQUARED, MAX_SQUARED, out=x), float(scale)


def order_by_leaf(guest_homes: np.ndarray, probes: np.ndarray) -> np.ndarray:
    """Order a cell's rows by their first leaf, home rows before guests: near in space is near in memory.

    Parameters
    ----------
    guest_homes : ndarray of int32, shape (n,)
    probes : ndarray of int32, shape (n, width)

    Returns
    -------
    ndarray of int64, shape (n,)
    """
    return np.lexsort((np.arange(len(guest_homes)), guest_homes >= 0, probes[:, 0]))


def _final_lists(lists: CellLists, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return lists and their squared distances."""
    lists.distances[lists.indices < 0] = np.inf
    return lists.indices, lists.distances.astype(np.float64) / scale**2


def search_home_rows(
    x: np.ndarray, probes: np.ndarray, k: int, seed: int, max_leaf_rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find about the k nearest other rows of each home row of a cell, among the home rows.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
        Home rows after `to_euclidean`, best in the order of `order_by_leaf`; scaled in place if most of their squares
        would overflow or underflow.
    probes : ndarray of int32, shape (n, width)
        Leaves that each row probes, the one it lies in first; -1 where there is none.
    k, seed : int
    max_leaf_rows : int, optional
        Leaves with more home rows are split into leaves of about half as many. [`MAX_LEAF_ROWS`, and larger leaves]

    Returns
    -------
    indices : ndarray of int32, shape (n, k)
        -1 where there are fewer other rows.
    squared : ndarray of float64, shape (n, k)
        Ascending squared distances after `to_euclidean`.
    """
    x, scale = _scale_to_range(x)
    lists, guest_homes = CellLists.empty(len(x), k), np.full(len(x), -1, np.int32)
    probes = split_crowded_leaves(x, guest_homes, probes, seed, max_leaf_rows)
    n_leaves, all_rows = int(probes.max(initial=0)) + 1, np.arange(len(x))
    leaf_members = RowsByLeaf(all_rows, probes[:, :1], n_leaves)
    visitors = RowsByLeaf(all_rows, probes[:, 1:], n_leaves)
    code_scales = _code_scales(x, leaf_members, n_leaves)
    _compare_leaves(x, leaf_members, None, code_scales, lists)
    _compare_leaves(x, leaf_members, visitors, code_scales, lists)
    score_new_entries(x, *lists)
    if n_leaves > 1:
        codes = encode_rows(x)
        for _ in range(HOME_PASSES):
            compare_neighbors_of_neighbors(x, codes, guest_homes, ProbedLeaves.unknown(), *lists)
    fill_short_lists(x, guest_homes, *lists)
    return _final_lists(lists, scale)


def search_with_guests(
    x: np.ndarray,
    guest_homes: np.ndarray,
    probes: np.ndarray,
    indices: np.ndarray,
    squared: np.ndarray,
    seed: int,
    max_leaf_rows: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Find nearer neighbours of a cell's home rows among its guests, and of guests among the home rows.

    A guest brings the distance of its k-th neighbour from home, so that only nearer rows are listed.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
        As for `search_home_rows`: home rows and guests.
    guest_homes : ndarray of int32, shape (n,)
        -1 for home rows; the home cell of guests, since two guests of one home are not compared.
    probes : ndarray of int32, shape (n, width)
        Leaves that each row probes, the one it lies in first; -1 where there is none.
    indices : ndarray of int32, shape (n, k)
        Lists of home rows from `search_home_rows`, as rows of `x`; -1 for guests.
    squared : ndarray of float64, shape (n, k)
        Their squared distances; for guests, in every slot, that of their k-th neighbour at home.
    seed : int
    max_leaf_rows : int, optional
        As for `search_home_rows`.

    Returns
    -------
    indices : ndarray of int32, shape (n, k)
        Lists of all rows; those of guests hold only rows that are nearer, then -1.
    squared : ndarray of float64, shape (n, k)
    """
    x, scale = _scale_to_range(x)
    is_guest = guest_homes >= 0
    with np.errstate(over="ignore"):
        distances = np.minimum(squared * scale**2, MAX_SQUARED).astype(np.float32)
    min_distance = np.finfo(np.float32).tiny  # not 0, so that equal rows of two cells list each other
    distances[is_guest] = np.maximum(distances[is_guest], min_distance)
    distances[(indices < 0) & ~is_guest[:, None]] = np.inf
    lists = CellLists(indices.copy(), distances, np.zeros(indices.shape, np.uint8))
    probes = split_crowded_leaves(x, guest_homes, probes, seed, max_leaf_rows)
    n_leaves = int(probes.max(initial=0)) + 1
    home_rows, guests = np.flatnonzero(~is_guest), np.flatnonzero(is_guest)
    leaf_members = RowsByLeaf(home_rows, probes[home_rows, :1], n_leaves)
    visitors = RowsByLeaf(guests, probes[guests], n_leaves)
    _compare_leaves(x, leaf_members, visitors, _code_scales(x, leaf_members, n_leaves), lists)
    score_new_entries(x, *lists)
    codes = encode_rows(x)
    for _ in range(GUEST_PASSES):
        compare_neighbors_of_neighbors(x, codes, guest_homes, ProbedLeaves.unknown(), *lists)
    return _final_lists(lists, scale)
