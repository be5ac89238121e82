"""Cells: the tree, the table that says where rows are, and a cell's home rows and guests."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from itertools import groupby
from operator import itemgetter

import numpy as np
from scipy.sparse import csr_matrix

from dumap.artifacts.job import Job
from dumap.artifacts.part_names import CELLS, NEIGHBORS, part_name, part_names, range_name
from dumap.kernels import csr, tree, vectors
from dumap.planning.geometry import Geometry, guests_at_once
from dumap.planning.sparse import MAX_SPARSE_PROBES
from dumap.store import RANGE_BYTES, Run, read_csr

MAX_PROBES = 8
"""Most leaves that a row probes in one cell: it is compared with the rows of those leaves."""
GUEST_LIMITS, TABLE, SPANS, POSITIONS = "limits", "table", "spans", "positions"
"""The parts that hold the guests that cells admit, the first positions of cells, the places of a range of cells' rows,
and the positions of a group of blocks' rows."""
MIN_RANGE_BYTES, RANGES_PER_PIECE = 512, 4
"""Least bytes of a range in which arrays are read, and about how many ranges hold the piece of a cell. Small ranges
keep other cells' rows from being read."""
DROPPED_PER_READ = 1 << 17
"""Rows left out of the run that are looked up at once."""


def max_probes(geometry: Geometry) -> int:
    """Return the most leaves that a row probes in one cell."""
    return MAX_SPARSE_PROBES if geometry.is_sparse else MAX_PROBES


def read_tree(run: Run) -> tree.Tree:
    """Read the tree."""
    groups, offsets, leaves, origin, axes = (
        run.read(CELLS, "tree", name) for name in ("groups", "offsets", "leaves", "origin", "axes")
    )
    return tree.Tree(groups, offsets, leaves, origin, np.ascontiguousarray(axes.T))


def table_facts(run: Run) -> dict[str, int]:
    """Return the table's facts without `cut`, the sizes in which it is divided."""
    return {name: value for name, value in run.part_facts(CELLS, TABLE).items() if name != "cut"}


