"""One step of a run: sends a task for each part to workers until all parts are done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from dumap.engine.affinity import UnitWorkers
from dumap.engine.attempts import Attempt, TaskClient
from dumap.engine.backups import TaskDurations
from dumap.engine.checks import UnfitWorkerError
from dumap.engine.cluster_connection import TaskLostError, WorkersDiedError
from dumap.engine.fair_queue import DEFAULT_TASK_SECONDS, FairQueue
from dumap.engine.task_queue import TaskQueue
from dumap.engine.worker_pool import WorkerPool
from dumap.errors import ClusterError, DumapError, LockError, TaskError

MAX_DEATHS = 4
"""A part ends the run if this many workers die while they run no other part."""
MAX_LISTED = 8
"""The most parts that an error names."""
POLL_SECONDS = 0.5
"""Seconds between looks at the tasks and their messages, at most."""
MAX_STUCK = 3
"""A part ends the run if its task has counted as stuck this often."""
MAX_FOREIGN_ERRORS = 3
"""A part ends the run after this many errors on fit workers that its task did not raise itself."""


@dataclass(frozen=True)
class StepSpec:
    """The description of a step.

    Attributes
    ----------
    stage, kind : str
        The name of the stage, and that of the kind of task.
    parts : sequence of str
    make_call : callable
        `make_call(part, number)` returns the function to send and its arguments. The task sends messages that hold
        `number` when it begins, when it reports progress and when it ends.
    is_committed : callable
        `is_committed(part)` returns whether a part is committed.
    report_progress : callable
        `report_progress(done, total)` is called with the progress of the step.
    is_repeatable : bool
        Whether two copies of a task may run at once. A task that writes one part and reads only committed parts is
        repeatable.
    unit_of : callable, optional
        `unit_of(part)` returns the unit of a part. A worker keeps what it has read of a unit for the unit's next task.
    unit_workers : UnitWorkers
        The workers that ran the last tasks of units.
    """

    stage: str
    kind: str
    parts: Sequence[str]
    make_call: Callable[[str, int], tuple]
    is_committed: Callable[[str], bool]
    report_progress: Callable[[float, float], None]
    is_repeatable: bool = True
    unit_of: Callable[[str], Hashable] | None = None
    unit_workers: UnitWorkers = field(default_factory=UnitWorkers)


class Step:
    """Sends the tasks of a step and follows them until all parts are done.

    Parameters
    ----------
    spec : StepSpec
    task_client : TaskClient
    worker_pool : WorkerPool
    durations : TaskDurations
    messages : deque
        The messages of the tasks; another thread appends them.
    check_unverified_workers : callable
        Checks the workers that have not proven to be fit, and returns whether any of them is unfit.
    fair_queue : FairQueue
        The order of this run's tasks and those of other runs.
    task_timeout : float, optional
        A task that has begun and reports nothing for this many seconds counts as stuck.
    """

    def __init__(
        self,
        spec: StepSpec,
        task_client: TaskClient,
        worker_pool: WorkerPool,
        durations: TaskDurations,
        messages: deque[dict],
        check_unverified_workers: Callable[[], bool],
        fair_queue: FairQueue,
        task_timeout: float | None = None,
    ) -> None:
        self.spec, self.task_client, self.worker_pool, self.durations = spec, task_client, worker_pool, durations
        self.messages, self.check_unverified_workers, self.fair_queue = messages, check_unverified_workers, fair_queue
        self.queue = TaskQueue(spec.parts, 2)
        self.in_flight: dict[Any, Attempt] = {}
        self.futures_by_part: dict[str, list[Any]] = {}
        self.futures_by_number: dict[int, Any] = {}
        self.done_parts: set[str] = set()
        self.sent_parts: set[str] = set()
        self.parts_with_backup: set[str] = set()
        self.task_timeout = task_timeout
        self.stuck_counts: dict[str, int] = {}
        self.foreign_errors: dict[str, int] = {}
        self.sent_count, self.peak_bytes, self.held_bytes = 0, 0, 0
        self.idle_since: float | None = None
        self.name = ""

    def run(self) -> None:
        """Run the step until all parts are done.

        Raises
        ------
        DumapError
            The error of a task; `TaskError` for a part whose workers die; `ClusterError` if the cluster is lost.
        """
        self.name = self.task_client.begin_step()
        self.worker_pool.reset_timeouts()
        self.spec.unit_workers.begin_step()
        try:
            while len(self.done_parts) < len(self.spec.parts):
                self.fair_queue.announce()
                if self.worker_pool.refresh(self._describe_in_flight):
                    self.queue.max_suspects = max(2, 2 * self.worker_pool.threads)
                    self._requeue_for_new_workers()
                    self._send_backups()
                    self._requeue_stale()
                self.queue.max_in_flight = self._max_in_flight()
                if not self.worker_pool.has_no_allowed_worker:
                    while (part := self.queue.next_part(len(self.in_flight))) is not None:
                        self._send_part(part, self.worker_pool.allowed_workers)
                done_futures = self.task_client.wait_for_done(POLL_SECONDS)
                self._read_messages()
                for future in done_futures:
                    if future in self.in_flight:
                        self._record_outcome(future)
                if self.task_timeout is not None:
                    self._cancel_stuck_tasks(self.task_timeout)
        finally:
            self.task_client.cancel(list(self.in_flight))
            self.fair_queue.pause()

    def _describe_in_flight(self) -> str:
        """Return the names of the stage and of the parts in flight, for errors."""
        names = [*dict.fromkeys(attempt.part for attempt in self.in_flight.values()), *self.queue.suspects]
        return f"{self.spec.stage} {join_first_names(names or list(self.queue.waiting_parts))}"

    # sending -----------------------------------------------------------------------------------

    def _max_in_flight(self) -> int:
        """Return the most parts in flight: few on a shared cluster until the time of a part is known."""
        if self.fair_queue.has_other_runs and self.durations.median_seconds(self.spec.kind) is None:
            return max(1, self.worker_pool.threads)
        return self.worker_pool.max_in_flight

    def _send_part(self, part: str, workers: frozenset[str] | None, is_backup: bool = False) -> None:
        """Send a task for a part."""
        self.sent_count += 1
        call, has_other_runs = self.spec.make_call(part, self.sent_count), self.fair_queue.has_other_runs
        expected_seconds = self.durations.median_seconds(self.spec.kind) or DEFAULT_TASK_SECONDS
        virtual_start = self.fair_queue.next_start(expected_seconds)
        preferred_worker = None if workers is not None or has_other_runs else self._preferred_worker(part)
        future = self.task_client.send(
            self.spec.stage, self.name, part, call, workers, virtual_start if has_other_runs else None, preferred_worker
        )
        self.sent_parts.add(part)
        self.in_flight[future] = Attempt(
            part,
            self.sent_count,
            workers,
            self.task_client.now(),
            is_backup,
            virtual_start=virtual_start,
            expected_seconds=expected_seconds,
            had_other_runs=has_other_runs,
            preferred_worker=preferred_worker,
        )
        self.futures_by_part.setdefault(part, []).append(future)
        self.futures_by_number[self.sent_count] = future

    def _preferred_worker(self, part: str) -> str | None:
        """Return the worker to prefer for a part; None if any will do, or if the part was sent before."""
        if self.spec.unit_of is None or part in self.sent_parts:
            return None
        unit, fit_workers = self.spec.unit_of(part), self.worker_pool.fit_workers
        return self.spec.unit_workers.prefer(unit, len(self.spec.parts), fit_workers)

    def _cancel_tasks(self, futures: Sequence[Any]) -> None:
        """Cancel tasks, which are then no longer in flight."""
        if futures:
            self.task_client.cancel(futures)
        for future in list(futures):
            self._remove_attempt(future)

    def _requeue(self, futures: Sequence[Any]) -> None:
        """Cancel tasks, and put their parts back in the queue, in order, unless other copies of them are in flight."""
        parts = [self.in_flight[future].part for future in futures]
        self._cancel_tasks(futures)
        for part in dict.fromkeys(parts):
            if part not in self.futures_by_part:
                self.queue.put_back(part)

    def _remove_attempt(self, future: Any) -> Attempt:
        """Remove a task from those in flight; return its attempt."""
        attempt = self.in_flight.pop(future)
        del self.futures_by_number[attempt.number]
        self.futures_by_part[attempt.part].remove(future)
        if not self.futures_by_part[attempt.part]:
            del self.futures_by_part[attempt.part]
        self.fair_queue.correct_duration(attempt.actual_seconds - attempt.expected_seconds)
        return attempt

    def _requeue_stale(self) -> None:
        """Put waiting parts back in the queue if they were sent before other runs began, or before all others ended."""
        has_other_runs = self.fair_queue.has_other_runs
        if self.queue.sends_alone or not self.spec.is_repeatable:
            return
        requeued = [
            future
            for future, attempt in self.in_flight.items()
            if attempt.began_at is None and attempt.had_other_runs != has_other_runs and not attempt.is_backup
        ]
        self._requeue(requeued[::-1])

    def _requeue_for_new_workers(self) -> None:
        """Put parts back in the queue whose workers have all left, and as many waiting parts as new workers can run."""
        present, allowed = self.worker_pool.present_workers, self.worker_pool.allowed_workers
        for attempt in self.in_flight.values():
            if attempt.began_at is not None and attempt.worker not in present:
                attempt.began_at = None
        unreachable = [
            future
            for future, attempt in self.in_flight.items()
            if attempt.is_unreachable(present) and (attempt.began_at is None or self.queue.sends_alone)
        ]
        if not self.queue.sends_alone:
            waiting_attempts = {
                future: a for future, a in self.in_flight.items() if a.workers is not None and a.began_at is None
            }
            movable = [
                future
                for future, a in waiting_attempts.items()
                if a.workers != allowed and not a.is_backup and future not in set(unreachable)
            ]
            unreachable += movable[: -2 * self._free_threads(waiting_attempts.values()) - 1 : -1]
        self._requeue(unreachable)

    def _free_threads(self, waiting: Iterable[Attempt]) -> int:
        """Return the number of threads of the workers that no waiting part may be sent to."""
        allowed: set[str] = set()
        for attempt in waiting:
            allowed |= attempt.workers or set()
        return sum(threads for worker, threads in self.worker_pool.fit_workers.items() if worker not in allowed)

    def _send_backups(self) -> None:
        """Send a second copy of the tasks that take much longer than others of their kind, once no part waits."""
        now, slow_seconds = self.task_client.now(), self.durations.slow_seconds(self.spec.kind)
        running_count = sum(attempt.began_at is not None for attempt in self.in_flight.values())
        if self.queue.waiting_parts or self.queue.sends_alone or running_count >= self.worker_pool.threads:
            self.idle_since = None
            return
        self.idle_since = now if self.idle_since is None else self.idle_since
        if slow_seconds is None or not self.spec.is_repeatable:
            return
        attempts = [
            attempt
            for attempt in self.in_flight.values()
            if not attempt.is_backup and (attempt.began_at is not None or not attempt.had_other_runs)
        ]
        slow_attempts = [attempt for attempt in attempts if now - self._running_since(attempt) > slow_seconds]
        other_workers = frozenset(self.worker_pool.fit_workers) - {attempt.worker for attempt in slow_attempts}
        for attempt in slow_attempts if other_workers else ():
            if attempt.part not in self.parts_with_backup:
                self.parts_with_backup.add(attempt.part)
                self._send_part(attempt.part, other_workers, is_backup=True)

    def _running_since(self, attempt: Attempt) -> float:
        """Return when a task began; if it has not begun, when a thread became free for it."""
        return (
            attempt.began_at
            if attempt.began_at is not None
            else max(attempt.sent_at, self.idle_since or attempt.sent_at)
        )

    def _cancel_stuck_tasks(self, seconds: float) -> None:
        """Cancel the tasks that have reported nothing for `seconds`, leave out their workers, and requeue their parts.

        A cancelled task that has begun cannot be ended. It may still commit, and this does no harm: the first commit
        counts, and all copies write the same bytes. If two copies of the task may not run at once, the run ends
        instead. `dumap.store.Run.commit` refuses what that task commits after another driver has taken over.

        Raises
        ------
        TaskError
        """
        now = self.task_client.now()
        stuck_attempts = [
            attempt
            for attempt in self.in_flight.values()
            if attempt.reported_at is not None and now - attempt.reported_at > seconds
        ]
        for attempt in stuck_attempts:
            part, future = attempt.part, self.futures_by_number.get(attempt.number)
            if future is None:  # this loop has finished the part
                continue
            if self.spec.is_committed(part):
                self._finish_part(part)
                continue
            self.stuck_counts[part] = self.stuck_counts.get(part, 0) + 1
            message = f"{self.spec.stage} {part} told nothing for {seconds:g} s (cluster.task_timeout)"
            if not self.spec.is_repeatable or self.stuck_counts[part] >= MAX_STUCK:
                raise TaskError(
                    f"{message} on {attempt.worker}, {self.stuck_counts[part]} times in all, and is not tried again: "
                    f"raise the limit if tasks are that slow, else look at what that worker does; what is committed is "
                    f"kept"
                )
            self.worker_pool.exclude(attempt.worker, [f"{message} there, and is taken for stuck"])
            self._requeue([future])

    # results -----------------------------------------------------------------------------------

    def _read_messages(self) -> None:
        """Read the messages of tasks: where they began, their progress, and their time and memory."""
        while self.messages:
            message = self.messages.popleft()
            if message.get("step") != self.name:
                continue
            attempt = self.in_flight.get(self.futures_by_number.get(message["number"]))
            if "seconds" in message:
                self.durations.add(self.spec.kind, message["seconds"])
                self.peak_bytes = max(self.peak_bytes, message["peak_bytes"])
                self.held_bytes = max(self.held_bytes, message["held_bytes"])
                if attempt is not None:
                    attempt.actual_seconds = message["seconds"]
            elif attempt is not None and "done" in message:
                attempt.reported_at = self.task_client.now()
                self.spec.report_progress(message["done"], message["total"])
            elif attempt is not None and "worker" in message:
                attempt.began_at, attempt.worker = self.task_client.now(), message["worker"]
                attempt.reported_at = attempt.began_at
                self.fair_queue.record_start(attempt.virtual_start)
                self.worker_pool.verified_workers.add(attempt.worker)

    def _record_outcome(self, future: Any) -> None:
        """Record the outcome of a task that has ended."""
        error, attempt = self.task_client.task_error(future), self._remove_attempt(future)
        part = attempt.part
        if isinstance(error, UnfitWorkerError):
            self.worker_pool.exclude(error.address, error.reasons)
        if error is None or (not isinstance(error, LockError) and self.spec.is_committed(part)):
            if self.spec.unit_of is not None and error is None and attempt.worker:
                self.spec.unit_workers.record(self.spec.unit_of(part), attempt.worker)
            self._finish_part(part)
        elif isinstance(error, DumapError):
            raise error
        elif part in self.futures_by_part:  # another copy of the task is in flight
            return
        elif isinstance(error, WorkersDiedError):
            if self.queue.record_death(part, error.workers) >= MAX_DEATHS:
                raise TaskError(
                    f"{self.spec.stage} {part}: its worker died {self.queue.deaths[part]} times with nothing else to "
                    f"do; what is committed is kept. Look at the workers' logs: memory is the usual cause"
                )
        else:
            if (
                not isinstance(error, (TaskLostError, UnfitWorkerError))
                and attempt.sent_at >= self.worker_pool.last_exclusion
            ):
                self._handle_foreign_error(part, error)
            self.queue.put_back(part)

    def _finish_part(self, part: str) -> None:
        """Record that a part is done, and cancel its other tasks."""
        self._cancel_tasks(self.futures_by_part.get(part, []))
        self.done_parts.add(part)
        self.spec.report_progress(len(self.done_parts), len(self.spec.parts))

    def _handle_foreign_error(self, part: str, error: Exception) -> None:
        """Check the workers after an error that the task did not raise itself; count the error if all are fit."""
        if self.check_unverified_workers():
            return
        self.foreign_errors[part] = self.foreign_errors.get(part, 0) + 1
        if self.foreign_errors[part] >= MAX_FOREIGN_ERRORS:
            raise ClusterError(
                f"{self.spec.stage} {part} cannot be run ({type(error).__name__}: {error}): the scheduler and all "
                f"workers must have the dumap of this client, and what it needs"
            ) from error


def join_first_names(parts: Sequence[str]) -> str:
    """Return the names of the first parts, and the number of the others."""
    return ", ".join(parts[:MAX_LISTED]) + (f" and {len(parts) - MAX_LISTED} more" if len(parts) > MAX_LISTED else "")
