"""How lists of given neighbours are cut: rows of a cell, and rows that are read at once."""

from __future__ import annotations

import math

from dumap.config import Config, format_bytes
from dumap.errors import InputError
from dumap.sources.zarr_array import PrecomputedNeighbors

LISTED_SLOT_BYTES, READ_SLOT_BYTES = 40, 96
"""Bytes of a slot of a given list: in the lists that are kept, and while the list is read (measured, rounded up)."""


def given_cell_rows(config: Config, max_rows: int) -> int:
    """Return the rows of a cell in a run with given neighbours, at most so many."""
    return max(1, min(max_rows, config.task_memory // 4 // (config.neighbors.search_k * LISTED_SLOT_BYTES)))


def lists_at_once(config: Config, precomputed: PrecomputedNeighbors) -> int:
    """Return how many rows of a given graph are read at once.

    Raises
    ------
    InputError
        The graph has too few columns, or a chunk is more than a task may hold.
    """
    settings, task_memory, columns = config.neighbors, config.task_memory, precomputed.columns
    if columns < settings.search_k:
        raise InputError(
            f"neighbors.precomputed: the arrays of {precomputed.path} have {columns} columns, too few for "
            f"neighbors.{settings.width_setting} = {settings.search_k + 1}, which are the row itself and "
            f"{settings.search_k} others: set {settings.width_setting} to at most {columns + 1}, or to {columns} where "
            f"rows come first among their own neighbors"
        )
    if precomputed.chunk_bytes > task_memory // 8:
        rows_that_fit = max(1, task_memory // 8 * precomputed.chunk_rows // precomputed.chunk_bytes)
        raise InputError(
            f"neighbors.precomputed: one chunk in {precomputed.path} holds {format_bytes(precomputed.chunk_bytes)}, "
            f"more than an eighth of task_memory ({format_bytes(task_memory)}): rechunk the arrays to at most "
            f"{rows_that_fit} rows a chunk, or set task_memory to "
            f"{math.ceil(8 * precomputed.chunk_bytes / 2**20)}MiB or more"
        )
    return max(1, task_memory // 4 // (columns * READ_SLOT_BYTES))
