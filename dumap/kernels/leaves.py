"""Neighbours within a cell by its leaves: rows of a leaf against those that probe it, then neighbours' neighbours.

For metrics whose order is that of Euclidean distances in partition space. Candidates come from products of the rows'
codes over leaves, and are scored from the differences; passes over neighbours of neighbours (Dong, Charikar and Li,
WWW 2011) then find most of what no leaf brought together.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels import tree
from dumap.kernels.codes import MOST, around, code_packs, code_rows, encode
from dumap.kernels.kmeans import kmeans
from dumap.kernels.lists import FARTHEST, Lists, between, explore, offer, score
from dumap.kernels.products import DEPTH, PACK, ROWS, multiply
from dumap.kernels.vectors import SHORT, power_near

LEAF_ROWS = 200
"""Rows of a leaf, about: fewer give fewer distances and less recall by row (measured)."""
EXACT_ROWS = 8192
"""Up to so many rows are one leaf, in which every pair is compared; a leaf with more is cut again."""
PART_ROWS, EQUAL_ROWS = 1024, 128
"""Rows of the parts that a crowded leaf is cut into, and of those of rows that are all the same."""
HOME_PASSES, SEAM_PASSES = 1, 2
"""Passes over neighbours of neighbours: among a cell's own rows, and with its guests."""
CUTS = 8
"""Times that crowded leaves are cut at the most: what is still crowded then is searched as it is."""
NEAR = np.float32(64**2)
"""Squared units of the codes up to which they do not tell distances well."""
LEAF_SAMPLE, COLUMN_BYTES = 15, 2**18
"""Rows of a leaf that tell the unit of its codes, and bytes that its rows are multiplied with at once."""
SCALE_SAMPLE = 4096
"""Rows of a cell that tell whether squares are in range."""


@nb.njit(cache=True, nogil=True)
def _distances(products, length, error, lengths, errors, unit, near, squared):
    """Turn a row's products into squared distances; up to `near`, and beyond all codes, what those are at least."""
    for j in range(len(squared)):
        apart = unit * unit * np.float32(np.int32(length + lengths[j] - np.int32(2) * products[j]))
        about = apart + (error * error + errors[j] * errors[j])
        least = max(np.sqrt(apart) * SHORT - (error + errors[j]), np.float32(0))
        squared[j] = about if near < about < np.inf else least * least


@nb.njit(cache=True, nogil=True)
def _hits(squared, limit, limits):
    """Count the distances that are within either end's limit."""
    count = np.int32(0)
    for j in range(len(squared)):
        count += np.int32((squared[j] <= limit) | (squared[j] <= limits[j]))
    return count


@nb.njit(cache=True, nogil=True)
def _take(x, row, columns, squared, near, limits, indices, distances, fresh):
    """Offer a row to those it was compared with, and them to it."""
    last = indices.shape[1] - 1
    limit = distances[row, last]
    for low in range(0, len(columns), PACK):
        high = min(low + PACK, len(columns))
        if _hits(squared[low:high], limit, limits[low:high]) == 0:
            continue
        for j in range(low, high):
            d, column = squared[j], columns[j]
            if not (d <= limit or d <= limits[j]) or column == row:
                continue
            if d <= near:
                d = between(x, row, column)
            if d <= limit:
                offer(row, column, d, indices, distances, fresh)
                limit = distances[row, last]
            if d <= limits[j]:
                offer(column, row, d, indices, distances, fresh)
                limits[j] = distances[column, last]


