"""graph: the directed memberships of each shard, sorted by tail, their symmetric fuzzy union, and its figures."""

from __future__ import annotations

import math

import numpy as np

from dumap.artifacts.cells import CellTable
from dumap.artifacts.graph import GRAPH_FIGURES, SHARDS, Graph, RowRanges
from dumap.artifacts.job import Job
from dumap.artifacts.neighbors import NeighborLists
from dumap.artifacts.part_names import AUDIT, CELLS, GRAPH, NEIGHBORS, VECTORS, number_of, part_names, total
from dumap.artifacts.vectors import repeated_rows
from dumap.config import Config
from dumap.config.metrics import DISCONNECTION_DISTANCES
from dumap.kernels import graph
from dumap.planning.geometry import EDGE_BYTES, SHARD_EDGES, Geometry
from dumap.planning.plan import Projection
from dumap.stages import Context, Stage


def disconnection_distance(config: Config) -> float:
    """Return the distance at and beyond which neighbours are cut off."""
    if config.graph.disconnection_distance is not None:
        return config.graph.disconnection_distance
    return DISCONNECTION_DISTANCES.get(config.neighbors.metric, math.inf)


def nearest(job: Job, array: str, start: int, stop: int) -> np.ndarray:
    """Read 'indices' or 'distances' of the nearest n_neighbors - 1 entries of the lists of positions [start, stop)."""
    return NeighborLists(job.run).read(array, start, stop)[:, : job.config.neighbors.graph_k]


def sum_up(job: Job, part: str) -> None:
    """Sum the distances of a shard's rows to their neighbours, without neighbours that are missing or cut off."""
    shards = RowRanges.even(CellTable(job.run).rows, job.geometry.shard_rows)
    distances = nearest(job, "distances", *shards.span(number_of(part)))
    present = np.isfinite(distances)
    kept = present & (distances < disconnection_distance(job.config))
    rows = np.where(kept, distances, 0).sum(axis=1, dtype=np.float64)
    sums = [math.fsum(rows[low : low + graph.GRAIN_ROWS]) for low in range(0, len(rows), graph.GRAIN_ROWS)]
    with job.run.part(GRAPH, part) as out:
        out.attributes |= {
            "distance_sums": sums,  # by grain, so that the total does not depend on the rows of a shard
            "kept": int(kept.sum()),
            "disconnected": int(present.sum() - kept.sum()),
            "missing": int((~present).sum()),
        }


def weigh_edges(job: Job, part: str, mean_distance: float) -> None:
    """Compute the memberships of the edges out of a shard's rows, and sort the edges by tail."""
    rows = CellTable(job.run).rows
    start, stop = RowRanges.even(rows, job.geometry.shard_rows).span(number_of(part))
    indices = nearest(job, "indices", start, stop)
    rho, sigma, weights = graph.memberships(
        indices,
        nearest(job, "distances", start, stop),
        mean_distance,
        job.config.graph.local_connectivity,
        disconnection_distance(job.config),
    )
    head, slot = np.nonzero(indices >= 0)  # edges of weight 0 count in in-degrees too
    tail = indices[head, slot]
    order = np.argsort(tail, kind="stable")
    tail = tail[order]
    with job.run.part(GRAPH, part) as out:
        out.write("rho", rho)
        out.write("sigma", sigma)
        out.write("weights", weights)
        out.write("in_rows", tail)
        out.write("in_heads", (start + head[order]).astype(tail.dtype))
        out.write("in_weights", weights[head, slot][order])
        out.write("in_offsets", np.searchsorted(tail, graph.grains(rows)))


