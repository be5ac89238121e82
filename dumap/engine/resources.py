"""The processors and the memory that this process may use, as limited by affinity, containers and ulimit.

Dask reads only the root of the control groups, once, when it is imported. The limits of a Slurm or systemd job are on
its own control group or on a group above it, and the free memory changes.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

CGROUP_ROOT = Path("/sys/fs/cgroup")
PROCESS_CGROUPS = Path("/proc/self/cgroup")
MEMORY_FILES = (
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
    ("memory.max", "memory.current", "inactive_file"),  # version 2
    ("memory.high", "memory.current", "inactive_file"),
)
"""Files of a control group: the limit, the memory in use, and the entry of memory.stat for cache that can be freed."""


def _control_groups(controller: str) -> Iterator[Path]:
    """Yield the control groups of this process and all groups above them; each may have a limit."""
    with contextlib.suppress(OSError):  # not Linux
        for line in PROCESS_CGROUPS.read_text().splitlines():
            _, names, path = line.split(":", 2)
            if names and controller not in names.split(","):
                continue
            own_group = PurePosixPath(path.lstrip("/"))
            for root in dict.fromkeys((CGROUP_ROOT / names, CGROUP_ROOT / controller)) if names else (CGROUP_ROOT,):
                yield from (root / group for group in (own_group, *own_group.parents) if ".." not in group.parts)


def _read_words(file: Path) -> list[str]:
    """Read the words of a file; none if it cannot be read."""
    with contextlib.suppress(OSError):
        return file.read_text().split()
    return []


def _read_number(file: Path) -> int | None:
    """Read a number from a file; None if it holds another text, such as 'max', or cannot be read."""
    words = _read_words(file)
    return int(words[0]) if words and words[0].lstrip("-").isdigit() else None


def cpu_count() -> int:
    """Return the number of processors that this process may use; the fraction of a quota is rounded down."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    limits = [float(len(affinity(0)) if affinity else os.cpu_count() or 1)]
    for group in _control_groups("cpu"):
        quota, period = _read_number(group / "cpu.cfs_quota_us"), _read_number(group / "cpu.cfs_period_us")
        quota_and_period = _read_words(group / "cpu.max")
        if len(quota_and_period) == 2 and quota_and_period[0].isdigit():
            quota, period = int(quota_and_period[0]), int(quota_and_period[1])
        if quota and period and quota > 0:
            limits.append(quota / period)
    return max(1, int(min(limits)))


def free_memory() -> int:
    """Return the bytes of memory that this process may still take, by the machine and by every control group."""
    limits = [psutil.virtual_memory().available]
    for group in _control_groups("memory"):
        for limit_name, used_name, cache_name in MEMORY_FILES:
            limit = _read_number(group / limit_name)
            if limit is not None and limit >= 0:
                stat = _read_words(group / "memory.stat")
                cache = dict(zip(stat[::2], stat[1::2], strict=False)).get(cache_name, "0")
                limits.append(limit - max(0, (_read_number(group / used_name) or 0) - int(cache)))
    return max(0, min(limits))


def process_memory_limit() -> int | None:
    """Return the bytes of memory that ulimit allows one process; None without a limit."""
    limit_types = (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_RSS)
    limits = [limit for limit, _ in map(resource.getrlimit, limit_types) if limit != resource.RLIM_INFINITY]
    return min(limits, default=None)
