"""One module a stage: each cuts its work into parts, and a task writes each part alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from typing import Any

import numpy as np

from dumap.config import Config
from dumap.config.metrics import SHIFT_FREE
from dumap.errors import ConfigError
from dumap.kernels.layout import Descent
from dumap.kernels.vectors import SPHERICAL, is_wide, place
from dumap.planning.budget import check_task
from dumap.planning.curve import curve
from dumap.planning.geometry import Geometry
from dumap.planning.plan import Plan
from dumap.sources.zarr_array import Input, Precomputed
from dumap.store import Run


def centred(metric: str, dtype: np.dtype) -> bool:
    """Tell whether something may be subtracted from rows before they become float32."""
    return metric == SPHERICAL or (metric in SHIFT_FREE and is_wide(dtype))


def _silent(done: float, total: float) -> None:
    return None


HERE = ("run", "input", "precomputed", "centre")
"""What a job finds where its task runs, and does not travel with it."""
CHECKED, CENTRE = "vectors", "centre"
"""The stage that reads every row first, and its part that says what is subtracted from rows."""


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
    """

    config: Config
    geometry: Geometry
    tick: Callable[[float, float], None] = field(default=_silent, compare=False)
    term: int | None = None
    token: str | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in self.__dict__.items() if name not in HERE}

    @cached_property
    def run(self) -> Run:
        """The run's store, opened where the task runs."""
        return Run(self.config.output, term=self.term, token=self.token)

    @cached_property
    def input(self) -> Input:
        """The input, opened where the task runs."""
        return Input(self.config.input.path, self.config.input.array)

    @cached_property
    def centre(self) -> np.ndarray | None:
        """What is subtracted from rows before they are cast, as the stage vectors found it; None where nothing is."""
        if not centred(self.config.neighbors.metric, self.input.dtype):
            return None
        return self.run.read(CHECKED, CENTRE, "centre") if self.run.summary(CHECKED, CENTRE)["applies"] else None

    def place(self, values: np.ndarray) -> np.ndarray:
        """Return rows of the input's values as they are embedded, float32: see `dumap.kernels.vectors.place`."""
        return place(values, self.config.neighbors.metric, self.centre)

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


Task = Callable[..., None]


def writes_more(task: Task) -> Task:
    """Mark a task that writes more than its own part, of which no second copy may run beside the first."""
    task.writes_more = True  # type: ignore[attr-defined]
    return task


@dataclass
class Context:
    """What a stage's recipe works with, on the driver.

    Attributes
    ----------
    job : Job
    plan : Plan
    compute : callable
        `compute(stage, task, parts, **options)` runs `task(job, part, **options)` for every part not yet
        committed, on the cluster, and returns when all are.
    threads, host_threads, worker_memory : int
        Threads of all workers, those of the host that has most, and the smallest worker's memory limit.
    note : callable
        Told what a person may want to know.
    """

    job: Job
    plan: Plan
    compute: Callable[..., None]
    threads: int
    host_threads: int
    worker_memory: int
    note: Callable[[str], None]

    def require(self, stage: str, task_bytes: int, what: str, advice: str) -> None:
        """Refuse to begin a part of a stage that takes more than was projected, once facts tell, if no worker holds it.

        Raises
        ------
        BudgetError
        """
        check_task(stage, task_bytes, self.worker_memory, what, advice)

    @property
    def run(self) -> Run:
        """The run's store."""
        return self.job.run

    @property
    def config(self) -> Config:
        """The configuration."""
        return self.job.config

    @property
    def geometry(self) -> Geometry:
        """The cut."""
        return self.job.geometry


def numbered(prefix: str, count: int) -> list[str]:
    """Name `count` parts."""
    return [f"{prefix}-{number:05d}" for number in range(count)]


def number_of(part: str) -> int:
    """Return the number in a part's name."""
    return int(part.rsplit("-", 1)[1])


def ranged(prefix: str, first: int, last: int) -> str:
    """Name the part of a range of shards."""
    return f"{prefix}-{first:05d}-{last:05d}"


def range_of(part: str) -> tuple[int, int]:
    """Return the range of shards in a part's name."""
    first, last = part.rsplit("-", 2)[1:]
    return int(first), int(last)


def total(run: Run, stage: str, parts: Sequence[str], fact: str) -> Any:
    """Add up a fact that every part's task left in its manifest."""
    return sum(run.summary(stage, part)[fact] for part in parts)


def evenly(count: int, ranges: int) -> list[tuple[int, int]]:
    """Cut `count` things into so many ranges, or as many as there are things."""
    return list(pairwise(np.unique(np.linspace(0, count, ranges + 1).astype(int)).tolist()))


def descent(job: Job) -> Descent:
    """Return what all epochs of the layout share."""
    own = job.config.layout
    return Descent(
        *curve(own),
        own.learning_rate,
        own.repulsion_strength,
        own.negative_sample_rate,
        job.geometry.n_epochs,
        job.config.seed,
    )


def require_finite(job: Job, y: np.ndarray, where: str) -> None:
    """Raise a ConfigError where coordinates have run away to what is no number."""
    if not np.isfinite(y).all():
        own = job.config.layout.model_dump(include={"learning_rate", "spread", "a", "b", "repulsion_strength"})
        raise ConfigError(
            f"{where} coordinates are not finite; some of "
            f"{', '.join(f'layout.{name} = {value}' for name, value in own.items())} are too large"
        )
