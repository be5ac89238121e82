"""What this process may use of its machine: processors and memory, as affinity, containers and ulimit leave them.

Dask looks at the root of the control groups alone, when it is imported; a job of Slurm or systemd has its limits
further down, or on a group above its own, and what is free changes.
"""

from __future__ import annotations

import contextlib
import os
import resource
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import psutil

GROUPS = Path("/sys/fs/cgroup")
OWN_GROUPS = Path("/proc/self/cgroup")
MEMORY_FILES = (
    ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),  # version 1
    ("memory.max", "memory.current", "inactive_file"),  # version 2
    ("memory.high", "memory.current", "inactive_file"),
)
"""Files of control groups: a limit, the memory used, and how much of that is cache, which can be freed."""


def _groups(controller: str) -> Iterator[Path]:
    """Yield the control groups that this process is in, and all above them: any of them may have a limit."""
    with contextlib.suppress(OSError):  # no Linux
        for line in OWN_GROUPS.read_text().splitlines():
            _, names, own = line.split(":", 2)
            if names and controller not in names.split(","):
                continue
            below = PurePosixPath(own.lstrip("/"))
            for root in dict.fromkeys((GROUPS / names, GROUPS / controller)) if names else (GROUPS,):
                yield from (root / group for group in (below, *below.parents) if ".." not in group.parts)


def _words(file: Path) -> list[str]:
    with contextlib.suppress(OSError):
        return file.read_text().split()
    return []


def _number(file: Path) -> int | None:
    """Read a number; None where there is none, as for 'max'."""
    words = _words(file)
    return int(words[0]) if words and words[0].lstrip("-").isdigit() else None


def cpu_count() -> int:
    """Return how many processes can compute at once; what a quota has beyond whole processors is left to the driver."""
    affinity = getattr(os, "sched_getaffinity", None)  # not on every system
    found = [float(len(affinity(0)) if affinity else os.cpu_count() or 1)]
    for group in _groups("cpu"):
        quota, period = _number(group / "cpu.cfs_quota_us"), _number(group / "cpu.cfs_period_us")
        both = _words(group / "cpu.max")
        if len(both) == 2 and both[0].isdigit():
            quota, period = int(both[0]), int(both[1])
        if quota and period and quota > 0:
            found.append(quota / period)
    return max(1, int(min(found)))


def free_memory() -> int:
    """Return the bytes of memory that may still be used: of the machine, and of every group this process is in."""
    found = [psutil.virtual_memory().available]
    for group in _groups("memory"):
        for limit_name, used_name, cache_name in MEMORY_FILES:
            limit = _number(group / limit_name)
            if limit is not None and limit >= 0:
                stat = _words(group / "memory.stat")
                cache = dict(zip(stat[::2], stat[1::2], strict=False)).get(cache_name, "0")
                found.append(limit - max(0, (_number(group / used_name) or 0) - int(cache)))
    return max(0, min(found))


def process_memory() -> int | None:
    """Return the bytes that ulimit lets one process have, None without a limit."""
    kinds = (resource.RLIMIT_AS, resource.RLIMIT_DATA, resource.RLIMIT_RSS)
    found = [limit for limit, _ in map(resource.getrlimit, kinds) if limit != resource.RLIM_INFINITY]
    return min(found, default=None)
