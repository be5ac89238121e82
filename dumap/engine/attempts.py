"""The tasks that a step sends, and the interface that sends them. A part may have several tasks."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol


class TaskClient(Protocol):
    """The methods of `dumap.engine.cluster_connection.ClusterConnection` that a step uses."""

    def now(self) -> float:
        """Return the time of a monotonic clock, in seconds."""

    def begin_step(self) -> str:
        """Begin a step, and return a name for its tasks."""

    def send(
        self,
        stage: str,
        step: str,
        part: str,
        call: tuple,
        workers: Iterable[str] | None,
        virtual_start: float | None,
        preferred_worker: str | None = None,
    ) -> Any:
        """Send a task, and return its future; `virtual_start` is None if no other run is active."""

    def wait_for_done(self, seconds: float) -> list[Any]:
        """Return the tasks that are done since the last call; wait at most `seconds` for one."""

    def task_error(self, future: Any) -> Exception | None:
        """Return the error of a task that has ended, None if it succeeded."""

    def cancel(self, futures: Sequence[Any]) -> None:
        """Cancel tasks."""


@dataclass
class Attempt:
    """A task in flight: one attempt at a part.

    Attributes
    ----------
    part : str
    number : int
        The number of the attempt, unique within the step.
    workers : frozenset of str, optional
        The workers that may run the task; None for any worker.
    sent_at : float
        When the task was sent.
    is_backup : bool
        Whether the task is a second copy of a slow task.
    began_at : float, optional
        When the task began; None if it is not known to have begun.
    worker : str
        The worker on which the task began.
    reported_at : float, optional
        When the task last reported progress, or began.
    virtual_start, expected_seconds : float
        The virtual start time of the task, and the seconds that it was expected to take.
    had_other_runs : bool
        Whether other runs were active on the cluster when the task was sent.
    preferred_worker : str, optional
        The worker that the task prefers, though any worker may run it.
    actual_seconds : float
        The seconds that the task took; 0 until it has reported them.
    """

    part: str
    number: int
    workers: frozenset[str] | None
    sent_at: float
    is_backup: bool
    began_at: float | None = None
    worker: str = ""
    reported_at: float | None = None
    virtual_start: float = 0.0
    expected_seconds: float = 0.0
    had_other_runs: bool = False
    preferred_worker: str | None = None
    actual_seconds: float = 0.0

    def is_unreachable(self, present_workers: Mapping[str, int]) -> bool:
        """Return whether all workers that may run the task have left, or, before it begins, the preferred worker.

        If no other worker was there when the preferred worker left, Dask does not send the task to workers that join.
        """
        if self.workers is not None:
            return not self.workers & present_workers.keys()
        return self.began_at is None and self.preferred_worker not in (None, *present_workers)
