"""What happens around a task in the process that runs it, and what such a process says of itself."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import numba
from distributed import Worker, get_worker
from llvmlite.binding import get_host_cpu_name
from threadpoolctl import threadpool_info

import dumap
from dumap.engine import memory
from dumap.errors import StorageError
from dumap.kernels.threads import one_thread
from dumap.stages import Job
from dumap.store import Run, probe, set_threads

SETTLING_SECONDS = 0.5
"""A worker that dies as soon as it is there may not be started again: its nanny is still waiting for it."""
TOPIC = "dumap"
LIBRARIES = ("numpy", "numba", "scipy", "scikit-learn", "pynndescent", "zarr")
"""Libraries on whose versions the answer may depend."""


@dataclass(frozen=True)
class WorkerFacts:
    """What one worker says of itself."""

    address: str
    host: str
    threads: int
    memory_limit: int
    versions: dict[str, str]
    cpu: str


def versions() -> dict[str, str]:
    """Return the versions that an answer may depend on."""
    from importlib.metadata import version

    found = {"dumap": dumap.__version__, "python": platform.python_version(), "machine": platform.machine()}
    return found | {name: version(name) for name in LIBRARIES}


def cpu() -> str:
    """Name the processors that numba and the BLAS compute for: other ones may round otherwise."""
    blas = {pool["architecture"] for pool in threadpool_info() if "architecture" in pool}
    return "/".join([os.environ.get("NUMBA_CPU_NAME") or get_host_cpu_name(), *sorted(blas)])


@cache
def _met() -> float:
    """Return when this process was first asked for anything."""
    return time.monotonic()


def facts(dask_worker: Worker) -> dict[str, Any]:
    """Say what a worker has and runs on."""
    _met()
    return {
        "memory_limit": dask_worker.memory_manager.memory_limit or 0,
        "versions": versions(),
        "cpu": cpu(),
    }


def see(output: str, key: str) -> None:
    """Fail unless this worker sees an object that the client wrote, and may write as well."""
    run = Run(output)
    if run.get(key) is None:
        raise StorageError(f"it does not see {output} as this client does: name a shared folder or a URL")
    probe(output)


def _settle_in(worker: Worker) -> None:
    if worker.nanny is not None:
        time.sleep(max(0.0, _met() + SETTLING_SECONDS - time.monotonic()))


def execute(task: Callable[..., None], job: Job, part: str, options: dict[str, Any]) -> dict[str, Any]:
    """Run one task on the worker: libraries on one thread, peak memory measured."""
    worker, last = get_worker(), 0.0
    _settle_in(worker)

    def tick(done: float, total: float) -> None:
        nonlocal last
        if time.monotonic() - last > 1.0:
            last = time.monotonic()
            worker.log_event(TOPIC, {"run": job.config.output, "part": part, "done": done, "total": total})

    numba.set_num_threads(1)
    set_threads(1)
    memory.reset_peak()
    start = time.perf_counter()
    with one_thread(), memory.reused():
        task(replace(job, tick=tick), part, **options)
    return {"peak_bytes": memory.peak(), "seconds": time.perf_counter() - start}
