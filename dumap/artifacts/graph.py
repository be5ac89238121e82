"""The symmetric graph, in shards."""

from __future__ import annotations

import math
from functools import cached_property

import numpy as np

from dumap.artifacts.part_names import GRAPH, part_name, part_names, sum_fact
from dumap.kernels import graph
from dumap.store import Run

GRAPH_FACTS = "whole"
"""The part that holds the figures of the whole graph."""
SHARDS = "shards"
"""The part that says where shards begin."""


class RowRanges:
    """Consecutive ranges of positions, such as the shards of the graph. `offsets` are their bounds, (ranges + 1,)."""

    def __init__(self, offsets: np.ndarray) -> None:
        self.offsets, self.rows = offsets, int(offsets[-1])

    @classmethod
    def of_size(cls, rows: int, shard_rows: int) -> RowRanges:
        """Cut rows into ranges, all but the last of the same size."""
        return cls(np.minimum(np.arange(math.ceil(rows / shard_rows) + 1) * shard_rows, rows))

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def row_range(self, shard: int) -> tuple[int, int]:
        """Return the positions [start, stop) of a shard."""
        return int(self.offsets[shard]), int(self.offsets[shard + 1])


def read_repeated_positions(run: Run, block: int) -> np.ndarray:
    """Return the positions of a block's rows that have duplicates, in the order of the rows."""
    return run.read(GRAPH, part_name("repeated_positions", block), "positions")


class Graph:
    """The symmetric graph, read shard by shard."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.shards = RowRanges(run.read(GRAPH, SHARDS, "offsets"))
        self.names = part_names("united", len(self.shards))

    def read(self, shard: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return a shard's indptr, tails (positions) and weights."""
        name = self.names[shard]
        return tuple(self.run.read(GRAPH, name, array) for array in ("indptr", "tails", "weights"))  # type: ignore[return-value]

    def isolated_positions(self, shard: int) -> np.ndarray:
        """Return the positions of a shard's rows that have no edge."""
        return self.run.read(GRAPH, self.names[shard], "isolated")

    def count_edges(self, first: int, last: int) -> int:
        """Count the edges of shards [first, last). An edge with both ends in these shards counts twice."""
        return int(sum_fact(self.run, GRAPH, self.names[first:last], "edges"))

    @cached_property
    def occurrence_offsets(self) -> np.ndarray:
        """Each shard's first occurrence, (shards + 1,). A row occurs once for itself and once for each duplicate."""
        return np.array(self.run.part_facts(GRAPH, GRAPH_FACTS)["occurrence_offsets"])

    def read_repeated(self, first: int, last: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions in shards [first, last) that have duplicates, ascending, and how often each row
        occurs.
        """
        arrays = [
            [self.run.read(GRAPH, name, array) for name in self.names[first:last]] for array in ("repeated", "times")
        ]
        return np.concatenate(arrays[0]), np.concatenate(arrays[1])

    def positions_of(self, occurrences: np.ndarray) -> np.ndarray:
        """Return the positions of the rows that occurrences belong to, reading one shard after another."""
        shards = np.searchsorted(self.occurrence_offsets, occurrences, side="right") - 1
        starts = self.shards.offsets[shards]
        rows = occurrences - self.occurrence_offsets[shards]
        has_duplicates = np.diff(self.occurrence_offsets) > np.diff(self.shards.offsets)
        for shard in np.unique(shards[has_duplicates[shards]]):
            in_shard, (repeated, times) = shards == shard, self.read_repeated(shard, shard + 1)
            rows[in_shard] = graph.rows_of_occurrences(rows[in_shard], repeated - self.shards.offsets[shard], times)
        return rows + starts

    @property
    def greatest_weight(self) -> float:
        """The greatest weight."""
        return float(max(self.run.part_facts(GRAPH, name)["greatest"] for name in self.names))
