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
from dumap.engine.backups import Durations
from dumap.engine.checks import Requirements, WorkerFacts, common, differences, single_thread_limit
from dumap.engine.fair_queue import FairQueue
from dumap.engine.cluster_connection import Killed, Link, Lost
from dumap.engine.local import LocalEngine
from dumap.engine.worker_pool import Members, host_of
from dumap.engine.resources import cpu_count
from dumap.engine.scheduling import UNRESTRICTED, Sharing
from dumap.engine.step import ATTEMPTS as ATTEMPTS
from dumap.engine.step import POLL_SECONDS as POLL_SECONDS
from dumap.engine.step import Step, StepSpec
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
    note : callable, optional
        Called with a message for each worker that is left out.
    sharing : Sharing
        The workers that may be used, and what is sent with every task.
    """

    name = "dask"

    def __init__(
        self,
        client: Client,
        timeout: float,
        worker_timeout: float = WORKER_TIMEOUT,
        note: Callable[[str], None] = lambda message: None,
        sharing: Sharing = UNRESTRICTED,
    ) -> None:
        self.link = Link(client, timeout, sharing)
        self.peak_bytes = self.held_bytes = 0
        self.workers: list[WorkerFacts] = []
        self._members = Members(self.link, timeout, worker_timeout, note, sharing)
        self._durations, self._messages, self._fair_queue = Durations(), deque[dict](), FairQueue(self.link)
        self._note, self._worker_timeout = note, worker_timeout
        self._record: dict[str, Any] | None = None
        self._requirements = Requirements(**worker.own())

    @property
    def client(self) -> Client:
        """The Dask client."""
        return self.link.client

    # what there is -----------------------------------------------------------------------------

    @property
    def worker_memory(self) -> int:
        """The smallest memory limit of a worker, converted to a worker with one thread; 0 without limits."""
        return min((single_thread_limit(w.memory_limit, w.threads) for w in self.workers if w.memory_limit), default=0)

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
        return max(1, self._members.threads)

    @property
    def host_threads(self) -> int:
        """The number of threads on the host with the most, at least 1."""
        return max(1, self._members.host_threads)

    @property
    def worker_threads(self) -> int:
        """The largest number of threads of a fit worker."""
        return max(self._members.fit.values(), default=1)

    # checks ------------------------------------------------------------------------------------

    def require(self, record: dict[str, Any] | None, peak_bytes: int) -> None:
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
        answered = self._ask_present_workers()
        versions, cpu = common(answered, self._record)
        self._requirements = replace(self._requirements, versions=tuple(sorted(versions.items())), cpu=cpu)
        without_memory = replace(self._requirements, peak_bytes=0)
        alike = []
        for worker_facts in answered:
            if reasons := differences(without_memory, worker_facts):
                self._members.leave_out(worker_facts.address, reasons)
            else:
                alike.append(worker_facts)
        large = [worker_facts for worker_facts in alike if not differences(self._requirements, worker_facts)]
        for worker_facts in alike if large else ():
            if worker_facts not in large:
                self._members.leave_out(worker_facts.address, differences(self._requirements, worker_facts))
        self.workers = large or alike  # if all workers are too small, the plan's check raises the error

    def _ask_present_workers(self) -> list[WorkerFacts]:
        """Return the facts of the present workers; without any, send a task that makes the cluster start a worker."""
        members, asked, answered = self._members, dict[str, Any](), dict[str, WorkerFacts]()
        members.reset_timeouts()
        waking, deadline = None, float("inf")
        try:
            while True:
                members.refresh(lambda: "a first question")
                for address in members.present.keys() - asked.keys():
                    asked[address] = self.link.call((worker.facts,), address)
                if not members.present and waking is None:
                    waking = self.link.call((worker.facts,), None)
                for address, answer in self.link.answers(asked).items():
                    del asked[address]
                    self._record_answer(address, answer, answered)
                if answered and deadline == float("inf"):
                    deadline = self.link.now() + ANSWER_TIMEOUT
                waiting = members.fit.keys() - answered.keys()
                if answered and (not waiting or self.link.now() > deadline):
                    return [answered[address] for address in sorted(answered) if address in members.fit]
                self.link.sleep()
        finally:
            self.link.cancel([*asked.values(), *([waking] if waking else [])])

    def _record_answer(self, address: str, answer: Any, answered: dict[str, WorkerFacts]) -> None:
        """Add a worker's facts to `answered`, or leave the worker out if it cannot run dumap or has another version."""
        if isinstance(answer, (Lost, Killed)):  # the worker has left
            return
        if isinstance(answer, Exception):
            self._members.leave_out(address, [_cannot(answer, self._requirements.dumap)])
            return
        facts = WorkerFacts(address, host_of(address), self._members.present.get(address, 1), **answer)
        basic = Requirements(self._requirements.dumap, self._requirements.format)
        if reasons := differences(basic, facts):
            self._members.leave_out(address, reasons)
        else:
            answered[address] = facts

    def _check_unproven(self) -> bool:
        """Check the workers that have not yet proven to be fit; return whether any of them is unfit."""
        unproven = self._members.fit.keys() - self._members.proven
        answers = self.link.ask((worker.unfit, self._requirements), unproven, ANSWER_TIMEOUT)
        for address, answer in answers.items():
            reasons = [_cannot(answer, self._requirements.dumap)] if isinstance(answer, Exception) else answer
            if reasons:
                self._members.leave_out(address, reasons)
            else:
                self._members.proven.add(address)
        return any(address in self._members.unfit for address in answers)

    def check_sight(self, output: str) -> None:
        """Leave out workers that cannot read or cannot write the output.

        Raises
        ------
        ClusterError
            No worker that answers can do both.
        """
        run, key = Run(output), probe_key()
        run.put(key, b"seen")
        try:
            answers = self.link.ask(
                (worker.check_output_access, output, key), [w.address for w in self.workers], ANSWER_TIMEOUT
            )
        finally:
            run.delete(key)
        errors = {address: answer for address, answer in answers.items() if isinstance(answer, Exception)}
        if errors and len(errors) == len(answers):
            address, error = next(iter(sorted(errors.items())))
            raise ClusterError(f"worker {address}: {error}")
        for address, error in errors.items():
            self._members.leave_out(address, [str(error)])
        self.workers = [w for w in self.workers if w.address not in errors]

    def require_run_visible(self, run: Run, peak_bytes: int) -> None:
        """Require workers that join later to see this run and to have memory for `peak_bytes`."""
        data = run.get(manifest_key(IDENTITY, "run"))
        seen = "" if data is None else digest(data)
        self._requirements = replace(self._requirements, peak_bytes=peak_bytes, output=run.location, seen=seen)

    # tasks -------------------------------------------------------------------------------------

    def map(
        self,
        task: Callable[..., None],
        job: Job,
        parts: Sequence[str],
        options: dict[str, Any],
        advanced: Callable[[float, float], None],
    ) -> None:
        """Run `task(job, part, **options)` for each part of the job's stage.

        Raises
        ------
        DumapError
            The error of a task; `TaskError` for an error of another kind in a task, or for a part whose workers die;
            `ClusterError` if the cluster is lost.
        """
        title = job.title(task)
        topic, single = _topic(job.config.output), len(parts) == 1
        self.link.listen(topic, self._messages.append)

        def call(part: str, number: int) -> tuple:
            orders = worker.TaskEnvelope(self._requirements, topic, step.name, number, ticks=single)
            return worker.run_checked_task, orders, task, job, part, options

        def committed(part: str) -> bool:
            return job.stage is not None and job.run.is_committed(job.stage, part)

        repeatable = not getattr(task, "no_backup", False)
        spec = StepSpec(title, f"{title} {task.__name__}", parts, call, committed, advanced, repeatable)
        timeout, members, durations = self.link.sharing.task_timeout, self._members, self._durations
        fair_queue, check = self._fair_queue, self._check_unproven
        step = Step(spec, self.link, members, durations, self._messages, check, fair_queue, timeout)
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
        advanced: Callable[[float, float], None],
    ) -> None:
        """Write the parts of the spool in this process, or on the workers if the object is a Dask collection."""
        if not isinstance(job.object_rows, ArrayRows):
            self._spool_collection(task, job, parts, advanced)
            return
        local = LocalEngine(min(SPOOLING_THREADS, cpu_count()), 0)
        try:
            local.spool(task, job, parts, options, advanced)
        finally:
            self.peak_bytes, self.held_bytes = local.peak_bytes, local.held_bytes

    def _spool_collection(
        self, task: Callable[..., None], job: Job, parts: Sequence[str], advanced: Callable[[float, float], None]
    ) -> None:
        """Compute a Dask collection on the workers, which write its rows as parts."""
        from dumap.engine.collections import DaskRows, compute_on

        assert isinstance(job.object_rows, DaskRows)
        topic = _topic(job.config.output)
        self.link.listen(topic, self._messages.append)
        self._check_unproven()
        orders = worker.TaskEnvelope(self._requirements, topic, SPOOL, 0, ticks=False)
        spans = {part: spool.row_range_of(job, part) for part in parts}
        try:
            compute_on(
                self.link,
                self._members,
                lambda part: (worker.fill, orders, task, job, part),
                job.object_rows,
                spans,
                advanced,
            )
        finally:
            for message in self._messages:
                self.peak_bytes = max(self.peak_bytes, message.get("peak_bytes", 0))
                self.held_bytes = max(self.held_bytes, message.get("held_bytes", 0))

    def free_caches(self) -> None:
        """Free what tasks have cached on workers."""
        if self._members.proven and self.link.running:
            self.link.ask((rounds.free_caches,), self._members.proven, FREEING_TIMEOUT)

    def close(self) -> None:
        """Stop listening to workers, and free all that the run has cached there."""
        self.link.close()
        if self._members.proven and self.link.running:
            self.link.ask((worker.free_caches,), self._members.proven, FREEING_TIMEOUT)


def _topic(output: str) -> str:
    """Return the name of the topic on which the tasks of a run send messages."""
    return f"dumap-{hashlib.sha256(output.encode()).hexdigest()[:16]}"


def _cannot(error: Exception, version: str) -> str:
    """Return the reason for leaving out a worker on which dumap fails with an error."""
    return f"it cannot run dumap ({type(error).__name__}: {error}): install dumap {version} there"
