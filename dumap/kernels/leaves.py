"""Neighbours within a cell by its leaves: rows of a leaf against those that probe it, then neighbours' neighbours.

For metrics whose order is that of Euclidean distances in partition space. Candidates come from matrix products over
leaves; two passes over neighbours of neighbours (Dong, Charikar and Li, WWW 2011) then find most of what no leaf
brought together; what is kept is scored anew from the differences.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels import cells, hashing
from dumap.kernels.neighbors import insert
from dumap.kernels.threads import one_thread

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
NOISE = np.float32(4e-6)
"""Squared distances under this share of the squared lengths are products' noise: such rows count as equal."""
TILE_ROWS, COLUMN_ROWS, CHUNK = 256, 4096, 16
REASSOCIATED = {"reassoc", "nsz", "contract"}


@nb.njit(cache=True, nogil=True)
def _offer(row, j, d, indices, distances, fresh):
    """Insert j into a row's list; of those as near, the pairs' hashes choose, so that equal rows form no hub."""
    at = indices.shape[1] - 1
    if not d < np.inf or d > distances[row, at]:
        return
    if d == distances[row, at] and not hashing.pair(row, j) < hashing.pair(row, indices[row, at]):
        return
    for t in range(at + 1):
        if indices[row, t] == j:
            return
    while at > 0 and (
        distances[row, at - 1] > d
        or (distances[row, at - 1] == d and hashing.pair(row, j) < hashing.pair(row, indices[row, at - 1]))
    ):
        indices[row, at], distances[row, at] = indices[row, at - 1], distances[row, at - 1]
        fresh[row, at] = fresh[row, at - 1]
        at -= 1
    indices[row, at], distances[row, at], fresh[row, at] = j, d, True


@nb.njit(cache=True, nogil=True)
def _take(product, rows, columns, row_lengths, column_lengths, indices, distances, fresh, limits):
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
                d = d if d > NOISE * both else np.float32(0)
                product[i, j] = d
                hits += (d <= limit) | (d <= limits[j])
            if hits == 0:
                continue
            for j in range(low, high):
                d, column = product[i, j], columns[j]
                if column == row:
                    continue
                if d <= limit:
                    _offer(row, column, d, indices, distances, fresh)
                    limit = distances[row, last]
                if d <= limits[j]:
                    _offer(column, row, d, indices, distances, fresh)
                    limits[j] = distances[column, last]


@nb.njit(cache=True, nogil=True, fastmath=REASSOCIATED)
def squared_distance(x, i, j):
    """Return the squared Euclidean distance of two rows of x."""
    total = np.float32(0)
    for c in range(x.shape[1]):
        gap = x[i, c] - x[j, c]
        total += gap * gap
    return total


@nb.njit(cache=True, nogil=True)
def _explore(x, home, indices, distances, fresh):
    """Offer each row its neighbours' neighbours, and it to them, where one edge on the way is new."""
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
                d = squared_distance(x, i, j)
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
                insert(i, i, found[s], squared_distance(x, i, found[s]), indices, distances)


def _compare_leaves(x, home, probes, count, indices, distances, fresh):
    """Compare each leaf's own rows with each other and with those that probe it."""
    source, slot = np.nonzero(probes >= 0)
    guest = (slot > 0) | (home[source] >= 0)
    leaf = probes[source, slot]
    order = np.lexsort((source, guest, leaf))
    source, begins = source[order].astype(np.int32), np.searchsorted(leaf[order], np.arange(count + 1))
    counts = np.bincount(leaf[~guest], minlength=count)
    with one_thread():
        for number in np.flatnonzero(counts):
            rows = source[begins[number] : begins[number + 1]]
            own = counts[number]
            placed = x[rows]
            placed -= placed[:own].mean(axis=0, dtype=np.float64).astype(np.float32)
            lengths = np.einsum("ij,ij->i", placed, placed)
            for low in range(0, own, TILE_ROWS):
                high = min(low + TILE_ROWS, own)
                for left in range(low, len(rows), COLUMN_ROWS):
                    others = slice(left, left + COLUMN_ROWS)
                    product = placed[low:high] @ placed[others].T
                    limits = np.empty(product.shape[1], np.float32)
                    tile = (rows[low:high], rows[others], lengths[low:high], lengths[others])
                    _take(product, *tile, indices, distances, fresh, limits)


