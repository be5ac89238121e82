"""layout: gradient descent, generation by generation.

A generation is what the shards' parts of one epoch hold, and counts once its own part is committed. Where one
process can hold all shards, one task runs many epochs on its host's cores; elsewhere every epoch is a round
of tasks, each of which reads its shards and the rows they touch. The bytes are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from itertools import pairwise

import numpy as np

from dumap.artifacts.kept import Kept
from dumap.kernels import hashing, layout
from dumap.kernels.graph import rows_at
from dumap.kernels.layout import Descent, Edges
from dumap.planning.budget import kept_bytes, round_bytes
from dumap.planning.plan import runs_on_one_host
from dumap.stages import Context, Job, descent, evenly, number_of, range_of, ranged, require_finite, writes_more
from dumap.stages.graph import Graph
from dumap.stages.start import Starts
from dumap.store import Run, Series

STAGE = "layout"
SLICES = 8
"""Slices of rows a thread gets in an epoch, so that threads end together."""
END = "end"
"""The part that says after how many epochs the layout ended."""
PACKED = "packed"
"""The parts that hold units' edges, packed."""
JUDGEMENTS = 10
"""Parts of the epochs after each of which the loss may end the layout, where it is told to."""
PAIRS, PAIRS_PART = 20_000, "pairs"
"""Edges, and as many pairs of any rows, on which the loss is measured, and the part that names them."""


def generations(run: Run) -> Series:
    """Return the generations."""
    return Series(run, STAGE, "generation", "epoch")


