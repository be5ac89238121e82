"""Cells: the leaves that make up each cell, and the cells that a row joins as a home row and as a guest."""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels import hashing

MAX_GUEST_FILL = 2.5
"""A cell admits guests until it has this many times the rows of the median cell, or twice its home rows if that is
more."""
PRIORITIES = 256
"""About how many priorities guests have. A cell admits guests in the order of their priorities."""


def assign_leaves(loads: np.ndarray, rows: int, min_rows: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Group consecutive leaves into cells of about the same number of rows.

    Parameters
    ----------
    loads : ndarray of int64, shape (leaves,)
        Rows of each leaf.
    rows : int
        Home rows that a cell should have. No cell has more than twice as many plus twice `min_rows`.
    min_rows : int
        Least home rows of a cell. A smaller cell is merged with the cell before or after it.

    Returns
    -------
    cells : ndarray of int32, shape (leaves,)
        Cell of each leaf. A leaf in several pieces has several cells; this is the first of them.
    pieces : ndarray of int32, shape (leaves,)
        Number of cells among which a hash of the row ids divides the leaf's rows: 1, unless the leaf has more than
        `rows` rows.
    """
    cells, pieces = np.empty(len(loads), np.int32), np.ones(len(loads), np.int32)
    even_cell = ((np.cumsum(loads) - loads / 2) // rows).astype(np.int64)
    cell = cell_rows = last = 0
    for leaf in range(len(loads)):
        load = loads[leaf]
        is_over = even_cell[leaf] > last or load > rows
        if load and cell_rows >= min_rows and is_over:  # a leaf without rows begins no cell
            cell, cell_rows = cell + 1, 0
        cells[leaf] = cell
        if load:
            cell_rows, last = cell_rows + load, even_cell[leaf]
        if load > rows:
            pieces[leaf] = -(-load // rows)
            cell, cell_rows, last = cell + pieces[leaf] - 1, min_rows, -1
    if cell and cell_rows < min_rows:
        cells[cells == cell] = cell - 1
    return cells, pieces


@nb.njit(cache=True, nogil=True)
def _route(near, cells, pieces, first, hashes, joined_leaves, row_cells, probes):
    for i in range(near.shape[0]):
        joined = 0  # how many cells row i has joined
        for rank in range(near.shape[1]):
            leaf = near[i, rank]
            if leaf < 0:
                break
            cell = cells[leaf] + np.int32(hashes[i] % np.uint64(pieces[leaf]))
            at = 0
            while at < joined and row_cells[i, at] != cell:
                at += 1
            if at == joined:
                # Row i joins a new cell for one of its nearest leaves, while it has room. Farther leaves are probed
                # only in cells that it has joined.
                if joined == row_cells.shape[1] or rank >= joined_leaves:
                    continue
                row_cells[i, at] = cell
                joined += 1
                # A row of a leaf in pieces is also a guest of the next piece, so that the pieces are linked.
                if rank == 0 and pieces[leaf] > 1 and joined < row_cells.shape[1]:
                    row_cells[i, joined] = cells[leaf] + (cell - cells[leaf] + 1) % pieces[leaf]
                    probes[i, joined, 0] = leaf - first[row_cells[i, joined]]
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
    max_cells_per_row: int,
    joined_leaves: int,
    max_probes: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose each row's cells: the home cell, by its nearest leaf, and the cells of other near leaves, where it is a
    guest.

    Parameters
    ----------
    near : ndarray of int32, shape (n, ranked leaves)
        Leaves, nearest first, from `tree.nearest_leaves`; all -1 for a row that is left out.
    cells, pieces : ndarray of int32, shape (leaves,)
        From `assign_leaves`.
    start : int
        Id of the first row. A hash of the id decides which piece of a leaf a row goes to.
    seed : int
    max_cells_per_row : int
        Most cells of a row, its home cell included.
    joined_leaves : int
        A row joins the cells of this many nearest leaves. It probes farther leaves only in cells that it has joined.
    max_probes : int
        Most leaves that a row probes in a cell.

    Returns
    -------
    row_cells : ndarray of int32, shape (n, max_cells_per_row)
        Home cell first, then cells where the row is a guest; -1 where there is none.
    probes : ndarray of int32, shape (n, max_cells_per_row, max_probes)
        Leaves to probe in each cell, numbered within the cell; -1 where there is none.
    """
    row_cells = np.full((len(near), max_cells_per_row), -1, np.int32)
    probes = np.full((len(near), max_cells_per_row, max_probes), -1, np.int32)
    count = int(cells[-1] + pieces[-1])
    first = np.zeros(count, np.int64)
    leaf_of, first_leaves = np.unique(cells, return_index=True)
    first[leaf_of] = first_leaves
    for leaf in np.flatnonzero(pieces > 1):
        first[cells[leaf] + 1 : cells[leaf] + pieces[leaf]] = leaf
    hashes = hashing.draws(seed, hashing.PIECES, np.arange(start, start + len(near)))
    _route(near, cells, pieces, first, hashes, joined_leaves, row_cells, probes)
    return row_cells, probes


def guest_priorities(row_cells: np.ndarray, start: int, seed: int) -> tuple[np.ndarray, int]:
    """Return each row's priority as a guest of its cells; lower numbers are admitted first.

    A row's second cell has a lower number than its third. Among guests of equal rank, a hash of the row id decides.

    Parameters
    ----------
    row_cells : ndarray of int32, shape (n, max_cells_per_row)
        From `route`.
    start : int
        Id of the first row.
    seed : int

    Returns
    -------
    priorities : ndarray of int32, shape (n, max_cells_per_row)
        -1 for the home cell, which always admits the row.
    count : int
        Number of priorities.
    """
    guest_ranks = max(1, row_cells.shape[1] - 1)
    levels = max(4, PRIORITIES // guest_ranks)
    hashes = hashing.draws(seed, hashing.GUESTS, np.arange(start, start + len(row_cells)))
    level = ((hashes >> np.uint64(32)) * np.uint64(levels) >> np.uint64(32)).astype(np.int32)
    priorities = level[:, None] + levels * np.arange(-1, row_cells.shape[1] - 1, dtype=np.int32)
    priorities[:, 0] = -1
    return priorities, guest_ranks * levels


def admitted_priorities(home_rows: np.ndarray, guests: np.ndarray) -> np.ndarray:
    """Return how many priorities of guests each cell admits, so that no cell has many more rows than the others.

    Parameters
    ----------
    home_rows : ndarray of int64, shape (cells,)
        Home rows of each cell.
    guests : ndarray of int64, shape (cells, priorities)
        Rows of each priority that would be guests.

    Returns
    -------
    ndarray of int64, shape (cells,)
        The lowest priority that is not admitted.
    """
    filled = (home_rows + guests.sum(axis=1))[home_rows > 0]
    room = np.maximum(int(MAX_GUEST_FILL * np.median(filled)) - home_rows, home_rows) if len(filled) else home_rows
    return (np.cumsum(guests, axis=1) <= room[:, None]).sum(axis=1)


def admit(row_cells: np.ndarray, priorities: np.ndarray, limits: np.ndarray) -> np.ndarray:
    """Return the cells of rows, from `route`, with -1 for each cell that does not admit the row."""
    return np.where((row_cells >= 0) & (priorities < limits[row_cells]), row_cells, np.int32(-1))


def order_by_cell(cells: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort the (row, cell) pairs of a block by cell, home rows before guests, by position.

    Parameters
    ----------
    cells : ndarray of int32, shape (n, max_cells_per_row)
    positions : ndarray of int64, shape (n,)

    Returns
    -------
    source, cell_rank : ndarray of int64, shape (pairs,)
        Row of the block, and the number of the cell among the row's cells: 0 is the home cell.
    """
    source, cell_rank = np.nonzero(cells >= 0)
    order = np.lexsort((positions[source], cell_rank > 0, cells[source, cell_rank]))
    return source[order], cell_rank[order]


@nb.njit(cache=True, nogil=True)
def ranks(home: np.ndarray, start: np.ndarray) -> np.ndarray:
    """Return the positions of a block's rows: within each home cell, rows are in the order of the input.

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
