"""Tell people how a run goes on: a bar on a terminal, plain lines in a log."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dumap.config import format_bytes
from dumap.engine import Observer
from dumap.figures import told

LOG_SECONDS = 10.0
"""A log gets a line of progress at most this often."""


def _closing(stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> str:
    figures = ", ".join(f"{k} {told(v, '.4g')}" for k, v in facts.items())
    peak = f"peak {format_bytes(peak_bytes)} of {format_bytes(projected_bytes)} projected"
    return f"{stage}: done in {seconds:.1f} s, {peak}; {figures}"


class Log:
    """Plain lines with a time stamp, on standard error."""

    def __init__(self) -> None:
        self._since, self._last = time.monotonic(), time.monotonic()

    def note(self, message: str) -> None:
        """Write a line."""
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} dumap {message}", file=sys.stderr, flush=True)

    def started(self, stage: str, projected_bytes: int) -> None:
        """Write that a stage begins."""
        self._since = self._last = time.monotonic()
        self.note(f"{stage}: begins, {format_bytes(projected_bytes)} a worker projected")

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Write how far the stage is, now and then."""
        now = time.monotonic()
        if now - self._last >= LOG_SECONDS and done > 0:
            self._last = now
            rate = done / (now - self._since)
            self.note(f"{stage}: {done:.0f} of {total:.0f}, {rate:.2f}/s, {max(0.0, total - done) / rate:.0f} s left")

    def finished(self, stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> None:
        """Write what the stage took and found."""
        self.note(_closing(stage, seconds, projected_bytes, peak_bytes, facts))


class Bar:
    """A bar for the stage under way."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._tasks = progress, {}  # type: ignore[var-annotated]

    def note(self, message: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(message, highlight=False, soft_wrap=True)

    def started(self, stage: str, projected_bytes: int) -> None:
        """Show a bar."""
        self._tasks[stage] = self._progress.add_task(stage, total=None, rate="")

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Move the bar."""
        task = self._progress.tasks[self._tasks[stage]]
        rate = f"{done / task.elapsed:.1f}/s" if task.elapsed else ""
        self._progress.update(self._tasks[stage], completed=done, total=total, rate=rate)

    def finished(self, stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> None:
        """Replace the bar by a line."""
        self._progress.remove_task(self._tasks.pop(stage))
        self.note(_closing(stage, seconds, projected_bytes, peak_bytes, facts))


@contextlib.contextmanager
def observer() -> Iterator[Observer]:
    """Choose by what standard error is."""
    if not sys.stderr.isatty():
        yield Log()
        return
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total} {task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield Bar(progress)
