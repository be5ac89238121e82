"""Helpers that are no fixtures: marks, observers, and ways to undo what a run has committed."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist

from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.errors import InputError, StorageError, TaskError
from dumap.recipe.observers import SilentObserver
from dumap.recipe.pipeline import plan
from dumap.stages import Context
from dumap.store import MANIFESTS, Checkpoints

K = 14
"""Neighbours of a row, itself not counted, by default."""
SMALL_TASKS = {"task_memory": 2**20}
"""Blocks of about 500 rows, cells of about 700, or ranges of about 400 if neighbours are given."""
SHARDED = {"neighbors.n_neighbors": 5, "graph.shard_rows": 4096, "layout.n_epochs": 20, "layout.checkpoint_every": 7}
"""Settings of runs in several shards, if there are more than 4096 rows."""


def mark_slow_except(values: Iterable[Any], *quick: Any) -> list:
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


def local_context(job: Job) -> Context:
    """Return what a stage's `run` takes, so that its tasks run here, one after another."""

    def compute(
        stage: str, task: Callable[..., None], parts: Iterable[str], progress: object = None, **options: Any
    ) -> None:
        for part in parts:
            task(job, part, **options)

    return Context(job, plan(job.config), compute, 1, 1, 0, print)


def fail_after_epoch(epoch: int, write_state: Callable[..., None]) -> Callable[..., None]:
    """Return a `write_state` of the layout whose disk is full after an epoch."""

    def write(job: Job, part: str, *state: Any) -> None:
        if Checkpoints.parse_piece_name(part)[0] > epoch:
            raise OSError(28, "No space left on device")
        write_state(job, part, *state)

    return write


class NoteRecorder(SilentObserver):
    """Keeps what a person is told."""

    def __init__(self) -> None:
        self.notes: list[str] = []

    def note(self, message: str) -> None:
        self.notes.append(message)

    def left_out(self) -> list[str]:
        """Return what was said of workers that are left out."""
        return [note for note in self.notes if "is left out" in note]


class ActAtStageStart(NoteRecorder):
    """Does something as a stage begins, and keeps what a person is told."""

    def __init__(self, stage: str, action: Callable[[], object]) -> None:
        super().__init__()
        self.stage, self.action = stage, action

    def started(self, stage: str, projected_bytes: int) -> None:
        if stage == self.stage:
            self.action()


def uncommit_stages(output: str, stages: Iterable[str]) -> None:
    """Undo that stages are done; their parts stay."""
    for stage in stages:
        Path(output, MANIFESTS, "done", f"{stage}.json").unlink()


def uncommit_parts(output: str, stages: Iterable[str]) -> None:
    """Undo all commits of some stages."""
    uncommit_stages(output, stages)
    for stage in stages:
        shutil.rmtree(Path(output, MANIFESTS, stage))


def brute_force_neighbors(x: np.ndarray, metric: str, **options: float) -> np.ndarray:
    """Return all distances, infinite to itself."""
    d = cdist(x.astype(np.float64), x.astype(np.float64), metric, **options)
    np.fill_diagonal(d, np.inf)
    return d


def stack_edges(graph: Graph) -> sparse.csr_matrix:
    """Return all shards of a graph as one matrix."""
    parts = [graph.read(shard) for shard in range(len(graph.shards))]
    return sparse.vstack(
        [sparse.csr_matrix((w, t, p), shape=(len(p) - 1, graph.shards.rows)) for p, t, w in parts], "csr"
    )
