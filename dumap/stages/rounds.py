"""The layout in rounds of tasks. A task reads a range of shards and the rows to which their edges lead, and steps it.

This module is part of stage layout.
"""

from __future__ import annotations

import zlib
from contextlib import AbstractContextManager
from itertools import pairwise

import numpy as np

from dumap.artifacts.exchange import read_received_ranges, write_answers, write_receiver_index, write_sorted_receivers
from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.artifacts.layout import EpochState, layout_checkpoints, loss_part_name
from dumap.artifacts.part_names import LAYOUT, kind_of, range_name, range_names, range_of, split_evenly
from dumap.artifacts.task_cache import TaskCache
from dumap.kernels import layout
from dumap.kernels.edges import Edges
from dumap.kernels.pool import draw_pool_rows, sort_pool
from dumap.planning.budget import cached_bytes
from dumap.planning.geometry import Geometry
from dumap.planning.steps import Step, indexed, received_requests, senders_of
from dumap.stages import Context, cached_by_unit
from dumap.stages.layout_common import (
    SENT_ROWS_PER_RANGE,
    commit_end,
    ends_interval,
    layout_parameters,
    pack_shards,
    write_state,
)
from dumap.stages.loss import early_stop_epochs, measure_loss, should_stop
from dumap.store import Checkpoints

PACKED_EDGES, ANSWERS = "packed", "answers"
"""The parts that hold a shard range's packed edges; and the rows of it that other ranges ask for in each round."""
PREPARED = (PACKED_EDGES, ANSWERS, "requested", "answered")
"""The kinds of parts that are made before the first round."""


