"""Neighbours within a cell by its leaves: rows of a leaf against those that probe it, then neighbours' neighbours.

For metrics whose order is that of Euclidean distances in partition space. Candidates come from matrix products over
leaves; two passes over neighbours of neighbours (Dong, Charikar and Li, WWW 2011) then find most of what no leaf
brought together; what is kept is scored anew from the differences.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np

from dumap.kernels import tree
from dumap.kernels.axes import contract
from dumap.kernels.codes import Codes, encode, least_squared
from dumap.kernels.neighbors import insert, precedes
from dumap.kernels.threads import one_thread
from dumap.kernels.vectors import power_near, squared_distance

LEAF_ROWS = 200
"""Rows of a leaf, about: fewer give fewer distances and less recall by row (measured)."""
EXACT_ROWS = 8192
"""Up to so many rows are one leaf, in which every pair is compared; a leaf with more is cut again."""
PART_ROWS, EQUAL_ROWS = 1024, 128
"""Rows of the parts that a crowded leaf is cut into, and of those of rows that are all the same."""
HOME_PROBES = 6
"""Leaves that a row is compared in at home."""
HOME_PASSES, SEAM_PASSES = 1, 2
"""Passes over neighbours of neighbours: among a cell's own rows, and with its guests."""
STRIDE = np.float32(1.35)
"""Guests keep rows of so many times their squared reach, too: stepping stones to nearer ones."""
CUTS = 8
"""Times that crowded leaves are cut at the most: what is still crowded then is searched as it is."""
NOISE = np.float32(1e-4)
"""Squared distances under this share of the squared lengths hold products' noise: differences replace them."""
FARTHEST = np.finfo(np.float32).max
"""Squared distances beyond this are this."""
SLACK = np.float32(1.001)
"""Rounding that a bound from below is allowed."""
NEW = np.uint8(2)
"""Of an entry that came in this pass; 1 is one of the last pass, 0 an old one."""
TILE_ROWS, COLUMN_ROWS, CHUNK = 256, 4096, 16


@nb.njit(cache=True, nogil=True)
def _offer(row, j, d, indices, distances, fresh):
    """Insert j into a row's list; of those as near, the pairs' hashes choose, so that equal rows form no hub."""
    at = indices.shape[1] - 1
    if not d < np.inf or not precedes(d, j, distances[row, at], indices[row, at], row):
        return
    names, lengths, ages = indices[row], distances[row], fresh[row]
    there = False
    for t in range(len(names)):  # without a way out in the middle, so that lanes are filled
        there |= names[t] == j
    if there:
        return
    while at > 0 and precedes(d, j, lengths[at - 1], names[at - 1], row):
        names[at], lengths[at], ages[at] = names[at - 1], lengths[at - 1], ages[at - 1]
        at -= 1
    names[at], lengths[at], ages[at] = j, d, NEW


@nb.njit(inline="always")
def _squared(x, i, j):
    """Return the squared distance of two rows of x, finite however far they lie."""
    return min(squared_distance(x[i], x[j]), FARTHEST)


@nb.njit(cache=True, nogil=True)
def _distances(product, own, lengths):
    """Turn a row's products into squared distances, in place; 0 where those are noise, or not finite."""
    for j in range(len(product)):
        both = own + lengths[j]
        d = both - np.float32(2) * product[j]
        product[j] = d if d > NOISE * both else np.float32(0)


@nb.njit(cache=True, nogil=True)
def _hits(squared, limit, limits):
    """Count the distances that are within either end's limit."""
    count = np.int32(0)
    for j in range(len(squared)):
        count += np.int32((squared[j] <= limit) | (squared[j] <= limits[j]))
    return count


@nb.njit(cache=True, nogil=True)
def _take(x, product, rows, columns, row_lengths, column_lengths, indices, distances, fresh, limits):
    """Offer each pair of a matrix product to both its ends."""
    last = indices.shape[1] - 1
    for j in range(len(columns)):
        limits[j] = distances[columns[j], last]
    for i in range(len(rows)):
        row, squared = rows[i], product[i]
        _distances(squared, row_lengths[i], column_lengths)
        limit = distances[row, last]
        for low in range(0, len(columns), CHUNK):
            high = min(low + CHUNK, len(columns))
            if _hits(squared[low:high], limit, limits[low:high]) == 0:
                continue
            for j in range(low, high):
                d, column = squared[j], columns[j]
                if not (d <= limit or d <= limits[j]) or column == row:
                    continue
                if d == 0:
                    d = _squared(x, row, column)
                if d <= limit:
                    _offer(row, column, d, indices, distances, fresh)
                    limit = distances[row, last]
                if d <= limits[j]:
                    _offer(column, row, d, indices, distances, fresh)
                    limits[j] = distances[column, last]


