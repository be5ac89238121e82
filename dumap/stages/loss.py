"""The loss of the layout: on which edges and pairs it is measured, and when it ends the layout.

Part of stage layout.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import numpy as np

from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.artifacts.layout import Generation, loss_name, loss_of
from dumap.artifacts.parts import LAYOUT, number_of
from dumap.kernels import hashing, layout
from dumap.stages.descent import layout_parameters

JUDGEMENTS = 10
"""Parts of the epochs after each of which the loss may end the layout, where it is told to."""
PAIRS = 20_000
"""Edges, and as many pairs of any rows, on which the loss is measured."""
PAIRS_PART = "pairs"
"""The part that names them."""


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


def draw_pairs(job: Job, part: str) -> None:
    """Choose the edges and the pairs of rows on which the loss is measured, the same for all epochs."""
    graph, seed = Graph(job.run), job.config.layout_seed
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
    with job.run.part(LAYOUT, part) as out:
        others = (bits[count:] % np.uint64(graph.places[-1])).astype(np.int64)
        out.write("rows", np.stack([heads, tails, graph.rows_at(others)], axis=1))
        out.write("weights", weights)


def write_loss(job: Job, epoch: int, gather: Callable[[np.ndarray], np.ndarray]) -> None:
    """Measure the loss on the coordinates that `gather` returns for ascending positions."""
    rows, weights = (job.run.read(LAYOUT, PAIRS_PART, array) for array in ("rows", "weights"))
    if len(weights):
        unique, places = np.unique(rows, return_inverse=True)
        heads, tails, others = gather(unique)[places.reshape(rows.shape).T]
        with job.run.part(LAYOUT, loss_name(epoch)) as out:
            out.attributes["loss"] = layout.loss(layout_parameters(job), heads, tails, weights, others)


def measure_loss(job: Job, part: str) -> None:
    """Measure the loss of a committed generation."""
    epoch = number_of(part)
    write_loss(job, epoch, Generation(job.run, Graph(job.run), epoch).gather)
