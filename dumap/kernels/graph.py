"""The fuzzy graph: each row's rho and sigma, directed memberships, their union, and its connected components."""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels import maths

SMOOTH_K_TOLERANCE = 1e-5
MIN_K_DIST_SCALE = 1e-3
GRAIN_ROWS = 1024
"""Rows of a grain. Shards begin at multiples of it."""
_LARGEST = np.float32(np.finfo(np.float32).max)


@nb.njit(inline="always")
def _rho_of(nonzero, count, local_connectivity, index, interpolation):
    """Return the distance of a row's `local_connectivity`-th distinct neighbour, interpolated between two
    neighbours.
    """
    rho = np.float32(0)
    if count >= local_connectivity and count > 0:
        if index > 0:
            rho = nonzero[index - 1]
            if interpolation > SMOOTH_K_TOLERANCE:
                rho += interpolation * (nonzero[index] - nonzero[index - 1])
        else:
            rho = interpolation * nonzero[0]
    elif count > 0:
        rho = nonzero[count - 1]
    return rho


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _memberships(distances, present, target, local_connectivity, mean_distance, rho, sigma, weights):
    n, k = distances.shape
    index = int(np.floor(local_connectivity))
    interpolation = np.float32(local_connectivity - index)
    nonzero = np.empty(k, np.float32)
    for i in range(n):
        count = 0
        total, neighbors = 0.0, 0
        for j in range(k):
            if not present[i, j]:
                continue
            d = distances[i, j]
            total += d
            neighbors += 1
            if d > 0:
                nonzero[count] = d
                count += 1
        rho_i = _rho_of(nonzero, count, local_connectivity, index, interpolation)
        # Find sigma by bisection, with umap-learn's tolerance and steps. Until an upper bound is known, sigma is
        # doubled.
        low, high, sigma_i = np.float32(0), _LARGEST, np.float32(1)
        for _ in range(64):
            psum = 0.0  # float64 as in umap-learn: in float32 one search in fifty ends at another step
            for j in range(k):
                if not present[i, j]:
                    continue
                d = distances[i, j] - rho_i
                psum += maths.exp(-np.float64(d) / sigma_i) if d > 0 else 1.0
            if abs(psum - target) < SMOOTH_K_TOLERANCE:
                break
            if psum > target:
                high = sigma_i
                sigma_i = (low + high) / np.float32(2)
            else:
                low = sigma_i
                sigma_i = sigma_i * np.float32(2) if high >= _LARGEST else (low + high) / np.float32(2)
        # sigma is at least a thousandth of the mean distance: of this row, or of all rows if rho is 0.
        mean = total / (neighbors + 1) if rho_i > 0 else mean_distance
        if sigma_i < MIN_K_DIST_SCALE * mean:
            sigma_i = np.float32(MIN_K_DIST_SCALE * mean)
        rho[i], sigma[i] = rho_i, sigma_i
        # w_ij = exp(-max(0, d_ij - rho_i) / sigma_i)
        for j in range(k):
            d = distances[i, j] - rho_i
            if not present[i, j]:
                weights[i, j] = 0
            elif d <= 0 or sigma_i == 0:
                weights[i, j] = 1
            else:
                weights[i, j] = np.float32(maths.exp(-np.float64(d / sigma_i)))


