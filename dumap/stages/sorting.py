"""Sort rows by cell, a group of blocks at a time: home rows for stage cells, guests for stage neighbors."""

from __future__ import annotations

from typing import Any

import numpy as np

from dumap.artifacts.cells import (
    GUEST_LIMITS,
    POSITIONS,
    CellTable,
    keeps_input_dtype,
    max_probes,
    rows_per_range,
)
from dumap.artifacts.job import Job
from dumap.artifacts.part_names import CELLS, NEIGHBORS, number_of, part_name, range_of
from dumap.artifacts.rows import join_rows, write_rows
from dumap.artifacts.vectors import read_status
from dumap.config import Config
from dumap.kernels import cells, vectors
from dumap.planning.budget import sparse_block_bytes
from dumap.planning.geometry import Geometry, sort_row_bytes
from dumap.planning.sparse import MAX_SPARSE_PROBES
from dumap.store import OBJECT_BYTES

RANKED_LEAVES = 16
"""Nearest leaves that are found for a row. The row joins cells of the nearest `JOINED_LEAVES` of them, and probes the
others only in cells that it has joined."""
JOINED_LEAVES = 8
"""A row joins the cells of at most this many nearest leaves: `tree.nearest_leaves` leaves out far leaves, and
`cells.max_cells_per_row` bounds the cells."""


def ranked_leaves(geometry: Geometry) -> int:
    """Return how many leaves are found for a row at the most."""
    return MAX_SPARSE_PROBES if geometry.is_sparse else RANKED_LEAVES


def value_counts(numbers: np.ndarray) -> np.ndarray:
    """Return the distinct numbers and the count of each number, (m, 2)."""
    counts = np.bincount(numbers)
    present = np.flatnonzero(counts)
    return np.stack([present, counts[present]], axis=1)


def cell_offsets(of_cells: np.ndarray, count: int) -> np.ndarray:
    """Return the index of each cell's first row in rows sorted by cell, (cells + 1,) int32. -1 is no cell."""
    counts = np.bincount(of_cells[of_cells >= 0], minlength=count)
    return np.concatenate([[0], np.cumsum(counts)]).astype(np.int32)


def read_entry_counts(job: Job, group: int) -> np.ndarray:
    """Return how many entries a group's rows have, (n,) int; of sparse rows."""
    names = [(part_name("near", block), "entries", 0, None) for block in range(*job.geometry.blocks_of_group(group))]
    return np.concatenate(list(job.run.read_many(CELLS, names)))


def sum_entries_by_cell(of_cells: np.ndarray, entries: np.ndarray, count: int) -> np.ndarray:
    """Add up the entries of rows by cell, (cells,) int64; each row is in some cells, (n, m), -1 being none."""
    joined = of_cells >= 0
    entry_sums = np.bincount(
        of_cells[joined], np.broadcast_to(entries[:, None], of_cells.shape)[joined], minlength=count
    )
    return entry_sums.astype(np.int64)


