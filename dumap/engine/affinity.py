"""Which worker to prefer for a task: the one that ran the last task of the same unit, which it has cached."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Mapping


class UnitWorkers:
    """The workers that ran the last tasks of units, and the parts that have preferred each of them in a step.

    A worker is preferred for no more than its share of a step's parts, by threads, so that workers that join get parts.
    """

    def __init__(self) -> None:
        self._last_workers: dict[Hashable, str] = {}
        self._preferred = Counter[str]()

    def begin_step(self) -> None:
        """Begin a step: no part has preferred a worker."""
        self._preferred.clear()

    def prefer(self, unit: Hashable, parts: int, fit_workers: Mapping[str, int]) -> str | None:
        """Return the worker to prefer for a unit in a step of `parts` parts; None if it has left or has its share.

        `fit_workers` are the threads of each worker.
        """
        worker = self._last_workers.get(unit, "")
        if worker not in fit_workers:
            return None
        share = math.ceil(parts * fit_workers[worker] / sum(fit_workers.values()))
        if self._preferred[worker] >= share:
            return None
        self._preferred[worker] += 1
        return worker

    def record(self, unit: Hashable, worker: str) -> None:
        """Record the worker that ran a unit's task."""
        self._last_workers[unit] = worker
