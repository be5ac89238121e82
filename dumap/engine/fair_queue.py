"""The order of the tasks of several runs on one cluster: start-time fair queueing.

Each task has a virtual start time, and the task with the earliest time runs first. The virtual time of a run increases
by the worker seconds of its tasks. So runs that all have waiting tasks get equal worker time, however long their tasks
are and however many of them wait. A run that is new, or that had no tasks for a while, continues at the virtual time of
the others. It does not run before all others, and does not wait for their earlier tasks. Dask's priority is the order,
so no thread is idle while any run has a waiting task.

The runs exchange their virtual times once a second through events of the scheduler. A run that dies is forgotten.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, Protocol

TOPIC = "dumap-runs"
"""The topic of the events by which runs exchange their virtual times."""
TOLD_SECONDS = 1.0
"""Seconds between two messages of a run."""
FORGOTTEN_SECONDS = 10.0
"""A run without a message for this many seconds does not count as active."""
PRIORITY_PER_SECOND = 1e-9
"""The decrease of Dask's priority per second of virtual time: even years of many threads stay below a decrease of 1."""
UNKNOWN_SECONDS = 1.0
"""The expected seconds of a task if no task of its kind has ended."""


class Events(Protocol):
    """The methods of `dumap.engine.cluster_connection.Link` that a queue uses."""

    def now(self) -> float:
        """Return the time of a monotonic clock, in seconds."""

    def tell(self, topic: str, message: dict[str, Any]) -> None:
        """Send a message on a topic without waiting for the scheduler."""

    def exchange(self, topic: str, message: dict[str, Any]) -> list[tuple[float, dict[str, Any]]]:
        """Send a message on a topic; return the topic's messages that the scheduler keeps, oldest first, with times."""

    def listen(self, topic: str, on_message: Callable[[dict[str, Any]], None]) -> None:
        """Call `on_message` with each later message on a topic."""


class FairQueue:
    """The virtual start times of the tasks of a run.

    Parameters
    ----------
    events : Events
    """

    def __init__(self, events: Events) -> None:
        self._events, self._run = events, uuid.uuid4().hex
        self._others: dict[str, tuple[float, float]] = {}
        self._reached = self._next = 0.0
        self._joined = self._busy = False
        self._sent = float("-inf")

    # other runs --------------------------------------------------------------------------------

    def announce(self) -> None:
        """Send this run's virtual time, and read those of other runs at first; called repeatedly during a step."""
        now = self._events.now()
        if self._joined and now - self._sent < TOLD_SECONDS:
            return
        self._sent, self._busy = now, True
        if self._joined:
            self._events.tell(TOPIC, self._message())
            return
        self._joined = True
        self._events.listen(TOPIC, self._hear)
        messages = self._events.exchange(TOPIC, self._message())
        latest = {message["run"]: message for when, message in messages if when > messages[-1][0] - FORGOTTEN_SECONDS}
        for message in latest.values():
            if message["busy"]:
                self._hear(message)

    def pause(self) -> None:
        """Send that this run has no step now, so that runs which begin do not count it as active."""
        if self._busy:
            self._busy, self._sent = False, float("-inf")  # so that the next step is announced at once
            self._events.tell(TOPIC, self._message())

    def _message(self) -> dict[str, Any]:
        """Return the message about this run."""
        return {"run": self._run, "reached": self._reached, "busy": self._busy}

    def _hear(self, message: dict[str, Any]) -> None:
        """Record the virtual time of another run, and when its message arrived."""
        if message["run"] != self._run:
            self._others[message["run"]] = (self._events.now(), message["reached"])

    def _heard(self) -> list[float]:
        """Return the virtual times of the other runs that sent a message within `FORGOTTEN_SECONDS`."""
        since = self._events.now() - FORGOTTEN_SECONDS
        return [reached for when, reached in list(self._others.values()) if when > since]

    @property
    def shared(self) -> bool:
        """Whether other runs are active on the cluster."""
        return bool(self._heard())

    # tasks of this run -------------------------------------------------------------------------

    def take(self, seconds: float) -> float:
        """Return the virtual start time of the next task, which is expected to take `seconds`."""
        due = max(self._next, self._reached, *self._heard())
        self._next = due + seconds
        return due

    def begun(self, due: float) -> None:
        """Record that a task has begun, by its virtual start time."""
        self._reached = max(self._reached, due)

    def correct(self, seconds: float) -> None:
        """Add the seconds that a task took beyond its expected seconds; they may be negative."""
        self._next += seconds
