"""Leaf search: a cell's nearest neighbours, by comparing the rows of each leaf with the rows that probe it.

For metrics of `EUCLIDEAN_ORDER`. Within a leaf, distances come from products of the rows' byte codes; pairs that are
near enough are then computed exactly. Passes over neighbours of neighbours (Dong, Charikar and Li, WWW 2011) find
most of the neighbours that share no leaf.
"""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np

from dumap.kernels import tree
from dumap.kernels.codes import (
    COLUMN_BYTES,
    MAX_COLUMNS,
    code_packs,
    code_rows,
    code_scale,
    distances_or_bounds,
    encode,
)
from dumap.kernels.instructions import DEPTH, PACK
from dumap.kernels.kmeans import kmeans
from dumap.kernels.lists import FARTHEST, CellLists, ProbedLeaves, between, explore, offer, score
from dumap.kernels.products import LEFT_TYPE, ROWS, multiply
from dumap.kernels.vectors import power_near

LEAF_ROWS = 200
"""About how many rows a leaf has: with fewer, a search takes fewer distances and finds fewer neighbours (measured)."""
EXACT_ROWS = 8192
"""The most rows of a leaf of which all pairs are compared; a leaf with more is split again."""
SPLIT_ROWS, EQUAL_ROWS = 1024, 128
"""Rows of the leaves that a crowded leaf is split into; and if all its rows are equal."""
HOME_PASSES, SEAM_PASSES = 1, 2
"""Passes over neighbours of neighbours: among a cell's home rows, and with its guests."""
MAX_SPLITS = 8
"""Most rounds of splitting; leaves that are still crowded then are searched as they are."""
CODE_RESOLUTION = np.float32(64**2)
"""Squared distances below this, in units of the codes, are computed from the rows: codes are too coarse for them."""
LEAF_SAMPLE = 15
"""Rows of a leaf that set the unit of its codes."""
SCALE_SAMPLE = 4096
"""Rows of a cell that decide whether it is scaled."""


@nb.njit(cache=True, nogil=True)
def _count_near(squared, limit, limits):
    """Count the distances that are within the limit of either row."""
    count = np.int32(0)
    for j in range(len(squared)):
        count += np.int32((squared[j] <= limit) | (squared[j] <= limits[j]))
    return count


@nb.njit(cache=True, nogil=True)
def _offer_pairs(x, row, columns, squared, resolution, limits, indices, distances, ages):
    """Offer a row to the rows it was compared with, and them to it."""
    last = indices.shape[1] - 1
    limit = distances[row, last]
    for low in range(0, len(columns), PACK):
        high = min(low + PACK, len(columns))
        if _count_near(squared[low:high], limit, limits[low:high]) == 0:
            continue
        for j in range(low, high):
            d, column = squared[j], columns[j]
            if not (d <= limit or d <= limits[j]) or column == row:
                continue
            if d <= resolution:
                d = between(x, row, column)
            if d <= limit:
                offer(row, column, d, indices, distances, ages)
                limit = distances[row, last]
            if d <= limits[j]:
                offer(column, row, d, indices, distances, ages)
                limits[j] = distances[column, last]


