"""Runs tasks on a Dask worker, and checks and describes the worker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, lru_cache
from typing import Any

from distributed import Reschedule, Status, Worker, get_worker

from dumap.artifacts.job import Job
from dumap.engine.checks import Requirements, UnfitWorker, WorkerFacts, differences
from dumap.engine.process import cache_error, cpu, named_error, run_task, versions
from dumap.errors import DumapError, StorageError
from dumap.stages import rounds
from dumap.store import FORMAT, IDENTITY, Run, learn_options, manifest_key, probe, set_threads
from dumap.store.objects import digest, lacks_room
from dumap.version import __version__

SETTLING_SECONDS = 0.5
"""A worker that dies as soon as it is there may not be started again: its nanny is still waiting for it."""


@dataclass(frozen=True)
class Orders:
    """What is sent with a task beside its job.

    Attributes
    ----------
    requirements : Requirements
        What the worker must have.
    topic, step, number
        Where it says that it begins and that it ends, and as what.
    ticks : bool
        Whether it says how far it is.
    """

    requirements: Requirements
    topic: str
    step: str
    number: int
    ticks: bool


def with_options(options: dict[str, Any], function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function where the options of buckets are known that the client knows."""
    learn_options(options)
    return function(*arguments)


def own() -> dict[str, Any]:
    """Return what a client and its workers must have in common."""
    return {"dumap": __version__, "format": FORMAT}


@cache
def _first_asked() -> float:
    """Return when this process was first asked for anything."""
    return time.monotonic()


def facts() -> dict[str, Any]:
    """Describe this worker."""
    _first_asked()
    limit = get_worker().memory_manager.memory_limit or 0
    found = {"memory_limit": limit, "versions": versions(), "cpu": cpu(), "format": FORMAT}
    return {**found, "cache_error": cache_error()}


def see(output: str, key: str) -> None:
    """Fail unless this worker sees an object that the client wrote, and may write as well."""
    if Run(output, read_only=True).get(key) is None:
        raise StorageError(f"it does not see {output} as this client does: name a shared folder or a URL")
    probe(output)


# fitness -----------------------------------------------------------------------------------------

_checking = threading.Lock()


def unfit(requirements: Requirements) -> list[str]:
    """Say why this worker must not take part in a run; found out once a process."""
    with _checking:
        return list(_unfit(requirements, get_worker().address))


@lru_cache(maxsize=16)
def _unfit(requirements: Requirements, address: str) -> tuple[str, ...]:
    found = differences(requirements, WorkerFacts(address, "", get_worker().state.nthreads, **facts()))
    if not found and requirements.seen:
        found = _blind(requirements)
    return tuple(found)


def _blind(requirements: Requirements) -> list[str]:
    """Describe why this worker cannot use the run's output; empty if it can."""
    try:
        data = Run(requirements.output, read_only=True).get(manifest_key(IDENTITY, "run"))
        if data is None or digest(data) != requirements.seen:
            return [f"it does not see {requirements.output} as the client does: name a shared folder or a URL"]
        probe(requirements.output)
    except DumapError as error:
        if lacks_room(error):  # for every worker alike: the run ends, and says so
            raise
        return [str(error)]
    return []


def free_caches() -> None:
    """Free what tasks have cached in this process."""
    rounds.free_caches()
    _unfit.cache_clear()


# a task ------------------------------------------------------------------------------------------


def _wait_for_nanny(worker: Worker) -> None:
    if worker.nanny is not None:
        time.sleep(max(0.0, _first_asked() + SETTLING_SECONDS - time.monotonic()))


def run_checked_task(
    orders: Orders, task: Callable[..., None], job: Job, part: str, options: dict[str, Any]
) -> dict[str, Any]:
    """Run one task of a run, after checking that this worker is fit, and report its begin and end.

    Raises
    ------
    UnfitWorker
        The worker must not take part; the task has not begun.
    DumapError
        As `execute`.
    """
    worker, last = get_worker(), 0.0
    _wait_for_nanny(worker)
    if reasons := unfit(orders.requirements):
        raise UnfitWorker(worker.address, reasons)

    def tell(message: dict[str, Any]) -> None:
        worker.log_event(orders.topic, {"step": orders.step, "number": orders.number, **message})

    def tick(done: float, total: float) -> None:
        nonlocal last
        if time.monotonic() - last > 1.0:
            last = time.monotonic()
            tell({"done": done, "total": total})

    tell({"worker": worker.address})
    took = execute(task, replace(job, tick=tick) if orders.ticks else job, part, options)
    tell(took)
    return took


def fill(orders: Orders, task: Callable[..., None], job: Job, part: str, grid: list[list[Any]]) -> None:
    """Write a part of the rows of a Dask collection, given its blocks.

    Raises
    ------
    UnfitWorker, DumapError
        As `run_checked_task`.
    """
    from dumap.engine.collections import assemble

    worker = get_worker()
    if reasons := unfit(orders.requirements):
        raise UnfitWorker(worker.address, reasons)
    took = execute(task, job, part, {"rows": assemble(grid, job.input.dtype)})
    worker.log_event(orders.topic, {"step": orders.step, "number": orders.number, **took})


def execute(task: Callable[..., None], job: Job, part: str, options: dict[str, Any]) -> dict[str, Any]:
    """Run one task on the worker: libraries on one thread, peak memory measured.

    Raises
    ------
    DumapError
        The task's own error, or one that names what came from below.
    """
    worker = get_worker()
    if worker.nanny is not None:  # and so a process that is nobody else's
        set_threads(1)
    try:
        return run_task(task, job, part, options, job.tick)
    except Exception as error:
        if worker.status not in (Status.running, Status.paused):  # it is leaving: others may have more luck
            raise Reschedule() from error
        if isinstance(error, DumapError):
            raise
        raise named_error(error, f"{job.title(task)} {part}") from error
