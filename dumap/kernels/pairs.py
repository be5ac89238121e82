"""Exact distances of sparse rows: of single pairs, and of one row and many others by an inverted index.

Products are summed in float64 in the order of the columns that both rows have. So each way of computing a pair's
distance gives the same bits.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np
from numba.core import types
from numba.extending import overload
from scipy.sparse import csr_matrix

from dumap.kernels.vectors import ANGULAR_METRICS, squared_distance

CANCELLATION_SHARE = 1e-8
"""A squared distance below this share of the squared lengths is computed from differences, since the sum of products
would cancel."""
EQUAL_DIRECTION_SQUARED = 4e-15
"""A squared distance of unit rows below this counts as 0, since rounding errors are as large."""
CONSTANT_ROW_SHARE = 1e-24
"""A row counts as constant if its variance is below this share of its squared length."""


class SparseRows(NamedTuple):
    """Sparse rows, ready to be compared.

    Attributes
    ----------
    indptr : ndarray of int64, shape (n + 1,)
    columns : ndarray of int32, shape (entries,)
    values : ndarray of float32, shape (entries,)
    squared_lengths : ndarray of float64, shape (n,)
        Squared lengths. For correlation, they are of the rows less their means.
    inverse_lengths : ndarray of float64, shape (n,)
        One over the length; 0 for zero rows.
    scaled_means : ndarray of float64, shape (n,)
        For correlation, each row's mean times the root of the dims; otherwise 0.
    is_angular : bool
    dense_row : ndarray of float32, shape (dims,)
        The row `dense_row_number`, made dense; zeros before the first.
    dense_row_number : ndarray of int64, shape (1,)
    """

    indptr: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    squared_lengths: np.ndarray
    inverse_lengths: np.ndarray
    scaled_means: np.ndarray
    is_angular: bool
    dense_row: np.ndarray
    dense_row_number: np.ndarray

    @classmethod
    def from_csr(cls, rows: csr_matrix, metric: str) -> SparseRows:
        """Prepare rows, (n, dims) of float32, for a metric of `SPARSE_METRICS`."""
        indptr, columns = rows.indptr.astype(np.int64, copy=False), rows.indices.astype(np.int32, copy=False)
        squared_lengths, scaled_means = np.empty(rows.shape[0]), np.zeros(rows.shape[0])
        _compute_lengths(
            indptr, columns, rows.data, rows.shape[1], metric == "correlation", squared_lengths, scaled_means
        )
        with np.errstate(divide="ignore"):
            inverse_lengths = np.where(squared_lengths > 0, 1 / np.sqrt(squared_lengths), 0)
        dense_row = np.zeros(rows.shape[1], np.float32)
        dense_row_number = np.full(1, -1, np.int64)
        return cls(
            indptr,
            columns,
            rows.data,
            squared_lengths,
            inverse_lengths,
            scaled_means,
            metric in ANGULAR_METRICS,
            dense_row,
            dense_row_number,
        )


SPARSE_METRICS = ANGULAR_METRICS | {"euclidean", "l2", "sqeuclidean"}
"""The metrics of sparse rows."""


@nb.njit(cache=True, nogil=True)
def _compute_lengths(indptr, columns, values, dims, is_centred, squared_lengths, scaled_means):
    for i in range(len(squared_lengths)):
        squared_length, total = 0.0, 0.0
        for e in range(indptr[i], indptr[i + 1]):
            value = np.float64(values[e])
            squared_length += value * value
            total += value
        squared_lengths[i] = squared_length
        if is_centred:
            mean = total / dims
            scaled_means[i] = mean * np.sqrt(np.float64(dims))
            centred_length = (dims - (indptr[i + 1] - indptr[i])) * mean * mean
            for e in range(indptr[i], indptr[i + 1]):
                centred_length += (values[e] - mean) * (values[e] - mean)
            squared_lengths[i] = centred_length if centred_length > CONSTANT_ROW_SHARE * squared_length else 0.0


@nb.njit(cache=True, nogil=True)
def _squared_from_differences(columns, values, low, high, other_columns, other_values, other_low, other_high):
    """Return the squared distance of two rows from the differences of their entries."""
    total = 0.0
    while low < high or other_low < other_high:
        if other_low == other_high or (low < high and columns[low] < other_columns[other_low]):
            difference, low = np.float64(values[low]), low + 1
        elif low == high or other_columns[other_low] < columns[low]:
            difference, other_low = np.float64(other_values[other_low]), other_low + 1
        else:
            difference = np.float64(values[low]) - np.float64(other_values[other_low])
            low, other_low = low + 1, other_low + 1
        total += difference * difference
    return total


@nb.njit(cache=True, nogil=True)
def squared_from_product(x, i, others, j, product):
    """Turn the product of row i of x and row j of others into their squared distance.

    For angular metrics, the rows are scaled to unit length. A zero row is at a right angle to all rows but other zero
    rows.
    """
    if x.is_angular:
        if x.inverse_lengths[i] == 0 and others.inverse_lengths[j] == 0:
            return 0.0
        cosine = (product - x.scaled_means[i] * others.scaled_means[j]) * (
            x.inverse_lengths[i] * others.inverse_lengths[j]
        )
        squared = 2 - 2 * cosine
        return min(squared, 4.0) if squared > EQUAL_DIRECTION_SQUARED else 0.0
    sum_of_lengths = x.squared_lengths[i] + others.squared_lengths[j]
    squared = sum_of_lengths - 2 * product
    if squared > CANCELLATION_SHARE * sum_of_lengths:
        return squared
    entry_range, other_entry_range = x.indptr[i : i + 2], others.indptr[j : j + 2]
    return _squared_from_differences(
        x.columns,
        x.values,
        entry_range[0],
        entry_range[1],
        others.columns,
        others.values,
        other_entry_range[0],
        other_entry_range[1],
    )


@nb.njit(cache=True, nogil=True)
def sparse_distance(x, i, j):
    """Return the squared distance of two rows. Row i is made dense and kept, so that further pairs of i take few
    steps.
    """
    if x.dense_row_number[0] != i:
        if x.dense_row_number[0] >= 0:
            for e in range(x.indptr[x.dense_row_number[0]], x.indptr[x.dense_row_number[0] + 1]):
                x.dense_row[x.columns[e]] = 0
        for e in range(x.indptr[i], x.indptr[i + 1]):
            x.dense_row[x.columns[e]] = x.values[e]
        x.dense_row_number[0] = i
    product = 0.0
    for e in range(x.indptr[j], x.indptr[j + 1]):
        product += np.float64(x.dense_row[x.columns[e]]) * np.float64(x.values[e])
    return squared_from_product(x, i, x, j, product)


def pair_distance(x, i, j):
    """Return the squared Euclidean distance of two rows of an array, or `squared_from_product` of two `SparseRows`."""
    return sparse_distance(x, i, j) if isinstance(x, SparseRows) else squared_distance(x[i], x[j])


@overload(pair_distance)
def _pair_distance(x, i, j):
    if isinstance(x, types.Array):
        return lambda x, i, j: squared_distance(x[i], x[j])
    return lambda x, i, j: sparse_distance(x, i, j)


class ColumnIndex(NamedTuple):
    """The entries of some rows by column.

    Attributes
    ----------
    column_numbers : ndarray of int32, shape (dims,)
        Number of the column among the columns with entries; -1 for other columns.
    starts : ndarray of int64, shape (columns + 1,)
    entry_rows : ndarray of int32, shape (entries,)
        Index of the row that has the entry.
    values : ndarray of float32, shape (entries,)
    """

    column_numbers: np.ndarray
    starts: np.ndarray
    entry_rows: np.ndarray
    values: np.ndarray


@nb.njit(cache=True, nogil=True)
def index_columns(x, chosen_rows, column_numbers):
    """Sort the entries of chosen rows by column.

    Parameters
    ----------
    x : SparseRows
    chosen_rows : ndarray of int, shape (m,)
    column_numbers : ndarray of int32, shape (dims,)
        -1 everywhere at first; filled until `clear_column_numbers` is called.

    Returns
    -------
    ColumnIndex
    """
    n_columns, n_entries = 0, 0
    for i in chosen_rows:
        n_entries += x.indptr[i + 1] - x.indptr[i]
        for e in range(x.indptr[i], x.indptr[i + 1]):
            if column_numbers[x.columns[e]] < 0:
                column_numbers[x.columns[e]] = n_columns
                n_columns += 1
    starts = np.zeros(n_columns + 1, np.int64)
    for i in chosen_rows:
        for e in range(x.indptr[i], x.indptr[i + 1]):
            starts[column_numbers[x.columns[e]] + 1] += 1
    starts = np.cumsum(starts)  # a counting sort by column
    next_index, entry_rows, values = starts[:-1].copy(), np.empty(n_entries, np.int32), np.empty(n_entries, np.float32)
    for entry_row in range(len(chosen_rows)):
        for e in range(x.indptr[chosen_rows[entry_row]], x.indptr[chosen_rows[entry_row] + 1]):
            column = column_numbers[x.columns[e]]
            entry_rows[next_index[column]], values[next_index[column]] = entry_row, x.values[e]
            next_index[column] += 1
    return ColumnIndex(column_numbers, starts, entry_rows, values)


@nb.njit(cache=True, nogil=True)
def clear_column_numbers(x, chosen_rows, column_numbers):
    """Empty the slots of an index of chosen rows."""
    for i in chosen_rows:
        for e in range(x.indptr[i], x.indptr[i + 1]):
            column_numbers[x.columns[e]] = -1


@nb.njit(cache=True, nogil=True)
def multiply_indexed(x, i, column_index, products):
    """Set `products` to the products of row i of x and the rows of an index."""
    products[:] = 0
    for e in range(x.indptr[i], x.indptr[i + 1]):
        column, value = column_index.column_numbers[x.columns[e]], np.float64(x.values[e])
        if column >= 0:
            for t in range(column_index.starts[column], column_index.starts[column + 1]):
                products[column_index.entry_rows[t]] += value * np.float64(column_index.values[t])


@nb.njit(cache=True, nogil=True)
def _squared_from_products(products, queries, x, j):
    """Turn the products of the queries and row j of x into squared distances, as `squared_from_product` does."""
    if x.is_angular:
        mean, inverse = x.scaled_means[j], x.inverse_lengths[j]
        for q in range(len(products)):
            squared = 2 - 2 * ((products[q] - queries.scaled_means[q] * mean) * (queries.inverse_lengths[q] * inverse))
            squared = squared if squared < 4.0 else 4.0
            products[q] = squared if squared > EQUAL_DIRECTION_SQUARED else 0.0
        if inverse == 0:
            products[queries.inverse_lengths == 0] = 0
        return
    square, near = x.squared_lengths[j], 0
    for q in range(len(products)):
        both = queries.squared_lengths[q] + square
        near += not both - 2 * products[q] > CANCELLATION_SHARE * both
    for q in range(len(products)):
        if near:
            products[q] = squared_from_product(queries, q, x, j, products[q])
        else:
            products[q] = queries.squared_lengths[q] + square - 2 * products[q]


@nb.njit(cache=True, nogil=True)
def _squared_distance_matrix(queries, x, column_numbers, out):
    all_queries = np.arange(len(queries.squared_lengths))
    column_index, products = index_columns(queries, all_queries, column_numbers), np.empty(len(all_queries))
    for j in range(out.shape[1]):
        multiply_indexed(x, j, column_index, products)
        _squared_from_products(products, queries, x, j)
        out[:, j] = products


def squared_distance_matrix(queries: csr_matrix, x: csr_matrix, metric: str) -> np.ndarray:
    """Return the squared distances of queries to rows, float32, (queries, n): see `squared_from_product`."""
    out = np.empty((queries.shape[0], x.shape[0]), np.float32)
    column_numbers = np.full(x.shape[1], -1, np.int32)
    _squared_distance_matrix(SparseRows.from_csr(queries, metric), SparseRows.from_csr(x, metric), column_numbers, out)
    return out
