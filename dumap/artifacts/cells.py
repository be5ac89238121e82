"""Cells: the tree, the table of where rows are, and a cell's home rows and guests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np

from dumap.artifacts.job import Job
from dumap.artifacts.part_names import CELLS, part_name, part_names
from dumap.kernels import cells, tree, vectors
from dumap.planning.geometry import guests_at_once
from dumap.store import Run

PROBES = 8
"""Most leaves that a row probes in one cell: it is compared with the rows of those leaves."""
LIMITS, TABLE = "limits", "table"
"""The parts that say which guests cells admit, and where rows are."""
DROPPED_AT_ONCE = 1 << 17
"""Rows that the run leaves out, looked up at once."""


def read_tree(run: Run) -> tree.Tree:
    """Read the tree."""
    groups, offsets, leaves, origin, axes = (
        run.read(CELLS, "tree", name) for name in ("groups", "offsets", "leaves", "origin", "axes")
    )
    return tree.Tree(groups, offsets, leaves, origin, np.ascontiguousarray(axes.T))


class CellTable:
    """Where the rows of blocks and cells are. Of its tables, one row is read at a time, when it is asked for.

    Attributes
    ----------
    cells, rows : int
        Number of cells, and of rows that are in one.
    """

    def __init__(self, run: Run) -> None:
        self.run, facts = run, run.summary(CELLS, TABLE)
        self.cells, self.rows = int(facts["cells"]), int(facts["rows"])

    @cached_property
    def offsets(self) -> np.ndarray:
        """Position of each cell's first row, (cells + 1,) int64."""
        return self.run.read(CELLS, TABLE, "offsets")

    def spans(self, cell: int) -> np.ndarray:
        """Return where a cell's rows begin in each sorted block, how many are home rows, and how many there are.

        Returns
        -------
        ndarray of int32, shape (blocks, 3)
        """
        return self.run.read(CELLS, TABLE, "spans", cell, cell + 1)[0]

    def guest_counts(self, cell: int) -> np.ndarray:
        """Return how many of a cell's home rows are guests of each cell, (cells,) int64."""
        return self.run.read(CELLS, TABLE, "guests", cell, cell + 1)[0]

    def positions(self, run: Run, block: int) -> np.ndarray:
        """Return the positions of a block's rows, (n,); -1 for those left out."""
        home = run.read(CELLS, part_name("assign", block), "home")
        return cells.ranks(home, run.read(CELLS, TABLE, "starts", block, block + 1)[0])

    def status(self, block: int) -> np.ndarray:
        """Return the status of a block's rows, (n,), as stage vectors found it."""
        return self.run.read(CELLS, part_name("assign", block), "status")


def keeps_input_dtype(job: Job) -> bool:
    """Return whether sorted vectors are kept in the input's dtype: it is no wider than float32 and nothing is lost."""
    return not vectors.is_wide(job.input.dtype) and job.config.neighbors.metric != vectors.SPHERICAL


class Cell:
    """A cell's rows: home rows by position, then guests by position.

    Attributes
    ----------
    positions : ndarray of int64, shape (n,)
    home_rows : int
        How many home rows there are.
    """

    def __init__(self, job: Job, cell: int, table: CellTable, guests: bool = True) -> None:
        self.job, spans = job, table.spans(cell)
        starts = spans[:, 0].astype(np.int64)
        stops = starts + spans[:, 2 if guests else 1]
        blocks = part_names("sorted", job.geometry.blocks)
        self.spans = [(block, int(a), int(b)) for block, a, b in zip(blocks, starts, stops, strict=True) if b > a]
        positions = np.concatenate([job.run.read(CELLS, block, "positions", a, b) for block, a, b in self.spans])
        guest = (positions < table.offsets[cell]) | (positions >= table.offsets[cell + 1])
        order = np.lexsort((positions, guest))
        self.inverse_order = np.argsort(order).astype(np.int32)
        self.positions = positions[order]
        self.home_rows = int((~guest).sum())

    def batches(self) -> Iterator[np.ndarray]:
        """Yield the rows that are searched together: all home rows, each time with as many other guests as memory
        allows.
        """
        guests = np.arange(self.home_rows, len(self.positions))
        batches = max(1, -(-len(guests) // guests_at_once(self.job.geometry.cell_rows, self.home_rows)))
        for batch in range(batches):
            yield np.concatenate([np.arange(self.home_rows), guests[batch::batches]])

    def _gather(self, name: str, rows: np.ndarray, out: np.ndarray, made: Callable[[np.ndarray], np.ndarray]) -> None:
        """Read rows of an array into `out`, in the order given; `made` converts each piece that is read."""
        wanted = np.full(len(self.positions), -1, np.int32)
        wanted[rows] = np.arange(len(rows))
        wanted, whole = wanted[self.inverse_order], len(rows) == len(self.positions)
        step, done = max(1, self.job.geometry.block_rows // 4), 0
        for block, a, b in self.spans:
            for low in range(a, b, step):
                high = min(b, low + step)
                at = wanted[done : done + high - low]
                done += high - low
                if whole or (at >= 0).any():
                    piece = self.job.run.read(CELLS, block, name, low, high)
                    out[at if whole else at[at >= 0]] = made(piece if whole else piece[at >= 0])

    def probes(self, rows: np.ndarray) -> np.ndarray:
        """Read the leaves of the cell that rows probe, (len(rows), width) int32."""
        out = np.empty((len(rows), PROBES), np.int32)
        self._gather("probes", rows, out, lambda piece: piece)
        return out

    def vectors(self, rows: np.ndarray, metric: str | None = None) -> np.ndarray:
        """Read the vectors of rows, in the order given; after `to_euclidean` if a metric is named.

        Returns
        -------
        ndarray of float32, shape (len(rows), dims)
        """
        out = np.empty((len(rows), self.job.geometry.dims), np.float32)

        def made(piece: np.ndarray) -> np.ndarray:
            x = vectors.as_float32(piece)
            return vectors.to_euclidean(x, metric) if metric else x

        self._gather("vectors", rows, out, made)
        return out


def positions_of_given(job: Job, table: CellTable, rows: np.ndarray) -> np.ndarray:
    """Return the positions of rows of the input in a run with given neighbours; -1 for rows left out, and where `rows`
    is -1.
    """
    before, gone, count = np.zeros(rows.shape, np.int64), rows < 0, job.geometry.rows - table.rows
    for low in range(0, count, DROPPED_AT_ONCE):
        dropped = job.run.read(CELLS, TABLE, "dropped", low, min(count, low + DROPPED_AT_ONCE))
        at = np.searchsorted(dropped, rows)
        before += at
        gone |= dropped[np.minimum(at, len(dropped) - 1)] == rows
    return np.where(gone, -1, rows - before)
