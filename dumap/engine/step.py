"""One step of a run: a task for each part, sent to workers until all parts are done."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from dumap.engine.backups import Durations
from dumap.engine.checks import UnfitWorker
from dumap.engine.link import Killed, Lost
from dumap.engine.members import Members
from dumap.engine.task_queue import TaskQueue
from dumap.errors import ClusterError, DumapError, LockError, TaskError

ATTEMPTS = 4
"""Deaths of workers that had nothing but one part to do, before the run gives up on it."""
MAX_LISTED = 8
"""Parts that an error names."""
POLL_SECONDS = 0.5
"""The longest that a step waits for news."""
MAX_STUCK = 3
"""Times that a part is taken for stuck before the run gives up on it."""
MAX_FOREIGN_ERRORS = 3
"""Errors from outside of a part's task, on workers that are fit, before the run gives up on it."""


class Tasks(Protocol):
    """Where tasks are sent."""

    def now(self) -> float:
        """Return the time."""

    def begin(self) -> str:
        """Begin a step."""

    def send(self, stage: str, step: str, part: str, call: tuple, workers: Iterable[str] | None) -> Any:
        """Send a task."""

    def done(self, seconds: float) -> list[Any]:
        """Return those that are done."""

    def outcome(self, future: Any) -> Exception | None:
        """Return the error of a finished task, None if it succeeded."""

    def cancel(self, futures: Sequence[Any]) -> None:
        """Take tasks back."""


@dataclass
class Attempt:
    """A task that has been sent.

    Attributes
    ----------
    part : str
    number : int
        Its own within the step.
    workers : frozenset of str, optional
        Who may do it; None: anybody.
    sent : float
    backup : bool
        Whether it is the second of its part.
    begun : float, optional
        When it began, if it is known to have.
    worker : str
        Where it began.
    heard : float, optional
        When it last told how far it is, or that it began.
    """

    part: str
    number: int
    workers: frozenset[str] | None
    sent: float
    backup: bool
    begun: float | None = None
    worker: str = ""
    heard: float | None = None


@dataclass(frozen=True)
class StepSpec:
    """What a step does.

    Attributes
    ----------
    stage, kind : str
        The stage, and the kind of task.
    parts : sequence of str
    call : callable
        `call(part, number)` returns what is sent: a function and its arguments. The task sends messages with that
        number as it begins and as it ends.
    committed : callable
        Tells whether a part is committed.
    advanced : callable
        Told of how many of how many are done.
    repeatable : bool
        Whether two copies of a task may run at once: it writes one part, and reads committed ones.
    """

    stage: str
    kind: str
    parts: Sequence[str]
    call: Callable[[str, int], tuple]
    committed: Callable[[str], bool]
    advanced: Callable[[float, float], None]
    repeatable: bool = True


