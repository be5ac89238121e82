"""Stochastic gradient descent on the cross-entropy, one generation at a time.

Every row's gradient is taken at the last generation's coordinates, of both ends; then Adam steps. A row
writes itself alone, so the result depends neither on threads nor on how rows are cut into shards.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np
from scipy.optimize import curve_fit

from dumap.kernels import hashing, maths

LANES = 16
SLOT = 64
"""Interactions computed at once: four times the lanes."""
POOL_ROWS = 4096
BETA1, BETA2, EPSILON = np.float32(0.5), np.float32(0.9), np.float32(1e-7)
FRACTION_BITS = 15
"""Weights and phases count in units of 2**-15 of the greatest weight."""

_F0, _F1, _HALF = np.float32(0), np.float32(1), np.float32(0.5)
_CLIP = np.float32(4)
_NEAR = np.float32(1e-8)
_SOFT = np.float32(0.001)
_PHASE_MASK = np.uint64((1 << FRACTION_BITS) - 1)


class Edges(NamedTuple):
    """The edges of consecutive rows, packed: 8 bytes each.

    Attributes
    ----------
    indptr : ndarray of int64, shape (rows + 1,)
    tails : ndarray of uint32 or uint64, shape (edges,)
        Row of the coordinates at the other end.
    rates : ndarray of uint16, shape (edges,)
        Weight over the greatest weight, in units of 2**-15.
    phases : ndarray of uint16, shape (edges,)
    """

    indptr: np.ndarray
    tails: np.ndarray
    rates: np.ndarray
    phases: np.ndarray


def fit_ab(spread: float, min_dist: float) -> tuple[float, float]:
    """Fit 1 / (1 + a d^2b) to the membership that `spread` and `min_dist` ask for.

    As umap-learn's `find_ab_params`.
    """
    d = np.linspace(0, spread * 3, 300)
    wanted = np.where(d < min_dist, 1.0, np.exp(-(d - min_dist) / spread))
    (a, b), _ = curve_fit(lambda x, a, b: 1.0 / (1.0 + a * x ** (2 * b)), d, wanted)
    return float(a), float(b)


def default_epochs(rows: int) -> int:
    """Return umap-learn's number of epochs for that many rows."""
    return 500 if rows <= 10_000 else 200


@nb.njit(cache=True, nogil=True)
def _pack(indptr, tails, weights, first, greatest, floor, base, out_indptr, out_tails, out_rates, out_phases):
    kept = 0
    scale = np.float64(1 << FRACTION_BITS)
    for r in range(indptr.shape[0] - 1):
        i = np.uint64(first + r)
        for e in range(indptr[r], indptr[r + 1]):
            if weights[e] < floor:
                continue
            j = np.uint64(tails[e])
            low, high = min(i, j), max(i, j)
            out_tails[kept] = tails[e]
            out_rates[kept] = np.uint16(weights[e] / greatest * scale + 0.5)
            pair = hashing.mix(base + low * hashing.GOLDEN) + high * hashing.GOLDEN
            out_phases[kept] = np.uint16(hashing.mix(pair) & _PHASE_MASK)
            kept += 1
        out_indptr[r + 1] = kept
    return kept


def pack(
    indptr: np.ndarray,
    tails: np.ndarray,
    weights: np.ndarray,
    first: int,
    greatest: float,
    n_epochs: int,
    seed: int,
) -> Edges:
    """Pack the edges of rows `first`, `first` + 1, ... for the layout.

    An edge of weight w relative to the greatest is due floor((t + 1) 2w + phase) - floor(2wt + phase) times
    in epoch t; the phase is hashed from the unordered pair, so that both ends agree. Edges too weak to be due
    once in all epochs are dropped, as umap-learn drops them.

    Parameters
    ----------
    indptr : ndarray of int64, shape (rows + 1,)
    tails : ndarray of int, shape (edges,)
    weights : ndarray of float32, shape (edges,)
        Membership strengths.
    first : int
    greatest : float
        The whole graph's greatest weight.
    n_epochs, seed : int

    Returns
    -------
    Edges
    """
    out_indptr = np.zeros(len(indptr), np.int64)
    out_tails = np.empty(len(tails), f"u{tails.dtype.itemsize}")  # unsigned: no wrapping of indices in the loop
    rates, phases = np.empty(len(tails), np.uint16), np.empty(len(tails), np.uint16)
    base = hashing.draws(seed, hashing.PHASE, np.zeros(1, np.int64))[0]
    floor = np.float32(greatest / n_epochs)
    greatest = np.float64(greatest)
    kept = _pack(indptr, tails, weights, first, greatest, floor, base, out_indptr, out_tails, rates, phases)
    return Edges(out_indptr, out_tails[:kept].copy(), rates[:kept].copy(), phases[:kept].copy())


