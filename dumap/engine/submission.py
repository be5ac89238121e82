"""Drives a run on the cluster itself: the driver is a task, and the program that sent it may end.

The task is published as a dataset whose name is a hash of the run's output, so that any client can find it. The driver
reports progress as events of a topic, which the scheduler keeps. A cancellation is an event of the same topic. If the
driver's worker dies, Dask starts the task again on another worker. The run continues there once its lock is free.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from distributed import Client, Future, Reschedule, Status, Worker, fire_and_forget, get_worker, secede
from distributed.scheduler import KilledWorker

from dumap.engine import topics
from dumap.engine.cluster_connection import carrier, pickled_call
from dumap.engine.scheduling import Sharing
from dumap.errors import CancelledError, ClusterError, DumapError, LockError
from dumap.store.lock import BEAT, LEASE
from dumap.version import __version__

KILLED = KilledWorker
"""The error of a driver whose workers died too often."""
PRIORITY = 100
"""Added to the priority of drivers, so that they start before the tasks of runs."""
WATCHING_SECONDS = 0.5
"""Seconds between a driver's looks at the state of its worker."""
ANSWER_SECONDS = 1.0
"""Seconds to wait for the scheduler to report that a driver has ended before."""


class DriverFunction(Protocol):
    """A function that drives a run; it can be pickled."""

    def __call__(self, client: Client, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Run all stages with a client, call `tell` with events, and return the run's status."""


@dataclass(frozen=True)
class Submission:
    """A driver that was sent to a cluster.

    Attributes
    ----------
    output : str
    settings : str
        The digest of the configuration and the arguments of the run.
    token : str
        Random, different for each submission.
    future : distributed.Future
    """

    output: str
    settings: str
    token: str
    future: Future

    @property
    def topic(self) -> str:
        """The topic of the driver's events."""
        return f"{name_of(self.output)}-{self.token}"

    def published(self, client: Client) -> dict[str, Any]:
        """Return the submission as plain values, so that the scheduler can keep it without dumap.

        The future is a new object: within one process, a client that gets a dataset binds the very object to itself.
        """
        plain = {name: getattr(self, name) for name in ("output", "settings", "token")}
        return {**plain, "future": Future(self.future.key, client)}


def name_of(output: str) -> str:
    """Return the name of the dataset that is published for a run."""
    return f"dumap-run-{hashlib.sha256(output.encode()).hexdigest()[:16]}"


# in the client -------------------------------------------------------------------------------------


def send(client: Client, function: DriverFunction, output: str, settings: str, sharing: Sharing) -> Submission:
    """Send a driver, which Dask keeps running after the client has gone."""
    token = uuid.uuid4().hex[:12]
    call = pickled_call((run_driver, function, output, settings, token, __version__))
    future = client.submit(
        carrier(),
        call,
        key=f"{name_of(output)}-{token}",
        pure=False,
        priority=sharing.priority + PRIORITY,
        workers=list(sharing.allow_workers) or None,
    )
    fire_and_forget(future)
    return Submission(output, settings, token, future)


async def publish(client: Client, submission: Submission) -> None:
    """Publish a driver, replacing an earlier driver of the same run."""
    name = name_of(submission.output)
    await client.publish_dataset(submission.published(client), name=name, override=True)


async def find(client: Client, output: str) -> Submission | None:
    """Find the driver that was last sent for a run."""
    fields = await client.get_dataset(name_of(output), default=None)
    if fields is None:
        return None
    submission = Submission(**{**fields, "future": Future(fields["future"].key, client)})
    await client.get_dataset(name_of(output), default=None)  # tells the scheduler that this client waits for the future
    await settled(submission)
    return submission


async def settled(submission: Submission, seconds: float | None = ANSWER_SECONDS) -> None:
    """Wait at most `seconds` for a driver to end. The scheduler needs a moment to report that one has ended before."""

    async def ended() -> None:
        with contextlib.suppress(Exception):  # the error of the run is raised when its result is asked for
            await submission.future

    if submission.future.status == "pending":
        waiting = asyncio.ensure_future(ended())
        await asyncio.wait({waiting}, timeout=seconds)
        waiting.cancel()


def _same(known: Submission | None, settings: str) -> Submission | None:
    """Return a known driver if it has the same settings and has not ended, else None.

    Raises
    ------
    LockError
        It has other settings and has not ended.
    """
    if known is None or known.future.status != "pending":
        return None
    if known.settings != settings:
        raise LockError(
            f"{known.output} is driven on this cluster with other settings: wait until it is done, cancel it (dumap "
            f"cancel {known.output}), or name another output"
        )
    return known


async def send_once(client: Client, make: Callable[[], Submission], output: str, settings: str) -> Submission:
    """Send and publish a driver; if a driver of the run with the same settings is running, return that one.

    Raises
    ------
    LockError
        A driver of the run with other settings is running.
    """
    running = _same(await find(client, output), settings)
    if running is not None:
        return running
    submission = make()
    await publish(client, submission)
    return submission


async def keep_one(client: Client, submission: Submission) -> Submission:
    """Publish a driver that was sent, or cancel it if another driver of the run is running.

    Raises
    ------
    LockError
        A driver of the run with other settings is running.
    """
    known = await find(client, submission.output)
    if known is not None and known.token != submission.token:
        try:
            same = _same(known, submission.settings)
        except LockError:
            await client.cancel([submission.future], force=True)
            raise
        if same is not None:
            await client.cancel([submission.future], force=True)
            return same
    await publish(client, submission)
    return submission


async def events_of(client: Client, submission: Submission, since: float = 0.0) -> list[tuple[float, dict[str, Any]]]:
    """Return a driver's events after a time of the scheduler's clock, oldest first; the scheduler keeps a thousand."""
    events = await client.get_events(submission.topic) or ()
    return [(when, event) for when, event in events if when > since]


def cancel(client: Client, submission: Submission) -> Any:
    """Ask a driver to end. A driver that starts later reads the event, too."""
    return client.log_event(submission.topic, {"event": "cancel"})


# on the worker -------------------------------------------------------------------------------------


class _Watch:
    """A thread that closes a driver's client if the run is cancelled or the worker leaves, which ends the driver.

    Attributes
    ----------
    earlier : list of dict
        The events that were sent before this driver began.
    cancelled : bool
        Whether the run was cancelled.
    leaving : bool
        Whether the worker is leaving.
    """

    def __init__(self, client: Client, worker: Worker, topic: str) -> None:
        self.earlier: list[dict[str, Any]] = []
        self.cancelled = self.leaving = False
        self._client, self._worker, self._topic = client, worker, topic
        self._asked, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="dumap-driver", daemon=True)

    def __enter__(self) -> _Watch:
        topics.listen(self._client, self._topic, self._take)
        self.earlier = [event for _, event in self._client.get_events(self._topic) or ()]
        for event in self.earlier:
            self._take(event)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._ended.set()
        self._thread.join()

    def _take(self, event: dict[str, Any]) -> None:
        if event["event"] == "cancel":
            self.cancelled = True
            self._asked.set()

    def _watch(self) -> None:
        while not self._ended.wait(WATCHING_SECONDS):
            self.leaving = self._worker.status not in (Status.running, Status.paused)
            if self.cancelled or self.leaving:
                self._client.close()
                return


