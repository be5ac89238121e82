"""Drives a run on the cluster itself: the driver is a task, and the program that sent it may leave.

The task is published under a name that the run's output gives, so that any client finds it again. It tells how the run
goes on by events of a topic of its own, which the scheduler keeps; a cancellation is such an event too. Dask starts the
task again elsewhere where its worker is gone: what it drove goes on there, once the run's lock is free.
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

from dumap.engine.link import carrier, pickled_call
from dumap.engine.sharing import Sharing
from dumap.errors import CancelledError, ClusterError, DumapError, LockError
from dumap.store.lock import BEAT, LEASE
from dumap.version import __version__

KILLED = KilledWorker
"""What a driver fails of whose worker died too often."""
PRIORITY = 100
"""Drivers come before the tasks of runs: each only sends tasks, and waits."""
WATCHING_SECONDS = 0.5
"""How often a driver looks whether its worker is leaving."""
ANSWER_SECONDS = 1.0
"""How long the scheduler has to say that a task is done already."""


class DriverFunction(Protocol):
    """What a driver does, as a function that can be pickled."""

    def __call__(self, client: Client, tell: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Make a run with a client; tell how it goes on, and return its status."""


@dataclass(frozen=True)
class Submission:
    """A driver that was sent to a cluster, as it is published.

    Attributes
    ----------
    output : str
    settings : str
        A digest of all that was asked for.
    token : str
        Its own.
    future : distributed.Future
    """

    output: str
    settings: str
    token: str
    future: Future

    @property
    def topic(self) -> str:
        """What its events are of."""
        return f"{name_of(self.output)}-{self.token}"

    def published(self, client: Client) -> dict[str, Any]:
        """Return it as plain values, which need no dumap where they are kept.

        The future is another: in one process, whoever gets what is published takes that very object for its own client.
        """
        plain = {name: getattr(self, name) for name in ("output", "settings", "token")}
        return {**plain, "future": Future(self.future.key, client)}


def name_of(output: str) -> str:
    """Name what is published of a run."""
    return f"dumap-run-{hashlib.sha256(output.encode()).hexdigest()[:16]}"


# where it is sent from -----------------------------------------------------------------------------


def send(client: Client, function: DriverFunction, output: str, settings: str, sharing: Sharing) -> Submission:
    """Send a driver; Dask sees to it that it ends, whoever leaves."""
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
    """Publish a driver, in the place of an earlier one of the same run."""
    name = name_of(submission.output)
    await client.publish_dataset(submission.published(client), name=name, override=True)


async def find(client: Client, output: str) -> Submission | None:
    """Find the driver that was last sent for a run."""
    found = await client.get_dataset(name_of(output), default=None)
    if found is None:
        return None
    submission = Submission(**{**found, "future": Future(found["future"].key, client)})
    await client.get_dataset(name_of(output), default=None)  # tells the scheduler that this client waits for the future
    await settled(submission)
    return submission


async def settled(submission: Submission, seconds: float | None = ANSWER_SECONDS) -> None:
    """Wait for a driver to end, but not for long: the scheduler takes a moment to say that one has ended before."""

    async def ended() -> None:
        with contextlib.suppress(Exception):  # of the run's own: it is raised where the result is asked for
            await submission.future

    if submission.future.status == "pending":
        waiting = asyncio.ensure_future(ended())
        await asyncio.wait({waiting}, timeout=seconds)
        waiting.cancel()


def _same(there: Submission | None, settings: str) -> Submission | None:
    """Return a driver that is at work with the same settings.

    Raises
    ------
    LockError
        It has others.
    """
    if there is None or there.future.status != "pending":
        return None
    if there.settings != settings:
        raise LockError(
            f"{there.output} is driven on this cluster with other settings: wait until it is done, cancel it (dumap "
            f"cancel {there.output}), or name another output"
        )
    return there


async def send_once(client: Client, make: Callable[[], Submission], output: str, settings: str) -> Submission:
    """Send a driver and publish it; where one is at the same run with the same settings, return that.

    Raises
    ------
    LockError
        One is at it with other settings.
    """
    there = _same(await find(client, output), settings)
    if there is not None:
        return there
    submission = make()
    await publish(client, submission)
    return submission


async def keep_one(client: Client, submission: Submission) -> Submission:
    """Publish a driver that was sent, or take it back as `send_once` would not have sent it."""
    there = await find(client, submission.output)
    if there is not None and there.token != submission.token:
        try:
            same = _same(there, submission.settings)
        except LockError:
            await client.cancel([submission.future], force=True)
            raise
        if same is not None:
            await client.cancel([submission.future], force=True)
            return same
    await publish(client, submission)
    return submission


async def events_of(client: Client, submission: Submission, since: float = 0.0) -> list[tuple[float, dict[str, Any]]]:
    """Return what a driver has told after some time of the scheduler's, oldest first; the last thousand are kept."""
    events = await client.get_events(submission.topic) or ()
    return [(when, event) for when, event in events if when > since]


def cancel(client: Client, submission: Submission) -> Any:
    """Ask a driver to end, which it also hears when it starts later."""
    return client.log_event(submission.topic, {"event": "cancel"})


# where it runs -------------------------------------------------------------------------------------


class _Watch:
    """Closes a driver's client once the driver is to end, by which what it waits for ends.

    Attributes
    ----------
    earlier : list of dict
        What was told before.
    cancelled : bool
        It was asked to end.
    leaving : bool
        Its worker is on its way out.
    """

    def __init__(self, client: Client, worker: Worker, topic: str) -> None:
        self.earlier: list[dict[str, Any]] = []
        self.cancelled = self.leaving = False
        self._client, self._worker, self._topic = client, worker, topic
        self._asked, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch, name="dumap-driver", daemon=True)

    def __enter__(self) -> _Watch:
        self._client.subscribe_topic(self._topic, self._hear)
        self.earlier = [event for _, event in self._client.get_events(self._topic) or ()]
        for event in self.earlier:
            self._take(event)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._ended.set()
        self._thread.join()

    def _hear(self, event: Any) -> None:
        self._take(event[1] if isinstance(event, tuple) else event)

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
    """Drive a run from a task, which leaves its thread to others.

    Raises
    ------
    DumapError
        The run's own error; `CancelledError` where it was asked to end.
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
        if name_of(output) not in client.list_datasets():  # who sent it has left at once
            client.sync(publish, client, submission)
        return _drive(function, client, worker, submission.topic)


def _drive(function: DriverFunction, client: Client, worker: Worker, topic: str) -> dict[str, Any]:
    tell = partial(worker.log_event, topic)
    with _Watch(client, worker, topic) as watch:
        for event in watch.earlier:
            if event["event"] == "ended":  # what was returned is gone with a worker; the run is not touched again
                return dict(event["found"])
        began_before = any(event["event"] == "driver" for event in watch.earlier)
        until = time.monotonic() + (2 * LEASE if began_before else 0.0)
        tell({"event": "driver"})
        while True:
            try:
                found = function(client, tell)
                tell({"event": "ended", "found": found})
                return found
            except Exception as error:
                if watch.cancelled:
                    raise CancelledError(f"the run was cancelled; {_kept(error)}") from error
                if watch.leaving:
                    raise Reschedule() from error
                if not isinstance(error, LockError) or time.monotonic() > until:
                    raise
                time.sleep(BEAT)  # the driver before this one has not ended yet


def _kept(error: Exception) -> str:
    """Say what becomes of what is committed, as the run's own error does."""
    notes = getattr(error, "__notes__", []) if isinstance(error, DumapError) else []
    return notes[0] if notes else "what is committed is kept"
