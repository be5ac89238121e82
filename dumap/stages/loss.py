"""The loss of the layout, the edges and pairs on which it is measured, and early stopping.

This module is part of stage layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.artifacts.layout import EpochState, loss_part_name, read_loss
from dumap.artifacts.part_names import LAYOUT, number_of
from dumap.kernels import hashing, layout
from dumap.stages.layout_common import layout_parameters

EARLY_STOP_CHECKS = 10
"""If `layout.least_fall` is set, the epochs are divided into this many equal intervals. The loss is measured after each
interval but the last. The layout may stop after the second interval and each later one."""
LOSS_PAIRS = 20_000
"""Edges on which the loss is measured, and as many pairs of an edge's head with a random row."""
PAIRS_BYTES = 28 * LOSS_PAIRS
"""Bytes of these edges and pairs: three positions and a weight each."""
PAIRS_PART = "pairs"
"""The part that holds these edges and pairs."""


def early_stop_epochs(job: Job) -> list[int]:
    """List the epochs after which the layout may stop early."""
    if not job.config.layout.least_fall:
        return []
    step, every = job.geometry.n_epochs / EARLY_STOP_CHECKS, job.config.layout.exchange_every
    epochs = {math.ceil(step * number / every) * every for number in range(1, EARLY_STOP_CHECKS)}
    return sorted(epoch for epoch in epochs if epoch < job.geometry.n_epochs)


def should_stop(job: Job, epoch: int) -> bool:
    """Return whether the loss has fallen by less than `layout.least_fall` since the check before."""
    epochs = early_stop_epochs(job)
    if epoch not in epochs[1:]:
        return False
    before, now = (read_loss(job.run, checked_epoch) for checked_epoch in (epochs[epochs.index(epoch) - 1], epoch))
    return before is not None and now is not None and now > before * (1 - job.config.layout.least_fall)


def draw_loss_pairs(job: Job, part: str) -> None:
    """Choose the edges and pairs on which the loss is measured in all epochs."""
    graph, seed = Graph(job.run), job.config.layout_seed
    ends = np.cumsum([0, *(graph.count_edges(shard, shard + 1) for shard in range(len(graph.shards)))])
    count = LOSS_PAIRS if ends[-1] else 0
    bits = hashing.draw_words(seed, hashing.LOSS_PAIRS, np.arange(2 * count))
    chosen = np.sort((bits[:count] % np.uint64(max(1, ends[-1]))).astype(np.int64))
    heads, tails, weights = np.empty(count, np.int64), np.empty(count, np.int64), np.empty(count, np.float32)
    for shard, (low, high) in enumerate(pairwise(np.searchsorted(chosen, ends).tolist())):
        if high > low:
            indptr, all_tails, all_weights = graph.read(shard)
            edges = chosen[low:high] - ends[shard]
            heads[low:high] = np.searchsorted(indptr, edges, side="right") - 1 + graph.shards.row_range(shard)[0]
            tails[low:high], weights[low:high] = all_tails[edges], all_weights[edges]
    with job.run.part(LAYOUT, part) as out:
        others = (bits[count:] % np.uint64(graph.occurrence_offsets[-1])).astype(np.int64)
        out.write("rows", np.stack([heads, tails, graph.positions_of(others)], axis=1))
        out.write("weights", weights)


def write_loss(job: Job, epoch: int, read_at: Callable[[np.ndarray], np.ndarray]) -> None:
    """Measure and write the loss. `read_at` returns the coordinates at ascending positions."""
    rows, weights = (job.run.read(LAYOUT, PAIRS_PART, array) for array in ("rows", "weights"))
    if len(weights):
        unique, inverse = np.unique(rows, return_inverse=True)
        heads, tails, others = read_at(unique)[inverse.reshape(rows.shape).T]
        with job.run.part(LAYOUT, loss_part_name(epoch)) as out:
            out.attributes["loss"] = layout.estimate_loss(layout_parameters(job), heads, tails, weights, others)


def measure_loss(job: Job, part: str) -> None:
    """Measure the loss at a checkpoint."""
    epoch = number_of(part)
    write_loss(job, epoch, EpochState(job.run, Graph(job.run), epoch).read_at)
