"""graph: directed memberships by shard, sorted by where they lead, united to one symmetric graph, and its health."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from dumap.config import Config
from dumap.kernels import graph
from dumap.planning.geometry import EDGE_BYTES, SHARD_EDGES
from dumap.stages import Context, Job, number_of, numbered, total
from dumap.stages.cells import Table
from dumap.stages.neighbors import Lists
from dumap.stages.vectors import repeated_in
from dumap.store import Run

STAGE = "graph"
WHOLE = "whole"
"""The part that says what all shards together come to."""
DISCONNECTION_DISTANCES = {"correlation": 2.0, "cosine": 2.0, "hellinger": 1.0, "jaccard": 1.0, "dice": 1.0}
"""umap-learn's: at this distance rows have nothing in common."""


def disconnection_distance(config: Config) -> float:
    """Return the distance from which on neighbours are cut off."""
    if config.graph.disconnection_distance is not None:
        return config.graph.disconnection_distance
    return DISCONNECTION_DISTANCES.get(config.neighbors.metric, math.inf)


SHARDS = "shards"
"""The part that says where the shards of the united graph begin."""


class Shards:
    """Ranges of positions, (shards + 1,) `offsets`."""

    def __init__(self, offsets: np.ndarray) -> None:
        self.offsets, self.rows = offsets, int(offsets[-1])

    @classmethod
    def even(cls, rows: int, shard_rows: int) -> Shards:
        """Cut rows into ranges, all but the last of the same size."""
        return cls(np.minimum(np.arange(math.ceil(rows / shard_rows) + 1) * shard_rows, rows))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def span(self, shard: int) -> tuple[int, int]:
        """Return the positions [start, stop) of a shard."""
        return int(self.offsets[shard]), int(self.offsets[shard + 1])


def nearest(job: Job, array: str, start: int, stop: int) -> np.ndarray:
    """Read 'indices' or 'distances' of the neighbours that the graph takes of the lists of positions [start, stop)."""
    return Lists(job.run).read(array, start, stop)[:, : job.config.neighbors.others]


def sum_up(job: Job, part: str) -> None:
    """Add up the distances of a shard's rows to their neighbours, those that are missing or cut off left out."""
    shards = Shards.even(Table(job.run).rows, job.geometry.shard_rows)
    distances = nearest(job, "distances", *shards.span(number_of(part)))
    found = np.isfinite(distances)
    kept = found & (distances < disconnection_distance(job.config))
    with job.run.part(STAGE, part) as out:
        out.attributes |= {
            "distance_sum": float(np.sum(distances[kept], dtype=np.float64)),
            "kept": int(kept.sum()),
            "disconnected": int(found.sum() - kept.sum()),
            "missing": int((~found).sum()),
        }


def direct(job: Job, part: str, mean_distance: float) -> None:
    """Weigh the edges out of a shard's rows, and sort them by the shard they lead to."""
    rows = Table(job.run).rows
    start, stop = Shards.even(rows, job.geometry.shard_rows).span(number_of(part))
    indices = nearest(job, "indices", start, stop)
    rho, sigma, weights = graph.memberships(
        indices,
        nearest(job, "distances", start, stop),
        mean_distance,
        job.config.graph.local_connectivity,
        disconnection_distance(job.config),
    )
    head, slot = np.nonzero(indices >= 0)  # those without weight too: they count as in-degrees
    tail = indices[head, slot]
    order = np.argsort(tail, kind="stable")
    tail = tail[order]
    with job.run.part(STAGE, part) as out:
        out.write("rho", rho)
        out.write("sigma", sigma)
        out.write("weights", weights)
        out.write("back_heads", tail)
        out.write("back_tails", (start + head[order]).astype(tail.dtype))
        out.write("back_weights", weights[head, slot][order])
        out.write("back_offsets", np.searchsorted(tail, graph.grains(rows)))


