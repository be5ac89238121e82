"""Which part is sent next, and which is to blame where workers die."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence


class Line:
    """The parts that wait for their turn.

    Parts whose worker died are suspects, with what was beside them: they wait until last, or until they are many,
    then each is tried alone on the cluster, so that what dies there is to blame.

    Parameters
    ----------
    parts : sequence of str
    window : int
        Parts that may be on their way at once; it may be changed.
    many : int, optional
        So many suspects are many; by default as many as may be on their way. It may be changed.
    """

    def __init__(self, parts: Sequence[str], window: int, many: int | None = None) -> None:
        self.waiting, self.suspects, self.window = deque(parts), deque[str](), window
        self.many = window if many is None else many
        self.alone = False
        self.deaths = Counter[str]()
        if len(parts) == 1:
            self.waiting, self.suspects = self.suspects, self.waiting

    def take(self, flying: int) -> str | None:
        """Return the part to send after those that are on their way, if any may be sent."""
        if flying and self.alone:
            return None
        self.alone = False
        if self.waiting and flying < self.window and len(self.suspects) < self.many:
            return self.waiting.popleft()
        if self.suspects and not flying:
            self.alone = True
            return self.suspects.popleft()
        return None

    def put_back(self, part: str) -> None:
        """Take back a part that got lost."""
        (self.suspects if self.alone else self.waiting).appendleft(part)

    def died(self, part: str, workers: int) -> int:
        """Take back a part whose workers died; return how many died of it alone."""
        if self.alone:
            self.deaths[part] += workers
            self.suspects.appendleft(part)
        else:
            self.suspects.append(part)
        return self.deaths[part]