def memberships(
    indices: np.ndarray,
    distances: np.ndarray,
    mean_distance: float,
    local_connectivity: float,
    disconnection_distance: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Turn neighbours into directed membership strengths, as umap-learn does.

    rho is the distance to the nearest distinct neighbour; sigma solves sum_j exp(-max(0, d_ij - rho_i) / sigma_i) =
    log2(k + 1) (McInnes, Healy and Melville 2018, algorithm 3, whose k counts the row itself). Neighbours that are
    missing or cut off count neither in the sum nor in the mean distance. sigma is at least a thousandth of the mean
    distance. The target is the same for all rows, as in umap-learn, so that the remaining neighbours have the weights
    of a full list. If too few remain to reach the target, each has weight 1.

    Parameters
    ----------
    indices : ndarray of int, shape (n, k)
        -1 where a neighbour is missing; self excluded.
    distances : ndarray of float32, shape (n, k)
        Ascending; inf where missing.
    mean_distance : float
        Mean over all rows of the data set; each row's zero distance to itself counts, missing and cut-off neighbours
        do not.
    local_connectivity : float
    disconnection_distance : float
        Neighbours at or beyond it are cut off.

    Returns
    -------
    rho, sigma : ndarray of float32, shape (n,)
    weights : ndarray of float32, shape (n, k)
        0 where there is no edge.
    """
    distances = np.where(distances >= disconnection_distance, np.float32(np.inf), distances)
    present = (indices >= 0) & np.isfinite(distances)
    rho, sigma = np.empty(len(indices), np.float32), np.empty(len(indices), np.float32)
    weights = np.empty(indices.shape, np.float32)
    target = np.log2(indices.shape[1] + 1)
    _memberships(distances, present, target, float(local_connectivity), float(mean_distance), rho, sigma, weights)
    return rho, sigma, weights


def union(
    rows: int,
    heads: np.ndarray,
    tails: np.ndarray,
    weights: np.ndarray,
    in_rows: np.ndarray,
    in_heads: np.ndarray,
    in_weights: np.ndarray,
    set_op_mix_ratio: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Combine the directed edges of a shard's rows, both out and in, into the symmetric fuzzy union.

    The weight is mix (w + w' - w w') + (1 - mix) w w', where w and w' are the weights of the two directions: the
    probabilistic t-conorm (fuzzy union) and t-norm (intersection) of McInnes, Healy and Melville 2018.

    Parameters
    ----------
    rows : int
        Rows of the shard.
    heads, tails, weights : ndarray, shape (m,)
        Edges out of the shard's rows; heads count from the shard's first row.
    in_rows, in_heads, in_weights : ndarray, shape (n,)
        Edges into the shard's rows: `in_rows` are rows of the shard, `in_heads` the rows that list them.
    set_op_mix_ratio : float

    Returns
    -------
    indptr : ndarray of int64, shape (rows + 1,)
    tails : ndarray, shape (edges,)
        Ascending in each row.
    weights : ndarray of float32, shape (edges,)
    """
    head = np.concatenate([heads, in_rows])
    tail = np.concatenate([tails, in_heads])
    order = np.lexsort((tail, head))
    head, tail = head[order], tail[order]
    forward = np.concatenate([weights, np.zeros(len(in_weights), np.float32)])[order]
    backward = np.concatenate([np.zeros(len(weights), np.float32), in_weights])[order]
    new = np.ones(len(head), bool)
    new[1:] = (head[1:] != head[:-1]) | (tail[1:] != tail[:-1])
    begin = np.flatnonzero(new)
    if len(begin):
        forward, backward = np.add.reduceat(forward, begin), np.add.reduceat(backward, begin)
    head, tail = head[begin], tail[begin]
    both = forward * backward  # 0 where only one of the two rows lists the other
    mix = np.float32(set_op_mix_ratio)
    weight = mix * (forward + backward - both) + (np.float32(1) - mix) * both
    keep = weight > 0
    indptr = np.zeros(rows + 1, np.int64)
    np.cumsum(np.bincount(head[keep], minlength=rows), out=indptr[1:])
    return indptr, tail[keep], weight[keep]


def grains(rows: int) -> np.ndarray:
    """Return the bounds of the grains, ranges of rows that no shard splits, (grains + 1,)."""
    return np.minimum(np.arange(-(-rows // GRAIN_ROWS) + 1) * GRAIN_ROWS, rows)


def cut_shards(into: np.ndarray, rows: int, k: int, most_rows: int, most_edges: int) -> np.ndarray:
    """Divide rows into shards.

    A shard takes one grain, and further grains while its rows and edges stay within the limits.

    Parameters
    ----------
    into : ndarray of int64, shape (grains,)
        Edges that lead into each grain's rows.
    rows, k : int
        Rows of the graph, and edges out of each.
    most_rows, most_edges : int
        Limits of a shard; `most_rows` is a multiple of `GRAIN_ROWS`.

    Returns
    -------
    ndarray of int64, shape (shards + 1,)
        Bounds of the shards; all but the last are multiples of `GRAIN_ROWS`.
    """
    ends, offsets, edges = grains(rows), [0], 0
    for grain in range(len(into)):
        grain_edges = int(into[grain]) + k * int(ends[grain + 1] - ends[grain])
        if ends[grain] > offsets[-1] and (
            edges + grain_edges > most_edges or ends[grain + 1] - offsets[-1] > most_rows
        ):
            offsets.append(int(ends[grain]))
            edges = 0
        edges += grain_edges
    return np.array([*offsets, rows])


@nb.njit(inline="always")
def _root(sets, i):
    while sets[i] >= 0:
        if sets[sets[i]] >= 0:
            sets[i] = sets[sets[i]]
        i = sets[i]
    return i


@nb.njit(cache=True, nogil=True)
def connect(indptr, tails, first, sets):
    """Merge the components that a shard's edges connect.

    Union-find by size with path halving (Tarjan and van Leeuwen 1984). After all shards, each negative value is minus
    the size of a component.

    Parameters
    ----------
    indptr, tails : ndarray
        The shard's edges. The whole graph holds each edge in both directions.
    first : int
        The shard's first row.
    sets : ndarray of int, shape (all rows,)
        -1 before the first shard; written.
    """
    for r in range(indptr.shape[0] - 1):
        for e in range(indptr[r], indptr[r + 1]):
            if tails[e] <= first + r:
                continue
            root, other_root = _root(sets, first + r), _root(sets, tails[e])
            if root == other_root:
                continue
            if sets[root] > sets[other_root]:
                root, other_root = other_root, root
            sets[root] += sets[other_root]
            sets[other_root] = root


@nb.njit(cache=True, nogil=True)
def _labels(sets):
    """Number the components in the order of their first rows."""
    labels, count = np.full(len(sets), -1, np.int32), 0
    for i in range(len(sets)):
        root = _root(sets, i)
        if labels[root] < 0:
            labels[root] = count
            count += 1
        labels[i] = labels[root]
    return labels


def pieces(indptr: np.ndarray, tails: np.ndarray) -> np.ndarray:
    """Return the connected piece of each row, numbered in the order of their first rows.

    Parameters
    ----------
    indptr : ndarray of int64, shape (rows + 1,)
    tails : ndarray of int, shape (edges,)
        Each edge in both directions; -1 for edges to leave out.

    Returns
    -------
    ndarray of int32, shape (rows,)
    """
    sets = np.full(len(indptr) - 1, -1, tails.dtype)
    connect(indptr, tails, 0, sets)
    return _labels(sets)


def _members(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers in pairs, ascending, and the component of each."""
    from scipy import sparse

    nodes, ends = np.unique(pairs, return_inverse=True)
    ends = ends.reshape(-1, 2)
    links = sparse.coo_matrix((np.ones(len(ends), bool), ends.T), shape=(len(nodes), len(nodes)))
    return nodes, sparse.csgraph.connected_components(links, directed=False)[1]


def forest(pairs: np.ndarray) -> np.ndarray:
    """Return as few pairs as connect what the given ones do: each number with the least of its component.

    Parameters
    ----------
    pairs : ndarray of int64, shape (n, 2)

    Returns
    -------
    ndarray of int64, shape (m, 2)
    """
    nodes, members = _members(pairs)
    _, least = np.unique(members, return_index=True)
    edges = np.stack([nodes, nodes[least[members]]], axis=1)
    return edges[edges[:, 0] != edges[:, 1]]


def joined_sizes(pairs: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the size of each component of pieces that pairs connect.

    Parameters
    ----------
    pairs : ndarray of int64, shape (n, 2)
    sizes : ndarray of int64, shape (pieces,)

    Returns
    -------
    ndarray of int64
    """
    nodes, members = _members(pairs)
    joined = np.zeros(int(members.max(initial=-1)) + 1, np.int64)
    np.add.at(joined, members, sizes[nodes])
    return np.concatenate([joined, np.delete(sizes, nodes)])


def rows_at(occurrences: np.ndarray, repeated: np.ndarray, times: np.ndarray) -> np.ndarray:
    """Return the rows that occurrences belong to: a row occurs once for itself and once for each of its duplicates.

    Parameters
    ----------
    occurrences : ndarray of int64, shape (n,)
        Numbered from 0, in the order of the rows.
    repeated : ndarray of int, shape (m,)
        Rows that occur more than once, ascending.
    times : ndarray of int, shape (m,)
        How often each occurs.

    Returns
    -------
    ndarray of int64, shape (n,)
    """
    extra = np.concatenate([[0], np.cumsum(times.astype(np.int64) - 1)])
    index = np.searchsorted(repeated + extra[:-1], occurrences, side="right")  # repeated rows that occur here or before
    rows = occurrences - extra[index]
    return np.where(index > 0, np.maximum(rows, np.append(repeated, -1)[index - 1]), rows)