@nb.njit(cache=True, nogil=True)
def _compare(x, leaf_rows, others, middle, unit, width, resolution, same_rows, indices, distances, ages):
    """Compare the rows of a leaf with others by their codes; if both are the same rows, each pair once.

    Squared distances up to `resolution` are computed from the rows themselves, larger ones are those of the codes.
    """
    last = indices.shape[1] - 1
    step = max(PACK, COLUMN_BYTES // width // PACK * PACK)
    rows = np.zeros((-(-len(leaf_rows) // ROWS) * ROWS, width), LEFT_TYPE)
    packs = np.zeros((-(-min(step, len(others)) // PACK), width // DEPTH, PACK, DEPTH), np.int8)
    row_lengths, row_errors = np.empty(len(leaf_rows), np.int32), np.empty(len(leaf_rows), np.float32)
    lengths, errors = np.empty(step, np.int32), np.empty(step, np.float32)
    limits, squared = np.empty(step, np.float32), np.empty(step, np.float32)
    products = np.empty((ROWS, PACK * len(packs)), np.int32)
    code_rows(x, leaf_rows, middle, unit, rows, row_lengths, row_errors)
    # Tiles: so many columns (`others`) that their codes stay in the cache, times four rows at once.
    for left in range(0, len(others), step):
        columns = others[left : left + step]
        code_packs(x, columns, middle, unit, packs, lengths, errors)
        for j in range(len(columns)):
            limits[j] = distances[columns[j], last]
        used = packs[: -(-len(columns) // PACK)]
        for low in range(0, min(len(leaf_rows), left + len(columns)) if same_rows else len(leaf_rows), ROWS):
            first = max(0, low - left) // PACK if same_rows else 0  # columns before were compared as rows
            taken = slice(PACK * first, len(columns))
            multiply(rows[low : low + ROWS], used, first, products)
            for i in range(low, min(low + ROWS, len(leaf_rows))):
                row_products, row, sides = products[i - low][taken], leaf_rows[i], (lengths[taken], errors[taken])
                distances_or_bounds(
                    row_products, row_lengths[i], row_errors[i], *sides, unit, resolution, squared[taken]
                )
                ends = columns[taken], squared[taken], resolution, limits[taken]
                _offer_pairs(x, row, *ends, indices, distances, ages)


@nb.njit(cache=True, nogil=True)
def _by_leaf(rows, probes, count):
    """Sort rows by each leaf that they probe, in the order of the rows; return also where each leaf begins."""
    begins = np.zeros(count + 1, np.int64)
    for r in range(probes.shape[0]):
        for s in range(probes.shape[1]):
            if probes[r, s] >= 0:
                begins[probes[r, s] + 1] += 1
    begins = np.cumsum(begins)  # a counting sort
    following, out = begins[:-1].copy(), np.empty(begins[-1], np.int32)
    for r in range(probes.shape[0]):
        for s in range(probes.shape[1]):
            if probes[r, s] >= 0:
                out[following[probes[r, s]]] = rows[r]
                following[probes[r, s]] += 1
    return out, begins


class RowsByLeaf:
    """The rows that probe each leaf.

    Parameters
    ----------
    rows : ndarray of int, shape (m,)
        Ascending.
    probes : ndarray of int32, shape (m, width)
        Leaves that each row probes; -1 where there is none.
    count : int
        Leaves.
    """

    def __init__(self, rows: np.ndarray, probes: np.ndarray, count: int) -> None:
        self.rows, self.begins = _by_leaf(rows, probes, count)

    def __getitem__(self, leaf: int) -> np.ndarray:
        return self.rows[self.begins[leaf] : self.begins[leaf + 1]]


def _code_scales(x: np.ndarray, members: RowsByLeaf, count: int) -> list[tuple[np.ndarray, np.float32]]:
    """Return the middle and unit of each leaf's codes; those of empty leaves are not used."""
    every = (members[leaf] for leaf in range(count))
    return [code_scale(x[rows[:: -(-len(rows) // LEAF_SAMPLE)] if len(rows) else [0]]) for rows in every]


def _compare_leaves(
    x: np.ndarray,
    members: RowsByLeaf,
    visitors: RowsByLeaf | None,
    code_scales: list[tuple[np.ndarray, np.float32]],
    lists: CellLists,
) -> None:
    """Compare the rows of each leaf with its visitors, the rows that probe it, or with each other without visitors.

    If there is only one leaf, codes only rule pairs out: all others are computed from the rows.
    """
    width = -(-min(x.shape[1], MAX_COLUMNS) // DEPTH) * DEPTH
    for leaf, (middle, unit) in enumerate(code_scales):
        leaf_rows = members[leaf]
        others = leaf_rows if visitors is None else visitors[leaf]
        if len(leaf_rows) and len(others):
            resolution = CODE_RESOLUTION * unit * unit if len(code_scales) > 1 else np.float32(np.inf)
            _compare(x, leaf_rows, others, middle, unit, width, resolution, visitors is None, *lists)


@nb.njit(cache=True, nogil=True)
def fill(x, home, indices, distances, ages):
    """Compare home rows that have met fewer than k others with all rows.

    Parameters
    ----------
    x : ndarray of float32, or SparseRows
    home : ndarray of int32, shape (n,)
    indices, distances, ages
        See `CellLists`.
    """
    last = indices.shape[1] - 1
    for i in range(len(indices)):
        if home[i] >= 0 or indices[i, last] >= 0:
            continue
        for j in range(len(indices)):
            if j != i:
                offer(i, j, between(x, i, j), indices, distances, ages)


def _split(
    x: Any, leaf_rows: np.ndarray, others: np.ndarray, seed: int, split_rows: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split a crowded leaf by k-means, or by number if its rows are equal.

    Returns
    -------
    ndarray of int32, shape (leaf rows, 3 or 2)
        New leaves that each of its rows probes, its own first.
    ndarray of int32, shape (others, 2 or 1)
        New leaves that the other rows probe, which probed the crowded one.
    """
    count = -(-len(leaf_rows) // split_rows)
    drawn = leaf_rows[:: max(1, len(leaf_rows) // (32 * count))]
    middles = kmeans(x[drawn], count, seed)
    if len(middles) > 1:
        new = tree.Tree.of_one_group(middles)
        return tree.nearest_leaves(x[leaf_rows], new, 3), tree.nearest_leaves(x[others], new, 2)
    count = -(-len(leaf_rows) // EQUAL_ROWS)
    leaf = np.arange(len(leaf_rows), dtype=np.int32) // EQUAL_ROWS  # each leaf is linked to the next
    return np.stack([leaf, (leaf + 1) % count], axis=1), np.arange(len(others), dtype=np.int32)[:, None] % count


def _add_probe(probes: np.ndarray, rows: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Add one leaf to those that each row probes, in its first empty slot; -1 adds none."""
    rows, more = rows[more >= 0], more[more >= 0]
    if (probes[rows] >= 0).all(axis=1).any():
        probes = np.concatenate([probes, np.full((len(probes), 1), -1, np.int32)], axis=1)
    probes[rows, (probes[rows] < 0).argmax(axis=1)] = more
    return probes


def split_crowded(x: Any, home: np.ndarray, probes: np.ndarray, seed: int, most_rows: int | None = None) -> np.ndarray:
    """Split leaves with more than `most_rows` home rows, or `EXACT_ROWS`; return the leaves that rows probe then.

    Parameters
    ----------
    x : ndarray of float32, or what gives rows as such an array by their numbers: `x[rows]`
    home, probes, seed, most_rows
        As of `search_with_guests`.
    """
    limit, split_rows = (EXACT_ROWS, SPLIT_ROWS) if most_rows is None else (most_rows, -(-most_rows // 2))
    for _ in range(MAX_SPLITS):
        loads = np.bincount(probes[home < 0, 0])
        crowded = np.flatnonzero(loads > limit)
        if not len(crowded):
            break
        probes = probes.copy()
        for leaf in crowded:
            first = int(probes.max()) + 1
            inside = probes == leaf
            leaf_rows = np.flatnonzero(inside[:, 0] & (home < 0))
            others = np.setdiff1d(np.flatnonzero(inside.any(axis=1)), leaf_rows)
            for rows, new in zip((leaf_rows, others), _split(x, leaf_rows, others, seed, split_rows), strict=True):
                numbered = np.where(new >= 0, new + first, -1)
                probes[rows, inside[rows].argmax(axis=1)] = numbered[:, 0]
                for extra in range(1, new.shape[1]):
                    probes = _add_probe(probes, rows, numbered[:, extra])
    return probes


def _in_range(x: np.ndarray) -> tuple[np.ndarray, float]:
    """Scale rows, in place, by a power of two, if the squares of most would overflow or underflow."""
    sample = x[:: -(-len(x) // SCALE_SAMPLE)]
    extents = np.maximum(sample.max(axis=1), -sample.min(axis=1))
    extent = float(np.median(extents[extents > 0].astype(np.float64))) if extents.any() else 1.0
    if 1e-12 < extent < 1e12:
        return x, 1.0
    with np.errstate(over="ignore"):
        x *= (scale := power_near(extent))
    return np.clip(x, -FARTHEST, FARTHEST, out=x), float(scale)


def order(home: np.ndarray, probes: np.ndarray) -> np.ndarray:
    """Order a cell's rows by their first leaf, home rows before guests: near in space is near in memory.

    Parameters
    ----------
    home : ndarray of int32, shape (n,)
    probes : ndarray of int32, shape (n, width)

    Returns
    -------
    ndarray of int64, shape (n,)
    """
    return np.lexsort((np.arange(len(home)), home >= 0, probes[:, 0]))


def _final_lists(lists: CellLists, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return lists and their squared distances."""
    lists.distances[lists.indices < 0] = np.inf
    return lists.indices, lists.distances.astype(np.float64) / scale**2


def search(
    x: np.ndarray, probes: np.ndarray, k: int, seed: int, most_rows: int | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find about the k nearest other rows of each home row of a cell, among the home rows.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
        Home rows after `to_euclidean`, best in the order of `order`; scaled in place if most of their squares would
        overflow or underflow.
    probes : ndarray of int32, shape (n, width)
        Leaves that each row probes, the one it lies in first; -1 where there is none.
    k, seed : int
    most_rows : int, optional
        Leaves with more home rows are split into leaves of about half as many. [`EXACT_ROWS`, and larger leaves]

    Returns
    -------
    indices : ndarray of int32, shape (n, k)
        -1 where there are fewer other rows.
    squared : ndarray of float64, shape (n, k)
        Ascending squared distances after `to_euclidean`.
    """
    x, scale = _in_range(x)
    lists, home = CellLists.empty(len(x), k), np.full(len(x), -1, np.int32)
    probes = split_crowded(x, home, probes, seed, most_rows)
    count = int(probes.max(initial=0)) + 1
    every = np.arange(len(x))
    members, visitors = RowsByLeaf(every, probes[:, :1], count), RowsByLeaf(every, probes[:, 1:], count)
    code_scales = _code_scales(x, members, count)
    _compare_leaves(x, members, None, code_scales, lists)
    _compare_leaves(x, members, visitors, code_scales, lists)
    score(x, *lists)
    if count > 1:
        codes = encode(x)
        for _ in range(HOME_PASSES):
            explore(x, codes, home, ProbedLeaves.unknown(), *lists)
    fill(x, home, *lists)
    return _final_lists(lists, scale)


def search_with_guests(
    x: np.ndarray,
    home: np.ndarray,
    probes: np.ndarray,
    indices: np.ndarray,
    squared: np.ndarray,
    seed: int,
    most_rows: int | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """Find nearer neighbours of a cell's home rows among its guests, and of guests among the home rows.

    A guest brings the distance of its k-th neighbour from home, so that only nearer rows are listed.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
        As for `search`: home rows and guests.
    home : ndarray of int32, shape (n,)
        -1 for home rows; the home cell of guests, since two guests of one home are not compared.
    probes : ndarray of int32, shape (n, width)
        Leaves that each row probes, the one it lies in first; -1 where there is none.
    indices : ndarray of int32, shape (n, k)
        Lists of home rows from `search`, as rows of `x`; -1 for guests.
    squared : ndarray of float64, shape (n, k)
        Their squared distances; for guests, in every slot, that of their k-th neighbour at home.
    seed : int
    most_rows : int, optional
        As for `search`.

    Returns
    -------
    indices : ndarray of int32, shape (n, k)
        Lists of all rows; those of guests hold only rows that are nearer, then -1.
    squared : ndarray of float64, shape (n, k)
    """
    x, scale = _in_range(x)
    guest = home >= 0
    with np.errstate(over="ignore"):
        distances = np.minimum(squared * scale**2, FARTHEST).astype(np.float32)
    tiny = np.finfo(np.float32).tiny  # not 0, so that equal rows of two cells list each other
    distances[guest] = np.maximum(distances[guest], tiny)
    distances[(indices < 0) & ~guest[:, None]] = np.inf
    lists = CellLists(indices.copy(), distances, np.zeros(indices.shape, np.uint8))
    probes = split_crowded(x, home, probes, seed, most_rows)
    count = int(probes.max(initial=0)) + 1
    home_rows, guests = np.flatnonzero(~guest), np.flatnonzero(guest)
    members = RowsByLeaf(home_rows, probes[home_rows, :1], count)
    visitors = RowsByLeaf(guests, probes[guests], count)
    _compare_leaves(x, members, visitors, _code_scales(x, members, count), lists)
    score(x, *lists)
    codes = encode(x)
    for _ in range(SEAM_PASSES):
        explore(x, codes, home, ProbedLeaves.unknown(), *lists)
    return _final_lists(lists, scale)
