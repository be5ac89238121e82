"""Neighbours of neighbours: pairs of rows that a third row lists, or that lie two lists apart, scored anew."""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels import vectors
from dumap.kernels.neighbors import distance_function


def choose_halo(indices: np.ndarray, first: int, most: int) -> tuple[np.ndarray, int]:
    """Choose the rows of other cells that a cell's rows list, where they are too many those listed as nearer ones.

    Parameters
    ----------
    indices : ndarray of int, shape (own, k)
        Positions that each of the cell's rows lists, nearest first; -1 where there is none.
    first : int
        Position of the cell's first row.
    most : int

    Returns
    -------
    halo : ndarray of int64
        Positions, ascending.
    left_out : int
        How many more are listed.
    """
    _, slots = np.nonzero(foreign := (indices >= 0) & ((indices < first) | (indices >= first + len(indices))))
    halo, inverse, times = np.unique(indices[foreign], return_inverse=True, return_counts=True)
    left_out = max(0, len(halo) - most)
    if left_out:
        nearest = np.full(len(halo), indices.shape[1])
        np.minimum.at(nearest, inverse, slots)
        halo = np.sort(halo[np.lexsort((halo, -times, nearest))[:most]])
    return halo.astype(np.int64), left_out


def localize(indices: np.ndarray, first: int, own: int, halo: np.ndarray) -> np.ndarray:
    """Number positions by where they are at hand: a cell's own rows, then its halo; -1 elsewhere.

    Parameters
    ----------
    indices : ndarray of int, shape (n, k)
    first, own : int
        Position of the cell's first row, and how many it has.
    halo : ndarray of int64
        Positions, ascending.

    Returns
    -------
    ndarray of int32, shape (n, k)
    """
    inside = (indices >= first) & (indices < first + own)
    local = np.where(inside, indices - first, -1).astype(np.int32)
    if len(halo):
        at = np.minimum(np.searchsorted(halo, indices), len(halo) - 1)
        there = halo[at] == indices
        local[there] = own + at[there]
    return local


def pack(indices: np.ndarray, distances: np.ndarray) -> np.ndarray:
    """Put lists and the bits of their float32 distances side by side, so that they travel as one object."""
    return np.concatenate([indices, np.ascontiguousarray(distances).view(np.int32)], axis=1, dtype=indices.dtype)


