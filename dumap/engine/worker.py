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
from dumap.engine.checks import UnfitWorkerError, WorkerFacts, WorkerRequirements, describe_differences
from dumap.engine.process import cache_error, cpu_name, name_task_in_error, run_task, versions
from dumap.errors import DumapError, StorageError
from dumap.stages import rounds
from dumap.store import FORMAT, IDENTITY, Run, add_options, check_writable, limit_zarr_threads, manifest_key
from dumap.store.objects import digest, is_disk_full
from dumap.version import __version__

NANNY_START_SECONDS = 0.5
"""Seconds before the first task of a worker: a nanny may not restart a worker that dies sooner."""


@dataclass(frozen=True)
class TaskEnvelope:
    """The data that is sent with a task in addition to its job.

    Attributes
    ----------
    requirements : WorkerRequirements
        What the worker must have.
    topic : str
        The topic of the task's messages.
    step : str
        The name of the step, which each message holds.
    attempt_number : int
        The number of the attempt, which each message holds.
    reports_progress : bool
        Whether the task reports its progress.
    """

    requirements: WorkerRequirements
    topic: str
    step: str
    attempt_number: int
    reports_progress: bool


def with_options(options: dict[str, Any], function: Callable[..., Any], *arguments: Any) -> Any:
    """Call a function after this process has learnt the client's options of buckets."""
    add_options(options)
    return function(*arguments)


def own_requirements() -> dict[str, Any]:
    """Return the requirements that depend on this installation of dumap alone."""
    return {"dumap": __version__, "format": FORMAT}


@cache
def _first_question_time() -> float:
    """Return when this process received its first question or task."""
    return time.monotonic()


def collect_facts() -> dict[str, Any]:
    """Return the facts about this worker, see `WorkerFacts`."""
    _first_question_time()
    limit = get_worker().memory_manager.memory_limit or 0
    worker_facts = {"memory_limit": limit, "versions": versions(), "cpu": cpu_name(), "format": FORMAT}
    return {**worker_facts, "cache_error": cache_error()}


def check_output_access(output: str, key: str) -> None:
    """Fail unless this worker can read an object that the client wrote, and can write to the output."""
    if Run(output, read_only=True).get(key) is None:
        raise StorageError(f"it does not see {output} as this client does: name a shared folder or a URL")
    check_writable(output)


# fitness -----------------------------------------------------------------------------------------

_check_lock = threading.Lock()


def unfit_reasons(requirements: WorkerRequirements) -> list[str]:
    """Return the reasons why this worker must not take part in a run; the check runs once per process."""
    with _check_lock:
        return list(_cached_unfit_reasons(requirements, get_worker().address))


@lru_cache(maxsize=16)
def _cached_unfit_reasons(requirements: WorkerRequirements, address: str) -> tuple[str, ...]:
    """Return the reasons, cached for equal requirements."""
    reasons = describe_differences(
        requirements, WorkerFacts(address, "", get_worker().state.nthreads, **collect_facts())
    )
    if not reasons and requirements.identity_digest:
        reasons = _output_errors(requirements)
    return tuple(reasons)


def _output_errors(requirements: WorkerRequirements) -> list[str]:
    """Return the reasons why this worker cannot use the run's output; empty if it can."""
    try:
        data = Run(requirements.output, read_only=True).get(manifest_key(IDENTITY, "run"))
        if data is None or digest(data) != requirements.identity_digest:
            return [f"it does not see {requirements.output} as the client does: name a shared folder or a URL"]
        check_writable(requirements.output)
    except DumapError as error:
        if is_disk_full(error):  # the disk is full for every worker, so the run must end
            raise
        return [str(error)]
    return []


def free_caches() -> None:
    """Free what tasks have cached in this process."""
    rounds.free_caches()
    _cached_unfit_reasons.cache_clear()


# a task ------------------------------------------------------------------------------------------


def _wait_for_nanny(worker: Worker) -> None:
    """Wait until the worker's nanny would restart the worker if it died."""
    if worker.nanny is not None:
        time.sleep(max(0.0, _first_question_time() + NANNY_START_SECONDS - time.monotonic()))


def run_checked_task(
    envelope: TaskEnvelope, task: Callable[..., None], job: Job, part: str, options: dict[str, Any]
) -> dict[str, Any]:
    """Check that this worker is fit, run one task, and send messages when it begins, progresses and ends.

    Raises
    ------
    UnfitWorkerError
        The worker must not take part; the task has not begun.
    DumapError
        See `execute_task`.
    """
    worker, last_report = get_worker(), 0.0
    _wait_for_nanny(worker)
    if reasons := unfit_reasons(envelope.requirements):
        raise UnfitWorkerError(worker.address, reasons)

    def send_message(message: dict[str, Any]) -> None:
        worker.log_event(envelope.topic, {"step": envelope.step, "number": envelope.attempt_number, **message})

    def report_progress(done: float, total: float) -> None:
        nonlocal last_report
        if time.monotonic() - last_report > 1.0:
            last_report = time.monotonic()
            send_message({"done": done, "total": total})

    send_message({"worker": worker.address})
    usage = execute_task(
        task, replace(job, report_progress=report_progress) if envelope.reports_progress else job, part, options
    )
    send_message(usage)
    return usage


def write_spool_part(
    envelope: TaskEnvelope, task: Callable[..., None], job: Job, part: str, grid: list[list[Any]]
) -> None:
    """Check that this worker is fit, and write a part of the spool from the blocks of a Dask collection.

    Raises
    ------
    UnfitWorkerError, DumapError
        See `run_checked_task`.
    """
    from dumap.engine.collections import assemble_blocks

    worker = get_worker()
    if reasons := unfit_reasons(envelope.requirements):
        raise UnfitWorkerError(worker.address, reasons)
    usage = execute_task(task, job, part, {"rows": assemble_blocks(grid, job.input.dtype)})
    worker.log_event(envelope.topic, {"step": envelope.step, "number": envelope.attempt_number, **usage})


def execute_task(task: Callable[..., None], job: Job, part: str, options: dict[str, Any]) -> dict[str, Any]:
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
        limit_zarr_threads(1)
    try:
        return run_task(task, job, part, options, job.report_progress)
    except Exception as error:
        if worker.status not in (
            Status.running,
            Status.paused,
        ):  # the worker is leaving, which may have caused the error
            raise Reschedule() from error
        if isinstance(error, DumapError):
            raise
        raise name_task_in_error(error, f"{job.step_title(task)} {part}") from error
