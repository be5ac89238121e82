"""What happens around a task in the process that runs it, and what such a process says of itself."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any

from distributed import Worker, get_worker

from dumap.engine.process import cpu, run_task, versions
from dumap.errors import StorageError
from dumap.stages import Job
from dumap.store import Run, probe, set_threads

SETTLING_SECONDS = 0.5
"""A worker that dies as soon as it is there may not be started again: its nanny is still waiting for it."""
TOPIC = "dumap"


@dataclass(frozen=True)
class WorkerFacts:
    """What one worker says of itself."""

    address: str
    host: str
    threads: int
    memory_limit: int
    versions: dict[str, str]
    cpu: str


@cache
def _met() -> float:
    """Return when this process was first asked for anything."""
    return time.monotonic()


def facts(dask_worker: Worker) -> dict[str, Any]:
    """Say what a worker has and runs on."""
    _met()
    return {
        "memory_limit": dask_worker.memory_manager.memory_limit or 0,
        "versions": versions(),
        "cpu": cpu(),
    }


def see(output: str, key: str) -> None:
    """Fail unless this worker sees an object that the client wrote, and may write as well."""
    run = Run(output)
    if run.get(key) is None:
        raise StorageError(f"it does not see {output} as this client does: name a shared folder or a URL")
    probe(output)


def _settle_in(worker: Worker) -> None:
    if worker.nanny is not None:
        time.sleep(max(0.0, _met() + SETTLING_SECONDS - time.monotonic()))


def execute(task: Callable[..., None], job: Job, part: str, options: dict[str, Any]) -> dict[str, Any]:
    """Run one task on the worker, and tell of it as it goes on."""
    worker, last = get_worker(), 0.0
    _settle_in(worker)

    def tick(done: float, total: float) -> None:
        nonlocal last
        if time.monotonic() - last > 1.0:
            last = time.monotonic()
            worker.log_event(TOPIC, {"run": job.config.output, "part": part, "done": done, "total": total})

    if worker.nanny is not None:  # and so a process that is nobody else's
        set_threads(1)
    return run_task(task, job, part, options, tick)
