"""The stages: each has a module of its name, which divides the work into parts. A task computes one part.

A task reads committed parts by the readers in artifacts/, calls kernels, and writes its own part. Stages know neither
engines nor one another: they give `Context.compute` a task and the names of parts. Modules of other names belong to one
or two stages (`repair` to audit, `sorting` to cells and neighbors, `components` to graph, `loss` and `rounds` to
layout) or are shared by several (`distances`, `layout_common`, `passes`, `fingerprints`). `given` defines the first
four stages of runs with given neighbours, which replace vectors, cells, neighbors and audit, and uses tasks of vectors
and audit.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from dumap.artifacts.job import Job
from dumap.artifacts.part_names import part_names, parts_to_sum
from dumap.compiled import patch_numba_cache
from dumap.config import Config
from dumap.planning.budget import check_task
from dumap.planning.geometry import Geometry, max_shard_rows
from dumap.planning.plan import Plan, StageProjection
from dumap.store import Run

Task = Callable[..., None]
patch_numba_cache()


def no_backup(task: Task) -> Task:
    """Mark a task that writes several parts. No second copy of such a task is sent while the first copy runs."""
    task.no_backup = True  # type: ignore[attr-defined]
    return task


def cached_by_unit(unit_of: Callable[[str], Hashable]) -> Callable[[Task], Task]:
    """Mark a task that keeps in its process what the next task of the same unit needs, which should run there too.

    `unit_of(part)` returns the unit of a part.
    """

    def mark(task: Task) -> Task:
        task.unit_of = unit_of  # type: ignore[attr-defined]
        return task

    return mark


@dataclass
class Context:
    """The argument of a stage's `run` function, which runs on the driver.

    Attributes
    ----------
    job : Job
    plan : Plan
    compute : callable
        `compute(stage, task, parts, **options)` runs `task(job, part, **options)` for every part that is not committed,
        on workers or in threads of this process. It returns when all parts are committed.
    threads, host_threads, worker_memory : int
        Threads of all workers, threads of the host that has most, and the smallest worker's memory limit.
    log : callable
        Called with messages for people.
    """

    job: Job
    plan: Plan
    compute: Callable[..., None]
    threads: int
    host_threads: int
    worker_memory: int
    log: Callable[[str], None]

    def require_memory(self, stage: str, task_bytes: int, what: str, advice: str) -> None:
        """Refuse a stage that is larger than projected, if its task fits no worker.

        Raises
        ------
        BudgetError
        """
        check_task(stage, task_bytes, self.worker_memory, what, advice)

    def sum_in_ranges(self, stage: str, task: Task, kind: str, sums: str, count: int, **options: Any) -> None:
        """Add up many parts of a kind in ranges, by a task, so that the next task reads few: see `parts_to_sum`."""
        if (parts := parts_to_sum(kind, sums, count)) != part_names(kind, count):
            self.compute(stage, task, parts, **options)

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
    """A stage's declaration, at the end of its module: what the stage depends on, writes and takes.

    A stage's bytes depend on its keys, on the stages that it reads, on the data and on its code alone. So equal
    settings and equal earlier stages give equal bytes.

    Attributes
    ----------
    name : str
        The stage's name, which is also the folder of its parts.
    setting_keys : tuple of str
        The settings on which the stage's bytes depend, such as 'neighbors.metric': see `settings_of`.
    reads : tuple of str
        The stages whose parts this stage reads.
    writes : tuple of str
        The kinds of the stage's parts: a part's name begins with its kind.
    temporary_kinds : mapping
        The kinds of parts that are deleted, each with the later stages that must be done first. Parts of other kinds
        are kept, since another layout needs them.
    run : callable
        `run(context)` does the work and returns the stage's facts.
    project : callable
        `project(geometry, config, worker_memory)` returns what the stage will take; `worker_memory` is 0 if it is not
        known.
    version : int
        Raised with each change of the bytes of the stage's parts.
    writes_results : bool
        Whether the stage writes the run's final arrays. Such a stage is never taken from a parent.
    """

    name: str
    setting_keys: tuple[str, ...]
    reads: tuple[str, ...]
    writes: tuple[str, ...]
    run: Callable[[Context], dict]
    project: Callable[[Geometry, Config, int], StageProjection]
    temporary_kinds: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    version: int = 1
    writes_results: bool = False


Recipe = tuple[Stage, ...]
"""Stages in the order in which they run. A stage reads only stages before it."""

DERIVED_SETTINGS: dict[str, Callable[[Config], Any]] = {
    "neighbors.width": lambda config: config.neighbors.search_k + 1,
    "layout.seed": lambda config: config.layout_seed,
    "neighbors.precomputed": lambda config: config.neighbors.precomputed is not None,
    "graph.shard_rows": max_shard_rows,
}
"""Settings for which a digest uses a derived value. A null is replaced by the setting whose value it stands for. Given
neighbours count by whether there are any, since their content has a fingerprint. A shard has no more rows than memory
can hold."""


def settings_of(config: Config, keys: Iterable[str]) -> dict[str, Any]:
    """Return the values of settings, by key, in the form on which stages depend.

    Raises
    ------
    KeyError
        There is no such setting.
    """
    settings, values = {}, config.model_dump(mode="json")
    for key in keys:
        *sections, name = key.split(".")
        place = values
        for section in sections:
            place = place[section]
        settings[key] = DERIVED_SETTINGS[key](config) if key in DERIVED_SETTINGS else place[name]
    return settings
