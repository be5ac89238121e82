"""The versions and the processor of this process, and how a task runs in it. Both engines use this module."""

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
from dumap.planning.budget import compiled_bytes
from dumap.store import limit_zarr_requests
from dumap.version import __version__

LIBRARIES = ("numpy", "numba", "scipy", "scikit-learn", "pynndescent", "zarr")
"""Libraries whose versions may change the bytes of a run."""
PAGE_BYTES = 4096
"""The smallest size of a file on disk, in bytes."""
ZARR_REQUESTS = 4
"""Requests that Zarr makes at once for one array in one task."""


def versions() -> dict[str, str]:
    """Return the versions that may change the bytes of a run, by name."""
    library_versions = {"dumap": __version__, "python": platform.python_version(), "machine": platform.machine()}
    return library_versions | {name: version(name) for name in LIBRARIES}


def cpu_name() -> str:
    """Return the processor types that numba and BLAS generate code for. Other types may round differently."""
    import scipy.linalg  # noqa: F401  (loads scipy's BLAS, so that every process names the same libraries)

    blas = {pool["architecture"] for pool in threadpool_info() if "architecture" in pool}
    return "/".join([os.environ.get("NUMBA_CPU_NAME") or get_host_cpu_name(), *sorted(blas)])


def cache_error() -> str:
    """Return why this process cannot write to numba's cache of compiled code; empty if it can."""
    folder = hashing.draw_words.stats.cache_path
    if folder is None:  # numba stores no code on disk
        return ""
    try:
        os.makedirs(folder, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, buffering=0) as file:
            file.write(bytes(PAGE_BYTES))
    except OSError as error:
        return f"{error.strerror} ({folder})"
    return ""


@contextmanager
def _apply_task_settings() -> Iterator[None]:
    """Apply the settings that the tasks of one process share, as a context."""
    memory.reset_peak()
    with limit_zarr_requests(ZARR_REQUESTS), memory.reuse_freed_memory():
        yield


_running_tasks = SharedSetting(_apply_task_settings)


class BaselineMemory(EventListener):
    """The memory of the process that is no task's: its memory before a stage's first task, and that for compiling."""

    def __init__(self) -> None:
        self._lock, self._stage, self._held_bytes, self._compiled_count = threading.Lock(), "", 0, 0
        register("numba:compile", self)

    def on_start(self, event: Event) -> None:
        """Count a kernel that numba compiles because its cache lacks it."""
        self._compiled_count += 1

    def on_end(self, event: Event) -> None:
        """Do nothing."""

    def begin_stage(self, stage: str) -> None:
        """Measure the memory of the process if a task is the first of its stage here."""
        with self._lock:
            if stage != self._stage:
                self._stage, self._held_bytes, self._compiled_count = stage, memory.memory_now(), 0

    @property
    def baseline_bytes(self) -> int:
        """The memory that is no task's, in bytes."""
        return self._held_bytes + compiled_bytes(self._compiled_count)


@cache
def _baseline_memory() -> BaselineMemory:
    """Return the process's only `BaselineMemory`."""
    return BaselineMemory()


@contextmanager
def limit_to_one_thread() -> Iterator[None]:
    """Limit libraries to one thread while tasks run. The last task that ends restores their threads."""
    previous_threads = numba.get_num_threads()
    numba.set_num_threads(1)  # for this thread only
    try:
        with _running_tasks, one_thread():
            yield
    finally:
        numba.set_num_threads(previous_threads)


def run_task(
    task: Callable[..., None],
    job: Job,
    part: str,
    options: dict[str, Any],
    report_progress: Callable[[float, float], None],
) -> dict[str, Any]:
    """Run one task with libraries limited to one thread, and measure its time and memory.

    Returns
    -------
    dict
        'seconds'; 'peak_bytes', the peak memory of the process while this task and the tasks beside it ran; and
        'held_bytes', the memory of the process before the first task of the stage, and for compiling kernels.
    """
    began_at = time.perf_counter()
    with limit_to_one_thread():
        _baseline_memory().begin_stage(job.step_title(task))
        task(replace(job, report_progress=report_progress), part, **options)
        seconds = time.perf_counter() - began_at
        return {"peak_bytes": memory.peak_memory(), "held_bytes": _baseline_memory().baseline_bytes, "seconds": seconds}


def name_task_in_error(error: BaseException, name: str) -> BaseException:
    """Return an error that names the part. dumap's own errors, and signals such as KeyboardInterrupt, are unchanged."""
    if isinstance(error, DumapError) or not isinstance(error, Exception):
        return error
    if isinstance(error, OSError):
        named_error: DumapError = StorageError(f"{name}: {error}")
    else:
        named_error = TaskError(f"{name} failed: {type(error).__name__}: {error}")
    named_error.__cause__ = error
    return named_error
