"""The fuzzy graph: each row's rho and sigma, directed memberships, their union, and its connected components."""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels import maths

SMOOTH_K_TOLERANCE = 1e-5
MIN_K_DIST_SCALE = 1e-3
GRAIN_ROWS = 1024
"""Rows of a grain. Shards begin at multiples of it."""
_FLOAT32_MAX = np.float32(np.finfo(np.float32).max)


@nb.njit(inline="always")
def _interpolated_rho(nonzero, n_nonzero, local_connectivity, index, interpolation):
    """Return the distance of a row's `local_connectivity`-th distinct neighbour, interpolated between two
    neighbours.
    """
    rho = np.float32(0)
    if n_nonzero >= local_connectivity and n_nonzero > 0:
        if index > 0:
            rho = nonzero[index - 1]
            if interpolation > SMOOTH_K_TOLERANCE:
                rho += interpolation * (nonzero[index] - nonzero[index - 1])
        else:
            rho = interpolation * nonzero[0]
    elif n_nonzero > 0:
        rho = nonzero[n_nonzero - 1]
    return rho


@nb.njit(cache=True, nogil=True, error_model="numpy")
def _write_memberships(distances, is_present, target, local_connectivity, mean_distance, rho, sigma, weights):
    n, k = distances.shape
    index = int(np.floor(local_connectivity))
    interpolation = np.float32(local_connectivity - index)
    nonzero = np.empty(k, np.float32)
    for i in range(n):
        n_nonzero = 0
        total, n_neighbors = 0.0, 0
        for j in range(k):
            if not is_present[i, j]:
                continue
            d = distances[i, j]
            total += d
            n_neighbors += 1
            if d > 0:
                nonzero[n_nonzero] = d
                n_nonzero += 1
        rho_i = _interpolated_rho(nonzero, n_nonzero, local_connectivity, index, interpolation)
        # Find sigma by bisection, with umap-learn's tolerance and steps. Until an upper bound is known, sigma is
        # doubled.
        low, high, sigma_i = np.float32(0), _FLOAT32_MAX, np.float32(1)
        for _ in range(64):
            membership_sum = 0.0  # float64 as in umap-learn: in float32 one search in fifty ends at another step
            for j in range(k):
                if not is_present[i, j]:
                    continue
                d = distances[i, j] - rho_i
                membership_sum += maths.exp(-np.float64(d) / sigma_i) if d > 0 else 1.0
            if abs(membership_sum - target) < SMOOTH_K_TOLERANCE:
                break
            if membership_sum > target:
                high = sigma_i
                sigma_i = (low + high) / np.float32(2)
            else:
                low = sigma_i
                sigma_i = sigma_i * np.float32(2) if high >= _FLOAT32_MAX else (low + high) / np.float32(2)
        # sigma is at least a thousandth of the mean distance: of this row, or of all rows if rho is 0.
        mean = total / (n_neighbors + 1) if rho_i > 0 else mean_distance
        if sigma_i < MIN_K_DIST_SCALE * mean:
            sigma_i = np.float32(MIN_K_DIST_SCALE * mean)
        rho[i], sigma[i] = rho_i, sigma_i
        # w_ij = exp(-max(0, d_ij - rho_i) / sigma_i)
        for j in range(k):
            d = distances[i, j] - rho_i
            if not is_present[i, j]:
                weights[i, j] = 0
            elif d <= 0 or sigma_i == 0:
                weights[i, j] = 1
            else:
                weights[i, j] = np.float32(maths.exp(-np.float64(d / sigma_i)))


