"""Cells: leaves of a k-means tree, packed into cells; each row is compared where its nearest leaves lie."""

from __future__ import annotations

import numba as nb
import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from dumap.kernels import hashing

GROUPS = 8
"""Groups of leaves in which a row's nearest leaves are sought."""
GUEST_PROBES = 2
"""Leaves of a cell that a row probes there as a guest."""
CROWDED = 4
"""A leaf with so many times the mean of the sample's rows is split again."""


def kmeans(x: np.ndarray, n_clusters: int, seed: int) -> np.ndarray:
    """Return centroids of `x`; one thread, so that one seed gives one answer.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
    n_clusters : int
        At most n.
    seed : int

    Returns
    -------
    ndarray of float32, shape (clusters, dims)
        Fewer than asked for where `x` has fewer distinct rows.
    """
    distinct = np.unique(x, axis=0)
    if len(distinct) <= n_clusters:
        return distinct
    random_state = int(hashing.draws(seed, hashing.KMEANS, np.array([len(x)]))[0] >> np.uint64(33))
    with threadpool_limits(limits=1):
        model = KMeans(n_clusters, n_init=1, max_iter=25, tol=1e-3, random_state=random_state).fit(x)
    return np.unique(model.cluster_centers_.astype(np.float32), axis=0)


def _in_line(centroids: np.ndarray) -> np.ndarray:
    """Order centroids so that those near in space are near in line: Ward's tree, its branches turned to fit."""
    if len(centroids) < 3:
        return np.arange(len(centroids))
    return leaves_list(linkage(centroids, "ward", optimal_ordering=True))


def _leaves_of(x: np.ndarray, wanted: int, crowd: float, seed: int) -> np.ndarray:
    """Cut rows into about `wanted` leaves, and again where a leaf holds more than `crowd` of them."""
    centroids = kmeans(x, wanted, seed)
    if len(centroids) == 1 or len(x) <= crowd:
        return centroids
    nearest = nearest_leaves(x, Tree(centroids[:1], np.array([0, len(centroids)]), centroids), 1)[:, 0]
    found = []
    for leaf in range(len(centroids)):
        own = x[nearest == leaf]
        crowded = crowd < len(own) < len(x)
        found.append(_leaves_of(own, int(2 * len(own) / crowd) + 1, crowd, seed) if crowded else centroids[leaf, None])
    return np.concatenate(found)


class Tree:
    """A partition of space: groups of leaves, each leaf a centroid.

    Attributes
    ----------
    groups : ndarray of float32, shape (groups, dims)
    offsets : ndarray of int64, shape (groups + 1,)
        Each group's first leaf.
    leaves : ndarray of float32, shape (leaves, dims)
        In line: those near in space have numbers near each other.
    """

    def __init__(self, groups: np.ndarray, offsets: np.ndarray, leaves: np.ndarray) -> None:
        self.groups, self.offsets, self.leaves = groups, offsets, leaves


def grow(sample: np.ndarray, wanted: int, seed: int) -> Tree:
    """Cut space into leaves by a sample: k-means into groups, then each group into leaves.

    Parameters
    ----------
    sample : ndarray of float32, shape (m, dims)
    wanted : int
        Leaves, about; fewer where the sample has fewer distinct rows, more where some would be crowded.
    seed : int

    Returns
    -------
    Tree
    """
    if wanted == 1:
        middle = sample.mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)
        return Tree(middle, np.array([0, 1]), middle)
    groups = kmeans(sample, int(np.ceil(np.sqrt(wanted))), seed)
    groups = groups[_in_line(groups)]
    own = nearest_leaves(sample, Tree(groups[:1], np.array([0, len(groups)]), groups), 1)[:, 0]
    mean = len(sample) / wanted
    leaves = []
    for group in range(len(groups)):
        rows = sample[own == group]
        if len(rows):
            found = _leaves_of(rows, max(1, round(len(rows) / mean)), CROWDED * mean, seed)
            leaves.append(found[_in_line(found)])
        else:
            leaves.append(groups[group, None])
    offsets = np.cumsum([0, *map(len, leaves)])
    return Tree(groups, offsets, np.concatenate(leaves))


