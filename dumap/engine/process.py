"""What this process computes with, and how a task runs in it, whatever engine sent the task."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from importlib.metadata import version
from typing import Any

import numba
from llvmlite.binding import get_host_cpu_name
from threadpoolctl import threadpool_info

import dumap
from dumap.engine import memory
from dumap.kernels.threads import Counted, one_thread
from dumap.stages import Job
from dumap.store import requests_at_once

LIBRARIES = ("numpy", "numba", "scipy", "scikit-learn", "pynndescent", "zarr")
"""Libraries on whose versions the answer may depend."""
REQUESTS = 4
"""Requests that Zarr makes at once for one array: engines multiply them by their tasks."""


def versions() -> dict[str, str]:
    """Return the versions that an answer may depend on."""
    found = {"dumap": dumap.__version__, "python": platform.python_version(), "machine": platform.machine()}
    return found | {name: version(name) for name in LIBRARIES}


def cpu() -> str:
    """Name the processors that numba and the BLAS compute for: other ones may round otherwise."""
    import scipy.linalg  # noqa: F401  (brings its own BLAS, which then is there wherever this is asked)

    blas = {pool["architecture"] for pool in threadpool_info() if "architecture" in pool}
    return "/".join([os.environ.get("NUMBA_CPU_NAME") or get_host_cpu_name(), *sorted(blas)])


@contextmanager
def _shared() -> Iterator[None]:
    """Make the settings that tasks of one process share."""
    memory.reset_peak()
    with requests_at_once(REQUESTS), memory.reused():
        yield


_tasks = Counted(_shared)


@contextmanager
def pinned() -> Iterator[None]:
    """Hold libraries to one thread while a task runs; once no task runs in the process, all is as it was."""
    threads = numba.get_num_threads()
    numba.set_num_threads(1)  # of this thread alone
    try:
        with _tasks, one_thread():
            yield
    finally:
        numba.set_num_threads(threads)


def run_task(
    task: Callable[..., None],
    job: Job,
    part: str,
    options: dict[str, Any],
    tick: Callable[[float, float], None],
) -> dict[str, Any]:
    """Run one task: libraries on one thread, time and peak memory measured.

    Returns
    -------
    dict
        'seconds', and 'peak_bytes': the most that the process held while this or any task beside it ran.
    """
    start = time.perf_counter()
    with pinned():
        task(replace(job, tick=tick), part, **options)
        return {"peak_bytes": memory.peak(), "seconds": time.perf_counter() - start}
