"""cells: group the rows into cells that fit in memory, and sort the vectors by cell."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dumap.artifacts.cells import GUEST_LIMITS, POSITIONS, SPANS, TABLE, read_tree, table_facts
from dumap.artifacts.job import Job
from dumap.artifacts.part_names import (
    AUDIT,
    CELLS,
    NEIGHBORS,
    VECTORS,
    number_of,
    part_names,
    parts_to_sum,
    range_of,
)
from dumap.artifacts.vectors import count_distinct_rows, is_left_out, read_sample
from dumap.config import Config
from dumap.kernels import cells, tree, vectors
from dumap.planning.budget import axes_bytes, sparse_block_bytes
from dumap.planning.geometry import Geometry
from dumap.planning.plan import StageProjection
from dumap.planning.sparse import MAX_SPARSE_PROBES
from dumap.planning.steps import Step, summed_steps
from dumap.stages import Context, Stage
from dumap.stages.sorting import (
    cell_offsets,
    find_admitting_cells,
    find_cells,
    ranked_leaves,
    read_entry_counts,
    sort_bytes,
    sort_home_rows,
    sorted_row_bytes,
    sum_entries_by_cell,
    value_counts,
    write_positions,
)
from dumap.store import Part

TABULATION_BYTES, TABLE_BYTES, OFFSETS_PER_RANGE = 64, 36, 256
"""Bytes of a cell and a group while they are tabulated, and on disk; and cells of a range of their counts."""
LEAF_MARGIN = 2**0.5
"""Leaves farther than this many times the nearest leaf are left out, except the nearest three
(`tree.ALWAYS_KEPT_LEAVES`). In data of low dimension, this leaves out most leaves."""


def grow_tree(job: Job, part: str) -> None:
    """Grow the tree from the sample."""
    store, geometry = job.run, job.geometry
    sample = vectors.to_euclidean(read_sample(job), job.tree_metric)
    n_leaves = -(-geometry.leaves * count_distinct_rows(job) // geometry.rows)
    grown = tree.grow_tree(sample, n_leaves, job.config.seed)
    with store.part(CELLS, part) as out:
        out.write("groups", grown.groups)
        out.write("offsets", grown.offsets)
        out.write("leaves", grown.leaves)
        out.write("origin", grown.origin)
        out.write("axes", grown.axes.T)
        out.attributes["leaves"] = len(grown.leaves)


def find_leaves(job: Job, part: str) -> None:
    """Find the nearest leaves of each row of a block; count the rows of each leaf."""
    store, block = job.run, number_of(part)
    rows = job.input.read(*job.geometry.rows_of_block(block))
    x = vectors.to_euclidean(job.prepare_rows(rows), job.tree_metric)
    dropped = is_left_out(job, block)
    x[dropped] = 0
    grown = read_tree(store)
    nearest = tree.nearest_leaves(x, grown, min(ranked_leaves(job.geometry), len(grown.leaves)), LEAF_MARGIN)
    nearest[dropped] = -1
    with store.part(CELLS, part) as out:
        out.write("near", nearest)
        leaf_counts = value_counts(nearest[~dropped, 0])
        if job.geometry.is_sparse:
            entries = np.diff(rows.indptr)
            out.write("entries", entries)
            leaf_entries = np.bincount(nearest[~dropped, 0], entries[~dropped]).astype(np.int64)
            leaf_counts = np.column_stack([leaf_counts, leaf_entries[leaf_counts[:, 0]]])
        out.write("loads", leaf_counts)


def _sum_leaf_counts(job: Job, names: list[str]) -> np.ndarray:
    """Add up the rows of each leaf that parts have counted, and the entries of sparse rows, (1 or 2, leaves) int64."""
    leaf_counts = np.zeros((1 + job.geometry.is_sparse, job.run.part_facts(CELLS, "tree")["leaves"]), np.int64)
    for part_counts in job.run.read_many(CELLS, [(name, "loads", 0, None) for name in names]):
        leaf_counts[:, part_counts[:, 0]] += part_counts[:, 1:].T
    return leaf_counts


def sum_leaf_counts(job: Job, part: str) -> None:
    """Add up the rows of each leaf over a range of blocks."""
    leaf_counts = _sum_leaf_counts(job, part_names("near", job.geometry.blocks)[slice(*range_of(part))])
    leaves = np.flatnonzero(leaf_counts[0])
    with job.run.part(CELLS, part) as out:
        out.write("loads", np.stack([leaves, *leaf_counts[:, leaves]], axis=1))


def pack_leaves(job: Job, part: str) -> None:
    """Group the leaves into cells."""
    geometry = job.geometry
    leaf_counts, *entries = _sum_leaf_counts(job, parts_to_sum("near", "loads", geometry.blocks))
    for leaf_entries in entries:  # a leaf of dense rows counts as if it had more of them
        leaf_counts = np.maximum(leaf_counts, -(-leaf_entries // geometry.entries) * (leaf_counts > 0))
    min_rows = job.config.neighbors.search_k + 1
    leaf_cells, pieces = cells.assign_leaves(leaf_counts, math.ceil(geometry.rows / geometry.cells), min_rows)
    with job.run.part(CELLS, part) as out:
        out.write("cells", leaf_cells)
        out.write("pieces", pieces)
        out.attributes["cells"] = int(leaf_cells[-1] + pieces[-1])


def assign_group(job: Job, part: str) -> None:
    """Choose the home cell of each row of a group of blocks.

    The task counts the group's home rows and guests by cell, and its guests by cell and priority.
    """
    store, group = job.run, number_of(part)
    count = store.part_facts(CELLS, "packing")["cells"]
    row_cells, _ = find_cells(job, group)
    priorities, priority_count = cells.guest_priorities(
        row_cells, job.geometry.rows_of_group(group)[0], job.config.seed
    )
    guest = (row_cells >= 0) & (priorities >= 0)
    with store.part(CELLS, part) as out:
        out.write("home", row_cells[:, 0])
        out.write("home_firsts", cell_offsets(row_cells[:, 0], count), OFFSETS_PER_RANGE)
        out.write("guest_firsts", cell_offsets(row_cells[:, 1:], count), OFFSETS_PER_RANGE)
        if job.geometry.is_sparse:
            entries = read_entry_counts(job, group)
            out.write("home_entries", sum_entries_by_cell(row_cells[:, :1], entries, count))
            out.write("guest_entries", sum_entries_by_cell(row_cells[:, 1:], entries, count))
        out.write("guests", value_counts(row_cells[guest].astype(np.int64) * priority_count + priorities[guest]))
        out.attributes["priorities"] = priority_count


def _sum_guest_counts(job: Job, names: list[str]) -> tuple[np.ndarray, np.ndarray]:
    """Add up the counts of several parts: home rows, (cells,) int64, and guests by priority, (cells, priorities)
    int64.
    """
    count, priorities = job.run.part_facts(CELLS, "packing")["cells"], job.run.part_facts(CELLS, names[0])["priorities"]
    home_counts, guest_counts = np.zeros(count, np.int64), np.zeros((count, priorities), np.int64)
    read = job.run.read_many(CELLS, [(name, array, 0, None) for name in names for array in ("home_firsts", "guests")])
    for home_firsts, of_priority in zip(read, read, strict=True):
        home_counts += np.diff(home_firsts)
        guest_counts.reshape(-1)[of_priority[:, 0]] += of_priority[:, 1]
    return home_counts, guest_counts


def sum_guest_counts(job: Job, part: str) -> None:
    """Add up the home rows and the guests of each cell over a range of groups."""
    names = part_names("assign", job.geometry.groups)[slice(*range_of(part))]
    home_counts, guest_counts = _sum_guest_counts(job, names)
    nonzero = np.flatnonzero(guest_counts)
    with job.run.part(CELLS, part) as out:
        out.write("home_firsts", np.concatenate([[0], np.cumsum(home_counts)]))
        out.write("guests", np.stack([nonzero, guest_counts.reshape(-1)[nonzero]], axis=1))
        out.attributes["priorities"] = guest_counts.shape[1]


def limit_guests(job: Job, part: str) -> None:
    """Decide how many priorities of guests each cell admits, and find the position of each cell's first row."""
    home_counts, guest_counts = _sum_guest_counts(job, parts_to_sum("assign", "guest_sums", job.geometry.groups))
    limits = cells.admitted_priorities(home_counts, guest_counts)
    turned_away = np.where(np.arange(guest_counts.shape[1]) < limits[:, None], 0, guest_counts)
    with job.run.part(CELLS, part) as out:
        out.write("limits", limits)
        out.write("offsets", np.concatenate([[0], np.cumsum(home_counts)]))
        out.attributes["turned_away"] = int(turned_away.sum())


