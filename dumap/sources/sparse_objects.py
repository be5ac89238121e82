"""Rows of sparse matrices in this process: of scipy, or read from a file by anndata."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix, issparse

from dumap.errors import InputError
from dumap.kernels.csr import INT32_MAX, WINDOW_ROWS, canonical_rows, entry_dtype, max_window_entries
from dumap.sources.arrays import ArrayRows
from dumap.sources.spooled import PART_BYTES, sparse_row_bytes


class SparseObjectRows(ArrayRows):
    """Rows of a sparse matrix.

    Parameters
    ----------
    kind, shape, dtype
        See `ArrayRows`.
    bounds : ndarray of int
        Index of each row's first entry, and the number of all entries.
    get : callable
        `get(start, stop)` returns rows [start, stop) as a csr_matrix or csr_array, which stays unchanged.

    Attributes
    ----------
    kind, rows, dims, dtype, names, sparse, entries, max_window_entries
        See `ObjectRows`. The dtype is `kernels.csr.entry_dtype`.
    """

    sparse = True

    def __init__(
        self, kind: str, shape: tuple[int, ...], dtype: np.dtype, bounds: np.ndarray, get: Callable[[int, int], Any]
    ) -> None:
        super().__init__(kind, shape, entry_dtype(dtype), get)
        if self.dims > INT32_MAX:
            raise InputError(f"the {kind} has {self.dims} columns; allowed are {INT32_MAX} at the most")
        counts = np.diff(bounds).astype(np.int64)
        self.entries, self.max_window_entries = int(counts.sum()), max_window_entries([counts])

    def read(self, start: int, stop: int) -> Any:
        """Return rows [start, stop) as a canonical csr_matrix."""
        found = self._get(start, stop)
        if found.shape != (stop - start, self.dims):
            raise InputError(f"the {self.kind} gives shape {found.shape} for its rows {start} to {stop}")
        bad = len(found.indices) and not (found.indices.min() >= 0 and found.indices.max() < self.dims)
        if bad or (np.diff(found.indptr) < 0).any():
            raise InputError(f"the {self.kind}, rows {start} to {stop}: its indices are damaged; make it anew")
        return canonical_rows(found.data.copy(), found.indices.copy(), found.indptr.astype(np.int64), self.dims)

    @property
    def task_bytes(self) -> int:
        """Bytes that a task takes: a part's rows as read, sorted and written."""
        part_rows = PART_BYTES // sparse_row_bytes(self.entries, self.rows, self.dtype)
        windows = min(-(-self.rows // WINDOW_ROWS), part_rows // WINDOW_ROWS + 2)
        return 4 * min(self.entries, windows * self.max_window_entries) * (self.dtype.itemsize + 4) + PART_BYTES

    @cached_property
    def token(self) -> str:
        """A hash of the entries, the shape and dtype. It depends neither on the matrix's type nor on the order of
        entries.
        """
        digest = hashlib.sha256(f"csr {self.rows}x{self.dims} {self.dtype.str}".encode())
        step = max(1, PART_BYTES // sparse_row_bytes(self.entries, self.rows, self.dtype))
        for start in range(0, self.rows, step):
            rows: csr_matrix = self.read(start, min(self.rows, start + step))
            for array in (np.diff(rows.indptr).astype(np.int64), rows.indices.astype(np.int64), rows.data):
                digest.update(np.ascontiguousarray(array).data)
        return digest.hexdigest()[:32]


def sparse_rows_of(data: Any, kind: str) -> SparseObjectRows:
    """Return the rows of a sparse matrix.

    Parameters
    ----------
    data
        A matrix or array of scipy.sparse, or anndata's CSRDataset.
    kind : str

    Raises
    ------
    InputError
        The matrix holds no rows of numbers.
    """
    if len(data.shape) != 2 or 0 in data.shape:
        raise InputError(f"the {kind} has shape {data.shape}; dumap reads (rows, dims)")
    if issparse(data):
        rows: Any = data.tocsr()
        return SparseObjectRows(kind, rows.shape, rows.dtype, rows.indptr, lambda start, stop: rows[start:stop])
    return SparseObjectRows(
        kind, data.shape, np.dtype(data.dtype), data.group["indptr"][:], lambda start, stop: data[start:stop]
    )
