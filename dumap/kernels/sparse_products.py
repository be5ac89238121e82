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
COLUMNS = 4
"""Dense columns that are added at once."""
EPSILON = 2.0**-23
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
    def of(cls, x: SparseRows) -> ScaledRows:
        """Scale rows: for angular metrics to unit length, otherwise so that the longest row has it."""
        entries, n = np.diff(x.bounds), len(x.squares)
        longest = x.squares.max(initial=0)
        scale = 1 / np.sqrt(longest) if longest > 0 else 1.0
        factors = x.inverses if x.angular else np.full(n, scale)
        squares = np.ones(n) if x.angular else x.squares * scale**2
        lengths = (x.squares + x.means**2) * factors**2  # of the scaled row, less no mean
        errors = EPSILON * ((entries + 8) * lengths + 8 * squares) + TINY
        halves = np.where(x.angular & (x.inverses == 0), EVERY_PAIR, np.maximum((squares - errors) / 2, EVERY_PAIR))
        unit = 0.5 * (1.0 if x.angular else scale**2) * (1 + 8 * EPSILON)
        return cls(factors, halves.astype(np.float32), (x.means * factors).astype(np.float32), float(unit))


class Tile(NamedTuple):
    """The entries of a tile's rows by column, scaled.

    Attributes
    ----------
    slots : ndarray of int32, shape (dims,)
        Row of `dense` that holds a dense column; less than 0: the number of another column; 0: a column of zeros.
    starts : ndarray of int64
    places : ndarray of uint16, shape (entries,)
        Number in the tile of the row that has the entry.
    values : ndarray of float32, shape (entries,)
    dense : ndarray of float32, shape (dense columns + 1, rows)
        The first of them is zeros.
    """

    slots: np.ndarray
    starts: np.ndarray
    places: np.ndarray
    values: np.ndarray
    dense: np.ndarray


@nb.njit(cache=True, nogil=True)
def make_tile(x, scaled, chosen, slots):
    """Sort the entries of chosen rows by column.

    Parameters
    ----------
    x : SparseRows
    scaled : ScaledRows
    chosen : ndarray of int, shape (m,)
        At most `TILE_ROWS`.
    slots : ndarray of int32, shape (dims,)
        Overwritten.

    Returns
    -------
    Tile
    """
    slots[:] = 0
    for i in chosen:
        for e in range(x.bounds[i], x.bounds[i + 1]):
            slots[x.columns[e]] += 1
    counts, dense_count, least = [np.int64(0), np.int64(0)], 0, np.int64(DENSE_SHARE * len(chosen))
    for column in range(len(slots)):
        if slots[column] > least:
            dense_count += 1
            slots[column] = dense_count
        elif slots[column]:
            counts.append(np.int64(slots[column]))
            slots[column] = 2 - len(counts)
    starts = np.cumsum(np.array(counts))  # a counting sort by column
    following, dense = starts[:-1].copy(), np.zeros((dense_count + 1, len(chosen)), np.float32)
    places, values = np.empty(starts[-1], np.uint16), np.empty(starts[-1], np.float32)
    for place in range(len(chosen)):
        i = chosen[place]
        for e in range(x.bounds[i], x.bounds[i + 1]):
            slot, value = slots[x.columns[e]], np.float32(x.values[e] * scaled.factors[i])
            if slot > 0:
                dense[slot, place] = value
            else:
                places[following[-slot]], values[following[-slot]] = place, value
                following[-slot] += 1
    return Tile(slots, starts, places, values, dense)


@nb.njit(cache=True, nogil=True)
def add_products(x, i, factor, tile, first, products, columns, factors):
    """Set products[first:] to the products of row i of x and the rows of a tile from `first` on, after scaling.

    `columns` and `factors` are room for the entries of a row.
    """
    products[:] = 0
    count = 0
    for e in range(x.bounds[i], x.bounds[i + 1]):
        slot, value = tile.slots[x.columns[e]], np.float32(x.values[e] * factor)
        if slot > 0:
            columns[count], factors[count] = slot, value
            count += 1
        elif slot < 0:
            for t in range(tile.starts[-slot], tile.starts[-slot + 1]):
                products[tile.places[t]] += value * tile.values[t]
    while count % COLUMNS:
        columns[count], factors[count] = 0, 0
        count += 1
    sums = products[first:]
    for q in range(0, count, COLUMNS):
        a, b = tile.dense[columns[q], first:], tile.dense[columns[q + 1], first:]
        c, d = tile.dense[columns[q + 2], first:], tile.dense[columns[q + 3], first:]
        for r in range(len(sums)):
            sums[r] += (factors[q] * a[r] + factors[q + 1] * b[r]) + (factors[q + 2] * c[r] + factors[q + 3] * d[r])


@nb.njit(cache=True, nogil=True)
def count_near(products, mean, half, limit, means, halves, limits):
    """Count the rows that may be within the limit of either row: see `ScaledRows`. All limits are halves."""
    count = np.int32(0)
    for r in range(len(products)):
        greater = limit if limit > limits[r] else limits[r]
        count += np.int32(products[r] - mean * means[r] >= half + halves[r] - greater)
    return count
