"""Exact nearest rows of queries, by squared Euclidean distances in float64.

Products of codes (see `codes`) give a lower bound of every distance: most rows are ruled out by it, and only the others
are compared in full.
"""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels.codes import (
    CODE_SAMPLE_ROWS,
    COVERED_SHARE,
    MAX_CODE_COLUMNS,
    MIN_CODE_COLUMNS,
    TILE_CODE_BYTES,
    distances_or_bounds,
    encode_left_rows,
    encode_right_packs,
    unit_for_extent,
)
from dumap.kernels.instructions import COLUMN_GROUP, PACK_ROWS
from dumap.kernels.products import LEFT_ROWS, LEFT_TYPE, multiply_packs
from dumap.kernels.quality import insert_by_id, keep_nearest, squared_distances
from dumap.kernels.threads import one_thread

MAX_COMPARED_SHARE = 1 / 16
"""Share of pairs that may be compared in full; where codes rule out less, matrix products of all are faster."""
MAX_DISTANCE_BYTES = 32 * 2**20
"""Bytes of the distances that are computed at once by matrix products."""
ROUND_UP = np.float32(1.001)


@nb.njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})
def squared_distance_in_float64(a: np.ndarray, b: np.ndarray, is_angular: bool) -> float:
    """Return the squared distance of two float32 rows, summed in float64.

    For angular metrics the last column tells zero rows, which are at a right angle to all others.
    """
    if is_angular and a[-1] != b[-1]:
        return 2.0
    total = 0.0
    for c in range(len(a)):
        difference = np.float64(a[c]) - np.float64(b[c])
        total += difference * difference
    return total


@nb.njit(cache=True, nogil=True)
def measure_listed(queries, x, is_angular, listed_rows, out):
    """Fill in the squared distances of listed rows, (m, k): those with a column of `x`, which is -1 for the others."""
    for q in range(listed_rows.shape[0]):
        for s in range(listed_rows.shape[1]):
            if listed_rows[q, s] >= 0:
                out[q, s] = squared_distance_in_float64(queries[q], x[listed_rows[q, s]], is_angular)


@nb.njit(cache=True, nogil=True)
def _compare_near_rows(query, x, is_angular, ids, skipped_id, bounds, indices, distances):
    """Compare a query with the rows that bounds do not rule out; return with how many."""
    n_compared, last = 0, len(indices) - 1
    limit = distances[last] * ROUND_UP
    for low in range(0, len(bounds), PACK_ROWS):
        high = min(low + PACK_ROWS, len(bounds))
        n_near = np.int32(0)
        for j in range(low, high):
            n_near += np.int32(bounds[j] <= limit)
        if n_near == 0:
            continue
        for j in range(low, high):
            i = ids[j]
            if not bounds[j] <= limit or i == skipped_id or i < 0:
                continue
            n_compared += 1
            d = np.float32(squared_distance_in_float64(query, x[j], is_angular))
            if d < distances[last] or (d == distances[last] and i < indices[last]):
                insert_by_id(indices, distances, i, d)
                limit = distances[last] * ROUND_UP
    return n_compared


