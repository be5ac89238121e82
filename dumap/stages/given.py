"""Runs with given neighbours: cells are ranges of rows, and lists are taken unchanged.

The module defines the first four stages of such a run, which replace the stages that search neighbours.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dumap.artifacts.cells import POSITIONS, TABLE, CellTable, positions_of_given, table_facts
from dumap.artifacts.job import Job
from dumap.artifacts.neighbors import write_lists
from dumap.artifacts.part_names import AUDIT, CELLS, NEIGHBORS, VECTORS, number_of, part_names, sum_fact
from dumap.artifacts.vectors import is_left_out, read_status
from dumap.config import Config
from dumap.errors import InputError
from dumap.kernels import neighbors, vectors
from dumap.planning.geometry import Geometry
from dumap.planning.given import LISTED_SLOT_BYTES, READ_SLOT_BYTES
from dumap.planning.plan import StageProjection
from dumap.planning.steps import Step
from dumap.stages import Context, Stage, audit
from dumap.stages import vectors as vectors_stage
from dumap.stages.fingerprints import format_fingerprint, sum_list_hashes


def fingerprint_list_range(job: Job, part: str) -> None:
    """Fingerprint a range of the given lists."""
    with job.run.part(VECTORS, part) as out:
        out.attributes["fingerprint"] = sum_list_hashes(job, number_of(part))


def write_block_positions(job: Job, part: str) -> None:
    """Write the positions and the status of a block's rows. Positions are in the input's order, less rows left out."""
    block = number_of(part)
    is_kept = ~is_left_out(job, block)
    first = int(job.run.read(CELLS, TABLE, "firsts", block, block + 1)[0])
    positions = np.where(is_kept, first + np.cumsum(is_kept) - 1, -1)
    with job.run.part(CELLS, part) as out:
        out.write("positions", positions.astype(job.geometry.index_dtype))
        out.write("status", read_status(job.run, block))


def tabulate_input_order(job: Job, part: str) -> None:
    """Write the table of cells, as stage cells does, and the ids of the rows that are left out."""
    store, geometry = job.run, job.geometry
    dropped = np.concatenate(
        [geometry.rows_of_block(n)[0] + np.flatnonzero(is_left_out(job, n)) for n in range(geometry.blocks)]
    )
    firsts, offsets = (
        edges - np.searchsorted(dropped, edges)
        for edges in (
            np.append(np.arange(0, geometry.rows, step), geometry.rows)
            for step in (geometry.block_rows, geometry.cell_rows)
        )
    )
    load = np.diff(offsets)
    with store.part(CELLS, part) as out:
        out.write("offsets", offsets)
        out.write("firsts", firsts)
        out.write("dropped", dropped)
        out.attributes |= {
            "cells": geometry.cells,
            "rows": int(offsets[-1]),
            "stored_rows": int(offsets[-1]),
            "largest": int(load.max()),
            "smallest": int(load.min()),
            "largest_home": int(load.max()),
            "turned_away": 0,
            "cut": [geometry.block_rows, 1, geometry.cells],
        }


ALLOWED_BY_FAULT = {
    neighbors.UNKNOWN_ID: "allowed are the input's rows, from 0 to {last}, and -1 where a neighbor is missing",
    neighbors.REPEATED_ID: "a second time: a row may name each neighbor once",
    neighbors.INVALID_DISTANCE: "allowed are numbers from 0 to 3.4e38; a missing neighbor has -1 in 'indices'",
}
"""For each fault of a given list, what is allowed."""


def read_given_lists(job: Job, positions: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Read and check the lists that are given for the input's rows from `start` on. Rows that are left out get empty
    lists.

    Parameters
    ----------
    job : Job
    positions : ndarray of int64, shape (n,)
        The rows' positions, -1 for rows that are left out.
    start : int

    Returns
    -------
    ids : ndarray of int64, shape (n, columns)
        Rows of the input, the row itself excluded; -1 where there is none.
    distances : ndarray of float32, shape (n, columns)

    Raises
    ------
    InputError
        A list has a fault; the error names the first row with one.
    """
    precomputed, geometry = job.precomputed, job.geometry
    indices, raw = precomputed.read(start, start + len(positions))
    ids, distances = indices.astype(np.int64), vectors.as_float32(raw)
    if indices.dtype.kind == "u":
        ids[ids < 0] = geometry.rows  # ids beyond int64 must not be taken for -1
    ids[positions < 0] = -1
    fault, row, slot = neighbors.find_first_fault(ids, distances, start, geometry.rows)
    if fault:
        name, values = ("distances", raw) if fault == neighbors.INVALID_DISTANCE else ("indices", indices)
        raise InputError(
            f"{precomputed.path}, array {name!r}, row {start + row}, column {slot}: holds {values[row, slot]}; "
            f"{ALLOWED_BY_FAULT[fault].format(last=geometry.rows - 1)}. Correct it, and name another output"
        )
    itself = ids == np.arange(start, start + len(positions))[:, None]
    settings = job.config.neighbors
    if precomputed.columns <= settings.search_k and itself.any():
        raise InputError(
            f"{precomputed.path}, array 'indices', row {start + itself.any(axis=1).argmax()}: the row is among its own "
            f"neighbors, so that {precomputed.columns} columns hold {precomputed.columns - 1} others, too few for "
            f"neighbors.{settings.width_setting} = {settings.search_k + 1}, which are the row itself and "
            f"{settings.search_k} others: set it to at most {precomputed.columns}, and name another output"
        )
    ids[itself] = -1
    return ids, distances


