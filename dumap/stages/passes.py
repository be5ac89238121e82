"""Passes over the graph, shard by shard. The state of all rows is read in pages.

A page is the state of one shard's rows. The tails of a row's edges ascend, so that pages can be read one after another.
Memory holds the edges of one shard and as many pages as there is room for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.artifacts.part_names import split_evenly
from dumap.kernels import start
from dumap.kernels.graph import GRAIN_ROWS
from dumap.planning.budget import page_bytes
from dumap.planning.geometry import Geometry
from dumap.planning.steps import Step, senders_of
from dumap.stages import Context

RANGES_PER_THREAD = 4
"""Shard ranges for each thread in a pass. Several ranges let threads finish together."""


def pass_ranges(context: Context, shards: int) -> list[tuple[int, int]]:
    """Cut the shards into ranges, one for each task. Results do not depend on the ranges."""
    row_bytes, room = 4 * context.config.layout.n_components, context.config.task_memory // 4
    min_count = -(-shards * context.geometry.shard_rows * row_bytes // room)
    count = min(shards, max(min_count, RANGES_PER_THREAD * context.threads))
    return split_evenly(shards, count)


def pass_steps(geometry: Geometry, passes: int) -> tuple[Step, ...]:
    """Return the steps of passes, each with a checkpoint; a task for each shard, which is the most."""
    pages = senders_of(geometry.shards)
    return Step(passes * geometry.shards, pages + 4, pages + 5, 0, passes), Step(passes, 2, 0, 0, 4 * passes)


class GraphPass:
    """One shard range in one pass over the graph, with pages of the state before the pass.

    Parameters
    ----------
    job : Job
    read : callable
        `read(shard)` returns the state of a shard's rows.
    """

    def __init__(self, job: Job, read: Callable[[int], np.ndarray]) -> None:
        self.graph, self.index_dtype = Graph(job.run), job.geometry.index_dtype
        room = job.config.task_memory // 4 // page_bytes(job.geometry.shard_rows, job.config.layout.n_components)
        self.read_page = lru_cache(maxsize=max(1, room))(read)

    def read_pages(self, indptr: np.ndarray, tails: np.ndarray) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        """Yield, for each page that holds tails of these edges, a cursor, the page's first row, and the page."""
        cursor, offsets = indptr[:-1].copy(), self.graph.shards.offsets
        grains = np.flatnonzero(np.bincount(tails // GRAIN_ROWS))  # shards begin with a grain, and differ in length
        for shard in np.unique(np.searchsorted(offsets, grains * GRAIN_ROWS, side="right") - 1).tolist():
            yield cursor, self.graph.shards.row_range(shard)[0], self.read_page(shard)

    def read_tail_labels(self, indptr: np.ndarray, tails: np.ndarray) -> np.ndarray:
        """Return the labels of a shard's tails."""
        ends = np.empty(len(tails), self.index_dtype)
        for page in self.read_pages(indptr, tails):
            start.look_up_tail_labels(indptr, tails, *page, ends)
        return ends
