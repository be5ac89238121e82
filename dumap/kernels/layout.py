"""Stochastic gradient descent on UMAP's cross-entropy, one epoch at a time.

An epoch computes every gradient from the coordinates after the epoch before. Adam then moves all rows. A task writes
its own rows alone, so the result depends neither on threads nor on shards. Rows are computed in groups of neighbouring
rows that share their negative samples: each sample is then one vectorized loop over the group.
"""

from __future__ import annotations

from typing import NamedTuple

import numba as nb
import numpy as np

from dumap.kernels import hashing, maths
from dumap.kernels.edges import FRACTION_BITS, Edges, samples_in_epoch
from dumap.kernels.pool import POOL_ROWS

ROW_GROUP = 64
"""Rows of a group, which share their negative samples; a group begins at a multiple of this."""
EDGES_AT_ONCE = 2048
"""Edges of a group that are computed at once."""
BETA1, BETA2 = np.float32(0.5), np.float32(0.9)
ADAM_EPSILON = np.float32(0.03)
"""Adam adds this to the root mean square gradient, which is usually 1 or more. Without it, a component of the graph on
which only far rows push, weakly and steadily, would move by the whole learning rate in every epoch and drift away."""

_ZERO, _ONE = np.float32(0), np.float32(1)
_MAX_FORCE = np.float32(4)
_MIN_SQUARED = np.float32(1e-8)
_SOFTENING = np.float32(0.001)


@nb.njit(inline="always")
def _clip_force(x):
    return min(max(x, -_MAX_FORCE), _MAX_FORCE)


class _GroupWorkspace(NamedTuple):
    """Work space for a group of rows, small enough for the processor's first cache.

    Loops over the last axes have neither branches nor sums across iterations, so that the compiler vectorizes them.
    """

    head: np.ndarray  # (components, ROW_GROUP): the rows' coordinates
    head_exchanged: np.ndarray  # (components, ROW_GROUP): the rows' coordinates at the last exchange
    pull: np.ndarray  # (components, ROW_GROUP): sums of attractive forces
    push: np.ndarray  # (components, ROW_GROUP): sums of repulsive forces
    row_samples: np.ndarray  # (ROW_GROUP,): how often each row's edges are sampled in this epoch
    samples: np.ndarray  # (EDGES_AT_ONCE,): how often each edge of the chunk is sampled
    sampled_before: np.ndarray  # (EDGES_AT_ONCE + 1,): how many edges before each edge are sampled
    sampled_tails: np.ndarray  # (EDGES_AT_ONCE,): tails of the sampled edges alone
    sampled_times: np.ndarray  # (EDGES_AT_ONCE,): how often each sampled edge is sampled, 1 or 2
    force: np.ndarray  # (components, EDGES_AT_ONCE): head less tail of sampled edges, then their forces


def _make_workspace(components: int, tail_dtype: np.dtype) -> _GroupWorkspace:
    return _GroupWorkspace(
        head=np.zeros((components, ROW_GROUP), np.float32),
        head_exchanged=np.zeros((components, ROW_GROUP), np.float32),
        pull=np.zeros((components, ROW_GROUP), np.float32),
        push=np.zeros((components, ROW_GROUP), np.float32),
        row_samples=np.zeros(ROW_GROUP, np.int32),
        samples=np.zeros(EDGES_AT_ONCE, np.int32),
        sampled_before=np.zeros(EDGES_AT_ONCE + 1, np.int32),
        sampled_tails=np.zeros(EDGES_AT_ONCE, tail_dtype),
        sampled_times=np.zeros(EDGES_AT_ONCE, np.int32),
        force=np.zeros((components, EDGES_AT_ONCE), np.float32),
    )


