"""Rows as they come, checked once, and which of them are the same."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

ANGULAR = frozenset({"cosine", "correlation"})
"""Metrics of the angle between rows, for correlation once they are centred."""
BY_PRODUCT = ANGULAR | {"euclidean", "l2", "sqeuclidean"}
"""Metrics whose order is that of the Euclidean distance in partition space."""
DIVERGENCES = frozenset(
    {"hellinger", "jensen-shannon", "jensen_shannon"} | {"symmetric-kl", "symmetric_kl", "symmetric_kullback_liebler"}
)
"""Metrics of rows as distributions, whatever they add up to."""
RANKED = "spearmanr"
"""The metric of correlation between ranks."""
SPHERICAL = "haversine"
"""The metric of latitudes and longitudes, in radians."""
EUCLIDEAN_ORDER = BY_PRODUCT | {SPHERICAL}
"""Metrics whose order is that of the Euclidean distance where `place` and `partition_space` put rows."""
EXACT_IN_FLOAT32 = 2**24
"""Up to here float32 holds every whole number."""
STEP_ROWS = 4096
"""Rows that are cast at once, so that what float64 takes is small."""
SHORT = np.float32(0.9999)
"""Rounding that a distance is allowed where it bounds others from below."""
SLACK, ANGULAR_SLACK = 1e-5, 1e-6
"""By how much a pair may seem farther than it is: float32 sums in any order, and angles of rows of unit length."""
LANES = 16
"""Sums of which `ordered_distance` is made."""


def as_float32(values: np.ndarray) -> np.ndarray:
    """Cast to float32; what overflows becomes infinite, and is then counted as not finite."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32)


def is_wide(dtype: np.dtype) -> bool:
    """Tell whether float32 cannot hold all that a dtype can: float64, and integers of 32 bits and more."""
    return dtype.itemsize > 4 or (dtype.kind in "iu" and dtype.itemsize == 4)


def inexact(values: np.ndarray, cast: np.ndarray) -> np.ndarray:
    """Tell which rows a cast to float32 may change.

    Parameters
    ----------
    values : ndarray, shape (n, dims)
    cast : ndarray of float32, shape (n, dims)
        The same.

    Returns
    -------
    ndarray of bool, shape (n,)
        False where a row is not finite.
    """
    if values.dtype.kind in "iu":
        return np.asarray(((values > EXACT_IN_FLOAT32) | (values < -EXACT_IN_FLOAT32)).any(axis=1))
    return np.asarray((values != cast).any(axis=1) & np.isfinite(cast).all(axis=1))


