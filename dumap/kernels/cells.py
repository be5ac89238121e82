"""Pack the tree's leaves into cells; each row is compared where its nearest leaves lie."""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels import hashing

CROWDED = 2.5
"""A cell admits guests up to so many times the rows of the median cell, or as many as it has rows of its own."""
CLASSES = 256
"""Classes, about, in which a cell's guests are admitted one after another."""


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
def _route(near, cells, pieces, first, hashes, reach, own, probes):
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
                if joined == own.shape[1] or rank >= reach:
                    continue
                own[i, at] = cell
                joined += 1
                if rank == 0 and pieces[leaf] > 1 and joined < own.shape[1]:  # the next piece links it to the rest
                    own[i, joined] = cells[leaf] + (cell - cells[leaf] + 1) % pieces[leaf]
                    probes[i, joined, 0] = leaf - first[own[i, joined]]
                    joined += 1
            for s in range(probes.shape[2]):
                if probes[i, at, s] < 0:
                    probes[i, at, s] = leaf - first[cell]
                    break


def route(
    near: np.ndarray,
    cells: np.ndarray,
    pieces: np.ndarray,
    start: int,
    seed: int,
    max_copies: int,
    reach: int,
    width: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Send each row to the cells of its nearest leaves.

    Parameters
    ----------
    near : ndarray of int32, shape (n, sought)
        Leaves, nearest first, as of `nearest_leaves`; all -1 for a row that is left out.
    cells, pieces : ndarray of int32, shape (leaves,)
        As of `pack`.
    start : int
        Id of the first row; ids choose the piece.
    seed : int
    max_copies : int
        Cells that a row joins at the most.
    reach : int
        Nearest leaves whose cells a row joins; those further out are probed where their cell is joined anyway.
    width : int
        Leaves that a row probes in a cell at the most.

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
    _route(near, cells, pieces, first, hashes, reach, own, probes)
    return own, probes


def guest_classes(own: np.ndarray, start: int, seed: int) -> tuple[np.ndarray, int]:
    """Class rows as guests: those to whom a cell is nearer come first, of those to whom it is as near, a hash decides.

    Parameters
    ----------
    own : ndarray of int32, shape (n, max_copies)
        As of `route`.
    start : int
        Id of the first row.
    seed : int

    Returns
    -------
    classes : ndarray of int32, shape (n, max_copies)
        The class of each row in each of its cells, those of its home apart: -1 there.
    count : int
        Classes that there are.
    """
    slots = max(1, own.shape[1] - 1)
    levels = max(4, CLASSES // slots)
    hashes = hashing.draws(seed, hashing.GUESTS, np.arange(start, start + len(own)))
    level = ((hashes >> np.uint64(32)) * np.uint64(levels) >> np.uint64(32)).astype(np.int32)
    classes = level[:, None] + levels * np.arange(-1, own.shape[1] - 1, dtype=np.int32)
    classes[:, 0] = -1
    return classes, slots * levels


def limits(homes: np.ndarray, guests: np.ndarray) -> np.ndarray:
    """Decide which classes of guests each cell admits, so that none has many more rows than others.

    Parameters
    ----------
    homes : ndarray of int64, shape (cells,)
        Rows whose home each cell is.
    guests : ndarray of int64, shape (cells, classes)
        Rows of each class that would be its guests.

    Returns
    -------
    ndarray of int64, shape (cells,)
        The first class that is turned away.
    """
    filled = (homes + guests.sum(axis=1))[homes > 0]
    room = np.maximum(int(CROWDED * np.median(filled)) - homes, homes) if len(filled) else homes
    return (np.cumsum(guests, axis=1) <= room[:, None]).sum(axis=1)


def admit(own: np.ndarray, classes: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Return rows' cells, as of `route`, with -1 in place of those that turn them away."""
    return np.where((own >= 0) & (classes < limits[own]), own, np.int32(-1))


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
