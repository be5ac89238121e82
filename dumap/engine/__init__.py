"""Runs tasks in threads of this process or on Dask, and checks the workers.

The only folder that imports Dask, and only where a cluster is wanted.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from dumap.artifacts.job import Job
    from dumap.store import Run


class Observer(Protocol):
    """Who is told how a run goes on, from the thread of `dumap.run` alone.

    Any object with these methods is one. What they raise ends the run, and is raised by `dumap.run` as it is.

    Examples
    --------
    >>> import dumap
    >>> class Printing:
    ...     def started(self, stage, projected_bytes):
    ...         pass
    ...     def advanced(self, stage, done, total):
    ...         pass
    ...     def finished(self, stage, seconds, projected_bytes, peak_bytes, facts):
    ...         print(stage, "is done")
    ...     def note(self, message):
    ...         pass
    >>> result = dumap.run("DATA.zarr", output="OBSERVED.zarr", n_epochs=5, on_progress=Printing())
    vectors is done
    ...
    quality is done
    """

    def started(self, stage: str, projected_bytes: int) -> None:
        """A stage has begun."""

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Some of the stage's current step is done."""

    def finished(self, stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> None:
        """A stage is committed."""

    def note(self, message: str) -> None:
        """Something worth a line in the log."""


class Engine(Protocol):
    """What the recipe and the stages ask of whatever runs their tasks.

    Attributes
    ----------
    name : str
        'local' or 'dask'.
    peak_bytes : int
        The most bytes that a process held while it ran tasks, since the recipe last set this to 0.
    held_bytes : int
        The most bytes that one held before the first of them, likewise: what is not theirs.
    """

    name: str
    peak_bytes: int
    held_bytes: int

    @property
    def threads(self) -> int:
        """The threads there are now."""

    @property
    def host_threads(self) -> int:
        """The threads of the host that has most."""

    @property
    def worker_threads(self) -> int:
        """The most threads that share one process's memory."""

    @property
    def worker_memory(self) -> int:
        """The least memory limit, as of a process with one thread: its interpreter and one task; 0 without limits."""

    @property
    def versions(self) -> dict[str, str]:
        """The versions that the tasks run with."""

    @property
    def cpus(self) -> list[str]:
        """The kind of processors that the tasks run on, one; none before the preflight."""

    def require(self, record: dict[str, Any] | None, peak_bytes: int) -> None:
        """Set what workers must have: the versions and processor of an unfinished run, and memory for the plan's
        peak.
        """

    def preflight(self) -> None:
        """Find out which workers there are, and fail if none can do the work."""

    def check_sight(self, output: str) -> None:
        """Fail unless the output is seen, and can be written, from where tasks run."""

    def require_run_visible(self, run: Run, peak_bytes: int) -> None:
        """Require of workers that join later that they see this run, and have memory for the plan's peak."""

    def map(
        self,
        task: Callable[..., None],
        job: Job,
        parts: Sequence[str],
        options: dict[str, Any],
        advanced: Callable[[float, float], None],
    ) -> None:
        """Run `task(job, part, **options)` for every part, of the job's stage."""

    def spool(
        self,
        task: Callable[..., None],
        job: Job,
        parts: Sequence[str],
        options: dict[str, Any],
        advanced: Callable[[float, float], None],
    ) -> None:
        """Run the tasks in the process that holds the object: this one."""

    def free_caches(self) -> None:
        """Free what tasks have cached for later ones, in all processes."""

    def close(self) -> None:
        """Leave nothing behind where the tasks ran."""
