"""Functions that run on a Dask worker: they run tasks, and describe and check the worker."""

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
"""Seconds before the first task of a worker: a nanny may not restart a worker that dies sooner."""


@dataclass(frozen=True)
class TaskEnvelope:
    """The data that is sent with a task in addition to its job.

    Attributes
    ----------
    requirements : Requirements
        What the worker must have.
    topic : str
        The topic of the task's messages.
    step : str
        The name of the step, which each message holds.
    number : int
        The number of the attempt, which each message holds.
    ticks : bool
        Whether the task reports its progress.
    """

    requirements: Requirements
    topic: str
    step: str
    number: int
    ticks: bool


def with_options(options: dict[str, Any], function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function after this process has learnt the client's options of buckets."""
    learn_options(options)
    return function(*arguments)


def own() -> dict[str, Any]:
    """Return the requirements that depend on this installation of dumap alone."""
    return {"dumap": __version__, "format": FORMAT}


@cache
def _first_asked() -> float:
    """Return when this process received its first question or task."""
    return time.monotonic()


def facts() -> dict[str, Any]:
    """Return the facts about this worker, see `WorkerFacts`."""
    _first_asked()
    limit = get_worker().memory_manager.memory_limit or 0
    known = {"memory_limit": limit, "versions": versions(), "cpu": cpu(), "format": FORMAT}
    return {**known, "cache_error": cache_error()}


def check_output_access(output: str, key: str) -> None:
    """Fail unless this worker can read an object that the client wrote, and can write to the output."""
    if Run(output, read_only=True).get(key) is None:
        raise StorageError(f"it does not see {output} as this client does: name a shared folder or a URL")
    probe(output)


# fitness -----------------------------------------------------------------------------------------

_checking = threading.Lock()


def unfit(requirements: Requirements) -> list[str]:
    """Return the reasons why this worker must not take part in a run; the check runs once per process."""
    with _checking:
        return list(_unfit(requirements, get_worker().address))


@lru_cache(maxsize=16)
def _unfit(requirements: Requirements, address: str) -> tuple[str, ...]:
    """Return the reasons, cached for equal requirements."""
    reasons = differences(requirements, WorkerFacts(address, "", get_worker().state.nthreads, **facts()))
    if not reasons and requirements.seen:
        reasons = _output_errors(requirements)
    return tuple(reasons)


def _output_errors(requirements: Requirements) -> list[str]:
    """Return the reasons why this worker cannot use the run's output; empty if it can."""
    try:
        data = Run(requirements.output, read_only=True).get(manifest_key(IDENTITY, "run"))
        if data is None or digest(data) != requirements.seen:
            return [f"it does not see {requirements.output} as the client does: name a shared folder or a URL"]
        probe(requirements.output)
    except DumapError as error:
        if lacks_room(error):  # the disk is full for every worker, so the run must end
            raise
        return [str(error)]
    return []


def free_caches() -> None:
    """Free what tasks have cached in this process."""
    rounds.free_caches()
    _unfit.cache_clear()


# a task ------------------------------------------------------------------------------------------


def _wait_for_nanny(worker: Worker) -> None:
    """Wait until the worker's nanny would restart the worker if it died."""
    if worker.nanny is not None:
        time.sleep(max(0.0, _first_asked() + SETTLING_SECONDS - time.monotonic()))


def run_checked_task(
    orders: TaskEnvelope, task: Callable[..., None], job: Job, part: str, options: dict[str, Any]
) -> dict[str, Any]:
    """Check that this worker is fit, run one task, and send messages when it begins, progresses and ends.

    Raises
    ------
    UnfitWorker
        The worker must not take part; the task has not begun.
    DumapError
        See `execute`.
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
    usage = execute(task, replace(job, tick=tick) if orders.ticks else job, part, options)
    tell(usage)
    return usage


def fill(orders: TaskEnvelope, task: Callable[..., None], job: Job, part: str, grid: list[list[Any]]) -> None:
    """Check that this worker is fit, and write a part of the spool from the blocks of a Dask collection.

    Raises
    ------
    UnfitWorker, DumapError
        See `run_checked_task`.
    """
    from dumap.engine.collections import assemble

    worker = get_worker()
    if reasons := unfit(orders.requirements):
        raise UnfitWorker(worker.address, reasons)
    usage = execute(task, job, part, {"rows": assemble(grid, job.input.dtype)})
    worker.log_event(orders.topic, {"step": orders.step, "number": orders.number, **usage})


def execute(task: Callable[..., None], job: Job, part: str, options: dict[str, Any]) -> dict[str, Any]:
    """Run one task on this worker, see `dumap.engine.process.run_task`.

    Raises
    ------
    DumapError
        The error of the task; an error of another kind is replaced by one that names the part.
    Reschedule
        The task failed on a worker that is leaving.
    """
    worker = get_worker()
    if worker.nanny is not None:  # the process belongs to the worker alone
        set_threads(1)
    try:
        return run_task(task, job, part, options, job.tick)
    except Exception as error:
        if worker.status not in (
            Status.running,
            Status.paused,
        ):  # the worker is leaving, which may have caused the error
            raise Reschedule() from error
        if isinstance(error, DumapError):
            raise
        raise named_error(error, f"{job.title(task)} {part}") from error
