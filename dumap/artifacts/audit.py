"""The audit: its queries, and which lists it was of."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from dumap.artifacts.job import Job
from dumap.artifacts.parts import AUDIT
from dumap.planning.audits import queries_at_once
from dumap.store import Run


def report_name(repairs: int) -> str:
    """Name the part of stage audit that commits the lists after so many repairs, and says how good they are."""
    return f"report-{repairs}"


def repairs_made(run: Run) -> int:
    """Return how many repairs the lists have had, and an audit after each."""
    repairs = 0
    while run.is_committed(AUDIT, report_name(repairs + 1)):
        repairs += 1
    return repairs


NEAR = 15
"""Exact neighbours that are kept at the least: the map is judged by so many."""


def query_groups(job: Job, number: int, count: int) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield slices of the first `count` queries of a round with their vectors: as many as a task holds at once."""
    step = queries_at_once(job.config, job.geometry.dims)
    for group, low in enumerate(range(0, count, step)):
        high = min(count, low + step)
        yield slice(low, high), job.run.read(AUDIT, f"queries-{number}", f"vectors-{group}", 0, high - low)


def audited(job: Job, prefix: str) -> str:
    """Name a part of the last audit."""
    return f"{prefix}-{repairs_made(job.run)}"
