"""layout: gradient descent, generation by generation.

A generation is what the shards' parts of one epoch hold, and counts once its own part is committed. Where one
process can hold all shards, one task runs many epochs on its host's cores; elsewhere every epoch is a round
of tasks, each of which reads its shards and the rows they touch. The bytes are the same.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.artifacts.layout import END, Generation, generations, last_epoch, loss_of
from dumap.artifacts.parts import GRAPH, LAYOUT, START, number_of
from dumap.config import Config
from dumap.kernels import layout
from dumap.kernels.edges import Edges
from dumap.kernels.graph import rows_at
from dumap.kernels.layout import LayoutParameters
from dumap.kernels.pool import lay_pool, pool_rows
from dumap.planning.budget import layout_bytes, pool_bytes, round_bytes, runs_on_one_host
from dumap.planning.geometry import Geometry
from dumap.planning.plan import Projection
from dumap.stages import Context, Stage, writes_more
from dumap.stages.descent import end, is_checkpoint, layout_parameters, pack_shards, write_piece
from dumap.stages.loss import PAIRS_PART, draw_pairs, has_settled, judged, write_loss
from dumap.stages.rounds import in_rounds

SLICES = 8
"""Slices of rows a thread gets in an epoch, so that threads end together."""


def slices_of(rows: int, count: int) -> list[int]:
    """Cut rows into about so many slices of whole blocks."""
    cuts = np.linspace(0, rows, count + 1).astype(int)
    return [*np.unique(cuts[:-1] // layout.BLOCK * layout.BLOCK).tolist(), rows]


def advance(
    workers: ThreadPoolExecutor,
    cuts: list[int],
    parameters: LayoutParameters,
    epoch: int,
    edges: Edges,
    y: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    after: np.ndarray,
    drawn: np.ndarray,
) -> None:
    """Write the generation after `y`, all rows of it, slice by slice on threads; `drawn` rows are the pool.

    So many parameters, since numba takes each array by itself.
    """
    pool = lay_pool(y[drawn])
    slices = [
        workers.submit(layout.step_epoch, parameters, epoch, low, high, 0, 0, edges, y, m, v, pool, after)
        for low, high in pairwise(cuts)
    ]
    for piece in slices:
        piece.result()


@writes_more
def descend(job: Job, part: str, threads: int) -> None:
    """Run the epochs from the last generation to the end, on this host's cores, and commit checkpoints."""
    graph, epochs = Graph(job.run), job.geometry.n_epochs
    shards, parameters, series = graph.shards, layout_parameters(job), generations(job.run)
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
            drawn = rows_at(pool_rows(parameters.seed, epoch, graph.places[-1]), *repeated)
            advance(workers, cuts, parameters, epoch, edges, y, m, v, after, drawn)
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


def run(context: Context) -> dict:
    """Run the epochs that are not committed yet; return how."""
    graph, cut, config = Graph(context.run), context.geometry, context.config
    rows, series = graph.shards.rows, generations(context.run)
    series.forget_broken()
    if context.run.is_committed(LAYOUT, END) and last_epoch(context.run) not in series.numbers():
        context.run.forget(LAYOUT, END)
    context.compute(LAYOUT, draw_pairs, [PAIRS_PART])
    edges = 2 * config.neighbors.others * rows
    if runs_on_one_host(config, rows, edges, context.worker_memory):
        mode = "host"
        context.compute(LAYOUT, descend, [END], threads=context.host_threads)
    else:
        mode = "rounds"
        _, fitting = round_bytes(config, min(cut.shard_rows, rows))
        if not context.run.is_committed(LAYOUT, END):
            in_rounds(context, graph, max(context.threads, -(-len(graph.shards) // fitting)))
    measured = [number_of(name) for name in context.run.committed(LAYOUT) if name.startswith("loss-")]
    losses = [[epoch, None if (loss := loss_of(context.run, epoch)) is None else round(loss, 4)] for epoch in measured]
    parameters = layout_parameters(context.job)
    return {"mode": mode, "epochs": last_epoch(context.run), "a": parameters.a, "b": parameters.b, "loss": losses}


def project(cut: Geometry, config: Config, worker_memory: int) -> Projection:
    """Say what the stage will take: on one host, or in rounds of units."""
    n_components, rows, edges = config.layout.n_components, cut.rows, 2 * config.neighbors.others * cut.rows
    state, kept = rows * 4 * n_components * 3, math.ceil(cut.n_epochs / config.layout.checkpoint_every)
    task_bytes = layout_bytes(config, rows, edges, worker_memory)
    if runs_on_one_host(config, rows, edges, worker_memory):
        return Projection(kept, state * kept, 2 * state, task_bytes)
    _, fitting = round_bytes(config, min(cut.shard_rows, rows))
    units, rounds = math.ceil(cut.shards / fitting), math.ceil(cut.n_epochs / config.layout.exchange_every)
    moved = 2 * state + units * pool_bytes(n_components)
    return Projection(
        units * (rounds + 1), rounds * moved + 8 * edges, 2 * state + 8 * edges, task_bytes, {"packed": 8 * edges}
    )


STAGE = Stage(
    LAYOUT,
    keys=(
        *("layout.seed", "layout.n_components", "layout.n_epochs", "layout.learning_rate", "layout.min_dist"),
        *("layout.spread", "layout.a", "layout.b", "layout.negative_sample_rate", "layout.repulsion_strength"),
        *("layout.exchange_every", "layout.least_fall"),
    ),
    reads=(GRAPH, START),
    writes=(PAIRS_PART, "epoch", "generation", "loss", "packed", END),
    run=run,
    project=project,
    passing={PAIRS_PART: (), "packed": ()},
)
