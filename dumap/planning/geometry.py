"""The geometry of a run: the numbers and sizes of blocks, cells, leaves, shards and chunks of the result.

It is computed from the data's shape and the configuration alone. Stages divide their work by these numbers, and plans
are made of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from dumap.config import Config, format_bytes
from dumap.config.metrics import ordered_arguments
from dumap.errors import InputError
from dumap.kernels.edges import default_epochs
from dumap.kernels.leaves import LEAF_ROWS, MAX_LEAF_ROWS
from dumap.kernels.projection import projected_dims
from dumap.kernels.vectors import ANGULAR_METRICS, BIT_METRICS, prepared_dims
from dumap.planning.curve import curve_parameters
from dumap.planning.given import given_cell_rows, lists_at_once
from dumap.planning.sparse import (
    MAX_SPARSE_PROBES,
    EntryCounts,
    choose_sparse_block,
    sparse_cell_row_bytes,
    sparse_leaf_rows,
)
from dumap.sources.zarr_array import PrecomputedNeighbors

SAMPLE_ROWS_PER_LEAF = 8
TARGET_SAMPLE_ROWS, MIN_SAMPLE_ROWS = 4096, 128
MAX_MEAN_CELLS, CELLS_PER_DOUBLING = 4, 0.6
"""The mean number of cells of a row, its home cell included, is at most the first. It grows by the second, from 1, each
time the number of cells doubles (measured, rounded up)."""
TARGET_CELL_ROWS = 32_768
"""Rows of a cell if memory allows more. Small data are then still divided among several tasks."""
MIN_CELLS = 4
MAX_MEAN_LEAF_ROWS = 2 * LEAF_ROWS
"""Rows of a mean leaf beyond which leaves are split again inside each cell."""
MIN_GROUPS = 256
"""With fewer than twice as many blocks, each block is sorted by cell alone. More blocks are sorted in groups, as large
as memory allows; there are at least this many groups."""
OUTPUT_ROWS = 65_536
MIN_SHARD_ROWS = 4096
MAX_EDGES_PER_NEIGHBOR, EDGE_BYTES = 2.5, 80
"""Most edges of a shard, in and out, for each row and neighbour, and bytes of an edge in the fuzzy union (measured,
rounded up)."""
BLOCK_BYTES = 16 * 2**20
"""Bytes of a block of rows, unless a chunk of the input is larger. Small tasks divide the work evenly."""
GUEST_BYTES = 64
"""Bytes of a guest without its vector: for the guest's position and home cell."""


