"""Few axes that carry most of the variance of rows within their leaves, and rows' coordinates on them."""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels.threads import one_thread

WIDE, TILE_ROWS = 96, 4096
"""Dims from which on axes are sought, and rows that are summed over at once."""
PLACED_ROWS, DEPTH = 16, 32
"""Rows that are placed on axes at once, and dims of them: few enough for the processor's nearest memory."""


def principal(placed: np.ndarray, carried: float, lanes: int = 1) -> np.ndarray:
    """Return the axes that carry most of the variance of rows within their leaves, where they are few.

    Within leaves, since neighbours are told apart there: what lies between them, a column of another unit or a row that
    is far out, would hide that.

    Parameters
    ----------
    placed : ndarray of float32, shape (m, dims)
        Rows less the means of their leaves.
    carried : float
        Share of the variance that the axes must carry.
    lanes : int
        There are a multiple of so many axes.

    Returns
    -------
    ndarray of float32, shape (dims, axes)
        Orthonormal; none where `carried` takes more than a third of the dims.
    """
    dims = placed.shape[1]
    none = np.zeros((dims, 0), np.float32)
    if dims < WIDE or len(placed) < 4 * dims:
        return none
    products = np.zeros((dims, dims))
    with one_thread():
        for low in range(0, len(placed), TILE_ROWS):
            rows = placed[low : low + TILE_ROWS].astype(np.float64)
            products += rows.T @ rows
        variances, axes = np.linalg.eigh(products)
    variances, axes = np.maximum(variances[::-1], 0), axes[:, ::-1]
    if not variances.sum() > 0:
        return none
    count = int(np.searchsorted(np.cumsum(variances), carried * variances.sum())) + 1
    count = -(-count // lanes) * lanes
    return np.ascontiguousarray(axes[:, :count], np.float32) if count <= dims // 3 else none


@nb.njit(cache=True, nogil=True)
def _place(x, origin, axes, out):
    """Sum products in the order of the dims, whatever the processor; four rows at once share what is loaded."""
    n, dims = x.shape
    moved = np.zeros((PLACED_ROWS, len(axes)), np.float32)
    sums = np.empty((PLACED_ROWS, axes.shape[1]), np.float32)
    for low in range(0, n, PLACED_ROWS):
        rows = min(PLACED_ROWS, n - low)
        for i in range(rows):
            for j in range(dims):
                moved[i, j] = x[low + i, j] - origin[j]
        sums[:] = 0
        for first in range(0, len(axes), DEPTH):
            for i in range(0, rows, 4):
                s0, s1, s2, s3 = sums[i], sums[i + 1], sums[i + 2], sums[i + 3]
                m0, m1, m2, m3 = moved[i], moved[i + 1], moved[i + 2], moved[i + 3]
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


def place(x: np.ndarray, origin: np.ndarray, axes: np.ndarray) -> np.ndarray:
    """Return rows' coordinates on axes, those of a row the same to the bit whatever rows lie beside it.

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
    even = np.concatenate([axes, np.zeros((len(axes) % 2, axes.shape[1]), np.float32)])
    _place(x, origin, even, out)
    return out
