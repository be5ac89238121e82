"""Decides when a part has run so long that a second copy of its task is worth sending."""

from __future__ import annotations

from collections import defaultdict, deque
from statistics import median

MIN_BACKUP_SECONDS = 30.0
"""No part is called slow before it has run this long."""
BACKUP_FACTOR = 3.0
"""A part is slow if it takes this many times the median of its kind."""
MIN_FINISHED = 8
"""Parts of a kind that must have ended before a part of the kind is called slow."""
MAX_DURATIONS = 1000
"""The durations that are kept of each kind, the latest."""


class TaskDurations:
    """How long the latest parts of each kind took."""

    def __init__(self) -> None:
        self._seconds: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=MAX_DURATIONS))

    def add(self, kind: str, seconds: float) -> None:
        """Record how long a part of a kind took."""
        self._seconds[kind].append(seconds)

    def median_seconds(self, kind: str) -> float | None:
        """Return the median seconds of a part of a kind; None if none has ended yet."""
        durations = self._seconds[kind]
        return median(durations) if durations else None

    def slow_seconds(self, kind: str) -> float | None:
        """Return the seconds after which a part of a kind is slow; None if too few parts have ended to tell."""
        durations = self._seconds[kind]
        return max(MIN_BACKUP_SECONDS, BACKUP_FACTOR * median(durations)) if len(durations) >= MIN_FINISHED else None
