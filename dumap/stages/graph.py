"""graph: the directed memberships of each shard, sorted by tail, their symmetric fuzzy union, and its figures."""

from __future__ import annotations

import math

import numpy as np

from dumap.artifacts.cells import CellTable
from dumap.artifacts.exchange import read_received_ranges, write_receiver_index, write_receivers, write_sorted_receivers
from dumap.artifacts.graph import GRAPH_FACTS, SHARDS, Graph, RowRanges
from dumap.artifacts.job import Job
from dumap.artifacts.neighbors import NeighborLists
from dumap.artifacts.part_names import (
    AUDIT,
    CELLS,
    GRAPH,
    NEIGHBORS,
    VECTORS,
    number_of,
    part_names,
    parts_to_sum,
    range_names,
    range_of,
    sum_fact,
)
from dumap.artifacts.vectors import read_repeated_rows
from dumap.config import Config
from dumap.config.metrics import DISCONNECTION_DISTANCES
from dumap.kernels import graph
from dumap.planning.geometry import EDGE_BYTES, MAX_EDGES_PER_NEIGHBOR, Geometry
from dumap.planning.plan import StageProjection
from dumap.planning.steps import Step, indexed, ranges_of, received_requests, senders_of, summed_steps
from dumap.stages import Context, Stage
from dumap.stages.components import count_components

EDGES_PER_RANGE = 1024
"""Edges in a range with a checksum of its own: of another shard, a shard reads only the edges that lead to it."""


def disconnection_distance(config: Config) -> float:
    """Return the distance at and beyond which neighbours are cut off."""
    if config.graph.disconnection_distance is not None:
        return config.graph.disconnection_distance
    return DISCONNECTION_DISTANCES.get(config.neighbors.metric, math.inf)


def read_nearest(job: Job, array: str, start: int, stop: int) -> np.ndarray:
    """Read 'indices' or 'distances' of the nearest n_neighbors - 1 entries of the lists of positions [start, stop)."""
    return NeighborLists(job.run).read(array, start, stop)[:, : job.config.neighbors.graph_k]


def sum_distances(job: Job, part: str) -> None:
    """Sum the distances of a shard's rows to their neighbours, without neighbours that are missing or cut off."""
    shards = RowRanges.of_size(CellTable(job.run).rows, job.geometry.shard_rows)
    distances = read_nearest(job, "distances", *shards.row_range(number_of(part)))
    present = np.isfinite(distances)
    is_kept = present & (distances < disconnection_distance(job.config))
    rows = np.where(is_kept, distances, 0).sum(axis=1, dtype=np.float64)
    sums = [math.fsum(rows[low : low + graph.GRAIN_ROWS]) for low in range(0, len(rows), graph.GRAIN_ROWS)]
    with job.run.part(GRAPH, part) as out:
        out.attributes |= {
            "distance_sums": sums,  # by grain, so that the total does not depend on the rows of a shard
            "kept": int(is_kept.sum()),
            "disconnected": int(present.sum() - is_kept.sum()),
            "missing": int((~present).sum()),
        }


