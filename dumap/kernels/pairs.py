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

from dumap.kernels.vectors import ANGULAR, squared_distance

NEAR = 1e-8
"""A squared distance below this share of the squared lengths is computed from differences, since the sum of products
would cancel."""
SAME_DIRECTION = 4e-15
"""A squared distance of unit rows below this counts as 0, since rounding errors are as large."""
CONSTANT = 1e-24
"""A row counts as constant if its variance is below this share of its squared length."""


class SparseRows(NamedTuple):
    """Sparse rows, ready to be compared.

    Attributes
    ----------
    bounds : ndarray of int64, shape (n + 1,)
    columns : ndarray of int32, shape (entries,)
    values : ndarray of float32, shape (entries,)
    squares : ndarray of float64, shape (n,)
        Squared lengths. For correlation, they are of the rows less their means.
    inverses : ndarray of float64, shape (n,)
        One over the length; 0 for zero rows.
    means : ndarray of float64, shape (n,)
        For correlation, each row's mean times the root of the dims; otherwise 0.
    angular : bool
    dense : ndarray of float32, shape (dims,)
        The row `last`, made dense; zeros before the first.
    last : ndarray of int64, shape (1,)
    """

    bounds: np.ndarray
    columns: np.ndarray
    values: np.ndarray
    squares: np.ndarray
    inverses: np.ndarray
    means: np.ndarray
    angular: bool
    dense: np.ndarray
    last: np.ndarray

    @classmethod
    def of(cls, rows: csr_matrix, metric: str) -> SparseRows:
        """Prepare rows, (n, dims) of float32, for a metric of `SPARSE`."""
        bounds, columns = rows.indptr.astype(np.int64, copy=False), rows.indices.astype(np.int32, copy=False)
        squares, means = np.empty(rows.shape[0]), np.zeros(rows.shape[0])
        _measure(bounds, columns, rows.data, rows.shape[1], metric == "correlation", squares, means)
        with np.errstate(divide="ignore"):
            inverses = np.where(squares > 0, 1 / np.sqrt(squares), 0)
        dense = np.zeros(rows.shape[1], np.float32)
        last = np.full(1, -1, np.int64)
        return cls(bounds, columns, rows.data, squares, inverses, means, metric in ANGULAR, dense, last)


SPARSE = ANGULAR | {"euclidean", "l2", "sqeuclidean"}
"""The metrics of sparse rows."""


@nb.njit(cache=True, nogil=True)
def _measure(bounds, columns, values, dims, centred, squares, means):
    for i in range(len(squares)):
        square, total = 0.0, 0.0
        for e in range(bounds[i], bounds[i + 1]):
            value = np.float64(values[e])
            square += value * value
            total += value
        squares[i] = square
        if centred:
            mean = total / dims
            means[i] = mean * np.sqrt(np.float64(dims))
            about = (dims - (bounds[i + 1] - bounds[i])) * mean * mean
            for e in range(bounds[i], bounds[i + 1]):
                about += (values[e] - mean) * (values[e] - mean)
            squares[i] = about if about > CONSTANT * square else 0.0


@nb.njit(cache=True, nogil=True)
def _gap(columns, values, low, high, other_columns, other_values, other_low, other_high):
    """Return the squared distance of two rows from the differences of their entries."""
    total = 0.0
    while low < high or other_low < other_high:
        if other_low == other_high or (low < high and columns[low] < other_columns[other_low]):
            gap, low = np.float64(values[low]), low + 1
        elif low == high or other_columns[other_low] < columns[low]:
            gap, other_low = np.float64(other_values[other_low]), other_low + 1
        else:
            gap = np.float64(values[low]) - np.float64(other_values[other_low])
            low, other_low = low + 1, other_low + 1
        total += gap * gap
    return total


@nb.njit(cache=True, nogil=True)
def squared_of(x, i, others, j, product):
    """Turn the product of row i of x and row j of others into their squared distance.

    For angular metrics, the rows are scaled to unit length. A zero row is at a right angle to all rows but other zero
    rows.
    """
    if x.angular:
        if x.inverses[i] == 0 and others.inverses[j] == 0:
            return 0.0
        cosine = (product - x.means[i] * others.means[j]) * (x.inverses[i] * others.inverses[j])
        squared = 2 - 2 * cosine
        return min(squared, 4.0) if squared > SAME_DIRECTION else 0.0
    both = x.squares[i] + others.squares[j]
    squared = both - 2 * product
    if squared > NEAR * both:
        return squared
    ends, other_ends = x.bounds[i : i + 2], others.bounds[j : j + 2]
    return _gap(x.columns, x.values, ends[0], ends[1], others.columns, others.values, other_ends[0], other_ends[1])


@nb.njit(cache=True, nogil=True)
def sparse_distance(x, i, j):
    """Return the squared distance of two rows. Row i is made dense and kept, so that further pairs of i take few
    steps.
    """
    if x.last[0] != i:
        if x.last[0] >= 0:
            for e in range(x.bounds[x.last[0]], x.bounds[x.last[0] + 1]):
                x.dense[x.columns[e]] = 0
        for e in range(x.bounds[i], x.bounds[i + 1]):
            x.dense[x.columns[e]] = x.values[e]
        x.last[0] = i
    product = 0.0
    for e in range(x.bounds[j], x.bounds[j + 1]):
        product += np.float64(x.dense[x.columns[e]]) * np.float64(x.values[e])
    return squared_of(x, i, x, j, product)


