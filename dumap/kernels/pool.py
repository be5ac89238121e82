"""The pool: one epoch's negative samples, which all rows share."""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels import hashing

POOL_ROWS = 4096
"""Rows of a pool: a power of two, so that an index is the low bits of a number."""

CURVE_BITS = 16
"""Bits of each coordinate in the key by which the pool is sorted; fewer if the key would need more than 62 bits."""


def draw_pool_rows(seed: int, epoch: int, n_rows: int) -> np.ndarray:
    """Draw an epoch's pool, with replacement.

    Returns
    -------
    ndarray of int64, shape (POOL_ROWS,)
    """
    counters = np.arange(POOL_ROWS, dtype=np.int64) + np.int64(epoch) * POOL_ROWS
    return (hashing.draw_words(seed, hashing.POOL, counters) % np.uint64(n_rows)).astype(np.int64)


@nb.njit(cache=True, nogil=True)
def _morton_codes(coordinates, bits):
    """Return Morton codes: the bits of a row's coordinates, interleaved. Rows near in the code are near in the map."""
    n, n_components = coordinates.shape
    codes, scale = np.zeros(n, np.int64), np.float32((1 << bits) - 1)
    grid_coordinates = np.empty((n, n_components), np.int64)  # coordinates in units of the grid
    for c in range(n_components):
        low, high = coordinates[:, c].min(), coordinates[:, c].max()
        for i in range(n):
            grid_coordinates[i, c] = np.int64((coordinates[i, c] - low) / max(high - low, np.float32(1e-8)) * scale)
    for bit in range(bits - 1, -1, -1):
        for c in range(n_components):
            codes = (codes << 1) | ((grid_coordinates[:, c] >> bit) & 1)
    return codes


def sort_pool(coordinates: np.ndarray) -> np.ndarray:
    """Sort the pool along a Morton curve through the map, and store it by component.

    Samples at equal steps along the pool are then spread evenly over the map, with less noise than in random order.

    Parameters
    ----------
    coordinates : ndarray of float32, shape (POOL_ROWS, n_components)

    Returns
    -------
    ndarray of float32, shape (n_components, POOL_ROWS)
    """
    codes = _morton_codes(coordinates, min(CURVE_BITS, 62 // coordinates.shape[1]))
    return np.ascontiguousarray(coordinates[np.argsort(codes, kind="stable")].T)
