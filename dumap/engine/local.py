"""Runs tasks in threads of this process, for data so small that starting a cluster would take longer."""

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

PROGRESS_SECONDS = 0.2
"""Seconds between two reports of a task's progress, at least."""
POLL_SECONDS = 0.2
"""Seconds between looks for reports."""
INTERRUPT_TIMEOUT = 0.5
"""Seconds that an interrupted run waits for its tasks. A task that commits later writes the same bytes."""


class _StepStopped(BaseException):
    """Ends a task that reports its progress after the run has stopped."""


class LocalEngine:
    """An engine that runs tasks in threads of this process. Kernels release Python's lock, so tasks run in parallel.

    Parameters
    ----------
    threads : int
    worker_memory : int
        Memory that one task and the interpreter may take, in bytes; 0 if no limit is known.
    task_timeout : float, optional
        A task that reports no progress for this many seconds counts as stuck.
    """

    name = "local"

    def __init__(self, threads: int, worker_memory: int, task_timeout: float | None = None) -> None:
        self.threads, self.worker_memory, self.task_timeout = threads, worker_memory, task_timeout
        self.peak_bytes = self.held_bytes = 0

    @property
    def host_threads(self) -> int:
        """The number of threads on this host."""
        return self.threads

    @property
    def worker_threads(self) -> int:
        """The number of threads in this process."""
        return self.threads

    @cached_property
    def versions(self) -> dict[str, str]:
        """The versions of the libraries that tasks run with, by name."""
        return process.versions()

    @cached_property
    def cpus(self) -> list[str]:
        """The kind of processor that tasks run on, a list of one."""
        return [process.cpu_name()]

    def set_requirements(self, record: dict[str, Any] | None, peak_bytes: int) -> None:
        """Do nothing: this process runs all tasks, and the recipe checks its versions."""

    def preflight(self) -> None:
        """Do nothing: this process already runs dumap."""

    def check_output_visible(self, output: str) -> None:
        """Do nothing: this process has already written to the output."""

    def require_run_visible(self, run: Run, peak_bytes: int) -> None:
        """Do nothing: no worker joins later."""

    def map(
        self,
        task: Callable[..., None],
        job: Job,
        parts: Sequence[str],
        options: dict[str, Any],
        report_progress: Callable[[float, float], None],
    ) -> None:
        """Run `task(job, part, **options)` for each part of the job's stage.

        Raises
        ------
        DumapError
            The error of a task; an error of another kind is replaced by one that names the part.
        """
        step = _LocalStep(task, job, parts, options)
        threads = [threading.Thread(target=step.run_parts, daemon=True) for _ in range(min(self.threads, len(parts)))]
        try:
            for thread in threads:  # an interruption may come before the last has started
                thread.start()
            step.process_reports(report_progress, self.task_timeout)
        except (KeyboardInterrupt, _StuckTaskError):
            step.stop()
            step.join_threads(threads, INTERRUPT_TIMEOUT)
            raise
        except BaseException:
            step.stop()
            step.join_threads(threads)
            raise
        finally:
            self.peak_bytes = max(self.peak_bytes, step.peak_bytes)
            self.held_bytes = max(self.held_bytes, step.held_bytes)
        step.join_threads(threads)

    def spool(
        self,
        task: Callable[..., None],
        job: Job,
        parts: Sequence[str],
        options: dict[str, Any],
        report_progress: Callable[[float, float], None],
    ) -> None:
        """Write the parts of the spool: this process has the object that is embedded."""
        if isinstance(job.object_rows, ArrayRows):
            self.map(task, job, parts, options, report_progress)
            return
        from dumap.engine.collections import compute_in_threads

        row_ranges = {part: spool.row_range_of(job, part) for part in parts}
        usage = compute_in_threads(task, job, row_ranges, self.threads, report_progress)
        self.peak_bytes, self.held_bytes = usage["peak_bytes"], usage["held_bytes"]

    def free_caches(self) -> None:
        """Free what tasks have cached."""
        rounds.free_caches()

    def close(self) -> None:
        """Free what tasks have cached."""
        self.free_caches()


class _StuckTaskError(TaskError):
    """A task counts as stuck. Nobody waits for its thread, which cannot be ended from outside."""


class _LocalStep:
    """One task over many parts: worker threads run it, and the caller's thread receives their reports."""

    def __init__(self, task: Callable[..., None], job: Job, parts: Sequence[str], options: dict[str, Any]) -> None:
        self._task, self._job, self._options = task, job, options
        self._waiting_parts, self._part_count = deque(parts), len(parts)
        self._reports: SimpleQueue[tuple[str, Any, Any]] = SimpleQueue()
        self._stopping = threading.Event()
        self._last_reports: dict[str, float] = {}
        self.peak_bytes = self.held_bytes = 0

    def stop(self) -> None:
        """Start no more parts, and end each running task at its next report of progress."""
        self._stopping.set()

    def run_parts(self) -> None:
        """Run parts until none waits; called on each worker thread."""
        while not self._stopping.is_set():
            try:
                part = self._waiting_parts.popleft()
            except IndexError:
                return
            self._last_reports[part] = time.monotonic()
            try:
                usage = process.run_task(self._task, self._job, part, self._options, self._progress_reporter(part))
                self._reports.put(("done", part, usage))
            except _StepStopped:
                return
            except BaseException as error:
                self._reports.put(("failed", part, error))
                return
            finally:
                del self._last_reports[part]

    def _progress_reporter(self, part: str) -> Callable[[float, float], None]:
        """Return the function by which a part's task reports its progress."""
        last_report = time.monotonic()

        def report_progress(done: float, total: float) -> None:
            nonlocal last_report
            if self._stopping.is_set():
                raise _StepStopped
            self._last_reports[part] = time.monotonic()
            if self._part_count == 1 and time.monotonic() - last_report > PROGRESS_SECONDS:
                last_report = time.monotonic()
                self._reports.put(("progress", done, total))

        return report_progress

    def process_reports(self, report_progress: Callable[[float, float], None], task_timeout: float | None) -> None:
        """Handle reports until all parts are done; raise the error of the first part that fails or counts as stuck."""
        done_count = 0
        while done_count < self._part_count:
            if task_timeout is not None:
                self._raise_if_stuck(task_timeout)
            try:
                report_kind, subject, content = self._reports.get(timeout=POLL_SECONDS)
            except Empty:  # the timeout lets this thread handle a signal that woke another thread
                continue
            if report_kind == "progress":
                report_progress(subject, content)
            elif report_kind == "failed":
                raise process.name_task_in_error(content, f"{self._job.step_title(self._task)} {subject}")
            else:
                done_count += 1
                self.peak_bytes = max(self.peak_bytes, content["peak_bytes"])
                self.held_bytes = max(self.held_bytes, content["held_bytes"])
                report_progress(done_count, self._part_count)

    def _raise_if_stuck(self, seconds: float) -> None:
        """Fail if a task has reported nothing for `seconds`."""
        for part, last_report in list(self._last_reports.items()):
            if time.monotonic() - last_report > seconds:
                raise _StuckTaskError(
                    f"{self._job.step_title(self._task)} {part} told nothing for {seconds:g} s "
                    f"(cluster.task_timeout) and is taken for stuck; its thread ends with this process. "
                    f"Raise the limit if tasks are that slow; what is committed is kept"
                )

    def join_threads(self, threads: Sequence[threading.Thread], seconds: float | None = None) -> None:
        """Wait for the threads that have started to end, at most `seconds` in all."""
        deadline = None if seconds is None else time.monotonic() + seconds
        for thread in filter(threading.Thread.is_alive, threads):
            thread.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
