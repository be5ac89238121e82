"""Fingerprints of the input's rows and of given neighbours."""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import issparse

from dumap.artifacts.job import Job
from dumap.kernels import csr, hashing


def hash_rows(block: Any, second: bool = False) -> np.ndarray:
    """Hash each row of a block, (rows,) uint64."""
    if issparse(block):
        return csr.hash_rows(block, second)
    return hashing.hash_rows(block.view(f"u{block.dtype.itemsize}"), second)


def fingerprint_input(job: Job) -> str:
    """Fingerprint the present input, block by block, in this process."""
    spans = (job.geometry.rows_of_block(number) for number in range(job.geometry.blocks))
    return format_fingerprint(sum(int(hashing.sum_hashes(hash_rows(job.input.read(*span)), span[0])) for span in spans))


def sum_list_hashes(job: Job, cell: int) -> int:
    """Fold the hashes of the lists that are given for a cell's range of rows."""
    total = 0
    for start, stop in job.geometry.list_ranges(cell):
        hashes = [hash_rows(block) for block in job.precomputed.read(start, stop)]
        total += int(hashing.sum_hashes(hashing.hash_rows(np.column_stack(hashes)), start))
    return total


def fingerprint_lists(job: Job) -> str:
    """Fingerprint the present given neighbours, in this process."""
    return format_fingerprint(sum(sum_list_hashes(job, cell) for cell in range(job.geometry.cells)))


def format_fingerprint(total: int) -> str:
    """Format a fingerprint as text."""
    return f"{total % 2**64:016x}"