class Generation:
    """The coordinates after some epochs; 0 is the start."""

    def __init__(self, run: Run, graph: Graph, epoch: int) -> None:
        self.run, self.graph, self.epoch = run, graph, epoch
        self.starts, self.series = Starts(run, len(graph.shards)), generations(run)

    def read(self, shard: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the coordinates of rows [start, stop) of a shard."""
        if self.epoch == 0:
            return self.starts.read(shard, start, stop)
        first, last = self.graph.shards.span(shard)
        return self.series.read(self.epoch, "y", first + start, last if stop is None else first + stop)

    def span(self, first: int, last: int) -> np.ndarray:
        """Return the coordinates of shards [first, last)."""
        return np.concatenate([self.read(shard) for shard in range(first, last)])

    def moments(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Return Adam's moments of shards [first, last), each (rows, n_components)."""
        low, high = self.graph.shards.offsets[[first, last]].tolist()
        if self.epoch:
            return self.series.read(self.epoch, "m", low, high), self.series.read(self.epoch, "v", low, high)
        m = np.zeros((high - low, self.read(0, 0, 0).shape[1]), np.float32)
        return m, m.copy()

    def gather(self, positions: np.ndarray) -> np.ndarray:
        """Return the coordinates of some positions, ascending; of each shard, what they span."""
        if not len(positions):
            return self.read(0, 0, 0)
        offsets = self.graph.shards.offsets
        cuts = np.unique([0, *np.searchsorted(positions, offsets[1:-1]), len(positions)])
        pieces = []
        for low, high in pairwise(cuts.tolist()):
            first, last = int(positions[low]), int(positions[high - 1])
            shard = int(np.searchsorted(offsets, first, side="right")) - 1
            rows = self.read(shard, first - int(offsets[shard]), last + 1 - int(offsets[shard]))
            pieces.append(rows[positions[low:high] - first])
        return np.concatenate(pieces)

    def pool(self, seed: int, epoch: int) -> np.ndarray:
        """Return the pool of negatives of an epoch that follows."""
        places = layout.pool_rows(seed, epoch, self.graph.places[-1])
        unique, place = np.unique(self.graph.rows_at(places), return_inverse=True)
        return layout.lay_pool(self.gather(unique)[place])


def write_piece(job: Job, part: str, y: np.ndarray, m: np.ndarray, v: np.ndarray) -> None:
    """Commit the state of a range of shards."""
    require_finite(job, y, f"layout: after epoch {Series.place(part)[0]}")
    with job.run.part(STAGE, part) as out:
        for name, values in (("y", y), ("m", m), ("v", v)):
            out.write(name, values)


def pack_shards(job: Job, graph: Graph, first: int, last: int) -> Edges:
    """Read the edges of shards [first, last) and pack them, one shard at a time into their final place."""
    greatest, offsets = graph.greatest, graph.shards.offsets
    low, rows = int(offsets[first]), int(offsets[last] - offsets[first])
    room = graph.edges_of(first, last)
    indptr, tails = np.zeros(rows + 1, np.int64), np.empty(room, f"u{job.geometry.index_dtype.itemsize}")
    rates, phases, kept = np.empty(room, np.uint16), np.empty(room, np.uint16), 0
    for shard in range(first, last):
        start, stop = graph.shards.span(shard)
        piece = layout.pack(
            *graph.read(shard), start, greatest, job.geometry.n_epochs, job.config.seed, graph.shards.rows
        )
        indptr[start - low + 1 : stop - low + 1] = kept + piece.indptr[1:]
        after = kept + len(piece.tails)
        tails[kept:after], rates[kept:after], phases[kept:after] = piece[1:]
        kept = after
    return Edges(indptr, tails[:kept], rates[:kept], phases[:kept])


def is_checkpoint(job: Job, epoch: int, steps: int = 1) -> bool:
    """Tell whether one of the last steps to the generation after `epoch` epochs is one after which it is kept."""
    every = job.config.layout.checkpoint_every
    return epoch // every > (epoch - steps) // every or epoch == job.geometry.n_epochs


def judged(job: Job) -> list[int]:
    """List the epochs after which the layout may end early, ten at the most."""
    if not job.config.layout.least_fall:
        return []
    step, every = job.geometry.n_epochs / JUDGEMENTS, job.config.layout.exchange_every
    found = {math.ceil(step * number / every) * every for number in range(1, JUDGEMENTS)}
    return sorted(epoch for epoch in found if epoch < job.geometry.n_epochs)


def has_settled(job: Job, epoch: int) -> bool:
    """Tell whether the loss has fallen too little, after an epoch at which it is judged, since it was judged before."""
    epochs = judged(job)
    if epoch not in epochs[1:]:
        return False
    before, now = (loss_of(job.run, at) for at in (epochs[epochs.index(epoch) - 1], epoch))
    return before is not None and now is not None and now > before * (1 - job.config.layout.least_fall)


def end(job: Job, epoch: int) -> None:
    """Commit that the generation after `epoch` epochs is the last."""
    with job.run.part(STAGE, END) as out:
        out.attributes["epoch"] = epoch


def last_epoch(run: Run) -> int:
    """Return after how many epochs the layout ended."""
    return run.summary(STAGE, END)["epoch"]


def last_generation(run: Run, graph: Graph) -> Generation:
    """Return the generation that is the map."""
    return Generation(run, graph, last_epoch(run))


# the loss ----------------------------------------------------------------------------------------


def draw_pairs(job: Job, part: str) -> None:
    """Choose the edges and the pairs of rows on which the loss is measured, the same for all epochs."""
    graph, seed = Graph(job.run), job.config.seed
    ends = np.cumsum([0, *(graph.edges_of(shard, shard + 1) for shard in range(len(graph.shards)))])
    count = PAIRS if ends[-1] else 0
    bits = hashing.draws(seed, hashing.LOSS, np.arange(2 * count))
    chosen = np.sort((bits[:count] % np.uint64(max(1, ends[-1]))).astype(np.int64))
    heads, tails, weights = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.float32)
    for shard, (low, high) in enumerate(pairwise(np.searchsorted(chosen, ends).tolist())):
        if high > low:
            indptr, all_tails, all_weights = graph.read(shard)
            edges = chosen[low:high] - ends[shard]
            heads[low:high] = np.searchsorted(indptr, edges, side="right") - 1 + graph.shards.span(shard)[0]
            tails[low:high], weights[low:high] = all_tails[edges], all_weights[edges]
    with job.run.part(STAGE, part) as out:
        others = (bits[count:] % np.uint64(graph.places[-1])).astype(np.int64)
        out.write("rows", np.stack([heads, tails, graph.rows_at(others)], axis=1))
        out.write("weights", weights)


def loss_name(epoch: int) -> str:
    """Name the part that tells the loss after `epoch` epochs."""
    return f"loss-{epoch:05d}"