def cut_shards(job: Job, part: str) -> None:
    """Cut the rows into shards of no more rows than a task may hold, nor, by what leads into them, more edges."""
    rows, k, most = Table(job.run).rows, job.config.neighbors.others, job.geometry.shard_rows
    directed = numbered("directed", len(Shards.even(rows, most)))
    into = sum(np.diff(job.run.read(STAGE, name, "back_offsets")) for name in directed)
    offsets = graph.cut_shards(np.asarray(into), rows, k, most, int(SHARD_EDGES * k * most))
    edges = np.add.reduceat(into, offsets[:-1] // graph.GRAIN_ROWS) + k * np.diff(offsets)
    with job.run.part(STAGE, part) as out:
        out.write("offsets", offsets)
        out.attributes |= {"directed": len(directed), "most_edges": int(edges.max())}


def place_block(job: Job, part: str) -> None:
    """Find the positions of a block's rows that have copies."""
    block = number_of(part)
    repeated, times = repeated_in(job.run, block)
    with job.run.part(STAGE, part) as out:
        out.write("positions", Table(job.run).positions(job.run, block)[repeated])
        out.write("times", times)
        out.attributes["repeated"] = len(repeated)


def placed_in(run: Run, block: int) -> np.ndarray:
    """Return the positions of a block's rows that have copies, in the order of rows."""
    return run.read(STAGE, numbered("placed", block + 1)[-1], "positions")


def _repeated(job: Job, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
    """Collect which rows of positions [start, stop) have copies, and how many places they take."""
    rows, times = [np.empty(0, np.int64)], [np.empty(0, job.geometry.index_dtype)]
    for name in numbered("placed", job.geometry.blocks) if job.config.input.unique else []:
        if job.run.summary(STAGE, name)["repeated"]:
            positions = job.run.read(STAGE, name, "positions")
            own = (positions >= start) & (positions < stop)
            rows.append(positions[own])
            times.append(job.run.read(STAGE, name, "times")[own])
    order = np.argsort(np.concatenate(rows))
    return np.concatenate(rows)[order], np.concatenate(times)[order]


def unite(job: Job, part: str) -> None:
    """Unite the edges out of and into a shard's rows."""
    store = job.run
    start, stop = Shards(store.read(STAGE, SHARDS, "offsets")).span(number_of(part))
    even = Shards.even(Table(store).rows, job.geometry.shard_rows)
    directed = numbered("directed", len(even))
    indices = nearest(job, "indices", start, stop)
    weights = store.read_span(STAGE, directed, even.offsets, "weights", start, stop)
    heads, slot = np.nonzero(weights)
    back: dict[str, list[np.ndarray]] = {"back_heads": [], "back_tails": [], "back_weights": []}
    for name in directed:
        first, last = start // graph.GRAIN_ROWS, -(-stop // graph.GRAIN_ROWS)
        low, high = (int(store.read(STAGE, name, "back_offsets", at, at + 1)[0]) for at in (first, last))
        if high > low:
            for array, pieces in back.items():
                pieces.append(store.read(STAGE, name, array, low, high))
    empty = {"back_weights": np.empty(0, np.float32)}
    joined = {
        array: np.concatenate(pieces) if pieces else empty.get(array, np.empty(0, indices.dtype))
        for array, pieces in back.items()
    }
    indptr, tails, united = graph.union(
        stop - start,
        heads,
        indices[heads, slot],
        weights[heads, slot],
        joined["back_heads"] - start,
        joined["back_tails"],
        joined["back_weights"],
        job.config.graph.set_op_mix_ratio,
    )
    isolated = np.flatnonzero(np.diff(indptr) == 0) + start
    degrees = np.bincount(joined["back_heads"] - start, minlength=stop - start)
    repeated, times = _repeated(job, start, stop)
    with store.part(STAGE, part) as out:
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
            "places": stop - start + int((times - 1).sum(dtype=np.int64)),
        }


def measure(job: Job, part: str) -> None:
    """Find what the graph connects, in one task: a number a row, and one shard's edges at a time."""
    whole = Graph(job.run)
    sets = np.full(whole.shards.rows, -1, job.geometry.index_dtype)
    for shard, name in enumerate(whole.names):
        indptr, tails = (job.run.read(STAGE, name, array) for array in ("indptr", "tails"))
        graph.connect(indptr, tails, whole.shards.span(shard)[0], sets)
        job.tick(shard + 1, len(whole.names))
    sizes = -sets[sets < 0]
    with job.run.part(STAGE, part) as out:
        out.attributes |= {
            "components": len(sizes),
            "largest_share": int(sizes.max()) / len(sets),
            "smallest": int(sizes.min()),
            "small": int((sizes < job.config.neighbors.n_neighbors).sum()),
            "places": np.cumsum([0, *(job.run.summary(STAGE, name)["places"] for name in whole.names)]).tolist(),
        }


class Graph:
    """The united graph, read shard by shard."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.shards = Shards(run.read(STAGE, SHARDS, "offsets"))
        self.names = numbered("united", len(self.shards))

    def read(self, shard: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a shard's indptr, tails (positions) and weights."""
        name = self.names[shard]
        return tuple(self.run.read(STAGE, name, array) for array in ("indptr", "tails", "weights"))  # type: ignore[return-value]

    def isolated(self, shard: int) -> np.ndarray:
        """Return the positions of a shard's rows that have no edge."""
        return self.run.read(STAGE, self.names[shard], "isolated")

    def edges_of(self, first: int, last: int) -> int:
        """Count the edges of shards [first, last), those inside from both their ends."""
        return int(total(self.run, STAGE, self.names[first:last], "edges"))

    @cached_property
    def places(self) -> np.ndarray:
        """Where each shard's places begin, and all end, (shards + 1,): a row takes one for itself and for each copy."""
        return np.array(self.run.summary(STAGE, WHOLE)["places"])

    def repeated(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions in shards [first, last) that have copies, ascending, and how many places they take."""
        found = [
            [self.run.read(STAGE, name, array) for name in self.names[first:last]] for array in ("repeated", "times")
        ]
        return np.concatenate(found[0]), np.concatenate(found[1])

    def rows_at(self, places: np.ndarray) -> np.ndarray:
        """Return the positions of the rows at some places, reading shards one after another."""
        shards = np.searchsorted(self.places, places, side="right") - 1
        starts = self.shards.offsets[shards]
        rows = places - self.places[shards]
        more = np.diff(self.places) > np.diff(self.shards.offsets)
        for shard in np.unique(shards[more[shards]]):
            own, (repeated, times) = shards == shard, self.repeated(shard, shard + 1)
            rows[own] = graph.rows_at(rows[own], repeated - self.shards.offsets[shard], times)
        return rows + starts

    @property
    def greatest(self) -> float:
        """The greatest weight."""
        return float(max(self.run.summary(STAGE, name)["greatest"] for name in self.names))


def run(context: Context) -> dict:
    """Build the graph; return what came out."""
    store, rows, own = context.run, Table(context.run).rows, context.config.neighbors
    even = len(Shards.even(rows, context.geometry.shard_rows))
    summed = numbered("summed", even)
    context.compute(STAGE, sum_up, summed)
    kept, disconnected, missing = (total(store, STAGE, summed, fact) for fact in ("kept", "disconnected", "missing"))
    mean = math.fsum(store.summary(STAGE, name)["distance_sum"] for name in summed) / (rows + kept)
    context.compute(STAGE, direct, numbered("directed", even), mean_distance=mean)
    context.compute(STAGE, cut_shards, [SHARDS])
    united, most = numbered("united", len(Graph(store).shards)), store.summary(STAGE, SHARDS)["most_edges"]
    what, advice = f"the fullest shard has {most} edges: many rows list the same", "a smaller neighbors.n_neighbors"
    context.require(STAGE, most * EDGE_BYTES, what, f"{advice} in another output")
    if context.config.input.unique:
        context.compute(STAGE, place_block, numbered("placed", context.geometry.blocks))
    context.compute(STAGE, unite, united)
    context.compute(STAGE, measure, [WHOLE])
    facts = {fact: total(store, STAGE, united, fact) for fact in ("edges", "isolated", "inside", "in_degree_zero")}
    edges, health = facts["edges"], store.summary(STAGE, WHOLE)
    if missing:
        context.note(
            f"graph: {missing} slots of the neighbors' lists are empty; {health['small']} of {health['components']} "
            f"components have fewer than n_neighbors = {own.n_neighbors} rows, the smallest {health['smallest']}"
        )
    return {
        "edges": edges,
        "isolated": facts["isolated"],
        "edges_inside_shards": facts["inside"] / edges if edges else None,
        "components": health["components"],
        "largest_component": health["largest_share"],
        "greatest_in_degree": max(store.summary(STAGE, name)["greatest_in_degree"] for name in united) / own.others,
        "in_degree_zero": facts["in_degree_zero"],
        "missing": missing,
        "disconnected": disconnected,
    }
