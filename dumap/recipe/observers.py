"""Observers of a run: one that says nothing, and one that has the lock say what its driver is at."""

from __future__ import annotations

from dumap.engine import Observer
from dumap.store import Lock


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
    """An observer that also has the run's lock say what its driver is at."""

    def __init__(self, observer: Observer, lock: Lock) -> None:
        self.observer, self.lock = observer, lock
        self.started, self.finished, self.note = observer.started, observer.finished, observer.note

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Tell both."""
        self.lock.at(stage, done, total)
        self.observer.advanced(stage, done, total)
