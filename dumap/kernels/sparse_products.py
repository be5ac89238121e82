"""Products of sparse rows in float32, which rule out most pairs of rows: only the others are compared exactly.

Products of a row and the rows of a tile are sums over columns. In a column in which many rows of the tile have an
entry, the tile is dense and the sum is vectorised; of other columns only the entries are visited.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np

from dumap.kernels.pairs import SparseRows

TILE_ROWS = 2048
"""Rows whose products with a row are computed at once, so that their entries stay in the cache (measured)."""
DENSE_SHARE = 1 / 12
"""A column is dense in a tile if more than this share of the rows has an entry (measured)."""
DENSE_COLUMNS_AT_ONCE = 4
"""Dense columns that are added at once."""
FLOAT32_EPSILON = 2.0**-23
"""Twice the rounding error of float32."""
TINY, EVERY_PAIR = 1e-30, -1e30
"""A bound on errors by underflow, and the bound of a row of which no pair is ruled out."""


class ScaledRows(NamedTuple):
    """Factors by which the values of rows are scaled, and bounds that rule out pairs.

    Rows are scaled to at most unit length. Half the squared distance of two rows is then `half + half' - product`.
    The pair is ruled out if, beyond all errors, this is more than half the limits of both rows.

    Attributes
    ----------
    factors : ndarray of float64, shape (n,)
    halves : ndarray of float32, shape (n,)
        Half the squared length of the scaled row, less a bound on errors.
    means : ndarray of float32, shape (n,)
        For correlation, the scaled mean times the root of the dims; otherwise 0.
    unit : float
        Half the factor by which squared distances are scaled, rounded up.
    """

    factors: np.ndarray
    halves: np.ndarray
    means: np.ndarray
    unit: float

    @classmethod
    def from_sparse_rows(cls, x: SparseRows) -> ScaledRows:
        """Scale rows: for angular metrics to unit length, otherwise so that the longest row has it."""
        entries, n = np.diff(x.indptr), len(x.squared_lengths)
        longest = x.squared_lengths.max(initial=0)
        scale = 1 / np.sqrt(longest) if longest > 0 else 1.0
        factors = x.inverse_lengths if x.is_angular else np.full(n, scale)
        squared_lengths = np.ones(n) if x.is_angular else x.squared_lengths * scale**2
        lengths = (x.squared_lengths + x.scaled_means**2) * factors**2  # of the scaled row, less no mean
        errors = FLOAT32_EPSILON * ((entries + 8) * lengths + 8 * squared_lengths) + TINY
        halves = np.where(
            x.is_angular & (x.inverse_lengths == 0), EVERY_PAIR, np.maximum((squared_lengths - errors) / 2, EVERY_PAIR)
        )
        unit = 0.5 * (1.0 if x.is_angular else scale**2) * (1 + 8 * FLOAT32_EPSILON)
        return cls(factors, halves.astype(np.float32), (x.scaled_means * factors).astype(np.float32), float(unit))


class Tile(NamedTuple):
    """The entries of a tile's rows by column, scaled.

    Attributes
    ----------
    column_numbers : ndarray of int32, shape (dims,)
        Row of `dense` that holds a dense column; less than 0: the number of another column; 0: a column of zeros.
    starts : ndarray of int64
    entry_rows : ndarray of uint16, shape (entries,)
        Number in the tile of the row that has the entry.
    values : ndarray of float32, shape (entries,)
    dense : ndarray of float32, shape (dense columns + 1, rows)
        The first of them is zeros.
    """

    column_numbers: np.ndarray
    starts: np.ndarray
    entry_rows: np.ndarray
    values: np.ndarray
    dense: np.ndarray


@nb.njit(cache=True, nogil=True)
def index_tile(x, scaled, chosen_rows, column_numbers):
    """Sort the entries of chosen rows by column.

    Parameters
    ----------
    x : SparseRows
    scaled : ScaledRows
    chosen_rows : ndarray of int, shape (m,)
        At most `TILE_ROWS`.
    column_numbers : ndarray of int32, shape (dims,)
        Overwritten.

    Returns
    -------
    Tile
    """
    column_numbers[:] = 0
    for i in chosen_rows:
        for e in range(x.indptr[i], x.indptr[i + 1]):
            column_numbers[x.columns[e]] += 1
    counts, n_dense, max_sparse_count = [np.int64(0), np.int64(0)], 0, np.int64(DENSE_SHARE * len(chosen_rows))
    for column in range(len(column_numbers)):
        if column_numbers[column] > max_sparse_count:
            n_dense += 1
            column_numbers[column] = n_dense
        elif column_numbers[column]:
            counts.append(np.int64(column_numbers[column]))
            column_numbers[column] = 2 - len(counts)
    starts = np.cumsum(np.array(counts))  # a counting sort by column
    next_index, dense = starts[:-1].copy(), np.zeros((n_dense + 1, len(chosen_rows)), np.float32)
    entry_rows, values = np.empty(starts[-1], np.uint16), np.empty(starts[-1], np.float32)
    for entry_row in range(len(chosen_rows)):
        i = chosen_rows[entry_row]
        for e in range(x.indptr[i], x.indptr[i + 1]):
            column_number, value = column_numbers[x.columns[e]], np.float32(x.values[e] * scaled.factors[i])
            if column_number > 0:
                dense[column_number, entry_row] = value
            else:
                entry_rows[next_index[-column_number]], values[next_index[-column_number]] = entry_row, value
                next_index[-column_number] += 1
    return Tile(column_numbers, starts, entry_rows, values, dense)


@nb.njit(cache=True, nogil=True)
def write_tile_products(x, i, factor, tile, first, products, columns, factors):
    """Set products[first:] to the products of row i of x and the rows of a tile from `first` on, after scaling.

    `columns` and `factors` are room for the entries of a row.
    """
    products[:] = 0
    count = 0
    for e in range(x.indptr[i], x.indptr[i + 1]):
        column_number, value = tile.column_numbers[x.columns[e]], np.float32(x.values[e] * factor)
        if column_number > 0:
            columns[count], factors[count] = column_number, value
            count += 1
        elif column_number < 0:
            for t in range(tile.starts[-column_number], tile.starts[-column_number + 1]):
                products[tile.entry_rows[t]] += value * tile.values[t]
    while count % DENSE_COLUMNS_AT_ONCE:
        columns[count], factors[count] = 0, 0
        count += 1
    sums = products[first:]
    for q in range(0, count, DENSE_COLUMNS_AT_ONCE):
        a, b = tile.dense[columns[q], first:], tile.dense[columns[q + 1], first:]
        c, d = tile.dense[columns[q + 2], first:], tile.dense[columns[q + 3], first:]
        for r in range(len(sums)):
            sums[r] += (factors[q] * a[r] + factors[q + 1] * b[r]) + (factors[q + 2] * c[r] + factors[q + 3] * d[r])


@nb.njit(cache=True, nogil=True)
def count_near_rows(products, mean, half, kth_half, means, halves, kth_halves):
    """Count the rows that may be within the limit of either row: see `ScaledRows`. All limits are halves."""
    count = np.int32(0)
    for r in range(len(products)):
        max_half = kth_half if kth_half > kth_halves[r] else kth_halves[r]
        count += np.int32(products[r] - mean * means[r] >= half + halves[r] - max_half)
    return count