@nb.njit(cache=True, nogil=True)
def _keep_nearest_by_codes(queries, query_codes, code_scale, x, is_angular, ids, skipped_ids, indices, distances):
    """Insert rows into lists of the queries' nearest; return how many pairs were compared in full."""
    (left_rows, query_lengths, query_errors), (centre, unit) = query_codes, code_scale
    width, n_queries = left_rows.shape[1], len(queries)
    tile_rows = max(PACK_ROWS, TILE_CODE_BYTES // width // PACK_ROWS * PACK_ROWS)
    packs = np.zeros((-(-min(tile_rows, len(x)) // PACK_ROWS), width // COLUMN_GROUP, PACK_ROWS, COLUMN_GROUP), np.int8)
    corrected_lengths, errors, bounds = (
        np.empty(tile_rows, np.int32),
        np.empty(tile_rows, np.float32),
        np.empty(tile_rows, np.float32),
    )
    products = np.empty((LEFT_ROWS, PACK_ROWS * len(packs)), np.int32)
    n_compared = 0
    for tile_start in range(0, len(x), tile_rows):
        tile = x[tile_start : tile_start + tile_rows]
        encode_right_packs(tile, np.arange(len(tile)), centre, unit, packs, corrected_lengths, errors)
        tile_packs = packs[: -(-len(tile) // PACK_ROWS)]
        tile_codes, tile_bounds, tile_ids = (
            (corrected_lengths[: len(tile)], errors[: len(tile)]),
            bounds[: len(tile)],
            ids[tile_start:],
        )
        for low in range(0, n_queries, LEFT_ROWS):
            multiply_packs(left_rows[low : low + LEFT_ROWS], tile_packs, 0, products)
            for q in range(low, min(low + LEFT_ROWS, n_queries)):
                row_products, query_code = products[q - low][: len(tile)], (query_lengths[q], query_errors[q])
                distances_or_bounds(row_products, *query_code, *tile_codes, unit, np.float32(np.inf), tile_bounds)
                n_compared += _compare_near_rows(
                    queries[q], tile, is_angular, tile_ids, skipped_ids[q], tile_bounds, indices[q], distances[q]
                )
    return n_compared


class ExactSearch:
    """Queries that are compared with rows, tile by tile.

    Parameters
    ----------
    queries : ndarray of float32, shape (m, dims)
        After `to_euclidean`.
    is_angular : bool
        Rows are of unit length, or zero: zero rows count as at a right angle to all others.
    """

    def __init__(self, queries: np.ndarray, is_angular: bool) -> None:
        self._is_angular = is_angular
        self._queries = np.ascontiguousarray(self._add_zero_column(queries))
        self._uses_codes = self._queries.shape[1] >= MIN_CODE_COLUMNS
        self._code_scale: tuple[np.ndarray, np.float32] | None = None
        self._query_codes: tuple[np.ndarray, ...] = ()

    def _add_zero_column(self, x: np.ndarray) -> np.ndarray:
        """Append a column that is 1 for zero rows of angular metrics."""
        if not self._is_angular:
            return x
        is_zero = np.asarray(~x.any(axis=1))
        return np.concatenate([x, is_zero[:, None]], axis=1, dtype=np.float32)

    def _encode_queries(self, x: np.ndarray) -> None:
        """Choose the codes' scale by some rows, and code the queries."""
        sample = x[:: -(-len(x) // CODE_SAMPLE_ROWS)]
        centre = np.median(sample, axis=0)
        with np.errstate(over="ignore"):
            extents = np.abs(sample - centre)
        unit = unit_for_extent(np.quantile(extents.max(axis=1), COVERED_SHARE, method="higher"))
        n_queries, width = len(self._queries), -(-min(x.shape[1], MAX_CODE_COLUMNS) // COLUMN_GROUP) * COLUMN_GROUP
        left_rows = np.zeros((-(-n_queries // LEFT_ROWS) * LEFT_ROWS, width), LEFT_TYPE)
        squared_lengths, errors = np.empty(n_queries, np.int32), np.empty(n_queries, np.float32)
        encode_left_rows(self._queries, np.arange(n_queries), centre, unit, left_rows, squared_lengths, errors)
        self._code_scale, self._query_codes = (centre, unit), (left_rows, squared_lengths, errors)

    def keep_nearest(
        self, x: np.ndarray, ids: np.ndarray, skipped_ids: np.ndarray, indices: np.ndarray, distances: np.ndarray
    ) -> None:
        """Insert rows into lists of each query's nearest; ties go by id.

        Parameters
        ----------
        x : ndarray of float32, shape (n, dims)
            After `to_euclidean`.
        ids : ndarray of int64, shape (n,)
            Rows with an id below 0 are left out; they may hold anything.
        skipped_ids : ndarray of int64, shape (m,)
            Id that each query leaves out: its own.
        indices, distances : ndarray, shape (m, k)
            Ascending squared distances, float32; written.
        """
        if (ids < 0).any():
            x, ids = x[ids >= 0], ids[ids >= 0]
        if not len(x) or not len(self._queries):
            return
        x = np.ascontiguousarray(self._add_zero_column(x))
        if self._uses_codes:
            if self._code_scale is None:
                self._encode_queries(x)
            n_compared = _keep_nearest_by_codes(
                self._queries,
                self._query_codes,
                self._code_scale,
                x,
                self._is_angular,
                ids,
                skipped_ids,
                indices,
                distances,
            )
            self._uses_codes = n_compared <= MAX_COMPARED_SHARE * len(x) * len(self._queries)
            return
        dims, tile_rows = (
            x.shape[1] - self._is_angular,
            max(1, MAX_DISTANCE_BYTES // (8 * max(x.shape[1], len(skipped_ids)))),
        )
        queries = self._queries[:, :dims].astype(np.float64)
        for low in range(0, len(x), tile_rows):
            with one_thread():
                squared = squared_distances(
                    queries, x[low : low + tile_rows, :dims].astype(np.float64), self._is_angular
                )
            keep_nearest(squared.astype(np.float32), ids[low : low + tile_rows], skipped_ids, indices, distances)

    def measure_listed(self, x: np.ndarray, listed_rows: np.ndarray, out: np.ndarray) -> None:
        """Fill in the squared distances of listed rows, (m, k): those with a column of `x`, -1 for the others."""
        measure_listed(
            self._queries, np.ascontiguousarray(self._add_zero_column(x)), self._is_angular, listed_rows, out
        )
