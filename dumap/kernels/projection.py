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
from dumap.kernels.vectors import ANGULAR

PLACES = 8
"""Places at which a column is added."""
DIMS = 256
"""Dims of projected rows. Rows of at most this many columns are made dense and not projected."""
FARTHEST = float(np.finfo(np.float32).max)


def projected_dims(dims: int) -> int:
    """Return how many dims the projections of rows have."""
    return min(dims, DIMS)


@nb.njit(cache=True, nogil=True)
def places(dims: int, seed: int) -> np.ndarray:
    """Return the places of columns: the place plus 1, negative for a negative sign.

    Parameters
    ----------
    dims, seed : int

    Returns
    -------
    ndarray of int16, shape (dims, PLACES); (dims, 1) if rows are not projected
    """
    if dims <= DIMS:
        return (np.arange(dims).astype(np.int16) + np.int16(1)).reshape(dims, 1)
    base, width = hashing.key(seed, hashing.PROJECTION), DIMS // PLACES
    out = np.empty((dims, PLACES), np.int16)
    for c in range(dims):
        for s in range(PLACES):
            bits = hashing.draw(base, c * PLACES + s)
            place = np.int16(s * width + np.int64((bits >> np.uint64(1)) % np.uint64(width)) + 1)
            out[c, s] = place if bits & np.uint64(1) else -place
    return out


@nb.njit(cache=True, nogil=True)
def _add(sums, targets, value):
    for s in range(len(targets)):
        if targets[s] > 0:
            sums[targets[s] - 1] += value
        else:
            sums[-targets[s] - 1] -= value


@nb.njit(cache=True, nogil=True)
def _project(bounds, columns, values, targets, centred, unit, out):
    dims, width = targets.shape[0], out.shape[1]
    sums, ones = np.empty(width), np.zeros(width)  # float64, summed in the order of the columns
    scale = 1 / np.sqrt(targets.shape[1])
    if centred:
        for c in range(dims):
            _add(ones, targets[c], 1.0)
    for i in range(len(out)):
        sums[:] = 0
        mean = 0.0
        for e in range(bounds[i], bounds[i + 1]):
            _add(sums, targets[columns[e]], np.float64(values[e]))
            mean += values[e]
        if centred:  # project the row less its mean, without making the row dense
            for p in range(width):
                sums[p] -= mean / dims * ones[p]
        length = 0.0
        for p in range(width):
            length += sums[p] * sums[p]
        factor = 1 / np.sqrt(length) if unit and length > 0 else 0.0 if unit else scale
        for p in range(width):
            out[i, p] = min(max(sums[p] * factor, -FARTHEST), FARTHEST)


def project(rows: csr_matrix, targets: np.ndarray, metric: str) -> np.ndarray:
    """Project rows to a space in which Euclidean distances rank neighbours about as the metric does.

    Parameters
    ----------
    rows : csr_matrix of float32
    targets : ndarray
        From `places`.
    metric : str
        Projections have unit length for angular metrics. For correlation, centred rows are projected.

    Returns
    -------
    ndarray of float32, shape (n, projected_dims(dims))
        Zero rows stay zero.
    """
    out = np.empty((rows.shape[0], projected_dims(rows.shape[1])), np.float32)
    _project(rows.indptr, rows.indices, rows.data, targets, metric == "correlation", metric in ANGULAR, out)
    return out
