"""What tests share that is no fixture: marks, observers, and ways to undo what a run has committed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from dumap.errors import InputError, StorageError, TaskError
from dumap.recipe.observers import Silent
from dumap.store import MANIFESTS

K = 14
"""Neighbours of a row, itself not counted, by default."""
SMALL_TASKS = {"task_memory": 2**20}
"""Blocks of about 500 rows, cells of about 700."""


def slowly(values: Iterable[Any], *quick: Any) -> list:
    """Mark as slow all values of a parameter but the quick ones; a tuple stands for several parameters."""
    several = [(value, value if isinstance(value, tuple) else (value,)) for value in values]
    return [pytest.param(*given, marks=() if value in quick else pytest.mark.slow) for value, given in several]


failing = pytest.mark.parametrize(
    ("error", "raised"),
    [
        (ZeroDivisionError("by nothing"), TaskError),
        (OSError(28, "No space left on device"), StorageError),
        (InputError("rows 3 to 5 cannot be read"), InputError),
    ],
)
"""What a task may fail of, and what whichever engine that ran it raises."""


class Notes(Silent):
    """Keeps what a person is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def left_out(self) -> list[str]:
        """Return what was said of workers that are left out."""
        return [note for note in self.notes if "is left out" in note]


class AsBegins(Notes):
    """Does something as a stage begins, and keeps what a person is told."""

    def __init__(self, stage: str, action: Callable[[], object]) -> None:
        super().__init__()
        self.stage, self.action = stage, action

    def started(self, stage: str, projected_bytes: int) -> None:
        if stage == self.stage:
            self.action()


def unmark(output: str, stages: Iterable[str]) -> None:
    """Undo that stages are done; their parts stay."""
    for stage in stages:
        Path(output, MANIFESTS, "done", f"{stage}.json").unlink()


def uncommit(output: str, stages: Iterable[str]) -> None:
    """Undo all commits of some stages."""
    unmark(output, stages)
    for stage in stages:
        shutil.rmtree(Path(output, MANIFESTS, stage))


def brute(x: np.ndarray, metric: str, **options: float) -> np.ndarray:
    """Return all distances, infinite to itself."""
    d = cdist(x.astype(np.float64), x.astype(np.float64), metric, **options)
    np.fill_diagonal(d, np.inf)
    return d
