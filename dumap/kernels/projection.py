"""Random projections of sparse rows to few dims, in which cells are made.

The projection is a sparse sign matrix (Kane and Nelson, "Sparser Johnson-Lindenstrauss transforms", JACM 2014). A
column is added at 8 places, one in each eighth of the dims, each with a random sign. Squared distances change by a few
percent, and an entry costs 8 sums. Places and signs are hashes of the seed and the column alone.
"""

from __future__ import annotations

import numba as nb
import numpy as np
from scipy.sparse import csr_matrix

from dumap.kernels import hashing
from dumap.kernels.vectors import ANGULAR_METRICS

PLACES_PER_COLUMN = 8
"""Places at which a column is added."""
MAX_PROJECTED_DIMS = 256
"""Dims of projected rows. Rows of at most this many columns are made dense and not projected."""
FLOAT32_MAX = float(np.finfo(np.float32).max)


def projected_dims(dims: int) -> int:
    """Return how many dims the projections of rows have."""
    return min(dims, MAX_PROJECTED_DIMS)


@nb.njit(cache=True, nogil=True)
def draw_column_places(dims: int, seed: int) -> np.ndarray:
    """Return the places of columns: the place plus 1, negative for a negative sign.

    Parameters
    ----------
    dims, seed : int

    Returns
    -------
    ndarray of int16, shape (dims, PLACES); (dims, 1) if rows are not projected
    """
    if dims <= MAX_PROJECTED_DIMS:
        return (np.arange(dims).astype(np.int16) + np.int16(1)).reshape(dims, 1)
    key, places_apart = hashing.derive_key(seed, hashing.PROJECTION), MAX_PROJECTED_DIMS // PLACES_PER_COLUMN
    out = np.empty((dims, PLACES_PER_COLUMN), np.int16)
    for c in range(dims):
        for s in range(PLACES_PER_COLUMN):
            word = hashing.draw_word(key, c * PLACES_PER_COLUMN + s)
            place = np.int16(s * places_apart + np.int64((word >> np.uint64(1)) % np.uint64(places_apart)) + 1)
            out[c, s] = place if word & np.uint64(1) else -place
    return out


@nb.njit(cache=True, nogil=True)
def _add_column(sums, column_places, entry):
    for s in range(len(column_places)):
        if column_places[s] > 0:
            sums[column_places[s] - 1] += entry
        else:
            sums[-column_places[s] - 1] -= entry


@nb.njit(cache=True, nogil=True)
def _write_projections(indptr, columns, values, column_places, is_centred, has_unit_length, out):
    dims, n_dims = column_places.shape[0], out.shape[1]
    sums, projected_ones = np.empty(n_dims), np.zeros(n_dims)  # float64, summed in the order of the columns
    scale = 1 / np.sqrt(column_places.shape[1])
    if is_centred:
        for c in range(dims):
            _add_column(projected_ones, column_places[c], 1.0)
    for i in range(len(out)):
        sums[:] = 0
        mean = 0.0
        for e in range(indptr[i], indptr[i + 1]):
            _add_column(sums, column_places[columns[e]], np.float64(values[e]))
            mean += values[e]
        if is_centred:  # project the row less its mean, without making the row dense
            for p in range(n_dims):
                sums[p] -= mean / dims * projected_ones[p]
        squared_length = 0.0
        for p in range(n_dims):
            squared_length += sums[p] * sums[p]
        factor = (
            1 / np.sqrt(squared_length) if has_unit_length and squared_length > 0 else 0.0 if has_unit_length else scale
        )
        for p in range(n_dims):
            out[i, p] = min(max(sums[p] * factor, -FLOAT32_MAX), FLOAT32_MAX)


def project_rows(rows: csr_matrix, column_places: np.ndarray, metric: str) -> np.ndarray:
    """Project rows to a space in which Euclidean distances rank neighbours about as the metric does.

    Parameters
    ----------
    rows : csr_matrix of float32
    column_places : ndarray
        From `draw_column_places`.
    metric : str
        Projections have unit length for angular metrics. For correlation, centred rows are projected.

    Returns
    -------
    ndarray of float32, shape (n, projected_dims(dims))
        Zero rows stay zero.
    """
    out = np.empty((rows.shape[0], projected_dims(rows.shape[1])), np.float32)
    _write_projections(
        rows.indptr, rows.indices, rows.data, column_places, metric == "correlation", metric in ANGULAR_METRICS, out
    )
    return out