def write_given_lists(job: Job, part: str) -> None:
    """Take the lists of one range of rows from the given graph, and sort them, the nearest first."""
    table, cell = CellTable(job.run), number_of(part)
    shape = (int(table.offsets[cell + 1] - table.offsets[cell]), job.config.neighbors.search_k)
    indices, distances = np.full(shape, -1, job.geometry.index_dtype), np.full(shape, np.inf, np.float32)
    for start, stop in job.geometry.list_ranges(cell):
        positions = positions_of_given(job, table, np.arange(start, stop))
        ids, list_distances = read_given_lists(job, positions, start)
        listed = positions_of_given(job, table, ids).astype(indices.dtype)
        is_kept = positions >= 0
        rows = positions[is_kept] - table.offsets[cell]
        neighbors.merge_lists(indices, distances, rows, listed[is_kept], list_distances[is_kept], positions[is_kept])
    with job.run.part(NEIGHBORS, part) as out:
        write_lists(out, indices, distances)


def run_vectors(context: Context) -> dict:
    """Check the input, and read the lists once; return the facts."""
    facts, lists = vectors_stage.run(context), part_names("list_fingerprints", context.geometry.cells)
    context.compute(VECTORS, fingerprint_list_range, lists)
    return {
        **facts,
        "precomputed_fingerprint": format_fingerprint(sum_fact(context.run, VECTORS, lists, "fingerprint")),
    }


def run_cells(context: Context) -> dict:
    """Divide the rows into ranges; return the facts."""
    context.compute(CELLS, tabulate_input_order, [TABLE])
    context.compute(CELLS, write_block_positions, part_names(POSITIONS, context.geometry.blocks))
    return table_facts(context.run)


def run_neighbors(context: Context) -> dict:
    """Take the lists; return the facts."""
    merged = part_names("lists", CellTable(context.run).cells)
    context.compute(NEIGHBORS, write_given_lists, merged)
    return {"missing": sum_fact(context.run, NEIGHBORS, merged, "missing")}


def run_audit(context: Context) -> dict:
    """Audit the lists without repairs; return the facts."""
    if not context.config.audit.queries:
        return {"queries": 0, "repairs": 0}
    figures = audit.audit_lists(context, 0)
    recall = figures.get("recall")
    return {
        **figures,
        "recall_target": context.config.neighbors.recall_target,
        "repairs": 0,
        "recall_by_repair": [None if recall is None else round(recall, 4)],
    }


