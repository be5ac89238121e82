"""Sparse rows: how many entries they have, what a row takes in a search, and how many make a block."""

from __future__ import annotations

from typing import NamedTuple

from dumap.kernels.csr import WINDOW_ROWS

SPARSE_LEAVES = 64
"""Most leaves that a sparse row, which is cheap to compare, probes, and whose cells it joins. If rows have little
structure, that many are about as near; else most are beyond the margin of stage cells."""
FEWEST_LEAF_ROWS, LEAF_ROWS = 256, 4096
"""The fewest and the most rows of a leaf of sparse rows. Between them, a row may probe all leaves if they are near."""


class Entries(NamedTuple):
    """How many entries rows have that are sparse: in all, and the most of `WINDOW_ROWS` rows."""

    total: int
    densest: int


def sparse_leaf_rows(rows: int) -> int:
    """Return about how many rows a leaf of sparse rows has: so many that there are three quarters of
    `SPARSE_LEAVES`, since leaves that would be crowded are split.
    """
    return max(FEWEST_LEAF_ROWS, min(LEAF_ROWS, 4 * rows // (3 * SPARSE_LEAVES)))


def sparse_cell_row_bytes(entries: int, k: int) -> int:
    """Return the bytes of a row of so many entries in a search of k neighbours, as of `cell_row_bytes`."""
    return 12 * entries + 96 * (k + 1) + 16 * SPARSE_LEAVES + 320


def sparse_block(room: int, rows: int, most_rows: int, numbers: int, densest: int) -> tuple[int, int]:
    """Return the rows of a block of sparse rows, and the most entries that it may have.

    Parameters
    ----------
    room, rows, most_rows : int
        Bytes that a block may have, rows that there are, and rows that a block may have.
    numbers : int
        Numbers of 4 bytes of a mean row, with its projection if that is more.
    densest : int
        Most entries of `WINDOW_ROWS` rows.
    """
    windows = min(-(-rows // WINDOW_ROWS), most_rows // WINDOW_ROWS, room // (4 * numbers) // WINDOW_ROWS)
    windows = max(1, min(windows, room // (8 * max(1, densest))))
    return min(rows, windows * WINDOW_ROWS), windows * densest
