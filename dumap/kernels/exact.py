"""Exact nearest rows of queries, by squared Euclidean distances in float64.

Products of codes (see `codes`) give a lower bound of every distance: most rows are ruled out by it, and only the others
are compared in full.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels.codes import (
    COLUMN_BYTES,
    COVERED,
    MAX_COLUMNS,
    MIN_COLUMNS,
    SAMPLE,
    code_packs,
    code_rows,
    code_step,
    distances_or_bounds,
)
from dumap.kernels.instructions import DEPTH, PACK
from dumap.kernels.products import LEFT_TYPE, ROWS, multiply
from dumap.kernels.quality import insert, keep_nearest, squared_distances
from dumap.kernels.threads import one_thread

MOST_COMPARED = 1 / 16
"""Share of pairs that may be compared in full; where codes rule out less, matrix products of all are faster."""
MOST_BYTES = 32 * 2**20
"""Bytes of the distances that are computed at once by matrix products."""
ROUND_UP = np.float32(1.001)


@nb.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def squared_in_float64(a: np.ndarray, b: np.ndarray, angular: bool) -> float:
    """Return the squared distance of two float32 rows, summed in float64.

    For angular metrics the last column tells zero rows, which are at a right angle to all others.
    """
    if angular and a[-1] != b[-1]:
        return 2.0
    total = 0.0
    for c in range(len(a)):
        gap = np.float64(a[c]) - np.float64(b[c])
        total += gap * gap
    return total


@nb.njit(cache=True, nogil=True)
def measure_listed(queries, x, angular, columns, out):
    """Fill in the squared distances of listed rows, (m, k): those with a column of `x`, which is -1 for the others."""
    for q in range(columns.shape[0]):
        for s in range(columns.shape[1]):
            if columns[q, s] >= 0:
                out[q, s] = squared_in_float64(queries[q], x[columns[q, s]], angular)


@nb.njit(cache=True, nogil=True)
def _compare_near(query, x, angular, ids, skip, bounds, indices, distances):
    """Compare a query with the rows that bounds do not rule out; return with how many."""
    compared, last = 0, len(indices) - 1
    limit = distances[last] * ROUND_UP
    for low in range(0, len(bounds), PACK):
        high = min(low + PACK, len(bounds))
        near = np.int32(0)
        for j in range(low, high):
            near += np.int32(bounds[j] <= limit)
        if near == 0:
            continue
        for j in range(low, high):
            i = ids[j]
            if not bounds[j] <= limit or i == skip or i < 0:
                continue
            compared += 1
            d = np.float32(squared_in_float64(query, x[j], angular))
            if d < distances[last] or (d == distances[last] and i < indices[last]):
                insert(indices, distances, i, d)
                limit = distances[last] * ROUND_UP
    return compared


@nb.njit(cache=True, nogil=True)
def _keep_by_codes(queries, coded, scale, x, angular, ids, skip, indices, distances):
    """Insert rows into lists of the queries' nearest; return how many pairs were compared in full."""
    (rows, row_lengths, row_errors), (middle, unit) = coded, scale
    width, count = rows.shape[1], len(queries)
    step = max(PACK, COLUMN_BYTES // width // PACK * PACK)
    packs = np.zeros((-(-min(step, len(x)) // PACK), width // DEPTH, PACK, DEPTH), np.int8)
    lengths, errors, bounds = np.empty(step, np.int32), np.empty(step, np.float32), np.empty(step, np.float32)
    products = np.empty((ROWS, PACK * len(packs)), np.int32)
    compared = 0
    for left in range(0, len(x), step):
        tile = x[left : left + step]
        code_packs(tile, np.arange(len(tile)), middle, unit, packs, lengths, errors)
        used = packs[: -(-len(tile) // PACK)]
        sides, bound, tile_ids = (lengths[: len(tile)], errors[: len(tile)]), bounds[: len(tile)], ids[left:]
        for low in range(0, count, ROWS):
            multiply(rows[low : low + ROWS], used, 0, products)
            for q in range(low, min(low + ROWS, count)):
                row_products, row = products[q - low][: len(tile)], (row_lengths[q], row_errors[q])
                distances_or_bounds(row_products, *row, *sides, unit, np.float32(np.inf), bound)
                compared += _compare_near(queries[q], tile, angular, tile_ids, skip[q], bound, indices[q], distances[q])
    return compared


class ExactSearch:
    """Queries that are compared with rows, tile by tile.

    Parameters
    ----------
    queries : ndarray of float32, shape (m, dims)
        After `to_euclidean`.
    angular : bool
        Rows are of unit length, or zero: zero rows count as at a right angle to all others.
    """

    def __init__(self, queries: np.ndarray, angular: bool) -> None:
        self._angular = angular
        self._queries = np.ascontiguousarray(self._with_zero_column(queries))
        self._by_codes = self._queries.shape[1] >= MIN_COLUMNS
        self._scale: tuple[np.ndarray, np.float32] | None = None
        self._coded: tuple[np.ndarray, ...] = ()

    def _with_zero_column(self, x: np.ndarray) -> np.ndarray:
        """Append a column that is 1 for zero rows of angular metrics."""
        if not self._angular:
            return x
        zero = np.asarray(~x.any(axis=1))
        return np.concatenate([x, zero[:, None]], axis=1, dtype=np.float32)

    def _code(self, x: np.ndarray) -> None:
        """Choose the codes' scale by some rows, and code the queries."""
        sample = x[:: -(-len(x) // SAMPLE)]
        middle = np.median(sample, axis=0)
        with np.errstate(over="ignore"):
            extents = np.abs(sample - middle)
        unit = code_step(np.quantile(extents.max(axis=1), COVERED, method="higher"))
        count, width = len(self._queries), -(-min(x.shape[1], MAX_COLUMNS) // DEPTH) * DEPTH
        rows = np.zeros((-(-count // ROWS) * ROWS, width), LEFT_TYPE)
        lengths, errors = np.empty(count, np.int32), np.empty(count, np.float32)
        code_rows(self._queries, np.arange(count), middle, unit, rows, lengths, errors)
        self._scale, self._coded = (middle, unit), (rows, lengths, errors)

    def keep_nearest(
        self, x: np.ndarray, ids: np.ndarray, skip: np.ndarray, indices: np.ndarray, distances: np.ndarray
    ) -> None:
        """Insert rows into lists of each query's nearest; ties go by id.

        Parameters
        ----------
        x : ndarray of float32, shape (n, dims)
            After `to_euclidean`.
        ids : ndarray of int64, shape (n,)
            Rows with an id below 0 are left out; they may hold anything.
        skip : ndarray of int64, shape (m,)
            Id that each query leaves out: its own.
        indices, distances : ndarray, shape (m, k)
            Ascending squared distances, float32; written.
        """
        if (ids < 0).any():
            x, ids = x[ids >= 0], ids[ids >= 0]
        if not len(x) or not len(self._queries):
            return
        x = np.ascontiguousarray(self._with_zero_column(x))
        if self._by_codes:
            if self._scale is None:
                self._code(x)
            compared = _keep_by_codes(
                self._queries, self._coded, self._scale, x, self._angular, ids, skip, indices, distances
            )
            self._by_codes = compared <= MOST_COMPARED * len(x) * len(self._queries)
            return
        dims, step = x.shape[1] - self._angular, max(1, MOST_BYTES // (8 * max(x.shape[1], len(skip))))
        queries = self._queries[:, :dims].astype(np.float64)
        for low in range(0, len(x), step):
            with one_thread():
                d = squared_distances(queries, x[low : low + step, :dims].astype(np.float64), self._angular)
            keep_nearest(d.astype(np.float32), ids[low : low + step], skip, indices, distances)

    def measure_listed(self, x: np.ndarray, columns: np.ndarray, out: np.ndarray) -> None:
        """Fill in the squared distances of listed rows, (m, k): those with a column of `x`, -1 for the others."""
        measure_listed(self._queries, np.ascontiguousarray(self._with_zero_column(x)), self._angular, columns, out)
