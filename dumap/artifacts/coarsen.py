"""Coarsening: the checkpoints of labels, and the edges between labels. Rows with equal labels become one coarse row."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.artifacts.part_names import COARSEN
from dumap.kernels import start
from dumap.store import Checkpoints, Part, Run

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
        return lambda shard: checkpoints.read(number, "labels", *graph.shards.row_range(shard))
    sources = job.run.read(COARSEN, LABEL_SOURCES, "rows")

    def labels_of_sources(shard: int) -> np.ndarray:
        first, stop = graph.shards.row_range(shard)
        labels = np.full(stop - first, start.UNLABELLED, job.geometry.index_dtype)
        low, high = np.searchsorted(sources, [first, stop])
        labels[sources[low:high] - first] = np.arange(low, high)
        return labels

    return labels_of_sources


class UnlabelledEdges(NamedTuple):
    """The edges of a shard's rows that have no label.

    Attributes
    ----------
    rows : ndarray of int64, shape (n,)
        Numbers of the rows in the shard, ascending.
    indptr, tails, weights : ndarray
        Their edges.
    """

    rows: np.ndarray
    indptr: np.ndarray
    tails: np.ndarray
    weights: np.ndarray

    def select(self, chosen: np.ndarray) -> UnlabelledEdges:
        """Return the edges of some of the rows; `chosen` says of each row whether it is one."""
        return UnlabelledEdges(self.rows[chosen], *start.edges_of_rows(chosen, *self[1:]))


def _array_names(shard: int) -> list[str]:
    """Name the arrays that hold a shard's edges in a piece of a label checkpoint."""
    return [f"{field}-{shard:05d}" for field in UnlabelledEdges._fields]


def read_unlabelled(run: Run, graph: Graph, number: int, shard: int, labels: np.ndarray) -> UnlabelledEdges:
    """Read the edges of the rows of a shard that have no label after a pass, or that have no edge.

    They are in the pass's piece if they are at most half of the shard's edges. Otherwise the shard is read whole.

    Parameters
    ----------
    run : Run
    graph : Graph
    number, shard : int
        The number of the pass, 0 before the first pass, and the shard.
    labels : ndarray of int, shape (rows of the shard,)
        The shard's labels after the pass.
    """
    names = _array_names(shard)
    piece = label_checkpoints(run).piece_of(number, shard) if number else None
    if piece is not None and names[0] in run.manifest(COARSEN, piece)["arrays"]:
        return UnlabelledEdges(*run.read_many(COARSEN, [(piece, name, 0, None) for name in names]))
    all_edges = UnlabelledEdges(np.arange(len(labels)), *graph.read(shard))
    return all_edges.select((labels == start.UNLABELLED) | (np.diff(all_edges.indptr) == 0))


def write_unlabelled(out: Part, graph: Graph, shard: int, edges: UnlabelledEdges) -> None:
    """Write the edges of a shard's rows that have no label, if they are at most half of the shard's edges."""
    if 0 < 2 * len(edges.tails) <= graph.count_edges(shard, shard + 1):
        for name, values in zip(_array_names(shard), edges, strict=True):
            out.write(name, values)
