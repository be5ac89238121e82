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
from dumap.engine.cluster_connection import pickled_call, task_unpickler
from dumap.engine.scheduling import SchedulingOptions
from dumap.errors import CancelledError, ClusterError, DumapError, LockError
from dumap.store.lock import HEARTBEAT_SECONDS, LEASE_SECONDS
from dumap.version import __version__

DRIVER_DIED_ERROR = KilledWorker
"""The error of a driver whose workers died too often."""
DRIVER_PRIORITY = 100
"""Added to the priority of drivers, so that they start before the tasks of runs."""
WATCH_SECONDS = 0.5
"""Seconds between a driver's looks at the state of its worker."""
END_REPORT_SECONDS = 1.0
"""Seconds to wait for the scheduler to report that a driver has ended before."""


class DriverFunction(Protocol):
    """A function that drives a run; it can be pickled."""

    def __call__(self, client: Client, send_event: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
        """Run all stages with a client, call `send_event` with events, and return the run's status."""


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
        return f"{dataset_name(self.output)}-{self.token}"

    def to_dataset(self, client: Client) -> dict[str, Any]:
        """Return the submission as plain values, so that the scheduler can keep it without dumap.

        The future is a new object: within one process, a client that gets a dataset binds the very object to itself.
        """
        fields = {name: getattr(self, name) for name in ("output", "settings", "token")}
        return {**fields, "future": Future(self.future.key, client)}


def dataset_name(output: str) -> str:
    """Return the name of the dataset that is published for a run."""
    return f"dumap-run-{hashlib.sha256(output.encode()).hexdigest()[:16]}"


# in the client -------------------------------------------------------------------------------------


def send_driver(
    client: Client, function: DriverFunction, output: str, settings: str, scheduling: SchedulingOptions
) -> Submission:
    """Send a driver, which Dask keeps running after the client has gone."""
    token = uuid.uuid4().hex[:12]
    call = pickled_call((run_driver, function, output, settings, token, __version__))
    future = client.submit(
        task_unpickler(),
        call,
        key=f"{dataset_name(output)}-{token}",
        pure=False,
        priority=scheduling.priority + DRIVER_PRIORITY,
        workers=list(scheduling.allow_workers) or None,
    )
    fire_and_forget(future)
    return Submission(output, settings, token, future)


async def publish_driver(client: Client, submission: Submission) -> None:
    """Publish a driver, replacing an earlier driver of the same run."""
    name = dataset_name(submission.output)
    await client.publish_dataset(submission.to_dataset(client), name=name, override=True)


async def find_driver(client: Client, output: str) -> Submission | None:
    """Find the driver that was last sent for a run."""
    fields = await client.get_dataset(dataset_name(output), default=None)
    if fields is None:
        return None
    submission = Submission(**{**fields, "future": Future(fields["future"].key, client)})
    await client.get_dataset(
        dataset_name(output), default=None
    )  # tells the scheduler that this client waits for the future
    await wait_for_end(submission)
    return submission


async def wait_for_end(submission: Submission, seconds: float | None = END_REPORT_SECONDS) -> None:
    """Wait at most `seconds` for a driver to end. The scheduler needs a moment to report that one has ended before."""

    async def await_future() -> None:
        with contextlib.suppress(Exception):  # the error of the run is raised when its result is asked for
            await submission.future

    if submission.future.status == "pending":
        waiter = asyncio.ensure_future(await_future())
        await asyncio.wait({waiter}, timeout=seconds)
        waiter.cancel()


def _running_driver(known: Submission | None, settings: str) -> Submission | None:
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


async def send_once(
    client: Client, send_submission: Callable[[], Submission], output: str, settings: str
) -> Submission:
    """Send and publish a driver; if a driver of the run with the same settings is running, return that one.

    Raises
    ------
    LockError
        A driver of the run with other settings is running.
    """
    running = _running_driver(await find_driver(client, output), settings)
    if running is not None:
        return running
    submission = send_submission()
    await publish_driver(client, submission)
    return submission


async def publish_or_cancel(client: Client, submission: Submission) -> Submission:
    """Publish a driver that was sent, or cancel it if another driver of the run is running.

    Raises
    ------
    LockError
        A driver of the run with other settings is running.
    """
    known = await find_driver(client, submission.output)
    if known is not None and known.token != submission.token:
        try:
            other = _running_driver(known, submission.settings)
        except LockError:
            await client.cancel([submission.future], force=True)
            raise
        if other is not None:
            await client.cancel([submission.future], force=True)
            return other
    await publish_driver(client, submission)
    return submission


async def read_events(client: Client, submission: Submission, since: float = 0.0) -> list[tuple[float, dict[str, Any]]]:
    """Return a driver's events after a time of the scheduler's clock, oldest first; the scheduler keeps a thousand."""
    events = await client.get_events(submission.topic) or ()
    return [(event_time, event) for event_time, event in events if event_time > since]


def cancel_driver(client: Client, submission: Submission) -> Any:
    """Ask a driver to end. A driver that starts later reads the event, too."""
    return client.log_event(submission.topic, {"event": "cancel"})


# on the worker -------------------------------------------------------------------------------------


class _DriverWatch:
    """A thread that closes a driver's client if the run is cancelled or the worker leaves, which ends the driver.

    Attributes
    ----------
    earlier_events : list of dict
        The events that were sent before this driver began.
    is_cancelled : bool
        Whether the run was cancelled.
    is_leaving : bool
        Whether the worker is leaving.
    """

    def __init__(self, client: Client, worker: Worker, topic: str) -> None:
        self.earlier_events: list[dict[str, Any]] = []
        self.is_cancelled = self.is_leaving = False
        self._client, self._worker, self._topic = client, worker, topic
        self._cancel_requested, self._ended = threading.Event(), threading.Event()
        self._thread = threading.Thread(target=self._watch_run, name="dumap-driver", daemon=True)

    def __enter__(self) -> _DriverWatch:
        topics.listen(self._client, self._topic, self._handle_event)
        self.earlier_events = [event for _, event in self._client.get_events(self._topic) or ()]
        for event in self.earlier_events:
            self._handle_event(event)
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        self._ended.set()
        self._thread.join()

    def _handle_event(self, event: dict[str, Any]) -> None:
        if event["event"] == "cancel":
            self.is_cancelled = True
            self._cancel_requested.set()

    def _watch_run(self) -> None:
        while not self._ended.wait(WATCH_SECONDS):
            self.is_leaving = self._worker.status not in (Status.running, Status.paused)
            if self.is_cancelled or self.is_leaving:
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
        submission = Submission(output, settings, token, Future(f"{dataset_name(output)}-{token}", client))
        if (
            dataset_name(output) not in client.list_datasets()
        ):  # the program that sent the driver ended before publishing it
            client.sync(publish_driver, client, submission)
        return _drive_until_unlocked(function, client, worker, submission.topic)


def _drive_until_unlocked(function: DriverFunction, client: Client, worker: Worker, topic: str) -> dict[str, Any]:
    """Call the function, again while the lock of a driver that died is held; return what it returns."""
    send_event = partial(worker.log_event, topic)
    with _DriverWatch(client, worker, topic) as watch:
        for event in watch.earlier_events:
            if event["event"] == "ended":  # only the task's result was lost, with its worker
                return dict(event["found"])
        has_earlier_driver = any(event["event"] == "driver" for event in watch.earlier_events)
        retry_deadline = time.monotonic() + (2 * LEASE_SECONDS if has_earlier_driver else 0.0)
        send_event({"event": "driver"})
        while True:
            try:
                status = function(client, send_event)
                send_event({"event": "ended", "found": status})
                return status
            except Exception as error:
                if watch.is_cancelled:
                    raise CancelledError(f"the run was cancelled; {_kept_parts_note(error)}") from error
                if watch.is_leaving:
                    raise Reschedule() from error
                if not isinstance(error, LockError) or time.monotonic() > retry_deadline:
                    raise
                time.sleep(HEARTBEAT_SECONDS)  # the lock of the driver before this one has not expired yet


def _kept_parts_note(error: Exception) -> str:
    """Return the run's own note about committed parts, or a general one."""
    notes = getattr(error, "__notes__", []) if isinstance(error, DumapError) else []
    return notes[0] if notes else "what is committed is kept"