def compute_memberships(
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
    is_present = (indices >= 0) & np.isfinite(distances)
    rho, sigma = np.empty(len(indices), np.float32), np.empty(len(indices), np.float32)
    weights = np.empty(indices.shape, np.float32)
    target = np.log2(indices.shape[1] + 1)
    _write_memberships(
        distances, is_present, target, float(local_connectivity), float(mean_distance), rho, sigma, weights
    )
    return rho, sigma, weights


def fuzzy_union(
    n_rows: int,
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
    n_rows : int
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
    all_heads = np.concatenate([heads, in_rows])
    all_tails = np.concatenate([tails, in_heads])
    order = np.lexsort((all_tails, all_heads))
    all_heads, all_tails = all_heads[order], all_tails[order]
    forward = np.concatenate([weights, np.zeros(len(in_weights), np.float32)])[order]
    backward = np.concatenate([np.zeros(len(weights), np.float32), in_weights])[order]
    starts_pair = np.ones(len(all_heads), bool)
    starts_pair[1:] = (all_heads[1:] != all_heads[:-1]) | (all_tails[1:] != all_tails[:-1])
    starts = np.flatnonzero(starts_pair)
    if len(starts):
        forward, backward = np.add.reduceat(forward, starts), np.add.reduceat(backward, starts)
    all_heads, all_tails = all_heads[starts], all_tails[starts]
    product = forward * backward  # 0 where only one of the two rows lists the other
    mix = np.float32(set_op_mix_ratio)
    union_weights = mix * (forward + backward - product) + (np.float32(1) - mix) * product
    is_edge = union_weights > 0
    indptr = np.zeros(n_rows + 1, np.int64)
    np.cumsum(np.bincount(all_heads[is_edge], minlength=n_rows), out=indptr[1:])
    return indptr, all_tails[is_edge], union_weights[is_edge]


def grain_bounds(rows: int) -> np.ndarray:
    """Return the bounds of the grains, ranges of rows that no shard splits, (grains + 1,)."""
    return np.minimum(np.arange(-(-rows // GRAIN_ROWS) + 1) * GRAIN_ROWS, rows)


def divide_into_shards(in_edge_counts: np.ndarray, rows: int, k: int, most_rows: int, most_edges: int) -> np.ndarray:
    """Divide rows into shards.

    A shard takes one grain, and further grains while its rows and edges stay within the limits.

    Parameters
    ----------
    in_edge_counts : ndarray of int64, shape (grains,)
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
    grain_stops, shard_bounds, shard_edges = grain_bounds(rows), [0], 0
    for grain in range(len(in_edge_counts)):
        grain_edges = int(in_edge_counts[grain]) + k * int(grain_stops[grain + 1] - grain_stops[grain])
        if grain_stops[grain] > shard_bounds[-1] and (
            shard_edges + grain_edges > most_edges or grain_stops[grain + 1] - shard_bounds[-1] > most_rows
        ):
            shard_bounds.append(int(grain_stops[grain]))
            shard_edges = 0
        shard_edges += grain_edges
    return np.array([*shard_bounds, rows])


@nb.njit(inline="always")
def _find_root(parents, i):
    while parents[i] >= 0:
        if parents[parents[i]] >= 0:
            parents[i] = parents[parents[i]]
        i = parents[i]
    return i


@nb.njit(cache=True, nogil=True)
def connect_components(indptr, tails, first_row, parents):
    """Merge the components that a shard's edges connect.

    Union-find by size with path halving (Tarjan and van Leeuwen 1984). After all shards, each negative value is minus
    the size of a component.

    Parameters
    ----------
    indptr, tails : ndarray
        The shard's edges. The whole graph holds each edge in both directions.
    first_row : int
        The shard's first row.
    parents : ndarray of int, shape (all rows,)
        -1 before the first shard; written.
    """
    for r in range(indptr.shape[0] - 1):
        for e in range(indptr[r], indptr[r + 1]):
            if tails[e] <= first_row + r:
                continue
            root, other_root = _find_root(parents, first_row + r), _find_root(parents, tails[e])
            if root == other_root:
                continue
            if parents[root] > parents[other_root]:
                root, other_root = other_root, root
            parents[root] += parents[other_root]
            parents[other_root] = root


@nb.njit(cache=True, nogil=True)
def _number_components(parents):
    """Number the components in the order of their first rows."""
    component_of, n_components = np.full(len(parents), -1, np.int32), 0
    for i in range(len(parents)):
        root = _find_root(parents, i)
        if component_of[root] < 0:
            component_of[root] = n_components
            n_components += 1
        component_of[i] = component_of[root]
    return component_of


def find_components(indptr: np.ndarray, tails: np.ndarray) -> np.ndarray:
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
    parents = np.full(len(indptr) - 1, -1, tails.dtype)
    connect_components(indptr, tails, 0, parents)
    return _number_components(parents)


def _components_of_pairs(pairs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the numbers in pairs, ascending, and the component of each."""
    from scipy import sparse

    nodes, node_pairs = np.unique(pairs, return_inverse=True)
    node_pairs = node_pairs.reshape(-1, 2)
    links = sparse.coo_matrix((np.ones(len(node_pairs), bool), node_pairs.T), shape=(len(nodes), len(nodes)))
    return nodes, sparse.csgraph.connected_components(links, directed=False)[1]


def spanning_forest(pairs: np.ndarray) -> np.ndarray:
    """Return as few pairs as connect what the given ones do: each number with the least of its component.

    Parameters
    ----------
    pairs : ndarray of int64, shape (n, 2)

    Returns
    -------
    ndarray of int64, shape (m, 2)
    """
    nodes, component_of = _components_of_pairs(pairs)
    _, first_nodes = np.unique(component_of, return_index=True)
    edges = np.stack([nodes, nodes[first_nodes[component_of]]], axis=1)
    return edges[edges[:, 0] != edges[:, 1]]


def component_sizes(pairs: np.ndarray, sizes: np.ndarray) -> np.ndarray:
    """Return the size of each component of pieces that pairs connect.

    Parameters
    ----------
    pairs : ndarray of int64, shape (n, 2)
    sizes : ndarray of int64, shape (pieces,)

    Returns
    -------
    ndarray of int64
    """
    nodes, component_of = _components_of_pairs(pairs)
    joined_sizes = np.zeros(int(component_of.max(initial=-1)) + 1, np.int64)
    np.add.at(joined_sizes, component_of, sizes[nodes])
    return np.concatenate([joined_sizes, np.delete(sizes, nodes)])


def rows_of_occurrences(occurrences: np.ndarray, repeated_rows: np.ndarray, repeat_counts: np.ndarray) -> np.ndarray:
    """Return the rows that occurrences belong to: a row occurs once for itself and once for each of its duplicates.

    Parameters
    ----------
    occurrences : ndarray of int64, shape (n,)
        Numbered from 0, in the order of the rows.
    repeated_rows : ndarray of int, shape (m,)
        Rows that occur more than once, ascending.
    repeat_counts : ndarray of int, shape (m,)
        How often each occurs.

    Returns
    -------
    ndarray of int64, shape (n,)
    """
    extra_before = np.concatenate([[0], np.cumsum(repeat_counts.astype(np.int64) - 1)])
    repeated_before = np.searchsorted(
        repeated_rows + extra_before[:-1], occurrences, side="right"
    )  # repeated rows that occur here or before
    rows = occurrences - extra_before[repeated_before]
    return np.where(repeated_before > 0, np.maximum(rows, np.append(repeated_rows, -1)[repeated_before - 1]), rows)