def list_read_bytes(geometry: Geometry, config: Config) -> int:
    """Return the bytes that a task takes to read given lists."""
    chunks = min(
        config.task_memory // 2, geometry.rows * geometry.columns * 32
    )  # two chunks at each end of the range, each decoded twice
    return chunks + geometry.list_rows * geometry.columns * READ_SLOT_BYTES


def given_step(geometry: Geometry) -> Step:
    """Return a step that reads the given lists, two arrays in ranges of rows."""
    ranges = -(-geometry.cell_rows // geometry.list_rows)
    return Step(geometry.cells, 2, 2 + 4 * ranges + 2 * geometry.cell_rows / geometry.list_chunk_rows)


def given_bytes(geometry: Geometry) -> int:
    """Return the bytes of the given lists."""
    return geometry.rows * geometry.columns * 12


def project_vectors(geometry: Geometry, config: Config, worker_memory: int) -> StageProjection:
    """Project what the stage vectors will take."""
    usual = vectors_stage.project(geometry, config, worker_memory)
    return replace(
        usual,
        steps=(*usual.steps, given_step(geometry)),
        shuffled_bytes=usual.shuffled_bytes + given_bytes(geometry),
        task_bytes=max(usual.task_bytes, list_read_bytes(geometry, config)),
    )


def project_cells(geometry: Geometry, config: Config, worker_memory: int) -> StageProjection:
    """Project what the stage cells will take."""
    rows, index = geometry.rows, geometry.index_dtype.itemsize
    table = (geometry.blocks + geometry.cells) * 8
    blocks = geometry.blocks
    return StageProjection(
        steps=(Step(1, blocks, blocks), Step(blocks, 2, 2)),
        shuffled_bytes=2 * rows,
        disk_bytes=rows * (index + 1) + table,
        task_bytes=geometry.block_rows * 64 + rows * 16 + table * 2,
    )


def project_neighbors(geometry: Geometry, config: Config, worker_memory: int) -> StageProjection:
    """Project what the stage neighbors will take."""
    k, rows = config.neighbors.search_k, geometry.rows
    lists = min(geometry.cell_rows, rows) * k * LISTED_SLOT_BYTES + (geometry.blocks + geometry.cells) * 48
    return StageProjection(
        steps=(given_step(geometry),),
        shuffled_bytes=given_bytes(geometry),
        disk_bytes=rows * k * (geometry.index_dtype.itemsize + 4),
        task_bytes=list_read_bytes(geometry, config) + lists,
    )


VECTORS_GIVEN = Stage(
    VECTORS,
    setting_keys=(
        *("seed", "task_memory", "input.unique", "neighbors.precomputed", "neighbors.metric", "neighbors.width"),
        "audit.queries",
    ),
    reads=(),
    writes=(*vectors_stage.STAGE.writes, "list_fingerprints"),
    run=run_vectors,
    project=project_vectors,
    temporary_kinds={**vectors_stage.STAGE.temporary_kinds, "list_fingerprints": ()},
)
CELLS_GIVEN = Stage(
    CELLS,
    setting_keys=("task_memory", "input.unique", "neighbors.precomputed", "neighbors.width"),
    reads=(VECTORS,),
    writes=(TABLE, POSITIONS),
    run=run_cells,
    project=project_cells,
    version=2,
)
NEIGHBORS_GIVEN = Stage(
    NEIGHBORS,
    setting_keys=("task_memory", "neighbors.precomputed", "neighbors.width"),
    reads=(VECTORS, CELLS),
    writes=("lists",),
    run=run_neighbors,
    project=project_neighbors,
)
AUDIT_GIVEN = Stage(
    AUDIT,
    setting_keys=(
        *("seed", "task_memory", "input.unique", "neighbors.precomputed", "neighbors.metric"),
        *("neighbors.metric_kwds", "neighbors.width", "neighbors.recall_target", "audit.queries"),
    ),
    reads=(VECTORS, CELLS, NEIGHBORS),
    writes=("queries", "search", "searches", "exact", "report"),
    run=run_audit,
    project=audit.project,
    temporary_kinds={"search": (), "searches": ()},
)
