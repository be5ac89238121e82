"""audit: measure the lists' recall on a sample of rows that is searched exactly, and repair the lists while recall is
too low.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from dumap.artifacts.audit import MAP_NEIGHBORS, query_groups, report_part_name
from dumap.artifacts.cells import CellTable
from dumap.artifacts.job import Job
from dumap.artifacts.neighbors import NeighborLists
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
from dumap.artifacts.rows import empty_rows, join_rows, read_rows, write_rows
from dumap.artifacts.vectors import count_distinct_rows, is_query, sample_parts
from dumap.config import Config
from dumap.kernels import audit, quality, vectors
from dumap.planning.audits import (
    SENT_ROWS,
    audit_bytes,
    max_audits,
    queries_at_once,
    repair_bytes,
    repair_waves,
    sent_row_bytes,
)
from dumap.planning.geometry import Geometry
from dumap.planning.plan import StageProjection
from dumap.planning.steps import Step, summed_steps
from dumap.stages import Context, Stage
from dumap.stages.distances import (
    columns_in_tile,
    distances_by_tile,
    euclidean_tiles,
    fill_distances,
    find_columns,
    make_exact_search,
)
from dumap.stages.repair import INDEXED_KINDS, repair_lists, repair_steps

RELATIVE_TOLERANCE, ROUNDING_ERROR = 1e-6, 1e-15
"""Distances count as equal within a relative error, plus an absolute error for each dim and unit of squared length."""


def collect_queries(job: Job, part: str) -> None:
    """Collect the queries of one audit: their rows, vectors, positions and lists."""
    store, geometry, number = job.run, job.geometry, number_of(part)
    lists = NeighborLists(store, number)
    population, step = count_distinct_rows(job), queries_at_once(job.config, geometry.values_per_row)
    rows, positions, groups = [np.empty(0, np.int64)], [np.empty(0, np.int64)], 0
    waiting = empty_rows(job)
    with store.part(AUDIT, part) as out:
        for block, name in enumerate(sample_parts(job)):
            row = store.read(VECTORS, name, "query_rows")
            chosen = is_query(job, row, number, population)
            if chosen.any():
                rows.append(row[chosen])
                positions.append(lists.table.positions(store, block)[rows[-1] - geometry.rows_of_block(block)[0]])
                waiting = join_rows([waiting, job.as_compared(read_rows(job, VECTORS, name, "query")[chosen])])
            while waiting.shape[0] >= step:
                write_rows(out, f"vectors-{groups}", waiting[:step])
                waiting, groups = waiting[step:].copy(), groups + 1
        if waiting.shape[0]:
            write_rows(out, f"vectors-{groups}", waiting)
        queried = np.concatenate(positions)
        out.write("rows", np.concatenate(rows))
        out.write("positions", queried)
        out.write("listed", read_listed_positions(lists, queried))


def read_listed_positions(lists: NeighborLists, positions: np.ndarray) -> np.ndarray:
    """Read the lists of positions, cell by cell, (n, width - 1) int64."""
    listed = np.full((len(positions), lists.read("indices", 0, 1).shape[1]), -1, np.int64)
    home_cells = np.searchsorted(lists.table.offsets, positions, side="right") - 1
    for home_cell in np.unique(home_cells):
        in_cell = home_cells == home_cell
        low, high = int(positions[in_cell].min()), int(positions[in_cell].max()) + 1
        listed[in_cell] = lists.read("indices", low, high)[positions[in_cell] - low]
    return listed


def search_blocks(job: Job, part: str, number: int) -> None:
    """Find the queries' exact nearest rows in a group of blocks, and the exact distances of listed rows in it."""
    store = job.run
    queried, listed = (store.read(AUDIT, f"queries-{number}", name) for name in ("positions", "listed"))
    k = max(MAP_NEIGHBORS, job.config.neighbors.search_k)
    ids, distances = np.full((len(queried), k), -1, np.int64), np.full((len(queried), k), np.inf, np.float32)
    listed_distances = np.full(listed.shape, np.inf, np.float32)
    for block in range(*job.geometry.blocks_of_group(number_of(part))):
        positions = CellTable(store).positions(store, block)
        x, columns = (
            job.as_compared(job.input.read(*job.geometry.rows_of_block(block))),
            find_columns(positions, listed),
        )
        for group, queries in query_groups(job, number, np.arange(len(queried))):
            nearest = ids[group], distances[group]
            if job.config.neighbors.metric in vectors.EUCLIDEAN_ORDER_METRICS and not job.geometry.is_sparse:
                search = make_exact_search(job, queries)
                for tile, mapped in euclidean_tiles(job, queries, x):
                    search.keep_nearest(mapped, positions[tile], queried[group], *nearest)
                    search.measure_listed(mapped, columns_in_tile(columns[group], tile), listed_distances[group])
                continue
            for tile, d in distances_by_tile(job, queries, x):
                quality.keep_nearest(d, positions[tile], queried[group], *nearest)
                fill_distances(listed_distances[group], columns[group], tile, d)
    with store.part(AUDIT, part) as out:
        out.write("ids", ids)
        out.write("distances", distances)
        out.write("listed_distances", listed_distances)