def pool_rows(seed: int, epoch: int, rows: int) -> np.ndarray:
    """Draw the rows that serve all rows of an epoch as negatives.

    Returns
    -------
    ndarray of int64, shape (POOL_ROWS,)
    """
    counters = np.arange(POOL_ROWS, dtype=np.int64) + np.int64(epoch) * POOL_ROWS
    return (hashing.draws(seed, hashing.POOL, counters) % np.uint64(rows)).astype(np.int64)


def lay_pool(coordinates: np.ndarray) -> np.ndarray:
    """Lay the pool's coordinates (POOL_ROWS, n_components) out by component, its head repeated at its end."""
    return np.ascontiguousarray(np.concatenate([coordinates, coordinates[:LANES]]).T)


@nb.njit(inline="always")
def _clip(x):
    return min(max(x, -_CLIP), _CLIP)


@nb.njit(inline="always")
def _sum(forces, c, filled):
    """Add up forces in four chains, which run side by side and end in a fixed order."""
    s0, s1, s2, s3 = _F0, _F0, _F0, _F0
    for k in range(0, filled, 4):
        s0 += forces[c, k]
        s1 += forces[c, k + 1]
        s2 += forces[c, k + 2]
        s3 += forces[c, k + 3]
    return (s0 + s2) + (s1 + s3)


