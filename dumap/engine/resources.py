"""What this process may use of its machine: processors and memory."""

from __future__ import annotations

import os

import psutil


def cpu_count() -> int:
    """Return how many processors this process may run on."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    return max(1, len(affinity(0)) if affinity else os.cpu_count() or 1)


def free_memory() -> int:
    """Return how many bytes are free for this process and those that it starts."""
    return int(psutil.virtual_memory().available)
