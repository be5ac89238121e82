"""The audit's queries, and the number of repairs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from dumap.artifacts.job import Job
from dumap.artifacts.part_names import AUDIT
from dumap.artifacts.rows import read_rows
from dumap.planning.audits import queries_at_once
from dumap.store import Run


def report_part_name(repairs: int) -> str:
    """Name the part that holds the lists' recall after a number of repairs."""
    return f"report-{repairs}"


def count_repairs(run: Run) -> int:
    """Return how many repairs were made and audited."""
    repairs = 0
    while run.is_committed(AUDIT, report_part_name(repairs + 1)):
        repairs += 1
    return repairs


MAP_NEIGHBORS = 15
"""Neighbours of a row on which the map is measured. The audit keeps at least this many exact neighbours."""


def query_groups(job: Job, number: int, chosen: np.ndarray) -> Iterator[tuple[slice, Any]]:
    """Yield slices of `chosen`, the sorted numbers of an audit's queries, with the queries' vectors.

    A slice holds the queries that one task compares at once.
    """
    step = queries_at_once(job.config, job.geometry.values_per_row)
    for group in np.unique(chosen // step).tolist():
        low, high = np.searchsorted(chosen, [group * step, (group + 1) * step]).tolist()
        numbers = chosen[low:high] - group * step
        vectors = read_rows(job, AUDIT, f"queries-{number}", f"vectors-{group}", 0, int(numbers[-1]) + 1)
        yield slice(low, high), vectors[numbers]


def last_audit_part(job: Job, prefix: str) -> str:
    """Name the last audit's part of a kind, such as 'queries-2'."""
    return f"{prefix}-{count_repairs(job.run)}"