def shard_ranges(context: Context, shards: int, tasks: int) -> list[tuple[int, int]]:
    """Cut the shards into ranges, one for each task.

    With `exchange_every` 1 the result does not depend on the ranges. With a larger value, rows of one range see each
    other's new positions at once. Each range is then one shard, so that the result does not depend on the tasks.
    """
    tasks = min(shards, -(-tasks // context.threads) * context.threads)  # so that threads finish together
    if context.config.layout.exchange_every > 1:
        tasks = shards
    return split_evenly(shards, tasks)


def pack_range(job: Job, part: str, bounds: list[int]) -> None:
    """Pack the edges of a shard range; tails number the rows of the range, then the rows outside that edges lead to.

    `bounds` are the first shards of all ranges, and the number of shards: the rows outside are asked of other ranges.
    """
    graph = Graph(job.run)
    first, last = range_of(part)
    edges, spans = pack_shards(job, graph, first, last), graph.shards.offsets[first : last + 1]
    low, high = int(spans[0]), int(spans[-1])
    cuts, outside_positions = edges.indptr[spans - low], np.empty(0, edges.tails.dtype)
    for begin, stop in pairwise(cuts):
        tails = edges.tails[begin:stop]
        outside_positions = np.union1d(outside_positions, tails[(tails < low) | (tails >= high)])
    local = edges.tails.view() if edges.tails.itemsize == 4 else np.empty(len(edges.tails), np.uint32)
    for begin, stop in pairwise(cuts):
        tails = edges.tails[begin:stop]
        is_inside = (tails >= low) & (tails < high)
        local[begin:stop] = np.where(
            is_inside, tails - tails.dtype.type(low), high - low + np.searchsorted(outside_positions, tails)
        )
    with job.run.part(LAYOUT, part) as out:
        for name, values in edges._replace(tails=local)._asdict().items():
            out.write(name, values)
        out.write("outside", outside_positions, SENT_ROWS_PER_RANGE)
        write_sorted_receivers(out, np.searchsorted(graph.shards.offsets[bounds], outside_positions, side="right") - 1)


def index_requests(job: Job, part: str, bounds: list[int]) -> None:
    """Index the rows that a few ranges ask of others."""
    write_receiver_index(job.run, LAYOUT, part, range_part_names(PACKED_EDGES, bounds), len(bounds) - 1)


def answer_requests(job: Job, part: str, bounds: list[int]) -> None:
    """List the rows of a range that others ask of it, one range after the other."""
    number, names = bounds.index(range_of(part)[0]), range_part_names(PACKED_EDGES, bounds)
    requests = read_received_ranges(job.run, LAYOUT, kind_for_ranges("requested", bounds), len(names), number)
    first = Graph(job.run).shards.offsets[bounds[number]]
    read = job.run.read_many(LAYOUT, [(names[asker], "outside", low, high) for asker, low, high in requests.tolist()])
    rows = np.concatenate([np.empty(0, np.int64), *read]).astype(np.int64) - first
    with job.run.part(LAYOUT, part) as out:
        out.write("rows", rows.astype(np.uint32))
        write_answers(out, requests)


def index_answers(job: Job, part: str, bounds: list[int]) -> None:
    """Index the rows that a few ranges send to others."""
    write_receiver_index(job.run, LAYOUT, part, range_part_names(ANSWERS, bounds), len(bounds) - 1)


def kind_for_ranges(kind: str, bounds: list[int]) -> str:
    """Return the kind of parts that hold for these ranges alone: what a range sends depends on how others are cut."""
    return f"{kind}-{zlib.crc32(np.array(bounds, '<i8').tobytes()):08x}"


def range_part_names(kind: str, bounds: list[int]) -> list[str]:
    """Name the parts of a kind, one a range."""
    return [range_name(kind_for_ranges(kind, bounds), first, last) for first, last in pairwise(bounds)]


class PreparedShards:
    """What a task needs of a range of shards in each round, the same in all.

    Attributes
    ----------
    edges : Edges
    outside_positions : ndarray of int64
        Positions outside the range that its edges lead to, ascending.
    sent_rows : ndarray of uint32
        Rows of the range that others ask for.
    outside_ranges : list of [int, int, int]
        The range that sends some of the rows outside, and which of the rows that it sends, in order.
    """

    def __init__(self, job: Job, bounds: list[int], number: int) -> None:
        packed, answers = (range_part_names(kind, bounds)[number] for kind in (PACKED_EDGES, ANSWERS))
        self.edges = Edges(*(job.run.read(LAYOUT, packed, array) for array in Edges._fields))
        self.outside_positions = job.run.read(LAYOUT, packed, "outside").astype(np.int64)
        self.sent_rows = job.run.read(LAYOUT, answers, "rows")
        self.outside_ranges = read_received_ranges(
            job.run, LAYOUT, kind_for_ranges("answered", bounds), len(bounds) - 1, number
        ).tolist()


def cached_shards(job: Job, bounds: list[int], number: int) -> AbstractContextManager[PreparedShards]:
    """Return what a task needs of a range: kept from the last round, or read."""
    names = [range_part_names(kind, bounds)[number] for kind in (PACKED_EDGES, ANSWERS)]
    manifests = [job.run.manifest(LAYOUT, name) for name in names]
    key = (job.run.location, names[0], *(facts["attempt"] for facts in manifests))  # another if it was packed again
    size = sum(size for facts in manifests for size, _ in facts["objects"].values())
    return _cached_shards.use(
        key, cached_bytes(job.config, job.geometry.rows), size, lambda: PreparedShards(job, bounds, number)
    )


_cached_shards: TaskCache[PreparedShards] = TaskCache()
"""Ranges that this process keeps between rounds; `free_caches` frees them."""


def free_caches() -> None:
    """Free the ranges that this process keeps."""
    _cached_shards.clear()


def pool_positions(job: Job, graph: Graph, epoch: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the positions of an epoch's pool, ascending and distinct, and where each row of the pool is in them."""
    occurrences = draw_pool_rows(job.config.layout_seed, epoch, graph.occurrence_offsets[-1])
    unique, inverse = np.unique(graph.positions_of(occurrences), return_inverse=True)
    return unique, inverse


def pools_of_round(job: Job, graph: Graph, epoch: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return `pool_positions` of all epochs of the round that begins at an epoch."""
    until = min(epoch + job.config.layout.exchange_every, job.geometry.n_epochs)
    return [pool_positions(job, graph, t) for t in range(epoch, until)]


class RoundInputs:
    """The coordinates outside a range before a round: what other ranges sent, or else gathered from all shards.

    The tasks of the last round wrote the rows that are needed now. In the first round, and after a restart with other
    ranges, these rows are gathered from all shards.
    """

    def __init__(self, job: Job, graph: Graph, epoch: int, bounds: list[int]) -> None:
        self.job, self.graph, self.state, self.bounds = job, graph, EpochState(job.run, graph, epoch), bounds
        self.pools = pools_of_round(job, graph, epoch)
        pieces = [layout_checkpoints(job.run).piece_name(epoch, *ends) for ends in pairwise(bounds)]
        self.pieces = pieces if epoch and has_sent_rows(job, self.state, pieces) else []

    def read_outside(self, prepared: PreparedShards) -> np.ndarray:
        """Return the coordinates of the rows outside that a range's edges lead to, (n, n_components)."""
        if not self.pieces or not prepared.outside_ranges:
            return self.state.read_at(prepared.outside_positions)
        spans = [(self.pieces[sender], "sent", first, last) for sender, first, last in prepared.outside_ranges]
        return np.concatenate(list(self.job.run.read_many(LAYOUT, spans)))

    def read_sorted_pools(self) -> list[np.ndarray]:
        """Return the pools of the round's epochs, as `sort_pool` returns them."""
        if not self.pieces:
            return [sort_pool(self.state.read_at(unique)[inverse]) for unique, inverse in self.pools]
        cuts = [np.searchsorted(unique, self.graph.shards.offsets[self.bounds]) for unique, _ in self.pools]
        coordinates = [
            np.empty((len(unique), self.job.config.layout.n_components), np.float32) for unique, _ in self.pools
        ]
        for number, rows in enumerate(self.job.run.read_many(LAYOUT, [(p, "pool", 0, None) for p in self.pieces])):
            done = 0
            for out, cut in zip(coordinates, cuts, strict=True):
                low, high = cut[number : number + 2].tolist()
                out[low:high] = rows[done : done + high - low]
                done += high - low
        return [sort_pool(y[inverse]) for y, (_, inverse) in zip(coordinates, self.pools, strict=True)]


def has_sent_rows(job: Job, state: EpochState, pieces: list[str]) -> bool:
    """Return whether a checkpoint has these pieces, and they hold what ranges send."""
    return state.checkpoints.pieces(state.epoch) == pieces and all(
        "sent" in job.run.manifest(LAYOUT, piece)["arrays"] for piece in pieces
    )


def is_durable(job: Job, epoch: int) -> bool:
    """Return whether a round's checkpoint is durable: once every `layout.checkpoint_every` epochs, and where the layout
    may stop early.
    """
    return ends_interval(job, epoch, job.config.layout.exchange_every) or epoch in early_stop_epochs(job)


def _shards_of(piece: str) -> tuple[int, int]:
    """Return the shard range in a piece's name."""
    return Checkpoints.parse_piece_name(piece)[1:]


@cached_by_unit(_shards_of)
def run_round(job: Job, part: str, epoch: int, bounds: list[int]) -> None:
    """Run a shard range from epoch `epoch` up to the epoch in the part's name; rows outside stay where they were.

    It also writes what the next round's tasks ask of it: rows that their edges lead to, and rows of its pools.
    """
    graph = Graph(job.run)
    until, *shard_range = Checkpoints.parse_piece_name(part)
    before, parameters = RoundInputs(job, graph, epoch, bounds), layout_parameters(job)
    low, high = graph.shards.offsets[shard_range].tolist()
    with cached_shards(job, bounds, bounds.index(shard_range[0])) as prepared:
        y, (m, v), rows = before.state.read_shards(*shard_range), before.state.read_moments(*shard_range), high - low
        y = np.concatenate([y, before.read_outside(prepared)]) if len(prepared.outside_positions) else y
        exchanged, after = y[:rows].copy() if job.config.layout.exchange_every > 1 else None, np.empty_like(m)
        for t, pool in enumerate(before.read_sorted_pools(), epoch):
            layout.step_epoch(parameters, t, 0, rows, low, 0, prepared.edges, y, m, v, pool, after, exchanged)
            y[:rows] = after
        sent_rows = after[prepared.sent_rows] if until < job.geometry.n_epochs else after[:0]
    pool_rows = [unique[(unique >= low) & (unique < high)] - low for unique, _ in pools_of_round(job, graph, until)]
    pool = after[np.concatenate([np.empty(0, np.int64), *pool_rows])]
    write_state(job, part, after, m, v, is_durable(job, until), {"sent": sent_rows, "pool": pool})


def run_in_rounds(context: Context, graph: Graph, tasks: int) -> None:
    """Run the epochs in rounds of `exchange_every` epochs, each of at least `tasks` tasks."""
    epochs, every = context.geometry.n_epochs, context.config.layout.exchange_every
    ranges, check_epochs = shard_ranges(context, len(graph.shards), tasks), early_stop_epochs(context.job)
    checkpoints = layout_checkpoints(context.run)

    def measure(epoch: int) -> None:
        if epoch and (ends_interval(context.job, epoch, every) or epoch in check_epochs):
            context.compute(LAYOUT, measure_loss, [loss_part_name(epoch)], progress=(epoch, epochs))

    bounds = [first for first, _ in ranges] + [len(graph.shards)]
    prepare_ranges(context, bounds, (0, epochs))
    begin = checkpoints.latest(epochs)
    with checkpoints.background_removal(begin):
        for epoch in range(begin, epochs, every):
            measure(epoch)
            if should_stop(context.job, epoch):
                break
            until = min(epoch + every, epochs)
            pieces = [checkpoints.piece_name(until, *shard_range) for shard_range in ranges]
            context.compute(LAYOUT, run_round, pieces, epoch=epoch, bounds=bounds, progress=(epoch, epochs))
            is_checkpoint_durable = is_durable(context.job, until) and all(
                context.run.part_facts(LAYOUT, name)["durable"] for name in pieces
            )
            checkpoints.commit(until, pieces, graph.shards.offsets, is_checkpoint_durable)
    measure(checkpoints.latest())
    commit_end(context.job, checkpoints.latest())
    made = context.run.committed_parts(LAYOUT)
    context.run.delete_parts(LAYOUT, [part for part in made if kind_of(part) in PREPARED])


def prepare_ranges(context: Context, bounds: list[int], progress: tuple[float, float]) -> None:
    """Pack the edges of all ranges, and list what each sends to others in every round."""
    tasks = len(bounds) - 1
    packed, answers = (range_part_names(kind, bounds) for kind in (PACKED_EDGES, ANSWERS))
    requested, answered = (range_names(kind_for_ranges(kind, bounds), tasks) for kind in ("requested", "answered"))
    others = set(context.run.committed_parts(LAYOUT)) - {*packed, *answers, *requested, *answered}
    context.run.delete_parts(LAYOUT, sorted(part for part in others if kind_of(part) in PREPARED))  # of other ranges
    context.compute(LAYOUT, pack_range, packed, bounds=bounds, progress=progress)
    context.compute(LAYOUT, index_requests, requested, bounds=bounds, progress=progress)
    context.compute(LAYOUT, answer_requests, answers, bounds=bounds, progress=progress)
    context.compute(LAYOUT, index_answers, answered, bounds=bounds, progress=progress)


def round_steps(geometry: Geometry, tasks: int, rounds: int, measured: int) -> tuple[Step, ...]:
    """Return the steps of a layout in rounds of so many tasks, which measures its loss so many times."""
    shards, senders, (index_parts, index_spans) = geometry.shards, senders_of(tasks), received_requests(tasks)
    return (
        Step(1, shards + 2, 3 * shards),
        Step(tasks, shards + 1, 3 * shards / tasks + 1),
        indexed(tasks),
        Step(tasks, index_parts + senders + 1, index_spans + senders + 1),
        indexed(tasks),
        Step(tasks * rounds, tasks + index_parts + 6, tasks + senders + index_spans + 11, 0, rounds),
        Step(rounds, 2, 0, 0, 4 * rounds),
        Step(measured, tasks + 3, shards + 3, 0, measured),
    )
