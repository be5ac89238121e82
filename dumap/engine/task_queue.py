"""The queue of parts: which part is sent next, and which part is to blame when workers die."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence


class TaskQueue:
    """The parts that are not sent yet, and the parts to send again.

    All parts on a worker that died are suspects. Suspects wait until no other part is left, or until there are
    `max_suspects` of them. Then each suspect is sent alone, so that a part whose worker dies again is to blame.

    Parameters
    ----------
    parts : sequence of str
    max_in_flight : int
        The most parts in flight; may be changed.
    max_suspects : int, optional
        The number of suspects at which they are sent alone; may be changed. [window]
    """

    def __init__(self, parts: Sequence[str], max_in_flight: int, max_suspects: int | None = None) -> None:
        self.waiting_parts, self.suspects, self.max_in_flight = deque(parts), deque[str](), max_in_flight
        self.max_suspects = max_in_flight if max_suspects is None else max_suspects
        self.sends_alone = False
        self.deaths = Counter[str]()
        if len(parts) == 1:
            self.waiting_parts, self.suspects = self.suspects, self.waiting_parts

    def next_part(self, in_flight: int) -> str | None:
        """Return the part to send next, given the number of parts in flight; None if no part may be sent."""
        if in_flight and self.sends_alone:
            return None
        self.sends_alone = False
        if self.waiting_parts and in_flight < self.max_in_flight and len(self.suspects) < self.max_suspects:
            return self.waiting_parts.popleft()
        if self.suspects and not in_flight:
            self.sends_alone = True
            return self.suspects.popleft()
        return None

    def put_back(self, part: str) -> None:
        """Put a lost part back in the queue, to be sent next."""
        (self.suspects if self.sends_alone else self.waiting_parts).appendleft(part)

    def record_death(self, part: str, workers: int) -> int:
        """Make a part whose workers died a suspect; return the number of workers that died while they ran only it."""
        if self.sends_alone:
            self.deaths[part] += workers
            self.suspects.appendleft(part)
        else:
            self.suspects.append(part)
        return self.deaths[part]
