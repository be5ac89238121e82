"""What a worker must have to take part in a run, and how a worker differs from that."""

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
    """What one worker says of itself."""

    address: str
    host: str
    threads: int
    memory_limit: int
    versions: dict[str, str]
    cpu: str
    format: int
    cache_error: str = ""
    """Why it cannot keep what it compiles."""


@dataclass(frozen=True)
class Requirements:
    """What a run asks of each worker, so that its bytes do not depend on which of them computed what.

    Attributes
    ----------
    dumap, format
        The client's own version, and the format of runs that it writes.
    versions : tuple of (str, str)
        Versions that all workers share; none before the first were asked.
    cpu : str
        The kind of processor that all workers share; empty before the first were asked.
    peak_bytes : int
        What a task and its interpreter may take.
    output, seen : str
        Where the run lies, and the digest of what it says it is of; empty before it is there.
    """

    dumap: str
    format: int
    versions: tuple[tuple[str, str], ...] = ()
    cpu: str = ""
    peak_bytes: int = 0
    output: str = ""
    seen: str = ""


class UnfitWorker(Exception):
    """A worker that must not take part in a run; raised in its process before a task's own code runs."""

    def __init__(self, address: str, reasons: Sequence[str]) -> None:
        super().__init__(address, tuple(reasons))
        self.address, self.reasons = address, tuple(reasons)


def single_thread_limit(memory_limit: int, threads: int) -> int:
    """Return the limit at which a worker with one thread has as much for a task: an interpreter a process, once."""
    if threads <= 1 or not memory_limit:
        return memory_limit
    tasks = memory_limit * PAUSE_FRACTION - INTERPRETER_BYTES
    return max(1, math.floor((tasks / threads + INTERPRETER_BYTES) / PAUSE_FRACTION))


def differences(requirements: Requirements, facts: WorkerFacts) -> list[str]:
    """Describe how a worker differs from the requirements, a line each."""
    found = []
    if facts.versions.get("dumap") != requirements.dumap:
        found.append(f"it has dumap {facts.versions.get('dumap')}, this client {requirements.dumap}: install the same")
    elif facts.format != requirements.format:
        found.append(f"its dumap writes format {facts.format}, this client's {requirements.format}: install the same")
    if facts.cache_error:
        found.append(f"it cannot keep the code that it compiles: {facts.cache_error}")
    for name, wanted in requirements.versions:
        if name != "dumap" and facts.versions.get(name) != wanted:
            found.append(f"{name} is {facts.versions.get(name)}, {wanted} on the other workers or in the run")
    if requirements.cpu and facts.cpu != requirements.cpu:
        found.append(f"its processor is {facts.cpu}, {requirements.cpu} on the other workers or in the run")
    limit = single_thread_limit(facts.memory_limit, facts.threads)
    if facts.memory_limit and limit < requirements.peak_bytes / PAUSE_FRACTION:
        found.append(
            f"its memory limit of {format_bytes(facts.memory_limit)} for {facts.threads} thread"
            f"{'s' * (facts.threads > 1)} is less than the plan needs"
        )
    return found


def common(workers: Sequence[WorkerFacts], record: Mapping[str, Any] | None) -> tuple[dict[str, str], str]:
    """Return the versions and the processor that most workers have: of those that are a run's record's, if any are.

    Parameters
    ----------
    workers : sequence of WorkerFacts
        One or more.
    record : mapping, optional
        The attributes of a run that is to be gone on with: 'versions' and 'cpus'.
    """
    kinds = Counter((tuple(sorted(worker.versions.items())), worker.cpu) for worker in workers)
    if record is not None:
        cpus = record.get("cpus", [])
        known = {kind: n for kind, n in kinds.items() if dict(kind[0]) == record["versions"] and kind[1] in cpus}
        kinds = Counter(known) or kinds
    versions, cpu = max(kinds, key=lambda kind: (kinds[kind], kind))
    return dict(versions), cpu
