"""Dense and sparse rows in parts: functions that write, read, join and check rows of either kind."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, issparse, vstack

from dumap.artifacts.cells import rows_per_range
from dumap.artifacts.job import Job
from dumap.kernels import csr, vectors
from dumap.store import Part, read_csr, write_csr


def cast_rows(rows: Any) -> Any:
    """Cast rows to float32."""
    return csr.as_float32(rows) if issparse(rows) else vectors.as_float32(rows)


def find_finite_and_zero(rows: Any) -> tuple[np.ndarray, np.ndarray]:
    """Find the finite rows and the zero rows among float32 rows, (n,) bool each."""
    return csr.find_finite_and_empty(rows) if issparse(rows) else vectors.find_finite_and_zero(rows)


def find_inexact(rows: Any, cast_rows: Any) -> np.ndarray:
    """Return which rows a cast to float32 may change, (n,) bool."""
    return csr.changed_by_cast(rows) if issparse(rows) else vectors.changed_by_cast(rows, cast_rows)


def write_rows(
    part: Part, name: str, rows: Any, chosen: np.ndarray | None = None, piece_rows: int | None = None
) -> None:
    """Write rows under a name, or those of some numbers, in order; `piece_rows` is about how many are read at once."""
    if issparse(rows):
        ranges = (0, 0)
        if piece_rows is not None:
            entries = piece_rows * -(-rows.nnz // max(1, rows.shape[0]))
            ranges = (rows_per_range(piece_rows, rows.indptr), rows_per_range(entries, rows.indices))
        write_csr(part, name, rows, chosen, ranges)
    elif chosen is None:
        part.write(name, rows)
    else:
        part.write_gathered(name, rows, chosen, 0 if piece_rows is None else rows_per_range(piece_rows, rows))


def read_rows(job: Job, stage: str, part: str, name: str, start: int = 0, stop: int | None = None) -> Any:
    """Read rows [start, stop) of the rows that a part holds under a name."""
    if job.geometry.is_sparse:
        return read_csr(job.run, stage, part, name, job.geometry.source_dims, start, stop)
    return job.run.read(stage, part, name, start, stop)


def empty_rows(job: Job) -> Any:
    """Return an array or matrix of no float32 rows."""
    if job.geometry.is_sparse:
        return csr_matrix((0, job.geometry.source_dims), dtype=np.float32)
    return np.empty((0, job.geometry.dims), np.float32)


def join_rows(rows: Sequence[Any]) -> Any:
    """Join rows, one after another."""
    if len(rows) == 1:
        return rows[0]
    return vstack(rows, "csr") if issparse(rows[0]) else np.concatenate(rows)
