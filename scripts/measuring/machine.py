"""What a figure was measured on, and when: written beside every figure."""

from __future__ import annotations

import os
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PROCESSOR_FEATURES = (
    *("sse4_2", "avx2", "fma", "avx512f", "avx512bw", "avx512_vnni", "avx_vnni", "amx_int8"),
    *("asimd", "asimddp"),
)
"""Instructions that matter to products of bytes and of floats, as Linux names them."""
LIBRARIES = ("dumap-umap", "numpy", "numba", "llvmlite", "scipy", "scikit-learn", "pynndescent", "zarr", "distributed")
ENVIRONMENT_VARIABLES = (
    "NUMBA_CPU_NAME",
    "NUMBA_CPU_FEATURES",
    "OPENBLAS_CORETYPE",
    "NPY_DISABLE_CPU_FEATURES",
    "OMP_NUM_THREADS",
)
"""Variables of the environment that decide which instructions, or how many threads, are used."""


def count_cores() -> int:
    """Return how many processors this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _describe_processor() -> dict[str, Any]:
    """Return the processor's name and those of `PROCESSOR_FEATURES` that it has, where the system tells."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return {"name": platform.processor() or platform.machine(), "features": []}
    facts: dict[str, str] = {}
    for line in lines:
        name, _, value = line.partition(":")
        facts.setdefault(name.strip(), value.strip())
    flags = set(facts.get("flags", facts.get("Features", "")).split())
    return {
        "name": facts.get("model name", platform.machine()),
        "features": [name for name in PROCESSOR_FEATURES if name in flags],
    }


def _library_versions() -> dict[str, str]:
    """Return the versions of the libraries that are there."""
    versions = {"python": platform.python_version()}
    for name in LIBRARIES:
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            continue
    return versions


def _current_commit() -> str | None:
    """Return the commit of the repository that this file lies in, with '+' where files have changed since."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        head = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
        status = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return head.stdout.strip() + ("+" if status.stdout.strip() else "")


def describe_machine() -> dict[str, Any]:
    """Return machine, versions, environment, commit, date and command of this process."""
    memory_bytes = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(["python", *sys.orig_argv[1:]]),
        "commit": _current_commit(),
        "machine": {
            "system": f"{platform.system()} {platform.release()} {platform.machine()}",
            "processor": _describe_processor(),
            "cores": count_cores(),
            "memory_bytes": memory_bytes,
            "load_before": round(os.getloadavg()[0], 2),
        },
        "environment": {name: os.environ[name] for name in ENVIRONMENT_VARIABLES if name in os.environ},
        "versions": _library_versions(),
    }