@dataclass(frozen=True)
class Geometry:
    """The numbers and sizes of all the parts into which a run divides its data.

    Attributes
    ----------
    rows, dims, itemsize : int
        Shape of the input, and bytes of a value. Latitude and longitude count as 3 dims. For sparse rows, dims are
        those of the projections.
    block_rows, blocks : int
        Rows of the input that one task reads, and the number of such blocks.
    group_blocks : int
        Blocks whose rows are sorted by cell together, so that a cell's rows lie in few pieces.
    chunks_a_block : int
        Chunks of the input that hold a block's rows.
    sample_rows : int
        About how many rows the sample has from which the tree is grown.
    cell_rows : int
        Most rows of a cell, guests included.
    cells, leaves : int
        About how many cells and leaves there are. A cell is a group of leaves. If neighbours are given, it is a range
        of `cell_rows` rows.
    shard_rows, shards : int
        Most rows of a shard of the graph, and about how many shards there are.
    output_rows, outputs : int
        Rows of a chunk of the embedding, and the number of chunks.
    n_epochs : int
    columns, list_rows, list_chunk_rows : int
        If neighbours are given, columns of the arrays, rows that are read at once, and rows of a chunk. Otherwise 0.
    largest_home, largest_cell, stored_rows : int
        Most home rows of a cell, most rows with guests, and the rows of all cells with guests, as stage cells found
        them; 0 before that stage.
    entries, block_entries, source_dims : int
        Of sparse rows: entries of a mean row, most entries of a block, and columns. Else 0.
    largest_home_entries, largest_cell_entries, largest_mean_entries : int
        Of sparse rows, as stage cells found: most entries of a cell's home rows, and of its rows with guests, and of a
        mean home row of the cell where that is most; 0 before.
    """

    rows: int
    dims: int
    itemsize: int
    block_rows: int
    blocks: int
    sample_rows: int
    cell_rows: int
    cells: int
    leaves: int
    shard_rows: int
    shards: int
    output_rows: int
    outputs: int
    n_epochs: int
    columns: int = 0
    list_rows: int = 0
    list_chunk_rows: int = 0
    largest_home: int = 0
    largest_cell: int = 0
    stored_rows: int = 0
    group_blocks: int = 1
    chunks_a_block: int = 1
    entries: int = 0
    block_entries: int = 0
    source_dims: int = 0
    largest_home_entries: int = 0
    largest_cell_entries: int = 0
    largest_mean_entries: int = 0

    def with_cells(self, facts: Mapping[str, Any]) -> Geometry:
        """Return the same geometry with the sizes of the largest cells that stage cells found."""
        kinds = ("home_entries", "cell_entries", "mean_entries")
        entry_facts = {f"largest_{kind}": facts.get(kind, 0) for kind in kinds}
        row_facts = {"largest_home": facts["largest_home"], "largest_cell": facts["largest"]}
        return replace(self, **row_facts, **entry_facts, stored_rows=facts["stored_rows"])

    @property
    def is_sparse(self) -> bool:
        """Whether the rows are sparse."""
        return self.entries > 0

    @property
    def values_per_row(self) -> int:
        """How many numbers of 4 bytes a row takes by which it is compared: of a sparse one values and columns."""
        return 2 * self.entries if self.is_sparse else self.dims

    @property
    def row_bytes(self) -> int:
        """Bytes of a row where it is stored in the run: of a sparse one values and columns."""
        width = min(self.itemsize, 4)
        return self.entries * (width + (2 if self.source_dims <= 2**16 else 4)) if self.is_sparse else self.dims * width

    @property
    def source_row_bytes(self) -> int:
        """Bytes of a row of the input."""
        return self.entries * (self.itemsize + 4) if self.is_sparse else self.dims * self.itemsize

    @property
    def max_entries_at_once(self) -> int:
        """Most entries of rows of a cell that are searched at once: see `max_rows_at_once`."""
        expected_entries = self.cell_rows * self.entries
        max_entries = max(
            expected_entries, self.largest_home_entries + guests_at_once(expected_entries, self.largest_home_entries)
        )
        return min(self.largest_cell_entries or max_entries, int(1.1 * max_entries))

    @property
    def max_home_rows(self) -> int:
        """Most home rows of a cell: the number found, or else the projected number."""
        return self.largest_home or min(self.cell_rows, self.rows)

    @property
    def max_cell_rows(self) -> int:
        """Most rows of a cell, guests included: the number found, or else the projected number."""
        return self.largest_cell or min(self.cell_rows, self.rows)

    @property
    def max_rows_at_once(self) -> int:
        """Most rows of a cell that are searched at once: all rows, or the home rows with one batch of guests."""
        home_rows = self.max_home_rows
        return min(self.max_cell_rows, home_rows + guests_at_once(self.cell_rows, home_rows))

    def rows_of_block(self, number: int) -> tuple[int, int]:
        """Return the rows [start, stop) of a block."""
        return number * self.block_rows, min(self.rows, (number + 1) * self.block_rows)

    @property
    def groups(self) -> int:
        """The number of groups of blocks that are sorted by cell."""
        return math.ceil(self.blocks / self.group_blocks)

    def blocks_of_group(self, number: int) -> tuple[int, int]:
        """Return the blocks [first, last) of a group."""
        return number * self.group_blocks, min(self.blocks, (number + 1) * self.group_blocks)

    def rows_of_group(self, number: int) -> tuple[int, int]:
        """Return the rows [start, stop) of a group."""
        first, last = self.blocks_of_group(number)
        return self.rows_of_block(first)[0], self.rows_of_block(last - 1)[1]

    @property
    def max_leaf_rows(self) -> int | None:
        """Return the rows of a leaf beyond which each cell splits it again, where memory allows too few leaves; else
        None.
        """
        has_few_leaves = self.rows > MAX_MEAN_LEAF_ROWS * max(self.leaves, 1) and self.cells > 1
        return MAX_MEAN_LEAF_ROWS if has_few_leaves else None

    def mean_cells_per_row(self, max_cells_per_row: int) -> float:
        """Return the mean number of a row's cells, its home cell included: as found, otherwise as projected."""
        if self.stored_rows:
            return self.stored_rows / self.rows
        return expected_cells_per_row(self.cells, max_cells_per_row)

    def list_ranges(self, cell: int) -> list[tuple[int, int]]:
        """Return the ranges of rows [start, stop) in which the given lists of a cell are read."""
        start, stop = cell * self.cell_rows, min(self.rows, (cell + 1) * self.cell_rows)
        return [(low, min(stop, low + self.list_rows)) for low in range(start, stop, self.list_rows)]

    @property
    def index_dtype(self) -> np.dtype:
        """Return the narrowest dtype that numbers all rows."""
        return np.dtype(np.int32 if self.rows < 2**31 - 1 else np.int64)


