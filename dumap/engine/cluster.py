"""Maps tasks over the parts of a stage, on Dask.

The engine knows no stage, but for the caches that rounds of the layout keep: it maps a function over parts, keeps as
many of them on their way as make a cluster grow, measures each task's peak memory on its worker, tries again what a
dying worker dropped, sends nothing to workers that differ from the others, and never waits without a bound.
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
from dumap.engine.link import Killed, Link, Lost
from dumap.engine.local import LocalEngine
from dumap.engine.members import Members, host_of
from dumap.engine.resources import cpu_count
from dumap.engine.sharing import ALONE, Sharing
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
"""Seconds to wait for a worker that is fit, unless told otherwise."""
PATIENCE = 15.0
"""Seconds that workers have to answer once one of them has: who is busy, or stopped, is met later."""
SPOOLING_THREADS = 4
"""Threads that copy an object of this process to the run."""
PARTING = 2.0
"""Seconds that workers have to free their caches, at the end."""


class DaskEngine:
    """Maps tasks over parts on a Dask client; see `dumap.engine.Engine`.

    Parameters
    ----------
    client : distributed.Client
    timeout : float
        Seconds to wait for a scheduler that has gone quiet.
    worker_timeout : float
        Seconds to wait for a worker that is fit.
    note : callable, optional
        Told of workers that are left out.
    sharing : Sharing
        Which workers may be used, and what goes with every task.
    """

    name = "dask"

    def __init__(
        self,
        client: Client,
        timeout: float,
        worker_timeout: float = WORKER_TIMEOUT,
        note: Callable[[str], None] = lambda message: None,
        sharing: Sharing = ALONE,
    ) -> None:
        self.link = Link(client, timeout, sharing)
        self.peak_bytes = self.held_bytes = 0
        self.workers: list[WorkerFacts] = []
        self._members = Members(self.link, timeout, worker_timeout, note, sharing)
        self._durations, self._messages = Durations(), deque[dict]()
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
        """The smallest worker's memory limit, as of one with a single thread; 0 where none has any."""
        return min((single_thread_limit(w.memory_limit, w.threads) for w in self.workers if w.memory_limit), default=0)

    @property
    def cpus(self) -> list[str]:
        """The kind of processors that the workers compute on."""
        return [self._requirements.cpu] if self._requirements.cpu else []

    @property
    def versions(self) -> dict[str, str]:
        """The versions that the workers have."""
        return dict(self._requirements.versions) or worker.versions()

    @property
    def threads(self) -> int:
        """The threads of all workers that are fit."""
        return max(1, self._members.threads)

    @property
    def host_threads(self) -> int:
        """The threads of the workers on the host that has most."""
        return max(1, self._members.host_threads)

    @property
    def worker_threads(self) -> int:
        """The most threads that a worker has."""
        return max(self._members.fit.values(), default=1)

    # checks ------------------------------------------------------------------------------------

    def require(self, record: dict[str, Any] | None, peak_bytes: int) -> None:
        """Set what workers must have: the versions and processor of an unfinished run, and memory for the plan's
        peak.
        """
        self._record = record
        self._requirements = replace(self._requirements, peak_bytes=peak_bytes)

    def preflight(self) -> None:
        """Wait for workers, and leave those out that cannot do the work, or differ from what most have.

        Raises
        ------
        ClusterError
            No worker that is fit in time.
        """
        wave = self._first_wave()
        versions, cpu = common(wave, self._record)
        self._requirements = replace(self._requirements, versions=tuple(sorted(versions.items())), cpu=cpu)
        but_memory = replace(self._requirements, peak_bytes=0)
        alike = []
        for one in wave:
            if reasons := differences(but_memory, one):
                self._members.leave_out(one.address, reasons)
            else:
                alike.append(one)
        large = [one for one in alike if not differences(self._requirements, one)]
        for one in alike if large else ():
            if one not in large:
                self._members.leave_out(one.address, differences(self._requirements, one))
        self.workers = large or alike  # where all are too small, the plan says so, with the number

    def _first_wave(self) -> list[WorkerFacts]:
        """Ask the present workers what they have; if there are none, send a task that makes the cluster start one."""
        members, asked, answered = self._members, dict[str, Any](), dict[str, WorkerFacts]()
        members.reset_timeouts()
        waking, patience = None, float("inf")
        try:
            while True:
                members.refresh(lambda: "a first question")
                for address in members.present.keys() - asked.keys():
                    asked[address] = self.link.call((worker.facts,), address)
                if not members.present and waking is None:
                    waking = self.link.call((worker.facts,), None)
                for address, said in self.link.answers(asked).items():
                    del asked[address]
                    self._take_in(address, said, answered)
                if answered and patience == float("inf"):
                    patience = self.link.now() + PATIENCE
                waiting = members.fit.keys() - answered.keys()
                if answered and (not waiting or self.link.now() > patience):
                    return [answered[address] for address in sorted(answered) if address in members.fit]
                self.link.sleep()
        finally:
            self.link.cancel([*asked.values(), *([waking] if waking else [])])

    def _take_in(self, address: str, said: Any, answered: dict[str, WorkerFacts]) -> None:
        """Record what a worker says of itself, or why it cannot."""
        if isinstance(said, (Lost, Killed)):  # it has left
            return
        if isinstance(said, Exception):
            self._members.leave_out(address, [_cannot(said, self._requirements.dumap)])
            return
        facts = WorkerFacts(address, host_of(address), self._members.present.get(address, 1), **said)
        basic = Requirements(self._requirements.dumap, self._requirements.format)
        if reasons := differences(basic, facts):
            self._members.leave_out(address, reasons)
        else:
            answered[address] = facts

    def _question(self) -> bool:
        """Ask the workers that have not proven to be fit; tell whether one is not."""
        doubtful = self._members.fit.keys() - self._members.proven
        found = self.link.ask((worker.unfit, self._requirements), doubtful, PATIENCE)
        for address, said in found.items():
            reasons = [_cannot(said, self._requirements.dumap)] if isinstance(said, Exception) else said
            if reasons:
                self._members.leave_out(address, reasons)
            else:
                self._members.proven.add(address)
        return any(address in self._members.unfit for address in found)

    def check_sight(self, output: str) -> None:
        """Leave out workers that do not see the output, or cannot write to it.

        Raises
        ------
        ClusterError
            None of them does.
        """
        run, key = Run(output), probe_key()
        run.put(key, b"seen")
        try:
            answers = self.link.ask((worker.see, output, key), [one.address for one in self.workers], PATIENCE)
        finally:
            run.delete(key)
        blind = {address: said for address, said in answers.items() if isinstance(said, Exception)}
        if blind and len(blind) == len(answers):
            address, said = next(iter(sorted(blind.items())))
            raise ClusterError(f"worker {address}: {said}")
        for address, said in blind.items():
            self._members.leave_out(address, [str(said)])
        self.workers = [one for one in self.workers if one.address not in blind]

    def require_run_visible(self, run: Run, peak_bytes: int) -> None:
        """Require of workers that join later that they see this run, and have memory for the plan's peak."""
        data = run.get(manifest_key(IDENTITY, "run"))
        seen = "" if data is None else digest(data)
        self._requirements = replace(self._requirements, peak_bytes=peak_bytes, output=run.location, seen=seen)

    # work --------------------------------------------------------------------------------------

    def map(
        self,
        task: Callable[..., None],
        job: Job,
        parts: Sequence[str],
        options: dict[str, Any],
        advanced: Callable[[float, float], None],
    ) -> None:
        """Run `task(job, part, **options)` for every part, of the job's stage.

        Raises
        ------
        DumapError
            The task's own error; `TaskError` for one from below, or for a part that kills its workers;
            `ClusterError` when the cluster is lost.
        """
        title = job.title(task)
        topic, single = _topic(job.config.output), len(parts) == 1
        self.link.listen(topic, self._messages.append)

        def call(part: str, number: int) -> tuple:
            orders = worker.Orders(self._requirements, topic, step.name, number, ticks=single)
            return worker.run_checked_task, orders, task, job, part, options

        def committed(part: str) -> bool:
            return job.stage is not None and job.run.is_committed(job.stage, part)

        repeatable = not getattr(task, "no_backup", False)
        spec = StepSpec(title, f"{title} {task.__name__}", parts, call, committed, advanced, repeatable)
        timeout = self.link.sharing.task_timeout
        step = Step(spec, self.link, self._members, self._durations, self._messages, self._question, timeout)
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
        """Write every part where its rows are: in this process, or, of a Dask collection, on the workers."""
        if not isinstance(job.object_rows, ArrayRows):
            self._collect(task, job, parts, advanced)
            return
        here = LocalEngine(min(SPOOLING_THREADS, cpu_count()), 0)
        try:
            here.spool(task, job, parts, options, advanced)
        finally:
            self.peak_bytes, self.held_bytes = here.peak_bytes, here.held_bytes

    def _collect(
        self, task: Callable[..., None], job: Job, parts: Sequence[str], advanced: Callable[[float, float], None]
    ) -> None:
        """Compute a Dask collection on the workers, part by part."""
        from dumap.engine.collections import DaskRows, compute_on

        assert isinstance(job.object_rows, DaskRows)
        topic = _topic(job.config.output)
        self.link.listen(topic, self._messages.append)
        self._question()
        orders = worker.Orders(self._requirements, topic, SPOOL, 0, ticks=False)
        spans = {part: spool.span_of(job, part) for part in parts}
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
            for said in self._messages:
                self.peak_bytes = max(self.peak_bytes, said.get("peak_bytes", 0))
                self.held_bytes = max(self.held_bytes, said.get("held_bytes", 0))

    def free_caches(self) -> None:
        """Free what tasks have cached on workers."""
        if self._members.proven and self.link.running:
            self.link.ask((rounds.free_caches,), self._members.proven, PARTING)

    def close(self) -> None:
        """Leave nothing of the run's with the workers, and hear no more of them."""
        self.link.close()
        if self._members.proven and self.link.running:
            self.link.ask((worker.free_caches,), self._members.proven, PARTING)


def _topic(output: str) -> str:
    """Name what the tasks of a run are heard on."""
    return f"dumap-{hashlib.sha256(output.encode()).hexdigest()[:16]}"


def _cannot(error: Exception, version: str) -> str:
    return f"it cannot run dumap ({type(error).__name__}: {error}): install dumap {version} there"