class Step:
    """Sends the parts of a step and follows them until all are done.

    Parameters
    ----------
    spec : StepSpec
    tasks : Tasks
    members : Members
    durations : Durations
    messages : deque
        Filled with what the tasks tell, by another thread.
    question : callable
        Asks workers that are not proven to be fit whether they are; tells whether one is not.
    task_timeout : float, optional
        Seconds after which a task that has begun, and tells nothing, is taken for stuck.
    """

    def __init__(
        self,
        spec: StepSpec,
        tasks: Tasks,
        members: Members,
        durations: Durations,
        messages: deque[dict],
        question: Callable[[], bool],
        task_timeout: float | None = None,
    ) -> None:
        self.spec, self.tasks, self.members, self.durations = spec, tasks, members, durations
        self.messages, self.question = messages, question
        self.queue = TaskQueue(spec.parts, 2)
        self.in_flight: dict[Any, Attempt] = {}
        self.attempts_of: dict[str, list[Any]] = {}
        self.numbers: dict[int, Any] = {}
        self.done: set[str] = set()
        self.backed_up: set[str] = set()
        self.task_timeout = task_timeout
        self.stuck: dict[str, int] = {}
        self.foreign_errors: dict[str, int] = {}
        self.sent, self.peak_bytes, self.held_bytes = 0, 0, 0
        self.idle_since: float | None = None
        self.name = ""

    def run(self) -> None:
        """Go on until all parts are done.

        Raises
        ------
        DumapError
            The task's own; `TaskError` for a part that kills its workers; `ClusterError` where the cluster is lost.
        """
        self.name = self.tasks.begin()
        self.members.reset_timeouts()
        try:
            while len(self.done) < len(self.spec.parts):
                if self.members.refresh(self._names):
                    self.queue.window = self.members.window
                    self.queue.many = max(2, 2 * self.members.threads)
                    self._send_again()
                    self._send_backups()
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

    def _names(self) -> str:
        names = [*dict.fromkeys(attempt.part for attempt in self.in_flight.values()), *self.queue.suspects]
        return f"{self.spec.stage} {name_some(names or list(self.queue.waiting))}"

    # sending -----------------------------------------------------------------------------------

    def _send(self, part: str, workers: frozenset[str] | None, backup: bool = False) -> None:
        self.sent += 1
        call = self.spec.call(part, self.sent)
        future = self.tasks.send(self.spec.stage, self.name, part, call, workers)
        self.in_flight[future] = Attempt(part, self.sent, workers, self.tasks.now(), backup)
        self.attempts_of.setdefault(part, []).append(future)
        self.numbers[self.sent] = future

    def _cancel(self, futures: Sequence[Any]) -> None:
        """Cancel tasks and forget them."""
        if futures:
            self.tasks.cancel(futures)
        for future in list(futures):
            self._forget(future)

    def _forget(self, future: Any) -> Attempt:
        attempt = self.in_flight.pop(future)
        del self.numbers[attempt.number]
        self.attempts_of[attempt.part].remove(future)
        if not self.attempts_of[attempt.part]:
            del self.attempts_of[attempt.part]
        return attempt

    def _send_again(self) -> None:
        """Send parts again that were bound to workers that are gone, and some for workers that joined since."""
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
        parts = [self.in_flight[future].part for future in bound]
        self._cancel(bound)
        for part in dict.fromkeys(parts):
            if part not in self.attempts_of:
                self.queue.put_back(part)

    def _free_threads(self, waiting: Iterable[Attempt]) -> int:
        """Count the threads of workers to which no waiting part may go."""
        reached: set[str] = set()
        for attempt in waiting:
            reached |= attempt.workers or set()
        return sum(threads for worker, threads in self.members.fit.items() if worker not in reached)

    def _send_backups(self) -> None:
        """Send a backup of parts that take much longer than others of their kind, once nothing else waits."""
        now, slow = self.tasks.now(), self.durations.slow(self.spec.kind)
        running = sum(attempt.begun is not None for attempt in self.in_flight.values())
        if self.queue.waiting or self.queue.alone or running >= self.members.threads:
            self.idle_since = None
            return
        self.idle_since = now if self.idle_since is None else self.idle_since
        if slow is None or not self.spec.repeatable:
            return
        late = [a for a in self.in_flight.values() if not a.backup and now - self._since(a) > slow]
        around = frozenset(self.members.fit) - {attempt.worker for attempt in late}
        for attempt in late if around else ():
            if attempt.part not in self.backed_up:
                self.backed_up.add(attempt.part)
                self._send(attempt.part, around, backup=True)

    def _since(self, attempt: Attempt) -> float:
        """Return since when a task runs; or, where it has not begun, since when it would have found a free thread."""
        return attempt.begun if attempt.begun is not None else max(attempt.sent, self.idle_since or attempt.sent)

    def _end_stuck(self, seconds: float) -> None:
        """Give up tasks that have told nothing for so long, and their workers; their parts go elsewhere.

        A task that is given up cannot be ended: it may yet commit, which is as well, since the first commit counts and
        all copies write the same bytes. A part of whose task no two may run at once ends the run instead: what that
        task does once another driver has begun is refused, see `dumap.store.Run.commit`.

        Raises
        ------
        TaskError
        """
        now = self.tasks.now()
        late = [a for a in self.in_flight.values() if a.heard is not None and now - a.heard > seconds]
        for attempt in late:
            part, future = attempt.part, self.numbers.get(attempt.number)
            if future is None:  # its part is done since
                continue
            if self.spec.committed(part):
                self._finish(part)
                continue
            self.stuck[part] = self.stuck.get(part, 0) + 1
            said = f"{self.spec.stage} {part} told nothing for {seconds:g} s (cluster.task_timeout)"
            if not self.spec.repeatable or self.stuck[part] >= MAX_STUCK:
                raise TaskError(
                    f"{said} on {attempt.worker}, {self.stuck[part]} times in all, and is not tried again: raise the "
                    f"limit if tasks are that slow, else look at what that worker does; what is committed is kept"
                )
            self.members.leave_out(attempt.worker, [f"{said} there, and is taken for stuck"])
            self._cancel([future])
            if part not in self.attempts_of:
                self.queue.put_back(part)

    # what comes back ---------------------------------------------------------------------------

    def _read_messages(self) -> None:
        """Read the messages of tasks: where they began, how far they are, and what they took."""
        while self.messages:
            message = self.messages.popleft()
            if message.get("step") != self.name:
                continue
            attempt = self.in_flight.get(self.numbers.get(message["number"]))
            if "seconds" in message:
                self.durations.ended(self.spec.kind, message["seconds"])
                self.peak_bytes = max(self.peak_bytes, message["peak_bytes"])
                self.held_bytes = max(self.held_bytes, message["held_bytes"])
            elif attempt is not None and "done" in message:
                attempt.heard = self.tasks.now()
                self.spec.advanced(message["done"], message["total"])
            elif attempt is not None and "worker" in message:
                attempt.begun, attempt.worker = self.tasks.now(), message["worker"]
                attempt.heard = attempt.begun
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
        elif part in self.attempts_of:  # another is at it
            return
        elif isinstance(error, Killed):
            if self.queue.died(part, error.workers) >= ATTEMPTS:
                raise TaskError(
                    f"{self.spec.stage} {part}: its worker died {self.queue.deaths[part]} times with nothing else to "
                    f"do; what is committed is kept. Look at the workers' logs: memory is the usual cause"
                )
        else:
            if not isinstance(error, (Lost, UnfitWorker)) and attempt.sent >= self.members.found_unfit:
                self._find_cause(part, error)
            self.queue.put_back(part)

    def _finish(self, part: str) -> None:
        self._cancel(self.attempts_of.get(part, []))
        self.done.add(part)
        self.spec.advanced(len(self.done), len(self.spec.parts))

    def _find_cause(self, part: str, error: Exception) -> None:
        """Find out whether an error that is not the task's own is the worker's, which may not even read the task."""
        if self.question():
            return
        self.foreign_errors[part] = self.foreign_errors.get(part, 0) + 1
        if self.foreign_errors[part] >= MAX_FOREIGN_ERRORS:
            raise ClusterError(
                f"{self.spec.stage} {part} cannot be run ({type(error).__name__}: {error}): the scheduler and all "
                f"workers must have the dumap of this client, and what it needs"
            ) from error


def name_some(parts: Sequence[str]) -> str:
    """Name a few parts."""
    return ", ".join(parts[:MAX_LISTED]) + (f" and {len(parts) - MAX_LISTED} more" if len(parts) > MAX_LISTED else "")
