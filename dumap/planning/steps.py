"""Steps of a stage, and the requests that they make of the store.

A step is one call of a task for many parts. Requests are counted as a bucket bills them: a read is a GET or a HEAD, a
write is a PUT or a LIST, which cost about ten times as much. Removals are free and not counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dumap.planning.geometry import Geometry

MAX_PARTS_TO_SUM = 64
"""Up to this many parts are added up directly. More parts are added up in ranges first."""
COMMIT_READS, COMMIT_WRITES = 3, 2
"""Requests of a commit. Reads: the driver's lock, the next driver's lock, and in a bucket the manifest that was
written. Writes: the part's object and its manifest."""
FOLLOWED_READS, FOLLOWED_WRITES = 1, 1
"""Requests of the driver for a part, at most: it reads the part's facts, and marks the part as dropped."""
OPENED_READS = 20
"""Reads with which a task opens the input."""
CALL_READS, CALL_WRITES = 1, 1
"""Requests of the driver for each call of a step: it lists the parts that are committed."""
STAGE_READS, STAGE_WRITES = 50, 20
"""Requests of the driver for a stage: it checks what is committed of all stages, and commits this one."""
END_READS, END_WRITES = 50, 30
"""Requests of the driver at the end of a run, counted with the last stage: it looks for what can be dropped."""
MANIFEST_BYTES = 1200
"""Bytes of a manifest (measured)."""
MAX_SENDERS = 64
"""Parts that have something for one receiver: cells or shards that lie beside it (assumed)."""
LISTED_AT_ONCE = 1000
"""Names of objects that a bucket lists in one request."""


def ranges_of(count: float) -> int:
    """Return how many ranges `count` parts are indexed or added up in: about the square root."""
    return max(1, math.isqrt(int(count)))


@dataclass(frozen=True)
class Step:
    """One task of a stage for many parts.

    Attributes
    ----------
    tasks : float
        In all calls of the step.
    parts, spans, blocks : float
        For a mean task, the parts whose manifests it reads, the spans of their arrays, and blocks of the input.
    calls : float
        How often the step is called.
    """

    tasks: float
    parts: float = 0.0
    spans: float = 0.0
    blocks: float = 0.0
    calls: float = 1.0

    def task_reads(self, chunks: float) -> float:
        """Return the reads of a mean task, if a block of the input has so many chunks."""
        opened = (OPENED_READS + self.blocks * chunks) if self.blocks else 0
        return self.parts + self.spans + opened + COMMIT_READS


def indexed(senders: float) -> Step:
    """Return the step that indexes what `senders` parts have for others."""
    count = ranges_of(senders)
    return Step(count, senders / count + 1, 2 * senders / count + 1)


def senders_of(count: float) -> float:
    """Return how many of `count` others send something to a receiver."""
    return min(count, MAX_SENDERS)


def cell_pieces(geometry: Geometry, rows: float) -> tuple[float, float]:
    """Return in how many sorted groups a cell has some of its rows, and in how many pieces an array of them is read."""
    parts = min(geometry.groups, max(1.0, rows))
    return parts, parts + rows / max(1, geometry.block_rows // 4)


def received_requests(senders: float) -> tuple[float, float]:
    """Return the parts and the spans that a receiver reads of an index of so many senders."""
    return ranges_of(senders), 2 * ranges_of(senders)


def summed_steps(count: float, arrays: float) -> tuple[Step, ...]:
    """Return the steps that add up arrays of `count` parts: in ranges first if the parts are many."""
    if count <= MAX_PARTS_TO_SUM:
        return (Step(1, count + 2, arrays * count + 1),)
    ranges = ranges_of(count)
    return (
        Step(ranges, count / ranges + 2, arrays * count / ranges + 1),
        Step(1, ranges + 2, arrays * ranges + 1),
    )


def read_requests(steps: Iterable[Step], chunks: float) -> int:
    """Return the reads of a stage, its driver's included."""
    followed = sum(step.tasks * (step.task_reads(chunks) + FOLLOWED_READS) + step.calls * CALL_READS for step in steps)
    return math.ceil(followed + STAGE_READS)


def write_requests(steps: Iterable[Step]) -> int:
    """Return the writes of a stage, its driver's included."""
    each = COMMIT_WRITES + FOLLOWED_WRITES + 1 / LISTED_AT_ONCE
    return math.ceil(sum(step.tasks * each + step.calls * CALL_WRITES for step in steps) + STAGE_WRITES)


def manifest_bytes(steps: Iterable[Step]) -> int:
    """Return the bytes of the manifests that a stage reads."""
    return math.ceil(sum(step.tasks * (step.parts + 1) for step in steps) * MANIFEST_BYTES)
