"""What a worker holds before any data, how much of its limit may be used, and the refusal of what does not fit."""

from __future__ import annotations

import math

from dumap.config import format_bytes
from dumap.errors import BudgetError

MIB = 2**20
EARLIER_BYTES = {"vectors": 250 * MIB, "cells": 270 * MIB, "neighbors": 300 * MIB, "audit": 320 * MIB}
"""What a worker holds in the first stages before any data: Python, the libraries, compiled kernels (measured where
kernels had been compiled before, rounded up)."""
INTERPRETER_BYTES, METRIC_BYTES = 390 * MIB, 160 * MIB
"""What it holds in later ones, with what is not given back of earlier ones, and what pynndescent's distances take
beside that, which repairs and many metrics need (measured, rounded up)."""

PAUSE_FRACTION = 0.8
"""Share of its limit at which a Dask worker stops taking tasks; plans stay under it."""


def interpreter_bytes(stage: str, metric: bool = True) -> int:
    """Return what a worker holds in a stage before any data; with `metric`, pynndescent's distances too."""
    return EARLIER_BYTES.get(stage, INTERPRETER_BYTES) + METRIC_BYTES * (metric and stage not in ("vectors", "cells"))


def process_bytes(peak_bytes: int, threads: int) -> int:
    """Return the bytes of a process with so many tasks of a peak at once: one interpreter, and what each task adds."""
    return INTERPRETER_BYTES + threads * (peak_bytes - INTERPRETER_BYTES)


def check_task(stage: str, taken: int, worker_memory: int, what: str, advice: str) -> None:
    """Refuse a task that takes so many bytes beside the interpreter, where no worker may use as many.

    Parameters
    ----------
    stage : str
    taken, worker_memory : int
        The smallest worker's limit, 0 for none.
    what, advice : str
        What is so large, and what would make it smaller.

    Raises
    ------
    BudgetError
    """
    peak = interpreter_bytes(stage) + taken
    need = math.ceil(peak / PAUSE_FRACTION)
    if worker_memory and need > worker_memory:
        raise BudgetError(
            f"stage {stage}: {what}, for which a worker takes {format_bytes(peak)}, but the smallest worker has "
            f"{format_bytes(worker_memory)}, of which {PAUSE_FRACTION:.0%} may be used: give workers --memory-limit "
            f"{math.ceil(need / 2**20)}MiB or more, or set {advice}"
        )
