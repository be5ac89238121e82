"""What a task is given, and what it finds where it runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from dumap.artifacts.parts import VECTORS
from dumap.config import Config
from dumap.config.metrics import SHIFT_FREE
from dumap.kernels.vectors import SPHERICAL, as_embedded, is_wide
from dumap.planning.geometry import Geometry
from dumap.sources.zarr_array import Input, Precomputed
from dumap.store import Run


def centred(metric: str, dtype: np.dtype) -> bool:
    """Tell whether something may be subtracted from rows before they become float32."""
    return metric == SPHERICAL or (metric in SHIFT_FREE and is_wide(dtype))


def _silent(done: float, total: float) -> None:
    return None


HERE = ("run", "input", "precomputed", "centre")
"""What a job finds where its task runs, and does not travel with it."""
CENTRE = "centre"
"""The part of stage vectors that says what is subtracted from rows."""


@dataclass
class Job:
    """What a task is given: where the run lies, what it was told and how the data is cut.

    Attributes
    ----------
    config : Config
    geometry : Geometry
    tick : callable
        Told of (done, total) as a long task goes on.
    term : int, optional
    token : str, optional
        The term of the driver that gave the task, and what tells it from others: see `dumap.store.Lock`.
    inherited : mapping, optional
        The stages whose parts other runs hold, and where these lie; where it is not given, the run says so.
    """

    config: Config
    geometry: Geometry
    tick: Callable[[float, float], None] = field(default=_silent, compare=False)
    term: int | None = None
    token: str | None = None
    inherited: dict[str, str] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in HERE}

    @cached_property
    def run(self) -> Run:
        """The run's store, opened where the task runs."""
        return Run(self.config.output, term=self.term, token=self.token, inherited=self.inherited)

    @cached_property
    def input(self) -> Input:
        """The input, opened where the task runs."""
        return Input(self.config.input.path, self.config.input.array)

    @cached_property
    def centre(self) -> np.ndarray | None:
        """What is subtracted from rows before they are cast, as the stage vectors found it; None where nothing is."""
        if not centred(self.config.neighbors.metric, self.input.dtype):
            return None
        return self.run.read(VECTORS, CENTRE, "centre") if self.run.summary(VECTORS, CENTRE)["applies"] else None

    def place(self, values: np.ndarray) -> np.ndarray:
        """Return rows of the input's values as they are embedded, float32: see `dumap.kernels.vectors.as_embedded`."""
        return as_embedded(values, self.config.neighbors.metric, self.centre)

    def rows(self, start: int, stop: int) -> np.ndarray:
        """Read rows [start, stop) as they are embedded, (n, geometry.dims) float32."""
        return self.place(self.input.read(start, stop))

    @cached_property
    def precomputed(self) -> Precomputed:
        """The k-NN graph that is given, where one is."""
        path = self.config.neighbors.precomputed
        if path is None:
            raise ValueError("neighbors.precomputed names no graph")
        return Precomputed(path, self.geometry.rows)
