"""One module a stage, of the stage's name: it cuts the work into parts, and a task computes each part alone.

A task reads committed parts by the readers in artifacts/, calls kernels, and writes its own part. Stages know no
engine, nor one another: they hand `Context.compute` a task and the names of parts. Modules of other names are parts of
a stage (`repair` of audit, `coarsen` of start, `loss` and `rounds` of layout) or shared by several (`distances`,
`descent`, `passes`, `fingerprints`, `given`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from dumap.artifacts.job import Job
from dumap.config import Config
from dumap.planning.budget import check_task
from dumap.planning.geometry import Geometry
from dumap.planning.plan import Plan
from dumap.store import Run

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
