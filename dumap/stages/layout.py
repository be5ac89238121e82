"""layout: gradient descent, epoch by epoch.

If one process can hold all shards, one task runs all epochs on the cores of its host and commits checkpoints. If not,
each epoch is a round of tasks. A task of a round reads its shards and the rows to which their edges lead. The bytes are
the same in both ways. A checkpoint holds the state after an epoch, in parts that each hold a range of shards. It counts
once the part that names these parts is committed.
"""

from __future__ import annotations

import math
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise

import numpy as np

from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.artifacts.layout import LAYOUT_END, EpochState, last_epoch, layout_checkpoints, read_loss
from dumap.artifacts.part_names import GRAPH, LAYOUT, START, number_of
from dumap.config import Config
from dumap.kernels import layout
from dumap.kernels.edges import Edges
from dumap.kernels.graph import rows_of_occurrences
from dumap.kernels.layout import LayoutParameters
from dumap.kernels.pool import draw_pool_rows, sort_pool
from dumap.planning.budget import layout_bytes, pool_bytes, round_bytes, runs_on_one_host
from dumap.planning.geometry import Geometry
from dumap.planning.plan import StageProjection
from dumap.planning.steps import Step
from dumap.stages import Context, Stage, no_backup
from dumap.stages.layout_common import commit_end, ends_interval, layout_parameters, pack_shards, write_state
from dumap.stages.loss import PAIRS_BYTES, PAIRS_PART, draw_loss_pairs, early_stop_epochs, should_stop, write_loss
from dumap.stages.rounds import PREPARED, round_steps, run_in_rounds
from dumap.store import CHECKPOINT

SLICES_PER_THREAD = 8
"""Slices of rows for each thread in an epoch. Several slices let threads finish together."""
MIN_SLICE_ROWS = 512
"""Rows of a slice at the least: to hand a slice to a thread takes as long as to compute some hundred rows."""


