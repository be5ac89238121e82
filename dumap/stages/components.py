"""The connected components of the graph, a task a shard. Part of stage graph.

Each shard numbers the pieces in which its own edges connect its rows, and sends what its other edges lead to. Each
then says which pieces are connected. These pairs are reduced in ranges of shards, and at last as a whole.
"""

from __future__ import annotations

import numpy as np

from dumap.artifacts.exchange import read_received_ranges, write_receiver_index, write_sorted_receivers
from dumap.artifacts.graph import GRAPH_FACTS, Graph
from dumap.artifacts.job import Job
from dumap.artifacts.part_names import GRAPH, number_of, part_names, range_names, range_of
from dumap.kernels import graph
from dumap.stages import Context

PIECE_BYTES = 64
"""Bytes of a piece while components are counted."""


def number_pieces(job: Job, part: str) -> None:
    """Number the pieces of a shard; write which rows of later shards each leads to."""
    shard, whole_graph = number_of(part), Graph(job.run)
    first, stop = whole_graph.shards.row_range(shard)
    indptr, tails = (job.run.read(GRAPH, whole_graph.names[shard], array) for array in ("indptr", "tails"))
    labels = graph.find_components(indptr, np.where((tails >= first) & (tails < stop), tails - first, -1))
    count, later = int(labels.max(initial=-1)) + 1, tails >= stop
    heads = np.repeat(labels, np.diff(indptr))[later].astype(np.int64)
    pairs = np.unique(tails[later].astype(np.int64) * count + heads)  # the other direction is the later shard's
    with job.run.part(GRAPH, part) as out:
        out.write("labels", labels)
        out.write("sizes", np.bincount(labels, minlength=count))
        out.write("tails", pairs // max(1, count))
        out.write("heads", pairs % max(1, count))
        write_sorted_receivers(
            out, np.searchsorted(whole_graph.shards.offsets, pairs // max(1, count), side="right") - 1
        )
        out.attributes["pieces"] = count


def index_tails(job: Job, part: str) -> None:
    """Index what a range of shards leads to."""
    count = len(Graph(job.run).shards)
    write_receiver_index(job.run, GRAPH, part, part_names("pieces", count), count)


def find_joined_pieces(job: Job, part: str) -> None:
    """Say which pieces of a shard are connected with pieces of earlier shards."""
    store, shard, whole_graph = job.run, number_of(part), Graph(job.run)
    names, first = part_names("pieces", len(whole_graph.shards)), whole_graph.shards.row_range(shard)[0]
    labels, joined_pairs = store.read(GRAPH, names[shard], "labels"), [np.empty((0, 3), np.int64)]
    spans = read_received_ranges(store, GRAPH, "tails_index", len(names), shard).tolist()
    read = store.read_many(GRAPH, [(names[s], array, a, b) for s, a, b in spans for array in ("tails", "heads")])
    for (sender, *_), tails, heads in zip(spans, read, read, strict=True):
        triples = np.stack([labels[tails - first], np.full(len(tails), sender), heads], axis=1)
        joined_pairs.append(np.unique(triples, axis=0))
    with store.part(GRAPH, part) as out:
        out.write("pairs", np.concatenate(joined_pairs))


def piece_offsets(job: Job) -> np.ndarray:
    """Return the number of each shard's first piece among all, (shards + 1,)."""
    names = part_names("pieces", len(Graph(job.run).shards))
    return np.cumsum([0, *(facts["pieces"] for facts in job.run.facts_of_parts(GRAPH, names))])


def reduce_joined_pieces(job: Job, part: str) -> None:
    """Reduce the pairs of a range of shards: each piece with one of those that it is connected with."""
    first, last = range_of(part)
    offsets, pairs = piece_offsets(job), [np.empty((0, 2), np.int64)]
    names = part_names("joined_pieces", len(offsets) - 1)[first:last]
    for shard, triples in enumerate(job.run.read_many(GRAPH, [(name, "pairs", 0, None) for name in names]), first):
        pairs.append(np.stack([offsets[shard] + triples[:, 0], offsets[triples[:, 1]] + triples[:, 2]], axis=1))
    with job.run.part(GRAPH, part) as out:
        out.write("pairs", graph.spanning_forest(np.concatenate(pairs)))


def measure_components(job: Job, part: str) -> None:
    """Count the components; where the pieces are more than a task may hold, they are a bound of them."""
    store, whole_graph = job.run, Graph(job.run)
    names, offsets = part_names("pieces", len(whole_graph.names)), piece_offsets(job)
    is_bound = int(offsets[-1]) * PIECE_BYTES > job.config.task_memory
    sizes = np.concatenate(list(store.read_many(GRAPH, [(name, "sizes", 0, None) for name in names])))
    if not is_bound and len(names) > 1:
        ranges = [(name, "pairs", 0, None) for name in range_names("forest", len(names))]
        pairs = np.concatenate(list(store.read_many(GRAPH, ranges)))
        sizes = graph.component_sizes(pairs, sizes)
    with store.part(GRAPH, part) as out:
        out.attributes |= {
            "components": len(sizes),
            "components_are_a_bound": is_bound,
            "largest_share": int(sizes.max()) / whole_graph.shards.rows,
            "smallest": int(sizes.min()),
            "small": int((sizes < job.config.neighbors.n_neighbors).sum()),
            "occurrence_offsets": np.cumsum(
                [0, *(facts["occurrences"] for facts in store.facts_of_parts(GRAPH, whole_graph.names))]
            ).tolist(),
        }


def count_components(context: Context) -> None:
    """Count the components of the united graph."""
    shards = len(Graph(context.run).shards)
    context.compute(GRAPH, number_pieces, part_names("pieces", shards))
    if shards > 1:
        context.compute(GRAPH, index_tails, range_names("tails_index", shards))
        context.compute(GRAPH, find_joined_pieces, part_names("joined_pieces", shards))
        context.compute(GRAPH, reduce_joined_pieces, range_names("forest", shards))
    context.compute(GRAPH, measure_components, [GRAPH_FACTS])