@nb.njit(cache=True, nogil=True, inline="always")
def _keep(leaf, d, ids, distances):
    at = len(ids) - 1
    if ids[at] >= 0 and not d < distances[at]:
        return
    while at > 0 and (ids[at - 1] < 0 or distances[at - 1] > d):
        ids[at], distances[at] = ids[at - 1], distances[at - 1]
        at -= 1
    ids[at], distances[at] = leaf, d


@nb.njit(cache=True, nogil=True)
def _scan(x, columns, low, high, squared):
    for c in range(low, high):
        squared[c] = 0
    for j in range(x.shape[0]):
        value = x[j]
        for c in range(low, high):
            gap = value - columns[j, c]
            squared[c] += gap * gap


@nb.njit(cache=True, nogil=True)
def _nearest(x, groups, offsets, leaves, ids, distances):
    near = np.empty(min(GROUPS, groups.shape[1]), np.int32)
    near_distances = np.empty(len(near), np.float32)
    squared = np.empty(max(leaves.shape[1], groups.shape[1]), np.float32)
    for i in range(x.shape[0]):
        near[:] = -1
        if groups.shape[1] > 1:
            _scan(x[i], groups, 0, groups.shape[1], squared)
        for group in range(groups.shape[1]):
            _keep(group, squared[group], near, near_distances)
        for g in range(len(near)):
            low, high = offsets[near[g]], offsets[near[g] + 1]
            _scan(x[i], leaves, low, high, squared)
            for leaf in range(low, high):
                _keep(leaf, squared[leaf], ids[i], distances[i])


