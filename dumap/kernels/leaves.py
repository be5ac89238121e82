"""Neighbours within a cell by its leaves: rows of a leaf against those that probe it, then neighbours' neighbours.

For metrics whose order is that of Euclidean distances in partition space. Candidates come from matrix products over
leaves; two passes over neighbours of neighbours (Dong, Charikar and Li, WWW 2011) then find most of what no leaf
brought together; what is kept is scored anew from the differences.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels import tree
from dumap.kernels.axes import contract
from dumap.kernels.neighbors import insert, precedes
from dumap.kernels.threads import one_thread
from dumap.kernels.vectors import power_near, squared_distance

LEAF_ROWS = 200
"""Rows of a leaf, about: fewer give fewer distances and less recall by row (measured)."""
EXACT_ROWS = 8192
"""Up to so many rows are one leaf, in which every pair is compared; a leaf with more is cut again."""
PART_ROWS, EQUAL_ROWS = 1024, 128
"""Rows of the parts that a crowded leaf is cut into, and of those of rows that are all the same."""
PASSES = 2
"""Passes over neighbours of neighbours."""
CUTS = 8
"""Times that crowded leaves are cut at the most: what is still crowded then is searched as it is."""
NOISE = np.float32(1e-4)
"""Squared distances under this share of the squared lengths hold products' noise: differences replace them."""
FARTHEST = np.finfo(np.float32).max
"""Squared distances beyond this are this."""
SLACK = np.float32(1.001)
"""Rounding that a bound from below is allowed."""
TILE_ROWS, COLUMN_ROWS, CHUNK = 256, 4096, 16


@nb.njit(cache=True, nogil=True)
def _offer(row, j, d, indices, distances, fresh):
    """Insert j into a row's list; of those as near, the pairs' hashes choose, so that equal rows form no hub."""
    at = indices.shape[1] - 1
    if not d < np.inf or not precedes(d, j, distances[row, at], indices[row, at], row):
        return
    for t in range(at + 1):
        if indices[row, t] == j:
            return
    while at > 0 and precedes(d, j, distances[row, at - 1], indices[row, at - 1], row):
        indices[row, at], distances[row, at] = indices[row, at - 1], distances[row, at - 1]
        fresh[row, at] = fresh[row, at - 1]
        at -= 1
    indices[row, at], distances[row, at], fresh[row, at] = j, d, True


@nb.njit(inline="always")
def _squared(x, i, j):
    """Return the squared distance of two rows of x, finite however far they lie."""
    return min(squared_distance(x[i], x[j]), FARTHEST)


@nb.njit(cache=True, nogil=True)
def _take(x, product, rows, columns, row_lengths, column_lengths, indices, distances, fresh, limits):
    """Offer each pair of a matrix product to both its ends."""
    last = indices.shape[1] - 1
    for j in range(len(columns)):
        limits[j] = distances[columns[j], last]
    for i in range(len(rows)):
        row, own = rows[i], row_lengths[i]
        limit = distances[row, last]
        for low in range(0, len(columns), CHUNK):
            high = min(low + CHUNK, len(columns))
            hits = 0
            for j in range(low, high):
                both = own + column_lengths[j]
                d = both - 2 * product[i, j]
                d = d if d > NOISE * both else np.float32(0)  # not finite, too
                product[i, j] = d
                hits += (d <= limit) | (d <= limits[j])
            if hits == 0:
                continue
            for j in range(low, high):
                d, column = product[i, j], columns[j]
                if column == row:
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
def _explore(x, narrow, home, indices, distances, fresh):
    """Offer each row its neighbours' neighbours, and it to them, where one edge on the way is new."""
    bounded = narrow.shape[1] < x.shape[1]
    n, k = indices.shape
    seen = np.full(n, -1, np.int32)
    before = fresh.copy()
    fresh[:] = False
    own, own_fresh = np.empty(k, np.int32), np.empty(k, np.bool_)
    for i in range(n):
        seen[i] = i
        for s in range(k):
            own[s], own_fresh[s] = indices[i, s], before[i, s] or fresh[i, s]
            if own[s] >= 0:
                seen[own[s]] = i
        for s in range(k):
            via = own[s]
            if via < 0:
                break
            for t in range(k):
                j = indices[via, t]
                if j < 0:
                    break
                if seen[j] == i or not (own_fresh[s] or before[via, t] or fresh[via, t]):
                    continue
                if home[i] >= 0 and home[i] == home[j]:  # both are compared at home
                    continue
                seen[j] = i
                limit = max(distances[i, k - 1], distances[j, k - 1])
                if bounded and _squared(narrow, i, j) > SLACK * limit:
                    continue
                d = _squared(x, i, j)
                if d <= distances[i, k - 1]:
                    _offer(i, j, d, indices, distances, fresh)
                if d <= distances[j, k - 1]:
                    _offer(j, i, d, indices, distances, fresh)


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


