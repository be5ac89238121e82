"""The pool: rows drawn for an epoch, of which all rows take their negatives."""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels import hashing

POOL_ROWS = 4096
"""A power of two, so that a place in it is bits of a number."""


CURVE_BITS = 16
"""Bits of each coordinate that tell a row's place in the pool, if there are few coordinates."""


def pool_rows(seed: int, epoch: int, rows: int) -> np.ndarray:
    """Draw the rows that serve all rows of an epoch as negatives.

    Returns
    -------
    ndarray of int64, shape (POOL_ROWS,)
    """
    counters = np.arange(POOL_ROWS, dtype=np.int64) + np.int64(epoch) * POOL_ROWS
    return (hashing.draws(seed, hashing.POOL, counters) % np.uint64(rows)).astype(np.int64)


@nb.njit(cache=True, nogil=True)
def _along_curve(coordinates, bits):
    """Return numbers that ascend along a curve through all cells of a grid: their bits, taken by turns (Morton)."""
    n, components = coordinates.shape
    keys, scale = np.zeros(n, np.int64), np.float32((1 << bits) - 1)
    cells = np.empty((n, components), np.int64)
    for c in range(components):
        low, high = coordinates[:, c].min(), coordinates[:, c].max()
        for i in range(n):
            cells[i, c] = np.int64((coordinates[i, c] - low) / max(high - low, np.float32(1e-8)) * scale)
    for bit in range(bits - 1, -1, -1):
        for c in range(components):
            keys = (keys << 1) | ((cells[:, c] >> bit) & 1)
    return keys


def lay_pool(coordinates: np.ndarray) -> np.ndarray:
    """Lay the pool out by component, in the order of a curve through the map.

    Rows at equal distances along it are then spread over all of the map.

    Parameters
    ----------
    coordinates : ndarray of float32, shape (POOL_ROWS, n_components)

    Returns
    -------
    ndarray of float32, shape (n_components, POOL_ROWS)
    """
    keys = _along_curve(coordinates, min(CURVE_BITS, 62 // coordinates.shape[1]))
    return np.ascontiguousarray(coordinates[np.argsort(keys, kind="stable")].T)
