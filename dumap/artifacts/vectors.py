"""Vectors as they were checked: each row's status, the samples, and which rows are copies."""

from __future__ import annotations

import numpy as np

from dumap.artifacts.job import Job
from dumap.artifacts.parts import VECTORS, numbered, total
from dumap.kernels import hashing
from dumap.store import Run

DROPPED, ISOLATED, ZERO, COPY = 1, 2, 4, 8
"""Flags of a row's status; a copy of an earlier row has that row's flags beside its own."""
FLAGS = {
    "long_name": "what became of the row",
    "flag_masks": [DROPPED, ISOLATED, ZERO, COPY],
    "flag_meanings": "dropped isolated zero copy",
    "comment": "0: embedded; 255: not there yet",
}
COORDINATES = {"long_name": "UMAP coordinates"}
"""What the public arrays of status and of coordinates say of themselves, in the words of the CF conventions."""


def drawn_queries(job: Job, rows: np.ndarray, number: int, among: int) -> np.ndarray:
    """Tell which rows are queries of one round of the audit; those of another round, as long as there are others."""
    wanted = job.config.quality.queries
    if wanted >= among:
        return np.ones(len(rows), bool)
    width = int(wanted / among * 2**64)
    start = np.uint64(number * width % 2**64)
    return hashing.draws(job.config.seed, hashing.QUERIES, rows) - start < np.uint64(width)


def samples(job: Job) -> list[str]:
    """Name the parts that hold the blocks' samples."""
    return numbered("distinct" if job.config.input.unique else "block", job.geometry.blocks)


def drawn(job: Job) -> np.ndarray:
    """Read the sample of all blocks as it is embedded, (m, geometry.dims) float32."""
    return np.concatenate([job.place(job.run.read(VECTORS, part, "sample")) for part in samples(job)])


def copies_of(run: Run, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which of a block's rows are copies, counted from its first, and the rows they are copies of."""
    name = numbered("distinct", block + 1)[-1]
    return run.read(VECTORS, name, "copies"), run.read(VECTORS, name, "firsts")


def repeated_in(run: Run, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return which of a block's rows have copies, counted from its first, and how many places they take."""
    name = numbered("distinct", block + 1)[-1]
    return run.read(VECTORS, name, "repeated"), run.read(VECTORS, name, "times")


def status_of(run: Run, block: int) -> np.ndarray:
    """Read the status of a block's rows, as they were checked."""
    return run.read(VECTORS, numbered("block", block + 1)[-1], "status")


def left_out(job: Job, block: int) -> np.ndarray:
    """Tell which of a block's rows are not embedded by themselves: those that are not finite, and copies, (n,) bool."""
    out = (status_of(job.run, block) & DROPPED) > 0
    if job.config.input.unique:
        out[copies_of(job.run, block)[0]] = True
    return out


def distinct_rows(job: Job) -> int:
    """Return how many rows there are beside copies that are left out."""
    copies = job.config.input.unique and total(job.run, VECTORS, numbered("distinct", job.geometry.blocks), "copies")
    return job.geometry.rows - int(copies)
