"""A worker's memory: its peak while tasks run, and the reuse of freed memory."""

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

KEPT_BYTES = 32 * 2**20
"""Arrays of up to so many bytes are given the memory of freed ones: what glibc comes to by itself."""
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
TRIM, MMAP = "MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"
"""Variables of the environment that set glibc's thresholds; with the first, none grows by itself any more."""
MMAP_BYTES = 128 * 2**10
"""glibc's own threshold of what is given back as it is freed, where it does not grow."""


def _c_library() -> ctypes.CDLL | None:
    """Return the C library where it is glibc."""
    library = ctypes.CDLL(None)
    return library if hasattr(library, "mallopt") and hasattr(library, "malloc_trim") else None


@contextlib.contextmanager
def reused() -> Iterator[None]:
    """Use freed memory again at once, and give it back at the end.

    Dask's nannies have every freed array given back as it is freed; to fault its pages in anew for the next one takes
    a quarter to a half of the time of searching a cell (measured). Where nobody does so, glibc keeps as much by itself.
    """
    library = _c_library()
    if library is None:
        yield
        return
    threshold = os.environ.get(TRIM)
    if threshold is not None:
        library.mallopt(M_MMAP_THRESHOLD, KEPT_BYTES)
        library.mallopt(M_TRIM_THRESHOLD, 2 * KEPT_BYTES)
    try:
        yield
    finally:
        if threshold is not None:
            library.mallopt(M_MMAP_THRESHOLD, int(os.environ.get(MMAP, MMAP_BYTES)))
            library.mallopt(M_TRIM_THRESHOLD, int(threshold))
        library.malloc_trim(0)


def reset_peak() -> None:
    """Forget the process's peak, where the system lets it."""
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def held() -> int:
    """Return the bytes that the process holds now."""
    return int(psutil.Process().memory_info().rss)


def peak() -> int:
    """Return the most bytes that the process held since `reset_peak`, or ever."""
    with contextlib.suppress(OSError):
        match = re.search(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
        if match:
            return int(match[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
