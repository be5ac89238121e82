"""What a run requires of each worker, and how a worker differs from the requirements."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from dumap.config import format_bytes
from dumap.planning.budget import INTERPRETER_BYTES, PAUSE_FRACTION


@dataclass(frozen=True)
class WorkerFacts:
    """What a worker reports about itself."""

    address: str
    host: str
    threads: int
    memory_limit: int
    versions: dict[str, str]
    cpu: str
    format: int
    cache_error: str = ""
    """Why the worker cannot store compiled code; empty if it can."""


@dataclass(frozen=True)
class WorkerRequirements:
    """What a run requires of each worker, so that the bytes of parts do not depend on the worker that made them.

    Attributes
    ----------
    dumap, format
        The client's version of dumap, and the format of the runs that it writes.
    versions : tuple of (str, str)
        The versions that all workers must have; empty before the first workers have answered.
    cpu : str
        The kind of processor that all workers must have; empty before the first workers have answered.
    peak_bytes : int
        The memory that a task and its interpreter may take.
    output, identity_digest : str
        The location of the run, and the digest of its manifest `identity/run`; empty before the run exists.
    """

    dumap: str
    format: int
    versions: tuple[tuple[str, str], ...] = ()
    cpu: str = ""
    peak_bytes: int = 0
    output: str = ""
    identity_digest: str = ""


class UnfitWorkerError(Exception):
    """A worker does not meet the requirements. The worker raises it before the code of a task runs."""

    def __init__(self, address: str, reasons: Sequence[str]) -> None:
        super().__init__(address, tuple(reasons))
        self.address, self.reasons = address, tuple(reasons)


def single_thread_memory_limit(memory_limit: int, threads: int) -> int:
    """Return the memory limit at which a worker with one thread could give a task as much memory.

    A worker's memory holds one interpreter, and a task for each thread.
    """
    if threads <= 1 or not memory_limit:
        return memory_limit
    tasks_bytes = memory_limit * PAUSE_FRACTION - INTERPRETER_BYTES
    return max(1, math.floor((tasks_bytes / threads + INTERPRETER_BYTES) / PAUSE_FRACTION))


def describe_differences(requirements: WorkerRequirements, facts: WorkerFacts) -> list[str]:
    """Describe how a worker differs from the requirements, one line for each difference."""
    descriptions = []
    if facts.versions.get("dumap") != requirements.dumap:
        descriptions.append(
            f"it has dumap {facts.versions.get('dumap')}, this client {requirements.dumap}: install the same"
        )
    elif facts.format != requirements.format:
        descriptions.append(
            f"its dumap writes format {facts.format}, this client's {requirements.format}: install the same"
        )
    if facts.cache_error:
        descriptions.append(f"it cannot keep the code that it compiles: {facts.cache_error}")
    for name, required in requirements.versions:
        if name != "dumap" and facts.versions.get(name) != required:
            descriptions.append(f"{name} is {facts.versions.get(name)}, {required} on the other workers or in the run")
    if requirements.cpu and facts.cpu != requirements.cpu:
        descriptions.append(f"its processor is {facts.cpu}, {requirements.cpu} on the other workers or in the run")
    usable_bytes = single_thread_memory_limit(facts.memory_limit, facts.threads)
    if facts.memory_limit and usable_bytes < requirements.peak_bytes / PAUSE_FRACTION:
        descriptions.append(
            f"its memory limit of {format_bytes(facts.memory_limit)} for {facts.threads} thread"
            f"{'s' * (facts.threads > 1)} is less than the plan needs"
        )
    return descriptions


def most_common_installation(
    workers: Sequence[WorkerFacts], record: Mapping[str, Any] | None
) -> tuple[dict[str, str], str]:
    """Return the versions and the processor that most workers have.

    Parameters
    ----------
    workers : sequence of WorkerFacts
        One or more.
    record : mapping, optional
        The 'versions' and 'cpus' of a run that is continued. If any workers match it, only those are counted.
    """
    installations = Counter((tuple(sorted(worker.versions.items())), worker.cpu) for worker in workers)
    if record is not None:
        cpus = record.get("cpus", [])
        recorded = {
            installation: count
            for installation, count in installations.items()
            if dict(installation[0]) == record["versions"] and installation[1] in cpus
        }
        installations = Counter(recorded) or installations
    versions, cpu = max(installations, key=lambda installation: (installations[installation], installation))
    return dict(versions), cpu