def slice_bounds(rows: int, count: int) -> list[int]:
    """Cut rows into about `count` slices of whole groups, or fewer where they would be small."""
    count = max(1, min(count, rows // MIN_SLICE_ROWS))
    bounds = np.linspace(0, rows, count + 1).astype(int)
    return [*np.unique(bounds[:-1] // layout.ROW_GROUP * layout.ROW_GROUP).tolist(), rows]


def compute_epoch(
    workers: ThreadPoolExecutor,
    bounds: list[int],
    parameters: LayoutParameters,
    epoch: int,
    edges: Edges,
    y: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    after: np.ndarray,
    drawn: np.ndarray,
) -> None:
    """Compute one epoch of all rows, from `y` into `after`, slice by slice on threads. The pool is the `drawn` rows.

    So many parameters are needed because numba takes each array separately.
    """
    pool = sort_pool(y[drawn])
    if len(bounds) == 2:  # so few rows that threads would cost more
        low, high = bounds
        layout.step_epoch(parameters, epoch, low, high, 0, 0, edges, y, m, v, pool, after)
        return
    slices = [
        workers.submit(layout.step_epoch, parameters, epoch, low, high, 0, 0, edges, y, m, v, pool, after)
        for low, high in pairwise(bounds)
    ]
    for piece in slices:
        piece.result()


@no_backup
def run_epochs_on_host(job: Job, part: str, threads: int) -> None:
    """Run the epochs after the last checkpoint on the cores of this host, and commit checkpoints."""
    graph, epochs = Graph(job.run), job.geometry.n_epochs
    shards, parameters, checkpoints = graph.shards, layout_parameters(job), layout_checkpoints(job.run)
    begin = checkpoints.latest(epochs)
    before = EpochState(job.run, graph, begin)
    edges = pack_shards(job, graph, 0, len(shards))
    y, (m, v) = before.read_shards(0, len(shards)), before.read_moments(0, len(shards))
    after = np.empty_like(y)
    bounds, repeated = slice_bounds(shards.rows, threads * SLICES_PER_THREAD), graph.read_repeated(0, len(shards))
    check_epochs = early_stop_epochs(job)
    with ThreadPoolExecutor(threads) as workers:
        for epoch in range(begin, epochs):
            if should_stop(job, epoch):
                break
            drawn = rows_of_occurrences(draw_pool_rows(parameters.seed, epoch, graph.occurrence_offsets[-1]), *repeated)
            compute_epoch(workers, bounds, parameters, epoch, edges, y, m, v, after, drawn)
            y, after = after, y
            job.report_progress(epoch + 1, epochs)
            is_due = ends_interval(job, epoch + 1)
            if is_due or epoch + 1 in check_epochs:
                write_loss(job, epoch + 1, y.__getitem__)
            if is_due or should_stop(job, epoch + 1):
                pieces = [checkpoints.piece_name(epoch + 1, shard, shard + 1) for shard in range(len(shards))]
                for shard, piece in enumerate(pieces):
                    low, high = shards.row_range(shard)
                    write_state(job, piece, y[low:high], m[low:high], v[low:high])
                checkpoints.commit(epoch + 1, pieces, shards.offsets)
    commit_end(job, checkpoints.latest())


def run(context: Context) -> dict:
    """Run the epochs after the last checkpoint; return the facts."""
    graph, geometry, config = Graph(context.run), context.geometry, context.config
    rows, checkpoints = graph.shards.rows, layout_checkpoints(context.run)
    checkpoints.uncommit_broken()
    if context.run.is_committed(LAYOUT, LAYOUT_END) and last_epoch(context.run) not in checkpoints.numbers():
        context.run.uncommit(LAYOUT, LAYOUT_END)
    context.compute(LAYOUT, draw_loss_pairs, [PAIRS_PART])
    edges = 2 * config.neighbors.graph_k * rows
    if runs_on_one_host(config, rows, edges, context.worker_memory):
        mode = "host"
        context.compute(LAYOUT, run_epochs_on_host, [LAYOUT_END], threads=context.host_threads)
    else:
        mode = "rounds"
        _, fitting = round_bytes(config, min(geometry.shard_rows, rows))
        if not context.run.is_committed(LAYOUT, LAYOUT_END):
            run_in_rounds(context, graph, max(context.threads, -(-len(graph.shards) // fitting)))
    measured = [number_of(name) for name in context.run.committed_parts(LAYOUT) if name.startswith("loss-")]
    losses = [
        [epoch, None if (loss := read_loss(context.run, epoch)) is None else round(loss, 4)] for epoch in measured
    ]
    parameters = layout_parameters(context.job)
    return {"mode": mode, "epochs": last_epoch(context.run), "a": parameters.a, "b": parameters.b, "loss": losses}


def project(geometry: Geometry, config: Config, worker_memory: int) -> StageProjection:
    """Project what the stage will take: on one host, or in rounds of tasks."""
    n_components, rows, edges = config.layout.n_components, geometry.rows, 2 * config.neighbors.graph_k * geometry.rows
    state_bytes, checkpoint_count = (
        rows * 4 * n_components * 3,
        math.ceil(geometry.n_epochs / config.layout.checkpoint_every),
    )
    task_bytes = layout_bytes(config, rows, edges, worker_memory)
    if runs_on_one_host(config, rows, edges, worker_memory):
        shards = geometry.shards
        steps = (
            Step(1, shards + 2, 3 * shards),
            Step(1, 2 * shards + 4, 6 * shards + 1),
            Step(checkpoint_count * (shards + 2)),
        )
        read_bytes = 2 * edges * (geometry.index_dtype.itemsize + 4) + state_bytes + 16 * rows
        return StageProjection(
            steps,
            read_bytes,
            2 * state_bytes + PAIRS_BYTES,
            task_bytes,
            replaced_bytes=state_bytes * max(0, checkpoint_count - 2),
        )
    _, fitting = round_bytes(config, min(geometry.shard_rows, rows))
    tasks, rounds = math.ceil(geometry.shards / fitting), math.ceil(geometry.n_epochs / config.layout.exchange_every)
    sent_bytes = rows * 4 * n_components  # as many rows are sent to others as there are (assumed)
    return StageProjection(
        round_steps(geometry, tasks, rounds, checkpoint_count),
        rounds * (state_bytes + sent_bytes + tasks * pool_bytes(n_components) + 8 * edges + 8 * rows) + 20 * edges,
        2 * (state_bytes + sent_bytes) + 8 * edges + 8 * rows + PAIRS_BYTES,
        task_bytes,
        {"packed": 8 * edges + 8 * rows + 2 * sent_bytes},  # what is sent is not in the last state
        max(0, rounds - 2) * (state_bytes + sent_bytes) + rounds * pool_bytes(n_components),
    )


STAGE = Stage(
    LAYOUT,
    setting_keys=(
        *("layout.seed", "layout.n_components", "layout.n_epochs", "layout.learning_rate", "layout.min_dist"),
        *("layout.spread", "layout.a", "layout.b", "layout.negative_sample_rate", "layout.repulsion_strength"),
        *("layout.exchange_every", "layout.least_fall"),
    ),
    reads=(GRAPH, START),
    writes=(PAIRS_PART, "state", CHECKPOINT, "loss", *PREPARED, LAYOUT_END),
    run=run,
    project=project,
    temporary_kinds=dict.fromkeys((PAIRS_PART, *PREPARED), ()),
)