def cell_row_bytes(dims: int, k: int, metric: str) -> int:
    """Return the bytes of a row of a cell in a search of k neighbours (measured, rounded up)."""
    arrays = 2 if metric in ANGULAR_METRICS else 1
    codes = dims + 64
    return 4 * dims * arrays + codes + 72 * (k + 1) + 256


def expected_cells_per_row(cells: int, max_cells_per_row: int) -> float:
    """Return the mean number of a row's cells, its home cell included, in a run with this many cells."""
    return min(max_cells_per_row, MAX_MEAN_CELLS, 1 + CELLS_PER_DOUBLING * math.log2(cells))


def choose_cell_count(rows: int, max_cell_rows: int, max_cells_per_row: int) -> int:
    """Return the number of cells for which a mean cell, with guests, has at most three quarters of `max_cell_rows`."""

    def mean_cell_rows(cells: int) -> float:
        if max_cells_per_row == 1:
            return 2 * rows / cells  # a cell may have twice the home rows it should
        return rows / cells * expected_cells_per_row(cells, max_cells_per_row)

    cells = max(1, rows // max_cell_rows)
    while (cells > 1 and mean_cell_rows(cells) > 0.75 * max_cell_rows) or (cells == 1 and rows > max_cell_rows):
        cells += max(1, cells // 64)
    return cells


def sort_row_bytes(dims: int, itemsize: int, max_cells_per_row: int) -> int:
    """Return the bytes of a row while it is sorted by cell: its values, its cells and the leaves it probes there."""
    return dims * (4 if itemsize > 4 else itemsize) + 96 + 64 * max_cells_per_row


def guests_at_once(cell_rows: int, home_rows: int) -> int:
    """Return how many guests are searched at once with a cell's home rows."""
    return max(1, cell_rows - home_rows, cell_rows // 8)


def max_shard_rows(config: Config) -> int:
    """Return the most rows of a shard: `graph.shard_rows`, or fewer if a task cannot hold as many."""
    k, n_components = config.neighbors.graph_k, config.layout.n_components
    row_bytes = max(MAX_EDGES_PER_NEIGHBOR * EDGE_BYTES * k, 64 * MAX_EDGES_PER_NEIGHBOR * k + 32 + 72 * n_components)
    rows_that_fit = int(0.75 * config.task_memory / row_bytes)
    return max(MIN_SHARD_ROWS, min(config.graph.shard_rows, rows_that_fit - rows_that_fit % MIN_SHARD_ROWS))


def check_chunk(config: Config, chunk_rows: int, row_bytes: int) -> None:
    """Refuse chunks that are more than a task may hold.

    Raises
    ------
    InputError
    """
    task_memory = config.task_memory
    if (chunk_bytes := chunk_rows * row_bytes) > task_memory // 4:
        raise InputError(
            f"{config.input.name}: one chunk holds {format_bytes(chunk_bytes)}, more than a quarter of task_memory "
            f"({format_bytes(task_memory)}): rechunk the array to at most {max(1, task_memory // 4 // row_bytes)} "
            f"rows a chunk, or set task_memory to {math.ceil(4 * chunk_bytes / 2**20)}MiB or more"
        )


def dense_block_rows(task_memory: int, rows: int, values_per_row: int, chunk_rows: int) -> int:
    """Return the rows of a block: whole chunks, where they fit."""
    block_rows = max(1, min(rows, OUTPUT_ROWS, min(BLOCK_BYTES, task_memory // 8) // (4 * values_per_row)))
    if chunk_rows <= block_rows:
        return block_rows - block_rows % chunk_rows
    return min(chunk_rows, rows) if chunk_rows * values_per_row * 4 <= task_memory // 4 else block_rows


def given_sizes(config: Config, precomputed: PrecomputedNeighbors | None, cell_rows: int) -> dict[str, int]:
    """Return the fields of a geometry that are of given neighbours; none if there are none."""
    if precomputed is None:
        return {}
    list_rows = min(cell_rows, lists_at_once(config, precomputed))
    return {"columns": precomputed.columns, "list_rows": list_rows, "list_chunk_rows": precomputed.chunk_rows}


def make_geometry(
    config: Config,
    rows: int,
    dims: int,
    itemsize: int,
    chunk_rows: int,
    precomputed: PrecomputedNeighbors | None = None,
    entries: EntryCounts | None = None,
) -> Geometry:
    """Return the geometry of a run. It depends on the data's shape and on parameters alone.

    If neighbours are given, cells are ranges of rows. `entries` are those of sparse rows.

    Raises
    ------
    InputError
        There are too few rows, or a chunk is more than a task may hold.
    ConfigError
        The metric does not take rows of `dims` dims, or the layout cannot use its curve.
    """
    settings, k, task_memory = config.neighbors, config.neighbors.search_k, config.task_memory
    if rows < k + 2:
        raise InputError(
            f"{config.input.name}: {rows} rows are too few for neighbors.{settings.width_setting} = {k + 1}; "
            f"give at least {k + 2} rows, or set {settings.width_setting} to at most {max(rows - 1, 0)}"
        )
    ordered_arguments(settings.metric, settings.metric_kwds, dims)  # refuses what the metric does not take
    curve_parameters(config.layout)  # refuses a curve that the layout cannot use
    if entries is not None:
        mean_entries, source_dims, dims = max(1, math.ceil(entries.total / rows)), dims, projected_dims(dims)
        check_chunk(config, min(chunk_rows, rows), mean_entries * (itemsize + 4))
        block_bytes = max(BLOCK_BYTES, min(chunk_rows, rows) * mean_entries * 8)  # a chunk is decoded as a whole
        block_rows, block_entries = choose_sparse_block(
            min(block_bytes, task_memory // 8), rows, OUTPUT_ROWS, max(dims, 2 * mean_entries), entries.densest_window
        )
        sparse_fields = {"entries": mean_entries, "block_entries": block_entries, "source_dims": source_dims}
        max_cell_rows = task_memory // sparse_cell_row_bytes(mean_entries, k)
        values_per_row = 2 * mean_entries + 2 * MAX_SPARSE_PROBES * config.cells.max_cells_per_row
    else:
        check_chunk(config, min(chunk_rows, rows), dims * itemsize)
        values_per_row = prepared_dims(settings.metric, dims) if settings.metric in BIT_METRICS else dims
        block_rows, sparse_fields = dense_block_rows(task_memory, rows, values_per_row, chunk_rows), {}
        dims = values_per_row = prepared_dims(config.neighbors.metric, dims)
        max_cell_rows = task_memory // cell_row_bytes(dims, k, config.neighbors.metric)
    blocks = math.ceil(rows / block_rows)
    sorted_row_bytes = sort_row_bytes(values_per_row, 4 if sparse_fields else itemsize, config.cells.max_cells_per_row)
    blocks_that_fit = task_memory // 2 // (block_rows * sorted_row_bytes)
    max_cell_rows = max(4 * (k + 2), min(max_cell_rows, config.cells.max_rows or max_cell_rows))
    cells = choose_cell_count(rows, max_cell_rows, config.cells.max_cells_per_row)
    cells = max(cells, min(MIN_CELLS, math.ceil(rows / TARGET_CELL_ROWS)))
    if precomputed is not None:
        cells = math.ceil(rows / (max_cell_rows := given_cell_rows(config, OUTPUT_ROWS)))
    leaf_rows = sparse_leaf_rows(rows) if sparse_fields else LEAF_ROWS
    leaves = max(cells, rows // leaf_rows) if rows > MAX_LEAF_ROWS or cells > 1 else 1
    target_sample_rows = max(TARGET_SAMPLE_ROWS, SAMPLE_ROWS_PER_LEAF * leaves)
    sample_rows = min(rows, target_sample_rows, max(MIN_SAMPLE_ROWS, task_memory // 4 // (4 * dims)))
    leaves = min(leaves, max(cells, sample_rows // 2))
    shard_rows = max_shard_rows(config)
    return Geometry(
        rows=rows,
        dims=dims,
        itemsize=itemsize,
        block_rows=block_rows,
        blocks=blocks,
        chunks_a_block=math.ceil(block_rows / chunk_rows),
        group_blocks=1 if precomputed else max(1, min(blocks_that_fit, blocks // MIN_GROUPS)),
        sample_rows=sample_rows,
        cell_rows=max_cell_rows,
        cells=cells,
        leaves=leaves,
        shard_rows=shard_rows,
        shards=math.ceil(rows / shard_rows),
        output_rows=OUTPUT_ROWS,
        outputs=math.ceil(rows / OUTPUT_ROWS),
        n_epochs=config.layout.n_epochs or default_epochs(rows),
        **given_sizes(config, precomputed, max_cell_rows),
        **sparse_fields,
    )
