"""Observers of a run: they log, do nothing, call a program's function, or write progress into the run's lock."""

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
"""Seconds between two log lines about a stage's progress, at least."""


def format_finished(stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> str:
    """Return the log line about a finished stage: its time, memory and facts."""
    fact_texts = ", ".join(f"{name} {format_fact(value, '.4g')}" for name, value in facts.items())
    peak = f"peak {format_bytes(peak_bytes)} of {format_bytes(projected_bytes)} projected"
    return f"{stage}: done in {seconds:.1f} s, {peak}; {fact_texts}"


class LogObserver:
    """An observer that writes to the logger `dumap` at the level INFO.

    A record has the attribute `dumap`, a dict: 'event' is 'note', or 'started' with 'stage' and 'projected_bytes',
    'advanced' with 'stage', 'done', 'total' and 'seconds_left', or 'finished' with 'stage', 'seconds',
    'projected_bytes', 'peak_bytes' and 'facts'.
    """

    def __init__(self) -> None:
        self._stage_began, self._last_logged = time.monotonic(), time.monotonic()

    def _log(self, event: str, message: str, **fields: Any) -> None:
        """Log a message, with an event and its fields as the attribute `dumap` of the record."""
        LOGGER.info("%s", message, extra={"dumap": {"event": event, **fields}})

    def note(self, message: str) -> None:
        """Log a message."""
        self._log("note", message)

    def started(self, stage: str, projected_bytes: int) -> None:
        """Log that a stage begins."""
        self._stage_began = self._last_logged = time.monotonic()
        message = f"{stage}: begins, {format_bytes(projected_bytes)} a worker projected"
        self._log("started", message, stage=stage, projected_bytes=projected_bytes)

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Log the stage's progress, at most every `LOG_SECONDS`."""
        now = time.monotonic()
        if now - self._last_logged >= LOG_SECONDS and done > 0:
            self._last_logged = now
            rate = done / (now - self._stage_began)
            seconds_left = max(0.0, total - done) / rate
            message = f"{stage}: {done:.0f} of {total:.0f}, {rate:.2f}/s, {seconds_left:.0f} s left"
            self._log("advanced", message, stage=stage, done=done, total=total, seconds_left=round(seconds_left, 1))

    def finished(self, stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> None:
        """Log the stage's time, memory and facts."""
        message = format_finished(stage, seconds, projected_bytes, peak_bytes, facts)
        fields = {"seconds": round(seconds, 3), "projected_bytes": projected_bytes, "peak_bytes": peak_bytes}
        self._log("finished", message, stage=stage, **fields, facts=facts)


class SilentObserver:
    """An observer that does nothing."""

    def started(self, stage: str, projected_bytes: int) -> None:
        """Do nothing."""

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Do nothing."""

    def finished(self, stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> None:
        """Do nothing."""

    def note(self, message: str) -> None:
        """Do nothing."""


class LockObserver:
    """An observer that calls another one, and writes progress into the run's lock for `dumap status`."""

    def __init__(self, observer: Observer, lock: Lock) -> None:
        self.observer, self.lock = observer, lock
        self.started, self.finished, self.note = observer.started, observer.finished, observer.note

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Pass the progress to the lock and to the other observer."""
        self.lock.set_progress(stage, done, total)
        self.observer.advanced(stage, done, total)


class _CallbackError(BaseException):
    """Carries the error of a callback past the code that handles a run's own errors."""

    def __init__(self, error: Exception) -> None:
        self.error = error


class CallbackObserver:
    """Calls a program's own observer, or its function, on one thread only, as a context.

    An error that the program's code raises ends the run, and the context raises it unchanged.

    Parameters
    ----------
    callback : Observer or callable
        A function is called with the arguments of `Observer.advanced`, and for no other event.
    """

    def __init__(self, callback: Observer | Callable[[str, float, float], object]) -> None:
        if callable(callback) and not hasattr(callback, "advanced"):
            observer: Any = SilentObserver()
            observer.advanced = callback
        else:
            observer = callback
        self._observer, self._thread = observer, threading.get_ident()
        self._messages: SimpleQueue[str] = SimpleQueue()

    def __enter__(self) -> CallbackObserver:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if error is None:
            try:
                self._deliver_messages()
            except _CallbackError as failed:
                error = failed
        if isinstance(error, _CallbackError):
            raise error.error from None

    def _call(self, name: str, *arguments: Any) -> None:
        """Call a method of the program's observer."""
        try:
            getattr(self._observer, name)(*arguments)
        except Exception as error:
            raise _CallbackError(error) from error

    def _deliver_messages(self) -> None:
        """Pass on the messages that wait."""
        while True:
            try:
                message = self._messages.get_nowait()
            except Empty:
                return
            self._call("note", message)

    def note(self, message: str) -> None:
        """Pass on a message at once on the run's own thread; a message of another thread waits for the next call."""
        self._messages.put(message)
        if threading.get_ident() == self._thread:
            self._deliver_messages()

    def started(self, stage: str, projected_bytes: int) -> None:
        """Pass on that a stage begins."""
        self._deliver_messages()
        self._call("started", stage, projected_bytes)

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Pass on a stage's progress."""
        self._deliver_messages()
        self._call("advanced", stage, done, total)

    def finished(self, stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> None:
        """Pass on a finished stage's time, memory and facts."""
        self._deliver_messages()
        self._call("finished", stage, seconds, projected_bytes, peak_bytes, facts)
