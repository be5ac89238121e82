"""Runs tasks in threads of this process or on a Dask cluster, and checks the workers.

No other folder imports Dask. The engine imports it only for a cluster, or for data that is a Dask collection.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from dumap.artifacts.job import Job
    from dumap.store import Run


class Observer(Protocol):
    """An object whose methods are called as a run progresses, all on the thread that called `dumap.run`.

    Any object with these methods is an observer. An exception in a method ends the run, and `dumap.run` raises it.

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
        """Called when a stage begins."""

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Called when a stage has done `done` of `total` steps of its current pass."""

    def finished(self, stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> None:
        """Called when a stage is committed."""

    def note(self, message: str) -> None:
        """Called with a message for people."""


class Engine(Protocol):
    """The interface of whatever runs the tasks of the stages.

    Attributes
    ----------
    name : str
        'local' or 'dask'.
    peak_bytes : int
        The most memory that a process held while it ran tasks. The recipe sets it to 0 when a stage begins.
    held_bytes : int
        The most memory that a process held before its first task of a stage, which is not memory of the tasks. The
        recipe sets it to 0 when a stage begins.
    """

    name: str
    peak_bytes: int
    held_bytes: int

    @property
    def threads(self) -> int:
        """The number of threads that run tasks now."""

    @property
    def host_threads(self) -> int:
        """The number of threads on the host with the most."""

    @property
    def worker_threads(self) -> int:
        """The largest number of threads in one process."""

    @property
    def worker_memory(self) -> int:
        """The smallest memory limit, in bytes, converted to a process that runs one task; 0 without limits."""

    @property
    def versions(self) -> dict[str, str]:
        """The versions of the libraries that tasks run with, by name."""

    @property
    def cpus(self) -> list[str]:
        """The kind of processor that tasks run on, a list of one; empty before `preflight`."""

    def set_requirements(self, record: dict[str, Any] | None, peak_bytes: int) -> None:
        """Set what workers must have: the versions and processor in `record`, and memory for `peak_bytes`."""

    def preflight(self) -> None:
        """Find the workers, and fail if none can run tasks."""

    def check_output_visible(self, output: str) -> None:
        """Fail unless workers can read and write the output."""

    def require_run_visible(self, run: Run, peak_bytes: int) -> None:
        """Require workers that join later to see this run and to have memory for `peak_bytes`."""

    def map(
        self,
        task: Callable[..., None],
        job: Job,
        parts: Sequence[str],
        options: dict[str, Any],
        report_progress: Callable[[float, float], None],
    ) -> None:
        """Run `task(job, part, **options)` for each part of the job's stage.

        `report_progress(done, total)` is called as the parts progress.
        """

    def spool(
        self,
        task: Callable[..., None],
        job: Job,
        parts: Sequence[str],
        options: dict[str, Any],
        report_progress: Callable[[float, float], None],
    ) -> None:
        """Write the parts of the spool: the copy of the rows of `job.object_rows`."""

    def free_caches(self) -> None:
        """Free what tasks have cached for later tasks, in all processes."""

    def close(self) -> None:
        """Free the caches, and stop listening to workers."""
