"""quality: recall of the graph and faithfulness of the map, on exact samples of rows."""

from __future__ import annotations

import numpy as np

from dumap.kernels import neighbors as search
from dumap.kernels import quality, vectors
from dumap.kernels.threads import one_thread
from dumap.stages import Context, Job, number_of, numbered
from dumap.stages.cells import Table
from dumap.stages.embedding import positions_of
from dumap.stages.graph import Graph
from dumap.stages.layout import Generation
from dumap.stages.neighbors import Lists, defined_distances, metric_arguments
from dumap.stages.vectors import as_float32, drawn

STAGE = "quality"
NEAR = 15
"""Neighbours by which the map is judged."""
TRUST_QUERIES = 300
"""Queries whose exact ranks are counted; each costs two searches over all rows."""
TILE_BYTES = 32 * 2**20


def _tiles(job: Job, queries: np.ndarray, x: np.ndarray):  # type: ignore[no-untyped-def]
    """Yield slices of a block's rows with the queries' distances to them."""
    step, metric = max(1, TILE_BYTES // (8 * max(1, len(queries)))), job.config.neighbors.metric
    if metric in vectors.BY_PRODUCT:
        queries = vectors.partition_space(queries, metric).astype(np.float64)
    for low in range(0, len(x), step):
        tile = x[low : low + step]
        if metric in vectors.BY_PRODUCT:
            placed = vectors.partition_space(tile, metric).astype(np.float64)
            with one_thread():
                distances = quality.squared_distances(queries, placed, metric in vectors.ANGULAR)
            yield slice(low, low + len(tile)), distances.astype(np.float32)
        else:
            out = np.empty((len(queries), len(tile)), np.float32)
            arguments = tuple(metric_arguments(job).values())
            with defined_distances(job):
                quality.metric_distances(queries, tile, search.distance_function(metric), arguments, out)
            yield slice(low, low + len(tile)), out


def collect(job: Job, part: str) -> None:
    """Collect the queries: vectors, positions, the graph's lists and their nearest rows in the map."""
    store, table, cut = job.run, Table(job.run), job.geometry
    row, x = drawn(job, "query_rows"), drawn(job, "query")
    positions = np.empty(len(row), np.int64)
    for number in range(cut.blocks):
        start, stop = cut.block(number)
        own = (row >= start) & (row < stop)
        if own.any():
            positions[own] = positions_of(job, table, start, stop)[0][row[own] - start]
    lists, graph = Lists(store), Graph(store, cut.shard_rows)
    graph_lists = np.full((len(row), job.config.neighbors.n_neighbors), -1, np.int64)
    generation = Generation(store, graph, cut.n_epochs)
    own_y = np.empty((len(row), job.config.layout.n_components), np.float32)
    order = np.argsort(positions)
    own_y[order] = generation.gather(positions[order])
    near = min(NEAR, table.rows - 1)
    low_ids = np.full((len(row), near), -1, np.int64)
    low_distances = np.full(low_ids.shape, np.inf, np.float32)
    for shard in range(len(graph.shards)):
        start, stop = graph.shards.span(shard)
        own = (positions >= start) & (positions < stop)
        graph_lists[own] = lists.read("indices", start, stop)[positions[own] - start]
        y = generation.read(shard)
        step = max(1, TILE_BYTES // (4 * max(1, len(row))))
        for low in range(0, len(y), step):
            tile = y[low : low + step]
            d = np.zeros((len(row), len(tile)), np.float32)
            for c in range(y.shape[1]):
                d += (own_y[:, c : c + 1] - tile[None, :, c]) ** 2
            ids = np.arange(start + low, start + low + len(tile))
            quality.keep_nearest(d, ids, positions, low_ids, low_distances)
    with store.part(STAGE, part) as out:
        out.write("rows", row)
        out.write("vectors", x)
        out.write("positions", positions)
        out.write("graph", graph_lists)
        out.write("map", low_ids)


def search_block(job: Job, part: str) -> None:
    """Find the queries' exact nearest rows in a block, and how far those nearest in the map are."""
    store, block = job.run, number_of(part)
    queries, own, low_ids = (store.read(STAGE, "queries", name) for name in ("vectors", "positions", "map"))
    start, stop = job.geometry.block(block)
    positions, _ = positions_of(job, Table(store), start, stop)
    x = as_float32(job.input.read(start, stop))
    k = max(low_ids.shape[1], job.config.neighbors.n_neighbors)
    ids, distances = np.full((len(own), k), -1, np.int64), np.full((len(own), k), np.inf, np.float32)
    reached = np.full(low_ids.shape, np.inf, np.float32)
    by_position = np.argsort(positions)
    at = np.minimum(np.searchsorted(positions, low_ids, sorter=by_position), len(positions) - 1)
    column = np.where(positions[by_position[at]] == low_ids, by_position[at], -1)
    for tile, d in _tiles(job, queries, x):
        quality.keep_nearest(d, positions[tile], own, ids, distances)
        q, slot = np.nonzero((column >= tile.start) & (column < tile.stop))
        reached[q, slot] = d[q, column[q, slot] - tile.start]
    with store.part(STAGE, part) as out:
        out.write("ids", ids)
        out.write("distances", distances)
        out.write("reached", reached)


def rank_block(job: Job, part: str) -> None:
    """Count a block's rows that are nearer to a query than the rows nearest to it in the map."""
    store, block = job.run, number_of(part)
    queries, own = (store.read(STAGE, "queries", name)[:TRUST_QUERIES] for name in ("vectors", "positions"))
    limits = np.sort(store.read(STAGE, "exact", "reached")[:TRUST_QUERIES] * np.float32(1 - 1e-6), axis=1)
    start, stop = job.geometry.block(block)
    positions, _ = positions_of(job, Table(store), start, stop)
    x = as_float32(job.input.read(start, stop))
    counts = np.zeros(limits.shape, np.int64)
    for tile, d in _tiles(job, queries, x):
        quality.count_nearer(d, positions[tile], own, limits, counts)
    with store.part(STAGE, part) as out:
        out.write("counts", counts)


def join(job: Job, part: str) -> None:
    """Merge the blocks' exact neighbours."""
    store = job.run
    names = numbered("search", job.geometry.blocks)
    own = store.read(STAGE, "queries", "positions")
    ids, distances = store.read(STAGE, names[0], "ids"), store.read(STAGE, names[0], "distances")
    reached = store.read(STAGE, names[0], "reached")
    for name in names[1:]:
        search.merge(
            ids,
            distances,
            np.arange(len(own)),
            store.read(STAGE, name, "ids"),
            store.read(STAGE, name, "distances"),
            own,
        )
        reached = np.minimum(reached, store.read(STAGE, name, "reached"))
    with store.part(STAGE, part) as out:
        out.write("ids", ids)
        out.write("reached", reached)


def report(job: Job, part: str) -> None:
    """Score every query, and sum the scores up."""
    store, table = job.run, Table(job.run)
    rows, own, graph_lists, low_ids = (
        store.read(STAGE, "queries", name) for name in ("rows", "positions", "graph", "map")
    )
    exact, k = store.read(STAGE, "exact", "ids"), job.config.neighbors.n_neighbors
    recall = quality.overlap(graph_lists, exact[:, :k])
    kept = quality.overlap(low_ids, exact[:, : low_ids.shape[1]])
    home = np.searchsorted(table.offsets, own, side="right")
    across = np.searchsorted(table.offsets, exact[:, :k], side="right") != home[:, None]
    hit = (exact[:, :k, None] == graph_lists[:, None, :]).any(axis=2)
    counts = sum(store.read(STAGE, name, "counts") for name in numbered("ranks", job.geometry.blocks))
    trust = quality.trustworthiness(np.cumsum(counts, axis=1) + 1, table.rows)
    low, high = quality.interval(recall)
    with store.part(STAGE, part) as out:
        out.write("rows", rows)
        out.write("recall", recall.astype(np.float32))
        out.write("preserved", kept.astype(np.float32))
        out.attributes |= {
            "queries": len(rows),
            "recall": float(recall.mean()),
            "recall_low": low,
            "recall_high": high,
            "recall_p5": float(np.percentile(recall, 5)),
            "recall_across_cells": float(hit[across].mean()) if across.any() else None,
            "recall_within_cells": float(hit[~across].mean()) if (~across).any() else None,
            "rows_under_half": float((recall < 0.5).mean()),
            "neighbors_preserved": float(kept.mean()),
            "trustworthiness": trust,
        }


def run(context: Context) -> dict:
    """Audit the run; return the figures."""
    blocks = context.geometry.blocks
    if not context.config.quality.queries:
        return {"queries": 0}
    context.compute(STAGE, collect, ["queries"])
    if not len(context.run.read(STAGE, "queries", "rows")):
        return {"queries": 0}
    context.compute(STAGE, search_block, numbered("search", blocks))
    context.compute(STAGE, join, ["exact"])
    context.compute(STAGE, rank_block, numbered("ranks", blocks))
    context.compute(STAGE, report, ["report"])
    return context.run.summary(STAGE, "report")