def write_loss(job: Job, epoch: int, gather: Callable[[np.ndarray], np.ndarray]) -> None:
    """Measure the loss on the coordinates that `gather` returns for ascending positions."""
    rows, weights = (job.run.read(STAGE, PAIRS_PART, array) for array in ("rows", "weights"))
    if len(weights):
        unique, places = np.unique(rows, return_inverse=True)
        heads, tails, others = gather(unique)[places.reshape(rows.shape).T]
        with job.run.part(STAGE, loss_name(epoch)) as out:
            out.attributes["loss"] = layout.loss(descent(job), heads, tails, weights, others)


def loss_of(run: Run, epoch: int) -> float | None:
    """Return the loss after so many epochs, if it was measured and is finite; a graph without edges has none."""
    name = loss_name(epoch)
    return run.summary(STAGE, name)["loss"] if run.is_committed(STAGE, name) else None


def measure_loss(job: Job, part: str) -> None:
    """Measure the loss of a committed generation."""
    epoch = number_of(part)
    write_loss(job, epoch, Generation(job.run, Graph(job.run), epoch).gather)


# one process holds all ---------------------------------------------------------------------------


def slices_of(rows: int, count: int) -> list[int]:
    """Cut rows into about so many slices of whole blocks."""
    cuts = np.linspace(0, rows, count + 1).astype(int)
    return [*np.unique(cuts[:-1] // layout.BLOCK * layout.BLOCK).tolist(), rows]


def advance(
    workers: ThreadPoolExecutor,
    cuts: list[int],
    shared: Descent,
    epoch: int,
    edges: Edges,
    y: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    after: np.ndarray,
    drawn: np.ndarray,
) -> None:
    """Write the generation after `y`, all rows of it, slice by slice on threads; `drawn` rows are the pool."""
    pool = layout.lay_pool(y[drawn])
    slices = [
        workers.submit(layout.generation, shared, epoch, low, high, 0, 0, edges, y, m, v, pool, after)
        for low, high in pairwise(cuts)
    ]
    for piece in slices:
        piece.result()


@writes_more
def descend(job: Job, part: str, threads: int) -> None:
    """Run the epochs from the last generation to the end, on this host's cores, and commit checkpoints."""
    graph, epochs = Graph(job.run), job.geometry.n_epochs
    shards, shared, series = graph.shards, descent(job), generations(job.run)
    begin = series.latest(epochs)
    before = Generation(job.run, graph, begin)
    edges = pack_shards(job, graph, 0, len(shards))
    y, (m, v) = before.span(0, len(shards)), before.moments(0, len(shards))
    after = np.empty_like(y)
    cuts, repeated = slices_of(shards.rows, threads * SLICES), graph.repeated(0, len(shards))
    judgements = judged(job)
    with ThreadPoolExecutor(threads) as workers:
        for epoch in range(begin, epochs):
            if has_settled(job, epoch):
                break
            drawn = rows_at(layout.pool_rows(shared.seed, epoch, graph.places[-1]), *repeated)
            advance(workers, cuts, shared, epoch, edges, y, m, v, after, drawn)
            y, after = after, y
            job.tick(epoch + 1, epochs)
            kept = is_checkpoint(job, epoch + 1)
            if kept or epoch + 1 in judgements:
                write_loss(job, epoch + 1, y.__getitem__)
            if kept or has_settled(job, epoch + 1):
                pieces = [series.piece_name(epoch + 1, shard, shard + 1) for shard in range(len(shards))]
                for shard, piece in enumerate(pieces):
                    low, high = shards.span(shard)
                    write_piece(job, piece, y[low:high], m[low:high], v[low:high])
                series.commit(epoch + 1, pieces, shards.offsets)
    end(job, series.latest())


# rounds of shards --------------------------------------------------------------------------------

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
    with job.run.part(STAGE, part) as out:
        for name, values in edges._replace(tails=local)._asdict().items():
            out.write(name, values)
        out.write("outside", outside)


def unit_edges(job: Job, unit: tuple[int, int]) -> AbstractContextManager[tuple[Edges, np.ndarray]]:
    """Hold the packed edges of a unit, and the positions that they touch outside, read or kept from a round before."""
    name = ranged(PACKED, *unit)
    manifest = job.run.manifest(STAGE, name)

    def read() -> tuple[Edges, np.ndarray]:
        edges = Edges(*(job.run.read(STAGE, name, array) for array in Edges._fields))
        return edges, job.run.read(STAGE, name, "outside").astype(np.int64)

    key = (job.run.location, name, manifest["attempt"])  # which is another where the unit was packed anew
    size = sum(size for size, _ in manifest["objects"].values())
    return _packed.use(key, kept_bytes(job.config, job.geometry.rows), size, read)


def let_go() -> None:
    """Free what this process keeps of edges between rounds."""
    _packed.let_go()


def step(job: Job, part: str, epoch: int) -> None:
    """Take a unit from generation `epoch` to the part's; rows outside stay where they were."""
    graph = Graph(job.run)
    until, *unit = Series.place(part)
    before, shared = Generation(job.run, graph, epoch), descent(job)
    low, high = graph.shards.offsets[unit].tolist()
    with unit_edges(job, (unit[0], unit[1])) as (edges, outside):
        y, (m, v), rows = before.span(*unit), before.moments(*unit), high - low
        y = np.concatenate([y, before.gather(outside)]) if len(outside) else y
        exchanged, after = y[:rows].copy() if job.config.layout.exchange_every > 1 else None, np.empty_like(m)
        for t in range(epoch, until):
            pool = before.pool(shared.seed, t)
            layout.generation(shared, t, 0, rows, low, 0, edges, y, m, v, pool, after, exchanged)
            y[:rows] = after
    write_piece(job, part, after, m, v)


def _rounds(context: Context, graph: Graph, tasks: int) -> None:
    epochs, every = context.geometry.n_epochs, context.config.layout.exchange_every
    units, judgements = units_of(context, len(graph.shards), tasks), judged(context.job)
    series = generations(context.run)

    def measure(epoch: int) -> None:
        if epoch and (is_checkpoint(context.job, epoch, every) or epoch in judgements):
            context.compute(STAGE, measure_loss, [loss_name(epoch)], progress=(epoch, epochs))

    context.compute(STAGE, pack_unit, [ranged(PACKED, *unit) for unit in units], progress=(0, epochs))
    for epoch in range(series.latest(epochs), epochs, every):
        measure(epoch)
        if has_settled(context.job, epoch):
            break
        until = min(epoch + every, epochs)
        pieces = [series.piece_name(until, *unit) for unit in units]
        context.compute(STAGE, step, pieces, epoch=epoch, progress=(epoch, epochs))
        series.commit(until, pieces, graph.shards.offsets)
    measure(series.latest())
    end(context.job, series.latest())
    for part in context.run.committed(STAGE):
        if part.startswith(PACKED):
            context.run.discard(STAGE, part)


def run(context: Context) -> dict:
    """Run the epochs that are not committed yet; return how."""
    graph, cut, config = Graph(context.run), context.geometry, context.config
    rows, series = graph.shards.rows, generations(context.run)
    series.forget_broken()
    if context.run.is_committed(STAGE, END) and last_epoch(context.run) not in series.numbers():
        context.run.forget(STAGE, END)
    context.compute(STAGE, draw_pairs, [PAIRS_PART])
    edges = 2 * config.neighbors.others * rows
    if runs_on_one_host(config, rows, edges, context.worker_memory):
        mode = "host"
        context.compute(STAGE, descend, [END], threads=context.host_threads)
    else:
        mode = "rounds"
        _, fitting = round_bytes(config, min(cut.shard_rows, rows))
        if not context.run.is_committed(STAGE, END):
            _rounds(context, graph, max(context.threads, -(-len(graph.shards) // fitting)))
    measured = [number_of(name) for name in context.run.committed(STAGE) if name.startswith("loss-")]
    losses = [[epoch, None if (loss := loss_of(context.run, epoch)) is None else round(loss, 4)] for epoch in measured]
    shared = descent(context.job)
    return {"mode": mode, "epochs": last_epoch(context.run), "a": shared.a, "b": shared.b, "loss": losses}