def weigh_edges(job: Job, part: str, mean_distance: float) -> None:
    """Compute the memberships of the edges out of a shard's rows, and sort the edges by tail."""
    rows = CellTable(job.run).rows
    start, stop = RowRanges.of_size(rows, job.geometry.shard_rows).row_range(number_of(part))
    indices = read_nearest(job, "indices", start, stop)
    rho, sigma, weights = graph.compute_memberships(
        indices,
        read_nearest(job, "distances", start, stop),
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
        heads, in_weights = (start + head[order]).astype(tail.dtype), weights[head, slot][order]
        for name, values in (("in_rows", tail), ("in_heads", heads), ("in_weights", in_weights)):
            out.write(name, values, EDGES_PER_RANGE)
        write_sorted_receivers(out, tail // graph.GRAIN_ROWS)


def _sum_in_edges(job: Job, names: list[str]) -> np.ndarray:
    """Add up the edges into each grain of rows, (grains,) int64."""
    in_edge_counts = np.zeros(len(graph.grain_bounds(CellTable(job.run).rows)) - 1, np.int64)
    read = job.run.read_many(GRAPH, [(name, array, 0, None) for name in names for array in ("receivers", "bounds")])
    for grains, bounds in zip(read, read, strict=True):
        in_edge_counts[grains] += np.diff(bounds)
    return in_edge_counts


def sum_in_edges(job: Job, part: str) -> None:
    """Add up the edges into each grain of rows over a range of shards."""
    initial_shards = len(RowRanges.of_size(CellTable(job.run).rows, job.geometry.shard_rows))
    in_edge_counts = _sum_in_edges(job, part_names("directed", initial_shards)[slice(*range_of(part))])
    grains = np.flatnonzero(in_edge_counts)
    with job.run.part(GRAPH, part) as out:
        write_receivers(out, grains, np.append(0, np.cumsum(in_edge_counts[grains])))


def cut_shards(job: Job, part: str) -> None:
    """Cut the rows into shards. A shard has at most the rows, and the edges out and in, that a task may hold."""
    rows, k, max_rows = CellTable(job.run).rows, job.config.neighbors.graph_k, job.geometry.shard_rows
    directed = part_names("directed", len(RowRanges.of_size(rows, max_rows)))
    in_edge_counts = _sum_in_edges(job, parts_to_sum("directed", "into", len(directed)))
    offsets = graph.divide_into_shards(in_edge_counts, rows, k, max_rows, int(MAX_EDGES_PER_NEIGHBOR * k * max_rows))
    edges = np.add.reduceat(in_edge_counts, offsets[:-1] // graph.GRAIN_ROWS) + k * np.diff(offsets)
    with job.run.part(GRAPH, part) as out:
        out.write("offsets", offsets)
        out.attributes |= {"directed": len(directed), "most_edges": int(edges.max())}


def index_edges(job: Job, part: str) -> None:
    """Index the edges out of a range of shards by the shard that they lead to."""
    shards, initial_shards = Graph(job.run).shards, RowRanges.of_size(CellTable(job.run).rows, job.geometry.shard_rows)
    shard_of = np.repeat(np.arange(len(shards)), -(-np.diff(shards.offsets) // graph.GRAIN_ROWS))
    write_receiver_index(job.run, GRAPH, part, part_names("directed", len(initial_shards)), len(shards), shard_of)


def find_repeated_positions(job: Job, part: str) -> None:
    """Find the positions of a block's rows that have duplicates, and sort them by shard."""
    block = number_of(part)
    repeated, times = read_repeated_rows(job.run, block)
    positions = CellTable(job.run).positions(job.run, block)[repeated]
    order = np.argsort(positions)
    with job.run.part(GRAPH, part) as out:
        out.write("positions", positions)
        out.write("sorted_positions", positions[order])
        out.write("sorted_times", times[order])
        write_sorted_receivers(out, np.searchsorted(Graph(job.run).shards.offsets, positions[order], side="right") - 1)


def index_repeated_rows(job: Job, part: str) -> None:
    """Index the rows of a range of blocks that have duplicates by shard."""
    names = part_names("repeated_positions", job.geometry.blocks)
    write_receiver_index(job.run, GRAPH, part, names, len(Graph(job.run).shards))


def _read_repeated(job: Job, shard: int) -> tuple[np.ndarray, np.ndarray]:
    """Collect the rows of a shard that have duplicates, and how often each occurs."""
    rows, times = [np.empty(0, np.int64)], [np.empty(0, job.geometry.index_dtype)]
    if job.config.input.unique:
        names = part_names("repeated_positions", job.geometry.blocks)
        spans = read_received_ranges(job.run, GRAPH, "repeated_index", len(names), shard).tolist()
        arrays = ("sorted_positions", "sorted_times")
        read = job.run.read_many(GRAPH, [(names[block], array, a, b) for block, a, b in spans for array in arrays])
        for block_rows, block_times in zip(read, read, strict=True):
            rows.append(block_rows)
            times.append(block_times)
    order = np.argsort(np.concatenate(rows))
    return np.concatenate(rows)[order], np.concatenate(times)[order]


def unite_edges(job: Job, part: str) -> None:
    """Combine the edges out of and into a shard's rows into the fuzzy union."""
    store, shard = job.run, number_of(part)
    start, stop = RowRanges(store.read(GRAPH, SHARDS, "offsets")).row_range(shard)
    initial_shards = RowRanges.of_size(CellTable(store).rows, job.geometry.shard_rows)
    directed = part_names("directed", len(initial_shards))
    indices = read_nearest(job, "indices", start, stop)
    weights = store.read_from_parts(GRAPH, directed, initial_shards.offsets, "weights", start, stop)
    heads, slot = np.nonzero(weights)
    arrays = {"in_rows": indices.dtype, "in_heads": indices.dtype, "in_weights": np.dtype(np.float32)}
    of_shard = read_received_ranges(store, GRAPH, "edges_index", len(directed), shard).tolist()
    spans = [(directed[sender], low, high) for sender, low, high in of_shard]
    pieces = list(store.read_many(GRAPH, [(name, array, low, high) for array in arrays for name, low, high in spans]))
    in_edges = {
        array: np.concatenate([np.empty(0, dtype), *pieces[number * len(spans) : (number + 1) * len(spans)]])
        for number, (array, dtype) in enumerate(arrays.items())
    }
    del pieces
    indptr, tails, united = graph.fuzzy_union(
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
    repeated, times = _read_repeated(job, shard)
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


def run(context: Context) -> dict:
    """Build the graph; return the facts."""
    store, rows, settings = context.run, CellTable(context.run).rows, context.config.neighbors
    initial_shards = len(RowRanges.of_size(rows, context.geometry.shard_rows))
    sums = part_names("summed", initial_shards)
    context.compute(GRAPH, sum_distances, sums)
    kept_edges, disconnected, missing = (
        sum_fact(store, GRAPH, sums, fact) for fact in ("kept", "disconnected", "missing")
    )
    mean = math.fsum(part for name in sums for part in store.part_facts(GRAPH, name)["distance_sums"]) / (
        rows + kept_edges
    )
    context.compute(GRAPH, weigh_edges, part_names("directed", initial_shards), mean_distance=mean)
    context.sum_in_ranges(GRAPH, sum_in_edges, "directed", "into", initial_shards)
    context.compute(GRAPH, cut_shards, [SHARDS])
    context.compute(GRAPH, index_edges, range_names("edges_index", initial_shards))
    united, max_edges = part_names("united", len(Graph(store).shards)), store.part_facts(GRAPH, SHARDS)["most_edges"]
    what, advice = (
        f"the fullest shard has {max_edges} edges: many rows list the same",
        "a smaller neighbors.n_neighbors",
    )
    context.require_memory(GRAPH, max_edges * EDGE_BYTES, what, f"{advice} in another output")
    if context.config.input.unique:
        blocks = context.geometry.blocks
        context.compute(GRAPH, find_repeated_positions, part_names("repeated_positions", blocks))
        context.compute(GRAPH, index_repeated_rows, range_names("repeated_index", blocks))
    context.compute(GRAPH, unite_edges, united)
    count_components(context)
    facts = {fact: sum_fact(store, GRAPH, united, fact) for fact in ("edges", "isolated", "inside", "in_degree_zero")}
    edges, health = facts["edges"], store.part_facts(GRAPH, GRAPH_FACTS)
    greatest = max(store.part_facts(GRAPH, name)["greatest_in_degree"] for name in united)
    if missing:
        context.log(
            f"graph: {missing} slots of the neighbors' lists are empty; {health['small']} of {health['components']} "
            f"components have fewer than n_neighbors = {settings.n_neighbors} rows, the smallest {health['smallest']}"
        )
    return {
        "edges": edges,
        "isolated": facts["isolated"],
        "edges_inside_shards": facts["inside"] / edges if edges else None,
        "components": health["components"],
        **({"components_are_a_bound": True} if health["components_are_a_bound"] else {}),
        "largest_component": health["largest_share"],
        "greatest_in_degree": greatest / settings.graph_k,
        "in_degree_zero": facts["in_degree_zero"],
        "missing": missing,
        "disconnected": disconnected,
    }


def steps_of(geometry: Geometry, unique: bool) -> tuple[Step, ...]:
    """Return the steps of the stage."""
    shards, blocks, ranges = geometry.shards, geometry.blocks, ranges_of(geometry.shards)
    lists, senders, (index_parts, index_spans) = (
        geometry.cells / shards + 1,
        senders_of(shards),
        received_requests(shards),
    )
    repeated_parts, repeated_spans = received_requests(blocks)
    placed = (Step(blocks, 4, 4), indexed(blocks)) if unique else ()
    connected = (
        indexed(shards),
        Step(shards, index_parts + senders + 2, index_spans + 2 * senders + 2),
        Step(ranges, shards + shards / ranges + 1, shards / ranges + 1),
    )
    return (
        Step(shards, lists + 3, lists + 1),
        Step(shards, lists + 3, 2 * lists + 1),
        *summed_steps(shards, 2),
        indexed(shards),
        *placed,
        Step(
            shards,
            lists + index_parts + senders + 5 + unique * (repeated_parts + blocks),
            lists + index_spans + 3 * senders + 4 + unique * (repeated_spans + 2 * blocks),
        ),
        Step(shards, 2, 3),
        *(connected if shards > 1 else ()),
        Step(1, 2 * shards + ranges + 1, shards + ranges + 1),
    )


def project(geometry: Geometry, config: Config, worker_memory: int) -> StageProjection:
    """Project what the stage will take."""
    rows, index_bytes, unique = geometry.rows, geometry.index_dtype.itemsize, config.input.unique
    k, shard_rows = config.neighbors.graph_k, min(geometry.shard_rows, geometry.rows)
    return StageProjection(
        steps=steps_of(geometry, unique),
        shuffled_bytes=rows * (3 * config.neighbors.search_k * (index_bytes + 4) + k * (4 * index_bytes + 16) + 12),
        disk_bytes=rows * (k * (2 * index_bytes + 8) + 4 + unique * (8 + index_bytes))
        + 2 * k * rows * (index_bytes + 4),
        task_bytes=max(
            int(shard_rows * (k * MAX_EDGES_PER_NEIGHBOR * EDGE_BYTES + (config.neighbors.search_k - k) * 16)),
            min(config.task_memory, rows * (index_bytes + 2))
            + 2 * k * shard_rows * index_bytes,  # pieces of components
        ),
        temporary_bytes={"directed": rows * k * (2 * index_bytes + 8), "pieces": rows * 4},
    )


STAGE = Stage(
    GRAPH,
    setting_keys=(
        *("input.unique", "neighbors.n_neighbors", "neighbors.metric", "graph.local_connectivity"),
        *("graph.set_op_mix_ratio", "graph.disconnection_distance", "graph.shard_rows"),
    ),
    reads=(VECTORS, CELLS, NEIGHBORS, AUDIT),
    writes=(
        *("summed", "directed", "into", SHARDS, "edges_index", "repeated_positions", "repeated_index", "united"),
        *("pieces", "tails_index", "joined_pieces", "forest", GRAPH_FACTS),
    ),
    run=run,
    project=project,
    temporary_kinds=dict.fromkeys(
        (
            *("summed", "directed", "into", "edges_index", "repeated_index"),
            *("pieces", "tails_index", "joined_pieces", "forest"),
        ),
        (),
    ),
    version=2,
)
