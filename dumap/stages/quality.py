"""quality: the map's share of preserved neighbours and its trustworthiness, on queries of the audit."""

from __future__ import annotations

import numpy as np

from dumap.artifacts.audit import MAP_NEIGHBORS, count_repairs, last_audit_part, query_groups
from dumap.artifacts.cells import CellTable
from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.artifacts.layout import last_epoch_state
from dumap.artifacts.part_names import (
    AUDIT,
    CELLS,
    GRAPH,
    LAYOUT,
    QUALITY,
    VECTORS,
    number_of,
    part_names,
    parts_to_sum,
    range_of,
)
from dumap.config import Config
from dumap.kernels import quality
from dumap.planning.audits import DISTANCE_TILE_BYTES, audit_bytes, queries_at_once
from dumap.planning.geometry import Geometry
from dumap.planning.plan import StageProjection
from dumap.planning.steps import Step, ranges_of, summed_steps
from dumap.stages import Context, Stage
from dumap.stages.distances import distances_by_tile, fill_distances, find_columns
from dumap.store import Run

TRUST_QUERIES = 300
"""Queries for which trustworthiness is computed. Each is compared with all rows again."""


def evenly_spaced_numbers(count: int, limit: int) -> np.ndarray:
    """Return at most `limit` numbers below `count`, evenly spaced. Queries are in the order of their rows."""
    limit = min(count, limit)
    return np.arange(limit) * count // max(limit, 1)


def max_queries(config: Config) -> int:
    """Return the most queries of the audit on which the map is measured."""
    return config.audit.queries if config.quality.queries is None else config.quality.queries


def read_trust_queries(store: Run) -> tuple[np.ndarray, np.ndarray]:
    """Read the numbers of the queries for which trustworthiness is computed, and the queries' nearest rows in the
    map.
    """
    chosen = store.read(QUALITY, "queries", "chosen")
    numbers = evenly_spaced_numbers(len(chosen), TRUST_QUERIES)
    return chosen[numbers], store.read(QUALITY, "queries", "map")[numbers]


