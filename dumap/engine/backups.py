"""Which parts take so long that a second copy of them is worth a try."""

from __future__ import annotations

from collections import defaultdict, deque
from statistics import median

BACKUP_SECONDS = 30.0
"""A part that took no longer than this is left alone."""
BACKUP_FACTOR = 3.0
"""So many times the median of its kind is slow."""
BACKUP_FINISHED = 8
"""Parts of a kind that must have ended before any of it is called slow."""
REMEMBERED = 1000


class Durations:
    """How long the parts of each kind took, of late."""

    def __init__(self) -> None:
        self._seconds: dict[str, deque[float]] = defaultdict(lambda: deque(maxlen=REMEMBERED))

    def ended(self, kind: str, seconds: float) -> None:
        """Take down that a part of a kind took so long."""
        self._seconds[kind].append(seconds)

    def slow(self, kind: str) -> float | None:
        """Return the seconds after which a part of a kind is slow, None where too few have ended to tell."""
        known = self._seconds[kind]
        return max(BACKUP_SECONDS, BACKUP_FACTOR * median(known)) if len(known) >= BACKUP_FINISHED else None