def middle(rows: np.ndarray) -> np.ndarray:
    """Return the median of each column, the lower where there are two, so that it is one of the column's values."""
    return np.sort(rows, axis=0)[(len(rows) - 1) // 2]


def _differences(values: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Subtract in more than float32's precision; whole numbers before they are cast to anything."""
    if values.dtype.kind in "iu" and values.dtype.itemsize == 8:
        above, x, c = values >= centre, values.view(np.uint64), centre.view(np.uint64)
        far = np.where(above, x - c, c - x).astype(np.float32)  # unsigned, where no difference of two overflows
        return np.where(above, far, -far)
    if values.dtype.kind in "iu":
        return (values.astype(np.int64) - centre.astype(np.int64)).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        most = np.finfo(np.float32).max
        return np.clip(values.astype(np.float64) - centre, -most, most).astype(np.float32)


def on_sphere(rows: np.ndarray) -> np.ndarray:
    """Return where latitudes and longitudes, in radians, lie on the unit sphere, (n, 3) float64."""
    with np.errstate(invalid="ignore"):
        latitude, longitude = rows.astype(np.float64).T
        return np.stack(
            [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], axis=1
        )


def place(values: np.ndarray, metric: str, centre: np.ndarray | None) -> np.ndarray:
    """Return rows as they are embedded.

    Parameters
    ----------
    values : ndarray, shape (n, dims)
        As they come.
    metric : str
        For haversine, latitudes and longitudes become places on the unit sphere: there the world has neither edges
        nor poles, and chords are in the order of arcs.
    centre : ndarray, shape (dims,), optional
        What is subtracted before the cast, in the dtype of the values, or of their places on the sphere.

    Returns
    -------
    ndarray of float32, shape (n, dims); (n, 3) on the sphere
    """
    if centre is None and metric != SPHERICAL:
        return as_float32(values)
    out = np.empty((len(values), placed_dims(metric, values.shape[1])), np.float32)
    for low in range(0, len(values), STEP_ROWS):
        some = values[low : low + STEP_ROWS]
        some = on_sphere(some) if metric == SPHERICAL else some
        out[low : low + STEP_ROWS] = some if centre is None else _differences(some, centre)
    return out


def placed_dims(metric: str, dims: int) -> int:
    """Return how many dims rows have as they are embedded."""
    return 3 if metric == SPHERICAL else dims


@nb.njit(cache=True, nogil=True)
def great_circle(a: np.ndarray, b: np.ndarray) -> float:
    """Return the angle between two places on the unit sphere, less the same centre: the haversine distance."""
    total = 0.0
    for c in range(a.shape[0]):
        gap = np.float64(a[c]) - np.float64(b[c])
        total += gap * gap
    return 2 * np.arcsin(min(1.0, np.sqrt(total) / 2))


@nb.njit(cache=True, nogil=True)
def _check(x: np.ndarray, finite: np.ndarray, zero: np.ndarray) -> None:
    for i in range(x.shape[0]):
        good, null = True, True
        for j in range(x.shape[1]):
            value = x[i, j]
            good &= np.isfinite(value)
            null &= value == 0
        finite[i], zero[i] = good, null


def check(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the rows that are finite and those that are zero.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)

    Returns
    -------
    finite, zero : ndarray of bool, shape (n,)
    """
    finite, zero = np.empty(len(x), np.bool_), np.empty(len(x), np.bool_)
    _check(x, finite, zero)
    return finite, zero


def tally(keys: np.ndarray, rows: np.ndarray, times: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the distinct keys, and add up how often each was seen.

    Tallies join: tally what several of them found, in the order of their rows.

    Parameters
    ----------
    keys : ndarray of uint64, shape (words, n)
        A column a key.
    rows : ndarray of int, shape (n,)
        Ascending among equal keys.
    times : ndarray of int, shape (n,)

    Returns
    -------
    keys : ndarray of uint64, shape (words, distinct)
        Ascending, the first word first.
    rows : ndarray of int, shape (distinct,)
        The first row of each key.
    times : ndarray of int, shape (distinct,)
    """
    order = np.lexsort(keys[::-1])
    keys = keys[:, order]
    new = np.ones(keys.shape[1], bool)
    new[1:] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
    begin = np.flatnonzero(new)
    rows = rows[order[begin]]
    return keys[:, begin], rows, np.add.reduceat(times[order], begin, dtype=times.dtype) if len(begin) else times


def find(keys: np.ndarray, table: np.ndarray) -> np.ndarray:
    """Look keys up in a tally's.

    Parameters
    ----------
    keys : ndarray of uint64, shape (words, n)
    table : ndarray of uint64, shape (words, m)
        Ascending and distinct.

    Returns
    -------
    ndarray of int64, shape (n,)
        Columns of `table`; -1 where a key is not in it.
    """
    return _find(np.ascontiguousarray(keys), np.ascontiguousarray(table))


@nb.njit(cache=True, nogil=True)
def _find(keys, table):
    out = np.full(keys.shape[1], -1, np.int64)
    for i in range(keys.shape[1]):
        low, high = 0, table.shape[1]
        while low < high:
            middle = (low + high) >> 1
            word = 0
            while word < keys.shape[0] - 1 and table[word, middle] == keys[word, i]:
                word += 1
            if table[word, middle] < keys[word, i]:
                low = middle + 1
            elif table[word, middle] > keys[word, i]:
                high = middle
            else:
                out[i] = middle
                break
    return out


def partition_space(x: np.ndarray, metric: str) -> np.ndarray:
    """Map rows to where Euclidean distance orders neighbours much as the metric does.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
    metric : str
        A metric's name, as pynndescent has it.

    Returns
    -------
    ndarray of float32, shape (n, dims)
        Centred for correlation, of unit length for angular metrics; zero rows stay zero. For metrics of
        distributions the roots of their shares, for Spearman's the ranks as for correlation.
    """
    if metric in DIVERGENCES:
        x = np.maximum(x, 0)
        sums = x.sum(axis=1, keepdims=True, dtype=np.float64)
        return np.sqrt(x / np.where(sums > 0, sums, 1)).astype(np.float32)
    if metric == RANKED:
        from scipy.stats import rankdata  # slow to import, and for this alone

        x, metric = rankdata(x, axis=1).astype(np.float32), "correlation"
    if metric == "correlation":
        x = x - x.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    if metric in ANGULAR:
        length = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))
        x = (x / np.where(length > 0, length, 1)[:, None]).astype(np.float32)
    return x


