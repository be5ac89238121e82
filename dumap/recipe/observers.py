"""Observers of a run: some say nothing, log, or call a program back; one has the lock say what its driver is at."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from queue import Empty, SimpleQueue
from typing import Any

from dumap.config import format_bytes
from dumap.engine import Observer
from dumap.json_values import format_fact
from dumap.store import Lock

LOGGER = logging.getLogger("dumap")
LOG_SECONDS = 10.0
"""The log gets a line of progress at most this often."""


def closing(stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> str:
    """Write the line about a finished stage: time, memory, facts."""
    figures = ", ".join(f"{k} {format_fact(v, '.4g')}" for k, v in facts.items())
    peak = f"peak {format_bytes(peak_bytes)} of {format_bytes(projected_bytes)} projected"
    return f"{stage}: done in {seconds:.1f} s, {peak}; {figures}"


class Logged:
    """An observer that tells the logger `dumap`, at the level INFO.

    A record has the attribute `dumap`, a dict: 'event' is 'note', or 'started' with 'stage' and 'projected_bytes',
    'advanced' with 'stage', 'done', 'total' and 'seconds_left', or 'finished' with 'stage', 'seconds',
    'projected_bytes', 'peak_bytes' and 'facts'.
    """

    def __init__(self) -> None:
        self._since, self._last = time.monotonic(), time.monotonic()

    def _log(self, event: str, message: str, **fields: Any) -> None:
        LOGGER.info("%s", message, extra={"dumap": {"event": event, **fields}})

    def note(self, message: str) -> None:
        """Log a line."""
        self._log("note", message)

    def started(self, stage: str, projected_bytes: int) -> None:
        """Log that a stage begins."""
        self._since = self._last = time.monotonic()
        message = f"{stage}: begins, {format_bytes(projected_bytes)} a worker projected"
        self._log("started", message, stage=stage, projected_bytes=projected_bytes)

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Log how far the stage is, now and then."""
        now = time.monotonic()
        if now - self._last >= LOG_SECONDS and done > 0:
            self._last = now
            rate = done / (now - self._since)
            left = max(0.0, total - done) / rate
            message = f"{stage}: {done:.0f} of {total:.0f}, {rate:.2f}/s, {left:.0f} s left"
            self._log("advanced", message, stage=stage, done=done, total=total, seconds_left=round(left, 1))

    def finished(self, stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> None:
        """Log what the stage took and found."""
        message = closing(stage, seconds, projected_bytes, peak_bytes, facts)
        fields = {"seconds": round(seconds, 3), "projected_bytes": projected_bytes, "peak_bytes": peak_bytes}
        self._log("finished", message, stage=stage, **fields, facts=facts)


class Silent:
    """An observer that says nothing."""

    def started(self, stage: str, projected_bytes: int) -> None:
        """Say nothing."""

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Say nothing."""

    def finished(self, stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> None:
        """Say nothing."""

    def note(self, message: str) -> None:
        """Say nothing."""


class Watched:
    """An observer that also writes progress into the run's lock, for `dumap status`."""

    def __init__(self, observer: Observer, lock: Lock) -> None:
        self.observer, self.lock = observer, lock
        self.started, self.finished, self.note = observer.started, observer.finished, observer.note

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Tell both."""
        self.lock.at(stage, done, total)
        self.observer.advanced(stage, done, total)


class _Failed(BaseException):
    """What a callback raised, on its way past all that handles a run's own errors."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class Callbacks:
    """A program's own observer, or function, called from one thread alone; what it raises ends the run.

    A context, which raises that as it was.

    Parameters
    ----------
    told : Observer or callable
        A function is called with stage, done and total as a stage goes on, and with nothing else.
    """

    def __init__(self, told: Observer | Callable[[str, float, float], object]) -> None:
        if callable(told) and not hasattr(told, "advanced"):
            observer: Any = Silent()
            observer.advanced = told
        else:
            observer = told
        self._observer, self._thread = observer, threading.get_ident()
        self._notes: SimpleQueue[str] = SimpleQueue()

    def __enter__(self) -> Callbacks:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None:
            try:
                self._deliver()
            except _Failed as failed:
                error = failed
        if isinstance(error, _Failed):
            raise error.error from None

    def _call(self, name: str, *said: Any) -> None:
        try:
            getattr(self._observer, name)(*said)
        except Exception as error:
            raise _Failed(error) from error

    def _deliver(self) -> None:
        """Tell what other threads had to say."""
        while True:
            try:
                message = self._notes.get_nowait()
            except Empty:
                return
            self._call("note", message)

    def note(self, message: str) -> None:
        """Tell at once, or once the run's own thread has something to tell."""
        self._notes.put(message)
        if threading.get_ident() == self._thread:
            self._deliver()

    def started(self, stage: str, projected_bytes: int) -> None:
        """Tell that a stage begins."""
        self._deliver()
        self._call("started", stage, projected_bytes)

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Tell how far a stage is."""
        self._deliver()
        self._call("advanced", stage, done, total)

    def finished(self, stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> None:
        """Tell what a stage took and found."""
        self._deliver()
        self._call("finished", stage, seconds, projected_bytes, peak_bytes, facts)
