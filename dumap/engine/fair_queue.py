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
MESSAGE_SECONDS = 1.0
"""Seconds between two messages of a run."""
INACTIVE_SECONDS = 10.0
"""A run without a message for this many seconds does not count as active."""
PRIORITY_PER_SECOND = 1e-9
"""The decrease of Dask's priority per second of virtual time: even years of many threads stay below a decrease of 1."""
DEFAULT_TASK_SECONDS = 1.0
"""The expected seconds of a task if no task of its kind has ended."""


class MessageBus(Protocol):
    """The methods of `dumap.engine.cluster_connection.ClusterConnection` that a queue uses."""

    def now(self) -> float:
        """Return the time of a monotonic clock, in seconds."""

    def send_message(self, topic: str, message: dict[str, Any]) -> None:
        """Send a message on a topic without waiting for the scheduler."""

    def exchange_messages(self, topic: str, message: dict[str, Any]) -> list[tuple[float, dict[str, Any]]]:
        """Send a message on a topic; return the topic's messages that the scheduler keeps, oldest first, with times."""

    def listen(self, topic: str, on_message: Callable[[dict[str, Any]], None]) -> None:
        """Call `on_message` with each later message on a topic."""


class FairQueue:
    """The virtual start times of the tasks of a run.

    Parameters
    ----------
    bus : MessageBus
    """

    def __init__(self, bus: MessageBus) -> None:
        self._bus, self._run_id = bus, uuid.uuid4().hex
        self._other_runs: dict[str, tuple[float, float]] = {}
        self._virtual_time = self._next_start = 0.0
        self._has_joined = self._is_busy = False
        self._last_sent = float("-inf")

    # other runs --------------------------------------------------------------------------------

    def announce(self) -> None:
        """Send this run's virtual time, and read those of other runs at first; called repeatedly during a step."""
        now = self._bus.now()
        if self._has_joined and now - self._last_sent < MESSAGE_SECONDS:
            return
        self._last_sent, self._is_busy = now, True
        if self._has_joined:
            self._bus.send_message(TOPIC, self._run_message())
            return
        self._has_joined = True
        self._bus.listen(TOPIC, self._receive_message)
        messages = self._bus.exchange_messages(TOPIC, self._run_message())
        latest_messages = {
            message["run"]: message for sent_at, message in messages if sent_at > messages[-1][0] - INACTIVE_SECONDS
        }
        for message in latest_messages.values():
            if message["busy"]:
                self._receive_message(message)

    def pause(self) -> None:
        """Send that this run has no step now, so that runs which begin do not count it as active."""
        if self._is_busy:
            self._is_busy, self._last_sent = False, float("-inf")  # so that the next step is announced at once
            self._bus.send_message(TOPIC, self._run_message())

    def _run_message(self) -> dict[str, Any]:
        """Return the message about this run."""
        return {"run": self._run_id, "reached": self._virtual_time, "busy": self._is_busy}

    def _receive_message(self, message: dict[str, Any]) -> None:
        """Record the virtual time of another run, and when its message arrived."""
        if message["run"] != self._run_id:
            self._other_runs[message["run"]] = (self._bus.now(), message["reached"])

    def _active_virtual_times(self) -> list[float]:
        """Return the virtual times of the other runs that sent a message within `INACTIVE_SECONDS`."""
        oldest = self._bus.now() - INACTIVE_SECONDS
        return [virtual_time for sent_at, virtual_time in list(self._other_runs.values()) if sent_at > oldest]

    @property
    def has_other_runs(self) -> bool:
        """Whether other runs are active on the cluster."""
        return bool(self._active_virtual_times())

    # tasks of this run -------------------------------------------------------------------------

    def next_start(self, seconds: float) -> float:
        """Return the virtual start time of the next task, which is expected to take `seconds`."""
        virtual_start = max(self._next_start, self._virtual_time, *self._active_virtual_times())
        self._next_start = virtual_start + seconds
        return virtual_start

    def record_start(self, virtual_start: float) -> None:
        """Record that a task has begun, by its virtual start time."""
        self._virtual_time = max(self._virtual_time, virtual_start)

    def correct_duration(self, seconds: float) -> None:
        """Add the seconds that a task took beyond its expected seconds; they may be negative."""
        self._next_start += seconds
