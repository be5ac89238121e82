"""The neighbour lists of all rows, by position: those that the search found, or those of the last repair."""

from __future__ import annotations

import numpy as np

from dumap.artifacts.audit import count_repairs
from dumap.artifacts.cells import CellTable
from dumap.artifacts.part_names import AUDIT, NEIGHBORS, part_names
from dumap.store import Part, Run


def write_lists(out: Part, indices: np.ndarray, distances: np.ndarray) -> None:
    """Write a cell's lists, and the number of their empty slots."""
    out.write("indices", indices)
    out.write("distances", distances)
    out.attributes["missing"] = int((indices < 0).sum())


class NeighborLists:
    """The neighbour lists of all rows, by position.

    Parameters
    ----------
    run : Run
    repairs : int, optional
        Read the lists after this many repairs; by default the last lists.
    """

    def __init__(self, run: Run, repairs: int | None = None) -> None:
        self.run, self.table = run, CellTable(run)
        repairs = count_repairs(run) if repairs is None else repairs
        self.stage, prefix = (AUDIT, f"lists-{repairs}") if repairs else (NEIGHBORS, "lists")
        self.names = part_names(prefix, self.table.cells)

    def read(self, array: str, start: int, stop: int) -> np.ndarray:
        """Read 'indices' or 'distances' of positions [start, stop)."""
        return self.run.read_from_parts(self.stage, self.names, self.table.offsets, array, start, stop)

    def read_cell(self, cell: int, array: str) -> np.ndarray:
        """Read 'indices' or 'distances' of a cell's home rows."""
        return self.run.read(self.stage, self.names[cell], array)
