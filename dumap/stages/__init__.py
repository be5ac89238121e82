"""A module for each stage, of the stage's name: it cuts the work into parts, and a task computes each part alone.

A task reads committed parts by the readers in artifacts/, calls kernels, and writes its own part. Stages know no
engine, nor one another: they hand `Context.compute` a task and the names of parts. Modules of other names are parts of
a stage (`repair` of audit, `loss` and `rounds` of layout) or shared by several (`distances`, `layout_common`, `passes`,
`fingerprints`). Only `given` defines stages of other names, and builds on two: it is how a run begins whose neighbours
are given.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dumap.artifacts.job import Job
from dumap.config import Config
from dumap.planning.budget import check_task
from dumap.planning.geometry import Geometry, shard_rows_of
from dumap.planning.plan import Plan, Projection
from dumap.store import Run

Task = Callable[..., None]


def no_backup(task: Task) -> Task:
    """Mark a task that writes several parts: no second copy of it is sent while the first still runs."""
    task.no_backup = True  # type: ignore[attr-defined]
    return task


@dataclass
class Context:
    """What the `run` function of a stage works with, on the driver.

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
        Called with messages for people.
    """

    job: Job
    plan: Plan
    compute: Callable[..., None]
    threads: int
    host_threads: int
    worker_memory: int
    note: Callable[[str], None]

    def require(self, stage: str, task_bytes: int, what: str, advice: str) -> None:
        """Refuse to go on with a stage that turned out larger than projected and fits no worker.

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
        """The geometry."""
        return self.job.geometry


@dataclass(frozen=True)
class Stage:
    """What a stage is, depends on, and takes; each stage declares it at the end of its module.

    Its bytes depend on its keys, on what it reads, on the data and on its code alone: equal settings and equal upstream
    stages give equal bytes.

    Attributes
    ----------
    name : str
        Folder of its parts.
    keys : tuple of str
        The settings on which its bytes depend, such as 'neighbors.metric': see `settings_of`.
    reads : tuple of str
        The stages whose parts it reads.
    writes : tuple of str
        The kinds of its parts: what their names begin with.
    temporary : mapping
        The kinds of parts that are deleted, each with the later stages that must be done before. All others are kept:
        another layout needs them.
    run : callable
        `run(context)` does the work, and returns the figures.
    project : callable
        `project(geometry, config, worker_memory)` says what it will take; `worker_memory` is 0 where it is not known.
    version : int
        Raised with each change of the bytes that its parts hold.
    writes_results : bool
        It writes the run's final arrays, so that no run can have it of another.
    """

    name: str
    keys: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    run: Callable[[Context], dict]
    project: Callable[[Geometry, Config, int], Projection]
    temporary: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    version: int = 1
    writes_results: bool = False


Recipe = tuple[Stage, ...]
"""Stages in the order in which they run: each reads only those before it."""

DERIVED: dict[str, Callable[[Config], Any]] = {
    "neighbors.width": lambda config: config.neighbors.search_k + 1,
    "layout.seed": lambda config: config.layout_seed,
    "neighbors.precomputed": lambda config: config.neighbors.precomputed is not None,
    "graph.shard_rows": shard_rows_of,
}
"""Settings that count by what is derived from them. null stands for another setting's value. Of given neighbours only
counts that there are some: what they hold has a fingerprint. A shard that memory cannot hold is made smaller."""


def settings_of(config: Config, keys: Iterable[str]) -> dict[str, Any]:
    """Return the values of some settings, by key, as stages depend on them.

    Raises
    ------
    KeyError
        There is no such setting.
    """
    found, values = {}, config.model_dump(mode="json")
    for key in keys:
        *sections, name = key.split(".")
        place = values
        for section in sections:
            place = place[section]
        found[key] = DERIVED[key](config) if key in DERIVED else place[name]
    return found
