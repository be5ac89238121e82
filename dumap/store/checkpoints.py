"""Checkpoints: the state of all rows after a pass or an epoch, in parts that hold ranges of shards."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import numpy as np

from dumap.store.run import Run

CHECKPOINT = "checkpoint"
"""Kind of the parts that commit a checkpoint and name its pieces."""


class Checkpoints:
    """The checkpoints of a stage.

    Parameters
    ----------
    run : Run
    stage : str
    piece : str
        Kind of the parts that hold the state of a range of shards.
    """

    def __init__(self, run: Run, stage: str, piece: str) -> None:
        self.run, self.stage, self.piece = run, stage, piece
        self._removal: _Removal | None = None

    def name(self, number: int) -> str:
        """Return the name of the part that commits a checkpoint."""
        return f"{CHECKPOINT}-{number:05d}"

    def piece_name(self, number: int, first: int, last: int) -> str:
        """Return the name of the part that holds shards [first, last) of a checkpoint."""
        return f"{self.piece}-{number:05d}-{first:05d}-{last:05d}"

    @staticmethod
    def parse_piece_name(piece: str) -> tuple[int, int, int]:
        """Return the number of a piece's checkpoint, and its shards as `first` and `last`."""
        number, first, last = (int(text) for text in piece.split("-")[-3:])
        return number, first, last

    def numbers(self) -> list[int]:
        """List the numbers of the committed checkpoints."""
        names = self.run.committed_parts(self.stage)
        return [int(name.split("-")[1]) for name in names if name.startswith(f"{CHECKPOINT}-")]

    def latest(self, max_number: int | None = None) -> int:
        """Return the number of the last committed checkpoint, or of the last up to `max_number`; 0 if there is none."""
        return max((number for number in self.numbers() if max_number is None or number <= max_number), default=0)

    def pieces(self, number: int) -> list[str]:
        """List the pieces of a committed checkpoint, in the order of their rows."""
        return self.run.part_facts(self.stage, self.name(number))["pieces"]

    def piece_of(self, number: int, shard: int) -> str:
        """Return the piece of a committed checkpoint that holds a shard."""
        for piece in self.pieces(number):
            _, first, last = self.parse_piece_name(piece)
            if first <= shard < last:
                return piece
        raise ValueError(f"{self.stage} {self.name(number)} holds no shard {shard}")

    def read(self, number: int, array: str, start: int, stop: int) -> np.ndarray:
        """Read rows [start, stop) of a committed checkpoint."""
        facts = self.run.part_facts(self.stage, self.name(number))
        offsets = np.array(facts["offsets"])
        return self.run.read_from_parts(self.stage, facts["pieces"], offsets, array, start, stop)

    def commit(self, number: int, names: list[str], offsets: np.ndarray, durable: bool = True, **facts: Any) -> None:
        """Commit a checkpoint and remove the checkpoints before it: see also `background_removal`.

        Parameters
        ----------
        number : int
        names : list of str
            The pieces, which are committed, in the order of their rows.
        offsets : ndarray of int, shape (shards + 1,)
            Rows before each shard.
        durable : bool
            Whether the pieces were written durably. If not, the last durable checkpoint is not removed.
        **facts
            Facts for the manifest of the checkpoint.
        """
        rows = [int(offsets[self.parse_piece_name(name)[1]]) for name in names] + [int(offsets[-1])]
        with self.run.part(self.stage, self.name(number), durable) as out:
            out.attributes |= {"pieces": names, "offsets": rows, "durable": durable, **facts}
        if self._removal is None:
            self.remove_superseded(number)
        else:
            self.run.clear_cached(self.stage, self._removal.removed())
            self._removal.begin(number)

    @contextmanager
    def background_removal(self, latest: int) -> Iterator[None]:
        """Let `commit` return at once; a thread removes the checkpoints before the committed one.

        If other checkpoints are committed meanwhile, the thread goes on with the last of them. The context waits for
        the thread at its end. An error of the thread is raised there, or by the next commit.

        Parameters
        ----------
        latest : int
            The checkpoint that is committed already, 0 if none is. What an earlier driver has left of the checkpoints
            before it is removed first.
        """
        removal = self._removal = _Removal(Checkpoints(self.run.reopen(), self.stage, self.piece))
        if latest:
            removal.begin(latest)
        try:
            yield
        except BaseException as error:
            if (failure := removal.end()) is not None:
                error.add_note(f"Checkpoints that are no longer needed were not removed: {failure}")
            raise
        else:
            if (failure := removal.end()) is not None:
                raise failure
        finally:
            self.run.clear_cached(self.stage, removal.removed())
            self._removal = None

    def remove_superseded(self, number: int) -> list[str]:
        """Remove the checkpoints before a committed one, and the pieces up to its number that no checkpoint then names;
        return the names of the removed parts.

        If the committed checkpoint is not durable, the last durable checkpoint before it remains.
        """
        earlier_numbers = [n for n in self.numbers() if n < number]
        kept_pieces = set(self.pieces(number))
        if (
            not self._is_durable(number)
            and (last := max(filter(self._is_durable, earlier_numbers), default=None)) is not None
        ):
            earlier_numbers.remove(last)
            kept_pieces |= set(self.pieces(last))
        names = [self.name(n) for n in earlier_numbers]
        self.run.delete_parts(self.stage, names)
        pieces = [name for name in self.run.committed_parts(self.stage) if name.startswith(f"{self.piece}-")]
        superseded = [n for n in pieces if self.parse_piece_name(n)[0] <= number and n not in kept_pieces]
        self.run.delete_parts(self.stage, superseded)
        return names + superseded

    def _is_durable(self, number: int) -> bool:
        """Return whether a checkpoint was written durably."""
        return self.run.part_facts(self.stage, self.name(number))["durable"]

    def uncommit_broken(self) -> None:
        """Uncommit the checkpoints with a piece that is no longer committed."""
        names = set(self.run.committed_parts(self.stage))
        for number in self.numbers():
            if not set(self.pieces(number)) <= names:
                self.run.uncommit(self.stage, self.name(number))


class _Removal:
    """A thread that removes the checkpoints before the last one that it is told of."""

    def __init__(self, checkpoints: Checkpoints) -> None:
        self._checkpoints, self._last = checkpoints, 0
        self._thread = ThreadPoolExecutor(1, "removal")
        self._begun = deque[Future[list[str]]]()

    def begin(self, number: int) -> None:
        """Have the checkpoints before a committed one removed."""
        self._last = number
        self._begun.append(self._thread.submit(self._remove, number))

    def _remove(self, number: int) -> list[str]:
        return self._checkpoints.remove_superseded(number) if number == self._last else []

    def removed(self) -> list[str]:
        """Return the names of the parts that were removed since the last call; raise the error if a removal failed."""
        names: list[str] = []
        while self._begun and self._begun[0].done():
            names += self._begun.popleft().result()
        return names

    def end(self) -> BaseException | None:
        """Wait for the thread; return the first error, and forget the removals if there is one."""
        self._thread.shutdown()
        failure = next((error for error in (future.exception() for future in self._begun) if error is not None), None)
        if failure is not None:
            self._begun.clear()
        return failure
