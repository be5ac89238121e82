"""Coarsening: the checkpoints of labels, and the edges between labels. Rows with equal labels become one coarse row."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.artifacts.part_names import COARSEN
from dumap.kernels import start
from dumap.store import Checkpoints, Run

LABEL_SOURCES = "seeds"
"""The part that holds the sources of labels, the rows from which labels spread. Its name is part of the format."""
EDGES = "edges"
"""The part that holds the edges of the coarse graph, and how many rows each label has."""


def label_checkpoints(run: Run) -> Checkpoints:
    """Return the checkpoints of label passes."""
    return Checkpoints(run, COARSEN, "labels")


def labels_reader(job: Job, graph: Graph, number: int) -> Callable[[int], np.ndarray]:
    """Return a function that reads a shard's labels after a pass. Before the first pass only the sources have
    labels.
    """
    if number:
        checkpoints = label_checkpoints(job.run)
        return lambda shard: checkpoints.read(number, "labels", *graph.shards.span(shard))
    sources = job.run.read(COARSEN, LABEL_SOURCES, "rows")

    def labels_of_sources(shard: int) -> np.ndarray:
        first, stop = graph.shards.span(shard)
        labels = np.full(stop - first, start.UNLABELLED, job.geometry.index_dtype)
        low, high = np.searchsorted(sources, [first, stop])
        labels[sources[low:high] - first] = np.arange(low, high)
        return labels

    return labels_of_sources
