"""Rows as they are read: casts, checks, duplicates, and the Euclidean space in which neighbours are searched."""

from __future__ import annotations

from typing import Any

import numba as nb
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic

ANGULAR_METRICS = frozenset({"cosine", "correlation"})
"""Metrics of the angle between rows. Correlation is of the angle between centred rows."""
DIVERGENCES = frozenset(
    {"hellinger", "jensen-shannon", "jensen_shannon"} | {"symmetric-kl", "symmetric_kl", "symmetric_kullback_liebler"}
)
"""Metrics between distributions: rows are divided by their sums."""
SPEARMAN = "spearmanr"
"""The metric of correlation between ranks."""
SPHERICAL = "haversine"
"""The metric of latitudes and longitudes, in radians."""
BIT_METRICS = {"bit_hamming": "sqeuclidean", "bit_jaccard": "jaccard"}
"""Metrics of bits, eight to a byte, and the equal metrics of rows that hold a number for each bit."""
SQUARED_METRICS = frozenset({"sqeuclidean", "bit_hamming"})
"""Metrics that are squared Euclidean distances."""
EUCLIDEAN_ORDER_METRICS = ANGULAR_METRICS | {"euclidean", "l2", "sqeuclidean", "bit_hamming", SPHERICAL}
"""Metrics that rank neighbours exactly as the Euclidean distance does after `prepare_rows` and `to_euclidean`."""
EXACT_IN_FLOAT32 = 2**24
"""float32 holds every whole number up to this one."""
CAST_ROWS = 4096
"""Rows that are cast at once, so that little memory is needed in float64."""
ROUND_DOWN = np.float32(0.9999)
"""Factor that makes a rounded distance safe as a lower bound."""
ROUNDING_SHARE, ANGULAR_ROUNDING = 1e-5, 1e-6
"""Rounding errors: relative, of sums in float32; and absolute, of angles between rows of unit length."""
LANES = 16
"""Partial sums of `ordered_distance`."""


def as_float32(values: np.ndarray) -> np.ndarray:
    """Cast to float32; values that overflow become infinite, and their rows count as not finite."""
    with np.errstate(over="ignore"):
        return np.ascontiguousarray(values, np.float32)


def exceeds_float32(dtype: np.dtype) -> bool:
    """Return whether a dtype has values that float32 has not: float64, and integers of 32 bits and more."""
    return dtype.itemsize > 4 or (dtype.kind in "iu" and dtype.itemsize == 4)


def changed_by_cast(values: np.ndarray, cast: np.ndarray) -> np.ndarray:
    """Return which rows a cast to float32 may change.

    Parameters
    ----------
    values : ndarray, shape (n, dims)
    cast : ndarray of float32, shape (n, dims)
        The same rows after the cast.

    Returns
    -------
    ndarray of bool, shape (n,)
        False where a row is not finite.
    """
    if values.dtype.kind in "iu":
        return np.asarray(((values > EXACT_IN_FLOAT32) | (values < -EXACT_IN_FLOAT32)).any(axis=1))
    return np.asarray((values != cast).any(axis=1) & np.isfinite(cast).all(axis=1))