def nearest_leaves(x: np.ndarray, tree: Tree, count: int) -> np.ndarray:
    """Find each row's nearest leaves, in the groups that lie nearest to it.

    Differences are summed in one order, in float32 and scaled to the leaves' extent, so that a row's leaves depend
    on nothing but the row and the tree.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
    tree : Tree
    count : int

    Returns
    -------
    ndarray of int32, shape (n, count)
        Nearest first; -1 beyond the leaves that were sought.
    """
    middle = tree.leaves.mean(axis=0, dtype=np.float64)
    extent = np.abs(tree.leaves - middle).max(initial=0.0)
    scale = np.ldexp(1.0, -int(np.frexp(extent)[1])) if extent > 0 else 1.0
    ids = np.full((len(x), count), -1, np.int32)
    distances = np.full((len(x), count), np.inf, np.float32)
    groups, leaves = (np.ascontiguousarray(((c - middle) * scale).T, np.float32) for c in (tree.groups, tree.leaves))
    step = max(1, 2**20 // max(1, x.shape[1]))
    with np.errstate(over="ignore"):
        for low in range(0, len(x), step):
            rows = slice(low, low + step)
            placed = np.ascontiguousarray((x[rows] - middle) * scale, np.float32)
            _nearest(placed, groups, tree.offsets, leaves, ids[rows], distances[rows])
    return ids


def pack(loads: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Pack leaves that follow each other into cells of about the same number of rows.

    Parameters
    ----------
    loads : ndarray of int64, shape (leaves,)
        Rows of each leaf.
    rows : int
        Rows that a cell may hold.

    Returns
    -------
    cells : ndarray of int32, shape (leaves,)
        Cell of each leaf; the first of several for a leaf over the cap.
    pieces : ndarray of int32, shape (leaves,)
        Cells that the leaf's rows are cut into by their ids: more than 1 for a leaf over the cap, since
        distance did not split it.
    """
    cells, pieces = np.empty(len(loads), np.int32), np.ones(len(loads), np.int32)
    target = max(1.0, loads.sum() / max(1, np.ceil(loads.sum() / rows)))
    wanted = ((np.cumsum(loads) - loads / 2) // target).astype(np.int64)
    cell = held = 0
    for leaf, load in enumerate(loads):
        if not (load or held) and cell:  # no cell without rows
            cells[leaf] = cell - 1
            continue
        if held and (held + load > rows or wanted[leaf] > wanted[leaf - 1]):
            cell, held = cell + 1, 0
        cells[leaf] = cell
        held += load
        if load > rows:
            pieces[leaf] = -(-load // rows)
            cell, held = cell + pieces[leaf], 0
    return cells, pieces


@nb.njit(cache=True, nogil=True)
def _route(near, cells, pieces, first, hashes, own, probes):
    for i in range(near.shape[0]):
        joined = 0
        for rank in range(near.shape[1]):
            leaf = near[i, rank]
            if leaf < 0:
                break
            cell = cells[leaf] + np.int32(hashes[i] % np.uint64(pieces[leaf]))
            at = 0
            while at < joined and own[i, at] != cell:
                at += 1
            if at == joined:
                if joined == own.shape[1]:
                    continue
                own[i, at] = cell
                joined += 1
                if rank == 0 and pieces[leaf] > 1 and joined < own.shape[1]:  # the next piece links it to the rest
                    own[i, joined] = cells[leaf] + (cell - cells[leaf] + 1) % pieces[leaf]
                    probes[i, joined, 0] = leaf - first[own[i, joined]]
                    joined += 1
            width = probes.shape[2] if at == 0 else min(GUEST_PROBES, probes.shape[2])
            for s in range(width):
                if probes[i, at, s] < 0:
                    probes[i, at, s] = leaf - first[cell]
                    break


def route(
    near: np.ndarray, cells: np.ndarray, pieces: np.ndarray, start: int, seed: int, max_copies: int, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """Send each row to the cells of its nearest leaves.

    Parameters
    ----------
    near : ndarray of int32, shape (n, reach)
        Leaves, nearest first, as of `nearest_leaves`; all -1 for a row that is left out.
    cells, pieces : ndarray of int32, shape (leaves,)
        As of `pack`.
    start : int
        Id of the first row; ids choose the piece.
    seed : int
    max_copies : int
        Cells that a row joins at the most.
    width : int
        Leaves that a row probes at home.

    Returns
    -------
    own : ndarray of int32, shape (n, max_copies)
        Home cell first, then those the row is a guest of; -1 where there is none.
    probes : ndarray of int32, shape (n, max_copies, width)
        Leaves to probe in each, numbered within the cell; -1 where there is none.
    """
    own = np.full((len(near), max_copies), -1, np.int32)
    probes = np.full((len(near), max_copies, width), -1, np.int32)
    count = int(cells[-1] + pieces[-1])
    first = np.zeros(count, np.int64)
    leaf_of, begins = np.unique(cells, return_index=True)
    first[leaf_of] = begins
    for leaf in np.flatnonzero(pieces > 1):
        first[cells[leaf] + 1 : cells[leaf] + pieces[leaf]] = leaf
    hashes = hashing.draws(seed, hashing.PIECES, np.arange(start, start + len(near)))
    _route(near, cells, pieces, first, hashes, own, probes)
    return own, probes


def order_copies(cells: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort the copies of a block's rows: by cell, its own rows first, by position.

    Parameters
    ----------
    cells : ndarray of int32, shape (n, max_copies)
    positions : ndarray of int64, shape (n,)

    Returns
    -------
    source, slot : ndarray of int64, shape (copies,)
        The row of the block each copy is of, and which of its cells it is for: 0 at home.
    """
    source, slot = np.nonzero(cells >= 0)
    order = np.lexsort((positions[source], slot > 0, cells[source, slot]))
    return source[order], slot[order]


@nb.njit(cache=True, nogil=True)
def ranks(home: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Number the rows of a block within their home cells, in the input's order.

    Parameters
    ----------
    home : ndarray of int32, shape (n,)
        Home cell, -1 for rows that are left out.
    start : ndarray of int64, shape (cells,)
        Position of the block's first row in each cell.

    Returns
    -------
    ndarray of int64, shape (n,)
        Positions; -1 for rows that are left out.
    """
    following = start.copy()
    out = np.full(home.shape[0], -1, np.int64)
    for i in range(home.shape[0]):
        if home[i] >= 0:
            out[i] = following[home[i]]
            following[home[i]] += 1
    return out
