"""The start: coordinates, pass after pass, and the first of every row."""

from __future__ import annotations

import numpy as np

from dumap.artifacts.parts import START, numbered
from dumap.store import Run, Series

BOX = "box"
"""The part that says how far the coordinates reach before they are stretched, and what is told of the start."""
COARSE = "coarse"
"""The part that holds the coarse layout."""


class Starts:
    """The first coordinates of shards."""

    def __init__(self, run: Run, shards: int) -> None:
        self.run, self.names = run, numbered("coordinates", shards)

    def read(self, shard: int, first: int = 0, stop: int | None = None) -> np.ndarray:
        """Return those of rows [first, stop) of a shard."""
        return self.run.read(START, self.names[shard], "y", first, stop)


def smoothed(run: Run) -> Series:
    """Return the passes in which coordinates are smoothed."""
    return Series(run, START, "smoothed", "smooth")