def unpack(packed: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Take apart what `pack` put together from lists of k."""
    return np.ascontiguousarray(packed[:, :k]), packed[:, k:].astype(np.int32).view(np.float32)


@nb.njit(cache=True, nogil=True)
def listed_by(members: np.ndarray, own: int) -> tuple[np.ndarray, np.ndarray]:
    """Turn the lists of the first `own` rows round.

    Returns
    -------
    starts : ndarray of int64, shape (rows + 1,)
    entries : ndarray of int64
        For each row the entries `head * k + slot` that list it.
    """
    k = members.shape[1]
    starts = np.zeros(members.shape[0] + 1, np.int64)
    for j in range(own):
        for s in range(k):
            if members[j, s] >= 0:
                starts[members[j, s] + 1] += 1
    starts = np.cumsum(starts)
    following, entries = starts[:-1].copy(), np.empty(starts[-1], np.int64)
    for j in range(own):
        for s in range(k):
            if members[j, s] >= 0:
                entries[following[members[j, s]]] = j * k + s
                following[members[j, s]] += 1
    return starts, entries


@nb.njit(cache=True, nogil=True)
def _keep(i, j, d, members, found, distances):
    """Insert j into the nearest found for i, unless i lists it already."""
    last = found.shape[1] - 1
    if not d < distances[i, last]:
        return
    for s in range(last + 1):
        if members[i, s] == j or found[i, s] == j:
            return
    at = last
    while at > 0 and distances[i, at - 1] > d:
        distances[i, at], found[i, at] = distances[i, at - 1], found[i, at - 1]
        at -= 1
    distances[i, at], found[i, at] = d, j


@nb.njit(nogil=True)
def _score_pair(i, j, x, members, limits, distance, arguments, found, distances):
    d = vectors.squared_distance(x[i], x[j]) if distance is None else np.float32(distance(x[i], x[j], *arguments))
    if d < limits[i]:
        _keep(i, j, d, members, found, distances)
    if d < limits[j]:
        _keep(j, i, d, members, found, distances)


def _join(x, own, members, fresh, homes, inside, limits, distance, arguments, found, distances):
    """Score each pair once for each way round it is met; fill `found` and `distances`, return how many pairs.

    So many parameters, since numba takes each array by itself.
    """
    rows, k = members.shape
    starts, entries = listed_by(members, own)
    seen, pairs = np.full(rows, -1, np.int32), 0
    for i in range(rows):
        seen[i] = i
        for e in range(starts[i], starts[i + 1]):  # both are listed by j
            j, s = entries[e] // k, entries[e] % k
            for t in range(k):
                m = members[j, t]
                wanted = m > i and seen[m] != i and (fresh[j, s] or fresh[j, t])
                if wanted and (inside or homes[m] != homes[i]):
                    seen[m] = i
                    pairs += 1
                    _score_pair(i, m, x, members, limits, distance, arguments, found, distances)
        if i >= own:
            continue
        for s in range(k):
            j = members[i, s]
            if j < 0:
                continue
            if fresh[i, s] and seen[j] != i and (inside or homes[j] != homes[i]):  # j may not list i
                seen[j] = i
                pairs += 1
                _score_pair(i, j, x, members, limits, distance, arguments, found, distances)
            for t in range(k):  # i lists j, and j lists m
                m = members[j, t]
                wanted = m >= 0 and seen[m] != i and (fresh[i, s] or fresh[j, t])
                if wanted and (inside or homes[m] != homes[i]):
                    seen[m] = i
                    pairs += 1
                    _score_pair(i, m, x, members, limits, distance, arguments, found, distances)
    return pairs


_join_metric, _join_squared = nb.njit(nogil=True)(_join), nb.njit(cache=True, nogil=True)(_join)


@nb.njit(nogil=True)
def _score_anew(x, found, distance, arguments, distances):
    for i in range(found.shape[0]):
        for s in range(found.shape[1]):
            if found[i, s] >= 0:
                distances[i, s] = distance(x[i], x[found[i, s]], *arguments)


def join(
    x: np.ndarray,
    own: int,
    members: np.ndarray,
    fresh: np.ndarray,
    homes: np.ndarray,
    inside: bool,
    reach: np.ndarray,
    metric: str,
    metric_kwds: dict,
) -> tuple[np.ndarray, np.ndarray, int]:
    """Find nearer neighbours among the neighbours of neighbours.

    A row meets the rows that stand in a list of the cell's own rows together with it and, where it is one of those,
    also whom it lists, and whom they list (Dong, Charikar and Li, WWW 2011). What is found goes both ways.
    So many parameters, since numba takes each array by itself.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
        The cell's own rows, then its halo.
    own : int
    members : ndarray of int32, shape (n, k)
        Each row's list, as rows of `x`; -1 for those not at hand.
    fresh : ndarray of bool, shape (n, k)
        False for what was in a list when pairs were last scored: two such steps lead to no new pair, as a rule.
    homes : ndarray of int32, shape (n,)
        Each row's home cell.
    inside : bool
        Whether to score pairs of one home cell too, which were searched before.
    reach : ndarray of float32, shape (n,)
        The farthest distance in each row's list, infinite where it has room.
    metric, metric_kwds : str, dict

    Returns
    -------
    found : ndarray of int32, shape (n, k)
        Rows of `x` that may belong into each row's list and do not stand there; -1 where there are no more.
    distances : ndarray of float32, shape (n, k)
    pairs : int
        Distances computed.
    """
    found, distances = np.full(members.shape, -1, np.int32), np.full(members.shape, np.inf, np.float32)
    distance = vectors.great_circle if metric == vectors.SPHERICAL else distance_function(metric)
    arguments = tuple(metric_kwds.values())
    if metric not in vectors.EUCLIDEAN_ORDER:
        pairs = _join_metric(x, own, members, fresh, homes, inside, reach, distance, arguments, found, distances)
        return found, distances, pairs
    z, limits = vectors.partition_space(x, metric), vectors.squared_limits(reach, metric).astype(np.float32)
    pairs = _join_squared(z, own, members, fresh, homes, inside, limits, None, (), found, distances)
    _score_anew(x, found, distance, arguments, distances)
    return found, distances, pairs


@nb.njit(cache=True, nogil=True)
def is_new(after: np.ndarray, before: np.ndarray) -> np.ndarray:
    """Tell which entries of lists did not stand in them before, whatever their place."""
    out = np.ones(after.shape, np.bool_)
    for i in range(after.shape[0]):
        for s in range(after.shape[1]):
            for t in range(before.shape[1]):
                if before[i, t] == after[i, s]:
                    out[i, s] = False
                    break
    return out
