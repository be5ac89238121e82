"""Codes: rows quantised to one byte a column, whose distances are lower bounds of the rows' distances."""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np

from dumap.kernels.instructions import COLUMN_GROUP, PACK_ROWS
from dumap.kernels.products import LEFT_OFFSET, dot_codes
from dumap.kernels.vectors import ROUND_DOWN

MIN_CODE_COLUMNS = 32
"""With fewer columns, the distance itself is cheaper than the bound."""
MAX_CODE_COLUMNS, WIDTH_MULTIPLE = 32_768, PACK_ROWS * COLUMN_GROUP
"""The most columns that are coded: the sum of their squared differences still fits 32 bits; and the bytes of a coded
row are a multiple of the width."""
MAX_CODE, MAX_SQUARED = np.float32(127), np.finfo(np.float32).max
CODE_SAMPLE_ROWS = 256
ERROR_ROUND_UP = np.float32(1.0001)
TILE_CODE_BYTES = 2**18
"""Bytes of codes that rows are multiplied with at once: so many that they stay in the cache."""
COVERED_SHARE = 0.999
"""Share of a sample's values within the codes' range; values outside are clipped, which the row's error allows for."""


class Codes(NamedTuple):
    """Coded rows.

    Attributes
    ----------
    values : ndarray of int8, shape (n, columns)
        No columns if there are fewer than `MIN_CODE_COLUMNS`.
    errors : ndarray of float32, shape (n,)
        Upper bound of the distance of each row from its decoded code.
    squared_lengths, shifted_sums : ndarray of int32, shape (n,)
        Squared lengths of the codes, and their sums times twice the left side's shift.
    unit : float32
        A unit of the codes, in units of the rows.
    """

    values: np.ndarray
    errors: np.ndarray
    squared_lengths: np.ndarray
    shifted_sums: np.ndarray
    unit: np.float32


@nb.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def _encode_row(row, centre, unit, code):
    """Write a row's codes; return their squared error."""
    squared_error, inverse_unit = np.float32(0), np.float32(1) / unit
    # code = round((x - middle) / step), clipped to +-127; the error is |x - middle - step code|.
    for c in range(len(code)):
        difference = row[c] - centre[c]
        value = np.rint(min(max(difference * inverse_unit, -MAX_CODE), MAX_CODE))
        code[c] = np.int8(value)
        error = difference - unit * value
        squared_error += error * error
    return squared_error


@nb.njit(inline="always")
def _squared_length_and_sum(code):
    """Return the squared length of a row's codes, and their sum times twice the left side's shift.

    Products take the left side as code + shift: 2 (a + shift).b = 2 a.b + 2 shift sum(b).
    """
    squared_length, total = np.int32(0), np.int32(0)
    for c in range(len(code)):
        value = np.int32(code[c])
        squared_length = np.int32(squared_length + np.int32(value * value))
        total = np.int32(total + value)
    return squared_length, np.int32(np.int32(2 * LEFT_OFFSET) * total)


def unit_for_extent(extent: float) -> np.float32:
    """Return the unit of codes that cover an extent, within limits that keep squared sums finite."""
    return np.float32(min(max(float(extent) / float(MAX_CODE), 1e-30), 1e14))


@nb.njit(cache=True, nogil=True)
def _encode_rows(x, centre, unit, values, errors, squared_lengths, shifted_sums):
    for i in range(len(values)):
        errors[i] = np.sqrt(_encode_row(x[i], centre, unit, values[i, : len(centre)])) * ERROR_ROUND_UP
        squared_lengths[i], shifted_sums[i] = _squared_length_and_sum(values[i])


