"""The coordinates of the start, and the checkpoints of smoothing."""

from __future__ import annotations

import numpy as np

from dumap.artifacts.part_names import START, part_names
from dumap.store import Checkpoints, Run

BOX = "box"
"""The part that holds the bounding box of the coordinates before they are stretched, and the figures of the start."""
COARSE = "coarse"
"""The part that holds the coarse layout."""


class StartCoordinates:
    """The coordinates of the start, by shard."""

    def __init__(self, run: Run, shards: int) -> None:
        self.run, self.names = run, part_names("coordinates", shards)

    def read(self, shard: int, first: int = 0, stop: int | None = None) -> np.ndarray:
        """Read rows [first, stop) of a shard."""
        return self.run.read(START, self.names[shard], "y", first, stop)


def smoothing_checkpoints(run: Run) -> Checkpoints:
    """Return the checkpoints of smoothing."""
    return Checkpoints(run, START, "smoothed")