def merge_exact_range(job: Job, part: str, number: int) -> None:
    """Merge the exact neighbours that a range of groups of blocks hold."""
    _merge_exact_parts(job, part, part_names(f"search-{number}", job.geometry.groups)[slice(*range_of(part))])


def merge_exact(job: Job, part: str) -> None:
    """Merge the exact neighbours of all blocks."""
    number = number_of(part)
    _merge_exact_parts(job, part, parts_to_sum(f"search-{number}", f"searches-{number}", job.geometry.groups))


def _merge_exact_parts(job: Job, part: str, parts: list[str]) -> None:
    """Merge the exact neighbours that parts hold."""
    store, (first, *names) = job.run, parts
    arrays = ("ids", "distances", "listed_distances")
    ids, distances, listed = (store.read(AUDIT, first, array) for array in arrays)
    for name in names:
        part_ids, part_distances, part_listed = (store.read(AUDIT, name, array) for array in arrays)
        both, both_distances = np.hstack([ids, part_ids]), np.hstack([distances, part_distances])
        order = np.lexsort((both, both_distances), axis=1)[:, : ids.shape[1]]
        ids, distances = np.take_along_axis(both, order, 1), np.take_along_axis(both_distances, order, 1)
        np.minimum(listed, part_listed, out=listed)
    with store.part(AUDIT, part) as out:
        out.write("ids", ids)
        out.write("distances", distances)
        out.write("listed_distances", listed)


def tie_distances(job: Job, farthest: np.ndarray, queries: Any) -> np.ndarray:
    """Return, for each query, the greatest distance at which a row counts as equally far as the farthest exact
    neighbour.
    """
    metric, farthest = job.config.neighbors.metric, farthest.astype(np.float64)
    if metric not in vectors.EUCLIDEAN_ORDER_METRICS:
        return farthest * (1 + RELATIVE_TOLERANCE)
    if job.geometry.is_sparse:
        return farthest * (1 + 2 * RELATIVE_TOLERANCE) + ROUNDING_ERROR
    x = vectors.to_euclidean(queries, metric)
    lengths = np.einsum("ij,ij->i", x, x, dtype=np.float64)
    return farthest * (1 + 2 * RELATIVE_TOLERANCE) + ROUNDING_ERROR * x.shape[1] * lengths


def report_recall(job: Job, part: str) -> None:
    """Compute the recall of each query's list, and the facts of the audit."""
    store, table, number = job.run, CellTable(job.run), number_of(part)
    rows, queried, listed = (store.read(AUDIT, f"queries-{number}", name) for name in ("rows", "positions", "listed"))
    exact, distances, listed_distances = (
        store.read(AUDIT, f"exact-{number}", name) for name in ("ids", "distances", "listed_distances")
    )
    k = listed.shape[1]
    limits = np.empty(len(queried))
    for group, queries in query_groups(job, number, np.arange(len(queried))):
        limits[group] = tie_distances(job, distances[group, k - 1], queries)
    is_listed = audit.is_listed(listed, listed_distances, np.ascontiguousarray(exact[:, :k]), limits)
    recall = is_listed.mean(axis=1)
    home = np.searchsorted(table.offsets, queried, side="right")
    across = np.searchsorted(table.offsets, exact[:, :k], side="right") != home[:, None]
    with store.part(AUDIT, part) as out:
        out.write("rows", rows)
        out.write("recall", recall.astype(np.float32))
        out.attributes["queries"] = len(rows)
        if len(rows):
            low, high = audit.confidence_interval(recall, table.rows)
            out.attributes |= {
                "recall": float(recall.mean()),
                "recall_low": low,
                "recall_high": high,
                "recall_p5": float(np.percentile(recall, 5)),
                "recall_across_cells": float(is_listed[across].mean()) if across.any() else None,
                "recall_within_cells": float(is_listed[~across].mean()) if (~across).any() else None,
                "rows_under_half": float((recall < 0.5).mean()),
                "every_row": len(rows) == table.rows,
            }


def audit_lists(context: Context, number: int) -> dict:
    """Audit the lists after `number` repairs, on queries of their own; return the facts."""
    context.compute(AUDIT, collect_queries, [f"queries-{number}"])
    kind, groups = f"search-{number}", context.geometry.groups
    context.compute(AUDIT, search_blocks, part_names(kind, groups), number=number)
    context.sum_in_ranges(AUDIT, merge_exact_range, kind, f"searches-{number}", groups, number=number)
    context.compute(AUDIT, merge_exact, [f"exact-{number}"])
    context.compute(AUDIT, report_recall, [report_part_name(number)])
    return context.run.part_facts(AUDIT, report_part_name(number))


