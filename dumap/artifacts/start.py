"""The start: labels and coordinates, pass after pass, and the first coordinates."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.artifacts.parts import START, numbered
from dumap.kernels import start
from dumap.store import Run, Series

BOX = "box"
"""The part that says how far the coordinates reach before they are stretched, and what is told of the start."""
SEEDS = "seeds"
"""The part that names the rows from which labels spread."""
COARSE = "coarse"
"""The part that holds the coarse layout."""


class Starts:
    """The first coordinates of shards."""

    def __init__(self, run: Run, shards: int) -> None:
        self.run, self.names = run, numbered("coordinates", shards)

    def read(self, shard: int, first: int = 0, stop: int | None = None) -> np.ndarray:
        """Return those of rows [first, stop) of a shard."""
        return self.run.read(START, self.names[shard], "y", first, stop)


def labelled(run: Run) -> Series:
    """Return the passes in which labels spread."""
    return Series(run, START, "labelled", "labels")


def smoothed(run: Run) -> Series:
    """Return the passes in which coordinates are smoothed."""
    return Series(run, START, "smoothed", "smooth")


def labels_reader(job: Job, graph: Graph, number: int) -> Callable[[int], np.ndarray]:
    """Return what reads shards' labels after a pass; before the first, seeds alone have one."""
    if number:
        series = labelled(job.run)
        return lambda shard: series.read(number, "labels", *graph.shards.span(shard))
    seeds = job.run.read(START, SEEDS, "rows")

    def seeded(shard: int) -> np.ndarray:
        first, stop = graph.shards.span(shard)
        labels = np.full(stop - first, start.UNLABELLED, job.geometry.index_dtype)
        low, high = np.searchsorted(seeds, [first, stop])
        labels[seeds[low:high] - first] = np.arange(low, high)
        return labels

    return seeded
