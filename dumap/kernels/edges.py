"""The graph's edges as the layout samples them: stronger edges more often."""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np

from dumap.kernels import hashing

SHORT_LAYOUT_EPOCHS = 10
"""With at most this many epochs, edges are dropped only if they are too weak for the default number of epochs."""
FRACTION_BITS = 15
"""Bits after the point in fixed-point numbers: relative weights, sample phases and offsets in the pool."""

_FRACTION_MASK = np.int32((1 << FRACTION_BITS) - 1)
_PHASE_MASK = np.uint64(_FRACTION_MASK)


class Edges(NamedTuple):
    """The edges of consecutive rows, packed into 8 bytes each (12 where tails take 64 bits).

    In epoch t an edge is sampled floor((t + 1) 2w + phase) - floor(2wt + phase) times, where w is its relative weight.

    Attributes
    ----------
    indptr : ndarray of int64, shape (rows + 1,)
    tails : ndarray of uint32 or uint64, shape (edges,)
        Row of `y` at the other end.
    relative_weights : ndarray of uint16, shape (edges,)
        Weight over the greatest weight of the graph, in units of 2**-15.
    sample_phases : ndarray of uint16, shape (edges,)
        From 0 to 1 in units of 2**-15, so that edges of equal weight are sampled in different epochs.
    """

    indptr: np.ndarray
    tails: np.ndarray
    relative_weights: np.ndarray
    sample_phases: np.ndarray


def default_epochs(rows: int) -> int:
    """Return umap-learn's number of epochs for this many rows."""
    return 500 if rows <= 10_000 else 200


@nb.njit(cache=True, nogil=True)
def _write_packed_edges(
    indptr, tails, weights, first_row, max_weight, min_weight, phase_key, out_indptr, out_tails, out_weights, out_phases
):
    n_packed = 0
    scale = np.float64(1 << FRACTION_BITS)
    for r in range(indptr.shape[0] - 1):
        i = np.uint64(first_row + r)
        for e in range(indptr[r], indptr[r + 1]):
            if weights[e] < min_weight:
                continue
            j = np.uint64(tails[e])
            low, high = min(i, j), max(i, j)
            out_tails[n_packed] = tails[e]
            out_weights[n_packed] = np.uint16(weights[e] / max_weight * scale + 0.5)
            # Hash the unordered pair: both ends of an edge sample it in the same epochs.
            pair = hashing.mix_bits(phase_key + low * hashing.GOLDEN) + high * hashing.GOLDEN
            out_phases[n_packed] = np.uint16(hashing.mix_bits(pair) & _PHASE_MASK)
            n_packed += 1
        out_indptr[r + 1] = n_packed
    return n_packed


def pack_edges(
    indptr: np.ndarray,
    tails: np.ndarray,
    weights: np.ndarray,
    first_row: int,
    max_weight: float,
    n_epochs: int,
    seed: int,
    rows: int | None = None,
) -> Edges:
    """Pack the edges of rows `first_row`, `first_row` + 1, ... for the layout.

    Edges too weak to be sampled once in all epochs are dropped, as in umap-learn. With 10 epochs or fewer, only edges
    too weak for the default number of epochs are dropped.

    Parameters
    ----------
    indptr : ndarray of int64, shape (rows + 1,)
    tails : ndarray of int, shape (edges,)
    weights : ndarray of float32, shape (edges,)
        Membership strengths.
    first_row : int
    max_weight : float
        The whole graph's greatest weight.
    n_epochs, seed : int
    rows : int, optional
        Rows of the whole graph; by default the rows that are packed.

    Returns
    -------
    Edges
    """
    out_indptr = np.zeros(len(indptr), np.int64)
    out_tails = np.empty(len(tails), f"u{tails.dtype.itemsize}")  # unsigned: no wrapping of indices in the loop
    relative_weights, sample_phases = np.empty(len(tails), np.uint16), np.empty(len(tails), np.uint16)
    phase_key = hashing.draw_words(seed, hashing.SAMPLE_PHASES, np.zeros(1, np.int64))[0]
    min_weight = np.float32(
        max_weight / (n_epochs if n_epochs > SHORT_LAYOUT_EPOCHS else default_epochs(rows or len(indptr) - 1))
    )
    max_weight = np.float64(max_weight)
    arrays = out_indptr, out_tails, relative_weights, sample_phases
    n_packed = _write_packed_edges(indptr, tails, weights, first_row, max_weight, min_weight, phase_key, *arrays)
    return Edges(
        out_indptr, out_tails[:n_packed].copy(), relative_weights[:n_packed].copy(), sample_phases[:n_packed].copy()
    )


@nb.njit(inline="always")
def samples_in_epoch(relative_weight, sample_phase, epoch):
    """Return floor((t + 1) 2w + phase) - floor(2wt + phase), in whole numbers.

    Only the fraction of 2wt + phase matters, so t * step may overflow.
    """
    step = np.int32(np.int32(relative_weight) << 1)
    fraction = np.int32(np.int32(np.int32(epoch * step) + np.int32(sample_phase)) & _FRACTION_MASK)
    return np.int32(np.int32(fraction + step) >> FRACTION_BITS)
