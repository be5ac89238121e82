"""All that the engine does with a Dask client. Tests replace it by a simulated cluster."""

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

from dumap.engine.fair_queue import PRIORITY_PER_SECOND
from dumap.engine.scheduling import DEFAULT_SCHEDULING, SchedulingOptions
from dumap.engine.topics import listen, stop_listening
from dumap.engine.worker import with_options
from dumap.errors import ClusterError
from dumap.store import known_options

ANSWER_POLL_SECONDS = 0.05
"""Seconds between looks for answers to questions."""


class TaskLostError(Exception):
    """The scheduler has lost a task; the task is not to blame."""


class WorkersDiedError(Exception):
    """The workers of a task died; the argument is their number."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self.workers = workers


def task_unpickler() -> Callable[..., Any]:
    """Return a function that unpickles and runs a task. It is pickled by value, so that it does not refer to dumap.

    A worker without dumap cannot read a message that refers to dumap, and ends. With this function only the task fails.
    """

    def unpickle_and_call(pickled: bytes, *extra_arguments: Any) -> Any:
        import pickle

        function, *arguments = pickle.loads(pickled)
        return function(*arguments, *extra_arguments)

    return unpickle_and_call


def pickled_call(call: tuple) -> bytes:
    """Pickle a function and its arguments, with the options of buckets that this process knows."""
    options = known_options()
    return bytes(dumps((with_options, options, *call) if options else call))


class ClusterConnection:
    """A Dask client, and the tasks in flight of one step of a run.

    Parameters
    ----------
    client : distributed.Client
    timeout : float
        Seconds within which the scheduler must answer.
    scheduling : SchedulingOptions
        The workers that may be used, and what is sent with every task.
    """

    def __init__(self, client: Client, timeout: float, scheduling: SchedulingOptions = DEFAULT_SCHEDULING) -> None:
        self.client, self.timeout, self.scheduling = client, timeout, scheduling
        self._worker_identities: dict[str, dict[str, Any]] = {}
        self._counter, self._token = itertools.count(), uuid.uuid4().hex[:8]
        self._completion_queue: as_completed | None = None
        self._stage_spans: dict[str, Any] = {}
        self._subscriptions: dict[str, Callable[[dict[str, Any]], None]] = {}

    @property
    def name(self) -> str:
        """The cluster's name in messages."""
        return f"the cluster at {self.client.scheduler.address if self.client.scheduler else 'an unknown address'}"

    @property
    def is_closed(self) -> bool:
        """Whether the client was closed or has given up its scheduler."""
        return self.client.status == "closed"

    @property
    def is_running(self) -> bool:
        """Whether the client is connected to its scheduler."""
        return self.client.status == "running"

    def now(self) -> float:
        """Return the time of a monotonic clock, in seconds."""
        return time.monotonic()

    def threads_by_worker(self) -> dict[str, int] | None:
        """Return the number of threads of each worker by address; None if the scheduler does not answer."""
        if not self.is_running:
            return None
        try:
            return self._usable_workers(dict(self.client.nthreads(callback_timeout=self.timeout)))
        except (OSError, ValueError):
            return None

    def _usable_workers(self, threads: dict[str, int]) -> dict[str, int]:
        """Return the workers that may be used. The scheduler is asked again only if a worker is new."""
        if not self.scheduling.restricts_workers:
            return threads
        if threads.keys() - self._worker_identities.keys():
            assert self.client.scheduler is not None
            answer = self.client.sync(self.client.scheduler.identity, callback_timeout=self.timeout)
            self._worker_identities = {address: dict(identity) for address, identity in answer["workers"].items()}
        known = {address: self._worker_identities[address] for address in threads if address in self._worker_identities}
        return {
            address: threads[address] for address in known if self.scheduling.allows_worker(address, known[address])
        }

    # tasks -------------------------------------------------------------------------------------

    def _submit(
        self,
        stage: str,
        step: str,
        name: str,
        call: tuple,
        workers: Iterable[str] | None,
        resources: Mapping[str, float],
        virtual_start: float | None = None,
        is_preference: bool = False,
    ) -> Future:
        """Submit a call to some workers, or to any worker if `workers` is None.

        With `is_preference`, Dask gives it to other workers if these have left or have no thread for it soon.
        """
        if stage not in self._stage_spans:
            with span("dumap", stage):
                self._stage_spans[stage] = dask.get_annotations()["span"]
        key = (f"dumap-{stage}-{step}", f"{name}-{next(self._counter)}")
        addresses = None if workers is None else sorted(workers)
        try:
            with dask.annotate(span=self._stage_spans[stage]):
                return self.client.submit(
                    task_unpickler(),
                    pickled_call(call),
                    key=key,
                    pure=False,
                    workers=addresses,
                    allow_other_workers=is_preference,
                    resources=dict(resources) or None,
                    priority=self.scheduling.priority - (PRIORITY_PER_SECOND * virtual_start if virtual_start else 0),
                )
        except Exception as error:
            if self.is_running:
                raise
            raise ClusterError(f"{self.name} is lost: the client is {self.client.status}") from error

    def begin_step(self) -> str:
        """Begin a step, and return a name for its tasks. `wait_for_done` no longer returns tasks of earlier steps."""
        self._completion_queue = as_completed(loop=self.client.loop)
        return f"{self._token}{next(self._counter):x}"

    def send(
        self,
        stage: str,
        step: str,
        part: str,
        call: tuple,
        workers: Iterable[str] | None,
        virtual_start: float | None,
        preferred_worker: str | None = None,
    ) -> Future:
        """Send a task to some workers, or to any worker if `workers` is None.

        `virtual_start` is None if no other run is active on the cluster: see `dumap.engine.fair_queue`. A task that any
        worker may run goes to `preferred_worker` if that has a thread for it soon. Tasks that need resources have no
        preferred worker, since Dask would also prefer a worker to the resources.
        """
        resources = self.scheduling.resources
        is_preference = preferred_worker is not None and workers is None and not resources
        chosen = [preferred_worker] if is_preference and preferred_worker is not None else workers
        future = self._submit(stage, step, part, call, chosen, resources, virtual_start, is_preference)
        assert self._completion_queue is not None
        self._completion_queue.add(future)
        return future

    def send_delayed(self, tasks: Sequence[Any], workers: Iterable[str] | None) -> list[Future]:
        """Send delayed tasks with their dependencies, as a new step."""
        self.begin_step()
        assert self._completion_queue is not None
        addresses = None if workers is None else sorted(workers)
        with span("dumap", "spool"):
            futures: list[Future] = self.client.compute(
                tasks,
                workers=addresses,
                allow_other_workers=False,
                resources=dict(self.scheduling.resources) or None,
                priority=self.scheduling.priority,
            )
        self._completion_queue.update(futures)
        return futures

    def wait_for_done(self, seconds: float) -> list[Future]:
        """Return the tasks that are done since the last call; wait at most `seconds` for one."""
        completed = self._completion_queue
        assert completed is not None
        with completed.thread_condition:
            if not completed.has_ready():
                completed.thread_condition.wait(seconds)
        return list(completed.next_batch(block=False))

    def task_error(self, future: Future) -> Exception | None:
        """Return the error of a task that has ended, None if it succeeded, and release the task."""
        try:
            if future.status == "finished":
                return None
            if future.status != "error":
                return TaskLostError()
            error = future.exception(timeout=self.timeout)
            if isinstance(error, KilledWorker):
                return WorkersDiedError(int(error.allowed_failures) + 1)
            return error.with_traceback(future.traceback(timeout=self.timeout))
        finally:
            future.release()

    def cancel(self, futures: Sequence[Future]) -> None:
        """Cancel and release tasks. Without a scheduler they are only released."""
        if futures and self.is_running:
            self.client.cancel(list(futures), force=True)
        for future in futures:
            future.release()

    # questions ---------------------------------------------------------------------------------

    def send_question(self, call: tuple, worker: str | None) -> Future:
        """Send a question to one worker, which reserves no resources for it, or to any worker that may be used."""
        if worker is not None:
            return self._submit("ask", self._token, worker, call, [worker], {})
        return self._submit(
            "ask", self._token, "any", call, self.scheduling.allow_workers or None, self.scheduling.resources
        )

    def collect_answers(self, futures: Mapping[str, Future]) -> dict[str, Any]:
        """Return the answers that have come, each a value or an error, and release their tasks."""
        answers: dict[str, Any] = {}
        for address, future in futures.items():
            if future.status == "finished":
                try:
                    answers[address] = future.result(timeout=self.timeout)
                except Exception as error:  # the answer was lost with its worker
                    answers[address] = TaskLostError(str(error))
            elif future.done():
                answers[address] = self.task_error(future)
        return answers

    def ask_workers(self, call: tuple, workers: Iterable[str], seconds: float) -> dict[str, Any]:
        """Ask workers, and return the answers that come in time by address. Workers that are lost are left out."""
        futures = {worker: self.send_question(call, worker) for worker in workers}
        deadline, answers = self.now() + seconds, dict[str, Any]()
        try:
            while len(answers) < len(futures) and self.now() < deadline and self.is_running:
                answers |= self.collect_answers(
                    {address: futures[address] for address in futures.keys() - answers.keys()}
                )
                self.sleep()
        finally:
            self.cancel(list(futures.values()))
        return {
            address: answer
            for address, answer in answers.items()
            if not isinstance(answer, (TaskLostError, WorkersDiedError))
        }

    def sleep(self) -> None:
        """Wait until the next look for answers."""
        time.sleep(ANSWER_POLL_SECONDS)

    # events ------------------------------------------------------------------------------------

    def listen(self, topic: str, on_message: Callable[[dict[str, Any]], None]) -> None:
        """Call `on_message`, on the client's thread, with each message on a topic."""
        if topic not in self._subscriptions:
            self._subscriptions[topic] = on_message
            listen(self.client, topic, on_message)

    def send_message(self, topic: str, message: dict[str, Any]) -> None:
        """Send a message on a topic without waiting for the scheduler."""
        loop: Any = self.client.loop
        if self.is_running:
            loop.add_callback(self._send_event, topic, message)

    async def _send_event(self, topic: str, message: dict[str, Any]) -> None:
        """Send a message on a topic, if the client has a scheduler."""
        scheduler: Any = self.client.scheduler
        if scheduler is not None:
            with contextlib.suppress(OSError):  # `threads_by_worker` notices that the scheduler is lost
                await scheduler.log_event(topic=topic, msg=message)

    def exchange_messages(self, topic: str, message: dict[str, Any]) -> list[tuple[float, dict[str, Any]]]:
        """Send a message on a topic; return the topic's messages that the scheduler keeps, oldest first, with times."""
        scheduler: Any = self.client.scheduler

        async def send_and_read() -> list[tuple[float, dict[str, Any]]]:
            await scheduler.log_event(topic=topic, msg=message)
            return list(await scheduler.events(topic=topic))

        messages: list[tuple[float, dict[str, Any]]] = []
        if self.is_running:
            with contextlib.suppress(OSError):
                messages = self.client.sync(send_and_read, callback_timeout=self.timeout)
        return messages

    def close(self) -> None:
        """Stop listening to all topics."""
        while self._subscriptions:
            stop_listening(self.client, *self._subscriptions.popitem())
