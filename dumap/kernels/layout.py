"""Stochastic gradient descent on the cross-entropy, one generation at a time.

Every row's gradient is taken at the last generation's coordinates, of both ends; then Adam steps. A row
writes itself alone, so the result depends neither on threads nor on how rows are cut into shards. Rows step in
blocks of neighbours, which share their negatives: a row's interactions are then one loop over vector lanes.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np

from dumap.kernels import hashing, maths
from dumap.kernels.pool import POOL_ROWS

BLOCK = 64
"""Rows that step together, and share their negatives: the first is a multiple of it."""
CHUNK = 2048
"""Edges of a block that are looked at together."""
BETA1, BETA2 = np.float32(0.5), np.float32(0.9)
EPSILON = np.float32(0.03)
"""What Adam adds to a row's root mean square gradient, 1 or more as a rule: a piece of the graph that nothing but far
rows pushes, ever the same way, would go as far as its rate at every step, and stray."""
FEW_EPOCHS = 10
"""Epochs up to which no edge is dropped that would be due in the default number of them."""
FRACTION_BITS = 15
"""Weights and phases count in units of 2**-15 of the greatest weight, places in the pool in 2**-15 of a row."""

_F0, _F1 = np.float32(0), np.float32(1)
_CLIP = np.float32(4)
_NEAR = np.float32(1e-8)
_SOFT = np.float32(0.001)
_FRACTION = np.int32((1 << FRACTION_BITS) - 1)
_PHASE_MASK = np.uint64(_FRACTION)


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
    rows: int | None = None,
) -> Edges:
    """Pack the edges of rows `first`, `first` + 1, ... for the layout.

    An edge of weight w relative to the greatest is due floor((t + 1) 2w + phase) - floor(2wt + phase) times
    in epoch t; the phase is hashed from the unordered pair, so that both ends agree. Edges too weak to be due
    once in all epochs are dropped, as umap-learn drops them; of 10 epochs or fewer, those too weak for the default.

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
    rows : int, optional
        Of the whole graph. [those that are packed]

    Returns
    -------
    Edges
    """
    out_indptr = np.zeros(len(indptr), np.int64)
    out_tails = np.empty(len(tails), f"u{tails.dtype.itemsize}")  # unsigned: no wrapping of indices in the loop
    rates, phases = np.empty(len(tails), np.uint16), np.empty(len(tails), np.uint16)
    base = hashing.draws(seed, hashing.PHASE, np.zeros(1, np.int64))[0]
    floor = np.float32(greatest / (n_epochs if n_epochs > FEW_EPOCHS else default_epochs(rows or len(indptr) - 1)))
    greatest = np.float64(greatest)
    kept = _pack(indptr, tails, weights, first, greatest, floor, base, out_indptr, out_tails, rates, phases)
    return Edges(out_indptr, out_tails[:kept].copy(), rates[:kept].copy(), phases[:kept].copy())


@nb.njit(inline="always")
def _clip(x):
    return min(max(x, -_CLIP), _CLIP)


@nb.njit(inline="always")
def _due(rate, phase, t):
    """Return how often an edge is due in epoch t, however late: of what was due before, the fraction alone counts."""
    step = np.int32(np.int32(rate) << 1)
    now = np.int32(np.int32(np.int32(t * step) + np.int32(phase)) & _FRACTION)
    return np.int32(np.int32(now + step) >> FRACTION_BITS)


class _Block(NamedTuple):
    """What a block of rows is computed in: small enough to stay in the nearest cache.

    Loops over its last axes have no branch and no sum across iterations, so that they fill vector lanes.
    """

    head: np.ndarray  # (components, BLOCK): the rows' coordinates
    before: np.ndarray  # (components, BLOCK): those they had at the last exchange
    pull: np.ndarray  # (components, BLOCK): sums over the edges that are due
    push: np.ndarray  # (components, BLOCK): sums over negatives
    due: np.ndarray  # (BLOCK,): edges that are due
    times: np.ndarray  # (CHUNK,): how often each edge is due
    kept: np.ndarray  # (CHUNK + 1,): edges before each that are due
    near: np.ndarray  # (CHUNK,): tails of the edges that are due, packed
    share: np.ndarray  # (CHUNK,): how often those are due
    force: np.ndarray  # (components, CHUNK)


def _room(components: int, tail_dtype: np.dtype) -> _Block:
    return _Block(
        head=np.zeros((components, BLOCK), np.float32),
        before=np.zeros((components, BLOCK), np.float32),
        pull=np.zeros((components, BLOCK), np.float32),
        push=np.zeros((components, BLOCK), np.float32),
        due=np.zeros(BLOCK, np.int32),
        times=np.zeros(CHUNK, np.int32),
        kept=np.zeros(CHUNK + 1, np.int32),
        near=np.zeros(CHUNK, tail_dtype),
        share=np.zeros(CHUNK, np.int32),
        force=np.zeros((components, CHUNK), np.float32),
    )


@nb.njit(inline="always")
def _packed(kept, width, edge):
    """Return the place that an edge of a chunk, or the nearest one that is, has among those that are due."""
    return kept[min(max(edge, 0), width)]


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _attract(axes, block, indptr, r, rows, tails, rates, phases, y, exchanged, t, a, b):
    """Sum what pulls rows r, r + 1, ...: i and j are joined by an edge, pull i towards j."""
    head, before, pull, _, due, times, kept, near, share, force = block
    components = len(axes)
    two_ab = np.float32(2) * a * b
    for e in range(indptr[r], indptr[r + rows], CHUNK):
        width = min(CHUNK, indptr[r + rows] - e)
        chunk_tails, chunk_rates, chunk_phases = tails[e : e + width], rates[e : e + width], phases[e : e + width]
        for k in range(width):
            times[k] = _due(chunk_rates[k], chunk_phases[k], t)
        count = 0
        for k in range(width):  # without a branch, which would be a coin toss to the processor
            kept[k] = count
            near[count] = chunk_tails[k]
            share[count] = times[k]
            count += np.int64(times[k] > 0)
        kept[width] = count
        for q in range(rows):
            low, high = _packed(kept, width, indptr[r + q] - e), _packed(kept, width, indptr[r + q + 1] - e)
            for k in range(low, high):
                tail = near[k]
                if exchanged is not None and tail >= exchanged.shape[0]:
                    for c in range(components):
                        force[c, k] = before[c, q] - y[tail, c]
                else:
                    for c in range(components):
                        force[c, k] = head[c, q] - y[tail, c]
        for k in range(count):
            d2 = _NEAR
            for c in range(components):
                d2 += force[c, k] * force[c, k]
            p = maths.power(d2, b)
            factor = two_ab * p / (d2 * (_F1 + a * p))
            for c in range(components):
                force[c, k] = np.float32(share[k]) * _clip(factor * force[c, k])
        for q in range(rows):
            low, high = _packed(kept, width, indptr[r + q] - e), _packed(kept, width, indptr[r + q + 1] - e)
            for k in range(low, high):
                due[q] += share[k]
                for c in range(components):
                    pull[c, q] += force[c, k]


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _repel(axes, block, number, rows, pool, count, base, a, b, gamma):
    """Sum what pushes the rows of a block: `count` rows of the pool, evenly apart from a place that is hashed."""
    head, push = block.head, block.push
    components = len(axes)
    two_b = np.float32(2) * b * gamma
    apart = max((POOL_ROWS << FRACTION_BITS) // max(count, 1), 1)
    at = np.int64(hashing.draw(base, number) % np.uint64(apart))
    for n in range(count):
        s = ((at + n * apart) >> FRACTION_BITS) & (POOL_ROWS - 1)
        for q in range(rows):
            d2 = _F0
            for c in range(components):
                away = head[c, q] - pool[c, s]
                d2 += away * away
            p = maths.power(d2 + _NEAR, b)
            factor = two_b / ((_SOFT + d2) * (_F1 + a * p))
            for c in range(components):
                push[c, q] += _clip(factor * (head[c, q] - pool[c, s]))


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _generation(
    axes, block, start, stop, first, own, indptr, tails, rates, phases, y, exchanged, m, v, pool, epoch, base,
    a, b, gamma, negatives, rate, correction1, correction2, out_y,
):  # fmt: skip
    """Step rows [start, stop) of a shard; `axes` is a tuple so that its length is known to the compiler."""
    components = len(axes)
    for r in range(start, stop, BLOCK):
        rows = min(BLOCK, stop - r)
        for q in range(rows):
            for c in range(components):
                block.head[c, q] = y[own + r + q, c]
                if exchanged is not None:
                    block.before[c, q] = exchanged[r + q, c]
        block.pull[:], block.push[:], block.due[:] = _F0, _F0, 0
        _attract(axes, block, indptr, r, rows, tails, rates, phases, y, exchanged, np.int32(epoch), a, b)
        wanted = negatives * np.float32(block.due.sum()) / np.float32(rows)
        count = np.int64(np.ceil(wanted))
        _repel(axes, block, (first + r) // BLOCK, rows, pool, count, base, a, b, gamma)
        for q in range(rows):
            scale = negatives * np.float32(block.due[q]) / np.float32(max(count, 1))
            for c in range(components):
                g = block.pull[c, q] - scale * block.push[c, q]
                m1 = BETA1 * m[r + q, c] + (_F1 - BETA1) * g
                v1 = BETA2 * v[r + q, c] + (_F1 - BETA2) * (g * g)
                m[r + q, c], v[r + q, c] = m1, v1
                step = rate * (m1 * correction1) / (np.sqrt(v1 * correction2) + EPSILON)
                out_y[r + q, c] = block.head[c, q] - step


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


def loss(descent: Descent, heads: np.ndarray, tails: np.ndarray, weights: np.ndarray, others: np.ndarray) -> float:
    """Return the cross-entropy that the descent lowers, on a sample: per edge, with the negatives of its end.

    Parameters
    ----------
    descent : Descent
    heads, tails, others : ndarray of float32, shape (n, n_components)
        Coordinates of both ends of edges, and of any rows.
    weights : ndarray of float, shape (n,)
        Membership strengths.
    """

    def odds(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        d2 = np.square(p - q).sum(axis=1, dtype=np.float64) + float(_SOFT)
        return descent.a * d2**descent.b

    pull = np.average(np.log1p(odds(heads, tails)), weights=weights)
    push = np.mean(np.log1p(1 / odds(heads, others)))
    return float(pull + descent.negative_sample_rate / 2 * descent.repulsion_strength * push)


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
    exchanged: np.ndarray | None = None,
) -> None:
    """Write the next generation of rows [start, stop) of a shard; their moments change in place.

    Adam with beta 0.5 and 0.9 and a rate that falls linearly to 0, as uwot's batch mode; its epsilon is greater.
    So many parameters, since numba takes each array by itself.

    Parameters
    ----------
    descent : Descent
    epoch : int
        From 0.
    start, stop : int
        Rows of the shard. Multiples of `BLOCK`, but for the last row's.
    first : int
        The shard's first row in the whole set, a multiple of `BLOCK`; it keys the choices.
    own : int
        Row of `y` at which the shard's own coordinates begin.
    edges : Edges
        The shard's; tails are rows of `y`.
    y : ndarray of float32, shape (known rows, n_components)
        The last generation: never written.
    m, v : ndarray of float32, shape (shard rows, n_components)
    pool : ndarray of float32, shape (n_components, POOL_ROWS)
        From `dumap.kernels.pool.lay_pool`.
    out_y : ndarray of float32, shape (shard rows, n_components)
    exchanged : ndarray of float32, shape (shard rows, n_components), optional
        Where shards are not exchanged every epoch: the shard's rows at the last exchange, as old as those of others in
        `y`, which come after them. Edges to others pull from there, so that what one end loses the other gains.

    Raises
    ------
    ValueError
        Rows do not begin and end where blocks do.
    """
    if start % BLOCK or first % BLOCK or (stop % BLOCK and stop < len(out_y)):
        raise ValueError(f"rows [{start}, {stop}) of a shard that begins at {first} are not whole blocks of {BLOCK}")
    base = hashing.draws(descent.seed, hashing.NEGATIVES, np.array([epoch]))[0]
    rate = descent.learning_rate * (1.0 - epoch / descent.n_epochs)
    correction1 = 1.0 / (1.0 - _power_of(float(BETA1), epoch + 1))
    correction2 = 1.0 / (1.0 - _power_of(float(BETA2), epoch + 1))
    _generation(
        (0,) * y.shape[1], _room(y.shape[1], edges.tails.dtype),
        start, stop, first, own, *edges, y, exchanged, m, v, pool, epoch, base,
        np.float32(descent.a), np.float32(descent.b), np.float32(descent.repulsion_strength),
        np.float32(descent.negative_sample_rate / 2), np.float32(rate),
        np.float32(correction1), np.float32(correction2), out_y,
    )  # fmt: skip
