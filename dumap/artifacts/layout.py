"""The layout: coordinates after some epochs, and the loss."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from dumap.artifacts.graph import Graph
from dumap.artifacts.parts import LAYOUT
from dumap.artifacts.start import Starts
from dumap.store import Run, Series

END = "end"
"""The part that says after how many epochs the layout ended."""


def generations(run: Run) -> Series:
    """Return the generations."""
    return Series(run, LAYOUT, "generation", "epoch")


class Generation:
    """The coordinates after some epochs; 0 is the start."""

    def __init__(self, run: Run, graph: Graph, epoch: int) -> None:
        self.run, self.graph, self.epoch = run, graph, epoch
        self.starts, self.series = Starts(run, len(graph.shards)), generations(run)

    def read(self, shard: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the coordinates of rows [start, stop) of a shard."""
        if self.epoch == 0:
            return self.starts.read(shard, start, stop)
        first, last = self.graph.shards.span(shard)
        return self.series.read(self.epoch, "y", first + start, last if stop is None else first + stop)

    def span(self, first: int, last: int) -> np.ndarray:
        """Return the coordinates of shards [first, last)."""
        return np.concatenate([self.read(shard) for shard in range(first, last)])

    def moments(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Return Adam's moments of shards [first, last), each (rows, n_components)."""
        low, high = self.graph.shards.offsets[[first, last]].tolist()
        if self.epoch:
            return self.series.read(self.epoch, "m", low, high), self.series.read(self.epoch, "v", low, high)
        m = np.zeros((high - low, self.read(0, 0, 0).shape[1]), np.float32)
        return m, m.copy()

    def gather(self, positions: np.ndarray) -> np.ndarray:
        """Return the coordinates of some positions, ascending; of each shard, what they span."""
        if not len(positions):
            return self.read(0, 0, 0)
        offsets = self.graph.shards.offsets
        cuts = np.unique([0, *np.searchsorted(positions, offsets[1:-1]), len(positions)])
        pieces = []
        for low, high in pairwise(cuts.tolist()):
            first, last = int(positions[low]), int(positions[high - 1])
            shard = int(np.searchsorted(offsets, first, side="right")) - 1
            rows = self.read(shard, first - int(offsets[shard]), last + 1 - int(offsets[shard]))
            pieces.append(rows[positions[low:high] - first])
        return np.concatenate(pieces)


def last_epoch(run: Run) -> int:
    """Return after how many epochs the layout ended."""
    return run.summary(LAYOUT, END)["epoch"]


def last_generation(run: Run, graph: Graph) -> Generation:
    """Return the generation that is the map."""
    return Generation(run, graph, last_epoch(run))


def loss_name(epoch: int) -> str:
    """Name the part that tells the loss after `epoch` epochs."""
    return f"loss-{epoch:05d}"


def loss_of(run: Run, epoch: int) -> float | None:
    """Return the loss after so many epochs, if it was measured and is finite; a graph without edges has none."""
    name = loss_name(epoch)
    return run.summary(LAYOUT, name)["loss"] if run.is_committed(LAYOUT, name) else None
