"""Principal axes of the rows within their leaves, and projections on them."""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels.threads import one_thread

MIN_AXES_DIMS, ROWS_PER_PRODUCT = 96, 4096
"""Least dims for which axes are computed, and rows whose products are summed at once."""
ROWS_AT_ONCE, DIMS_AT_ONCE = 16, 32
"""Rows and dims that are projected at once: a tile of them fits the processor's first cache."""


def find_principal_axes(residuals: np.ndarray, min_variance: float, count_multiple: int = 1) -> np.ndarray:
    """Return the principal axes that hold a given share of the variance within leaves, if a few axes do.

    Neighbours differ within leaves. The variance between leaves would hide these differences, and so would a column in
    another unit or an outlier.

    Parameters
    ----------
    residuals : ndarray of float32, shape (m, dims)
        Rows less the means of their leaves.
    min_variance : float
        Share of the variance that the axes must hold.
    count_multiple : int
        The number of axes is a multiple of this.

    Returns
    -------
    ndarray of float32, shape (dims, axes)
        Orthonormal. No axes if more than a third of the dims would be needed.
    """
    dims = residuals.shape[1]
    no_axes = np.zeros((dims, 0), np.float32)
    if dims < MIN_AXES_DIMS or len(residuals) < 4 * dims:
        return no_axes
    scatter = np.zeros((dims, dims))
    with one_thread():
        for low in range(0, len(residuals), ROWS_PER_PRODUCT):
            rows = residuals[low : low + ROWS_PER_PRODUCT].astype(np.float64)
            scatter += rows.T @ rows
        variances, axes = np.linalg.eigh(scatter)
    variances, axes = np.maximum(variances[::-1], 0), axes[:, ::-1]
    if not variances.sum() > 0:
        return no_axes
    n_axes = int(np.searchsorted(np.cumsum(variances), min_variance * variances.sum())) + 1
    n_axes = -(-n_axes // count_multiple) * count_multiple
    return np.ascontiguousarray(axes[:, :n_axes], np.float32) if n_axes <= dims // 3 else no_axes


@nb.njit(cache=True, nogil=True)
def _write_projections(x, origin, axes, out):
    """Project rows. Any processor sums products in the order of the dims; four rows at once share the loaded axes."""
    n_all, dims = x.shape
    centred = np.zeros((ROWS_AT_ONCE, len(axes)), np.float32)
    sums = np.empty((ROWS_AT_ONCE, axes.shape[1]), np.float32)
    for first_row in range(0, n_all, ROWS_AT_ONCE):
        n_rows = min(ROWS_AT_ONCE, n_all - first_row)
        for i in range(n_rows):
            for j in range(dims):
                centred[i, j] = x[first_row + i, j] - origin[j]
        sums[:] = 0
        # out[i, c] = sum_j (x[i, j] - origin[j]) axes[j, c], two dims j at a time, in tiles of DEPTH dims.
        for first_dim in range(0, len(axes), DIMS_AT_ONCE):
            for i in range(0, n_rows, 4):
                s0, s1, s2, s3 = sums[i], sums[i + 1], sums[i + 2], sums[i + 3]
                m0, m1, m2, m3 = centred[i], centred[i + 1], centred[i + 2], centred[i + 3]
                for j in range(first_dim, min(first_dim + DIMS_AT_ONCE, len(axes)), 2):
                    a, b = axes[j], axes[j + 1]
                    a0, a1, a2, a3 = m0[j], m1[j], m2[j], m3[j]
                    b0, b1, b2, b3 = m0[j + 1], m1[j + 1], m2[j + 1], m3[j + 1]
                    for c in range(axes.shape[1]):
                        a_c, b_c = a[c], b[c]
                        s0[c] = s0[c] + a0 * a_c + b0 * b_c
                        s1[c] = s1[c] + a1 * a_c + b1 * b_c
                        s2[c] = s2[c] + a2 * a_c + b2 * b_c
                        s3[c] = s3[c] + a3 * a_c + b3 * b_c
        out[first_row : first_row + n_rows] = sums[:n_rows]


def project_on_axes(x: np.ndarray, origin: np.ndarray, axes: np.ndarray) -> np.ndarray:
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
    _write_projections(x, origin, padded_axes, out)
    return out
