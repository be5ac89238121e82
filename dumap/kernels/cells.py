"""Cells: a k-means partition in which rows near a border live on both sides of it."""

from __future__ import annotations

import numba as nb
import numpy as np
from sklearn.cluster import KMeans
from threadpoolctl import threadpool_limits

from dumap.kernels import hashing

TILE_ROWS = 256
"""Rows of the matrix products that give distances to centroids."""


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


@nb.njit(cache=True, nogil=True)
def _nearest(squared, first, pieces, hashes, factor, out):
    for i in range(out.shape[0]):
        limit = np.inf
        for s in range(min(out.shape[1], squared.shape[1])):
            best = 0
            for c in range(1, squared.shape[1]):
                if squared[i, c] < squared[i, best]:
                    best = c
            if squared[i, best] > limit or squared[i, best] == np.inf:
                break
            if s == 0:
                limit = squared[i, best] * factor
            out[i, s] = first[best] + np.int64(hashes[i] % np.uint64(pieces[best]))
            squared[i, best] = np.inf


def assign(
    x: np.ndarray,
    centroids: np.ndarray,
    pieces: np.ndarray,
    start: int,
    seed: int,
    margin: float,
    max_copies: int,
) -> np.ndarray:
    """Give each row its home cell and the cells it spills into.

    Distances come from matrix products of one shape, in which a row's place depends on its id alone: so a
    row's cells do not depend on how the rows are cut into blocks.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
        Rows in partition space.
    centroids : ndarray of float32, shape (clusters, dims)
    pieces : ndarray of int32, shape (clusters,)
        Cells that share a centroid, where its rows could not be told apart by distance.
    start : int
        Id of the first row; ids choose the piece.
    seed : int
    margin : float
        A row joins each cell whose centroid lies within `margin` times the nearest's distance.
    max_copies : int
        Cells a row joins at the most.

    Returns
    -------
    ndarray of int32, shape (n, max_copies)
        Home cell first, then the others by distance; -1 where there is none.
    """
    out = np.full((len(x), max_copies), -1, np.int32)
    hashes = hashing.draws(seed, hashing.PIECES, np.arange(start, start + len(x)))
    first = np.concatenate([[0], np.cumsum(pieces)])
    columns = np.ascontiguousarray(centroids.T, np.float64)
    lengths = (columns**2).sum(axis=0)
    tile = np.zeros((TILE_ROWS, x.shape[1]))
    low = 0
    with threadpool_limits(limits=1):
        while low < len(x):
            place = (start + low) % TILE_ROWS
            count = min(TILE_ROWS - place, len(x) - low)
            rows = slice(low, low + count)
            tile[place : place + count] = x[rows]
            squared = lengths - 2 * (tile @ columns) + np.einsum("ij,ij->i", tile, tile)[:, None]
            squared = np.maximum(squared, 0)[place : place + count]
            _nearest(squared, first, pieces, hashes[rows], margin * margin, out[rows])
            low += count
    return out


def split(
    sample: np.ndarray, centroids: np.ndarray, loads: np.ndarray, cap: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Split the cells whose load is over the cap.

    Parameters
    ----------
    sample : ndarray of float32, shape (m, dims)
    centroids : ndarray of float32, shape (clusters, dims)
    loads : ndarray of float64, shape (clusters,)
        Rows in each cell, copies included.
    cap : float
        Rows a cell may hold.
    seed : int

    Returns
    -------
    centroids : ndarray of float32
    pieces : ndarray of int32
        More than 1 where the sample's rows in a cell are all the same: distance can't
        split them, and any k of them are each other's neighbours, so row ids do.
    """
    unpieced = np.ones(len(centroids), np.int32)
    home = assign(sample, centroids, unpieced, 0, seed, 1.0, 1)[:, 0]
    parts, pieces = [], []
    for c in range(len(centroids)):
        want = max(1, int(np.ceil(loads[c] / cap)))
        own = kmeans(sample[home == c], want, seed) if want > 1 and (home == c).any() else centroids[c : c + 1]
        parts.append(own)
        pieces += [want if len(own) == 1 else 1] * len(own)
    return np.concatenate(parts), np.array(pieces, np.int32)


def order_copies(cells: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Sort the copies of a block's rows: by cell, its own rows first, by position.

    Parameters
    ----------
    cells : ndarray of int32, shape (n, max_copies)
    positions : ndarray of int64, shape (n,)

    Returns
    -------
    source : ndarray of int64, shape (copies,)
        The row of the block each copy is of.
    cell, guest : ndarray, shape (copies,)
    """
    source, slot = np.nonzero(cells >= 0)
    cell, guest = cells[source, slot], slot > 0
    order = np.lexsort((positions[source], guest, cell))
    return source[order], cell[order], guest[order]


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
