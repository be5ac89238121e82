"""The coarse graph: rows that share a label are one of its rows; it is embedded and laid out.

Part of stage start.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from dumap.artifacts.cells import Table
from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.artifacts.parts import START, total
from dumap.artifacts.start import COARSE, SEEDS, labelled, labels_reader
from dumap.figures import defined
from dumap.kernels import coarse, start
from dumap.planning.budget import coarse_rows
from dumap.stages import Context
from dumap.stages.descent import descent, require_finite
from dumap.stages.passes import Pass
from dumap.store import Series

COARSE_PAIR_BYTES = 80
"""Bytes that a pair of labels takes while pairs are added up (measured, rounded up)."""
STEP_LABELS = 256
"""Labels whose pairs a coarse shard's offsets tell apart."""


def draw_seeds(job: Job, part: str) -> None:
    """Draw the rows from which labels spread."""
    rows, found = Table(job.run).rows, []
    for first in range(0, rows, 1 << 20):
        found.append(start.draw_seeds(job.config.seed, first, min(rows, first + (1 << 20)), coarse_rows(rows), rows))
    with job.run.part(START, part) as out:
        out.write("rows", np.concatenate(found))
        out.attributes["count"] = sum(map(len, found))


def spread_labels(job: Job, part: str, lowest: bool) -> None:
    """Take a group of shards' labels to the next pass: they spread, or rows that no seed reaches get some."""
    graph = Graph(job.run)
    number, begin, end = Series.place(part)
    here, found, new, left = Pass(job, labels_reader(job, graph, number - 1)), [], 0, 0
    for shard in range(begin, end):
        first, _ = graph.shards.span(shard)
        indptr, tails, weights = graph.read(shard)
        labels = here.page(shard).copy()
        if lowest:
            counts = start.label_lowest(indptr, tails, first, labels, job.config.seed)
        else:
            counts = start.spread(indptr, weights, here.ends(indptr, tails), first, labels)
        found.append(labels)
        new, left = new + counts[0], left + counts[1]
    with job.run.part(START, part) as out:
        out.write("labels", np.concatenate(found))
        out.attributes |= {"new": int(new), "left": int(left)}


def coarsen(job: Job, part: str) -> None:
    """Add up a shard's edges by the labels at their ends."""
    graph, count = Graph(job.run), job.run.summary(START, SEEDS)["count"]
    number, shard, _ = Series.place(part)
    here, (indptr, tails, weights) = Pass(job, labels_reader(job, graph, number)), graph.read(shard)
    labels = here.page(shard)
    pairs, sums = coarse.coarse_edges(indptr, weights, labels, here.ends(indptr, tails), count)
    with job.run.part(START, part) as out:
        out.write("pairs", pairs)
        out.write("sums", sums)
        out.write("sizes", np.bincount(labels[labels >= 0], minlength=count))
        heads = np.arange(0, count + STEP_LABELS, STEP_LABELS)
        out.attributes["offsets"] = np.searchsorted(pairs, heads * count).tolist()


def solve(job: Job, part: str, names: list[str]) -> None:
    """Embed the coarse graph, its edges added up over the shards, some labels at a time, and lay it out from there."""
    store, n_components = job.run, job.config.layout.n_components
    count = store.summary(START, SEEDS)["count"]
    offsets = np.array([store.summary(START, name)["offsets"] for name in names])
    ranges = np.cumsum(np.diff(offsets, axis=1).sum(axis=0)) * COARSE_PAIR_BYTES // (job.config.task_memory // 4)
    cuts = [0, *(np.flatnonzero(np.diff(ranges)) + 1).tolist(), len(ranges)]
    pairs, sums, sizes = [np.empty(0, np.int64)], [np.empty(0, np.int64)], np.zeros(count, np.int64)
    for low, high in pairwise(cuts):
        spans = [(name, int(own[low]), int(own[high])) for name, own in zip(names, offsets, strict=True)]
        found = [
            np.concatenate([store.read(START, name, array, a, b) for name, a, b in spans if b > a] or [sums[0]])
            for array in ("pairs", "sums")
        ]
        more = coarse.strongest(*coarse.add_pairs(*found), count, coarse.most_edges(count))
        pairs.append(more[0])
        sums.append(more[1])
    for name in names:
        sizes += store.read(START, name, "sizes")
    edges, rows = (np.concatenate(pairs), np.concatenate(sums)), int(np.count_nonzero(sizes))
    graph = coarse.matrix_of(*edges, count)
    y, components, short = coarse.spectral(graph, sizes, n_components, job.config.seed)
    epochs = job.config.start.coarse_epochs if rows < sizes.sum() else 0
    if epochs:
        y = coarse.lay_out(coarse.leading(graph, *edges), sizes, y, descent(job)._replace(n_epochs=epochs))
        require_finite(job, y[sizes > 0], "start: in the coarse layout")
    with store.part(START, part) as out:
        out.write("y", y)
        out.attributes |= {
            "coarse_rows": rows,
            "coarse_epochs": epochs,
            "components": components,
            "coarse_residual": defined(short),
            "unseeded": Table(store).rows - int(sizes.sum()),
        }


def lay_out_coarse(context: Context, graph: Graph, groups: list[tuple[int, int]], later: int) -> int:
    """Label the rows and lay out the graph of their labels, with so many steps of the stage to come.

    Returns
    -------
    int
        The passes in which labels spread.
    """
    run, labels = context.run, labelled(context.run)
    labels.forget_broken()
    context.compute(START, draw_seeds, [SEEDS])
    passes, left, lowest = labels.latest(), -1, False
    if passes:
        left, lowest = (run.summary(START, labels.name(passes))[fact] for fact in ("left", "lowest"))
    while left:
        pieces = [labels.piece_name(passes + 1, *group) for group in groups]
        context.compute(START, spread_labels, pieces, lowest=lowest, progress=(passes, passes + 1 + later))
        passes += 1
        left, lowest = total(run, START, pieces, "left"), not total(run, START, pieces, "new")
        labels.commit(passes, pieces, graph.shards.offsets, left=left, lowest=lowest)
    if not run.is_committed(START, COARSE):
        singly, progress = pairwise(range(len(graph.shards) + 1)), (passes, passes + later)
        pieces = [
            f"{COARSE}-{labels.piece_name(passes, *shard)}" for shard in singly
        ]  # as many pairs as edges, perhaps
        context.compute(START, coarsen, pieces, progress=progress)
        context.compute(START, solve, [COARSE], names=pieces, progress=progress)
    return passes