def run_driver(function: DriverFunction, output: str, settings: str, token: str, version: str) -> dict[str, Any]:
    """Drive a run from a task, whose thread the worker uses for other tasks.

    Raises
    ------
    DumapError
        The error of the run; `CancelledError` if it was cancelled.
    Reschedule
        The worker is leaving.
    """
    worker = get_worker()
    secede()
    if version != __version__:
        raise ClusterError(f"worker {worker.address} has dumap {__version__}, the client {version}: install the same")
    assert worker.scheduler is not None
    with Client(worker.scheduler.address, security=worker.security, set_as_default=False) as client:
        submission = Submission(output, settings, token, Future(f"{name_of(output)}-{token}", client))
        if name_of(output) not in client.list_datasets():  # the program that sent the driver ended before publishing it
            client.sync(publish, client, submission)
        return _drive(function, client, worker, submission.topic)


def _drive(function: DriverFunction, client: Client, worker: Worker, topic: str) -> dict[str, Any]:
    """Call the function, again while the lock of a driver that died is held; return what it returns."""
    tell = partial(worker.log_event, topic)
    with _Watch(client, worker, topic) as watch:
        for event in watch.earlier:
            if event["event"] == "ended":  # only the task's result was lost, with its worker
                return dict(event["found"])
        began_before = any(event["event"] == "driver" for event in watch.earlier)
        until = time.monotonic() + (2 * LEASE if began_before else 0.0)
        tell({"event": "driver"})
        while True:
            try:
                status = function(client, tell)
                tell({"event": "ended", "found": status})
                return status
            except Exception as error:
                if watch.cancelled:
                    raise CancelledError(f"the run was cancelled; {_kept(error)}") from error
                if watch.leaving:
                    raise Reschedule() from error
                if not isinstance(error, LockError) or time.monotonic() > until:
                    raise
                time.sleep(BEAT)  # the lock of the driver before this one has not expired yet


def _kept(error: Exception) -> str:
    """Return the run's own note about committed parts, or a general one."""
    notes = getattr(error, "__notes__", []) if isinstance(error, DumapError) else []
    return notes[0] if notes else "what is committed is kept"
