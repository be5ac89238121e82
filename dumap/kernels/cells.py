"""Cells: leaves of a k-means tree, packed into cells; each row is compared where its nearest leaves lie."""

from __future__ import annotations

import warnings

import numba as nb
import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning

from dumap.kernels import hashing
from dumap.kernels.threads import one_thread
from dumap.kernels.vectors import power_near

GROUPS = 8
"""Groups of leaves in which a row's nearest leaves are sought."""
GUEST_PROBES = 3
"""Leaves of a cell that a row probes there as a guest."""
TILE_ROWS, SPARE, LANES = 1024, 4, 16
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
    extent = float(max(distinct.max(), -distinct.min()))
    scale = np.float32(1) if 1e-12 < extent < 1e12 else power_near(extent)
    with one_thread(), warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # fewer clusters than asked for: rows near beside the rest
        model = KMeans(n_clusters, n_init=1, max_iter=25, tol=1e-3, random_state=random_state).fit(x * scale)
    return np.unique(model.cluster_centers_.astype(np.float32) / scale, axis=0)


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
    nearest = nearest_leaves(x, Tree.of_one_group(centroids), 1)[:, 0]
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

    @classmethod
    def of_one_group(cls, leaves: np.ndarray) -> Tree:
        """Return a tree in which every leaf is sought for every row."""
        return cls(leaves[:1], np.array([0, len(leaves)]), leaves)


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
        return Tree.of_one_group(middle)
    groups = kmeans(sample, int(np.ceil(np.sqrt(wanted))), seed)
    groups = groups[_in_line(groups)]
    own = nearest_leaves(sample, Tree.of_one_group(groups), 1)[:, 0]
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


@nb.njit(cache=True, nogil=True)
def _keep(squared, rows, first, ids, distances):
    """Keep the nearest of a group's leaves for each of some rows."""
    last = ids.shape[1] - 1
    for i in range(len(rows)):
        row = rows[i]
        for c in range(squared.shape[1]):
            d = squared[i, c]
            if ids[row, last] >= 0 and not d < distances[row, last]:
                continue
            at = last
            while at > 0 and (ids[row, at - 1] < 0 or distances[row, at - 1] > d):
                ids[row, at], distances[row, at] = ids[row, at - 1], distances[row, at - 1]
                at -= 1
            ids[row, at], distances[row, at] = first + c, d


@nb.njit(cache=True, nogil=True)
def _squared_distance(x, i, y, j, lanes):
    """Sum the squares of the differences of x[i] and y[j] in one order, whatever the processor."""
    lanes[:] = 0
    whole = x.shape[1] - x.shape[1] % LANES
    for c in range(0, whole, LANES):
        for lane in range(LANES):
            gap = x[i, c + lane] - y[j, c + lane]
            lanes[lane] += gap * gap
    for c in range(whole, x.shape[1]):
        gap = x[i, c] - y[j, c]
        lanes[c - whole] += gap * gap
    return lanes.sum()


@nb.njit(cache=True, nogil=True)
def _sort_exactly(x, leaves, ids, out):
    """Sort each row's leaves by distances summed in one order, ties by leaf."""
    lanes, squared = np.empty(LANES, np.float32), np.empty(ids.shape[1], np.float32)
    for i in range(len(ids)):
        for s in range(ids.shape[1]):
            squared[s] = _squared_distance(x, i, leaves, ids[i, s], lanes) if ids[i, s] >= 0 else np.inf
        for s in range(out.shape[1]):
            best = -1
            for t in range(ids.shape[1]):
                if ids[i, t] >= 0 and (
                    best < 0 or squared[t] < squared[best] or (squared[t] == squared[best] and ids[i, t] < ids[i, best])
                ):
                    best = t
            if best < 0:
                break
            out[i, s], ids[i, best] = ids[i, best], -1


def _products(x: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Return squared distances by one matrix product."""
    squared = x @ others.T
    squared *= -2
    squared += np.einsum("ij,ij->i", others, others)
    squared += np.einsum("ij,ij->i", x, x)[:, None]
    return squared


def _candidates(squared: np.ndarray, count: int) -> np.ndarray:
    """Return the columns of the least values of each row, in any order."""
    if count >= squared.shape[1]:
        return np.tile(np.arange(squared.shape[1], dtype=np.int32), (len(squared), 1))
    return np.argpartition(squared, count - 1, axis=1)[:, :count].astype(np.int32)


def nearest_leaves(x: np.ndarray, tree: Tree, count: int) -> np.ndarray:
    """Find each row's nearest leaves, in the groups that lie nearest to it.

    Matrix products name a few leaves more than are asked for; differences summed in one order then sort them, so
    that a row's leaves depend on nothing but the row and the tree.

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
    above, below = tree.leaves.max(axis=0) - middle, middle - tree.leaves.min(axis=0)
    scale = power_near(max(above.max(), below.max()))
    middle = middle.astype(np.float32) * scale
    groups, leaves = (c * scale - middle for c in (tree.groups, tree.leaves))
    out = np.full((len(x), count), -1, np.int32)
    sought = min(GROUPS, len(groups))
    with np.errstate(over="ignore", invalid="ignore"), one_thread():
        for low in range(0, len(x), TILE_ROWS):
            rows = x[low : low + TILE_ROWS] * scale - middle
            near = np.empty((len(rows), sought), np.int32)
            _sort_exactly(rows, groups, _candidates(_products(rows, groups), sought + SPARE), near)
            ids = np.full((len(rows), count + SPARE), -1, np.int32)
            distances = np.full(ids.shape, np.inf, np.float32)
            for group in np.unique(near):
                own = np.flatnonzero((near == group).any(axis=1))
                first, stop = tree.offsets[group], tree.offsets[group + 1]
                placed = rows[own]
                placed -= groups[group]
                squared = _products(placed, leaves[first:stop] - groups[group])
                _keep(squared, own, first, ids, distances)
            _sort_exactly(rows, leaves, ids, out[low : low + TILE_ROWS])
    return out


def pack(loads: np.ndarray, rows: int, fewest: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Pack leaves that follow each other into cells of about the same number of rows.

    Parameters
    ----------
    loads : ndarray of int64, shape (leaves,)
        Rows of each leaf.
    rows : int
        Rows that a cell should hold; none holds more than twice as many, and `fewest`.
    fewest : int
        Rows that a cell must hold: one with fewer joins that before or after it.

    Returns
    -------
    cells : ndarray of int32, shape (leaves,)
        Cell of each leaf; the first of several for a leaf of too many rows.
    pieces : ndarray of int32, shape (leaves,)
        Cells that the leaf's rows are cut into by their ids: more than 1 where it has more than `rows`, since
        distance did not split it.
    """
    cells, pieces = np.empty(len(loads), np.int32), np.ones(len(loads), np.int32)
    wanted = ((np.cumsum(loads) - loads / 2) // rows).astype(np.int64)
    cell = held = last = 0
    for leaf in range(len(loads)):
        load = loads[leaf]
        if load and held >= fewest and (wanted[leaf] > last or load > rows):  # a leaf without rows begins no cell
            cell, held = cell + 1, 0
        cells[leaf] = cell
        if load:
            held, last = held + load, wanted[leaf]
        if load > rows:
            pieces[leaf] = -(-load // rows)
            cell, held, last = cell + pieces[leaf] - 1, fewest, -1
    if cell and held < fewest:
        cells[cells == cell] = cell - 1
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
