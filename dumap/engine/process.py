"""What this process computes with, and how a task runs in it, whatever engine sent the task."""

from __future__ import annotations

import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache
from importlib.metadata import version
from typing import Any

import numba
from llvmlite.binding import get_host_cpu_name
from numba.core.event import Event, register
from numba.core.event import Listener as EventListener
from threadpoolctl import threadpool_info

from dumap.artifacts.job import Job
from dumap.engine import memory
from dumap.errors import DumapError, StorageError, TaskError
from dumap.kernels import hashing
from dumap.kernels.threads import SharedSetting, one_thread
from dumap.planning.budget import compiling_bytes
from dumap.store import requests_at_once
from dumap.version import __version__

LIBRARIES = ("numpy", "numba", "scipy", "scikit-learn", "pynndescent", "zarr")
"""Libraries on whose versions the answer may depend."""
PAGE = 4096
"""Bytes that a file takes at the least."""
REQUESTS = 4
"""Requests that Zarr makes at once for one array: engines multiply them by their tasks."""


def versions() -> dict[str, str]:
    """Return the versions that an answer may depend on."""
    found = {"dumap": __version__, "python": platform.python_version(), "machine": platform.machine()}
    return found | {name: version(name) for name in LIBRARIES}


def cpu() -> str:
    """Name the processors that numba and the BLAS compute for: other ones may round otherwise."""
    import scipy.linalg  # noqa: F401  (brings its own BLAS, which then is there wherever this is asked)

    blas = {pool["architecture"] for pool in threadpool_info() if "architecture" in pool}
    return "/".join([os.environ.get("NUMBA_CPU_NAME") or get_host_cpu_name(), *sorted(blas)])


def cache_error() -> str:
    """Say what keeps this process from writing to where numba keeps compiled code; nothing where it can."""
    folder = hashing.draws.stats.cache_path
    if folder is None:  # numba keeps no code on disk
        return ""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(PAGE))
    except OSError as error:
        return f"{error.strerror} ({folder})"
    return ""


@contextmanager
def _shared() -> Iterator[None]:
    """Make the settings that tasks of one process share."""
    memory.reset_peak()
    with requests_at_once(REQUESTS), memory.reused():
        yield


_tasks = SharedSetting(_shared)


class Baseline(EventListener):
    """What the process holds before the tasks of a stage take any memory, and what compiling their kernels may take."""

    def __init__(self) -> None:
        self._lock, self._stage, self._held, self._compiled = threading.Lock(), "", 0, 0
        register("numba:compile", self)

    def on_start(self, event: Event) -> None:
        """Note that a kernel is compiled: none was cached."""
        self._compiled += 1

    def on_end(self, event: Event) -> None:
        """Note nothing."""

    def begins(self, stage: str) -> None:
        """Measure the memory held if a task is the first of its stage in this process."""
        with self._lock:
            if stage != self._stage:
                self._stage, self._held, self._compiled = stage, memory.held(), 0

    @property
    def bytes(self) -> int:
        """The bytes that are no task's own."""
        return self._held + compiling_bytes(self._compiled)


@cache
def _baseline() -> Baseline:
    return Baseline()


@contextmanager
def pinned() -> Iterator[None]:
    """Hold libraries to one thread while tasks run, and undo that when the last one ends."""
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
        'seconds'; 'peak_bytes', the most that the process held while this or any task beside it ran; and 'held_bytes',
        what it held before the first task of the stage, with what compiling may take where that was needed.
    """
    start = time.perf_counter()
    with pinned():
        _baseline().begins(job.title(task))
        task(replace(job, tick=tick), part, **options)
        seconds = time.perf_counter() - start
        return {"peak_bytes": memory.peak(), "held_bytes": _baseline().bytes, "seconds": seconds}


def named_error(error: BaseException, name: str) -> BaseException:
    """Return an error that names the part; dumap's own errors, and what is no Exception, unchanged."""
    if isinstance(error, DumapError) or not isinstance(error, Exception):
        return error
    if isinstance(error, OSError):
        named: DumapError = StorageError(f"{name}: {error}")
    else:
        named = TaskError(f"{name} failed: {type(error).__name__}: {error}")
    named.__cause__ = error
    return named
