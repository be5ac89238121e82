"""Coarsening: labels, pass after pass, and the edges between them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.artifacts.parts import COARSEN
from dumap.kernels import start
from dumap.store import Run, Series

SEEDS = "seeds"
"""The part that names the rows from which labels spread."""
EDGES = "edges"
"""The part that holds the edges of the coarse graph, and how many rows each label has."""


def labelled(run: Run) -> Series:
    """Return the passes in which labels spread."""
    return Series(run, COARSEN, "labelled", "labels")


def labels_reader(job: Job, graph: Graph, number: int) -> Callable[[int], np.ndarray]:
    """Return what reads shards' labels after a pass; before the first, seeds alone have one."""
    if number:
        series = labelled(job.run)
        return lambda shard: series.read(number, "labels", *graph.shards.span(shard))
    seeds = job.run.read(COARSEN, SEEDS, "rows")

    def seeded(shard: int) -> np.ndarray:
        first, stop = graph.shards.span(shard)
        labels = np.full(stop - first, start.UNLABELLED, job.geometry.index_dtype)
        low, high = np.searchsorted(seeds, [first, stop])
        labels[seeds[low:high] - first] = np.arange(low, high)
        return labels

    return seeded
