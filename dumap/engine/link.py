"""What the engine asks of a Dask client, and no more: tests put a simulated cluster in its place."""

from __future__ import annotations

import contextlib
import itertools
import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import dask
from distributed import Client, Future, as_completed, span
from distributed.protocol.pickle import dumps
from distributed.scheduler import KilledWorker

from dumap.engine.sharing import ALONE, Sharing
from dumap.engine.worker import with_options
from dumap.errors import ClusterError
from dumap.store import known_options

ANSWER_SECONDS = 0.05
"""How often answers to questions are looked for."""


class Lost(Exception):
    """A task that the scheduler has lost, through no fault of its own."""


class Killed(Exception):
    """A task whose workers died; the argument is how many."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.workers = workers


def carrier() -> Callable[..., Any]:
    """Make a function that unpickles and runs a task; it is sent with its code, so that it names nothing of dumap.

    A worker without dumap that is sent a task which names it cannot read the message, and ends; this one fails.
    """

    def call(packed: bytes, *more: Any) -> Any:
        import pickle

        function, *arguments = pickle.loads(packed)
        return function(*arguments, *more)

    return call


def pickled_call(call: tuple) -> bytes:
    """Pack a function and its arguments, with the options of buckets that this process knows."""
    known = known_options()
    return bytes(dumps((with_options, known, *call) if known else call))


class Link:
    """A Dask client, and the tasks that one step of a run has on their way.

    Parameters
    ----------
    client : distributed.Client
    timeout : float
        Seconds within which a scheduler must answer.
    sharing : Sharing
        What goes with every task.
    """

    def __init__(self, client: Client, timeout: float, sharing: Sharing = ALONE) -> None:
        self.client, self.timeout, self.sharing = client, timeout, sharing
        self._told: dict[str, dict[str, Any]] = {}
        self._numbers, self._token = itertools.count(), uuid.uuid4().hex[:8]
        self._completed: as_completed | None = None
        self._spans: dict[str, Any] = {}
        self._topics: set[str] = set()

    @property
    def name(self) -> str:
        """Name the cluster."""
        return f"the cluster at {self.client.scheduler.address if self.client.scheduler else 'an unknown address'}"

    @property
    def closed(self) -> bool:
        """Return whether the client was closed, or gave its scheduler up."""
        return self.client.status == "closed"

    @property
    def running(self) -> bool:
        """Return whether the client is in touch with its scheduler."""
        return self.client.status == "running"

    def now(self) -> float:
        """Return the time, in seconds."""
        return time.monotonic()

    def threads(self) -> dict[str, int] | None:
        """Return the workers' threads by their addresses, None where the scheduler does not answer."""
        if not self.running:
            return None
        try:
            return self._admitted(dict(self.client.nthreads(callback_timeout=self.timeout)))
        except (OSError, ValueError):
            return None

    def _admitted(self, threads: dict[str, int]) -> dict[str, int]:
        """Return those of some workers that may be used; the scheduler is asked about each once."""
        if not self.sharing.chooses:
            return threads
        if threads.keys() - self._told.keys():
            assert self.client.scheduler is not None
            identity = self.client.sync(self.client.scheduler.identity, callback_timeout=self.timeout)
            self._told = {address: dict(told) for address, told in identity["workers"].items()}
        told = self._told
        return {one: n for one, n in threads.items() if one in told and self.sharing.admits(one, told[one])}

    # tasks -------------------------------------------------------------------------------------

    def _submit(
        self,
        stage: str,
        group: str,
        name: str,
        call: tuple,
        workers: Iterable[str] | None,
        resources: Mapping[str, float],
    ) -> Future:
        if stage not in self._spans:
            with span("dumap", stage):
                self._spans[stage] = dask.get_annotations()["span"]
        key = (f"dumap-{stage}-{group}", f"{name}-{next(self._numbers)}")
        among = None if workers is None else sorted(workers)
        try:
            with dask.annotate(span=self._spans[stage]):
                return self.client.submit(
                    carrier(),
                    pickled_call(call),
                    key=key,
                    pure=False,
                    workers=among,
                    allow_other_workers=False,
                    resources=dict(resources) or None,
                    priority=self.sharing.priority,
                )
        except Exception as error:
            if self.running:
                raise
            raise ClusterError(f"{self.name} is lost: the client is {self.client.status}") from error

    def begin(self) -> str:
        """Begin a step: return a name for its tasks. Tasks of earlier steps are no longer reported."""
        self._completed = as_completed(loop=self.client.loop)
        return f"{self._token}{next(self._numbers):x}"

    def send(self, stage: str, step: str, part: str, call: tuple, workers: Iterable[str] | None) -> Future:
        """Send a task to some workers, or to any, and return what stands for it until it is done."""
        future = self._submit(stage, step, part, call, workers, self.sharing.resources)
        assert self._completed is not None
        self._completed.add(future)
        return future

    def compute(self, tasks: Sequence[Any], workers: Iterable[str] | None) -> list[Future]:
        """Send delayed tasks with all that they depend on, as a step of their own."""
        self.begin()
        assert self._completed is not None
        among = None if workers is None else sorted(workers)
        with span("dumap", "spool"):
            futures: list[Future] = self.client.compute(
                tasks,
                workers=among,
                allow_other_workers=False,
                resources=dict(self.sharing.resources) or None,
                priority=self.sharing.priority,
            )
        self._completed.update(futures)
        return futures

    def done(self, seconds: float) -> list[Future]:
        """Return the tasks that are done since this was asked last; wait until there is one, but not for long."""
        completed = self._completed
        assert completed is not None
        with completed.thread_condition:
            if not completed.has_ready():
                completed.thread_condition.wait(seconds)
        return list(completed.next_batch(block=False))

    def outcome(self, future: Future) -> Exception | None:
        """Return the error of a finished task, None if it succeeded; and release it."""
        try:
            if future.status == "finished":
                return None
            if future.status != "error":
                return Lost()
            error = future.exception(timeout=self.timeout)
            if isinstance(error, KilledWorker):
                return Killed(int(error.allowed_failures) + 1)
            return error.with_traceback(future.traceback(timeout=self.timeout))
        finally:
            future.release()

    def cancel(self, futures: Sequence[Future]) -> None:
        """Take tasks back: a client that lost its scheduler has nothing left to cancel."""
        if futures and self.running:
            self.client.cancel(list(futures), force=True)
        for future in futures:
            future.release()

    # questions ---------------------------------------------------------------------------------

    def call(self, call: tuple, worker: str | None) -> Future:
        """Ask one worker, which is not to hold resources for it; or whichever comes first of those that may be used."""
        if worker is not None:
            return self._submit("ask", self._token, worker, call, [worker], {})
        return self._submit("ask", self._token, "any", call, self.sharing.allow_workers or None, self.sharing.resources)

    def answers(self, asked: Mapping[str, Future]) -> dict[str, Any]:
        """Return the answers that have come, each a value or an error; and release them."""
        found = {}
        for who, future in asked.items():
            if future.status == "finished":
                try:
                    found[who] = future.result(timeout=self.timeout)
                except Exception as error:  # it came, and was lost with its worker
                    found[who] = Lost(str(error))
            elif future.done():
                found[who] = self.outcome(future)
        return found

    def ask(self, call: tuple, workers: Iterable[str], seconds: float) -> dict[str, Any]:
        """Ask workers, and return the answers that come in time; who is lost meanwhile is left out."""
        asked = {worker: self.call(call, worker) for worker in workers}
        deadline, found = self.now() + seconds, dict[str, Any]()
        try:
            while len(found) < len(asked) and self.now() < deadline and self.running:
                found |= self.answers({who: future for who, future in asked.items() if who not in found})
                self.sleep()
        finally:
            self.cancel(list(asked.values()))
        return {who: said for who, said in found.items() if not isinstance(said, (Lost, Killed))}

    def sleep(self) -> None:
        """Wait a little for answers."""
        time.sleep(ANSWER_SECONDS)

    # events ------------------------------------------------------------------------------------

    def listen(self, topic: str, on_message: Callable[[dict], None]) -> None:
        """Have `on_message` called, on the client's thread, with each message that workers send on a topic."""
        if topic not in self._topics:
            self._topics.add(topic)
            self.client.subscribe_topic(
                topic, lambda event: on_message(event[1] if isinstance(event, tuple) else event)
            )

    def close(self) -> None:
        """Listen no more."""
        while self._topics:
            topic = self._topics.pop()
            if self.running:
                with contextlib.suppress(ValueError):  # nobody listens any more: as well
                    self.client.unsubscribe_topic(topic)
