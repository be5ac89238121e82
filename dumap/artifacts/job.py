"""The job, which every task gets. It opens the run and the input in the process where the task runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np

from dumap.artifacts.part_names import VECTORS
from dumap.config import Config
from dumap.config.metrics import SHIFT_INVARIANT_METRICS
from dumap.kernels import csr, projection
from dumap.kernels.vectors import SPHERICAL, exceeds_float32, prepare_rows
from dumap.planning.geometry import Geometry
from dumap.sources.opening import open_source
from dumap.sources.source import Source
from dumap.sources.spooled import ObjectRows
from dumap.sources.zarr_array import PrecomputedNeighbors
from dumap.store import Run


def may_subtract_centre(metric: str, dtype: np.dtype) -> bool:
    """Return whether a centre may be subtracted from rows before the cast to float32."""
    return metric == SPHERICAL or (metric in SHIFT_INVARIANT_METRICS and exceeds_float32(dtype))


def _ignore_progress(done: float, total: float) -> None:
    return None


OPENED_LOCALLY = ("run", "input", "precomputed", "centre", "projected_dims", "object_rows")
"""Attributes that are not sent with a job: the process that runs the task opens them, or only the driver has them."""
CENTRE = "centre"
"""The part of stage vectors that holds the centre."""


@dataclass
class Job:
    """A task's argument: the configuration and the geometry, and access to the run and the input.

    The process that runs the task opens the run and the input.

    Attributes
    ----------
    config : Config
    geometry : Geometry
    report_progress : callable
        Called with (done, total) as a long task proceeds.
    term : int, optional
    token : str, optional
        The term and the token of the driver that sent the task: see `dumap.store.Lock`.
    inherited : mapping, optional
        Locations of the runs that hold stages of this run, by stage. By default they are read from the run.
    stage : str, optional
        The stage whose parts the task writes; None outside of runs.
    object_rows : ObjectRows, optional
        The object that is embedded, if it was given to this process.
    last_stage : str, optional
        The stage after which the driver stops; None to go on to the end of the recipe.
    """

    config: Config
    geometry: Geometry
    report_progress: Callable[[float, float], None] = field(default=_ignore_progress, compare=False)
    term: int | None = None
    token: str | None = None
    inherited: dict[str, str] | None = None
    stage: str | None = None
    object_rows: ObjectRows | None = field(default=None, compare=False)
    last_stage: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in OPENED_LOCALLY}

    def step_title(self, task: Callable[..., None]) -> str:
        """Return the name of a task's step for messages and measurements: the stage, or else the task's module."""
        return self.stage or task.__module__.split(".")[-1]

    @cached_property
    def run(self) -> Run:
        """The run's store, opened where the task runs."""
        return Run(self.config.output, term=self.term, token=self.token, inherited=self.inherited)

    @cached_property
    def input(self) -> Source:
        """The input, opened where the task runs."""
        return open_source(self.config.input, lambda: self.run)

    @property
    def may_be_centred(self) -> bool:
        """Whether a centre may be subtracted from rows before the cast to float32; it would fill sparse ones."""
        return not self.input.sparse and may_subtract_centre(self.config.neighbors.metric, self.input.dtype)

    @cached_property
    def centre(self) -> np.ndarray | None:
        """The centre that is subtracted from rows before the cast, or None."""
        if not self.may_be_centred:
            return None
        return self.run.read(VECTORS, CENTRE, "centre") if self.run.part_facts(VECTORS, CENTRE)["applies"] else None

    @cached_property
    def projected_dims(self) -> np.ndarray:
        """Where the columns of sparse rows are projected to: see `dumap.kernels.projection`."""
        return projection.draw_column_places(self.geometry.source_dims, self.config.seed)

    def prepare_rows(self, values: Any) -> np.ndarray:
        """Turn values of the input into rows in whose space cells are found.

        See `dumap.kernels.vectors.prepare_rows`, and `dumap.kernels.projection` of sparse rows.
        """
        metric = self.config.neighbors.metric
        if self.geometry.is_sparse:
            return projection.project_rows(csr.as_float32(values), self.projected_dims, metric)
        return prepare_rows(values, metric, self.centre)

    def as_compared(self, values: Any) -> Any:
        """Turn values of the input into rows by which exact distances are computed: sparse ones stay so, in float32."""
        return csr.as_float32(values) if self.geometry.is_sparse else self.prepare_rows(values)

    @property
    def tree_metric(self) -> str:
        """The metric by which `to_euclidean` maps rows of `prepare_rows`; projections are there already."""
        return "euclidean" if self.geometry.is_sparse else self.config.neighbors.metric

    def read_rows(self, start: int, stop: int) -> np.ndarray:
        """Read rows [start, stop) of the input as float32, (n, geometry.dims): see `prepare_rows`."""
        return self.prepare_rows(self.input.read(start, stop))

    @cached_property
    def precomputed(self) -> PrecomputedNeighbors:
        """The given k-NN graph, if there is one."""
        path = self.config.neighbors.precomputed
        if path is None:
            raise ValueError("neighbors.precomputed names no graph")
        return PrecomputedNeighbors(path, self.geometry.rows)