def lower_median(rows: np.ndarray) -> np.ndarray:
    """Return the median of each column, the lower of two, so that it is a value of the column."""
    return np.sort(rows, axis=0)[(len(rows) - 1) // 2]


def _differences(values: np.ndarray, centre: np.ndarray) -> np.ndarray:
    """Subtract the centre in float64, or in integers, so that the cast to float32 loses little."""
    if values.dtype.kind in "iu" and values.dtype.itemsize == 8:
        is_above, value_bits, centre_bits = values >= centre, values.view(np.uint64), centre.view(np.uint64)
        distance = np.where(is_above, value_bits - centre_bits, centre_bits - value_bits).astype(
            np.float32
        )  # a difference of unsigned numbers does not overflow
        return np.where(is_above, distance, -distance)
    if values.dtype.kind in "iu":
        return (values.astype(np.int64) - centre.astype(np.int64)).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        max_float32 = np.finfo(np.float32).max
        return np.clip(values.astype(np.float64) - centre, -max_float32, max_float32).astype(np.float32)


def to_sphere(rows: np.ndarray) -> np.ndarray:
    """Map latitudes and longitudes, in radians, to points of the unit sphere, (n, 3) float64."""
    with np.errstate(invalid="ignore"):
        latitude, longitude = rows.astype(np.float64).T
        return np.stack(
            [np.cos(latitude) * np.cos(longitude), np.cos(latitude) * np.sin(longitude), np.sin(latitude)], axis=1
        )


def prepare_rows(values: np.ndarray, metric: str, centre: np.ndarray | None) -> np.ndarray:
    """Return rows as float32, centred, and on the unit sphere for haversine: the rows that all later stages read.

    Parameters
    ----------
    values : ndarray, shape (n, dims)
        Values of the input.
    metric : str
        With haversine, latitudes and longitudes become points of the unit sphere, where chords rank as arcs do and
        there is no date line.
    centre : ndarray, shape (dims,), optional
        Subtracted from the rows before the cast. It has the dtype of the values, or float64 for points of the sphere.

    Returns
    -------
    ndarray of float32, shape (n, dims); (n, 3) on the sphere, (n, 8 * dims) of bits
    """
    if centre is None and metric != SPHERICAL:
        return as_float32(unpack_bits(values, metric))
    out = np.empty((len(values), prepared_dims(metric, values.shape[1])), np.float32)
    for low in range(0, len(values), CAST_ROWS):
        block = values[low : low + CAST_ROWS]
        block = to_sphere(block) if metric == SPHERICAL else block
        out[low : low + CAST_ROWS] = block if centre is None else _differences(block, centre)
    return out


def unpack_bits(values: np.ndarray, metric: str) -> np.ndarray:
    """Return rows with a number, 0 or 1, for each bit if the metric is of bits, and other rows unchanged.

    Parameters
    ----------
    values : ndarray, shape (n, dims)
        Bytes, in any dtype.
    metric : str

    Returns
    -------
    ndarray of uint8, shape (n, 8 * dims)
        The highest bit of a byte comes first.
    """
    return np.unpackbits(values.astype(np.uint8), axis=1) if metric in BIT_METRICS else values


def prepared_dims(metric: str, dims: int) -> int:
    """Return how many dims the rows of `prepare_rows` have."""
    return 3 if metric == SPHERICAL else 8 * dims if metric in BIT_METRICS else dims


@nb.njit(cache=True, nogil=True)
def great_circle(a: np.ndarray, b: np.ndarray) -> float:
    """Return the haversine distance, 2 arcsin(chord / 2), of two points of the sphere, from which one centre was
    subtracted.
    """
    total = 0.0
    for c in range(a.shape[0]):
        difference = np.float64(a[c]) - np.float64(b[c])
        total += difference * difference
    return 2 * np.arcsin(min(1.0, np.sqrt(total) / 2))


@nb.njit(cache=True, nogil=True)
def _find_finite_and_zero(x: np.ndarray, is_finite: np.ndarray, is_zero: np.ndarray) -> None:
    for i in range(x.shape[0]):
        row_is_finite, row_is_zero = True, True
        for j in range(x.shape[1]):
            value = x[i, j]
            row_is_finite &= np.isfinite(value)
            row_is_zero &= value == 0
        is_finite[i], is_zero[i] = row_is_finite, row_is_zero


def find_finite_and_zero(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Find the finite rows and the zero rows.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)

    Returns
    -------
    is_finite, is_zero : ndarray of bool, shape (n,)
    """
    is_finite, is_zero = np.empty(len(x), np.bool_), np.empty(len(x), np.bool_)
    _find_finite_and_zero(x, is_finite, is_zero)
    return is_finite, is_zero


def count_keys(keys: np.ndarray, rows: np.ndarray, counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Find the distinct keys and count each.

    To merge counts, concatenate them in the order of their rows and count again.

    Parameters
    ----------
    keys : ndarray of uint64, shape (words, n)
        Each column is a key.
    rows : ndarray of int, shape (n,)
        Ascending among equal keys.
    counts : ndarray of int, shape (n,)

    Returns
    -------
    keys : ndarray of uint64, shape (words, distinct)
        Ascending, the first word first.
    rows : ndarray of int, shape (distinct,)
        The first row of each key.
    counts : ndarray of int, shape (distinct,)
    """
    order = np.lexsort(keys[::-1])
    keys = keys[:, order]
    is_first = np.ones(keys.shape[1], bool)
    is_first[1:] = (keys[:, 1:] != keys[:, :-1]).any(axis=0)
    starts = np.flatnonzero(is_first)
    rows = rows[order[starts]]
    return keys[:, starts], rows, np.add.reduceat(counts[order], starts, dtype=counts.dtype) if len(starts) else counts


def look_up_keys(keys: np.ndarray, sorted_keys: np.ndarray) -> np.ndarray:
    """Look keys up among sorted distinct keys.

    Parameters
    ----------
    keys : ndarray of uint64, shape (words, n)
    sorted_keys : ndarray of uint64, shape (words, m)
        Ascending and distinct.

    Returns
    -------
    ndarray of int64, shape (n,)
        Columns of `sorted_keys`; -1 where a key is not in it.
    """
    return _look_up_keys(np.ascontiguousarray(keys), np.ascontiguousarray(sorted_keys))


@nb.njit(cache=True, nogil=True)
def _look_up_keys(keys, sorted_keys):
    out = np.full(keys.shape[1], -1, np.int64)
    for i in range(keys.shape[1]):
        low, high = 0, sorted_keys.shape[1]  # binary search; keys compare word by word
        while low < high:
            middle = (low + high) >> 1
            word = 0
            while word < keys.shape[0] - 1 and sorted_keys[word, middle] == keys[word, i]:
                word += 1
            if sorted_keys[word, middle] < keys[word, i]:
                low = middle + 1
            elif sorted_keys[word, middle] > keys[word, i]:
                high = middle
            else:
                out[i] = middle
                break
    return out


def to_euclidean(x: np.ndarray, metric: str) -> np.ndarray:
    """Map rows to a space where the Euclidean distance ranks neighbours as the metric does.

    The ranks agree exactly for metrics of `EUCLIDEAN_ORDER_METRICS`, and roughly for metrics of distributions and
    Spearman's. Rows stay unchanged with other metrics. Cells are made in this space.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
    metric : str
        The metric's name in pynndescent.

    Returns
    -------
    ndarray of float32, shape (n, dims)
        For angular metrics, rows of unit length, centred first for correlation; zero rows stay zero. For metrics of
        distributions, the square roots of the values' shares. For Spearman's, the values' ranks, mapped as for
        correlation.
    """
    if metric in DIVERGENCES:
        x = np.maximum(x, 0)
        sums = x.sum(axis=1, keepdims=True, dtype=np.float64)
        return np.sqrt(x / np.where(sums > 0, sums, 1)).astype(np.float32)
    if metric == SPEARMAN:
        from scipy.stats import rankdata  # a slow import that only this metric needs

        x, metric = rankdata(x, axis=1).astype(np.float32), "correlation"
    if metric == "correlation":
        x = x - x.mean(axis=1, keepdims=True, dtype=np.float64).astype(np.float32)
    if metric in ANGULAR_METRICS:
        length = np.sqrt(np.einsum("ij,ij->i", x, x, dtype=np.float64))
        x = (x / np.where(length > 0, length, 1)[:, None]).astype(np.float32)
    return x


@nb.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def squared_distance(a: np.ndarray, b: np.ndarray) -> np.float32:
    """Return the squared Euclidean distance of two rows. The order of the sum is not fixed."""
    total = np.float32(0)
    for c in range(a.shape[0]):
        difference = a[c] - b[c]
        total += difference * difference
    return total


def _generate_sum_in_lanes(context, a, b, chunks):
    """Sum squared differences in `LANES` lanes, then add up halves; in LLVM, since numba would not vectorize it."""

    def generate(context, builder, signature, arguments):
        vector_type = ir.VectorType(ir.FloatType(), LANES)
        rows = [context.make_array(signature.args[i])(context, builder, arguments[i]).data for i in range(2)]
        rows = [builder.bitcast(row, vector_type.as_pointer()) for row in rows]
        total = cgutils.alloca_once_value(builder, ir.Constant(vector_type, [0.0] * LANES))
        with cgutils.for_range(builder, arguments[2]) as loop:
            x, y = (builder.load(builder.gep(row, [loop.index]), align=4) for row in rows)
            difference = builder.fsub(x, y)
            builder.store(builder.fadd(builder.load(total), builder.fmul(difference, difference)), total)
        sums, width = builder.load(total), LANES
        while width > 1:
            width //= 2
            halves = [
                builder.shuffle_vector(
                    sums, sums, ir.Constant(ir.VectorType(ir.IntType(32), width), list(range(first, first + width)))
                )
                for first in (0, width)
            ]
            sums = builder.fadd(*halves)
        return builder.extract_element(sums, ir.IntType(32)(0))

    return types.float32(a, b, types.intp), generate


_sum_squares_in_lanes: Any = intrinsic(_generate_sum_in_lanes)


@nb.njit(cache=True, nogil=True)
def ordered_distance(a: np.ndarray, b: np.ndarray) -> np.float32:
    """Return the squared distance of two contiguous float32 rows, summed in the same order on any processor."""
    n_chunks = len(a) // LANES  # whole vectors first, then the columns that are left, one by one
    total = _sum_squares_in_lanes(a, b, n_chunks)
    for c in range(n_chunks * LANES, len(a)):
        difference = a[c] - b[c]
        total += difference * difference
    return total


def add_zero_column(x: np.ndarray) -> np.ndarray:
    """Append a column that is 1 for zero rows, if there are zero rows. They are then at a right angle to all other
    rows.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
        Rows of unit length, or zero.

    Returns
    -------
    ndarray of float32, shape (n, dims) or (n, dims + 1)
    """
    is_zero = np.asarray(~x.any(axis=1))
    return np.concatenate([x, is_zero[:, None].astype(np.float32)], axis=1) if is_zero.any() else x


def scale_to_one(extent: float) -> np.float32:
    """Return the power of two that scales an extent to about 1."""
    return np.float32(np.ldexp(1.0, -int(np.clip(np.frexp(extent)[1], -126, 126))))


def metric_from_squared(squared: np.ndarray, metric: str) -> np.ndarray:
    """Turn squared Euclidean distances after `to_euclidean` into the metric's (one of `EUCLIDEAN_ORDER_METRICS`)."""
    if metric == SPHERICAL:
        return 2 * np.arcsin(np.minimum(np.sqrt(squared) / 2, 1))
    if metric in ANGULAR_METRICS:
        return squared / 2
    return squared if metric in SQUARED_METRICS else np.sqrt(squared)


def squared_from_metric(distances: np.ndarray, metric: str) -> np.ndarray:
    """Turn a metric's distances into squared Euclidean ones after `to_euclidean`, rounded up.

    The inverse of `metric_from_squared`. It is rounded up so far that rounding hides no nearer pair.
    """
    if metric == SPHERICAL:
        chord = 2 * np.sin(np.minimum(distances, np.pi) / 2)
        return np.where(distances < np.pi, chord * chord * (1 + ROUNDING_SHARE), np.inf)
    if metric in ANGULAR_METRICS:
        return 2 * distances * (1 + ROUNDING_SHARE) + ANGULAR_ROUNDING
    return (distances if metric in SQUARED_METRICS else distances * distances) * (1 + ROUNDING_SHARE)
