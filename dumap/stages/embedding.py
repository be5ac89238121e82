"""embedding: the coordinates in the input's order, and each row's status."""

from __future__ import annotations

import numpy as np

from dumap.artifacts.cells import CellTable
from dumap.artifacts.graph import Graph, read_repeated_positions
from dumap.artifacts.job import Job
from dumap.artifacts.layout import last_epoch_state
from dumap.artifacts.part_names import CELLS, EMBEDDING, GRAPH, LAYOUT, VECTORS, number_of, part_names, sum_fact
from dumap.artifacts.vectors import DROPPED, DUPLICATE, ISOLATED, read_duplicates, read_repeated_rows
from dumap.config import Config
from dumap.planning.geometry import Geometry
from dumap.planning.plan import StageProjection
from dumap.planning.steps import Step
from dumap.stages import Context, Stage


def read_positions_and_status(job: Job, table: CellTable, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions and the status of the input's rows [start, stop)."""
    geometry, positions, status = job.geometry, [], []
    for block in range(start // geometry.block_rows, -(-stop // geometry.block_rows)):
        low, high = geometry.rows_of_block(block)
        rows = slice(max(start, low) - low, min(stop, high) - low)
        positions.append(table.positions(job.run, block)[rows])
        status.append(table.status(block)[rows])
    return np.concatenate(positions), np.concatenate(status)


def set_duplicate_positions(job: Job, positions: np.ndarray, start: int) -> np.ndarray:
    """Give each duplicate among rows `start`, `start` + 1, ... the position of the first row equal to it; return the
    duplicates.
    """
    geometry, stop = job.geometry, start + len(positions)
    duplicates, firsts = [], []
    for block in range(start // geometry.block_rows, -(-stop // geometry.block_rows)):
        local, first = read_duplicates(job.run, block)
        rows = local + geometry.rows_of_block(block)[0] - start
        in_range = (rows >= 0) & (rows < len(positions))
        duplicates.append(rows[in_range])
        firsts.append(first[in_range])
    duplicate, first = np.concatenate(duplicates), np.concatenate(firsts)
    first_blocks = first // geometry.block_rows
    for block in np.unique(first_blocks).tolist():
        repeated, _ = read_repeated_rows(job.run, block)
        indices = np.searchsorted(repeated, first[first_blocks == block] - geometry.rows_of_block(block)[0])
        positions[duplicate[first_blocks == block]] = read_repeated_positions(job.run, block)[indices]
    return duplicate


def write_chunk(job: Job, part: str) -> None:
    """Write one chunk of the embedding and of the status."""
    graph, geometry = Graph(job.run), job.geometry
    start = number_of(part) * geometry.output_rows
    stop = min(geometry.rows, start + geometry.output_rows)
    positions, status = read_positions_and_status(job, CellTable(job.run), start, stop)
    y = np.full((stop - start, job.config.layout.n_components), np.nan, np.float32)
    if job.config.input.unique:
        status[set_duplicate_positions(job, positions, start)] |= DUPLICATE
    kept_rows = np.flatnonzero((status & DROPPED) == 0)
    if len(kept_rows):
        order = kept_rows[np.argsort(positions[kept_rows])]
        y[order] = last_epoch_state(job.run, graph).read_at(positions[order])
    for shard in range(len(graph.shards)):
        isolated = graph.isolated_positions(shard)
        if len(isolated):
            status[np.isin(positions, isolated)] |= ISOLATED
    with job.run.part(EMBEDDING, part) as out:
        out.write_rows("embedding", start, y)
        out.write_rows("status", start, status)
        out.attributes["nonfinite"] = int((~np.isfinite(y[kept_rows])).any(axis=1).sum())


def run(context: Context) -> dict:
    """Write the embedding; return the facts."""
    parts = part_names("rows", context.geometry.outputs)
    context.compute(EMBEDDING, write_chunk, parts)
    return {"nonfinite": sum_fact(context.run, EMBEDDING, parts, "nonfinite")}


def project(geometry: Geometry, config: Config, worker_memory: int) -> StageProjection:
    """Project what the stage will take."""
    n_components, blocks = config.layout.n_components, geometry.blocks / geometry.outputs + 1
    return StageProjection(
        steps=(Step(geometry.outputs, blocks + 2 * geometry.shards + 12, 2 * blocks + 2 * geometry.shards + 1),),
        shuffled_bytes=geometry.rows * (9 + 4 * n_components * geometry.outputs),
        disk_bytes=geometry.rows * (4 * n_components + 1),
        task_bytes=geometry.output_rows * (64 + 16 * n_components) + (geometry.blocks + geometry.cells) * 48,
    )


STAGE = Stage(
    EMBEDDING,
    setting_keys=("input.unique", "layout.n_components"),
    reads=(VECTORS, CELLS, GRAPH, LAYOUT),
    writes=("rows",),
    run=run,
    project=project,
    writes_results=True,
)
