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
INT32_MAX = 2**31 - 1


def max_window_entries(row_counts: Iterable[np.ndarray]) -> int:
    """Return the most entries of `WINDOW_ROWS` rows from a multiple of that on.

    Parameters
    ----------
    row_counts : iterable of ndarray of int64
        Entries of each row, row after row.
    """
    max_entries, uncounted = 0, np.empty(0, np.int64)
    for block_counts in row_counts:
        uncounted = np.concatenate([uncounted, block_counts])
        windows = uncounted[: len(uncounted) - len(uncounted) % WINDOW_ROWS].reshape(-1, WINDOW_ROWS)
        max_entries, uncounted = max(max_entries, int(windows.sum(axis=1).max(initial=0))), uncounted[windows.size :]
    return max(max_entries, int(uncounted.sum()))


def entry_dtype(dtype: np.dtype) -> np.dtype:
    """Return the dtype in which entries are read: float32 for float16, which scipy lacks, and uint8 for booleans."""
    substitute = {"float16": np.float32, "bool": np.uint8}.get(dtype.name)
    return dtype.newbyteorder("=") if substitute is None else np.dtype(substitute)


def canonical_rows(values: np.ndarray, columns: np.ndarray, indptr: np.ndarray, dims: int) -> csr_matrix:
    """Return rows with ascending columns. Entries of one place are summed, and entries of 0 are removed.

    Parameters
    ----------
    values : ndarray, shape (entries,)
    columns : ndarray of int, shape (entries,)
        From 0 to dims - 1. They are not copied if they are int32 and in order.
    indptr : ndarray of int64, shape (rows + 1,)
        Index of each row's first entry, from 0.
    dims : int

    Returns
    -------
    csr_matrix
        Its dtype is `entry_dtype`.
    """
    data_dtype = entry_dtype(values.dtype)
    values = values if values.dtype == bool else values.astype(data_dtype, copy=False)
    index_dtype = np.int32 if indptr[-1] <= INT32_MAX else np.int64
    rows = csr_matrix(
        (values, columns.astype(index_dtype, copy=False), indptr.astype(index_dtype)),
        shape=(len(indptr) - 1, dims),
        copy=False,
    )
    rows.sum_duplicates()
    rows.eliminate_zeros()
    return rows.astype(data_dtype, copy=False)


def as_float32(rows: csr_matrix) -> csr_matrix:
    """Cast the entries to float32. Entries that overflow become infinite; entries that underflow are removed."""
    with np.errstate(over="ignore"):
        cast = csr_matrix((rows.data.astype(np.float32, copy=False), rows.indices, rows.indptr), shape=rows.shape)
    if cast.data is not rows.data and (cast.data == 0).any():
        cast = cast.copy()
        cast.eliminate_zeros()
    return cast


@nb.njit(cache=True, nogil=True)
def gather_entries(
    entries: np.ndarray, indptr: np.ndarray, chosen_rows: np.ndarray, out_indptr: np.ndarray
) -> np.ndarray:
    """Return the entries of chosen rows, one row after another.

    Parameters
    ----------
    entries : ndarray, shape (entries,)
        Values or columns of all rows.
    indptr : ndarray of int64, shape (n + 1,)
        Index of each row's first entry.
    chosen_rows : ndarray of int, shape (m,)
    out_indptr : ndarray of int64, shape (m + 1,)
        Index at which the entries of each chosen row begin in the result.
    """
    out = np.empty(out_indptr[-1], entries.dtype)
    scatter_entries(entries, indptr, chosen_rows, np.arange(len(chosen_rows)), out_indptr, out)
    return out


@nb.njit(cache=True, nogil=True)
def scatter_entries(entries, indptr, chosen_rows, out_rows, out_indptr, out):
    """Copy the entries of chosen rows to `out_rows` among the entries of other rows. See `gather_entries`."""
    for r in range(len(chosen_rows)):
        out_start, start = out_indptr[out_rows[r]], indptr[chosen_rows[r]]
        for e in range(indptr[chosen_rows[r] + 1] - start):
            out[out_start + e] = entries[start + e]


def _any_in_row(rows: csr_matrix, is_marked: np.ndarray) -> np.ndarray:
    """Return which rows have an entry that is marked."""
    return np.diff(np.concatenate([[0], np.cumsum(is_marked)])[rows.indptr]) > 0


def changed_by_cast(rows: csr_matrix) -> np.ndarray:
    """Return which rows a cast to float32 may change, (n,) bool; False where a row is not finite."""
    values = rows.data
    if values.dtype.kind in "iu":
        return _any_in_row(rows, (values > EXACT_IN_FLOAT32) | (values < -EXACT_IN_FLOAT32))
    with np.errstate(over="ignore"):
        cast = values.astype(np.float32)
    return _any_in_row(rows, values != cast) & ~_any_in_row(rows, ~np.isfinite(cast))


def find_finite_and_empty(rows: csr_matrix) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows that are finite and the rows without entries, (n,) bool each."""
    return ~_any_in_row(rows, ~np.isfinite(rows.data)), np.diff(rows.indptr) == 0


def hash_rows(rows: csr_matrix, is_second: bool = False) -> np.ndarray:
    """Hash the entries of each row. Rows that are equal to the bit have equal hashes.

    Parameters
    ----------
    rows : csr_matrix
        From `canonical_rows`.
    is_second : bool
        Another hash, so that two rows with the same first hash differ in the second.

    Returns
    -------
    ndarray of uint64, shape (n,)
    """
    bits = rows.data.view(f"u{rows.data.dtype.itemsize}")
    return _hash_rows(rows.indptr, rows.indices, bits, rows.shape[1], is_second)


@nb.njit(cache=True, nogil=True)
def _hash_rows(indptr, columns, bits, dims, is_second):
    out = np.empty(len(indptr) - 1, np.uint64)
    for i in range(len(out)):
        row_hash = hashing.mix_bits(np.uint64(dims))
        for e in range(indptr[i], indptr[i + 1]):
            column, value = np.int64(columns[e]), np.int64(bits[e])
            row_hash = hashing.mix_bits(
                row_hash ^ (hashing.hash_pair(value, column) if is_second else hashing.hash_pair(column, value))
            )
        out[i] = row_hash
    return out
