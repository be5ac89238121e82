"""Sparse rows: how many entries they have, what a row takes in a search, and how many make a block."""

from __future__ import annotations

from typing import NamedTuple

from dumap.kernels.csr import WINDOW_ROWS

MAX_SPARSE_PROBES = 64
"""Most leaves that a sparse row, which is cheap to compare, probes, and whose cells it joins. If rows have little
structure, that many are about as near; else most are beyond the margin of stage cells."""
MIN_SPARSE_LEAF_ROWS, MAX_SPARSE_LEAF_ROWS = 256, 4096
"""The fewest and the most rows of a leaf of sparse rows. Between them, a row may probe all leaves if they are near."""


class EntryCounts(NamedTuple):
    """How many entries rows have that are sparse: in all, and the most of `WINDOW_ROWS` rows."""

    total: int
    densest_window: int


def sparse_leaf_rows(rows: int) -> int:
    """Return the rows of a mean leaf of sparse rows. Within the bounds, there are three quarters of `MAX_SPARSE_PROBES`
    leaves, since crowded ones are split.
    """
    return max(MIN_SPARSE_LEAF_ROWS, min(MAX_SPARSE_LEAF_ROWS, 4 * rows // (3 * MAX_SPARSE_PROBES)))


def sparse_cell_row_bytes(entries: int, k: int) -> int:
    """Return the bytes of a row of so many entries in a search of k neighbours, as of `cell_row_bytes`."""
    return 12 * entries + 96 * (k + 1) + 16 * MAX_SPARSE_PROBES + 320


def choose_sparse_block(
    max_bytes: int, rows: int, max_rows: int, values_per_row: int, window_entries: int
) -> tuple[int, int]:
    """Return the rows of a block of sparse rows, and the most entries that it may have.

    Parameters
    ----------
    max_bytes, rows, max_rows : int
        Bytes that a block may have, rows that there are, and rows that a block may have.
    values_per_row : int
        Numbers of 4 bytes of a mean row, with its projection if that is more.
    window_entries : int
        Most entries of `WINDOW_ROWS` rows.
    """
    n_windows = min(-(-rows // WINDOW_ROWS), max_rows // WINDOW_ROWS, max_bytes // (4 * values_per_row) // WINDOW_ROWS)
    n_windows = max(1, min(n_windows, max_bytes // (8 * max(1, window_entries))))
    return min(rows, n_windows * WINDOW_ROWS), n_windows * window_entries
