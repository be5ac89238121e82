"""Shows the progress of a run: a bar on a terminal, else lines of the log."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from dumap.engine import Observer
from dumap.recipe.observers import LogObserver, format_finished


class ProgressBar:
    """An observer that shows a bar for the running stage."""

    def __init__(self, progress: Progress) -> None:
        self._progress, self._task_ids = progress, {}  # type: ignore[var-annotated]

    def note(self, message: str) -> None:
        """Print a line above the bar."""
        self._progress.console.print(message, highlight=False, soft_wrap=True)

    def started(self, stage: str, projected_bytes: int) -> None:
        """Show a bar."""
        self._task_ids[stage] = self._progress.add_task(stage, total=None, rate="")

    def advanced(self, stage: str, done: float, total: float) -> None:
        """Move the bar."""
        task = self._progress.tasks[self._task_ids[stage]]
        rate = f"{done / task.elapsed:.1f}/s" if task.elapsed else ""
        self._progress.update(self._task_ids[stage], completed=done, total=total, rate=rate)

    def finished(self, stage: str, seconds: float, projected_bytes: int, peak_bytes: int, facts: dict) -> None:
        """Replace the bar by a line."""
        self._progress.remove_task(self._task_ids.pop(stage))
        self.note(format_finished(stage, seconds, projected_bytes, peak_bytes, facts))


@contextlib.contextmanager
def open_observer(as_json: bool = False) -> Iterator[Observer]:
    """Return an observer as a context: a progress bar if standard error is a terminal, else the log."""
    if as_json or not sys.stderr.isatty():
        yield LogObserver()
        return
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total} {task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        yield ProgressBar(progress)
