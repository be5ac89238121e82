"""The layout's state after each checkpoint, and its loss."""

from __future__ import annotations

from itertools import pairwise

import numpy as np

from dumap.artifacts.graph import Graph
from dumap.artifacts.part_names import LAYOUT
from dumap.artifacts.start import StartCoordinates
from dumap.store import Checkpoints, Run

LAYOUT_END = "end"
"""The part that says after how many epochs the layout ended."""


def layout_checkpoints(run: Run) -> Checkpoints:
    """Return the checkpoints of the layout."""
    return Checkpoints(run, LAYOUT, "state")


class EpochState:
    """Coordinates and Adam's moments after a number of epochs. Epoch 0 is the start."""

    def __init__(self, run: Run, graph: Graph, epoch: int) -> None:
        self.run, self.graph, self.epoch = run, graph, epoch
        self.starts, self.checkpoints = StartCoordinates(run, len(graph.shards)), layout_checkpoints(run)

    def read(self, shard: int, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return the coordinates of rows [start, stop) of a shard."""
        if self.epoch == 0:
            return self.starts.read(shard, start, stop)
        first, last = self.graph.shards.row_range(shard)
        return self.checkpoints.read(self.epoch, "y", first + start, last if stop is None else first + stop)

    def read_shards(self, first: int, last: int) -> np.ndarray:
        """Return the coordinates of shards [first, last)."""
        return np.concatenate([self.read(shard) for shard in range(first, last)])

    def read_moments(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Return Adam's moments of shards [first, last), each (rows, n_components)."""
        low, high = self.graph.shards.offsets[[first, last]].tolist()
        if self.epoch:
            return self.checkpoints.read(self.epoch, "m", low, high), self.checkpoints.read(self.epoch, "v", low, high)
        m = np.zeros((high - low, self.read(0, 0, 0).shape[1]), np.float32)
        return m, m.copy()

    def read_at(self, positions: np.ndarray) -> np.ndarray:
        """Return the coordinates at ascending positions. In each shard the rows from the first to the last position are
        read.
        """
        if not len(positions):
            return self.read(0, 0, 0)
        offsets = self.graph.shards.offsets
        bounds = np.unique([0, *np.searchsorted(positions, offsets[1:-1]), len(positions)])
        pieces = []
        for low, high in pairwise(bounds.tolist()):
            first, last = int(positions[low]), int(positions[high - 1])
            shard = int(np.searchsorted(offsets, first, side="right")) - 1
            rows = self.read(shard, first - int(offsets[shard]), last + 1 - int(offsets[shard]))
            pieces.append(rows[positions[low:high] - first])
        return np.concatenate(pieces)


def last_epoch(run: Run) -> int:
    """Return the number of epochs after which the layout ended."""
    return run.part_facts(LAYOUT, LAYOUT_END)["epoch"]


def last_epoch_state(run: Run, graph: Graph) -> EpochState:
    """Return the last state. Its coordinates are the map."""
    return EpochState(run, graph, last_epoch(run))


def loss_part_name(epoch: int) -> str:
    """Name the part that holds the loss after `epoch` epochs."""
    return f"loss-{epoch:05d}"


def read_loss(run: Run, epoch: int) -> float | None:
    """Return the loss after `epoch` epochs, or None if it was not measured. It is never measured without edges."""
    name = loss_part_name(epoch)
    return run.part_facts(LAYOUT, name)["loss"] if run.is_committed(LAYOUT, name) else None