def find_cells(job: Job, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells of a group's rows, (n, max_cells_per_row), the home cell first, and the leaves that rows probe
    there.
    """
    leaf_cells, pieces = (job.run.read(CELLS, "packing", name) for name in ("cells", "pieces"))
    names = [(part_name("near", block), "near", 0, None) for block in range(*job.geometry.blocks_of_group(group))]
    nearest = np.concatenate(list(job.run.read_many(CELLS, names)))
    (start, _), probes = job.geometry.rows_of_group(group), max_probes(job.geometry)
    joined = MAX_SPARSE_PROBES if job.geometry.is_sparse else JOINED_LEAVES
    return cells.choose_cells(
        nearest, leaf_cells, pieces, start, job.config.seed, job.config.cells.max_cells_per_row, joined, probes
    )


def find_admitting_cells(job: Job, group: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the result of `find_cells`, with -1 for each cell that does not admit the row."""
    row_cells, probes = find_cells(job, group)
    if job.run.part_facts(CELLS, GUEST_LIMITS)["turned_away"]:
        priorities, _ = cells.guest_priorities(row_cells, job.geometry.rows_of_group(group)[0], job.config.seed)
        row_cells = cells.admitted_cells(row_cells, priorities, job.run.read(CELLS, GUEST_LIMITS, "limits"))
    return row_cells, probes


def write_positions(job: Job, part: str) -> None:
    """Write the positions and the status of a group's rows."""
    group = number_of(part)
    home = job.run.read(CELLS, part_name("assign", group), "home")
    status = [read_status(job.run, block) for block in range(*job.geometry.blocks_of_group(group))]
    with job.run.part(CELLS, part) as out:
        out.write(
            "positions",
            cells.assign_positions(home, CellTable(job.run).group_starts(group)).astype(job.geometry.index_dtype),
        )
        out.write("status", np.concatenate(status))


def read_group_rows(job: Job, group: int) -> Any:
    """Read a group's rows, block by block, in the dtype in which they are sorted, (n, dims)."""
    first, last = job.geometry.blocks_of_group(group)
    if job.geometry.is_sparse:
        blocks = (job.input.read(*job.geometry.rows_of_block(block)) for block in range(first, last))
        return join_rows([rows if keeps_input_dtype(job) else job.as_compared(rows) for rows in blocks])
    start, stop = job.geometry.rows_of_group(group)
    out = np.empty(0)
    for block in range(first, last):
        low, high = job.geometry.rows_of_block(block)
        if keeps_input_dtype(job):
            rows = vectors.unpack_bits(job.input.read(low, high), job.config.neighbors.metric)
        else:
            rows = job.read_rows(low, high)
        if block == first:
            out = rows if last == first + 1 else np.empty((stop - start, *rows.shape[1:]), rows.dtype)
        if out is not rows:
            out[low - start : high - start] = rows
    return out


def sort_home_rows(job: Job, part: str) -> None:
    """Write the vectors of a group's rows, and the leaves that rows probe in their home cell, sorted by home cell."""
    group, count = number_of(part), CellTable(job.run).cells
    row_cells, probes = find_cells(job, group)
    home = row_cells[:, 0].copy()
    source = np.argsort(home, kind="stable")[np.count_nonzero(home < 0) :]
    probes, piece_rows = probes[source, 0], len(home) // count
    del row_cells
    x = read_group_rows(job, group)
    with job.run.part(CELLS, part) as out:
        out.write("probes", probes, rows_per_range(piece_rows, probes))
        write_rows(out, "vectors", x, source, piece_rows)


def read_kth_squared(job: Job, group: int, home: np.ndarray, names: list[str]) -> np.ndarray:
    """Read, for each row of a group, the squared distance of its kth neighbour in its home cell; (n,)."""
    ends = list(job.run.read_many(NEIGHBORS, [(name, "firsts", group, group + 2) for name in names]))
    spans = [(name, "kth_squared", *bounds.tolist()) for name, bounds in zip(names, ends, strict=True)]
    kth, at_home = np.full(len(home), np.inf), np.argsort(home, kind="stable")[np.count_nonzero(home < 0) :]
    kth[at_home] = np.concatenate(list(job.run.read_many(NEIGHBORS, spans)))
    return kth


def sort_guests(job: Job, part: str, kth: list[str]) -> None:
    """Write the vectors of a group's rows, sorted by the cells of a wave that admit them as guests. A row is written
    once for each such cell. `kth` names the parts that hold the distances which guests bring with them.
    """
    group, (first, last) = number_of(part), range_of(part.rsplit("-", 1)[0])
    row_cells, probes = find_admitting_cells(job, group)
    kth_squared = read_kth_squared(job, group, row_cells[:, 0].copy(), kth) if kth else None
    row_cells[:, 0] = -1
    row_cells[(row_cells < first) | (row_cells >= last)] = -1
    positions = job.run.read(CELLS, part_name(POSITIONS, group), "positions")
    source, rank = cells.order_by_cell(row_cells, positions)
    guest_probes, piece_rows = probes[source, rank], len(source) // (last - first)
    del row_cells, probes
    x = read_group_rows(job, group)
    with job.run.part(NEIGHBORS, part) as out:
        out.write("positions", positions[source], rows_per_range(piece_rows, positions))
        if kth_squared is not None:
            out.write("kth_squared", kth_squared[source], rows_per_range(piece_rows, kth_squared))
        out.write("probes", guest_probes, rows_per_range(piece_rows, guest_probes))
        write_rows(out, "vectors", x, source, piece_rows)


def sorted_row_bytes(geometry: Geometry) -> int:
    """Return the bytes of a row that is sorted by cell: the row's values, and the leaves that it probes."""
    return geometry.row_bytes + 8 * geometry.is_sparse + 4 * max_probes(geometry) + 4


def sort_bytes(geometry: Geometry, config: Config) -> int:
    """Return the bytes of a task that sorts a group of blocks."""
    max_cells = config.cells.max_cells_per_row
    rows = min(geometry.group_blocks * geometry.block_rows, geometry.rows)
    if geometry.is_sparse:  # joined from blocks, then gathered by columns and by values
        entries = geometry.group_blocks * geometry.block_entries
        joined_bytes = 8 * entries * (2 if geometry.group_blocks > 1 else 1)
        routed_bytes = rows * (sort_row_bytes(0, 4, max_cells) + 8 * MAX_SPARSE_PROBES * max_cells)
        return routed_bytes + joined_bytes + sparse_block_bytes(geometry) + 6 * max_cells * entries
    block_bytes = min(geometry.block_rows, rows) * geometry.dims * (2 * geometry.itemsize + 4)
    written_bytes = min(4 * OBJECT_BYTES, max_cells * rows * geometry.dims * geometry.itemsize)
    return rows * sort_row_bytes(geometry.dims, geometry.itemsize, max_cells) + block_bytes + written_bytes
