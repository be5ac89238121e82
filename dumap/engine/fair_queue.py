"""The order of the tasks of several runs on one cluster: start-time fair queueing.

Each task has a virtual start time, and the task with the earliest goes first. The virtual time of a run advances by the
seconds of worker time that its tasks take. So runs that all have waiting tasks get equal worker time, however long the
tasks of each are and however many of them wait. A run that is new, or had nothing to do for a while, continues at the
virtual time of the others: it neither goes before all others nor has to wait for what they did before. Dask's priority
sets the order, so no thread is idle while any run has a waiting task.

Runs tell one another their virtual times once a second by events of the scheduler. A run that dies is forgotten.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, Protocol

TOPIC = "dumap-runs"
"""The topic of the events by which runs hear of one another."""
TOLD_SECONDS = 1.0
"""Seconds between two messages of a run."""
FORGOTTEN_SECONDS = 10.0
"""A run that has told nothing for so long is no longer at work."""
A_SECOND = 1e-9
"""A second of virtual time lowers Dask's priority by this much: years of many threads stay within one step of it."""
UNKNOWN_SECONDS = 1.0
"""The expected seconds of a task of which no other of its kind has ended."""


class Events(Protocol):
    """The methods of `dumap.engine.link.Link` that a queue uses."""

    def now(self) -> float:
        """Return the time of a monotonic clock, in seconds."""

    def tell(self, topic: str, message: dict[str, Any]) -> None:
        """Send a message on a topic, and do not wait."""

    def exchange(self, topic: str, message: dict[str, Any]) -> list[tuple[float, dict[str, Any]]]:
        """Send a message on a topic; return those that the scheduler keeps, oldest first, each with its time."""

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
        self._said = float("-inf")

    # other runs --------------------------------------------------------------------------------

    def announce(self) -> None:
        """Find out which other runs are at work, and tell them of this one; call it again and again during a step."""
        now = self._events.now()
        if self._joined and now - self._said < TOLD_SECONDS:
            return
        self._said, self._busy = now, True
        if self._joined:
            self._events.tell(TOPIC, self._message())
            return
        self._joined = True
        self._events.listen(TOPIC, self._hear)
        told = self._events.exchange(TOPIC, self._message())
        late = {message["run"]: message for when, message in told if when > told[-1][0] - FORGOTTEN_SECONDS}
        for message in late.values():
            if message["busy"]:
                self._hear(message)

    def pause(self) -> None:
        """Tell runs that come next that no step is under way; those that know this run wait for it a while."""
        if self._busy:
            self._busy = False
            self._events.tell(TOPIC, self._message())

    def _message(self) -> dict[str, Any]:
        return {"run": self._run, "reached": self._reached, "busy": self._busy}

    def _hear(self, message: dict[str, Any]) -> None:
        if message["run"] != self._run:
            self._others[message["run"]] = (self._events.now(), message["reached"])

    def _heard(self) -> list[float]:
        """Return the virtual times of the other runs that are at work, or were a moment ago."""
        since = self._events.now() - FORGOTTEN_SECONDS
        return [reached for when, reached in list(self._others.values()) if when > since]

    @property
    def shared(self) -> bool:
        """Whether other runs are at work on the cluster."""
        return bool(self._heard())

    # its own tasks -----------------------------------------------------------------------------

    def take(self, seconds: float) -> float:
        """Return the virtual start time of the next task, which is expected to take `seconds`."""
        due = max(self._next, self._reached, *self._heard(), 0.0)
        self._next = due + seconds
        return due

    def begun(self, due: float) -> None:
        """Record that a task has begun, by its virtual start time."""
        self._reached = max(self._reached, due)

    def correct(self, seconds: float) -> None:
        """Advance by the seconds that a task took beyond those expected, which may be negative."""
        self._next += seconds