@nb.njit(cache=True, nogil=True)
def _within(i, others, count, limits, codes, bounds):
    """Keep those of some rows that may be near enough to row i, or it to them; return how many they are."""
    for q in range(count):  # apart from what follows, so that the next row is fetched while this one is summed
        bounds[q] = least_squared(codes, i, others[q])
    kept = 0
    for q in range(count):
        j = others[q]
        others[kept] = j
        kept += bounds[q] <= SLACK * max(limits[i], limits[j])
    return kept


@nb.njit(cache=True, nogil=True)
def _explore(x, narrow, whole, home, indices, distances, fresh):
    """Offer each row its neighbours' neighbours, and it to them, where one edge on the way is new."""
    n, k = indices.shape
    limits = distances[:, k - 1].copy()
    seen = np.full(n, -1, np.int32)
    has_new = np.zeros(n, np.bool_)
    for i in range(n):
        for s in range(k):
            fresh[i, s] >>= 1
            has_new[i] |= fresh[i, s] > 0
    others, bounds = np.empty(k * k, np.int32), np.empty(k * k, np.float32)
    for i in range(n):
        seen[i] = i
        for s in range(k):
            if indices[i, s] >= 0:
                seen[indices[i, s]] = i
        count = 0
        for s in range(k):
            via, is_new = indices[i, s], fresh[i, s] > 0
            if via < 0:
                break
            if not (is_new or has_new[via]):
                continue
            for t in range(k):
                j = indices[via, t]
                if j < 0:
                    break
                if seen[j] == i or not (is_new or fresh[via, t]):
                    continue
                if home[i] >= 0 and home[i] == home[j]:  # both are compared at home
                    continue
                seen[j] = i
                others[count] = j
                count += 1
        if narrow.values.shape[1]:
            count = _within(i, others, count, limits, narrow, bounds)
        if whole.values.shape[1]:
            count = _within(i, others, count, limits, whole, bounds)
        for q in range(count):
            j = others[q]
            d = _squared(x, i, j)
            if d <= limits[i]:
                _offer(i, j, d, indices, distances, fresh)
                limits[i], has_new[i] = distances[i, k - 1], True
            if d <= limits[j]:
                _offer(j, i, d, indices, distances, fresh)
                limits[j], has_new[j] = distances[j, k - 1], True


@nb.njit(cache=True, nogil=True)
def _offer_all(x, found, indices, distances, fresh):
    """Offer each row what was found for it."""
    last = indices.shape[1] - 1
    for i in range(len(found)):
        for s in range(found.shape[1]):
            if found[i, s] >= 0:
                d = _squared(x, i, found[i, s])
                if d <= distances[i, last]:
                    _offer(i, found[i, s], d, indices, distances, fresh)


@nb.njit(cache=True, nogil=True)
def _score(x, indices, distances):
    """Sort lists anew, by distances from the rows' differences."""
    k = indices.shape[1]
    found = np.empty(k, np.int32)
    for i in range(len(indices)):
        found[:] = indices[i]
        indices[i], distances[i] = -1, np.inf
        for s in range(k):
            if found[s] >= 0:
                insert(i, i, found[s], _squared(x, i, found[s]), indices, distances)


class _Lists(NamedTuple):
    """The lists of a cell's rows while they are filled."""

    indices: np.ndarray
    distances: np.ndarray
    fresh: np.ndarray

    @classmethod
    def empty(cls, rows: int, k: int) -> _Lists:
        """Return lists without entries."""
        shape = (rows, k)
        return cls(np.full(shape, -1, np.int32), np.full(shape, np.inf, np.float32), np.zeros(shape, np.uint8))


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