@nb.njit(inline="always")
def _compact_index(sampled_before, n_edges, edge):
    """Return an edge's index among the sampled edges of a chunk; an edge outside the chunk counts as the chunk's first
    or last.
    """
    return sampled_before[min(max(edge, 0), n_edges)]


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _sum_attraction(
    components, workspace, indptr, first_row, n_rows, tails, relative_weights, sample_phases, y, exchanged_y, t, a, b
):
    """Sum the attraction of a group of rows: each sampled edge (i, j) pulls i towards j."""
    head, head_exchanged, pull, _, row_samples, samples, sampled_before, sampled_tails, sampled_times, force = workspace
    n_components = len(components)
    two_ab = np.float32(2) * a * b
    for chunk_start in range(indptr[first_row], indptr[first_row + n_rows], EDGES_AT_ONCE):
        n_edges = min(EDGES_AT_ONCE, indptr[first_row + n_rows] - chunk_start)
        chunk_tails = tails[chunk_start : chunk_start + n_edges]
        chunk_weights, chunk_sample_phases = (
            relative_weights[chunk_start : chunk_start + n_edges],
            sample_phases[chunk_start : chunk_start + n_edges],
        )
        for k in range(n_edges):
            samples[k] = samples_in_epoch(chunk_weights[k], chunk_sample_phases[k], t)
        # Compact: move the sampled edges to the front, without a branch, which the processor could not predict.
        n_sampled = 0
        for k in range(n_edges):
            sampled_before[k] = n_sampled
            sampled_tails[n_sampled] = chunk_tails[k]
            sampled_times[n_sampled] = samples[k]
            n_sampled += np.int64(samples[k] > 0)
        sampled_before[n_edges] = n_sampled
        # force = y_i - y_j. A tail in another shard has the coordinates of the last exchange; its head's are then taken
        # from the same time.
        for q in range(n_rows):
            low = _compact_index(sampled_before, n_edges, indptr[first_row + q] - chunk_start)
            high = _compact_index(sampled_before, n_edges, indptr[first_row + q + 1] - chunk_start)
            for k in range(low, high):
                tail = sampled_tails[k]
                if exchanged_y is not None and tail >= exchanged_y.shape[0]:
                    for c in range(n_components):
                        force[c, k] = head_exchanged[c, q] - y[tail, c]
                else:
                    for c in range(n_components):
                        force[c, k] = head[c, q] - y[tail, c]
        # The gradient of log(1 + a d^2b) is 2ab d^(2b-2) / (1 + a d^2b) (y_i - y_j), clipped to 4 by component.
        for k in range(n_sampled):
            d2 = _MIN_SQUARED
            for c in range(n_components):
                d2 += force[c, k] * force[c, k]
            p = maths.power(d2, b)
            factor = two_ab * p / (d2 * (_ONE + a * p))
            for c in range(n_components):
                force[c, k] = np.float32(sampled_times[k]) * _clip_force(factor * force[c, k])
        # Sum by row, in the order of the edges, so that the result depends neither on chunks nor on threads.
        for q in range(n_rows):
            low = _compact_index(sampled_before, n_edges, indptr[first_row + q] - chunk_start)
            high = _compact_index(sampled_before, n_edges, indptr[first_row + q + 1] - chunk_start)
            for k in range(low, high):
                row_samples[q] += sampled_times[k]
                for c in range(n_components):
                    pull[c, q] += force[c, k]


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _sum_repulsion(components, workspace, group_number, n_rows, pool, n_samples, epoch_key, a, b, repulsion_strength):
    """Sum the repulsion of a group's rows by `n_samples` negative samples of the pool.

    All rows of the group share the samples, which lie at equal steps along the pool from a hashed offset.
    """
    head, push = workspace.head, workspace.push
    n_components = len(components)
    two_b = np.float32(2) * b * repulsion_strength
    # Offset and step are in units of 2**-15 pool rows, so that any number of samples spreads over the whole pool.
    step = max((POOL_ROWS << FRACTION_BITS) // max(n_samples, 1), 1)
    offset = np.int64(hashing.draw_word(epoch_key, group_number) % np.uint64(step))
    for n in range(n_samples):
        s = ((offset + n * step) >> FRACTION_BITS) & (POOL_ROWS - 1)
        # umap-learn's repulsion: 2b gamma / ((0.001 + d^2) (1 + a d^2b)) (y_i - y_s), clipped to 4 by component.
        for q in range(n_rows):
            d2 = _ZERO
            for c in range(n_components):
                difference = head[c, q] - pool[c, s]
                d2 += difference * difference
            p = maths.power(d2 + _MIN_SQUARED, b)
            factor = two_b / ((_SOFTENING + d2) * (_ONE + a * p))
            for c in range(n_components):
                push[c, q] += _clip_force(factor * (head[c, q] - pool[c, s]))


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _update_rows(
    components, workspace, start, stop, first_row, y_offset, indptr, tails, relative_weights, sample_phases,
    y, exchanged_y, m, v, pool, epoch, epoch_key, a, b, repulsion_strength, negatives_per_sample, learning_rate,
    correction1, correction2, out_y,
):  # fmt: skip
    """Step rows [start, stop) of a shard; `components` is a tuple so that its length is known to the compiler."""
    n_components = len(components)
    for r in range(start, stop, ROW_GROUP):
        n_rows = min(ROW_GROUP, stop - r)
        for q in range(n_rows):
            for c in range(n_components):
                workspace.head[c, q] = y[y_offset + r + q, c]
                if exchanged_y is not None:
                    workspace.head_exchanged[c, q] = exchanged_y[r + q, c]
        workspace.pull[:], workspace.push[:], workspace.row_samples[:] = _ZERO, _ZERO, 0
        t = np.int32(epoch)
        _sum_attraction(
            components, workspace, indptr, r, n_rows, tails, relative_weights, sample_phases, y, exchanged_y, t, a, b
        )
        # The group takes as many negative samples as its mean row needs. Each row scales their push to its own number
        # of edge samples.
        mean_negatives = negatives_per_sample * np.float32(workspace.row_samples.sum()) / np.float32(n_rows)
        n_negatives = np.int64(np.ceil(mean_negatives))
        group = (first_row + r) // ROW_GROUP
        _sum_repulsion(components, workspace, group, n_rows, pool, n_negatives, epoch_key, a, b, repulsion_strength)
        for q in range(n_rows):
            scale = negatives_per_sample * np.float32(workspace.row_samples[q]) / np.float32(max(n_negatives, 1))
            for c in range(n_components):
                # Adam (Kingma and Ba 2015): moments m and v of the gradient g, corrected for their start at zero.
                g = workspace.pull[c, q] - scale * workspace.push[c, q]
                m1 = BETA1 * m[r + q, c] + (_ONE - BETA1) * g
                v1 = BETA2 * v[r + q, c] + (_ONE - BETA2) * (g * g)
                m[r + q, c], v[r + q, c] = m1, v1
                step = learning_rate * (m1 * correction1) / (np.sqrt(v1 * correction2) + ADAM_EPSILON)
                out_y[r + q, c] = workspace.head[c, q] - step


class LayoutParameters(NamedTuple):
    """The parameters that all epochs of a layout share.

    Attributes
    ----------
    a, b : float
        The curve is 1 / (1 + a d^2b).
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


def estimate_loss(
    parameters: LayoutParameters, heads: np.ndarray, tails: np.ndarray, weights: np.ndarray, random_rows: np.ndarray
) -> float:
    """Return the cross-entropy per directed edge that the layout minimizes, estimated from a sample.

    The weighted mean over edges of log(1 + a d^2b), plus negative_sample_rate / 2 * repulsion_strength times the mean
    of log(1 + 1 / (a d^2b)) between heads and random rows.

    Parameters
    ----------
    parameters : LayoutParameters
    heads, tails, random_rows : ndarray of float32, shape (n, n_components)
        Coordinates of both ends of edges, and of random rows.
    weights : ndarray of float, shape (n,)
        Membership strengths.
    """

    def odds(p: np.ndarray, q: np.ndarray) -> np.ndarray:
        d2 = np.square(p - q).sum(axis=1, dtype=np.float64) + float(_SOFTENING)
        return parameters.a * d2**parameters.b

    pull = np.average(np.log1p(odds(heads, tails)), weights=weights)
    push = np.mean(np.log1p(1 / odds(heads, random_rows)))
    return float(pull + parameters.negative_sample_rate / 2 * parameters.repulsion_strength * push)


def _integer_power(base: float, exponent: int) -> float:
    result = 1.0
    for _ in range(exponent):
        result *= base
    return result


def step_epoch(
    parameters: LayoutParameters,
    epoch: int,
    start: int,
    stop: int,
    first_row: int,
    y_offset: int,
    edges: Edges,
    y: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    pool: np.ndarray,
    out_y: np.ndarray,
    exchanged_y: np.ndarray | None = None,
) -> None:
    """Compute one epoch of rows [start, stop) of a shard; the rows' moments change in place.

    Adam has beta 0.5 and 0.9 and a learning rate that falls linearly to 0, as in uwot's batch mode, but a larger
    epsilon. So many parameters are needed because numba takes each array separately.

    Parameters
    ----------
    parameters : LayoutParameters
    epoch : int
        Counted from 0.
    start, stop : int
        Rows of the shard. Multiples of `ROW_GROUP`, unless they are the shard's end.
    first_row : int
        Position of the shard's first row, a multiple of `ROW_GROUP`. Random choices depend on it.
    y_offset : int
        Row of `y` at which the shard's rows begin.
    edges : Edges
        The shard's edges; tails are rows of `y`.
    y : ndarray of float32, shape (known rows, n_components)
        Coordinates before the epoch; not written.
    m, v : ndarray of float32, shape (shard rows, n_components)
    pool : ndarray of float32, shape (n_components, POOL_ROWS)
        From `dumap.kernels.pool.sort_pool`.
    out_y : ndarray of float32, shape (shard rows, n_components)
    exchanged_y : ndarray of float32, shape (shard rows, n_components), optional
        The shard's rows at the last exchange, if shards do not exchange coordinates in every epoch. `y` holds the rows
        of other shards after the shard's own, with the coordinates of the last exchange. An edge to such a row takes
        both ends from the last exchange, so that the forces on its ends are opposite and equal.

    Raises
    ------
    ValueError
        The rows are not whole groups.
    """
    if start % ROW_GROUP or first_row % ROW_GROUP or (stop % ROW_GROUP and stop < len(out_y)):
        raise ValueError(
            f"rows [{start}, {stop}) of a shard that begins at {first_row} are not whole groups of {ROW_GROUP}"
        )
    epoch_key = hashing.draw_words(parameters.seed, hashing.POOL_OFFSETS, np.array([epoch]))[0]
    learning_rate = parameters.learning_rate * (1.0 - epoch / parameters.n_epochs)
    correction1 = 1.0 / (1.0 - _integer_power(float(BETA1), epoch + 1))
    correction2 = 1.0 / (1.0 - _integer_power(float(BETA2), epoch + 1))
    _update_rows(
        (0,) * y.shape[1], _make_workspace(y.shape[1], edges.tails.dtype),
        start, stop, first_row, y_offset, *edges, y, exchanged_y, m, v, pool, epoch, epoch_key,
        np.float32(parameters.a), np.float32(parameters.b), np.float32(parameters.repulsion_strength),
        np.float32(parameters.negative_sample_rate / 2), np.float32(learning_rate),
        np.float32(correction1), np.float32(correction2), out_y,
    )  # fmt: skip