def find_map_neighbors(job: Job, part: str) -> None:
    """Find the queries' nearest rows in the map."""
    store = job.run
    positions = store.read(AUDIT, last_audit_part(job, "queries"), "positions")
    chosen = evenly_spaced_numbers(len(positions), max_queries(job.config))
    positions = positions[chosen]
    graph = Graph(store)
    state = last_epoch_state(store, graph)
    query_y = np.empty((len(positions), job.config.layout.n_components), np.float32)
    order = np.argsort(positions)
    query_y[order] = state.read_at(positions[order])
    neighbor_count = min(MAP_NEIGHBORS, graph.shards.rows - 1)
    map_neighbors = np.full((len(positions), neighbor_count), -1, np.int64)
    map_distances = np.full(map_neighbors.shape, np.inf, np.float32)
    for shard in range(len(graph.shards)):
        start, _ = graph.shards.row_range(shard)
        y = state.read(shard)
        step = max(1, DISTANCE_TILE_BYTES // (4 * max(1, len(positions))))
        for low in range(0, len(y), step):
            tile = y[low : low + step]
            d = np.zeros((len(positions), len(tile)), np.float32)
            for c in range(y.shape[1]):
                d += (query_y[:, c : c + 1] - tile[None, :, c]) ** 2
            ids = np.arange(start + low, start + low + len(tile))
            quality.keep_nearest(d, ids, positions, map_neighbors, map_distances)
    with store.part(QUALITY, part) as out:
        out.write("chosen", chosen)
        out.write("map", map_neighbors)


def measure_map_neighbors(job: Job, part: str) -> None:
    """Measure the distances, by the metric, of the queries' map neighbours in a group of blocks; only their chunks are
    read.
    """
    chosen, map_neighbors = read_trust_queries(job.run)
    distances = np.full(map_neighbors.shape, np.inf, np.float32)
    for block in range(*job.geometry.blocks_of_group(number_of(part))):
        columns = find_columns(CellTable(job.run).positions(job.run, block), map_neighbors)
        measure_column_distances(job, block, columns, chosen, distances)
    with job.run.part(QUALITY, part) as out:
        out.write("distances", distances)


def measure_column_distances(
    job: Job, block: int, columns: np.ndarray, chosen: np.ndarray, distances: np.ndarray
) -> None:
    """Fill in the distances of queries to some of a block's rows, chunk by chunk."""
    rows = np.unique(columns[columns >= 0])
    start, stop = job.geometry.rows_of_block(block)
    chunks = (start + rows) // job.input.chunk_rows
    for chunk in np.unique(chunks):
        needed = rows[chunks == chunk]
        first = max(start, int(chunk) * job.input.chunk_rows)
        chunk_values = job.input.read(first, min(stop, (int(chunk) + 1) * job.input.chunk_rows))
        x = job.as_compared(chunk_values[needed + start - first])
        indices = np.where(np.isin(columns, needed), np.searchsorted(needed, columns), -1)
        for group, queries in query_groups(job, count_repairs(job.run), chosen):
            for tile, d in distances_by_tile(job, queries, x):
                fill_distances(distances[group], indices[group], tile, d)


def _least_distances(job: Job, names: list[str]) -> np.ndarray:
    """Return the least of the distances that parts hold: all but those that measured them hold infinite ones."""
    return np.minimum.reduce(list(job.run.read_many(QUALITY, [(name, "distances", 0, None) for name in names])))


def _sum_rank_counts(job: Job, names: list[str]) -> np.ndarray:
    """Add up the ranks that parts have counted."""
    return np.add.reduce(list(job.run.read_many(QUALITY, [(name, "counts", 0, None) for name in names])))


def merge_map_distances(job: Job, part: str) -> None:
    """Merge the distances that a range of groups measured."""
    names = part_names("map_distances", job.geometry.groups)[slice(*range_of(part))]
    with job.run.part(QUALITY, part) as out:
        out.write("distances", _least_distances(job, names))


def sum_rank_counts(job: Job, part: str) -> None:
    """Add up the ranks that a range of groups counted."""
    names = part_names("ranks", job.geometry.groups)[slice(*range_of(part))]
    with job.run.part(QUALITY, part) as out:
        out.write("counts", _sum_rank_counts(job, names))


def sort_map_distances(job: Job, part: str) -> None:
    """Sort the distances of each query's map neighbours."""
    distances = _least_distances(job, parts_to_sum("map_distances", "least_distances", job.geometry.groups))
    with job.run.part(QUALITY, part) as out:
        out.write("limits", np.sort(distances * np.float32(1 - 1e-6), axis=1))


def count_nearer_rows(job: Job, part: str) -> None:
    """Count the rows of a group of blocks that are nearer to a query than each of its map neighbours."""
    store = job.run
    chosen, _ = read_trust_queries(store)
    queried = store.read(AUDIT, last_audit_part(job, "queries"), "positions")[chosen]
    limits = store.read(QUALITY, "limits", "limits")
    counts = np.zeros(limits.shape, np.int64)
    for block in range(*job.geometry.blocks_of_group(number_of(part))):
        positions = CellTable(store).positions(store, block)
        x = job.as_compared(job.input.read(*job.geometry.rows_of_block(block)))
        for group, queries in query_groups(job, count_repairs(store), chosen):
            for tile, d in distances_by_tile(job, queries, x):
                quality.count_between_limits(d, positions[tile], queried[group], limits[group], counts[group])
    with store.part(QUALITY, part) as out:
        out.write("counts", counts)


def report_quality(job: Job, part: str) -> None:
    """Compute the figures of the map."""
    store, table = job.run, CellTable(job.run)
    map_neighbors, chosen = (store.read(QUALITY, "queries", name) for name in ("map", "chosen"))
    exact = store.read(AUDIT, last_audit_part(job, "exact"), "ids")[chosen]
    preserved = quality.listed_share(map_neighbors, exact[:, : map_neighbors.shape[1]])
    counts = _sum_rank_counts(job, parts_to_sum("ranks", "rank_sums", job.geometry.groups))
    with store.part(QUALITY, part) as out:
        out.write("rows", store.read(AUDIT, last_audit_part(job, "queries"), "rows")[chosen])
        out.write("preserved", preserved.astype(np.float32))
        out.attributes |= {
            "queries": len(preserved),
            "neighbors_preserved": float(preserved.mean()),
            "trustworthiness": quality.trustworthiness(np.cumsum(counts, axis=1) + 1, table.rows),
        }


def run(context: Context) -> dict:
    """Measure the map; return the figures."""
    groups = context.geometry.groups
    count = min(context.config.audit.queries, max_queries(context.config))
    if not count or not len(context.run.read(AUDIT, last_audit_part(context.job, "queries"), "rows")):
        return {"queries": 0}
    context.compute(QUALITY, find_map_neighbors, ["queries"])
    context.compute(QUALITY, measure_map_neighbors, part_names("map_distances", groups))
    context.sum_in_ranges(QUALITY, merge_map_distances, "map_distances", "least_distances", groups)
    context.compute(QUALITY, sort_map_distances, ["limits"])
    context.compute(QUALITY, count_nearer_rows, part_names("ranks", groups))
    context.sum_in_ranges(QUALITY, sum_rank_counts, "ranks", "rank_sums", groups)
    context.compute(QUALITY, report_quality, ["report"])
    return context.run.part_facts(QUALITY, "report")


def steps_of(geometry: Geometry, config: Config, queries: int) -> tuple[Step, ...]:
    """Return the steps of the stage."""
    groups, grouped, trusted = geometry.groups, geometry.group_blocks, min(queries, TRUST_QUERIES)
    query_parts = grouped * -(-trusted // queries_at_once(config, geometry.values_per_row))
    looks = grouped * geometry.chunks_a_block  # for the number of repairs
    return (
        Step(1, 2 * geometry.shards + 5, 2 * geometry.shards + 4),
        Step(groups, 6 + looks, 3 + grouped + query_parts * geometry.chunks_a_block, grouped),
        *summed_steps(groups, 1),
        Step(groups, 7, 4 + grouped + query_parts, grouped),
        *summed_steps(groups, 1),
    )


def project(geometry: Geometry, config: Config, worker_memory: int) -> StageProjection:
    """Project what the stage will take."""
    queries = min(config.audit.queries, max_queries(config), geometry.rows)
    parts = geometry.groups + ranges_of(geometry.groups)
    row_bytes = geometry.source_row_bytes + geometry.index_dtype.itemsize + 4
    compared = (
        geometry.blocks * (1 + geometry.chunks_a_block) * min(queries, TRUST_QUERIES) * geometry.values_per_row * 4
    )
    disk = queries * (MAP_NEIGHBORS * 8 + 16) + min(queries, TRUST_QUERIES) * MAP_NEIGHBORS * 12 * parts
    return StageProjection(
        steps=steps_of(geometry, config, queries),
        shuffled_bytes=2 * (geometry.rows * row_bytes + disk) + compared,
        disk_bytes=disk,
        task_bytes=audit_bytes(config, geometry, queries),
        temporary_bytes={"ranks": disk},
    )


STAGE = Stage(
    QUALITY,
    setting_keys=(
        "neighbors.metric",
        "neighbors.metric_kwds",
        "layout.n_components",
        "audit.queries",
        "quality.queries",
    ),
    reads=(VECTORS, CELLS, AUDIT, GRAPH, LAYOUT),
    writes=("queries", "map_distances", "least_distances", "limits", "ranks", "rank_sums", "report"),
    run=run,
    project=project,
    temporary_kinds=dict.fromkeys(("queries", "map_distances", "least_distances", "limits", "ranks", "rank_sums"), ()),
)