def count_admitted_guests(job: Job, part: str) -> None:
    """Count a group's guests by cell again, without guests that are not admitted."""
    group, count = number_of(part), job.run.part_facts(CELLS, "packing")["cells"]
    row_cells, _ = find_admitting_cells(job, group)
    with job.run.part(CELLS, part) as out:
        out.write("guest_firsts", cell_offsets(row_cells[:, 1:], count), OFFSETS_PER_RANGE)
        if job.geometry.is_sparse:
            out.write("guest_entries", sum_entries_by_cell(row_cells[:, 1:], read_entry_counts(job, group), count))


def cells_per_part(job: Job) -> int:
    """Return the number of cells in a part of the table."""
    return max(1, job.config.task_memory // 4 // (job.geometry.groups * TABULATION_BYTES))


def tabulate_cells(job: Job, part: str) -> None:
    """Tabulate where the rows of a range of cells are, in each sorted group and by position."""
    store, step, groups = job.run, cells_per_part(job), job.geometry.groups
    offsets, limits = store.read(CELLS, GUEST_LIMITS, "offsets"), store.part_facts(CELLS, GUEST_LIMITS)
    first = number_of(part) * step
    last = min(first + step, len(offsets) - 1)

    def spans(kind: str, array: str) -> np.ndarray:
        rows = [(name, array, first, last + 1) for name in part_names(kind, groups)]
        begins = np.stack(list(store.read_many(CELLS, rows)))
        return np.stack([begins[:, :-1].T, np.diff(begins, axis=1).T], axis=2)

    home = spans("assign", "home_firsts")
    guests = spans("counted" if limits["turned_away"] else "assign", "guest_firsts")
    home_counts = home[:, :, 1].T.astype(np.int64)
    home_totals = home_counts.sum(axis=0)
    load = (home[:, :, 1] + guests[:, :, 1]).sum(axis=1, dtype=np.int64)
    with store.part(CELLS, part) as out:
        out.write("home", home, 1)
        out.write("guests", guests, 1)
        out.write("starts", np.cumsum(home_counts, axis=0) - home_counts + offsets[first:last], 1)
        out.attributes |= {"stored_rows": int(load.sum()), "largest": int(load.max()), "smallest": int(load.min())}
        if job.geometry.is_sparse:
            kinds = ("assign", "home_entries"), ("counted" if limits["turned_away"] else "assign", "guest_entries")
            write_entry_counts(job, out, [sum_entry_counts(job, *kind, first, last) for kind in kinds], home_totals)


ENTRY_FACTS: dict[str, Any] = {"entries": sum, "home_entries": max, "cell_entries": max, "mean_entries": max}
"""Facts of cells of sparse rows, each with the function that combines the facts of parts: the entries of all home rows,
the most entries of one cell's home rows, the most entries of one cell, and the most entries of a mean home row in one
cell."""


def sum_entry_counts(job: Job, kind: str, array: str, first: int, last: int) -> np.ndarray:
    """Add up the entries of cells [first, last) that groups have counted, (last - first,) int64."""
    names = part_names(kind, job.geometry.groups)
    return np.asarray(sum(job.run.read_many(CELLS, [(name, array, first, last) for name in names])))


def write_entry_counts(job: Job, out: Part, entries: list[np.ndarray], home_rows: np.ndarray) -> None:
    """Write how many entries the home rows and the guests of cells have, and the figures of `ENTRY_FACTS`."""
    of_home, of_cell = entries[0], entries[0] + entries[1]
    out.write("entries", np.stack([of_home, of_cell], axis=1), 1)
    out.attributes |= {
        "entries": int(of_home.sum()),
        "home_entries": int(of_home.max()),
        "cell_entries": int(of_cell.max()),
        "mean_entries": int((-(-of_home // np.maximum(home_rows, 1))).max()),
    }


def finish_table(job: Job, part: str) -> None:
    """Write the position of each cell's first row, and the facts of all cells."""
    store, geometry = job.run, job.geometry
    offsets = store.read(CELLS, GUEST_LIMITS, "offsets")
    names = part_names(SPANS, -(-(len(offsets) - 1) // cells_per_part(job)))
    summaries = list(store.facts_of_parts(CELLS, names))
    with store.part(CELLS, part) as out:
        out.write("offsets", offsets)
        out.attributes |= {
            "cells": len(offsets) - 1,
            "rows": int(offsets[-1]),
            "stored_rows": sum(facts["stored_rows"] for facts in summaries),
            "largest": max(facts["largest"] for facts in summaries),
            "smallest": min(facts["smallest"] for facts in summaries),
            "largest_home": int(np.diff(offsets).max()),
            "turned_away": store.part_facts(CELLS, GUEST_LIMITS)["turned_away"],
            **{
                name: combine(facts[name] for facts in summaries)
                for name, combine in ENTRY_FACTS.items()
                if geometry.is_sparse
            },
            "cut": [geometry.block_rows, geometry.group_blocks, cells_per_part(job)],
        }


def run(context: Context) -> dict:
    """Choose the cells, then sort the vectors by home cell; return the facts."""
    store, blocks, groups = context.run, context.geometry.blocks, context.geometry.groups
    context.compute(CELLS, grow_tree, ["tree"])
    context.compute(CELLS, find_leaves, part_names("near", blocks))
    context.sum_in_ranges(CELLS, sum_leaf_counts, "near", "loads", blocks)
    context.compute(CELLS, pack_leaves, ["packing"])
    context.compute(CELLS, assign_group, part_names("assign", groups))
    context.sum_in_ranges(CELLS, sum_guest_counts, "assign", "guest_sums", groups)
    context.compute(CELLS, limit_guests, [GUEST_LIMITS])
    if store.part_facts(CELLS, GUEST_LIMITS)["turned_away"]:
        context.compute(CELLS, count_admitted_guests, part_names("counted", groups))
    count = store.part_facts(CELLS, "packing")["cells"]
    context.compute(CELLS, tabulate_cells, part_names(SPANS, -(-count // cells_per_part(context.job))))
    context.compute(CELLS, finish_table, [TABLE])
    context.compute(CELLS, write_positions, part_names(POSITIONS, groups))
    context.compute(CELLS, sort_home_rows, part_names("sorted", groups))
    return table_facts(store)


def steps_of(geometry: Geometry, config: Config) -> tuple[Step, ...]:
    """Return the steps of the stage."""
    blocks, groups, grouped, sparse = geometry.blocks, geometry.groups, geometry.group_blocks, geometry.is_sparse
    tables = math.ceil(geometry.cells * groups * TABULATION_BYTES / (config.task_memory // 4))
    routed = Step(groups, grouped + 3, grouped * (1 + sparse) + 3)
    return (
        Step(1, blocks + 1, blocks * (1 + 2 * sparse) + 1),
        Step(blocks, 3, 8, 1),
        *summed_steps(blocks, 1),
        routed,
        *summed_steps(groups, 2),
        routed,
        Step(tables, 2 * groups + 1, (2 + 2 * sparse) * groups + 1),
        Step(1, tables + 1, 1),
        Step(groups, 2 + grouped + tables, 1 + grouped + tables),
        Step(groups, 3 + grouped, 3 + grouped, grouped),
    )


def project(geometry: Geometry, config: Config, worker_memory: int) -> StageProjection:
    """Project what the stage will take."""
    rows, block_values, index_bytes = geometry.rows, geometry.block_rows * geometry.dims, geometry.index_dtype.itemsize
    sample_bytes, sorted_bytes = geometry.sample_rows * geometry.dims * 4, sorted_row_bytes(geometry) * rows
    table_bytes = geometry.groups * geometry.cells * TABLE_BYTES
    leaf_bytes, priority_bytes = geometry.leaves * 48, geometry.cells * 256 * 24
    block_bytes = block_values * (2 * geometry.itemsize + 12)
    if geometry.is_sparse:
        block_bytes = sparse_block_bytes(geometry) + block_values * 20 + geometry.block_rows * 16 * MAX_SPARSE_PROBES
    nearest_bytes, count_bytes = (
        rows * 4 * ranked_leaves(geometry),
        rows * 4 + min(geometry.groups * (priority_bytes // 24), rows * 4) * 16,
    )
    read_bytes = (
        2 * rows * geometry.source_row_bytes
        + sample_bytes
        + 3 * nearest_bytes
        + 2 * count_bytes
        + 3 * table_bytes
        + rows * (index_bytes + 2)
    )
    return StageProjection(
        steps=steps_of(geometry, config),
        shuffled_bytes=read_bytes,
        disk_bytes=sorted_bytes + nearest_bytes + count_bytes + table_bytes + rows * (index_bytes + 1),
        task_bytes=max(
            block_bytes + geometry.block_rows * 128 + leaf_bytes,
            sample_bytes * (5 if config.neighbors.metric == "correlation" else 4) + axes_bytes(geometry),
            sort_bytes(geometry, config),
            min(config.task_memory // 4, table_bytes) * 2 + priority_bytes,
        ),
        temporary_bytes={"sorted": sorted_bytes, "near": nearest_bytes, "assign": count_bytes},
    )


STAGE = Stage(
    CELLS,
    setting_keys=(
        *("seed", "task_memory", "input.unique", "neighbors.metric", "neighbors.width", "cells.max_cells_per_row"),
        "cells.max_rows",
    ),
    reads=(VECTORS,),
    writes=(
        *("tree", "near", "loads", "packing", "assign", "guest_sums"),
        *(GUEST_LIMITS, "counted", SPANS, TABLE, POSITIONS, "sorted"),
    ),
    run=run,
    project=project,
    temporary_kinds={
        "sorted": (NEIGHBORS, AUDIT),
        **dict.fromkeys(("near", GUEST_LIMITS), (NEIGHBORS,)),
        **dict.fromkeys(("loads", "assign", "guest_sums", "counted"), ()),
    },
    version=2,
)
