"""Cells: the tree, the table of where rows are, and a cell's home rows and guests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from operator import itemgetter

import numpy as np

from dumap.artifacts.job import Job
from dumap.artifacts.part_names import CELLS, NEIGHBORS, part_name, part_names, range_name
from dumap.kernels import tree, vectors
from dumap.planning.geometry import guests_at_once
from dumap.store import RANGE_BYTES, Run

PROBES = 8
"""Most leaves that a row probes in one cell: it is compared with the rows of those leaves."""
LIMITS, TABLE, SPANS, POSITIONS = "limits", "table", "spans", "positions"
"""The parts that say which guests cells admit, where cells begin, where rows of a range of cells are, and where those
of a group of blocks."""
LEAST_RANGE_BYTES, RANGES_A_PIECE = 512, 4
"""The pieces of cells are read in about so many ranges, so that little else is read; none is smaller."""
DROPPED_AT_ONCE = 1 << 17
"""Rows that the run leaves out, looked up at once."""


def read_tree(run: Run) -> tree.Tree:
    """Read the tree."""
    groups, offsets, leaves, origin, axes = (
        run.read(CELLS, "tree", name) for name in ("groups", "offsets", "leaves", "origin", "axes")
    )
    return tree.Tree(groups, offsets, leaves, origin, np.ascontiguousarray(axes.T))


def figures_of(run: Run) -> dict[str, int]:
    """Return the figures of the table, without how it is cut."""
    return {name: value for name, value in run.summary(CELLS, TABLE).items() if name != "cut"}


class CellTable:
    """Where the rows of blocks and cells are. Of its arrays, one row is read at a time, when it is asked for.

    Attributes
    ----------
    cells, rows : int
        Number of cells, and of rows that are in one.
    """

    def __init__(self, run: Run) -> None:
        self.run, facts = run, run.summary(CELLS, TABLE)
        self.cells, self.rows = int(facts["cells"]), int(facts["rows"])
        self._block_rows, self._group_blocks, self._cells_a_part = facts["cut"]

    @cached_property
    def offsets(self) -> np.ndarray:
        """Position of each cell's first row, (cells + 1,) int64."""
        return self.run.read(CELLS, TABLE, "offsets")

    def home_spans(self, cell: int) -> np.ndarray:
        """Return where a cell's home rows begin in each sorted group, and how many there are, (groups, 2) int32."""
        return self._spans("home", cell)

    def guest_spans(self, cell: int) -> np.ndarray:
        """Return where a cell's guests begin among all guests of each group, and how many there are, (groups, 2)."""
        return self._spans("guests", cell)

    def _spans(self, array: str, cell: int) -> np.ndarray:
        number, row = divmod(cell, self._cells_a_part)
        return self.run.read(CELLS, part_name(SPANS, number), array, row, row + 1)[0]

    def starts(self, group: int) -> np.ndarray:
        """Return the position of a group's first row in each cell, (cells,) int64."""
        names = part_names(SPANS, -(-self.cells // self._cells_a_part))
        return np.concatenate([self.run.read(CELLS, name, "starts", group, group + 1)[0] for name in names])

    def positions(self, run: Run, block: int) -> np.ndarray:
        """Return the positions of a block's rows, (n,) int64; -1 for those left out."""
        return run.read(CELLS, *self._in_part(block, "positions")).astype(np.int64)

    def status(self, block: int) -> np.ndarray:
        """Return the status of a block's rows, (n,), as stage vectors found it."""
        return self.run.read(CELLS, *self._in_part(block, "status"))

    def _in_part(self, block: int, array: str) -> tuple[str, str, int, int]:
        """Name the part and the array that hold something of a block's rows, and say where."""
        group, number = divmod(block, self._group_blocks)
        return part_name(POSITIONS, group), array, number * self._block_rows, (number + 1) * self._block_rows


def guest_names(wave: tuple[int, int], groups: int) -> list[str]:
    """Name the parts that hold the guests of a wave's cells, by group."""
    return part_names(range_name("guests", *wave), groups)


def spans_in(names: Sequence[str], spans: np.ndarray) -> list[tuple[str, int, int]]:
    """Return the parts that hold rows, with the rows [first, last) of each; `spans` are first rows and counts."""
    return [(name, first, first + count) for name, (first, count) in zip(names, spans.tolist(), strict=True) if count]


def rows_a_range(piece_rows: int, values: np.ndarray) -> int:
    """Return the rows of a range where an array is read in pieces of about so many rows; 0 for as many as usual."""
    row_bytes = max(1, values[:1].nbytes)
    wanted = max(piece_rows // RANGES_A_PIECE, -(-LEAST_RANGE_BYTES // row_bytes))
    return wanted if wanted * row_bytes < RANGE_BYTES else 0


def keeps_input_dtype(job: Job) -> bool:
    """Return whether sorted vectors are kept in the input's dtype: it is no wider than float32 and nothing is lost."""
    return not vectors.is_wide(job.input.dtype) and job.config.neighbors.metric != vectors.SPHERICAL


class Cell:
    """A cell's rows: home rows by position, then guests by position.

    Parameters
    ----------
    job : Job
    cell : int
    table : CellTable
    wave : tuple of int, optional
        The cells [first, last) whose guests are sorted by cell now. Without, guests are left out.

    Attributes
    ----------
    positions : ndarray of int64, shape (n,)
    home_rows : int
        How many home rows there are.
    """

    def __init__(self, job: Job, cell: int, table: CellTable, wave: tuple[int, int] | None = None) -> None:
        self.job, guests = job, np.empty(0, np.int64)
        first, last = (int(offset) for offset in table.offsets[cell : cell + 2])
        self.home_rows = last - first
        of_homes = spans_in(part_names("sorted", job.geometry.groups), table.home_spans(cell))
        self.spans = [(CELLS, *span) for span in of_homes]
        if wave is not None:
            spans = table.guest_spans(cell)
            spans[:, 0] -= table.guest_spans(wave[0])[:, 0]
            of_guests = spans_in(guest_names(wave, job.geometry.groups), spans)
            read = job.run.read_each(NEIGHBORS, [(name, "positions", a, b) for name, a, b in of_guests])
            guests = np.concatenate([guests, *read])
            self.spans += [(NEIGHBORS, *span) for span in of_guests]
        order = np.argsort(guests)
        inverse = np.argsort(order) + self.home_rows
        self.inverse_order = np.concatenate([np.arange(self.home_rows), inverse]).astype(np.int32)
        self.positions = np.concatenate([np.arange(first, last), guests[order]])

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
        for stage, spans in groupby(self.spans, key=itemgetter(0)):
            requests, places = [], []
            for _, part, a, b in spans:
                for low in range(a, b, step):
                    high = min(b, low + step)
                    at = wanted[done : done + high - low]
                    done += high - low
                    if whole or (at >= 0).any():
                        requests.append((part, name, low, high))
                        places.append(at)
            for at, piece in zip(places, self.job.run.read_each(stage, requests), strict=True):
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
