"""Runs the tasks of a stage on a Dask cluster.

The engine keeps enough parts in flight for an adaptive cluster to grow, measures the peak memory of each task on its
worker, sends parts of a dead worker again, and sends nothing to workers that differ from the others. It waits at most
`timeout` for a silent scheduler and `worker_timeout` for a fit worker. A running task has no time limit unless
`cluster.task_timeout` is set. The engine knows only two stages: the spool, and the rounds of the layout, whose caches
it frees.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from distributed import Client

from dumap.artifacts.job import Job
from dumap.engine import Observer as Observer
from dumap.engine import worker
from dumap.engine.affinity import UnitWorkers
from dumap.engine.backups import TaskDurations
from dumap.engine.checks import (
    WorkerFacts,
    WorkerRequirements,
    describe_differences,
    most_common_installation,
    single_thread_memory_limit,
)
from dumap.engine.cluster_connection import ClusterConnection, TaskLostError, WorkersDiedError
from dumap.engine.fair_queue import FairQueue
from dumap.engine.local import LocalEngine
from dumap.engine.resources import cpu_count
from dumap.engine.scheduling import DEFAULT_SCHEDULING, SchedulingOptions
from dumap.engine.step import MAX_DEATHS as MAX_DEATHS
from dumap.engine.step import POLL_SECONDS as POLL_SECONDS
from dumap.engine.step import Step, StepSpec
from dumap.engine.worker_pool import WorkerPool, host_of
from dumap.errors import ClusterError
from dumap.sources.arrays import ArrayRows
from dumap.sources.spooled import SPOOL
from dumap.stages import rounds, spool
from dumap.store import IDENTITY, Run, manifest_key, probe_key
from dumap.store.objects import digest

WORKER_TIMEOUT = 600.0
"""Default number of seconds to wait for a fit worker."""
ANSWER_TIMEOUT = 15.0
"""Seconds that workers have to answer a question. Busy or stopped workers are checked later, in their first task."""
SPOOLING_THREADS = 4
"""Threads that copy an object of this process to the run."""
FREEING_TIMEOUT = 2.0
"""Seconds that workers have to free their caches at the end."""


class DaskEngine:
    """An engine that runs tasks through a Dask client; see `dumap.engine.Engine`.

    Parameters
    ----------
    client : distributed.Client
    timeout : float
        Seconds to wait for a silent scheduler.
    worker_timeout : float
        Seconds to wait for a fit worker.
    log : callable, optional
        Called with a message for each worker that is left out.
    scheduling : SchedulingOptions
        The workers that may be used, and what is sent with every task.
    """

    name = "dask"

    def __init__(
        self,
        client: Client,
        timeout: float,
        worker_timeout: float = WORKER_TIMEOUT,
        log: Callable[[str], None] = lambda message: None,
        scheduling: SchedulingOptions = DEFAULT_SCHEDULING,
    ) -> None:
        self.connection = ClusterConnection(client, timeout, scheduling)
        self.peak_bytes = self.held_bytes = 0
        self.worker_facts: list[WorkerFacts] = []
        self._worker_pool = WorkerPool(self.connection, timeout, worker_timeout, log, scheduling)
        self._durations, self._messages, self._fair_queue = TaskDurations(), deque[dict](), FairQueue(self.connection)
        self._log, self._worker_timeout = log, worker_timeout
        self._record: dict[str, Any] | None = None
        self._unit_workers: dict[str, UnitWorkers] = {}
        self._requirements = WorkerRequirements(**worker.own_requirements())

    @property
    def client(self) -> Client:
        """The Dask client."""
        return self.connection.client

    # what the cluster has -----------------------------------------------------------------------------

    @property
    def worker_memory(self) -> int:
        """The smallest memory limit of a worker, converted to a worker with one thread; 0 without limits."""
        return min(
            (
                single_thread_memory_limit(facts.memory_limit, facts.threads)
                for facts in self.worker_facts
                if facts.memory_limit
            ),
            default=0,
        )

    @property
    def cpus(self) -> list[str]:
        """The kind of processor that the workers have, a list of one; empty before `preflight`."""
        return [self._requirements.cpu] if self._requirements.cpu else []

    @property
    def versions(self) -> dict[str, str]:
        """The versions that the workers have; those of this process before `preflight`."""
        return dict(self._requirements.versions) or worker.versions()

    @property
    def threads(self) -> int:
        """The number of threads of all fit workers, at least 1."""
        return max(1, self._worker_pool.threads)

    @property
    def host_threads(self) -> int:
        """The number of threads on the host with the most, at least 1."""
        return max(1, self._worker_pool.host_threads)

    @property
    def worker_threads(self) -> int:
        """The largest number of threads of a fit worker."""
        return max(self._worker_pool.fit_workers.values(), default=1)

    # checks ------------------------------------------------------------------------------------

    def set_requirements(self, record: dict[str, Any] | None, peak_bytes: int) -> None:
        """Set what workers must have: the versions and processor in `record`, and memory for `peak_bytes`."""
        self._record = record
        self._requirements = replace(self._requirements, peak_bytes=peak_bytes)

    def preflight(self) -> None:
        """Wait for workers, and leave out workers that do not meet the requirements or differ from most others.

        Raises
        ------
        ClusterError
            No fit worker answers in time.
        """
        present_workers = self._ask_present_workers()
        versions, cpu = most_common_installation(present_workers, self._record)
        self._requirements = replace(self._requirements, versions=tuple(sorted(versions.items())), cpu=cpu)
        without_memory = replace(self._requirements, peak_bytes=0)
        compatible = []
        for worker_facts in present_workers:
            if reasons := describe_differences(without_memory, worker_facts):
                self._worker_pool.exclude(worker_facts.address, reasons)
            else:
                compatible.append(worker_facts)
        large_enough = [
            worker_facts for worker_facts in compatible if not describe_differences(self._requirements, worker_facts)
        ]
        for worker_facts in compatible if large_enough else ():
            if worker_facts not in large_enough:
                self._worker_pool.exclude(worker_facts.address, describe_differences(self._requirements, worker_facts))
        self.worker_facts = (
            large_enough or compatible
        )  # if all workers are too small, the plan's check raises the error

    def _ask_present_workers(self) -> list[WorkerFacts]:
        """Return the facts of the present workers; without any, send a task that makes the cluster start a worker."""
        worker_pool, futures, facts_by_address = self._worker_pool, dict[str, Any](), dict[str, WorkerFacts]()
        worker_pool.reset_timeouts()
        start_request, deadline = None, float("inf")
        try:
            while True:
                worker_pool.refresh(lambda: "a first question")
                for address in worker_pool.present_workers.keys() - futures.keys():
                    futures[address] = self.connection.send_question((worker.collect_facts,), address)
                if not worker_pool.present_workers and start_request is None:
                    start_request = self.connection.send_question((worker.collect_facts,), None)
                for address, answer in self.connection.collect_answers(futures).items():
                    del futures[address]
                    self._record_answer(address, answer, facts_by_address)
                if facts_by_address and deadline == float("inf"):
                    deadline = self.connection.now() + ANSWER_TIMEOUT
                unanswered = worker_pool.fit_workers.keys() - facts_by_address.keys()
                if facts_by_address and (not unanswered or self.connection.now() > deadline):
                    return [
                        facts_by_address[address]
                        for address in sorted(facts_by_address)
                        if address in worker_pool.fit_workers
                    ]
                self.connection.sleep()
        finally:
            self.connection.cancel([*futures.values(), *([start_request] if start_request else [])])

    def _record_answer(self, address: str, answer: Any, facts_by_address: dict[str, WorkerFacts]) -> None:
        """Add a worker's facts to `facts_by_address`, or exclude the worker if it cannot run dumap in this version."""
        if isinstance(answer, (TaskLostError, WorkersDiedError)):  # the worker has left
            return
        if isinstance(answer, Exception):
            self._worker_pool.exclude(address, [_cannot_run_reason(answer, self._requirements.dumap)])
            return
        facts = WorkerFacts(address, host_of(address), self._worker_pool.present_workers.get(address, 1), **answer)
        version_requirements = WorkerRequirements(self._requirements.dumap, self._requirements.format)
        if reasons := describe_differences(version_requirements, facts):
            self._worker_pool.exclude(address, reasons)
        else:
            facts_by_address[address] = facts

    def _check_unverified_workers(self) -> bool:
        """Check the workers that have not yet proven to be fit; return whether any of them is unfit."""
        unverified = self._worker_pool.fit_workers.keys() - self._worker_pool.verified_workers
        answers = self.connection.ask_workers((worker.unfit_reasons, self._requirements), unverified, ANSWER_TIMEOUT)
        for address, answer in answers.items():
            reasons = (
                [_cannot_run_reason(answer, self._requirements.dumap)] if isinstance(answer, Exception) else answer
            )
            if reasons:
                self._worker_pool.exclude(address, reasons)
            else:
                self._worker_pool.verified_workers.add(address)
        return any(address in self._worker_pool.unfit_workers for address in answers)

    def check_output_visible(self, output: str) -> None:
        """Leave out workers that cannot read or cannot write the output.

        Raises
        ------
        ClusterError
            No worker that answers can do both.
        """
        run, key = Run(output), probe_key()
        run.put(key, b"seen")
        try:
            answers = self.connection.ask_workers(
                (worker.check_output_access, output, key),
                [facts.address for facts in self.worker_facts],
                ANSWER_TIMEOUT,
            )
        finally:
            run.delete(key)
        errors = {address: answer for address, answer in answers.items() if isinstance(answer, Exception)}
        if errors and len(errors) == len(answers):
            address, error = next(iter(sorted(errors.items())))
            raise ClusterError(f"worker {address}: {error}")
        for address, error in errors.items():
            self._worker_pool.exclude(address, [str(error)])
        self.worker_facts = [facts for facts in self.worker_facts if facts.address not in errors]

    def require_run_visible(self, run: Run, peak_bytes: int) -> None:
        """Require workers that join later to see this run and to have memory for `peak_bytes`."""
        data = run.get(manifest_key(IDENTITY, "run"))
        identity_digest = "" if data is None else digest(data)
        self._requirements = replace(
            self._requirements, peak_bytes=peak_bytes, output=run.location, identity_digest=identity_digest
        )

    # tasks -------------------------------------------------------------------------------------

    def map(
        self,
        task: Callable[..., None],
        job: Job,
        parts: Sequence[str],
        options: dict[str, Any],
        report_progress: Callable[[float, float], None],
    ) -> None:
        """Run `task(job, part, **options)` for each part of the job's stage.

        Raises
        ------
        DumapError
            The error of a task; `TaskError` for an error of another kind in a task, or for a part whose workers die;
            `ClusterError` if the cluster is lost.
        """
        title = job.step_title(task)
        topic, is_single = _task_topic(job.config.output), len(parts) == 1
        self.connection.listen(topic, self._messages.append)

        def make_call(part: str, attempt_number: int) -> tuple:
            envelope = worker.TaskEnvelope(
                self._requirements, topic, step.name, attempt_number, reports_progress=is_single
            )
            return worker.run_checked_task, envelope, task, job, part, options

        def is_committed(part: str) -> bool:
            return job.stage is not None and job.run.is_committed(job.stage, part)

        is_repeatable = not getattr(task, "no_backup", False)
        kind = f"{title} {task.__name__}"
        unit_of, unit_workers = getattr(task, "unit_of", None), self._unit_workers.setdefault(kind, UnitWorkers())
        spec = StepSpec(
            title, kind, parts, make_call, is_committed, report_progress, is_repeatable, unit_of, unit_workers
        )
        timeout, worker_pool, durations = self.connection.scheduling.task_timeout, self._worker_pool, self._durations
        fair_queue, check_workers = self._fair_queue, self._check_unverified_workers
        step = Step(spec, self.connection, worker_pool, durations, self._messages, check_workers, fair_queue, timeout)
        try:
            step.run()
        finally:
            self.peak_bytes = max(self.peak_bytes, step.peak_bytes)
            self.held_bytes = max(self.held_bytes, step.held_bytes)

    def spool(
        self,
        task: Callable[..., None],
        job: Job,
        parts: Sequence[str],
        options: dict[str, Any],
        report_progress: Callable[[float, float], None],
    ) -> None:
        """Write the parts of the spool in this process, or on the workers if the object is a Dask collection."""
        if not isinstance(job.object_rows, ArrayRows):
            self._spool_collection(task, job, parts, report_progress)
            return
        local_engine = LocalEngine(min(SPOOLING_THREADS, cpu_count()), 0)
        try:
            local_engine.spool(task, job, parts, options, report_progress)
        finally:
            self.peak_bytes, self.held_bytes = local_engine.peak_bytes, local_engine.held_bytes

    def _spool_collection(
        self, task: Callable[..., None], job: Job, parts: Sequence[str], report_progress: Callable[[float, float], None]
    ) -> None:
        """Compute a Dask collection on the workers, which write its rows as parts."""
        from dumap.engine.collections import DaskRows, compute_on_cluster

        assert isinstance(job.object_rows, DaskRows)
        topic = _task_topic(job.config.output)
        self.connection.listen(topic, self._messages.append)
        self._check_unverified_workers()
        envelope = worker.TaskEnvelope(self._requirements, topic, SPOOL, 0, reports_progress=False)
        row_ranges = {part: spool.row_range_of(job, part) for part in parts}
        try:
            compute_on_cluster(
                self.connection,
                self._worker_pool,
                lambda part: (worker.write_spool_part, envelope, task, job, part),
                job.object_rows,
                row_ranges,
                report_progress,
            )
        finally:
            for message in self._messages:
                self.peak_bytes = max(self.peak_bytes, message.get("peak_bytes", 0))
                self.held_bytes = max(self.held_bytes, message.get("held_bytes", 0))

    def free_caches(self) -> None:
        """Free what tasks have cached on workers."""
        if self._worker_pool.verified_workers and self.connection.is_running:
            self.connection.ask_workers((rounds.free_caches,), self._worker_pool.verified_workers, FREEING_TIMEOUT)

    def close(self) -> None:
        """Stop listening to workers, and free all that the run has cached there."""
        self.connection.close()
        if self._worker_pool.verified_workers and self.connection.is_running:
            self.connection.ask_workers((worker.free_caches,), self._worker_pool.verified_workers, FREEING_TIMEOUT)


def _task_topic(output: str) -> str:
    """Return the name of the topic on which the tasks of a run send messages."""
    return f"dumap-{hashlib.sha256(output.encode()).hexdigest()[:16]}"


def _cannot_run_reason(error: Exception, version: str) -> str:
    """Return the reason for leaving out a worker on which dumap fails with an error."""
    return f"it cannot run dumap ({type(error).__name__}: {error}): install dumap {version} there"