def _around(x: np.ndarray, rows: np.ndarray, middle: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return some rows around a point, and their squared lengths."""
    in_line = rows[-1] - rows[0] + 1 == len(rows)  # as rows of a leaf are: a view of them will do
    placed = (x[rows[0] : rows[-1] + 1] if in_line else x[rows]) - middle
    return placed, np.einsum("ij,ij->i", placed, placed)


def _compare_leaves(x: np.ndarray, members: _Groups, visitors: _Groups | None, count: int, lists: _Lists) -> None:
    """Compare each leaf's own rows with those that visit it; with each other where there are no visitors."""
    limits = np.empty(COLUMN_ROWS, np.float32)
    with one_thread(), np.errstate(over="ignore", invalid="ignore"):
        for leaf in range(count):
            own = members[leaf]
            others = own if visitors is None else visitors[leaf]
            if not len(own) or not len(others):
                continue
            middle = x[own[:COLUMN_ROWS]].mean(axis=0, dtype=np.float64).astype(np.float32)
            for left in range(0, len(others), COLUMN_ROWS):
                some = others[left : left + COLUMN_ROWS]
                columns, lengths = _around(x, some, middle)
                for low in range(0, len(own) if visitors is not None else min(len(own), left + len(some)), TILE_ROWS):
                    rows = own[low : low + TILE_ROWS]
                    tile, own_lengths = _around(x, rows, middle)
                    after = slice(max(low - left, 0) if visitors is None else 0, None)  # each pair once
                    pairs = (rows, some[after], own_lengths, lengths[after])
                    _take(x, tile @ columns[after].T, *pairs, *lists, limits)


@nb.njit(cache=True, nogil=True)
def _fill(x, home, indices, distances, fresh):
    """Compare the cell's own rows that met fewer than k others with every row."""
    last = indices.shape[1] - 1
    for i in range(len(x)):
        if home[i] >= 0 or indices[i, last] >= 0:
            continue
        for j in range(len(x)):
            if j != i:
                _offer(i, j, _squared(x, i, j), indices, distances, fresh)


def _cut(x: np.ndarray, own: np.ndarray, others: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut a crowded leaf; return the parts that its rows probe, (own, 3 or 2), and that others do, (others, 2 or 1)."""
    count = -(-len(own) // PART_ROWS)
    drawn = own[:: max(1, len(own) // (32 * count))]
    middles = tree.kmeans(x[drawn], count, seed)
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
    some = x[:: -(-len(x) // COLUMN_ROWS)]
    extents = np.maximum(some.max(axis=1), -some.min(axis=1))
    extent = float(np.median(extents[extents > 0])) if extents.any() else 1.0
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


def _candidates(
    x: np.ndarray, axes: np.ndarray | None, steps: list[tuple[_Groups, _Groups | None]], count: int, lists: _Lists
) -> Codes:
    """Fill lists by what leaves bring together, along the axes where there are any; return the rows' codes on them."""
    if axes is None or not axes.shape[1]:
        for step in steps:
            _compare_leaves(x, *step, count, lists)
        return encode(x[:, :0])
    narrow, found = contract(x, axes), _Lists.empty(*lists.indices.shape)
    found.distances[:] = np.nextafter(lists.distances[:, -1:], np.float32(np.inf))  # nearer along all: along some, too
    for step in steps:
        _compare_leaves(narrow, *step, count, found)
    _offer_all(x, found.indices, *lists)
    return encode(narrow)


def _settled(x: np.ndarray, narrow: Codes, lists: _Lists, scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Return lists and their squared distances, scored anew where some may be those of products."""
    if not narrow.values.shape[1]:
        _score(x, lists.indices, lists.distances)
    lists.distances[lists.indices < 0] = np.inf
    return lists.indices, lists.distances.astype(np.float64) / scale**2


def search(
    x: np.ndarray, probes: np.ndarray, k: int, seed: int, axes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find about the k nearest other rows of every row of a cell, among them.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
        Rows in partition space, best in the order of `order`; scaled in place where most of their squares would not
        be finite, or vanish.
    probes : ndarray of int32, shape (n, width)
        Leaves that each row is compared in, its own first; -1 where there is none.
    k, seed : int
    axes : ndarray of float32, shape (dims, axes), optional
        As of `principal`: candidates are sought along them.

    Returns
    -------
    indices : ndarray of int32, shape (n, k)
        -1 where there are fewer other rows.
    squared : ndarray of float64, shape (n, k)
        Ascending squared distances in partition space.
    """
    x, scale = _in_range(x)
    lists, home = _Lists.empty(len(x), k), np.full(len(x), -1, np.int32)
    probes = _cut_crowded(x, home, probes[:, :HOME_PROBES], seed)
    count = int(probes.max(initial=0)) + 1
    members = _Groups(np.arange(len(x)), probes[:, 0], count)
    rows, slots = np.nonzero(probes[:, 1:] >= 0)
    visitors = _Groups(rows, probes[rows, slots + 1], count)
    narrow = _candidates(x, axes, [(members, None), (members, visitors)], count, lists)
    if count > 1:
        whole = encode(x)
        for _ in range(HOME_PASSES):
            _explore(x, narrow, whole, home, *lists)
    _fill(x, home, *lists)
    return _settled(x, narrow, lists, scale)


def meet(
    x: np.ndarray,
    home: np.ndarray,
    probes: np.ndarray,
    indices: np.ndarray,
    squared: np.ndarray,
    seed: int,
    axes: np.ndarray | None = None,
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
    axes : ndarray of float32, shape (dims, axes), optional

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
        reach = np.minimum(distances[guest] * STRIDE, FARTHEST)
    distances[guest] = np.maximum(reach, np.finfo(np.float32).tiny)  # equal rows of two cells are to meet
    distances[(indices < 0) & ~guest[:, None]] = np.inf
    lists = _Lists(indices.copy(), distances, np.zeros(indices.shape, np.uint8))
    probes = _cut_crowded(x, home, probes, seed)
    count = int(probes.max(initial=0)) + 1
    own, guests = np.flatnonzero(~guest), np.flatnonzero(guest)
    rows, slots = np.nonzero(probes[guests] >= 0)
    visitors = _Groups(guests[rows], probes[guests[rows], slots], count)
    narrow = _candidates(x, axes, [(_Groups(own, probes[own, 0], count), visitors)], count, lists)
    whole = encode(x)
    for _ in range(SEAM_PASSES):
        _explore(x, narrow, whole, home, *lists)
    return _settled(x, narrow, lists, scale)
