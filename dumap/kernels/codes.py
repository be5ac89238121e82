"""Codes: rows quantised to one byte a column, whose distances are lower bounds of the rows' distances."""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np

from dumap.kernels.instructions import DEPTH, PACK
from dumap.kernels.products import SHIFT, dot
from dumap.kernels.vectors import ROUND_DOWN

MIN_COLUMNS = 32
"""With fewer columns, the distance itself is cheaper than the bound."""
MAX_COLUMNS, WIDTH = 32_768, PACK * DEPTH
"""The most columns that are coded: the sum of their squared differences still fits 32 bits; and the bytes of a coded
row are a multiple of the width."""
LARGEST, FARTHEST = np.float32(127), np.finfo(np.float32).max
SAMPLE = 256
ROUNDING = np.float32(1.0001)
COLUMN_BYTES = 2**18
"""Bytes of codes that rows are multiplied with at once: so many that they stay in the cache."""
COVERED = 0.999
"""Share of a sample's values within the codes' range; values outside are clipped, which the row's error allows for."""


class Codes(NamedTuple):
    """Coded rows.

    Attributes
    ----------
    values : ndarray of int8, shape (n, columns)
        No columns if there are fewer than `MIN_COLUMNS`.
    errors : ndarray of float32, shape (n,)
        Upper bound of the distance of each row from its decoded code.
    lengths, sums : ndarray of int32, shape (n,)
        Squared lengths of the codes, and their sums times twice the left side's shift.
    step : float32
        A unit of the codes, in units of the rows.
    """

    values: np.ndarray
    errors: np.ndarray
    lengths: np.ndarray
    sums: np.ndarray
    step: np.float32


@nb.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _encode_row(row, middle, step, codes):
    """Write a row's codes; return their squared error."""
    total, unit = np.float32(0), np.float32(1) / step
    # code = round((x - middle) / step), clipped to +-127; the error is |x - middle - step code|.
    for c in range(len(codes)):
        offset = row[c] - middle[c]
        code = np.rint(min(max(offset * unit, -LARGEST), LARGEST))
        codes[c] = np.int8(code)
        gap = offset - step * code
        total += gap * gap
    return total


@nb.njit(inline="always")
def _sums(code):
    """Return the squared length of a row's codes, and their sum times twice the left side's shift.

    Products take the left side as code + shift: 2 (a + shift).b = 2 a.b + 2 shift sum(b).
    """
    length, total = np.int32(0), np.int32(0)
    for c in range(len(code)):
        value = np.int32(code[c])
        length = np.int32(length + np.int32(value * value))
        total = np.int32(total + value)
    return length, np.int32(np.int32(2 * SHIFT) * total)


def code_step(extent: float) -> np.float32:
    """Return the unit of codes that cover an extent, within limits that keep squared sums finite."""
    return np.float32(min(max(float(extent) / float(LARGEST), 1e-30), 1e14))


@nb.njit(cache=True, nogil=True)
def _encode(x, middle, step, values, errors, lengths, sums):
    for i in range(len(values)):
        errors[i] = np.sqrt(_encode_row(x[i], middle, step, values[i, : len(middle)])) * ROUNDING
        lengths[i], sums[i] = _sums(values[i])


