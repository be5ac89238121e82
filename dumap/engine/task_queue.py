"""The queue of parts: which is sent next, and which is to blame when workers die."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence


class TaskQueue:
    """The parts that are not sent yet, or are to be sent again.

    All parts on a worker that died are suspects. They wait until nothing else is left, or until they are many; then
    each is sent alone, so that a part whose worker dies again is to blame.

    Parameters
    ----------
    parts : sequence of str
    window : int
        Most parts in flight; may be changed.
    many : int, optional
        Suspects that count as many; may be changed. [window]
    """

    def __init__(self, parts: Sequence[str], window: int, many: int | None = None) -> None:
        self.waiting, self.suspects, self.window = deque(parts), deque[str](), window
        self.many = window if many is None else many
        self.alone = False
        self.deaths = Counter[str]()
        if len(parts) == 1:
            self.waiting, self.suspects = self.suspects, self.waiting

    def take(self, in_flight: int) -> str | None:
        """Return the part to send next if `in_flight` parts are under way; None if none may be sent."""
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
        """Take back a part that got lost."""
        (self.suspects if self.alone else self.waiting).appendleft(part)

    def died(self, part: str, workers: int) -> int:
        """Take back a part whose workers died; return how many have died while they ran only this part."""
        if self.alone:
            self.deaths[part] += workers
            self.suspects.appendleft(part)
        else:
            self.suspects.append(part)
        return self.deaths[part]