def pair_distance(x, i, j):
    """Return the squared Euclidean distance of two rows of an array, or `squared_of` of two `SparseRows`."""
    return sparse_distance(x, i, j) if isinstance(x, SparseRows) else squared_distance(x[i], x[j])


@overload(pair_distance)
def _pair_distance(x, i, j):
    if isinstance(x, types.Array):
        return lambda x, i, j: squared_distance(x[i], x[j])
    return lambda x, i, j: sparse_distance(x, i, j)


class Index(NamedTuple):
    """The entries of some rows by column.

    Attributes
    ----------
    slots : ndarray of int32, shape (dims,)
        Number of the column among the columns with entries; -1 for other columns.
    starts : ndarray of int64, shape (columns + 1,)
    places : ndarray of int32, shape (entries,)
        Index of the row that has the entry.
    values : ndarray of float32, shape (entries,)
    """

    slots: np.ndarray
    starts: np.ndarray
    places: np.ndarray
    values: np.ndarray


@nb.njit(cache=True, nogil=True)
def make_index(x, chosen, slots):
    """Sort the entries of chosen rows by column.

    Parameters
    ----------
    x : SparseRows
    chosen : ndarray of int, shape (m,)
    slots : ndarray of int32, shape (dims,)
        -1 everywhere at first; filled until `clear` is called.

    Returns
    -------
    Index
    """
    count, entries = 0, 0
    for i in chosen:
        entries += x.bounds[i + 1] - x.bounds[i]
        for e in range(x.bounds[i], x.bounds[i + 1]):
            if slots[x.columns[e]] < 0:
                slots[x.columns[e]] = count
                count += 1
    starts = np.zeros(count + 1, np.int64)
    for i in chosen:
        for e in range(x.bounds[i], x.bounds[i + 1]):
            starts[slots[x.columns[e]] + 1] += 1
    starts = np.cumsum(starts)  # a counting sort by column
    following, places, values = starts[:-1].copy(), np.empty(entries, np.int32), np.empty(entries, np.float32)
    for place in range(len(chosen)):
        for e in range(x.bounds[chosen[place]], x.bounds[chosen[place] + 1]):
            slot = slots[x.columns[e]]
            places[following[slot]], values[following[slot]] = place, x.values[e]
            following[slot] += 1
    return Index(slots, starts, places, values)


@nb.njit(cache=True, nogil=True)
def clear(x, chosen, slots):
    """Empty the slots of an index of chosen rows."""
    for i in chosen:
        for e in range(x.bounds[i], x.bounds[i + 1]):
            slots[x.columns[e]] = -1


@nb.njit(cache=True, nogil=True)
def add_products(x, i, index, products):
    """Set `products` to the products of row i of x and the rows of an index."""
    products[:] = 0
    for e in range(x.bounds[i], x.bounds[i + 1]):
        slot, value = index.slots[x.columns[e]], np.float64(x.values[e])
        if slot >= 0:
            for t in range(index.starts[slot], index.starts[slot + 1]):
                products[index.places[t]] += value * np.float64(index.values[t])


@nb.njit(cache=True, nogil=True)
def _to_squared(products, queries, x, j):
    """Turn the products of the queries and row j of x into squared distances, as `squared_of` does one by one."""
    if x.angular:
        mean, inverse = x.means[j], x.inverses[j]
        for q in range(len(products)):
            squared = 2 - 2 * ((products[q] - queries.means[q] * mean) * (queries.inverses[q] * inverse))
            squared = squared if squared < 4.0 else 4.0
            products[q] = squared if squared > SAME_DIRECTION else 0.0
        if inverse == 0:
            products[queries.inverses == 0] = 0
        return
    square, near = x.squares[j], 0
    for q in range(len(products)):
        both = queries.squares[q] + square
        near += not both - 2 * products[q] > NEAR * both
    for q in range(len(products)):
        if near:
            products[q] = squared_of(queries, q, x, j, products[q])
        else:
            products[q] = queries.squares[q] + square - 2 * products[q]


@nb.njit(cache=True, nogil=True)
def _all_distances(queries, x, slots, out):
    chosen = np.arange(len(queries.squares))
    index, products = make_index(queries, chosen, slots), np.empty(len(chosen))
    for j in range(out.shape[1]):
        add_products(x, j, index, products)
        _to_squared(products, queries, x, j)
        out[:, j] = products


def all_distances(queries: csr_matrix, x: csr_matrix, metric: str) -> np.ndarray:
    """Return the squared distances of queries to rows, float32, (queries, n): see `squared_of`."""
    out = np.empty((queries.shape[0], x.shape[0]), np.float32)
    slots = np.full(x.shape[1], -1, np.int32)
    _all_distances(SparseRows.of(queries, metric), SparseRows.of(x, metric), slots, out)
    return out
