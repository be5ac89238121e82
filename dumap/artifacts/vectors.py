"""The results of stage vectors: each row's status, the samples, and the duplicates."""

from __future__ import annotations

import numpy as np

from dumap.artifacts.job import Job
from dumap.artifacts.part_names import VECTORS, part_name, part_names, sum_fact
from dumap.kernels import hashing
from dumap.store import Run

DROPPED, ISOLATED, ZERO, DUPLICATE = 1, 2, 4, 8
"""Flags of a row's status. A duplicate of an earlier row has the earlier row's flags too."""
STATUS_ATTRIBUTES = {
    "long_name": "what became of the row",
    "flag_masks": [DROPPED, ISOLATED, ZERO, DUPLICATE],
    "flag_meanings": "dropped isolated zero duplicate",
    "comment": "0: embedded; 255: not there yet",
}
EMBEDDING_ATTRIBUTES = {"long_name": "UMAP coordinates"}
"""The attributes of the public arrays of status and coordinates, by the CF conventions."""


def is_query(job: Job, rows: np.ndarray, number: int, population: int) -> np.ndarray:
    """Return which rows are queries of audit `number`, (n,) bool. Audits share queries only if rows are few."""
    query_count = job.config.audit.queries
    if query_count >= population:
        return np.ones(len(rows), bool)
    window = int(query_count / population * 2**64)
    window_start = np.uint64(number * window % 2**64)
    return hashing.draw_words(job.config.seed, hashing.QUERIES, rows) - window_start < np.uint64(window)


def sample_parts(job: Job) -> list[str]:
    """Name the parts that hold the blocks' samples."""
    return part_names("distinct" if job.config.input.unique else "block", job.geometry.blocks)


def read_sample(job: Job) -> np.ndarray:
    """Read the sample of all blocks, (m, geometry.dims) float32."""
    samples = (job.run.read(VECTORS, part, "sample") for part in sample_parts(job))
    return np.concatenate([sample if job.geometry.is_sparse else job.prepare_rows(sample) for sample in samples])


def read_duplicates(run: Run, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a block's duplicates, counted from the block's first row, and for each the first row of the input that
    equals it.
    """
    name = part_name("distinct", block)
    return run.read(VECTORS, name, "duplicates"), run.read(VECTORS, name, "firsts")


def read_repeated_rows(run: Run, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return a block's rows that have duplicates, counted from the block's first row, and how often each row occurs."""
    name = part_name("distinct", block)
    return run.read(VECTORS, name, "repeated"), run.read(VECTORS, name, "times")


def read_status(run: Run, block: int) -> np.ndarray:
    """Read the status of a block's rows, as stage vectors found it."""
    return run.read(VECTORS, part_name("block", block), "status")


def is_left_out(job: Job, block: int) -> np.ndarray:
    """Return which of a block's rows are left out of cells, (n,) bool: rows that are not finite, and duplicates."""
    out = (read_status(job.run, block) & DROPPED) > 0
    if job.config.input.unique:
        out[read_duplicates(job.run, block)[0]] = True
    return out


def count_distinct_rows(job: Job) -> int:
    """Return the number of rows without the duplicates that are left out."""
    duplicates = job.config.input.unique and sum_fact(
        job.run, VECTORS, part_names("distinct", job.geometry.blocks), "duplicates"
    )
    return job.geometry.rows - int(duplicates)