@nb.njit(inline="always")
def _due(rate, phase, t):
    """Return how often an edge is due in epoch t."""
    step = np.int32(np.int32(rate) << 1)
    now = np.int32(np.int32(t * step) + np.int32(phase))
    return np.int32(np.int32(np.int32(now + step) >> FRACTION_BITS) - np.int32(now >> FRACTION_BITS))


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _generation(
    axes, start, stop, first, own, indptr, tails, rates, phases, y, m, v, pool, epoch, base,
    a, b, gamma, negatives, rate, correction1, correction2, out_y,
):  # fmt: skip
    """Step rows [start, stop) of a shard; `axes` is a tuple so that its length is known to the compiler.

    The loops over k and lane have no branch and no sum across iterations, so that they fill vector lanes.
    """
    components = len(axes)
    two_ab = np.float32(2) * a * b
    two_b = np.float32(2) * b * gamma
    grad, head = np.empty(components, np.float32), np.empty(components, np.float32)
    forces = np.zeros((components, SLOT), np.float32)
    times = np.zeros(SLOT, np.float32)
    t = np.int32(epoch)
    for r in range(start, stop):
        for c in range(components):
            head[c] = y[own + r, c]
            grad[c] = _F0
        # attraction: i and j are joined by an edge, pull i towards j
        total = np.int32(0)
        for e in range(indptr[r], indptr[r + 1], SLOT):
            width = min(SLOT, indptr[r + 1] - e)
            filled = (width + LANES - 1) // LANES * LANES
            row_tails, row_rates, row_phases = tails[e : e + width], rates[e : e + width], phases[e : e + width]
            for k in range(width):
                tail = row_tails[k]
                for c in range(components):
                    forces[c, k] = head[c] - y[tail, c]
            for k in range(width):
                due = _due(row_rates[k], row_phases[k], t)
                total += due
                times[k] = np.float32(due)
            for k in range(width, filled):
                times[k] = _F0
            for k in range(filled):
                d2 = _NEAR
                for c in range(components):
                    d2 += forces[c, k] * forces[c, k]
                p = maths.power(d2, b)
                factor = two_ab * p / (d2 * (_F1 + a * p))
                for c in range(components):
                    forces[c, k] = times[k] * _clip(factor * forces[c, k])
            for c in range(components):
                grad[c] += _sum(forces, c, filled)
        # repulsion: push i from the rows of the pool
        wanted = negatives * np.float32(total)
        runs = np.int64(wanted / np.float32(LANES) + _HALF)
        if runs == 0 and wanted > _F0:
            runs += 1
        scale = wanted / np.float32(runs * LANES)
        bits = hashing.draw(base, first + r)
        for n in range(0, runs, SLOT // LANES):
            here = min(runs - n, SLOT // LANES)
            for run in range(here):
                at = np.int64((bits >> np.uint64(16 * run)) & np.uint64(POOL_ROWS - 1))
                for c in range(components):
                    source, target = pool[c, at : at + LANES], forces[c, run * LANES : (run + 1) * LANES]
                    for lane in range(LANES):
                        target[lane] = head[c] - source[lane]
            for k in range(here * LANES):
                d2 = _F0
                for c in range(components):
                    d2 += forces[c, k] * forces[c, k]
                p = maths.power(d2 + _NEAR, b)
                factor = two_b / ((_SOFT + d2) * (_F1 + a * p))
                for c in range(components):
                    forces[c, k] = _clip(factor * forces[c, k])
            for c in range(components):
                grad[c] -= scale * _sum(forces, c, here * LANES)
            bits = hashing.mix(bits + hashing.GOLDEN)
        # Adam
        for c in range(components):
            g = grad[c]
            m1 = BETA1 * m[r, c] + (_F1 - BETA1) * g
            v1 = BETA2 * v[r, c] + (_F1 - BETA2) * (g * g)
            m[r, c], v[r, c] = m1, v1
            out_y[r, c] = head[c] - rate * (m1 * correction1) / (np.sqrt(v1 * correction2) + EPSILON)


class Descent(NamedTuple):
    """What one layout's epochs have in common.

    Attributes
    ----------
    a, b : float
        Of 1 / (1 + a d^2b).
    learning_rate, repulsion_strength, negative_sample_rate : float
        As umap-learn's.
    n_epochs, seed : int
    """

    a: float
    b: float
    learning_rate: float
    repulsion_strength: float
    negative_sample_rate: float
    n_epochs: int
    seed: int


def _power_of(base: float, exponent: int) -> float:
    result = 1.0
    for _ in range(exponent):
        result *= base
    return result


def generation(
    descent: Descent,
    epoch: int,
    start: int,
    stop: int,
    first: int,
    own: int,
    edges: Edges,
    y: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    pool: np.ndarray,
    out_y: np.ndarray,
) -> None:
    """Write the next generation of rows [start, stop) of a shard; their moments change in place.

    Adam with beta 0.5 and 0.9 and a rate that falls linearly to 0, as uwot's batch mode.

    Parameters
    ----------
    descent : Descent
    epoch : int
        From 0.
    start, stop : int
        Rows of the shard.
    first : int
        The shard's first row in the whole set; it keys the row's choices.
    own : int
        Row of `y` at which the shard's own coordinates begin.
    edges : Edges
        The shard's; tails are rows of `y`.
    y : ndarray of float32, shape (known rows, n_components)
        The last generation: never written.
    m, v : ndarray of float32, shape (shard rows, n_components)
    pool : ndarray of float32, shape (n_components, POOL_ROWS + LANES)
        From `lay_pool`.
    out_y : ndarray of float32, shape (shard rows, n_components)
    """
    base = hashing.draws(descent.seed, hashing.NEGATIVES, np.array([epoch]))[0]
    rate = descent.learning_rate * (1.0 - epoch / descent.n_epochs)
    correction1 = 1.0 / (1.0 - _power_of(float(BETA1), epoch + 1))
    correction2 = 1.0 / (1.0 - _power_of(float(BETA2), epoch + 1))
    _generation(
        (0,) * y.shape[1], start, stop, first, own, *edges, y, m, v, pool, epoch, base,
        np.float32(descent.a), np.float32(descent.b), np.float32(descent.repulsion_strength),
        np.float32(descent.negative_sample_rate / 2), np.float32(rate),
        np.float32(correction1), np.float32(correction2), out_y,
    )  # fmt: skip