def run(context: Context) -> dict:
    """Audit the lists, and repair them while recall is below its target; return the facts."""
    settings = context.config.neighbors
    if not context.config.audit.queries:
        return {"queries": 0, "repairs": 0}
    target, figures = settings.recall_target, audit_lists(context, 0)
    repairs: list[dict] = []
    recalls = [figures.get("recall")]
    while recalls[-1] is not None and recalls[-1] < target and len(repairs) < settings.max_repairs:
        within = figures["recall_within_cells"]
        repairs.append(
            repair_lists(context, len(repairs) + 1, should_compare_home_pairs=within is not None and within < target)
        )
        figures = audit_lists(context, len(repairs))
        recalls.append(figures.get("recall"))
        if not repairs[-1]["gained"]:
            break
    if recalls[-1] is not None and recalls[-1] < target:
        context.log(
            f"audit: recall {recalls[-1]:.3f} ({figures['recall_low']:.3f} to {figures['recall_high']:.3f}) is below "
            f"neighbors.recall_target = {target} after {len(repairs)} repairs"
            f"{'' if not repairs or repairs[-1]['gained'] else ', the last of which found nothing'}: raise "
            f"cells.max_cells_per_row or neighbors.max_repairs"
        )
    return {
        **figures,
        "recall_target": target,
        "repairs": len(repairs),
        "recall_by_repair": [None if recall is None else round(recall, 4) for recall in recalls],
        **{fact: [repair[fact] for repair in repairs] for fact in ("gained", "pairs", "left_out") if repairs},
    }


def audit_steps(geometry: Geometry, config: Config, queries: int) -> tuple[Step, ...]:
    """Return the steps of one audit."""
    blocks, groups, grouped, asked_cells = (
        geometry.blocks,
        geometry.groups,
        geometry.group_blocks,
        min(geometry.cells, queries),
    )
    query_parts = -(-queries // queries_at_once(config, geometry.values_per_row))
    return (
        Step(1, blocks + groups + asked_cells + 2, 3 * blocks + asked_cells + 1),
        Step(groups, 4, 3 + grouped * (1 + query_parts), grouped),
        *summed_steps(groups, 3),
        Step(1, 3, 7 + query_parts),
    )


def project(geometry: Geometry, config: Config, worker_memory: int) -> StageProjection:
    """Project what the stage will take with the most repairs that are allowed."""
    k, index_bytes, rows = config.neighbors.search_k, geometry.index_dtype.itemsize, geometry.rows
    queries, audit_count = min(config.audit.queries, rows), max_audits(config)
    repairs = audit_count - 1
    sent_bytes = SENT_ROWS * rows * sent_row_bytes(config, geometry)
    halo_bytes = sent_bytes // repair_waves(config, geometry, SENT_ROWS)  # of one wave at a time
    offer_bytes, list_bytes = (SENT_ROWS + 1) * rows * k * (index_bytes + 4), rows * k * (index_bytes + 5)
    query_bytes = queries * (geometry.values_per_row * 4 + 8 * k + 24)
    exact_bytes = queries * (2 * geometry.groups + 1) * (max(k, MAP_NEIGHBORS) * 12 + k * 4)
    searched_bytes = audit_count * (
        rows * (geometry.source_row_bytes + index_bytes) + 2 * exact_bytes + geometry.groups * query_bytes
    )
    home_bytes = rows * (geometry.row_bytes + 3 * k * (index_bytes + 4))
    return StageProjection(
        steps=audit_steps(geometry, config, queries) * audit_count + repair_steps(geometry, config) * repairs,
        shuffled_bytes=searched_bytes + repairs * (sent_bytes + offer_bytes + 2 * home_bytes),
        disk_bytes=audit_count * (exact_bytes + query_bytes)
        + repairs * list_bytes
        + (halo_bytes + offer_bytes if repairs else 0),
        task_bytes=max(audit_bytes(config, geometry, queries), repair_bytes(config, geometry) if repairs else 0),
        temporary_bytes={
            "search": audit_count * exact_bytes  # the lists of the last repair replace the first
            + (halo_bytes + offer_bytes + repairs * list_bytes if repairs else 0)
        },
    )


STAGE = Stage(
    AUDIT,
    setting_keys=(
        *("seed", "task_memory", "input.unique", "neighbors.metric", "neighbors.metric_kwds", "neighbors.width"),
        *("neighbors.recall_target", "neighbors.max_repairs", "audit.queries"),
    ),
    reads=(VECTORS, CELLS, NEIGHBORS),
    writes=(
        "queries",
        "search",
        "searches",
        "exact",
        "report",
        "lists",
        "repair",
        *INDEXED_KINDS,
        *INDEXED_KINDS.values(),
    ),
    run=run,
    project=project,
    temporary_kinds={
        **dict.fromkeys(("search", "searches"), ()),
        **dict.fromkeys((*INDEXED_KINDS, *INDEXED_KINDS.values()), ()),
    },
)
