"""Cells: the leaves that make up each cell, and the cells that a row joins as a home row and as a guest."""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels import hashing

MAX_GUEST_FILL = 2.5
"""A cell admits guests until it has this many times the rows of the median cell, or twice its home rows if that is
more."""
N_PRIORITIES = 256
"""About how many priorities guests have. A cell admits guests in the order of their priorities."""


def assign_leaves(leaf_sizes: np.ndarray, target_rows: int, min_rows: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Group consecutive leaves into cells of about the same number of rows.

    Parameters
    ----------
    leaf_sizes : ndarray of int64, shape (leaves,)
        Rows of each leaf.
    target_rows : int
        Home rows that a cell should have. No cell has more than twice as many plus twice `min_rows`.
    min_rows : int
        Least home rows of a cell. A smaller cell is merged with the cell before or after it.

    Returns
    -------
    leaf_cells : ndarray of int32, shape (leaves,)
        Cell of each leaf. A leaf in several pieces has several cells; this is the first of them.
    piece_counts : ndarray of int32, shape (leaves,)
        Number of cells among which a hash of the row ids divides the leaf's rows: 1, unless the leaf has more than
        `target_rows` rows.
    """
    leaf_cells, piece_counts = np.empty(len(leaf_sizes), np.int32), np.ones(len(leaf_sizes), np.int32)
    even_cells = ((np.cumsum(leaf_sizes) - leaf_sizes / 2) // target_rows).astype(np.int64)
    cell = cell_rows = last_even_cell = 0
    for leaf in range(len(leaf_sizes)):
        size = leaf_sizes[leaf]
        is_full = even_cells[leaf] > last_even_cell or size > target_rows
        if size and cell_rows >= min_rows and is_full:  # a leaf without rows begins no cell
            cell, cell_rows = cell + 1, 0
        leaf_cells[leaf] = cell
        if size:
            cell_rows, last_even_cell = cell_rows + size, even_cells[leaf]
        if size > target_rows:
            piece_counts[leaf] = -(-size // target_rows)
            cell, cell_rows, last_even_cell = cell + piece_counts[leaf] - 1, min_rows, -1
    if cell and cell_rows < min_rows:
        leaf_cells[leaf_cells == cell] = cell - 1
    return leaf_cells, piece_counts


@nb.njit(cache=True, nogil=True)
def _write_cells(near_leaves, leaf_cells, piece_counts, first_leaves, hashes, joined_leaves, row_cells, probes):
    for i in range(near_leaves.shape[0]):
        n_joined = 0  # how many cells row i has joined
        for rank in range(near_leaves.shape[1]):
            leaf = near_leaves[i, rank]
            if leaf < 0:
                break
            cell = leaf_cells[leaf] + np.int32(hashes[i] % np.uint64(piece_counts[leaf]))
            slot = 0
            while slot < n_joined and row_cells[i, slot] != cell:
                slot += 1
            if slot == n_joined:
                # Row i joins a new cell for one of its nearest leaves, while it has room. Farther leaves are probed
                # only in cells that it has joined.
                if n_joined == row_cells.shape[1] or rank >= joined_leaves:
                    continue
                row_cells[i, slot] = cell
                n_joined += 1
                # A row of a leaf in pieces is also a guest of the next piece, so that the pieces are linked.
                if rank == 0 and piece_counts[leaf] > 1 and n_joined < row_cells.shape[1]:
                    row_cells[i, n_joined] = leaf_cells[leaf] + (cell - leaf_cells[leaf] + 1) % piece_counts[leaf]
                    probes[i, n_joined, 0] = leaf - first_leaves[row_cells[i, n_joined]]
                    n_joined += 1
            for s in range(probes.shape[2]):
                if probes[i, slot, s] < 0:
                    probes[i, slot, s] = leaf - first_leaves[cell]
                    break


def choose_cells(
    near_leaves: np.ndarray,
    leaf_cells: np.ndarray,
    piece_counts: np.ndarray,
    first_row: int,
    seed: int,
    max_cells_per_row: int,
    joined_leaves: int,
    max_probes: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Choose each row's cells: the home cell, by its nearest leaf, and the cells of other near leaves, where it is a
    guest.

    Parameters
    ----------
    near_leaves : ndarray of int32, shape (n, ranked leaves)
        Leaves, nearest first, from `tree.nearest_leaves`; all -1 for a row that is left out.
    leaf_cells, piece_counts : ndarray of int32, shape (leaves,)
        From `assign_leaves`.
    first_row : int
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
    row_cells = np.full((len(near_leaves), max_cells_per_row), -1, np.int32)
    probes = np.full((len(near_leaves), max_cells_per_row, max_probes), -1, np.int32)
    n_cells = int(leaf_cells[-1] + piece_counts[-1])
    first_leaves = np.zeros(n_cells, np.int64)
    distinct_cells, first_indices = np.unique(leaf_cells, return_index=True)
    first_leaves[distinct_cells] = first_indices
    for leaf in np.flatnonzero(piece_counts > 1):
        first_leaves[leaf_cells[leaf] + 1 : leaf_cells[leaf] + piece_counts[leaf]] = leaf
    hashes = hashing.draw_words(seed, hashing.LEAF_PIECES, np.arange(first_row, first_row + len(near_leaves)))
    _write_cells(near_leaves, leaf_cells, piece_counts, first_leaves, hashes, joined_leaves, row_cells, probes)
    return row_cells, probes


def guest_priorities(row_cells: np.ndarray, first_row: int, seed: int) -> tuple[np.ndarray, int]:
    """Return each row's priority as a guest of its cells; lower numbers are admitted first.

    A row's second cell has a lower number than its third. Among guests of equal rank, a hash of the row id decides.

    Parameters
    ----------
    row_cells : ndarray of int32, shape (n, max_cells_per_row)
        From `choose_cells`.
    first_row : int
        Id of the first row.
    seed : int

    Returns
    -------
    priorities : ndarray of int32, shape (n, max_cells_per_row)
        -1 for the home cell, which always admits the row.
    count : int
        Number of priorities.
    """
    n_guest_ranks = max(1, row_cells.shape[1] - 1)
    n_levels = max(4, N_PRIORITIES // n_guest_ranks)
    hashes = hashing.draw_words(seed, hashing.GUEST_ORDER, np.arange(first_row, first_row + len(row_cells)))
    levels = ((hashes >> np.uint64(32)) * np.uint64(n_levels) >> np.uint64(32)).astype(np.int32)
    priorities = levels[:, None] + n_levels * np.arange(-1, row_cells.shape[1] - 1, dtype=np.int32)
    priorities[:, 0] = -1
    return priorities, n_guest_ranks * n_levels


def admitted_priorities(home_rows: np.ndarray, guest_counts: np.ndarray) -> np.ndarray:
    """Return how many priorities of guests each cell admits, so that no cell has many more rows than the others.

    Parameters
    ----------
    home_rows : ndarray of int64, shape (cells,)
        Home rows of each cell.
    guest_counts : ndarray of int64, shape (cells, priorities)
        Rows of each priority that would be guests.

    Returns
    -------
    ndarray of int64, shape (cells,)
        The lowest priority that is not admitted.
    """
    rows_with_guests = (home_rows + guest_counts.sum(axis=1))[home_rows > 0]
    guest_room = (
        np.maximum(int(MAX_GUEST_FILL * np.median(rows_with_guests)) - home_rows, home_rows)
        if len(rows_with_guests)
        else home_rows
    )
    return (np.cumsum(guest_counts, axis=1) <= guest_room[:, None]).sum(axis=1)


def admitted_cells(row_cells: np.ndarray, priorities: np.ndarray, priority_limits: np.ndarray) -> np.ndarray:
    """Return the cells of rows, from `choose_cells`, with -1 for each cell that does not admit the row."""
    return np.where((row_cells >= 0) & (priorities < priority_limits[row_cells]), row_cells, np.int32(-1))


def order_by_cell(row_cells: np.ndarray, positions: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort the (row, cell) pairs of a block by cell, home rows before guests, by position.

    Parameters
    ----------
    row_cells : ndarray of int32, shape (n, max_cells_per_row)
    positions : ndarray of int64, shape (n,)

    Returns
    -------
    block_rows, cell_ranks : ndarray of int64, shape (pairs,)
        Row of the block, and the number of the cell among the row's cells: 0 is the home cell.
    """
    block_rows, cell_ranks = np.nonzero(row_cells >= 0)
    order = np.lexsort((positions[block_rows], cell_ranks > 0, row_cells[block_rows, cell_ranks]))
    return block_rows[order], cell_ranks[order]


@nb.njit(cache=True, nogil=True)
def assign_positions(home_cells: np.ndarray, first_positions: np.ndarray) -> np.ndarray:
    """Return the positions of a block's rows: within each home cell, rows are in the order of the input.

    Parameters
    ----------
    home_cells : ndarray of int32, shape (n,)
        Home cell, -1 for rows that are left out.
    first_positions : ndarray of int64, shape (cells,)
        Position of the block's first row in each cell.

    Returns
    -------
    ndarray of int64, shape (n,)
        Positions; -1 for rows that are left out.
    """
    next_positions = first_positions.copy()
    out = np.full(home_cells.shape[0], -1, np.int64)
    for i in range(home_cells.shape[0]):
        if home_cells[i] >= 0:
            out[i] = next_positions[home_cells[i]]
            next_positions[home_cells[i]] += 1
    return out
