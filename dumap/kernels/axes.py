"""Principal axes of the rows within their leaves, and projections on them."""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels.threads import one_thread

WIDE, TILE_ROWS = 96, 4096
"""Least dims for which axes are computed, and rows whose products are summed at once."""
PROJECTED_ROWS, DEPTH = 16, 32
"""Rows and dims that are projected at once: a tile of them fits the processor's first cache."""


def principal(residuals: np.ndarray, min_variance: float, lanes: int = 1) -> np.ndarray:
    """Return the principal axes that hold a given share of the variance within leaves, if a few axes do.

    Neighbours differ within leaves. The variance between leaves would hide these differences, and so would a column in
    another unit or an outlier.

    Parameters
    ----------
    residuals : ndarray of float32, shape (m, dims)
        Rows less the means of their leaves.
    min_variance : float
        Share of the variance that the axes must hold.
    lanes : int
        The number of axes is a multiple of this.

    Returns
    -------
    ndarray of float32, shape (dims, axes)
        Orthonormal. No axes if more than a third of the dims would be needed.
    """
    dims = residuals.shape[1]
    none = np.zeros((dims, 0), np.float32)
    if dims < WIDE or len(residuals) < 4 * dims:
        return none
    products = np.zeros((dims, dims))
    with one_thread():
        for low in range(0, len(residuals), TILE_ROWS):
            rows = residuals[low : low + TILE_ROWS].astype(np.float64)
            products += rows.T @ rows
        variances, axes = np.linalg.eigh(products)
    variances, axes = np.maximum(variances[::-1], 0), axes[:, ::-1]
    if not variances.sum() > 0:
        return none
    count = int(np.searchsorted(np.cumsum(variances), min_variance * variances.sum())) + 1
    count = -(-count // lanes) * lanes
    return np.ascontiguousarray(axes[:, :count], np.float32) if count <= dims // 3 else none


@nb.njit(cache=True, nogil=True)
def _project(x, origin, axes, out):
    """Project rows. Any processor sums products in the order of the dims; four rows at once share the loaded axes."""
    n, dims = x.shape
    centred = np.zeros((PROJECTED_ROWS, len(axes)), np.float32)
    sums = np.empty((PROJECTED_ROWS, axes.shape[1]), np.float32)
    for low in range(0, n, PROJECTED_ROWS):
        rows = min(PROJECTED_ROWS, n - low)
        for i in range(rows):
            for j in range(dims):
                centred[i, j] = x[low + i, j] - origin[j]
        sums[:] = 0
        # out[i, c] = sum_j (x[i, j] - origin[j]) axes[j, c], two dims j at a time, in tiles of DEPTH dims.
        for first in range(0, len(axes), DEPTH):
            for i in range(0, rows, 4):
                s0, s1, s2, s3 = sums[i], sums[i + 1], sums[i + 2], sums[i + 3]
                m0, m1, m2, m3 = centred[i], centred[i + 1], centred[i + 2], centred[i + 3]
                for j in range(first, min(first + DEPTH, len(axes)), 2):
                    a, b = axes[j], axes[j + 1]
                    a0, a1, a2, a3 = m0[j], m1[j], m2[j], m3[j]
                    b0, b1, b2, b3 = m0[j + 1], m1[j + 1], m2[j + 1], m3[j + 1]
                    for c in range(axes.shape[1]):
                        at, bt = a[c], b[c]
                        s0[c] = s0[c] + a0 * at + b0 * bt
                        s1[c] = s1[c] + a1 * at + b1 * bt
                        s2[c] = s2[c] + a2 * at + b2 * bt
                        s3[c] = s3[c] + a3 * at + b3 * bt
        out[low : low + rows] = sums[:rows]


def project(x: np.ndarray, origin: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Project rows on axes; a row's coordinates do not depend on the other rows.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
    origin : ndarray of float32, shape (dims,)
    axes : ndarray of float32, shape (dims, axes)

    Returns
    -------
    ndarray of float32, shape (n, axes)
    """
    out = np.empty((len(x), axes.shape[1]), np.float32)
    padded_axes = np.concatenate([axes, np.zeros((len(axes) % 2, axes.shape[1]), np.float32)])
    _project(x, origin, padded_axes, out)
    return out
