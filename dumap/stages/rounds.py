"""The layout in rounds of tasks: each reads its shards and the rows they touch, and takes them some epochs further.

Part of stage layout.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from itertools import pairwise

import numpy as np

from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.artifacts.kept import Kept
from dumap.artifacts.layout import Generation, generations, loss_name
from dumap.artifacts.parts import LAYOUT, evenly, range_of, ranged
from dumap.kernels import layout
from dumap.kernels.edges import Edges
from dumap.kernels.pool import lay_pool, pool_rows
from dumap.planning.budget import kept_bytes
from dumap.stages import Context
from dumap.stages.descent import end, is_checkpoint, layout_parameters, pack_shards, write_piece
from dumap.stages.loss import has_settled, judged, measure_loss
from dumap.store import Series

PACKED = "packed"
"""The parts that hold units' edges, packed."""


_packed: Kept[tuple[Edges, np.ndarray]] = Kept()
"""What this process read of edges, so that a round need not read them again; `let_go` ends it."""


def units_of(context: Context, shards: int, tasks: int) -> list[tuple[int, int]]:
    """Cut shards into units, one a task, whose rows see each other move.

    A unit is any range of shards where every epoch is exchanged, which then does not depend on units, and a shard
    otherwise.
    """
    tasks = min(shards, -(-tasks // context.threads) * context.threads)  # so that threads end together
    if context.config.layout.exchange_every > 1:
        tasks = shards
    return evenly(shards, tasks)


def pack_unit(job: Job, part: str) -> None:
    """Pack a unit's edges, with tails counted within its rows, then within the rows that it touches outside."""
    graph = Graph(job.run)
    first, last = range_of(part)
    edges, spans = pack_shards(job, graph, first, last), graph.shards.offsets[first : last + 1]
    low, high = int(spans[0]), int(spans[-1])
    cuts, outside = edges.indptr[spans - low], np.empty(0, edges.tails.dtype)
    for begin, stop in pairwise(cuts):
        tails = edges.tails[begin:stop]
        outside = np.union1d(outside, tails[(tails < low) | (tails >= high)])
    local = edges.tails.view() if edges.tails.itemsize == 4 else np.empty(len(edges.tails), np.uint32)
    for begin, stop in pairwise(cuts):
        tails = edges.tails[begin:stop]
        inside = (tails >= low) & (tails < high)
        local[begin:stop] = np.where(
            inside, tails - tails.dtype.type(low), high - low + np.searchsorted(outside, tails)
        )
    with job.run.part(LAYOUT, part) as out:
        for name, values in edges._replace(tails=local)._asdict().items():
            out.write(name, values)
        out.write("outside", outside)


def unit_edges(job: Job, unit: tuple[int, int]) -> AbstractContextManager[tuple[Edges, np.ndarray]]:
    """Hold the packed edges of a unit, and the positions that they touch outside, read or kept from a round before."""
    name = ranged(PACKED, *unit)
    manifest = job.run.manifest(LAYOUT, name)

    def read() -> tuple[Edges, np.ndarray]:
        edges = Edges(*(job.run.read(LAYOUT, name, array) for array in Edges._fields))
        return edges, job.run.read(LAYOUT, name, "outside").astype(np.int64)

    key = (job.run.location, name, manifest["attempt"])  # which is another where the unit was packed anew
    size = sum(size for size, _ in manifest["objects"].values())
    return _packed.use(key, kept_bytes(job.config, job.geometry.rows), size, read)


def let_go() -> None:
    """Free what this process keeps of edges between rounds."""
    _packed.let_go()


def pool_of(before: Generation, seed: int, epoch: int) -> np.ndarray:
    """Return the pool of negatives of an epoch, of coordinates before it."""
    places = pool_rows(seed, epoch, before.graph.places[-1])
    unique, place = np.unique(before.graph.rows_at(places), return_inverse=True)
    return lay_pool(before.gather(unique)[place])


def lasts(job: Job, epoch: int) -> bool:
    """Tell whether a round's generation is to survive the loss of a machine: at checkpoints, and where it may end."""
    return is_checkpoint(job, epoch, job.config.layout.exchange_every) or epoch in judged(job)


def step(job: Job, part: str, epoch: int) -> None:
    """Take a unit from generation `epoch` to the part's; rows outside stay where they were."""
    graph = Graph(job.run)
    until, *unit = Series.place(part)
    before, parameters = Generation(job.run, graph, epoch), layout_parameters(job)
    low, high = graph.shards.offsets[unit].tolist()
    with unit_edges(job, (unit[0], unit[1])) as (edges, outside):
        y, (m, v), rows = before.span(*unit), before.moments(*unit), high - low
        y = np.concatenate([y, before.gather(outside)]) if len(outside) else y
        exchanged, after = y[:rows].copy() if job.config.layout.exchange_every > 1 else None, np.empty_like(m)
        for t in range(epoch, until):
            pool = pool_of(before, parameters.seed, t)
            layout.step_epoch(parameters, t, 0, rows, low, 0, edges, y, m, v, pool, after, exchanged)
            y[:rows] = after
    write_piece(job, part, after, m, v, lasts(job, until))


def in_rounds(context: Context, graph: Graph, tasks: int) -> None:
    """Run the epochs, `exchange_every` of them a round, in at least so many tasks a round."""
    epochs, every = context.geometry.n_epochs, context.config.layout.exchange_every
    units, judgements = units_of(context, len(graph.shards), tasks), judged(context.job)
    series = generations(context.run)

    def measure(epoch: int) -> None:
        if epoch and (is_checkpoint(context.job, epoch, every) or epoch in judgements):
            context.compute(LAYOUT, measure_loss, [loss_name(epoch)], progress=(epoch, epochs))

    context.compute(LAYOUT, pack_unit, [ranged(PACKED, *unit) for unit in units], progress=(0, epochs))
    for epoch in range(series.latest(epochs), epochs, every):
        measure(epoch)
        if has_settled(context.job, epoch):
            break
        until = min(epoch + every, epochs)
        pieces = [series.piece_name(until, *unit) for unit in units]
        context.compute(LAYOUT, step, pieces, epoch=epoch, progress=(epoch, epochs))
        durable = lasts(context.job, until) and all(context.run.summary(LAYOUT, name)["durable"] for name in pieces)
        series.commit(until, pieces, graph.shards.offsets, durable)
    measure(series.latest())
    end(context.job, series.latest())
    for part in context.run.committed(LAYOUT):
        if part.startswith(PACKED):
            context.run.discard(LAYOUT, part)
