"""The united graph, shard by shard."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from dumap.artifacts.parts import GRAPH, numbered, total
from dumap.kernels import graph
from dumap.store import Run

WHOLE = "whole"
"""The part that says what all shards together come to."""
SHARDS = "shards"
"""The part that says where the shards of the united graph begin."""


class Shards:
    """Ranges of positions, (shards + 1,) `offsets`."""

    def __init__(self, offsets: np.ndarray) -> None:
        self.offsets, self.rows = offsets, int(offsets[-1])

    @classmethod
    def even(cls, rows: int, shard_rows: int) -> Shards:
        """Cut rows into ranges, all but the last of the same size."""
        return cls(np.minimum(np.arange(math.ceil(rows / shard_rows) + 1) * shard_rows, rows))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def span(self, shard: int) -> tuple[int, int]:
        """Return the positions [start, stop) of a shard."""
        return int(self.offsets[shard]), int(self.offsets[shard + 1])


def placed_in(run: Run, block: int) -> np.ndarray:
    """Return the positions of a block's rows that have copies, in the order of rows."""
    return run.read(GRAPH, numbered("placed", block + 1)[-1], "positions")


class Graph:
    """The united graph, read shard by shard."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.shards = Shards(run.read(GRAPH, SHARDS, "offsets"))
        self.names = numbered("united", len(self.shards))

    def read(self, shard: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a shard's indptr, tails (positions) and weights."""
        name = self.names[shard]
        return tuple(self.run.read(GRAPH, name, array) for array in ("indptr", "tails", "weights"))  # type: ignore[return-value]

    def isolated(self, shard: int) -> np.ndarray:
        """Return the positions of a shard's rows that have no edge."""
        return self.run.read(GRAPH, self.names[shard], "isolated")

    def edges_of(self, first: int, last: int) -> int:
        """Count the edges of shards [first, last), those inside from both their ends."""
        return int(total(self.run, GRAPH, self.names[first:last], "edges"))

    @cached_property
    def places(self) -> np.ndarray:
        """Where each shard's places begin, and all end, (shards + 1,): a row takes one for itself and for each copy."""
        return np.array(self.run.summary(GRAPH, WHOLE)["places"])

    def repeated(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions in shards [first, last) that have copies, ascending, and how many places they take."""
        found = [
            [self.run.read(GRAPH, name, array) for name in self.names[first:last]] for array in ("repeated", "times")
        ]
        return np.concatenate(found[0]), np.concatenate(found[1])

    def rows_at(self, places: np.ndarray) -> np.ndarray:
        """Return the positions of the rows at some places, reading shards one after another."""
        shards = np.searchsorted(self.places, places, side="right") - 1
        starts = self.shards.offsets[shards]
        rows = places - self.places[shards]
        more = np.diff(self.places) > np.diff(self.shards.offsets)
        for shard in np.unique(shards[more[shards]]):
            own, (repeated, times) = shards == shard, self.repeated(shard, shard + 1)
            rows[own] = graph.rows_at(rows[own], repeated - self.shards.offsets[shard], times)
        return rows + starts

    @property
    def greatest(self) -> float:
        """The greatest weight."""
        return float(max(self.run.summary(GRAPH, name)["greatest"] for name in self.names))
