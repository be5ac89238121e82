"""graph: directed memberships by shard, sorted by where they lead, united to one symmetric graph."""

from __future__ import annotations

import math

import numpy as np

from dumap.kernels import graph
from dumap.stages import Context, Job, number_of, numbered, total
from dumap.stages.cells import Table
from dumap.stages.neighbors import Lists, disconnection_distance
from dumap.store import Run

STAGE = "graph"


class Shards:
    """Ranges of positions, all but the last of the same size."""

    def __init__(self, rows: int, shard_rows: int) -> None:
        self.rows = rows
        self.offsets = np.minimum(np.arange(math.ceil(rows / shard_rows) + 1) * shard_rows, rows)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def span(self, shard: int) -> tuple[int, int]:
        """Return the positions [start, stop) of a shard."""
        return int(self.offsets[shard]), int(self.offsets[shard + 1])


def direct(job: Job, part: str, mean_distance: float) -> None:
    """Weigh the edges out of a shard's rows, and sort them by the shard they lead to."""
    lists = Lists(job.run)
    shards = Shards(lists.table.rows, job.geometry.shard_rows)
    start, stop = shards.span(number_of(part))
    indices = lists.read("indices", start, stop)
    rho, sigma, weights = graph.memberships(
        indices,
        lists.read("distances", start, stop),
        mean_distance,
        job.config.graph.local_connectivity,
        disconnection_distance(job.config),
    )
    head, slot = np.nonzero(weights)
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
        out.attributes["back_offsets"] = np.searchsorted(tail, shards.offsets).tolist()


def unite(job: Job, part: str) -> None:
    """Unite the edges out of and into a shard's rows."""
    store, lists, shard = job.run, Lists(job.run), number_of(part)
    shards = Shards(lists.table.rows, job.geometry.shard_rows)
    start, stop = shards.span(shard)
    directed = numbered("directed", len(shards))
    indices = lists.read("indices", start, stop)
    weights = store.read(STAGE, directed[shard], "weights")
    heads, slot = np.nonzero(weights)
    back: dict[str, list[np.ndarray]] = {"back_heads": [], "back_tails": [], "back_weights": []}
    for name in directed:
        low, high = store.summary(STAGE, name)["back_offsets"][shard : shard + 2]
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
    with store.part(STAGE, part) as out:
        out.write("indptr", indptr)
        out.write("tails", tails)
        out.write("weights", united)
        out.write("isolated", isolated)
        out.attributes |= {
            "edges": len(tails),
            "isolated": len(isolated),
            "greatest": float(united.max(initial=0.0)),
            "inside": int(((tails >= start) & (tails < stop)).sum()),
        }


class Graph:
    """The united graph, read shard by shard."""

    def __init__(self, run: Run, shard_rows: int) -> None:
        self.run = run
        self.shards = Shards(Table(run).rows, shard_rows)
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

    @property
    def greatest(self) -> float:
        """The greatest weight."""
        return float(max(self.run.summary(STAGE, name)["greatest"] for name in self.names))


def run(context: Context) -> dict:
    """Build the graph; return what came out."""
    store, lists = context.run, Lists(context.run)
    slots = lists.table.rows * (context.config.neighbors.n_neighbors + 1)
    mean = math.inf if sum(lists.facts("disconnected")) else math.fsum(lists.facts("distance_sum")) / slots
    shards = Shards(lists.table.rows, context.geometry.shard_rows)
    united = numbered("united", len(shards))
    context.compute(STAGE, direct, numbered("directed", len(shards)), mean_distance=mean)
    context.compute(STAGE, unite, united)
    facts = {fact: total(store, STAGE, united, fact) for fact in ("edges", "isolated", "inside")}
    edges = facts["edges"]
    return {
        "edges": edges,
        "isolated": facts["isolated"],
        "edges_inside_shards": facts["inside"] / edges if edges else 0.0,
    }
