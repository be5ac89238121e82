"""Whose turn it is, where several runs share a cluster.

Start-time fair queueing: each task bears the virtual time at which it is due, and the one that is due first goes first.
A run's virtual time goes on by the seconds of worker time that its tasks take, so runs that all have tasks to do get
equal shares of the threads, however long the tasks of each are, and however many of them wait. A run with nothing to do
for a while, and one that is new, goes on at the virtual time of the others: nobody saves up turns, or has to wait for
what others have been through. The order is Dask's priority; so no thread stays idle while any run has a task for it.

Runs tell one another their virtual times by events, a second apart; one that dies is forgotten.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable
from typing import Any, Protocol

TOPIC = "dumap-turns"
"""What the events are of."""
TOLD_SECONDS = 1.0
"""How often a run tells of itself."""
FORGOTTEN_SECONDS = 10.0
"""A run that told nothing for so long is at work no more."""
A_SECOND = 1e-9
"""How much a second of virtual time lowers a priority: years of many threads stay within one step of `priority`."""
UNKNOWN_SECONDS = 1.0
"""What a task is taken to last before any of its kind has ended."""


class Events(Protocol):
    """By what runs hear of one another."""

    def now(self) -> float:
        """Return the time."""

    def tell(self, topic: str, message: dict[str, Any]) -> None:
        """Tell all who listen to a topic, and do not wait."""

    def exchange(self, topic: str, message: dict[str, Any]) -> list[tuple[float, dict[str, Any]]]:
        """Tell all who listen, and return what was told of late, oldest first, each with the scheduler's time."""

    def listen(self, topic: str, on_message: Callable[[dict[str, Any]], None]) -> None:
        """Have each message that is told from now on handed to a function."""


class Turns:
    """When the tasks of a run are due.

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

    def attend(self) -> None:
        """Hear which other runs are at work, and tell them of this one; to be called again and again in a step."""
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
        """Tell who comes next that this run is in no step; those that know it expect it back for a while."""
        if self._busy:
            self._busy = False
            self._events.tell(TOPIC, self._message())

    def _message(self) -> dict[str, Any]:
        return {"run": self._run, "reached": self._reached, "busy": self._busy}

    def _hear(self, message: dict[str, Any]) -> None:
        if message["run"] != self._run:
            self._others[message["run"]] = (self._events.now(), message["reached"])

    def _heard(self) -> list[float]:
        """Return the virtual times of other runs that are at work, or were a moment ago."""
        since = self._events.now() - FORGOTTEN_SECONDS
        return [reached for when, reached in list(self._others.values()) if when > since]

    @property
    def shared(self) -> bool:
        """Whether other runs are at work on the cluster."""
        return bool(self._heard())

    # its own tasks -----------------------------------------------------------------------------

    def take(self, seconds: float) -> float:
        """Return the virtual time at which the next task is due, which is thought to last some seconds."""
        due = max(self._next, self._reached, *self._heard(), 0.0)
        self._next = due + seconds
        return due

    def begun(self, due: float) -> None:
        """Take down that a task has begun."""
        self._reached = max(self._reached, due)

    def correct(self, seconds: float) -> None:
        """Put right by how much longer a task took than was thought."""
        self._next += seconds
