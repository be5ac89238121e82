"""The layout in rounds of tasks. A task reads a range of shards and the rows to which their edges lead, and steps it.

This module is part of stage layout.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from itertools import pairwise

import numpy as np

from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.artifacts.layout import EpochState, layout_checkpoints, loss_name
from dumap.artifacts.part_names import LAYOUT, range_name, range_of, split_evenly
from dumap.artifacts.task_cache import TaskCache
from dumap.kernels import layout
from dumap.kernels.edges import Edges
from dumap.kernels.pool import lay_pool, pool_rows
from dumap.planning.budget import cached_bytes
from dumap.stages import Context
from dumap.stages.layout_common import end, ends_interval, layout_parameters, pack_shards, write_piece
from dumap.stages.loss import early_stop_epochs, measure_loss, should_stop
from dumap.store import Checkpoints

PACKED_EDGES = "packed"
"""The parts that hold the packed edges of shard ranges."""


_packed: TaskCache[tuple[Edges, np.ndarray]] = TaskCache()
"""Packed edges that this process keeps between rounds. `free_caches` frees them."""


def shard_ranges(context: Context, shards: int, tasks: int) -> list[tuple[int, int]]:
    """Cut the shards into ranges, one for each task.

    With `exchange_every` 1 the result does not depend on the ranges. With a larger value, rows of one range see each
    other move within a round, so each range must be one shard.
    """
    tasks = min(shards, -(-tasks // context.threads) * context.threads)  # so that threads finish together
    if context.config.layout.exchange_every > 1:
        tasks = shards
    return split_evenly(shards, tasks)


def pack_range(job: Job, part: str) -> None:
    """Pack the edges of a shard range. Tails number the rows of the range, then the rows outside to which edges
    lead.
    """
    graph = Graph(job.run)
    first, last = range_of(part)
    edges, spans = pack_shards(job, graph, first, last), graph.shards.offsets[first : last + 1]
    low, high = int(spans[0]), int(spans[-1])
    bounds, outside = edges.indptr[spans - low], np.empty(0, edges.tails.dtype)
    for begin, stop in pairwise(bounds):
        tails = edges.tails[begin:stop]
        outside = np.union1d(outside, tails[(tails < low) | (tails >= high)])
    local = edges.tails.view() if edges.tails.itemsize == 4 else np.empty(len(edges.tails), np.uint32)
    for begin, stop in pairwise(bounds):
        tails = edges.tails[begin:stop]
        inside = (tails >= low) & (tails < high)
        local[begin:stop] = np.where(
            inside, tails - tails.dtype.type(low), high - low + np.searchsorted(outside, tails)
        )
    with job.run.part(LAYOUT, part) as out:
        for name, values in edges._replace(tails=local)._asdict().items():
            out.write(name, values)
        out.write("outside", outside)


def range_edges(job: Job, shard_range: tuple[int, int]) -> AbstractContextManager[tuple[Edges, np.ndarray]]:
    """Return a range's packed edges and the positions outside to which they lead, from the cache or from the run."""
    name = range_name(PACKED_EDGES, *shard_range)
    manifest = job.run.manifest(LAYOUT, name)

    def read() -> tuple[Edges, np.ndarray]:
        edges = Edges(*(job.run.read(LAYOUT, name, array) for array in Edges._fields))
        return edges, job.run.read(LAYOUT, name, "outside").astype(np.int64)

    key = (job.run.location, name, manifest["attempt"])  # the attempt changes if the edges are packed again
    size = sum(size for size, _ in manifest["objects"].values())
    return _packed.use(key, cached_bytes(job.config, job.geometry.rows), size, read)


def free_caches() -> None:
    """Free the packed edges that this process keeps."""
    _packed.clear()


def pool_of(before: EpochState, seed: int, epoch: int) -> np.ndarray:
    """Return the pool of an epoch, from the coordinates before the epoch."""
    occurrences = pool_rows(seed, epoch, before.graph.occurrence_offsets[-1])
    unique, inverse = np.unique(before.graph.rows_at(occurrences), return_inverse=True)
    return lay_pool(before.gather(unique)[inverse])


def is_durable(job: Job, epoch: int) -> bool:
    """Return whether a round's checkpoint is durable: once every `layout.checkpoint_every` epochs, and where the layout
    may stop early.
    """
    return ends_interval(job, epoch, job.config.layout.exchange_every) or epoch in early_stop_epochs(job)


def step(job: Job, part: str, epoch: int) -> None:
    """Run a shard range from `epoch` to the epoch in the part's name. Rows outside keep their coordinates."""
    graph = Graph(job.run)
    until, *shard_range = Checkpoints.parse_piece_name(part)
    before, parameters = EpochState(job.run, graph, epoch), layout_parameters(job)
    low, high = graph.shards.offsets[shard_range].tolist()
    with range_edges(job, (shard_range[0], shard_range[1])) as (edges, outside):
        y, (m, v), rows = before.span(*shard_range), before.moments(*shard_range), high - low
        y = np.concatenate([y, before.gather(outside)]) if len(outside) else y
        exchanged, after = y[:rows].copy() if job.config.layout.exchange_every > 1 else None, np.empty_like(m)
        for t in range(epoch, until):
            pool = pool_of(before, parameters.seed, t)
            layout.step_epoch(parameters, t, 0, rows, low, 0, edges, y, m, v, pool, after, exchanged)
            y[:rows] = after
    write_piece(job, part, after, m, v, is_durable(job, until))


def in_rounds(context: Context, graph: Graph, tasks: int) -> None:
    """Run the epochs in rounds of `exchange_every` epochs, each of at least `tasks` tasks."""
    epochs, every = context.geometry.n_epochs, context.config.layout.exchange_every
    ranges, check_epochs = shard_ranges(context, len(graph.shards), tasks), early_stop_epochs(context.job)
    checkpoints = layout_checkpoints(context.run)

    def measure(epoch: int) -> None:
        if epoch and (ends_interval(context.job, epoch, every) or epoch in check_epochs):
            context.compute(LAYOUT, measure_loss, [loss_name(epoch)], progress=(epoch, epochs))

    context.compute(
        LAYOUT, pack_range, [range_name(PACKED_EDGES, *shard_range) for shard_range in ranges], progress=(0, epochs)
    )
    for epoch in range(checkpoints.latest(epochs), epochs, every):
        measure(epoch)
        if should_stop(context.job, epoch):
            break
        until = min(epoch + every, epochs)
        pieces = [checkpoints.piece_name(until, *shard_range) for shard_range in ranges]
        context.compute(LAYOUT, step, pieces, epoch=epoch, progress=(epoch, epochs))
        durable = is_durable(context.job, until) and all(
            context.run.summary(LAYOUT, name)["durable"] for name in pieces
        )
        checkpoints.commit(until, pieces, graph.shards.offsets, durable)
    measure(checkpoints.latest())
    end(context.job, checkpoints.latest())
    for part in context.run.committed(LAYOUT):
        if part.startswith(PACKED_EDGES):
            context.run.discard(LAYOUT, part)
