"""The queue of parts: which part is sent next, and which part is to blame when workers die."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence


class TaskQueue:
    """The parts that are not sent yet, and the parts to send again.

    All parts on a worker that died are suspects. Suspects wait until no other part is left, or until there are `many`
    suspects. Then each suspect is sent alone, so that a part whose worker dies again is to blame.

    Parameters
    ----------
    parts : sequence of str
    window : int
        The most parts in flight; may be changed.
    many : int, optional
        The number of suspects at which they are sent alone; may be changed. [window]
    """

    def __init__(self, parts: Sequence[str], window: int, many: int | None = None) -> None:
        self.waiting, self.suspects, self.window = deque(parts), deque[str](), window
        self.many = window if many is None else many
        self.alone = False
        self.deaths = Counter[str]()
        if len(parts) == 1:
            self.waiting, self.suspects = self.suspects, self.waiting

    def take(self, in_flight: int) -> str | None:
        """Return the part to send next, given the number of parts in flight; None if no part may be sent."""
        if in_flight and self.alone:
            return None
        self.alone = False
        if self.waiting and in_flight < self.window and len(self.suspects) < self.many:
            return self.waiting.popleft()
        if self.suspects and not in_flight:
            self.alone = True
            return self.suspects.popleft()
        return None

    def put_back(self, part: str) -> None:
        """Put a lost part back in the queue, to be sent next."""
        (self.suspects if self.alone else self.waiting).appendleft(part)

    def died(self, part: str, workers: int) -> int:
        """Make a part whose workers died a suspect; return the number of workers that died while they ran only it."""
        if self.alone:
            self.deaths[part] += workers
            self.suspects.appendleft(part)
        else:
            self.suspects.append(part)
        return self.deaths[part]