class CellTable:
    """The table that says where the rows of blocks and cells are. One row of its arrays is read at a time, on access.

    Attributes
    ----------
    cells, rows : int
        Number of cells, and number of rows in cells.
    """

    def __init__(self, run: Run) -> None:
        self.run, facts = run, run.part_facts(CELLS, TABLE)
        self.cells, self.rows = int(facts["cells"]), int(facts["rows"])
        self._block_rows, self._group_blocks, self._cells_per_part = facts["cut"]

    @cached_property
    def offsets(self) -> np.ndarray:
        """Position of each cell's first row, (cells + 1,) int64."""
        return self.run.read(CELLS, TABLE, "offsets")

    def home_ranges(self, cell: int) -> np.ndarray:
        """Return the first of a cell's home rows in each sorted group, and their number, (groups, 2) int32."""
        return self._read_ranges("home", cell)

    def guest_ranges(self, cell: int) -> np.ndarray:
        """Return the first of a cell's guests among all guests of each group, and their number, (groups, 2)."""
        return self._read_ranges("guests", cell)

    def _read_ranges(self, array: str, cell: int) -> np.ndarray:
        number, row = divmod(cell, self._cells_per_part)
        return self.run.read(CELLS, part_name(SPANS, number), array, row, row + 1)[0]

    def entry_counts(self, cell: int) -> np.ndarray:
        """Return how many entries a cell's home rows have, and its rows with guests, (2,) int64; of sparse rows."""
        return self._read_ranges("entries", cell)

    def group_starts(self, group: int) -> np.ndarray:
        """Return the position of a group's first row in each cell, (cells,) int64."""
        names = part_names(SPANS, -(-self.cells // self._cells_per_part))
        return np.concatenate([self.run.read(CELLS, name, "starts", group, group + 1)[0] for name in names])

    def positions(self, run: Run, block: int) -> np.ndarray:
        """Return the positions of a block's rows, (n,) int64; -1 for rows left out."""
        return run.read(CELLS, *self._range_in_part(block, "positions")).astype(np.int64)

    def status(self, block: int) -> np.ndarray:
        """Return the status of a block's rows, (n,), as stage vectors found it."""
        return self.run.read(CELLS, *self._range_in_part(block, "status"))

    def _range_in_part(self, block: int, array: str) -> tuple[str, str, int, int]:
        """Return the part, the array, and the range in it, that hold a block's rows."""
        group, number = divmod(block, self._group_blocks)
        return part_name(POSITIONS, group), array, number * self._block_rows, (number + 1) * self._block_rows


def guest_part_names(wave: tuple[int, int], groups: int) -> list[str]:
    """Name the parts that hold the guests of a wave's cells, by group."""
    return part_names(range_name("guests", *wave), groups)


def part_ranges(names: Sequence[str], spans: np.ndarray) -> list[tuple[str, int, int]]:
    """Return the parts that hold rows, with the range [first, last) of each. `spans` are first rows and counts."""
    return [(name, first, first + count) for name, (first, count) in zip(names, spans.tolist(), strict=True) if count]


def rows_per_range(piece_rows: int, values: np.ndarray) -> int:
    """Return the rows of a range for an array that is read in pieces of about `piece_rows` rows; 0 for the usual
    number.
    """
    row_bytes = max(1, values[:1].nbytes)
    range_rows = max(piece_rows // RANGES_PER_PIECE, -(-MIN_RANGE_BYTES // row_bytes))
    return range_rows if range_rows * row_bytes < RANGE_BYTES else 0


def keeps_input_dtype(job: Job) -> bool:
    """Return whether sorted vectors keep the input's dtype. They do if the dtype is not wider than float32."""
    return not vectors.exceeds_float32(job.input.dtype) and job.config.neighbors.metric != vectors.SPHERICAL


class Cell:
    """A cell's rows: home rows by position, then guests by position.

    Parameters
    ----------
    job : Job
    cell : int
    table : CellTable
    wave : tuple of int, optional
        The cells [first, last) whose guests are sorted by cell. Without a wave, guests are left out.

    Attributes
    ----------
    number : int
    positions : ndarray of int64, shape (n,)
    home_rows : int
        Number of home rows.
    """

    def __init__(self, job: Job, cell: int, table: CellTable, wave: tuple[int, int] | None = None) -> None:
        self.job, self.number, self.table, guests = job, cell, table, np.empty(0, np.int64)
        first, last = (int(offset) for offset in table.offsets[cell : cell + 2])
        self.home_rows = last - first
        of_homes = part_ranges(part_names("sorted", job.geometry.groups), table.home_ranges(cell))
        self.part_ranges = [(CELLS, *span) for span in of_homes]
        if wave is not None:
            spans = table.guest_ranges(cell)
            spans[:, 0] -= table.guest_ranges(wave[0])[:, 0]
            of_guests = part_ranges(guest_part_names(wave, job.geometry.groups), spans)
            read = job.run.read_many(NEIGHBORS, [(name, "positions", a, b) for name, a, b in of_guests])
            guests = np.concatenate([guests, *read])
            self.part_ranges += [(NEIGHBORS, *span) for span in of_guests]
        order = np.argsort(guests)
        inverse = np.argsort(order) + self.home_rows
        self.inverse_order = np.concatenate([np.arange(self.home_rows), inverse]).astype(np.int32)
        self.positions = np.concatenate([np.arange(first, last), guests[order]])

    def row_batches(self) -> Iterator[np.ndarray]:
        """Yield the rows that are searched together: all home rows, and each time as many further guests as memory
        allows.
        """
        geometry, guests = self.job.geometry, np.arange(self.home_rows, len(self.positions))
        batches = max(1, -(-len(guests) // guests_at_once(geometry.cell_rows, self.home_rows)))
        if geometry.is_sparse:
            home, every = self.table.entry_counts(self.number).tolist()
            batches = max(batches, -(-(every - home) // guests_at_once(geometry.cell_rows * geometry.entries, home)))
        for batch in range(batches):
            yield np.concatenate([np.arange(self.home_rows), guests[batch::batches]])

    def _read_rows(
        self, name: str, rows: np.ndarray, out: np.ndarray, convert: Callable[[np.ndarray], np.ndarray]
    ) -> None:
        """Read rows of an array into `out`, in the given order. `convert` converts each piece that is read."""
        out_rows = np.full(len(self.positions), -1, np.int32)
        out_rows[rows] = np.arange(len(rows))
        out_rows, is_whole = out_rows[self.inverse_order], len(rows) == len(self.positions)
        step, rows_read = max(1, self.job.geometry.block_rows // 4), 0
        for stage, spans in groupby(self.part_ranges, key=itemgetter(0)):
            requests, piece_rows = [], []
            for _, part, a, b in spans:
                for low in range(a, b, step):
                    high = min(b, low + step)
                    piece_out = out_rows[rows_read : rows_read + high - low]
                    rows_read += high - low
                    if is_whole or (piece_out >= 0).any():
                        requests.append((part, name, low, high))
                        piece_rows.append(piece_out)
            for piece_out, piece in zip(piece_rows, self.job.run.read_many(stage, requests), strict=True):
                out[piece_out if is_whole else piece_out[piece_out >= 0]] = convert(
                    piece if is_whole else piece[piece_out >= 0]
                )

    def read_probes(self, rows: np.ndarray) -> np.ndarray:
        """Read the leaves of the cell that rows probe, (len(rows), width) int32."""
        out = np.empty((len(rows), max_probes(self.job.geometry)), np.int32)
        self._read_rows("probes", rows, out, lambda piece: piece)
        return out

    def read_kth_squared(self) -> np.ndarray:
        """Read the squared distance of the last neighbour that each guest found in its home cell, float64."""
        out = np.empty(len(self.positions) - self.home_rows)
        self._read_rows("kth_squared", np.arange(self.home_rows, len(self.positions)), out, lambda piece: piece)
        return out

    def read_vectors(self, rows: np.ndarray, metric: str | None = None) -> np.ndarray:
        """Read the vectors of rows, in the given order. With a metric, they are mapped by `to_euclidean`.

        Returns
        -------
        ndarray of float32, shape (len(rows), dims)
        """
        out = np.empty((len(rows), self.job.geometry.dims), np.float32)

        def convert(piece: np.ndarray) -> np.ndarray:
            x = vectors.as_float32(piece)
            return vectors.to_euclidean(x, metric) if metric else x

        self._read_rows("vectors", rows, out, convert)
        return out

    def read_sparse_vectors(self, rows: np.ndarray) -> csr_matrix:
        """Read the vectors of rows that are sparse, in the order given, as float32."""
        job, out_rows = self.job, np.full(len(self.positions), -1, np.int64)
        out_rows[rows] = np.arange(len(rows))
        out_rows, done, piece_out_rows = out_rows[self.inverse_order], 0, []
        counts = np.zeros(len(rows), np.int64)
        for stage, part, a, b in self.part_ranges:  # first how many entries each row has, then the entries
            piece_out_rows.append(out_rows[done : done + b - a])
            done += b - a
            entry_counts = np.diff(job.run.read(stage, part, "vectors_bounds", a, b + 1))
            counts[piece_out_rows[-1][piece_out_rows[-1] >= 0]] = entry_counts[piece_out_rows[-1] >= 0]
        bounds = np.concatenate([[0], np.cumsum(counts)])
        columns, values = np.empty(bounds[-1], np.int32), np.empty(bounds[-1], np.float32)
        step = max(1, job.geometry.block_rows // 4)
        for (stage, part, a, b), places in zip(self.part_ranges, piece_out_rows, strict=True):
            for low in range(a, b, step):
                of_piece = places[low - a : low - a + step]
                chosen = np.flatnonzero(of_piece >= 0)
                if len(chosen):
                    span = (low, min(b, low + step))
                    piece = csr.as_float32(read_csr(job.run, stage, part, "vectors", job.geometry.source_dims, *span))
                    csr.scatter_entries(piece.indices, piece.indptr, chosen, of_piece[chosen], bounds, columns)
                    csr.scatter_entries(piece.data, piece.indptr, chosen, of_piece[chosen], bounds, values)
        return csr_matrix((values, columns, bounds), shape=(len(rows), job.geometry.source_dims), copy=False)


def positions_of_given(job: Job, table: CellTable, rows: np.ndarray) -> np.ndarray:
    """Return the positions of the input's rows in a run with given neighbours; -1 for rows left out and for a row of
    -1.
    """
    before, gone, count = np.zeros(rows.shape, np.int64), rows < 0, job.geometry.rows - table.rows
    for low in range(0, count, DROPPED_PER_READ):
        dropped = job.run.read(CELLS, TABLE, "dropped", low, min(count, low + DROPPED_PER_READ))
        indices = np.searchsorted(dropped, rows)
        before += indices
        gone |= dropped[np.minimum(indices, len(dropped) - 1)] == rows
    return np.where(gone, -1, rows - before)