def encode_rows(x: np.ndarray) -> Codes:
    """Code rows relative to the median of a sample.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)

    Returns
    -------
    Codes
    """
    n_columns = min(x.shape[1], MAX_CODE_COLUMNS) if x.shape[1] >= MIN_CODE_COLUMNS else 0
    values, errors = (
        np.zeros((len(x), -(-n_columns // WIDTH_MULTIPLE) * WIDTH_MULTIPLE), np.int8),
        np.zeros(len(x), np.float32),
    )
    squared_lengths, shifted_sums = np.zeros((2, len(x)), np.int32)
    if not n_columns or not len(x):
        return Codes(values, errors, squared_lengths, shifted_sums, np.float32(1))
    sample = x[:: -(-len(x) // CODE_SAMPLE_ROWS), :n_columns]
    centre = np.median(sample, axis=0)
    with np.errstate(over="ignore"):
        extents = np.abs(sample - centre)
    extent = np.quantile(extents, COVERED_SHARE, method="higher") or extents.max()
    unit = unit_for_extent(extent)
    _encode_rows(x, centre, unit, values, errors, squared_lengths, shifted_sums)
    return Codes(values, errors, squared_lengths, shifted_sums, unit)


def code_scale(sample: np.ndarray) -> tuple[np.ndarray, np.float32]:
    """Return the middle and the unit of the codes of a leaf.

    Codes cover twice the median extent of the sample's rows; rows beyond have no code, and an infinite error.

    Parameters
    ----------
    sample : ndarray of float32, shape (m, columns)

    Returns
    -------
    centre : ndarray of float32, shape (columns,)
    unit : float32
    """
    with np.errstate(over="ignore", invalid="ignore"):
        centre = np.median(sample, axis=0)
        extents = np.nan_to_num(np.abs(sample - centre).max(axis=1))
        return centre, unit_for_extent(2 * float(np.median(extents)) or extents.max())


@nb.njit(cache=True, nogil=True)
def _encode_with_error(row, centre, unit, code):
    """Write a row's codes; return their error, infinity if it is more than rounding gives: the row is out of range."""
    n_columns = min(len(row), len(code))
    squared_error = _encode_row(row, centre, unit, code[:n_columns])
    for c in range(n_columns, len(row)):
        squared_error += (row[c] - centre[c]) ** 2
    # Rounding alone gives at most step / 2 a column, 0.25 step^2 each in the sum; more means clipping.
    max_by_rounding = np.float32(0.26) * unit * unit * len(code)
    return np.sqrt(squared_error) * ERROR_ROUND_UP if squared_error <= max_by_rounding else np.float32(np.inf)


@nb.njit(cache=True, nogil=True)
def encode_left_rows(x, rows, centre, unit, codes, squared_lengths, errors):
    """Code rows for the left side of products: as code + `LEFT_OFFSET`.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
    rows : ndarray of int, shape (m,)
    centre : ndarray of float32, shape (dims,)
    unit : float32
        Like the middle, from `code_scale`.
    codes : ndarray of LEFT_TYPE, shape (at least m, width)
        Written, like the arrays that follow.
    squared_lengths : ndarray of int32, shape (at least m,)
        The codes' squared lengths.
    errors : ndarray of float32, shape (at least m,)
        Upper bound of the distance of each row from its decoded codes; infinite for rows out of range.
    """
    code = np.zeros(codes.shape[1], np.int8)
    for i in range(len(rows)):
        errors[i] = _encode_with_error(x[rows[i]], centre, unit, code)
        squared_lengths[i], _ = _squared_length_and_sum(code)
        for c in range(len(code)):
            codes[i, c] = np.int32(code[c]) + LEFT_OFFSET


@nb.njit(cache=True, nogil=True)
def encode_right_packs(x, rows, centre, unit, packs, corrected_lengths, errors):
    """Code rows for the right side of products: in packs of 16 rows, as `multiply_packs` takes them.

    Parameters
    ----------
    x, rows, centre, unit, errors
        As for `encode_left_rows`.
    packs : ndarray of int8, shape (packs, width / 4, 16, 4)
    corrected_lengths : ndarray of int32, shape (at least m,)
        Squared lengths, corrected for the left side's shift: left length + this - 2 product is the squared distance.
    """
    pack_rows = packs.shape[2]
    code = np.zeros(packs.shape[1] * packs.shape[3], np.int8)
    code_words, pack_words = code.view(np.int32), packs.view(np.int32)
    for j in range(len(rows)):
        errors[j] = _encode_with_error(x[rows[j]], centre, unit, code)
        squared_length, shifted_sum = _squared_length_and_sum(code)
        corrected_lengths[j] = squared_length + shifted_sum
        for c in range(len(code_words)):
            pack_words[j // pack_rows, c, j % pack_rows, 0] = code_words[c]  # four columns of a row at once


@nb.njit(cache=True, nogil=True)
def distances_or_bounds(products, row_length, row_error, lengths, errors, unit, resolution, squared):
    """Turn a row's products into squared distances; up to `resolution`, or where a row has no code, into lower bounds.

    |a - b|^2 = |a|^2 + |b|^2 - 2 a.b in whole numbers, times unit^2; the errors of both codes are added in the mean,
    and subtracted for a lower bound.
    """
    for j in range(len(squared)):
        # In whole numbers up to here: the same on any processor.
        code_squared = unit * unit * np.float32(np.int32(row_length + lengths[j] - np.int32(2) * products[j]))
        estimate = code_squared + (row_error * row_error + errors[j] * errors[j])
        lower_bound = max(np.sqrt(code_squared) * ROUND_DOWN - (row_error + errors[j]), np.float32(0))
        squared[j] = estimate if resolution < estimate < np.inf else lower_bound * lower_bound


@nb.njit(inline="always")
def squared_lower_bound(codes, i, j):
    """Return a lower bound of two rows' squared distance: their codes' distance less both errors."""
    code_squared = (
        codes.squared_lengths[i]
        + codes.squared_lengths[j]
        + codes.shifted_sums[j]
        - np.int32(2) * dot_codes(codes.values[i], codes.values[j])
    )
    lower_bound = codes.unit * np.sqrt(np.float32(np.int32(code_squared))) - (codes.errors[i] + codes.errors[j])
    return min(lower_bound * lower_bound, MAX_SQUARED) if lower_bound > 0 else np.float32(0)