@nb.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def squared_distance(a: np.ndarray, b: np.ndarray) -> np.float32:
    """Return the squared Euclidean distance of two rows, summed in whatever order is fastest."""
    total = np.float32(0)
    for c in range(a.shape[0]):
        gap = a[c] - b[c]
        total += gap * gap
    return total


def _sum_in_lanes(context, a, b, chunks):
    """Sum squares of differences in `LANES` lanes, then halve these: written for the compiler, which finds no lanes."""

    def generate(context, builder, signature, arguments):
        lanes = ir.VectorType(ir.FloatType(), LANES)
        rows = [context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in range(2)]
        rows = [builder.bitcast(row, lanes.as_pointer()) for row in rows]
        total = cgutils.alloca_once_value(builder, ir.Constant(lanes, [0.0] * LANES))
        with cgutils.for_range(builder, arguments[2]) as loop:
            x, y = (builder.load(builder.gep(row, [loop.index]), align=4) for row in rows)
            gap = builder.fsub(x, y)
            builder.store(builder.fadd(builder.load(total), builder.fmul(gap, gap)), total)
        found, width = builder.load(total), LANES
        while width > 1:
            width //= 2
            halves = [
                builder.shuffle_vector(
                    found, found, ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(first, first + width)))
                )
                for first in (0, width)
            ]
            found = builder.fadd(*halves)
        return builder.extract_element(found, ir.IntType(32)(0))

    return types.float32(a, b, types.intp), generate


_in_lanes: Any = intrinsic(_sum_in_lanes)


@nb.njit(cache=True, nogil=True)
def ordered_distance(a: np.ndarray, b: np.ndarray) -> np.float32:
    """Return the squared Euclidean distance of two contiguous rows of float32, in one order whatever the processor."""
    chunks = len(a) // LANES
    total = _in_lanes(a, b, chunks)
    for c in range(chunks * LANES, len(a)):
        gap = a[c] - b[c]
        total += gap * gap
    return total


def with_direction(x: np.ndarray) -> np.ndarray:
    """Give rows without direction one of their own, at a right angle to all others.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
        Rows of unit length, or zero.

    Returns
    -------
    ndarray of float32, shape (n, dims) or (n, dims + 1)
    """
    zero = np.asarray(~x.any(axis=1))
    return np.concatenate([x, zero[:, None].astype(np.float32)], axis=1) if zero.any() else x


def power_near(extent: float) -> np.float32:
    """Return the power of two by which an extent comes to about 1."""
    return np.float32(np.ldexp(1.0, -int(np.clip(np.frexp(extent)[1], -126, 126))))


def from_squared(squared: np.ndarray, metric: str) -> np.ndarray:
    """Return a metric's distances, given squared Euclidean ones in partition space; for those of Euclidean order."""
    if metric == SPHERICAL:
        return 2 * np.arcsin(np.minimum(np.sqrt(squared) / 2, 1))
    if metric in ANGULAR:
        return squared / 2
    return squared if metric == "sqeuclidean" else np.sqrt(squared)


def squared_limits(reach: np.ndarray, metric: str) -> np.ndarray:
    """Return the squared distances in partition space beyond which no pair is as near as `reach`.

    The inverse of `from_squared`, and a little more, for what rounding takes away.
    """
    if metric == SPHERICAL:
        chord = 2 * np.sin(np.minimum(reach, np.pi) / 2)
        return np.where(reach < np.pi, chord * chord * (1 + SLACK), np.inf)
    if metric in ANGULAR:
        return 2 * reach * (1 + SLACK) + ANGULAR_SLACK
    return (reach if metric == "sqeuclidean" else reach * reach) * (1 + SLACK)