@nb.njit(cache=True, nogil=True)
def _compare(x, own, others, middle, unit, width, near, within, indices, distances, fresh):
    """Compare some rows with others by their codes; where both are the same rows, each pair once.

    Squared distances up to `near` are those of the rows themselves, others about what the codes say.
    """
    last = indices.shape[1] - 1
    step = max(PACK, COLUMN_BYTES // width // PACK * PACK)
    rows = np.zeros((-(-len(own) // ROWS) * ROWS, width), np.uint8)
    packs = np.zeros((-(-min(step, len(others)) // PACK), width // DEPTH, PACK, DEPTH), np.int8)
    own_lengths, own_errors = np.empty(len(own), np.int32), np.empty(len(own), np.float32)
    lengths, errors = np.empty(step, np.int32), np.empty(step, np.float32)
    limits, squared = np.empty(step, np.float32), np.empty(step, np.float32)
    products = np.empty((ROWS, PACK * len(packs)), np.int32)
    code_rows(x, own, middle, unit, rows, own_lengths, own_errors)
    for left in range(0, len(others), step):
        columns = others[left : left + step]
        code_packs(x, columns, middle, unit, packs, lengths, errors)
        for j in range(len(columns)):
            limits[j] = distances[columns[j], last]
        used = packs[: -(-len(columns) // PACK)]
        for low in range(0, min(len(own), left + len(columns)) if within else len(own), ROWS):
            first = max(0, low - left) // PACK if within else 0
            some = slice(PACK * first, len(columns))
            multiply(rows[low : low + ROWS], used, first, products)
            for i in range(low, min(low + ROWS, len(own))):
                found, both = products[i - low][some], (lengths[some], errors[some])
                _distances(found, own_lengths[i], own_errors[i], *both, unit, near, squared[some])
                _take(x, own[i], columns[some], squared[some], near, limits[some], indices, distances, fresh)


class _Groups:
    """Rows by leaf.

    Parameters
    ----------
    rows, leaves : ndarray of int, shape (m,)
        A row, and a leaf it belongs to.
    count : int
        Leaves.
    """

    def __init__(self, rows: np.ndarray, leaves: np.ndarray, count: int) -> None:
        order = np.lexsort((rows, leaves))
        self.rows = rows[order].astype(np.int32)
        self.begins = np.searchsorted(leaves[order], np.arange(count + 1))

    def __getitem__(self, leaf: int) -> np.ndarray:
        return self.rows[self.begins[leaf] : self.begins[leaf + 1]]


def _measures(x: np.ndarray, members: _Groups, count: int) -> list[tuple[np.ndarray, np.float32]]:
    """Return from where, and in what units, the rows of each leaf are coded; of an empty one nothing that is of use."""
    every = (members[leaf] for leaf in range(count))
    return [around(x[own[:: -(-len(own) // LEAF_SAMPLE)] if len(own) else [0]]) for own in every]


def _compare_leaves(
    x: np.ndarray,
    members: _Groups,
    visitors: _Groups | None,
    measures: list[tuple[np.ndarray, np.float32]],
    lists: Lists,
) -> None:
    """Compare each leaf's own rows with those that visit it; with each other where there are no visitors.

    Where there is but one leaf, its rows' codes only tell which pairs need not be looked at.
    """
    width = -(-min(x.shape[1], MOST) // DEPTH) * DEPTH
    for leaf, (middle, unit) in enumerate(measures):
        own = members[leaf]
        others = own if visitors is None else visitors[leaf]
        if len(own) and len(others):
            near = NEAR * unit * unit if len(measures) > 1 else np.float32(np.inf)
            _compare(x, own, others, middle, unit, width, near, visitors is None, *lists)


@nb.njit(cache=True, nogil=True)
def _fill(x, home, indices, distances, fresh):
    """Compare the cell's own rows that met fewer than k others with every row."""
    last = indices.shape[1] - 1
    for i in range(len(x)):
        if home[i] >= 0 or indices[i, last] >= 0:
            continue
        for j in range(len(x)):
            if j != i:
                offer(i, j, between(x, i, j), indices, distances, fresh)


def _cut(x: np.ndarray, own: np.ndarray, others: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut a crowded leaf; return the parts that its rows probe, (own, 3 or 2), and that others do, (others, 2 or 1)."""
    count = -(-len(own) // PART_ROWS)
    drawn = own[:: max(1, len(own) // (32 * count))]
    middles = kmeans(x[drawn], count, seed)
    if len(middles) > 1:
        parts = tree.Tree.of_one_group(middles)
        return tree.nearest_leaves(x[own], parts, 3), tree.nearest_leaves(x[others], parts, 2)
    count = -(-len(own) // EQUAL_ROWS)
    part = np.arange(len(own), dtype=np.int32) // EQUAL_ROWS  # equal rows: each part is linked to the next
    return np.stack([part, (part + 1) % count], axis=1), np.arange(len(others), dtype=np.int32)[:, None] % count


def _probe(probes: np.ndarray, rows: np.ndarray, more: np.ndarray) -> np.ndarray:
    """Have rows probe one more leaf each, in their first empty slot; -1 for none."""
    rows, more = rows[more >= 0], more[more >= 0]
    if (probes[rows] >= 0).all(axis=1).any():
        probes = np.concatenate([probes, np.full((len(probes), 1), -1, np.int32)], axis=1)
    probes[rows, (probes[rows] < 0).argmax(axis=1)] = more
    return probes


def _cut_crowded(x: np.ndarray, home: np.ndarray, probes: np.ndarray, seed: int) -> np.ndarray:
    """Cut the leaves that hold more than `EXACT_ROWS` of the cell's own rows; return what rows probe then."""
    for _ in range(CUTS):
        loads = np.bincount(probes[home < 0, 0])
        crowded = np.flatnonzero(loads > EXACT_ROWS)
        if not len(crowded):
            break
        probes = probes.copy()
        for leaf in crowded:
            first = int(probes.max()) + 1
            inside = probes == leaf
            own = np.flatnonzero(inside[:, 0] & (home < 0))
            others = np.setdiff1d(np.flatnonzero(inside.any(axis=1)), own)
            for rows, parts in zip((own, others), _cut(x, own, others, seed), strict=True):
                named = np.where(parts >= 0, parts + first, -1)
                probes[rows, inside[rows].argmax(axis=1)] = named[:, 0]
                for extra in range(1, parts.shape[1]):
                    probes = _probe(probes, rows, named[:, extra])
    return probes


def _in_range(x: np.ndarray) -> tuple[np.ndarray, float]:
    """Scale rows, in place, by a power of two where the squares of most would not be finite, or vanish."""
    some = x[:: -(-len(x) // SCALE_SAMPLE)]
    extents = np.maximum(some.max(axis=1), -some.min(axis=1))
    extent = float(np.median(extents[extents > 0].astype(np.float64))) if extents.any() else 1.0
    if 1e-12 < extent < 1e12:
        return x, 1.0
    with np.errstate(over="ignore"):
        x *= (scale := power_near(extent))
    return np.clip(x, -FARTHEST, FARTHEST, out=x), float(scale)


def order(home: np.ndarray, probes: np.ndarray) -> np.ndarray:
    """Order a cell's rows by the leaf they lie in or probe first, its own before guests: near in space, near in memory.

    Parameters
    ----------
    home : ndarray of int32, shape (n,)
    probes : ndarray of int32, shape (n, width)

    Returns
    -------
    ndarray of int64, shape (n,)
    """
    return np.lexsort((np.arange(len(home)), home >= 0, probes[:, 0]))


def _settled(lists: Lists, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return lists and their squared distances."""
    lists.distances[lists.indices < 0] = np.inf
    return lists.indices, lists.distances.astype(np.float64) / scale**2


def search(x: np.ndarray, probes: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Find about the k nearest other rows of every row of a cell, among them.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
        Rows in partition space, best in the order of `order`; scaled in place where most of their squares would not
        be finite, or vanish.
    probes : ndarray of int32, shape (n, width)
        Leaves that each row is compared in, its own first; -1 where there is none.
    k, seed : int

    Returns
    -------
    indices : ndarray of int32, shape (n, k)
        -1 where there are fewer other rows.
    squared : ndarray of float64, shape (n, k)
        Ascending squared distances in partition space.
    """
    x, scale = _in_range(x)
    lists, home = Lists.empty(len(x), k), np.full(len(x), -1, np.int32)
    probes = _cut_crowded(x, home, probes, seed)
    count = int(probes.max(initial=0)) + 1
    members = _Groups(np.arange(len(x)), probes[:, 0], count)
    rows, slots = np.nonzero(probes[:, 1:] >= 0)
    visitors = _Groups(rows, probes[rows, slots + 1], count)
    measures = _measures(x, members, count)
    _compare_leaves(x, members, None, measures, lists)
    _compare_leaves(x, members, visitors, measures, lists)
    score(x, *lists)
    if count > 1:
        codes = encode(x)
        for _ in range(HOME_PASSES):
            explore(x, codes, home, *lists)
    _fill(x, home, *lists)
    return _settled(lists, scale)


def meet(
    x: np.ndarray, home: np.ndarray, probes: np.ndarray, indices: np.ndarray, squared: np.ndarray, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Find nearer neighbours of a cell's rows among its guests, and of guests among its rows.

    A guest brings no list, but how far its own one reaches: what lies beyond is passed over at once.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
        As for `search`: the cell's own rows and its guests.
    home : ndarray of int32, shape (n,)
        -1 for the cell's own rows, their home cell for guests: two guests of one home are not compared.
    probes : ndarray of int32, shape (n, width)
        Leaves that each row is compared in, its own first; -1 where there is none.
    indices : ndarray of int32, shape (n, k)
        What `search` found for the cell's own rows, as rows of `x`; -1 for guests.
    squared : ndarray of float64, shape (n, k)
        Their squared distances; for guests, in every slot, that of the last neighbour that they have at home.
    seed : int

    Returns
    -------
    indices : ndarray of int32, shape (n, k)
        Lists of all rows; -1 in those of guests where there is nothing nearer.
    squared : ndarray of float64, shape (n, k)
    """
    x, scale = _in_range(x)
    guest = home >= 0
    with np.errstate(over="ignore"):
        distances = np.minimum(squared * scale**2, FARTHEST).astype(np.float32)
    distances[guest] = np.maximum(distances[guest], np.finfo(np.float32).tiny)  # equal rows of two cells are to meet
    distances[(indices < 0) & ~guest[:, None]] = np.inf
    lists = Lists(indices.copy(), distances, np.zeros(indices.shape, np.uint8))
    probes = _cut_crowded(x, home, probes, seed)
    count = int(probes.max(initial=0)) + 1
    own, guests = np.flatnonzero(~guest), np.flatnonzero(guest)
    rows, slots = np.nonzero(probes[guests] >= 0)
    visitors = _Groups(guests[rows], probes[guests[rows], slots], count)
    members = _Groups(own, probes[own, 0], count)
    _compare_leaves(x, members, visitors, _measures(x, members, count), lists)
    score(x, *lists)
    codes = encode(x)
    for _ in range(SEAM_PASSES):
        explore(x, codes, home, *lists)
    return _settled(lists, scale)
