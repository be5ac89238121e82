"""A cluster that is simulated: workers come, die, leave and straggle by a seed, in time that only it passes.

It schedules as Dask does where that matters: a task without restrictions waits at the scheduler until a thread is
free, one with restrictions is given at once to a worker of those that may do it; a worker with nothing to do steals; a
worker that dies takes with it all that it was given, and each of these comes back as killed once that happened more
than `allowed` times; a worker that leaves gives back what it had.
"""

from __future__ import annotations

import heapq
import itertools
import random
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from dumap.engine.checks import UnfitWorkerError
from dumap.engine.cluster_connection import TaskLostError, WorkersDiedError


@dataclass(eq=False)
class Task:
    """A task, from when it is sent until its outcome is taken."""

    stage: str
    step: str
    part: str
    number: int
    workers: frozenset[str] | None
    deaths: int = 0
    on: str = ""
    running: bool = False
    outcome: Exception | None = None
    preferred_worker: str | None = None


@dataclass
class Worker:
    """A worker: what it was given, and how it is."""

    threads: int
    unfit: tuple[str, ...] = ()
    stopped: bool = False
    slowness: float = 1.0
    given: list[Task] = field(default_factory=list)


class Cluster:
    """Workers and a scheduler; the engine's side of it is that of `dumap.engine.cluster_connection.ClusterConnection`.

    Parameters
    ----------
    seed : int
    seconds : callable
        `seconds(part)` says how long a part takes.
    allowed : int
        Deaths beyond which a task comes back as killed.
    """

    name, is_closed, is_running = "a simulated cluster", False, True

    def __init__(self, seed: int, seconds: Callable[[str], float] = lambda part: 1.0, allowed: int = 3) -> None:
        self.random, self.seconds, self.allowed = random.Random(seed), seconds, allowed
        self.time, self.polls = 0.0, 0
        self.workers: dict[str, Worker] = {}
        self.waiting: list[Task] = []
        self.finished: list[Task] = []
        self.messages: deque[dict] = deque()
        self.committed: set[str] = set()
        self.computed: list[tuple[str, str]] = []
        self.kills: set[str] = set()
        self.raises: dict[str, Exception] = {}
        self.most_in_flight, self.respawns = 0, False
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._numbers = itertools.count()
        self.in_flight: set[Task] = set()

    # what happens ------------------------------------------------------------------------------

    def at(self, time: float, happens: Callable[[], None]) -> None:
        """Have something happen."""
        heapq.heappush(self._events, (max(time, self.time), next(self._numbers), happens))

    def join(self, threads: int = 1, **how: Any) -> str:
        """Start a worker."""
        address = f"tcp://10.0.0.{next(self._numbers)}:1"
        self.workers[address] = Worker(threads, **how)
        for task in [task for task in self.waiting if self._may(task, address) and task.preferred_worker is None]:
            self._place(task)  # as Dask, which sends a task that found no worker to none but the one that it prefers
        self._steal(address)
        return address

    def die(self, address: str) -> None:
        """Kill a worker: what it was given is to blame."""
        worker = self.workers.pop(address, None)
        for task in worker.given if worker else ():
            task.deaths += 1
            if task.deaths > self.allowed:
                self._end(task, WorkersDiedError(task.deaths))
            else:
                self._give_back(task)
        if worker and self.respawns:
            self.at(self.time + 2, lambda: self.join(worker.threads))

    def stop(self, address: str, until: float) -> None:
        """Stop a worker; it is given up, as if it had died, some time later."""
        if address in self.workers:
            self.workers[address].stopped = True
            self.at(until, lambda: self.die(address))

    def leave(self, address: str) -> None:
        """Retire a worker: nothing is to blame."""
        worker = self.workers.pop(address, None)
        for task in worker.given if worker else ():
            self._give_back(task)

    def lose(self, task: Task) -> None:
        """Forget a task."""
        if task in self.in_flight and task not in self.finished:
            self._take(task)
            self._end(task, TaskLostError())

    def _give_back(self, task: Task) -> None:
        task.on, task.running = "", False
        self.waiting.insert(0, task)
        self.at(self.time, lambda: self._place(task))

    def _may(self, task: Task, address: str) -> bool:
        return task.workers is None or address in task.workers

    def _place(self, task: Task) -> None:
        """Give a task that waits to a worker, if one may have it."""
        if task not in self.waiting:
            return
        able = [address for address in self.workers if self._may(task, address)]
        if (
            task.workers is None and task.preferred_worker is None
        ):  # it waits at the scheduler, where a worker has one more than it has threads
            able = [a for a in able if len(self.workers[a].given) <= self.workers[a].threads]
        if able:
            self.waiting.remove(task)
            task.on = min(able, key=lambda a: (len(self.workers[a].given) / self.workers[a].threads, a))
            self.workers[task.on].given.append(task)
            self._start(task.on)

    def _start(self, address: str) -> None:
        """Begin what a worker has threads for."""
        worker = self.workers.get(address)
        if worker is None or worker.stopped:
            return
        for task in worker.given[: worker.threads]:
            if not task.running:
                task.running = True
                self.at(self.time, lambda t=task: self._begin(t, address))

    def _begin(self, task: Task, address: str) -> None:
        if task.on != address or not task.running or address not in self.workers:
            return
        worker = self.workers[address]
        if worker.unfit:
            self._take(task)
            self._end(task, UnfitWorkerError(address, worker.unfit))
            return
        self.messages.append({"step": task.step, "number": task.number, "worker": address})
        took = self.seconds(task.part) * worker.slowness
        self.at(self.time + took, lambda: self._finish(task, address, took))

    def _finish(self, task: Task, address: str, took: float) -> None:
        worker = self.workers.get(address)
        if worker is None or worker.stopped or task.on != address or not task.running:
            return
        if task.part in self.kills:
            self.die(address)
            return
        self.computed.append((task.part, address))
        self._take(task)
        if error := self.raises.get(task.part):
            self._end(task, error)
            return
        self.committed.add(task.part)
        self.messages.append(
            {"step": task.step, "number": task.number, "seconds": took, "peak_bytes": 1, "held_bytes": 1}
        )
        self._end(task, None)

    def _take(self, task: Task) -> None:
        """Take a task from where it is."""
        if task in self.waiting:
            self.waiting.remove(task)
        worker = self.workers.get(task.on)
        if worker and task in worker.given:
            worker.given.remove(task)
        address, task.on, task.running = task.on, "", False
        self._start(address)
        for other in [o for o in self.waiting if o.workers is None and o.preferred_worker is None]:
            self._place(other)
        self._steal(address)

    def _steal(self, thief: str) -> None:
        """Take over what waits at other workers, where one has nothing to do."""
        idle = self.workers.get(thief)
        if idle is None or idle.stopped or len(idle.given) >= idle.threads:
            return
        for worker in self.workers.values():
            for task in [] if worker.stopped else [t for t in worker.given if not t.running and self._may(t, thief)]:
                if len(idle.given) < idle.threads and len(worker.given) > worker.threads:
                    worker.given.remove(task)
                    task.on = thief
                    idle.given.append(task)
        self._start(thief)

    def _end(self, task: Task, outcome: Exception | None) -> None:
        if task in self.in_flight:
            task.outcome = outcome
            self.finished.append(task)

    # the engine's side -----------------------------------------------------------------------

    def now(self) -> float:
        """Return the time."""
        return self.time

    def threads_by_worker(self) -> dict[str, int]:
        """Return the workers' threads."""
        return {address: worker.threads for address, worker in self.workers.items()}

    def begin_step(self) -> str:
        """Begin a step."""
        return f"step-{next(self._numbers)}"

    def send_message(self, topic: str, message: dict) -> None:
        """Tell nobody: there are no other runs."""

    def exchange_messages(self, topic: str, message: dict) -> list:
        """Return nothing of other runs."""
        return []

    def listen(self, topic: str, on_message: Callable) -> None:
        """Hear nothing."""

    def send(
        self,
        stage: str,
        step: str,
        part: str,
        call: tuple,
        workers: frozenset[str] | None,
        virtual_start: float | None,
        preferred_worker: str | None = None,
    ) -> Task:
        """Send a task."""
        task = Task(stage, step, part, call[-1], workers, preferred_worker=preferred_worker)
        self.in_flight.add(task)
        if preferred_worker in self.workers:
            task.on = preferred_worker
            self.workers[preferred_worker].given.append(task)
            self._start(preferred_worker)
        else:
            self.waiting.append(task)
            self._place(task)
        self.most_in_flight = max(self.most_in_flight, len(self.in_flight))
        return task

    def wait_for_done(self, seconds: float) -> list[Task]:
        """Let time pass until a task is done, or for so long."""
        self.polls += 1
        until = self.time + seconds
        while not self.finished and self._events and self._events[0][0] <= until:
            self.time, _, happens = heapq.heappop(self._events)
            happens()
        if not self.finished:
            self.time = until
        finished, self.finished = self.finished, []
        return finished

    def task_error(self, task: Task) -> Exception | None:
        """Return what became of a task."""
        self.in_flight.discard(task)
        return task.outcome

    def cancel(self, tasks: list[Task]) -> None:
        """Take tasks back; what runs goes on, and may commit."""
        for task in tasks:
            self.in_flight.discard(task)
            if task in self.waiting or not task.running:
                self._take(task)
