"""Cells: the tree, where each row lies, and a cell's rows with its guests."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np

from dumap.artifacts.job import Job
from dumap.artifacts.parts import CELLS, numbered
from dumap.kernels import cells, tree, vectors
from dumap.planning.geometry import guests_a_turn
from dumap.store import Run

PROBES = 8
"""Leaves of each of its cells that a row is compared in at the most."""
LIMITS, TABLE = "limits", "table"
"""The parts that say which guests cells admit, and where rows lie."""
DROPPED_AT_ONCE = 1 << 17
"""Dropped rows that are looked up at once."""


def read_tree(run: Run) -> tree.Tree:
    """Read the tree that was grown."""
    groups, offsets, leaves, origin, axes = (
        run.read(CELLS, "tree", name) for name in ("groups", "offsets", "leaves", "origin", "axes")
    )
    return tree.Tree(groups, offsets, leaves, origin, np.ascontiguousarray(axes.T))


class Table:
    """Where rows lie; of the counts by block and cell, a row is read when it is asked for.

    Attributes
    ----------
    cells, rows : int
        Cells, and rows that are in one.
    """

    def __init__(self, run: Run) -> None:
        self.run, facts = run, run.summary(CELLS, TABLE)
        self.cells, self.rows = int(facts["cells"]), int(facts["rows"])

    @cached_property
    def offsets(self) -> np.ndarray:
        """Position of each cell's first row, (cells + 1,) int64."""
        return self.run.read(CELLS, TABLE, "offsets")

    def spans(self, cell: int) -> np.ndarray:
        """Return where each block's rows in a cell begin, how many have their home there, and how many all are.

        Returns
        -------
        ndarray of int32, shape (blocks, 3)
        """
        return self.run.read(CELLS, TABLE, "spans", cell, cell + 1)[0]

    def hosts(self, cell: int) -> np.ndarray:
        """Return how many rows whose home a cell is are guests of each cell, (cells,) int64."""
        return self.run.read(CELLS, TABLE, "guests", cell, cell + 1)[0]

    def positions(self, run: Run, block: int) -> np.ndarray:
        """Return the positions (n,) of a block's rows, -1 for those left out."""
        home = run.read(CELLS, numbered("assign", block + 1)[-1], "home")
        return cells.ranks(home, run.read(CELLS, TABLE, "starts", block, block + 1)[0])

    def status(self, block: int) -> np.ndarray:
        """Return the status (n,) of a block's rows, as they were checked."""
        return self.run.read(CELLS, numbered("assign", block + 1)[-1], "status")


def travels_as_it_is(job: Job) -> bool:
    """Tell whether rows travel in the input's dtype, since float32 would take no fewer bytes and tell no more."""
    return not vectors.is_wide(job.input.dtype) and job.config.neighbors.metric != vectors.SPHERICAL


class Cell:
    """A cell's rows: its own by position, then its guests by position.

    Attributes
    ----------
    positions : ndarray of int64, shape (n,)
    own : int
        Rows whose home it is.
    """

    def __init__(self, job: Job, cell: int, table: Table, guests: bool = True) -> None:
        self.job, spans = job, table.spans(cell)
        starts = spans[:, 0].astype(np.int64)
        stops = starts + spans[:, 2 if guests else 1]
        blocks = numbered("sorted", job.geometry.blocks)
        self.spans = [(block, int(a), int(b)) for block, a, b in zip(blocks, starts, stops, strict=True) if b > a]
        positions = np.concatenate([job.run.read(CELLS, block, "positions", a, b) for block, a, b in self.spans])
        guest = (positions < table.offsets[cell]) | (positions >= table.offsets[cell + 1])
        order = np.lexsort((positions, guest))
        self.place = np.argsort(order).astype(np.int32)
        self.positions = positions[order]
        self.own = int((~guest).sum())

    def turns(self) -> Iterator[np.ndarray]:
        """Yield rows to be searched together: all, or the own with guests in turns, if those are many."""
        guests = np.arange(self.own, len(self.positions))
        turns = max(1, -(-len(guests) // guests_a_turn(self.job.geometry.cell_rows, self.own)))
        for turn in range(turns):
            yield np.concatenate([np.arange(self.own), guests[turn::turns]])

    def _gather(self, name: str, rows: np.ndarray, out: np.ndarray, made: Callable[[np.ndarray], np.ndarray]) -> None:
        """Read some of the rows of an array into `out`, in the order given, a few at a time, as what they are made."""
        wanted = np.full(len(self.positions), -1, np.int32)
        wanted[rows] = np.arange(len(rows))
        wanted, whole = wanted[self.place], len(rows) == len(self.positions)
        step, done = max(1, self.job.geometry.block_rows // 4), 0
        for block, a, b in self.spans:
            for low in range(a, b, step):
                high = min(b, low + step)
                at = wanted[done : done + high - low]
                done += high - low
                if whole or (at >= 0).any():
                    some = self.job.run.read(CELLS, block, name, low, high)
                    out[at if whole else at[at >= 0]] = made(some if whole else some[at >= 0])

    def probes(self, rows: np.ndarray) -> np.ndarray:
        """Read the leaves of the cell that some of the rows are compared in, (len(rows), width) int32."""
        out = np.empty((len(rows), PROBES), np.int32)
        self._gather("probes", rows, out, lambda some: some)
        return out

    def vectors(self, rows: np.ndarray, metric: str | None = None) -> np.ndarray:
        """Read the vectors of some of the rows, in the order given, in a metric's partition space where one is named.

        Returns
        -------
        ndarray of float32, shape (len(rows), dims)
        """
        x = np.empty((len(rows), self.job.geometry.dims), np.float32)

        def made(some: np.ndarray) -> np.ndarray:
            return vectors.to_euclidean(vectors.as_float32(some), metric) if metric else vectors.as_float32(some)

        self._gather("vectors", rows, x, made)
        return x


def kept_positions(job: Job, table: Table, rows: np.ndarray) -> np.ndarray:
    """Return the positions of any of the input's rows where neighbours are given; -1 for those left out, and for -1."""
    before, gone, count = np.zeros(rows.shape, np.int64), rows < 0, job.geometry.rows - table.rows
    for low in range(0, count, DROPPED_AT_ONCE):
        some = job.run.read(CELLS, TABLE, "dropped", low, min(count, low + DROPPED_AT_ONCE))
        at = np.searchsorted(some, rows)
        before += at
        gone |= some[np.minimum(at, len(some) - 1)] == rows
    return np.where(gone, -1, rows - before)
