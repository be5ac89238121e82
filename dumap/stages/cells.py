"""cells: group the rows into cells that fit in memory, and sort their vectors by cell."""

from __future__ import annotations

import math

import numpy as np

from dumap.artifacts.cells import LIMITS, PROBES, TABLE, CellTable, keeps_input_dtype, read_tree
from dumap.artifacts.job import Job
from dumap.artifacts.part_names import AUDIT, CELLS, NEIGHBORS, VECTORS, number_of, part_name, part_names
from dumap.artifacts.vectors import distinct_rows, is_left_out, read_sample, status_of
from dumap.config import Config
from dumap.kernels import cells, tree, vectors
from dumap.planning.budget import axes_bytes
from dumap.planning.geometry import Geometry
from dumap.planning.plan import Projection
from dumap.stages import Context, Stage
from dumap.store import OBJECT_BYTES

JOINED_LEAVES, RANKED_LEAVES = 8, 16
"""A row joins the cells of its 8 nearest leaves. 16 leaves are found for it: the others are probed in cells that it has
joined anyway."""
MARGIN = 2**0.5
"""Leaves farther than so many times the nearest are left out, but for the nearest three (`tree.UNCONDITIONAL`). In data
of low dimension, those are most of them."""


def grow_tree(job: Job, part: str) -> None:
    """Grow the tree from the sample."""
    store, geometry = job.run, job.geometry
    sample = vectors.to_euclidean(read_sample(job), job.config.neighbors.metric)
    n_leaves = -(-geometry.leaves * distinct_rows(job) // geometry.rows)
    grown = tree.grow(sample, n_leaves, job.config.seed)
    with store.part(CELLS, part) as out:
        out.write("groups", grown.groups)
        out.write("offsets", grown.offsets)
        out.write("leaves", grown.leaves)
        out.write("origin", grown.origin)
        out.write("axes", grown.axes.T)


def find_leaves(job: Job, part: str) -> None:
    """Find the nearest leaves of each row of a block; count the rows of each leaf."""
    store, block = job.run, number_of(part)
    x = vectors.to_euclidean(job.rows(*job.geometry.block(block)), job.config.neighbors.metric)
    dropped = is_left_out(job, block)
    x[dropped] = 0
    grown = read_tree(store)
    near = tree.nearest_leaves(x, grown, min(RANKED_LEAVES, len(grown.leaves)), MARGIN)
    near[dropped] = -1
    with store.part(CELLS, part) as out:
        out.write("near", near)
        out.write("loads", np.bincount(near[~dropped, 0], minlength=len(grown.leaves)))


def pack_leaves(job: Job, part: str) -> None:
    """Group the leaves into cells."""
    geometry = job.geometry
    loads = sum(job.run.read(CELLS, block, "loads") for block in part_names("near", geometry.blocks))
    min_rows = job.config.neighbors.search_k + 1
    leaf_cells, pieces = cells.assign_leaves(np.asarray(loads), math.ceil(geometry.rows / geometry.cells), min_rows)
    with job.run.part(CELLS, part) as out:
        out.write("cells", leaf_cells)
        out.write("pieces", pieces)
        out.attributes["cells"] = int(leaf_cells[-1] + pieces[-1])


def route(job: Job, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells of a block's rows (n, max_cells_per_row), home first, and the leaves they probe there."""
    near = job.run.read(CELLS, part_name("near", block), "near")
    leaf_cells, pieces = (job.run.read(CELLS, "packing", name) for name in ("cells", "pieces"))
    start, _ = job.geometry.block(block)
    return cells.route(
        near, leaf_cells, pieces, start, job.config.seed, job.config.cells.max_cells_per_row, JOINED_LEAVES, PROBES
    )


def admitted(job: Job, block: int, row_cells: np.ndarray) -> np.ndarray:
    """Return the cells of a block's rows, without those that do not admit them."""
    if not job.run.summary(CELLS, LIMITS)["turned_away"]:
        return row_cells
    priorities, _ = cells.guest_priorities(row_cells, job.geometry.block(block)[0], job.config.seed)
    return cells.admit(row_cells, priorities, job.run.read(CELLS, LIMITS, "limits"))


def _counted(numbers: np.ndarray) -> np.ndarray:
    """Return the distinct numbers and the count of each, (m, 2)."""
    counts = np.bincount(numbers)
    present = np.flatnonzero(counts)
    return np.stack([present, counts[present]], axis=1)


def _by_home(row_cells: np.ndarray, count: int) -> np.ndarray:
    """Count rows by cell and home, `cell * count + home`."""
    home = np.broadcast_to(row_cells[:, :1], row_cells.shape)
    joined = row_cells >= 0
    return _counted(row_cells[joined].astype(np.int64) * count + home[joined])


def assign_block(job: Job, part: str) -> None:
    """Choose the home of each row of a block; count its rows by cell and home, and its guests by cell and class."""
    block, count = number_of(part), job.run.summary(CELLS, "packing")["cells"]
    row_cells, _ = route(job, block)
    priorities, priority_count = cells.guest_priorities(row_cells, job.geometry.block(block)[0], job.config.seed)
    guest = (row_cells >= 0) & (priorities >= 0)
    with job.run.part(CELLS, part) as out:
        out.write("home", row_cells[:, 0])
        out.write("status", status_of(job.run, block))
        out.write("pairs", _by_home(row_cells, count))
        out.write("guests", _counted(row_cells[guest].astype(np.int64) * priority_count + priorities[guest]))
        out.attributes["priorities"] = priority_count


def limit_guests(job: Job, part: str) -> None:
    """Decide how many classes of guests each cell admits."""
    store, blocks = job.run, part_names("assign", job.geometry.blocks)
    count, priority_count = store.summary(CELLS, "packing")["cells"], store.summary(CELLS, blocks[0])["priorities"]
    homes, guests = np.zeros(count, np.int64), np.zeros((count, priority_count), np.int64)
    for name in blocks:
        pair, times = store.read(CELLS, name, "pairs").T
        at_home = pair // count == pair % count
        homes[pair[at_home] // count] += times[at_home]
        of_priority, times = store.read(CELLS, name, "guests").T
        guests.reshape(-1)[of_priority] += times
    limits = cells.admitted_priorities(homes, guests)
    turned_away = np.where(np.arange(priority_count) < limits[:, None], 0, guests)
    with store.part(CELLS, part) as out:
        out.write("limits", limits)
        out.attributes["turned_away"] = int(turned_away.sum())


def count_block(job: Job, part: str) -> None:
    """Count a block's rows by cell and home again, without guests that are not admitted."""
    block, count = number_of(part), job.run.summary(CELLS, "packing")["cells"]
    row_cells, _ = route(job, block)
    with job.run.part(CELLS, part) as out:
        out.write("pairs", _by_home(admitted(job, block, row_cells), count))


def tabulate(job: Job, part: str) -> None:
    """Make the table: where each cell's rows begin, and how many rows of each block are in each cell."""
    store, geometry = job.run, job.geometry
    count, turned_away = store.summary(CELLS, "packing")["cells"], store.summary(CELLS, LIMITS)["turned_away"]
    members, homes = np.zeros((geometry.blocks, count), np.int32), np.zeros((geometry.blocks, count), np.int32)
    guests = np.zeros((count, count), np.int64)
    for block, name in enumerate(part_names("counted" if turned_away else "assign", geometry.blocks)):
        pair, times = store.read(CELLS, name, "pairs").T
        cell, home = pair // count, pair % count
        np.add.at(members[block], cell, times)
        np.add.at(guests, (home, cell), times)
        homes[block, cell[cell == home]] = times[cell == home]
    offsets = np.concatenate([[0], np.cumsum(homes.sum(axis=0, dtype=np.int64))])
    starts = np.cumsum(homes, axis=0, dtype=np.int64)
    starts += offsets[:-1] - homes
    np.fill_diagonal(guests, 0)
    load = members.sum(axis=0, dtype=np.int64)
    firsts = np.cumsum(members, axis=1, dtype=np.int32) - members
    with store.part(CELLS, part) as out:
        out.write("offsets", offsets)
        out.write("starts", starts)
        out.write("spans", np.ascontiguousarray(np.stack([firsts.T, homes.T, members.T], axis=2)))
        out.write("guests", guests)
        out.attributes |= {
            "cells": count,
            "rows": int(offsets[-1]),
            "stored_rows": int(load.sum()),
            "largest": int(load.max()),
            "smallest": int(load.min()),
            "largest_home": int(np.diff(offsets).max()),
            "turned_away": turned_away,
        }


def sort_block(job: Job, part: str) -> None:
    """Write the vectors of a block's rows, once for each of their cells, sorted by cell."""
    store, block = job.run, number_of(part)
    positions = CellTable(store).positions(store, block)
    row_cells, probes = route(job, block)
    row_cells = admitted(job, block, row_cells)
    source, cell_rank = cells.order_by_cell(row_cells, positions)
    span = job.geometry.block(block)
    metric = job.config.neighbors.metric
    x = vectors.unpacked(job.input.read(*span), metric) if keeps_input_dtype(job) else job.rows(*span)
    with store.part(CELLS, part) as out:
        out.write("positions", positions[source])
        out.write("probes", probes[source, cell_rank])
        out.write_gathered("vectors", x, source)


def run(context: Context) -> dict:
    """Choose the cells, then sort the vectors by cell; return the figures."""
    store, blocks = context.run, context.geometry.blocks
    context.compute(CELLS, grow_tree, ["tree"])
    context.compute(CELLS, find_leaves, part_names("near", blocks))
    context.compute(CELLS, pack_leaves, ["packing"])
    context.compute(CELLS, assign_block, part_names("assign", blocks))
    context.compute(CELLS, limit_guests, [LIMITS])
    if store.summary(CELLS, LIMITS)["turned_away"]:
        context.compute(CELLS, count_block, part_names("counted", blocks))
    context.compute(CELLS, tabulate, [TABLE])
    context.compute(CELLS, sort_block, part_names("sorted", blocks))
    return store.summary(CELLS, TABLE)


def project(geometry: Geometry, config: Config, worker_memory: int) -> Projection:
    """Project what the stage will take."""
    rows, block, cells_a_row = (
        geometry.rows,
        geometry.block_rows * geometry.dims,
        min(config.cells.max_cells_per_row, geometry.cells),
    )
    sample, sorted_bytes = geometry.sample_rows * geometry.dims * 4, rows * geometry.dims * min(geometry.itemsize, 4)
    written = min(4 * OBJECT_BYTES, cells_a_row * block * geometry.itemsize)
    return Projection(
        tasks=3 * geometry.blocks + 4,
        shuffled_bytes=cells_a_row * sorted_bytes,
        disk_bytes=cells_a_row * (sorted_bytes + rows * 32) + rows * 52,
        task_bytes=max(
            block * (2 * geometry.itemsize + 12) + geometry.block_rows * 64 + written,
            sample * (5 if config.neighbors.metric == "correlation" else 4) + axes_bytes(geometry),
            geometry.blocks * (geometry.cells + 1) * 40 + geometry.cells**2 * 16,  # the table
        ),
        temporary_bytes={"sorted": cells_a_row * (sorted_bytes + rows * 32), "near": rows * 40},
    )


STAGE = Stage(
    CELLS,
    keys=(
        *("seed", "task_memory", "input.unique", "neighbors.metric", "neighbors.width", "cells.max_cells_per_row"),
        "cells.max_rows",
    ),
    reads=(VECTORS,),
    writes=("tree", "near", "packing", "assign", LIMITS, "counted", TABLE, "sorted"),
    run=run,
    project=project,
    temporary={"sorted": (NEIGHBORS, AUDIT), **dict.fromkeys(("near", LIMITS, "counted"), ())},
)
