"""The state of every row, pass after pass: each shard's is a part, and a pass counts once a part of its own says so."""

from __future__ import annotations

from typing import Any

from dumap.store.run import Run


class Series:
    """The passes of a stage over all shards.

    Parameters
    ----------
    run : Run
    stage : str
    whole, piece : str
        What the parts are called that commit a pass, and that hold a shard's state after it.
    shards : int
    """

    def __init__(self, run: Run, stage: str, whole: str, piece: str, shards: int) -> None:
        self.run, self.stage, self.whole, self.piece, self.shards = run, stage, whole, piece, shards

    def name(self, number: int) -> str:
        """Name the part that commits a pass."""
        return f"{self.whole}-{number:05d}"

    def piece_name(self, number: int, shard: int) -> str:
        """Name the part that holds a shard after a pass."""
        return f"{self.piece}-{number:05d}-{shard:05d}"

    def numbers(self) -> list[int]:
        """List the passes that are committed."""
        names = self.run.committed(self.stage)
        return [int(name.split("-")[1]) for name in names if name.startswith(f"{self.whole}-")]

    def latest(self, upto: int | None = None) -> int:
        """Return the last committed pass, or the last that is at most `upto`; 0 where there is none."""
        return max((n for n in self.numbers() if upto is None or n <= upto), default=0)

    def commit(self, number: int, **facts: Any) -> None:
        """Commit a pass whose shards are all committed, and collect the passes before it."""
        with self.run.part(self.stage, self.name(number)) as out:
            out.attributes |= facts
        self.collect(number)

    def collect(self, number: int) -> None:
        """Remove the passes before a pass, what commits them first."""
        for before in self.numbers():
            if before < number:
                self.run.discard(self.stage, self.name(before))
        for name in self.run.committed(self.stage):
            if name.startswith(f"{self.piece}-") and int(name.split("-")[1]) < number:
                self.run.discard(self.stage, name)

    def forget_broken(self) -> None:
        """Forget the passes of which a shard is no longer committed."""
        names = set(self.run.committed(self.stage))
        for number in self.numbers():
            if not {self.piece_name(number, shard) for shard in range(self.shards)} <= names:
                self.run.forget(self.stage, self.name(number))