@nb.njit(cache=True, nogil=True)
def _fill(x, home, indices, distances, fresh):
    """Compare the cell's own rows that met fewer than k others with every row."""
    last = indices.shape[1] - 1
    for i in range(len(x)):
        if home[i] >= 0 or indices[i, last] >= 0:
            continue
        for j in range(len(x)):
            if j != i:
                _offer(i, j, squared_distance(x, i, j), indices, distances, fresh)


def _cut(x: np.ndarray, own: np.ndarray, others: np.ndarray, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Cut a crowded leaf; return the parts (own, 3) that its rows probe, and those (others, 2) that others probe."""
    count = -(-len(own) // PART_ROWS)
    drawn = own[:: max(1, len(own) // (32 * count))]
    middles = cells.kmeans(x[drawn], count, seed)
    if len(middles) > 1:
        tree = cells.Tree(middles[:1], np.array([0, len(middles)]), middles)
        return cells.nearest_leaves(x[own], tree, 3), cells.nearest_leaves(x[others], tree, 2)
    count = -(-len(own) // EQUAL_ROWS)
    part = np.arange(len(own), dtype=np.int32) // EQUAL_ROWS  # equal rows: each part is linked to the next
    none = np.full(len(own), -1, np.int32)
    any_part = np.arange(len(others), dtype=np.int32) % count
    return np.stack([part, (part + 1) % count, none], axis=1), np.stack([any_part, none[: len(others)]], axis=1)


def _cut_crowded(x: np.ndarray, home: np.ndarray, probes: np.ndarray, seed: int) -> np.ndarray:
    """Cut the leaves that hold more than `EXACT_ROWS` of the cell's own rows; return what rows probe then."""
    for _ in range(CUTS):
        loads = np.bincount(probes[home < 0, 0])
        crowded = np.flatnonzero(loads > EXACT_ROWS)
        if not len(crowded):
            break
        probes = np.concatenate([probes, np.full((len(probes), 2), -1, np.int32)], axis=1)
        for leaf in crowded:
            first = int(probes.max()) + 1
            inside = probes == leaf
            own = np.flatnonzero(inside[:, 0] & (home < 0))
            others = np.setdiff1d(np.flatnonzero(inside.any(axis=1)), own)
            for rows, parts in zip((own, others), _cut(x, own, others, seed), strict=True):
                named = np.where(parts >= 0, parts + first, -1)
                probes[rows, inside[rows].argmax(axis=1)] = named[:, 0]
                for extra in range(1, parts.shape[1]):
                    probes[rows, probes.shape[1] - extra] = named[:, extra]
    return probes


def _in_range(x: np.ndarray) -> tuple[np.ndarray, float]:
    """Scale rows by a power of two where their squares would not be finite, or vanish."""
    extent = float(np.abs(x).max(initial=0.0))
    if extent == 0 or 1e-12 < extent < 1e12:
        return x, 1.0
    scale = np.ldexp(1.0, -int(np.frexp(extent)[1]))
    return (x * scale).astype(np.float32), scale


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


def search(x: np.ndarray, home: np.ndarray, probes: np.ndarray, k: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Find about the k nearest other rows of every row of a cell.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
        Rows in partition space, best in the order of `order`.
    home : ndarray of int32, shape (n,)
        -1 for the cell's own rows, their home cell for guests: two guests of one home are not compared.
    probes : ndarray of int32, shape (n, width)
        Leaves that each row is compared in, its own first; -1 where there is none.
    k, seed : int

    Returns
    -------
    indices : ndarray of int32, shape (n, k)
        -1 where fewer were met.
    squared : ndarray of float32, shape (n, k)
        Ascending squared distances in partition space.
    """
    x, scale = _in_range(x)
    indices, distances = np.full((len(x), k), -1, np.int32), np.full((len(x), k), np.inf, np.float32)
    fresh = np.zeros(indices.shape, np.bool_)
    probes = _cut_crowded(x, home, probes, seed)
    count = int(probes.max(initial=0)) + 1
    _compare_leaves(x, home, probes, count, indices, distances, fresh)
    if count > 1 or (home >= 0).any():
        for _ in range(PASSES):
            _explore(x, home, indices, distances, fresh)
    _fill(x, home, indices, distances, fresh)
    _score(x, indices, distances)
    return indices, distances if scale == 1 else (distances / scale**2).astype(np.float32)