def _compare_leaves(x, home, probes, count, indices, distances, fresh):
    """Compare each leaf's own rows with each other and with those that probe it."""
    source, slot = np.nonzero(probes >= 0)
    guest = (slot > 0) | (home[source] >= 0)
    leaf = probes[source, slot]
    order = np.lexsort((source, guest, leaf))
    source, begins = source[order].astype(np.int32), np.searchsorted(leaf[order], np.arange(count + 1))
    counts = np.bincount(leaf[~guest], minlength=count)
    with one_thread(), np.errstate(over="ignore", invalid="ignore"):
        for number in np.flatnonzero(counts):
            rows, own = source[begins[number] : begins[number + 1]], counts[number]
            middle = x[rows[: min(own, COLUMN_ROWS)]].mean(axis=0, dtype=np.float64).astype(np.float32)
            for left in range(0, len(rows), COLUMN_ROWS):
                others = rows[left : left + COLUMN_ROWS]
                columns = x[others]
                columns -= middle
                lengths = np.einsum("ij,ij->i", columns, columns)
                limits = np.empty(len(others), np.float32)
                for low in range(0, min(own, left + len(others)), TILE_ROWS):
                    some = rows[low : min(low + TILE_ROWS, own)]
                    tile = x[some] - middle
                    own_lengths = np.einsum("ij,ij->i", tile, tile)
                    after = slice(max(low - left, 0), None)  # each pair once
                    pairs = (some, others[after], own_lengths, lengths[after])
                    _take(x, tile @ columns[after].T, *pairs, indices, distances, fresh, limits)


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
    extents = np.maximum(x.max(axis=1), -x.min(axis=1))
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


def search(
    x: np.ndarray, home: np.ndarray, probes: np.ndarray, k: int, seed: int, axes: np.ndarray | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """Find about the k nearest other rows of every row of a cell.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
        Rows in partition space, best in the order of `order`; scaled in place where most of their squares would not
        be finite, or vanish.
    home : ndarray of int32, shape (n,)
        -1 for the cell's own rows, their home cell for guests: two guests of one home are not compared.
    probes : ndarray of int32, shape (n, width)
        Leaves that each row is compared in, its own first; -1 where there is none.
    k, seed : int
    axes : ndarray of float32, shape (dims, axes), optional
        As of `principal`: candidates are sought along them.

    Returns
    -------
    indices : ndarray of int32, shape (n, k)
        -1 where fewer were met.
    squared : ndarray of float64, shape (n, k)
        Ascending squared distances in partition space.
    """
    x, scale = _in_range(x)
    indices, distances = np.full((len(x), k), -1, np.int32), np.full((len(x), k), np.inf, np.float32)
    fresh = np.zeros(indices.shape, np.bool_)
    probes = _cut_crowded(x, home, probes, seed)
    count = int(probes.max(initial=0)) + 1
    narrow = contract(x, axes) if axes is not None and axes.shape[1] else x
    _compare_leaves(narrow, home, probes, count, indices, distances, fresh)
    if narrow is not x:
        _score(x, indices, distances)
    if count > 1 or (home >= 0).any():
        for _ in range(PASSES):
            _explore(x, narrow, home, indices, distances, fresh)
    _fill(x, home, indices, distances, fresh)
    _score(x, indices, distances)
    squared = distances.astype(np.float64)
    squared /= scale**2
    return indices, squared