def cut_shards(job: Job, part: str) -> None:
    """Cut the rows into shards. A shard has at most the rows, and the edges out and in, that a task may hold."""
    rows, k, most = CellTable(job.run).rows, job.config.neighbors.graph_k, job.geometry.shard_rows
    directed = part_names("directed", len(RowRanges.even(rows, most)))
    into = sum(np.diff(job.run.read(GRAPH, name, "in_offsets")) for name in directed)
    offsets = graph.cut_shards(np.asarray(into), rows, k, most, int(SHARD_EDGES * k * most))
    edges = np.add.reduceat(into, offsets[:-1] // graph.GRAIN_ROWS) + k * np.diff(offsets)
    with job.run.part(GRAPH, part) as out:
        out.write("offsets", offsets)
        out.attributes |= {"directed": len(directed), "most_edges": int(edges.max())}


def place_block(job: Job, part: str) -> None:
    """Find the positions of a block's rows that have duplicates."""
    block = number_of(part)
    repeated, times = repeated_rows(job.run, block)
    with job.run.part(GRAPH, part) as out:
        out.write("positions", CellTable(job.run).positions(job.run, block)[repeated])
        out.write("times", times)
        out.attributes["repeated"] = len(repeated)


def _repeated(job: Job, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Collect the positions in [start, stop) that have duplicates, and how often each row occurs."""
    rows, times = [np.empty(0, np.int64)], [np.empty(0, job.geometry.index_dtype)]
    for name in part_names("repeated_positions", job.geometry.blocks) if job.config.input.unique else []:
        if job.run.summary(GRAPH, name)["repeated"]:
            positions = job.run.read(GRAPH, name, "positions")
            inside = (positions >= start) & (positions < stop)
            rows.append(positions[inside])
            times.append(job.run.read(GRAPH, name, "times")[inside])
    order = np.argsort(np.concatenate(rows))
    return np.concatenate(rows)[order], np.concatenate(times)[order]


def unite(job: Job, part: str) -> None:
    """Combine the edges out of and into a shard's rows into the fuzzy union."""
    store = job.run
    start, stop = RowRanges(store.read(GRAPH, SHARDS, "offsets")).span(number_of(part))
    even = RowRanges.even(CellTable(store).rows, job.geometry.shard_rows)
    directed = part_names("directed", len(even))
    indices = nearest(job, "indices", start, stop)
    weights = store.read_span(GRAPH, directed, even.offsets, "weights", start, stop)
    heads, slot = np.nonzero(weights)
    ends = start // graph.GRAIN_ROWS, -(-stop // graph.GRAIN_ROWS)
    offsets = store.read_each(GRAPH, [(name, "in_offsets", at, at + 1) for name in directed for at in ends])
    bounds = np.concatenate(list(offsets)).reshape(-1, 2).tolist()
    arrays = {"in_rows": indices.dtype, "in_heads": indices.dtype, "in_weights": np.dtype(np.float32)}
    spans = [(name, low, high) for name, (low, high) in zip(directed, bounds, strict=True) if high > low]
    pieces = list(store.read_each(GRAPH, [(name, array, low, high) for array in arrays for name, low, high in spans]))
    in_edges = {
        array: np.concatenate([np.empty(0, dtype), *pieces[number * len(spans) : (number + 1) * len(spans)]])
        for number, (array, dtype) in enumerate(arrays.items())
    }
    del pieces
    indptr, tails, united = graph.union(
        stop - start,
        heads,
        indices[heads, slot],
        weights[heads, slot],
        in_edges["in_rows"] - start,
        in_edges["in_heads"],
        in_edges["in_weights"],
        job.config.graph.set_op_mix_ratio,
    )
    isolated = np.flatnonzero(np.diff(indptr) == 0) + start
    degrees = np.bincount(in_edges["in_rows"] - start, minlength=stop - start)
    repeated, times = _repeated(job, start, stop)
    with store.part(GRAPH, part) as out:
        out.write("indptr", indptr)
        out.write("tails", tails)
        out.write("weights", united)
        out.write("isolated", isolated)
        out.write("repeated", repeated)
        out.write("times", times)
        out.attributes |= {
            "edges": len(tails),
            "isolated": len(isolated),
            "greatest": float(united.max(initial=0.0)),
            "inside": int(((tails >= start) & (tails < stop)).sum()),
            "greatest_in_degree": int(degrees.max()),
            "in_degree_zero": int((degrees == 0).sum()),
            "occurrences": stop - start + int((times - 1).sum(dtype=np.int64)),
        }


def find_components(job: Job, part: str) -> None:
    """Find the connected components.

    One task does so. It holds a number for each row, and the edges of one shard at a time.
    """
    whole = Graph(job.run)
    sets = np.full(whole.shards.rows, -1, job.geometry.index_dtype)
    for shard, name in enumerate(whole.names):
        indptr, tails = (job.run.read(GRAPH, name, array) for array in ("indptr", "tails"))
        graph.connect(indptr, tails, whole.shards.span(shard)[0], sets)
        job.tick(shard + 1, len(whole.names))
    sizes = -sets[sets < 0]
    with job.run.part(GRAPH, part) as out:
        out.attributes |= {
            "components": len(sizes),
            "largest_share": int(sizes.max()) / len(sets),
            "smallest": int(sizes.min()),
            "small": int((sizes < job.config.neighbors.n_neighbors).sum()),
            "occurrence_offsets": np.cumsum(
                [0, *(job.run.summary(GRAPH, name)["occurrences"] for name in whole.names)]
            ).tolist(),
        }


def run(context: Context) -> dict:
    """Build the graph; return the facts."""
    store, rows, settings = context.run, CellTable(context.run).rows, context.config.neighbors
    even = len(RowRanges.even(rows, context.geometry.shard_rows))
    summed = part_names("summed", even)
    context.compute(GRAPH, sum_up, summed)
    kept, disconnected, missing = (total(store, GRAPH, summed, fact) for fact in ("kept", "disconnected", "missing"))
    mean = math.fsum(part for name in summed for part in store.summary(GRAPH, name)["distance_sums"]) / (rows + kept)
    context.compute(GRAPH, weigh_edges, part_names("directed", even), mean_distance=mean)
    context.compute(GRAPH, cut_shards, [SHARDS])
    united, most = part_names("united", len(Graph(store).shards)), store.summary(GRAPH, SHARDS)["most_edges"]
    what, advice = f"the fullest shard has {most} edges: many rows list the same", "a smaller neighbors.n_neighbors"
    context.require(GRAPH, most * EDGE_BYTES, what, f"{advice} in another output")
    if context.config.input.unique:
        context.compute(GRAPH, place_block, part_names("repeated_positions", context.geometry.blocks))
    context.compute(GRAPH, unite, united)
    context.compute(GRAPH, find_components, [GRAPH_FIGURES])
    facts = {fact: total(store, GRAPH, united, fact) for fact in ("edges", "isolated", "inside", "in_degree_zero")}
    edges, health = facts["edges"], store.summary(GRAPH, GRAPH_FIGURES)
    greatest = max(store.summary(GRAPH, name)["greatest_in_degree"] for name in united)
    if missing:
        context.note(
            f"graph: {missing} slots of the neighbors' lists are empty; {health['small']} of {health['components']} "
            f"components have fewer than n_neighbors = {settings.n_neighbors} rows, the smallest {health['smallest']}"
        )
    return {
        "edges": edges,
        "isolated": facts["isolated"],
        "edges_inside_shards": facts["inside"] / edges if edges else None,
        "components": health["components"],
        "largest_component": health["largest_share"],
        "greatest_in_degree": greatest / settings.graph_k,
        "in_degree_zero": facts["in_degree_zero"],
        "missing": missing,
        "disconnected": disconnected,
    }


def project(geometry: Geometry, config: Config, worker_memory: int) -> Projection:
    """Project what the stage will take."""
    rows, index, unique = geometry.rows, geometry.index_dtype.itemsize, config.input.unique
    k, shard_rows = config.neighbors.graph_k, min(geometry.shard_rows, geometry.rows)
    return Projection(
        tasks=3 * geometry.shards + 2 + unique * geometry.blocks,
        shuffled_bytes=rows * k * (2 * index + 4),
        disk_bytes=rows * (k * (2 * index + 8) + unique * (8 + index)) + 2 * k * rows * (index + 4),
        task_bytes=max(
            int(shard_rows * (k * SHARD_EDGES * EDGE_BYTES + (config.neighbors.search_k - k) * 16)),
            rows * (index + 2) + 2 * k * shard_rows * index,
        ),
        temporary_bytes={"directed": rows * k * (2 * index + 8)},
    )


STAGE = Stage(
    GRAPH,
    keys=(
        *("input.unique", "neighbors.n_neighbors", "neighbors.metric", "graph.local_connectivity"),
        *("graph.set_op_mix_ratio", "graph.disconnection_distance", "graph.shard_rows"),
    ),
    reads=(VECTORS, CELLS, NEIGHBORS, AUDIT),
    writes=("summed", "directed", SHARDS, "repeated_positions", "united", GRAPH_FIGURES),
    run=run,
    project=project,
    temporary={"summed": (), "directed": ()},
)
