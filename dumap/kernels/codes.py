"""Rows in a byte a column: their distances bound those of the rows from below, at a quarter of the bytes."""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np

FEWEST = 32
"""Columns from which on a bound is cheaper than the distance itself."""
MOST = 32_768
"""Columns that are coded at the most: the sum of so many squares of differences fits 32 bits."""
LARGEST, FARTHEST = np.float32(127), np.finfo(np.float32).max
SAMPLE = 256
ROUNDING = np.float32(1.0001)
COVERED = 0.999
"""Share of a sample's values that the codes' range covers: a row further out has an error, and a bound, of its own."""


class Codes(NamedTuple):
    """Coded rows.

    Attributes
    ----------
    values : ndarray of int8, shape (n, columns)
        No columns where there are too few to be worth it.
    errors : ndarray of float32, shape (n,)
        At least the distance of each row from what its code stands for.
    step : float32
        What a unit of the codes stands for.
    """

    values: np.ndarray
    errors: np.ndarray
    step: np.float32


@nb.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _encode_row(row, middle, step, codes):
    """Write a row's codes; return the square of what they leave out."""
    total, unit = np.float32(0), np.float32(1) / step
    for c in range(len(codes)):
        placed = row[c] - middle[c]
        code = np.rint(min(max(placed * unit, -LARGEST), LARGEST))
        codes[c] = np.int8(code)
        gap = placed - step * code
        total += gap * gap
    return total


@nb.njit(cache=True, nogil=True)
def _encode(x, middle, step, values, errors):
    for i in range(values.shape[0]):
        errors[i] = np.sqrt(_encode_row(x[i], middle, step, values[i])) * ROUNDING


def encode(x: np.ndarray) -> Codes:
    """Code rows by their places around the middle of a sample.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)

    Returns
    -------
    Codes
    """
    columns = min(x.shape[1], MOST) if x.shape[1] >= FEWEST else 0
    values, errors = np.empty((len(x), columns), np.int8), np.zeros(len(x), np.float32)
    if not columns or not len(x):
        return Codes(values, errors, np.float32(1))
    sample = x[:: -(-len(x) // SAMPLE), :columns]
    middle = np.median(sample, axis=0)
    with np.errstate(over="ignore"):
        extents = np.abs(sample - middle)
    extent = np.quantile(extents, COVERED, method="higher") or extents.max()
    step = np.float32(max(float(extent) / float(LARGEST), 1e-30))
    _encode(x, middle, step, values, errors)
    return Codes(values, errors, step)


@nb.njit(inline="always")
def least_squared(codes, i, j):
    """Return what the squared distance of two rows is at least: the triangle inequality, by way of their codes."""
    values, errors = codes.values, codes.errors
    total = np.int32(0)
    for c in range(values.shape[1]):
        gap = np.int32(np.int32(values[i, c]) - np.int32(values[j, c]))
        total = np.int32(total + np.int32(gap * gap))
    least = codes.step * np.sqrt(np.float32(total)) - (errors[i] + errors[j])
    return min(least * least, FARTHEST) if least > 0 else np.float32(0)
