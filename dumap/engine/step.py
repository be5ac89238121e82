"""One step of a run: sends a task for each part to workers until all parts are done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from dumap.engine.attempts import Attempt, Tasks
from dumap.engine.backups import Durations
from dumap.engine.checks import UnfitWorker
from dumap.engine.fair_queue import UNKNOWN_SECONDS, FairQueue
from dumap.engine.cluster_connection import Killed, Lost
from dumap.engine.worker_pool import Members
from dumap.engine.task_queue import TaskQueue
from dumap.errors import ClusterError, DumapError, LockError, TaskError

ATTEMPTS = 4
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
    call : callable
        `call(part, number)` returns the function to send and its arguments. The task sends messages that hold `number`
        when it begins, when it reports progress and when it ends.
    committed : callable
        `committed(part)` returns whether a part is committed.
    advanced : callable
        `advanced(done, total)` is called with the progress of the step.
    repeatable : bool
        Whether two copies of a task may run at once. A task that writes one part and reads only committed parts is
        repeatable.
    """

    stage: str
    kind: str
    parts: Sequence[str]
    call: Callable[[str, int], tuple]
    committed: Callable[[str], bool]
    advanced: Callable[[float, float], None]
    repeatable: bool = True


class Step:
    """Sends the tasks of a step and follows them until all parts are done.

    Parameters
    ----------
    spec : StepSpec
    tasks : Tasks
    members : Members
    durations : Durations
    messages : deque
        The messages of the tasks; another thread appends them.
    check_unproven : callable
        Checks the workers that have not proven to be fit, and returns whether any of them is unfit.
    fair_queue : FairQueue
        The order of this run's tasks and those of other runs.
    task_timeout : float, optional
        A task that has begun and reports nothing for this many seconds counts as stuck.
    """

    def __init__(
        self,
        spec: StepSpec,
        tasks: Tasks,
        members: Members,
        durations: Durations,
        messages: deque[dict],
        check_unproven: Callable[[], bool],
        fair_queue: FairQueue,
        task_timeout: float | None = None,
    ) -> None:
        self.spec, self.tasks, self.members, self.durations = spec, tasks, members, durations
        self.messages, self.check_unproven, self.fair_queue = messages, check_unproven, fair_queue
        self.queue = TaskQueue(spec.parts, 2)
        self.in_flight: dict[Any, Attempt] = {}
        self.attempts_of: dict[str, list[Any]] = {}
        self.numbers: dict[int, Any] = {}
        self.done: set[str] = set()
        self.backed_up: set[str] = set()
        self.task_timeout = task_timeout
        self.stuck: dict[str, int] = {}
        self.transport_errors: dict[str, int] = {}
        self.sent, self.peak_bytes, self.held_bytes = 0, 0, 0
        self.idle_since: float | None = None
        self.name = ""

    def run(self) -> None:
        """Run the step until all parts are done.

        Raises
        ------
        DumapError
            The error of a task; `TaskError` for a part whose workers die; `ClusterError` if the cluster is lost.
        """
        self.name = self.tasks.begin()
        self.members.reset_timeouts()
        try:
            while len(self.done) < len(self.spec.parts):
                self.fair_queue.announce()
                if self.members.refresh(self._names):
                    self.queue.many = max(2, 2 * self.members.threads)
                    self._send_again()
                    self._send_backups()
                    self._reorder()
                self.queue.window = self._window()
                if not self.members.lacking:
                    while (part := self.queue.take(len(self.in_flight))) is not None:
                        self._send(part, self.members.allowed)
                done = self.tasks.done(POLL_SECONDS)
                self._read_messages()
                for future in done:
                    if future in self.in_flight:
                        self._record_outcome(future)
                if self.task_timeout is not None:
                    self._end_stuck(self.task_timeout)
        finally:
            self.tasks.cancel(list(self.in_flight))
            self.fair_queue.pause()

    def _names(self) -> str:
        """Return the names of the stage and of the parts in flight, for errors."""
        names = [*dict.fromkeys(attempt.part for attempt in self.in_flight.values()), *self.queue.suspects]
        return f"{self.spec.stage} {name_some(names or list(self.queue.waiting))}"

    # sending -----------------------------------------------------------------------------------

    def _window(self) -> int:
        """Return the most parts in flight: few on a shared cluster until the time of a part is known."""
        if self.fair_queue.shared and self.durations.typical(self.spec.kind) is None:
            return max(1, self.members.threads)
        return self.members.window

    def _send(self, part: str, workers: frozenset[str] | None, backup: bool = False) -> None:
        """Send a task for a part."""
        self.sent += 1
        call, shared = self.spec.call(part, self.sent), self.fair_queue.shared
        expected = self.durations.typical(self.spec.kind) or UNKNOWN_SECONDS
        due = self.fair_queue.take(expected)
        future = self.tasks.send(self.spec.stage, self.name, part, call, workers, due if shared else None)
        self.in_flight[future] = Attempt(
            part, self.sent, workers, self.tasks.now(), backup, due=due, expected=expected, shared=shared
        )
        self.attempts_of.setdefault(part, []).append(future)
        self.numbers[self.sent] = future

    def _cancel(self, futures: Sequence[Any]) -> None:
        """Cancel tasks, which are then no longer in flight."""
        if futures:
            self.tasks.cancel(futures)
        for future in list(futures):
            self._forget(future)

    def _requeue(self, futures: Sequence[Any]) -> None:
        """Cancel tasks, and put their parts back in the queue, in order, unless other copies of them are in flight."""
        parts = [self.in_flight[future].part for future in futures]
        self._cancel(futures)
        for part in dict.fromkeys(parts):
            if part not in self.attempts_of:
                self.queue.put_back(part)

    def _forget(self, future: Any) -> Attempt:
        """Remove a task from those in flight; return its attempt."""
        attempt = self.in_flight.pop(future)
        del self.numbers[attempt.number]
        self.attempts_of[attempt.part].remove(future)
        if not self.attempts_of[attempt.part]:
            del self.attempts_of[attempt.part]
        self.fair_queue.correct(attempt.took - attempt.expected)
        return attempt

    def _reorder(self) -> None:
        """Put waiting parts back in the queue if they were sent before other runs began, or before all others ended."""
        shared = self.fair_queue.shared
        if self.queue.alone or not self.spec.repeatable:
            return
        stale = [f for f, a in self.in_flight.items() if a.begun is None and a.shared != shared and not a.backup]
        self._requeue(stale[::-1])

    def _send_again(self) -> None:
        """Put parts back in the queue whose workers have all left, and as many waiting parts as new workers can run."""
        present, allowed = self.members.present, self.members.allowed
        for attempt in self.in_flight.values():
            if attempt.begun is not None and attempt.worker not in present:
                attempt.begun = None
        if self.queue.alone:
            bound = [f for f, a in self.in_flight.items() if a.workers is not None and not a.workers & present.keys()]
        else:
            waiting = {f: a for f, a in self.in_flight.items() if a.workers is not None and a.begun is None}
            bound = [f for f, a in waiting.items() if not a.workers & present.keys()]  # type: ignore[operator]
            others = [f for f, a in waiting.items() if a.workers != allowed and not a.backup and f not in set(bound)]
            bound += others[: -2 * self._free_threads(waiting.values()) - 1 : -1]
        self._requeue(bound)

    def _free_threads(self, waiting: Iterable[Attempt]) -> int:
        """Return the number of threads of the workers that no waiting part may be sent to."""
        allowed: set[str] = set()
        for attempt in waiting:
            allowed |= attempt.workers or set()
        return sum(threads for worker, threads in self.members.fit.items() if worker not in allowed)

    def _send_backups(self) -> None:
        """Send a second copy of the tasks that take much longer than others of their kind, once no part waits."""
        now, slow = self.tasks.now(), self.durations.slow(self.spec.kind)
        running = sum(attempt.begun is not None for attempt in self.in_flight.values())
        if self.queue.waiting or self.queue.alone or running >= self.members.threads:
            self.idle_since = None
            return
        self.idle_since = now if self.idle_since is None else self.idle_since
        if slow is None or not self.spec.repeatable:
            return
        attempts = [a for a in self.in_flight.values() if not a.backup and (a.begun is not None or not a.shared)]
        late = [attempt for attempt in attempts if now - self._running_since(attempt) > slow]
        others = frozenset(self.members.fit) - {attempt.worker for attempt in late}
        for attempt in late if others else ():
            if attempt.part not in self.backed_up:
                self.backed_up.add(attempt.part)
                self._send(attempt.part, others, backup=True)

    def _running_since(self, attempt: Attempt) -> float:
        """Return when a task began; if it has not begun, when a thread became free for it."""
        return attempt.begun if attempt.begun is not None else max(attempt.sent, self.idle_since or attempt.sent)

    def _end_stuck(self, seconds: float) -> None:
        """Cancel the tasks that have reported nothing for `seconds`, leave out their workers, and requeue their parts.

        A cancelled task that has begun cannot be ended. It may still commit, and this does no harm: the first commit
        counts, and all copies write the same bytes. If two copies of the task may not run at once, the run ends
        instead. `dumap.store.Run.commit` refuses what that task commits after another driver has taken over.

        Raises
        ------
        TaskError
        """
        now = self.tasks.now()
        late = [a for a in self.in_flight.values() if a.reported is not None and now - a.reported > seconds]
        for attempt in late:
            part, future = attempt.part, self.numbers.get(attempt.number)
            if future is None:  # this loop has finished the part
                continue
            if self.spec.committed(part):
                self._finish(part)
                continue
            self.stuck[part] = self.stuck.get(part, 0) + 1
            silence = f"{self.spec.stage} {part} told nothing for {seconds:g} s (cluster.task_timeout)"
            if not self.spec.repeatable or self.stuck[part] >= MAX_STUCK:
                raise TaskError(
                    f"{silence} on {attempt.worker}, {self.stuck[part]} times in all, and is not tried again: raise "
                    f"the limit if tasks are that slow, else look at what that worker does; what is committed is kept"
                )
            self.members.leave_out(attempt.worker, [f"{silence} there, and is taken for stuck"])
            self._requeue([future])

    # results -----------------------------------------------------------------------------------

    def _read_messages(self) -> None:
        """Read the messages of tasks: where they began, their progress, and their time and memory."""
        while self.messages:
            message = self.messages.popleft()
            if message.get("step") != self.name:
                continue
            attempt = self.in_flight.get(self.numbers.get(message["number"]))
            if "seconds" in message:
                self.durations.ended(self.spec.kind, message["seconds"])
                self.peak_bytes = max(self.peak_bytes, message["peak_bytes"])
                self.held_bytes = max(self.held_bytes, message["held_bytes"])
                if attempt is not None:
                    attempt.took = message["seconds"]
            elif attempt is not None and "done" in message:
                attempt.reported = self.tasks.now()
                self.spec.advanced(message["done"], message["total"])
            elif attempt is not None and "worker" in message:
                attempt.begun, attempt.worker = self.tasks.now(), message["worker"]
                attempt.reported = attempt.begun
                self.fair_queue.begun(attempt.due)
                self.members.proven.add(attempt.worker)

    def _record_outcome(self, future: Any) -> None:
        """Record the outcome of a task that has ended."""
        error, attempt = self.tasks.outcome(future), self._forget(future)
        part = attempt.part
        if isinstance(error, UnfitWorker):
            self.members.leave_out(error.address, error.reasons)
        if error is None or (not isinstance(error, LockError) and self.spec.committed(part)):
            self._finish(part)
        elif isinstance(error, DumapError):
            raise error
        elif part in self.attempts_of:  # another copy of the task is in flight
            return
        elif isinstance(error, Killed):
            if self.queue.died(part, error.workers) >= ATTEMPTS:
                raise TaskError(
                    f"{self.spec.stage} {part}: its worker died {self.queue.deaths[part]} times with nothing else to "
                    f"do; what is committed is kept. Look at the workers' logs: memory is the usual cause"
                )
        else:
            if not isinstance(error, (Lost, UnfitWorker)) and attempt.sent >= self.members.last_left_out:
                self._find_cause(part, error)
            self.queue.put_back(part)

    def _finish(self, part: str) -> None:
        """Record that a part is done, and cancel its other tasks."""
        self._cancel(self.attempts_of.get(part, []))
        self.done.add(part)
        self.spec.advanced(len(self.done), len(self.spec.parts))

    def _find_cause(self, part: str, error: Exception) -> None:
        """Check the workers after an error that the task did not raise itself; count the error if all are fit."""
        if self.check_unproven():
            return
        self.transport_errors[part] = self.transport_errors.get(part, 0) + 1
        if self.transport_errors[part] >= MAX_FOREIGN_ERRORS:
            raise ClusterError(
                f"{self.spec.stage} {part} cannot be run ({type(error).__name__}: {error}): the scheduler and all "
                f"workers must have the dumap of this client, and what it needs"
            ) from error


def name_some(parts: Sequence[str]) -> str:
    """Return the names of the first parts, and the number of the others."""
    return ", ".join(parts[:MAX_LISTED]) + (f" and {len(parts) - MAX_LISTED} more" if len(parts) > MAX_LISTED else "")
