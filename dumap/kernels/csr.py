"""Rows in compressed form (CSR). A row is stored as its entries, with ascending columns; no entry is 0."""

from __future__ import annotations

from collections.abc import Iterable

import numba as nb
import numpy as np
from scipy.sparse import csr_matrix

from dumap.kernels import hashing
from dumap.kernels.vectors import EXACT_IN_FLOAT32

WINDOW_ROWS = 256
"""Rows whose entries are counted together to find where rows are dense."""
MAX_COLUMNS = 2**31 - 1


def densest_window(counts: Iterable[np.ndarray]) -> int:
    """Return the most entries of `WINDOW_ROWS` rows from a multiple of that on.

    Parameters
    ----------
    counts : iterable of ndarray of int64
        Entries of each row, row after row.
    """
    most, left = 0, np.empty(0, np.int64)
    for more in counts:
        left = np.concatenate([left, more])
        windows = left[: len(left) - len(left) % WINDOW_ROWS].reshape(-1, WINDOW_ROWS)
        most, left = max(most, int(windows.sum(axis=1).max(initial=0))), left[windows.size :]
    return max(most, int(left.sum()))


def entry_dtype(dtype: np.dtype) -> np.dtype:
    """Return the dtype in which entries are read: float32 for float16, which scipy lacks, and uint8 for booleans."""
    other = {"float16": np.float32, "bool": np.uint8}.get(dtype.name)
    return dtype.newbyteorder("=") if other is None else np.dtype(other)


def canonical(values: np.ndarray, columns: np.ndarray, bounds: np.ndarray, dims: int) -> csr_matrix:
    """Return rows with ascending columns. Entries of one place are summed, and entries of 0 are removed.

    Parameters
    ----------
    values : ndarray, shape (entries,)
    columns : ndarray of int, shape (entries,)
        From 0 to dims - 1. They are not copied if they are int32 and in order.
    bounds : ndarray of int64, shape (rows + 1,)
        Index of each row's first entry, from 0.
    dims : int

    Returns
    -------
    csr_matrix
        Its dtype is `entry_dtype`.
    """
    kept = entry_dtype(values.dtype)
    values = values if values.dtype == bool else values.astype(kept, copy=False)
    index = np.int32 if bounds[-1] <= MAX_COLUMNS else np.int64
    rows = csr_matrix(
        (values, columns.astype(index, copy=False), bounds.astype(index)), shape=(len(bounds) - 1, dims), copy=False
    )
    rows.sum_duplicates()
    rows.eliminate_zeros()
    return rows.astype(kept, copy=False)


def as_float32(rows: csr_matrix) -> csr_matrix:
    """Cast the entries to float32. Entries that overflow become infinite; entries that underflow are removed."""
    with np.errstate(over="ignore"):
        cast = csr_matrix((rows.data.astype(np.float32, copy=False), rows.indices, rows.indptr), shape=rows.shape)
    if cast.data is not rows.data and (cast.data == 0).any():
        cast = cast.copy()
        cast.eliminate_zeros()
    return cast


@nb.njit(cache=True, nogil=True)
def take_entries(entries: np.ndarray, bounds: np.ndarray, chosen: np.ndarray, taken: np.ndarray) -> np.ndarray:
    """Return the entries of chosen rows, one row after another.

    Parameters
    ----------
    entries : ndarray, shape (entries,)
        Values or columns of all rows.
    bounds : ndarray of int64, shape (n + 1,)
        Index of each row's first entry.
    chosen : ndarray of int, shape (m,)
    taken : ndarray of int64, shape (m + 1,)
        Index at which the entries of each chosen row begin in the result.
    """
    out = np.empty(taken[-1], entries.dtype)
    put_entries(entries, bounds, chosen, np.arange(len(chosen)), taken, out)
    return out


@nb.njit(cache=True, nogil=True)
def put_entries(entries, bounds, chosen, places, taken, out):
    """Copy the entries of chosen rows to `places` among the entries of other rows. See `take_entries`."""
    for r in range(len(chosen)):
        begin, low = taken[places[r]], bounds[chosen[r]]
        for e in range(bounds[chosen[r] + 1] - low):
            out[begin + e] = entries[low + e]


def _any_in_row(rows: csr_matrix, marked: np.ndarray) -> np.ndarray:
    """Return which rows have an entry that is marked."""
    return np.diff(np.concatenate([[0], np.cumsum(marked)])[rows.indptr]) > 0


def inexact(rows: csr_matrix) -> np.ndarray:
    """Return which rows a cast to float32 may change, (n,) bool; False where a row is not finite."""
    values = rows.data
    if values.dtype.kind in "iu":
        return _any_in_row(rows, (values > EXACT_IN_FLOAT32) | (values < -EXACT_IN_FLOAT32))
    with np.errstate(over="ignore"):
        cast = values.astype(np.float32)
    return _any_in_row(rows, values != cast) & ~_any_in_row(rows, ~np.isfinite(cast))


def check(rows: csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows that are finite and the rows without entries, (n,) bool each."""
    return ~_any_in_row(rows, ~np.isfinite(rows.data)), np.diff(rows.indptr) == 0


def row_hashes(rows: csr_matrix, second: bool = False) -> np.ndarray:
    """Hash the entries of each row. Rows that are equal to the bit have equal hashes.

    Parameters
    ----------
    rows : csr_matrix
        From `canonical`.
    second : bool
        Another hash, so that two rows with the same first hash differ in the second.

    Returns
    -------
    ndarray of uint64, shape (n,)
    """
    bits = rows.data.view(f"u{rows.data.dtype.itemsize}")
    return _row_hashes(rows.indptr, rows.indices, bits, rows.shape[1], second)


@nb.njit(cache=True, nogil=True)
def _row_hashes(bounds, columns, bits, dims, second):
    out = np.empty(len(bounds) - 1, np.uint64)
    for i in range(len(out)):
        h = hashing.mix(np.uint64(dims))
        for e in range(bounds[i], bounds[i + 1]):
            column, value = np.int64(columns[e]), np.int64(bits[e])
            h = hashing.mix(h ^ (hashing.pair(value, column) if second else hashing.pair(column, value)))
        out[i] = h
    return out
