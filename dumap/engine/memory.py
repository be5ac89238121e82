"""The memory of a process: its peak while tasks run, and the reuse of freed memory."""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import resource
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil

REUSED_MEMORY_BYTES = 32 * 2**20
"""Memory of freed arrays up to this size is reused. glibc's own threshold grows to the same size."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
TRIM_VARIABLE, MMAP_VARIABLE = "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"
"""Environment variables that set glibc's thresholds. If the first is set, glibc raises neither threshold itself."""
DEFAULT_MMAP_BYTES = 128 * 2**10
"""glibc's initial threshold: larger arrays are returned to the system when they are freed."""


def _find_glibc() -> ctypes.CDLL | None:
    """Return the C library if it is glibc, else None."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


@contextlib.contextmanager
def reuse_freed_memory() -> Iterator[None]:
    """Reuse freed memory in this context, and return it to the system at the end.

    Dask's nannies set the threshold so that every freed array is returned to the system. Faulting in the pages of the
    next array then takes a quarter to a half of the time of searching a cell (measured). Without a nanny glibc reuses
    as much memory by itself.
    """
    library = _find_glibc()
    if library is None:
        yield
        return
    threshold = os.environ.get(TRIM_VARIABLE)
    if threshold is not None:
        library.mallopt(M_MMAP_THRESHOLD, REUSED_MEMORY_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, 2 * REUSED_MEMORY_BYTES)
    try:
        yield
    finally:
        if threshold is not None:
            library.mallopt(M_MMAP_THRESHOLD, int(os.environ.get(MMAP_VARIABLE, DEFAULT_MMAP_BYTES)))
            library.mallopt(M_TRIM_THRESHOLD, int(threshold))
        library.malloc_trim(0)


def reset_peak() -> None:
    """Reset the process's peak to its present memory, if the system supports it."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def memory_now() -> int:
    """Return the memory of the process now, in bytes."""
    return int(psutil.Process().memory_info().rss)


def peak_memory() -> int:
    """Return the peak memory of the process since `reset_peak`, or since its start, in bytes."""
    with contextlib.suppress(OSError):
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if match:
            return int(match[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
