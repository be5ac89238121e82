"""Runs tasks in threads of this process, without Dask: for data so small that a cluster's start would cost more."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import cached_property
from queue import Empty, SimpleQueue
from typing import Any

from dumap.artifacts.job import Job
from dumap.engine import process
from dumap.errors import TaskError
from dumap.sources.arrays import ArrayRows
from dumap.stages import rounds, spool
from dumap.store import Run

TICK_SECONDS = 0.2
"""A task says how far it is at most this often."""
POLL_SECONDS = 0.2
PARTING_SECONDS = 0.5
"""How long an interrupted run waits for its tasks: what they commit later is what they would have committed."""


class _Stopped(BaseException):
    """Ends a task that reports progress after the run has stopped."""


class LocalEngine:
    """Maps tasks over parts on threads of this process; kernels leave Python's lock, so that they run side by side.

    Parameters
    ----------
    threads : int
    worker_memory : int
        What a task and one interpreter may take, 0 where no limit is known.
    task_timeout : float, optional
        Seconds after which a task that tells nothing of its progress is taken for stuck.
    """

    name = "local"

    def __init__(self, threads: int, worker_memory: int, task_timeout: float | None = None) -> None:
        self.threads, self.worker_memory, self.task_timeout = threads, worker_memory, task_timeout
        self.peak_bytes = self.held_bytes = 0

    @property
    def host_threads(self) -> int:
        """The threads of this host."""
        return self.threads

    @property
    def worker_threads(self) -> int:
        """The threads that share one process's memory."""
        return self.threads

    @cached_property
    def versions(self) -> dict[str, str]:
        """The versions that tasks run with."""
        return process.versions()

    @cached_property
    def cpus(self) -> list[str]:
        """The kind of processors that tasks run on, one."""
        return [process.cpu()]

    def require(self, record: dict[str, Any] | None, peak_bytes: int) -> None:
        """Require nothing: this process is the only one there is."""

    def preflight(self) -> None:
        """Find nothing out: this process runs dumap already."""

    def check_sight(self, output: str) -> None:
        """Check nothing: the output was written to from this process."""

    def require_run_visible(self, run: Run, peak_bytes: int) -> None:
        """Do nothing: no worker joins later."""

    def map(
        self,
        task: Callable[..., None],
        job: Job,
        parts: Sequence[str],
        options: dict[str, Any],
        advanced: Callable[[float, float], None],
    ) -> None:
        """Run `task(job, part, **options)` for every part, of the job's stage.

        Raises
        ------
        DumapError
            The task's own error, or one that names the part and what came from below.
        """
        step = _Step(task, job, parts, options)
        threads = [threading.Thread(target=step.work, daemon=True) for _ in range(min(self.threads, len(parts)))]
        for thread in threads:
            thread.start()
        try:
            step.follow(advanced, self.task_timeout)
        except (KeyboardInterrupt, _Stuck):
            step.stop()
            step.wait(threads, PARTING_SECONDS)
            raise
        except BaseException:
            step.stop()
            step.wait(threads)
            raise
        finally:
            self.peak_bytes = max(self.peak_bytes, step.peak_bytes)
            self.held_bytes = max(self.held_bytes, step.held_bytes)
        step.wait(threads)

    def spool(
        self,
        task: Callable[..., None],
        job: Job,
        parts: Sequence[str],
        options: dict[str, Any],
        advanced: Callable[[float, float], None],
    ) -> None:
        """Run `task(job, part, **options)` for every part: this process has the object that is embedded."""
        if isinstance(job.object_rows, ArrayRows):
            self.map(task, job, parts, options, advanced)
            return
        from dumap.engine.collections import compute_here

        spans = {part: spool.span_of(job, part) for part in parts}
        took = compute_here(task, job, spans, self.threads, advanced)
        self.peak_bytes, self.held_bytes = took["peak_bytes"], took["held_bytes"]

    def free_caches(self) -> None:
        """Free what tasks have cached."""
        rounds.free_caches()

    def close(self) -> None:
        """Leave nothing of the run's in this process."""
        self.free_caches()


class _Stuck(TaskError):
    """A task that is taken for stuck, for which nobody waits: a thread cannot be ended from outside."""


class _Step:
    """One task over many parts: threads work, and the caller's thread hears of it."""

    def __init__(self, task: Callable[..., None], job: Job, parts: Sequence[str], options: dict[str, Any]) -> None:
        self._task, self._job, self._options = task, job, options
        self._waiting, self._count = deque(parts), len(parts)
        self._heard: SimpleQueue[tuple[str, Any, Any]] = SimpleQueue()
        self._stopping = threading.Event()
        self._alive: dict[str, float] = {}
        self.peak_bytes = self.held_bytes = 0

    def stop(self) -> None:
        """Give out no more parts, and end tasks where they next say how far they are."""
        self._stopping.set()

    def work(self) -> None:
        """Run parts until none waits, on a thread of its own."""
        while not self._stopping.is_set():
            try:
                part = self._waiting.popleft()
            except IndexError:
                return
            self._alive[part] = time.monotonic()
            try:
                took = process.run_task(self._task, self._job, part, self._options, self._ticker(part))
                self._heard.put(("done", part, took))
            except _Stopped:
                return
            except BaseException as error:
                self._heard.put(("failed", part, error))
                return
            finally:
                del self._alive[part]

    def _ticker(self, part: str) -> Callable[[float, float], None]:
        last = time.monotonic()

        def tick(done: float, total: float) -> None:
            nonlocal last
            if self._stopping.is_set():
                raise _Stopped
            self._alive[part] = time.monotonic()
            if self._count == 1 and time.monotonic() - last > TICK_SECONDS:
                last = time.monotonic()
                self._heard.put(("tick", done, total))

        return tick

    def follow(self, advanced: Callable[[float, float], None], task_timeout: float | None) -> None:
        """Hear of the parts until all are done; fail as the first of them that fails, or is taken for stuck."""
        done = 0
        while done < self._count:
            if task_timeout is not None:
                self._refuse_stuck(task_timeout)
            try:
                kind, what, said = self._heard.get(timeout=POLL_SECONDS)
            except Empty:  # so that a signal is heard of which another thread was woken by
                continue
            if kind == "tick":
                advanced(what, said)
            elif kind == "failed":
                raise process.named_error(said, f"{self._job.title(self._task)} {what}")
            else:
                done += 1
                self.peak_bytes = max(self.peak_bytes, said["peak_bytes"])
                self.held_bytes = max(self.held_bytes, said["held_bytes"])
                advanced(done, self._count)

    def _refuse_stuck(self, seconds: float) -> None:
        """Fail where a task has told nothing for so long."""
        for part, alive in list(self._alive.items()):
            if time.monotonic() - alive > seconds:
                raise _Stuck(
                    f"{self._job.title(self._task)} {part} told nothing for {seconds:g} s (cluster.task_timeout) and "
                    f"is taken for stuck; its thread ends with this process. Raise the limit if tasks are that slow; "
                    f"what is committed is kept"
                )

    def wait(self, threads: Sequence[threading.Thread], seconds: float | None = None) -> None:
        """Wait until threads have ended what they do, for so many seconds at the most."""
        deadline = None if seconds is None else time.monotonic() + seconds
        for thread in threads:
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