def encode(x: np.ndarray) -> Codes:
    """Code rows relative to the median of a sample.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)

    Returns
    -------
    Codes
    """
    columns = min(x.shape[1], MAX_COLUMNS) if x.shape[1] >= MIN_COLUMNS else 0
    values, errors = np.zeros((len(x), -(-columns // WIDTH) * WIDTH), np.int8), np.zeros(len(x), np.float32)
    lengths, sums = np.zeros((2, len(x)), np.int32)
    if not columns or not len(x):
        return Codes(values, errors, lengths, sums, np.float32(1))
    sample = x[:: -(-len(x) // SAMPLE), :columns]
    middle = np.median(sample, axis=0)
    with np.errstate(over="ignore"):
        extents = np.abs(sample - middle)
    extent = np.quantile(extents, COVERED, method="higher") or extents.max()
    step = code_step(extent)
    _encode(x, middle, step, values, errors, lengths, sums)
    return Codes(values, errors, lengths, sums, step)


def code_scale(sample: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Return the middle and the unit of the codes of a leaf.

    Codes cover twice the median extent of the sample's rows; rows beyond have no code, and an infinite error.

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
        return middle, code_step(2 * float(np.median(extents)) or extents.max())


@nb.njit(cache=True, nogil=True)
def _code(row, middle, unit, code):
    """Write a row's codes; return their error, infinity if it is more than rounding gives: the row is out of range."""
    columns = min(len(row), len(code))
    total = _encode_row(row, middle, unit, code[:columns])
    for c in range(columns, len(row)):
        total += (row[c] - middle[c]) ** 2
    # Rounding alone gives at most step / 2 a column, 0.25 step^2 each in the sum; more means clipping.
    by_rounding = np.float32(0.26) * unit * unit * len(code)
    return np.sqrt(total) * ROUNDING if total <= by_rounding else np.float32(np.inf)


@nb.njit(cache=True, nogil=True)
def code_rows(x, rows, middle, unit, codes, lengths, errors):
    """Code rows for the left side of products: as code + `SHIFT`.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
    rows : ndarray of int, shape (m,)
    middle : ndarray of float32, shape (dims,)
    unit : float32
        Like the middle, from `code_scale`.
    codes : ndarray of LEFT_TYPE, shape (at least m, width)
        Written, like the arrays that follow.
    lengths : ndarray of int32, shape (at least m,)
        The codes' squared lengths.
    errors : ndarray of float32, shape (at least m,)
        Upper bound of the distance of each row from its decoded codes; infinite for rows out of range.
    """
    code = np.zeros(codes.shape[1], np.int8)
    for i in range(len(rows)):
        errors[i] = _code(x[rows[i]], middle, unit, code)
        lengths[i], _ = _sums(code)
        for c in range(len(code)):
            codes[i, c] = np.int32(code[c]) + SHIFT


@nb.njit(cache=True, nogil=True)
def code_packs(x, rows, middle, unit, packs, lengths, errors):
    """Code rows for the right side of products: in packs of 16 rows, as `multiply` takes them.

    Parameters
    ----------
    x, rows, middle, unit, errors
        As for `code_rows`.
    packs : ndarray of int8, shape (packs, width / 4, 16, 4)
    lengths : ndarray of int32, shape (at least m,)
        Squared lengths, corrected for the left side's shift: left length + this - 2 product is the squared distance.
    """
    side = packs.shape[2]
    code = np.zeros(packs.shape[1] * packs.shape[3], np.int8)
    fours, places = code.view(np.int32), packs.view(np.int32)
    for j in range(len(rows)):
        errors[j] = _code(x[rows[j]], middle, unit, code)
        length, shifted = _sums(code)
        lengths[j] = length + shifted
        for c in range(len(fours)):
            places[j // side, c, j % side, 0] = fours[c]  # four columns of a row at once


@nb.njit(cache=True, nogil=True)
def distances_or_bounds(products, length, error, lengths, errors, unit, resolution, squared):
    """Turn a row's products into squared distances; up to `resolution`, or where a row has no code, into lower bounds.

    |a - b|^2 = |a|^2 + |b|^2 - 2 a.b in whole numbers, times unit^2; the errors of both codes are added in the mean,
    and subtracted for a lower bound.
    """
    for j in range(len(squared)):
        # In whole numbers up to here: the same on any processor.
        apart = unit * unit * np.float32(np.int32(length + lengths[j] - np.int32(2) * products[j]))
        about = apart + (error * error + errors[j] * errors[j])
        least = max(np.sqrt(apart) * ROUND_DOWN - (error + errors[j]), np.float32(0))
        squared[j] = about if resolution < about < np.inf else least * least


@nb.njit(inline="always")
def least_squared(codes, i, j):
    """Return a lower bound of two rows' squared distance: their codes' distance less both errors."""
    apart = codes.lengths[i] + codes.lengths[j] + codes.sums[j] - np.int32(2) * dot(codes.values[i], codes.values[j])
    least = codes.step * np.sqrt(np.float32(np.int32(apart))) - (codes.errors[i] + codes.errors[j])
    return min(least * least, FARTHEST) if least > 0 else np.float32(0)
