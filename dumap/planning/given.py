"""How lists of given neighbours are cut: rows of a cell, and rows that are read at once."""

from __future__ import annotations

import math

from dumap.config import Config, format_bytes
from dumap.errors import InputError
from dumap.sources.zarr_array import Precomputed

LIST_BYTES, SLOT_BYTES = 40, 96
"""Bytes of a slot of a given list: in the lists that are kept, and while the list is read (measured, rounded up)."""


def range_rows_of(config: Config, most: int) -> int:
    """Return the rows of a cell in a run with given neighbours, at most so many."""
    return max(1, min(most, config.task_memory // 4 // (config.neighbors.search_k * LIST_BYTES)))


def list_rows_of(config: Config, given: Precomputed) -> int:
    """Return how many rows of a given graph are read at once.

    Raises
    ------
    InputError
        The graph has too few columns, or a chunk is more than a task may hold.
    """
    settings, memory, columns = config.neighbors, config.task_memory, given.columns
    if columns < settings.search_k:
        raise InputError(
            f"neighbors.precomputed: the arrays of {given.path} have {columns} columns, too few for "
            f"neighbors.{settings.width_setting} = {settings.search_k + 1}, which are the row itself and "
            f"{settings.search_k} others: set {settings.width_setting} to at most {columns + 1}, or to {columns} where "
            f"rows come first among their own neighbors"
        )
    if given.chunk_bytes > memory // 8:
        fit = max(1, memory // 8 * given.chunk_rows // given.chunk_bytes)
        raise InputError(
            f"neighbors.precomputed: one chunk in {given.path} holds {format_bytes(given.chunk_bytes)}, more than an "
            f"eighth of task_memory ({format_bytes(memory)}): rechunk the arrays to at most {fit} rows a chunk, or "
            f"set task_memory to {math.ceil(8 * given.chunk_bytes / 2**20)}MiB or more"
        )
    return max(1, memory // 4 // (columns * SLOT_BYTES))
