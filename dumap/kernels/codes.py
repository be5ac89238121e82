"""Rows in a byte a column: their distances bound those of the rows from below, at a quarter of the bytes."""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np

from dumap.kernels.products import DEPTH, PACK, dot

FEWEST = 32
"""Columns from which on a bound is cheaper than the distance itself."""
MOST, WIDTH = 32_768, PACK * DEPTH
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
    lengths, sums : ndarray of int32, shape (n,)
        The codes' squared lengths, and 256 times their sums.
    step : float32
        What a unit of the codes stands for.
    """

    values: np.ndarray
    errors: np.ndarray
    lengths: np.ndarray
    sums: np.ndarray
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


@nb.njit(inline="always")
def _sums(code):
    """Return the squared length of a row's codes, and 256 times their sum: twice what 128 more in the other adds."""
    length, total = np.int32(0), np.int32(0)
    for c in range(len(code)):
        value = np.int32(code[c])
        length = np.int32(length + np.int32(value * value))
        total = np.int32(total + value)
    return length, np.int32(np.int32(256) * total)


def _step(extent: float) -> np.float32:
    """Return the unit of codes that reach so far: its square, times what codes sum up to, is a number."""
    return np.float32(min(max(float(extent) / float(LARGEST), 1e-30), 1e14))


@nb.njit(cache=True, nogil=True)
def _encode(x, middle, step, values, errors, lengths, sums):
    for i in range(len(values)):
        errors[i] = np.sqrt(_encode_row(x[i], middle, step, values[i, : len(middle)])) * ROUNDING
        lengths[i], sums[i] = _sums(values[i])


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
    values, errors = np.zeros((len(x), -(-columns // WIDTH) * WIDTH), np.int8), np.zeros(len(x), np.float32)
    lengths, sums = np.zeros((2, len(x)), np.int32)
    if not columns or not len(x):
        return Codes(values, errors, lengths, sums, np.float32(1))
    sample = x[:: -(-len(x) // SAMPLE), :columns]
    middle = np.median(sample, axis=0)
    with np.errstate(over="ignore"):
        extents = np.abs(sample - middle)
    extent = np.quantile(extents, COVERED, method="higher") or extents.max()
    step = _step(extent)
    _encode(x, middle, step, values, errors, lengths, sums)
    return Codes(values, errors, lengths, sums, step)


def around(sample: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Return where the codes of rows near each other are measured from, and what a unit of them stands for.

    Twice as far as most of the sample's rows reach: those beyond are not told apart by their codes.

    Parameters
    ----------
    sample : ndarray of float32, shape (m, columns)

    Returns
    -------
    middle : ndarray of float32, shape (columns,)
    unit : float32
    """
    with np.errstate(over="ignore", invalid="ignore"):
        middle = np.median(sample, axis=0)
        extents = np.nan_to_num(np.abs(sample - middle).max(axis=1))
        return middle, _step(2 * float(np.median(extents)) or extents.max())


@nb.njit(cache=True, nogil=True)
def _code(row, middle, unit, code):
    """Write a row's codes; return how far it lies from what they stand for, infinity where it lies beyond them."""
    columns = min(len(row), len(code))
    total = _encode_row(row, middle, unit, code[:columns])
    for c in range(columns, len(row)):
        total += (row[c] - middle[c]) ** 2
    by_rounding = np.float32(0.26) * unit * unit * len(code)
    return np.sqrt(total) * ROUNDING if total <= by_rounding else np.float32(np.inf)


@nb.njit(cache=True, nogil=True)
def code_rows(x, rows, middle, unit, codes, lengths, errors):
    """Code some rows for the left side of products: as unsigned bytes, each 128 more than the code.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
    rows : ndarray of int, shape (m,)
    middle : ndarray of float32, shape (dims,)
    unit : float32
        With the middle, as of `around`.
    codes : ndarray of uint8, shape (at least m, width)
        Written, as are the others.
    lengths : ndarray of int32, shape (at least m,)
        The codes' squared lengths.
    errors : ndarray of float32, shape (at least m,)
        At least the distance of each row from what its codes stand for; infinite where it lies beyond them.
    """
    code = np.zeros(codes.shape[1], np.int8)
    for i in range(len(rows)):
        errors[i] = _code(x[rows[i]], middle, unit, code)
        lengths[i], _ = _sums(code)
        for c in range(len(code)):
            codes[i, c] = np.int32(code[c]) + 128


@nb.njit(cache=True, nogil=True)
def code_packs(x, rows, middle, unit, packs, lengths, errors):
    """Code some rows for the right side of products: in packs, as `multiply` takes them.

    Parameters
    ----------
    x, rows, middle, unit, errors
        As for `code_rows`.
    packs : ndarray of int8, shape (packs, width / 4, 16, 4)
    lengths : ndarray of int32, shape (at least m,)
        What makes, with the length of the left and less twice the product, the codes' squared distance.
    """
    side = packs.shape[2]
    code = np.zeros(packs.shape[1] * packs.shape[3], np.int8)
    fours, places = code.view(np.int32), packs.view(np.int32)
    for j in range(len(rows)):
        errors[j] = _code(x[rows[j]], middle, unit, code)
        length, shifted = _sums(code)
        lengths[j] = length + shifted
        for c in range(len(fours)):
            places[j // side, c, j % side, 0] = fours[c]


@nb.njit(inline="always")
def least_squared(codes, i, j):
    """Return what the squared distance of two rows is at least: the triangle inequality, by way of their codes."""
    apart = codes.lengths[i] + codes.lengths[j] + codes.sums[j] - np.int32(2) * dot(codes.values[i], codes.values[j])
    least = codes.step * np.sqrt(np.float32(np.int32(apart))) - (codes.errors[i] + codes.errors[j])
    return min(least * least, FARTHEST) if least > 0 else np.float32(0)
