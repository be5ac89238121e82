"""Passes over the graph: shard by shard, with pages of the rows where edges end.

A shard's edges ascend by where they end, so that one page of the other rows after another is enough: memory holds a
shard, and such pages as there is room for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache

import numpy as np

from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.artifacts.parts import evenly
from dumap.kernels import start
from dumap.planning.budget import page_bytes
from dumap.stages import Context

GROUPS_A_THREAD = 4
"""Groups of shards that a thread gets in a pass, so that threads end together."""


def groups_of(context: Context, shards: int) -> list[tuple[int, int]]:
    """Cut shards into groups, one a task; what comes out does not depend on it."""
    row_bytes, room = 4 * context.config.layout.n_components, context.config.task_memory // 4
    fewest = -(-shards * context.geometry.shard_rows * row_bytes // room)
    count = min(shards, max(fewest, GROUPS_A_THREAD * context.threads))
    return evenly(shards, count)


class Pass:
    """One group of shards in one pass over the graph, and pages of the state of all rows before it.

    Parameters
    ----------
    job : Job
    read : callable
        `read(shard)` returns the state of a shard's rows.
    """

    def __init__(self, job: Job, read: Callable[[int], np.ndarray]) -> None:
        self.graph = Graph(job.run)
        room = job.config.task_memory // 4 // page_bytes(job.geometry.shard_rows, job.config.layout.n_components)
        self.page = lru_cache(maxsize=max(1, room))(read)

    def pages(self, indptr: np.ndarray, tails: np.ndarray) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        """Yield what kernels take of each page in which edges end: a cursor, the page's first row, and the page."""
        cursor = indptr[:-1].copy()
        for shard in np.flatnonzero(np.bincount(tails // self.graph.shards.offsets[1])).tolist():
            yield cursor, self.graph.shards.span(shard)[0], self.page(shard)

    def ends(self, indptr: np.ndarray, tails: np.ndarray) -> np.ndarray:
        """Return the labels at the ends of a shard's edges."""
        ends = np.empty(len(tails), self.page(0).dtype)
        for page in self.pages(indptr, tails):
            start.look_up(indptr, tails, *page, ends)
        return ends
