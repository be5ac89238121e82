"""The tree: leaves (k-means centroids) in groups, grown from a sample, and the search for a row's nearest leaves."""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels.axes import find_principal_axes, project_on_axes
from dumap.kernels.kmeans import kmeans, move_centroids_to_means
from dumap.kernels.threads import one_thread
from dumap.kernels.vectors import ROUND_DOWN, ordered_distance, scale_to_one

SEARCHED_GROUPS = 8
"""Nearest groups whose leaves are compared with a row."""
TILE_ROWS, TILE_BYTES = 8192, 2 * 2**20
"""Most rows, and bytes of vectors, whose leaves are searched at once."""
EXTRA_LEAVES, LEAVES_AT_ONCE = 4, 16
"""Leaves that products find in excess, and leaves whose distances are scanned at once."""
BISECTION_STEPS = 8
"""Steps of bisection for the bound of a list."""
ALWAYS_KEPT_LEAVES = 3
"""This many nearest leaves are returned even beyond the margin, also to a row that is close to a centroid."""
MAX_LEAF_LOAD = 4
"""A leaf with more than this many times the mean number of sample rows is split again."""
GROUP_SAMPLE_ROWS, MIN_ROWS_PER_GROUP = 8192, 32
"""Rows of the sample from which groups are found, and the least of them for each group."""
MAX_OPTIMALLY_ORDERED = 256
"""The most centroids that are ordered optimally, in cubic time; more are in the order of Ward's tree."""
MIN_VARIANCE_ROWS = 16384
"""Rows of the sample, or up to twice as many, from which the variance within leaves is estimated."""
MIN_VARIANCE = 0.85
"""Share of the variance within groups that a tree's axes must hold."""
MIN_GROUP_VARIANCE = 0.6
"""Share of the variance within the leaves of each group that a tree's axes must hold."""
MIN_GROUP_ROWS = 8
"""Groups with fewer rows in the sample are not checked."""
FLOAT32_MAX, EMPTY_KEY = np.finfo(np.float32).max, np.iinfo(np.int64).max
"""The limit of differences from a mean, and the key of an empty slot, which sorts last."""


def _ward_order(centroids: np.ndarray) -> np.ndarray:
    """Order centroids so that neighbours in space are neighbours in the order: the leaves of Ward's hierarchy."""
    if len(centroids) < 3:
        return np.arange(len(centroids))
    from scipy.cluster.hierarchy import leaves_list, linkage

    return leaves_list(linkage(centroids, "ward", optimal_ordering=len(centroids) <= MAX_OPTIMALLY_ORDERED))


class Tree:
    """A partition of space: groups of leaves. A leaf is a centroid and the rows nearest to it.

    Attributes
    ----------
    groups : ndarray of float32, shape (groups, dims or axes)
    offsets : ndarray of int64, shape (groups + 1,)
        Each group's first leaf.
    leaves : ndarray of float32, shape (leaves, dims or axes)
        Ordered so that leaves near in space have near numbers.
    origin : ndarray of float32, shape (dims,)
    axes : ndarray of float32, shape (dims, axes)
        Groups and leaves are coordinates on these axes, from the origin. No axes if groups and leaves are points in the
        space of the rows.
    """

    def __init__(
        self,
        groups: np.ndarray,
        offsets: np.ndarray,
        leaves: np.ndarray,
        origin: np.ndarray | None = None,
        axes: np.ndarray | None = None,
    ) -> None:
        dims = leaves.shape[1]
        self.groups, self.offsets, self.leaves = groups, offsets, leaves
        self.origin = np.zeros(dims, np.float32) if origin is None else origin
        self.axes = np.zeros((dims, 0), np.float32) if axes is None else axes

    @classmethod
    def with_one_group(cls, leaves: np.ndarray) -> Tree:
        """Return a tree in which each row is compared with every leaf."""
        return cls(leaves[:1], np.array([0, len(leaves)]), leaves)

    def project(self, x: np.ndarray) -> np.ndarray:
        """Project rows on the axes, if there are any."""
        return project_on_axes(x, self.origin, self.axes) if self.axes.shape[1] else x


def _find_leaves(x: np.ndarray, n_leaves: int, max_rows: float, seed: int) -> np.ndarray:
    """Split rows into about `n_leaves` leaves; split leaves with more than `max_rows` rows again."""
    centroids = kmeans(x, n_leaves, seed)
    if len(centroids) == 1 or len(x) <= max_rows:
        return centroids
    nearest = nearest_leaves(x, Tree.with_one_group(centroids), 1)[:, 0]
    leaves = []
    for leaf in range(len(centroids)):
        rows = x[nearest == leaf]
        is_crowded = max_rows < len(rows) < len(x)
        n_leaves = int(2 * len(rows) / max_rows) + 1
        leaves.append(_find_leaves(rows, n_leaves, max_rows, seed) if is_crowded else centroids[leaf, None])
    return np.concatenate(leaves)


def _split_groups(
    sample: np.ndarray,
    n_leaves: int,
    seed: int,
    groups: np.ndarray,
    origin: np.ndarray | None = None,
    axes: np.ndarray | None = None,
) -> Tree:
    """Split groups into leaves, on axes if they are given."""
    x = sample
    if origin is not None and axes is not None:
        x, groups = project_on_axes(sample, origin, axes), project_on_axes(groups, origin, axes)
    group_of = nearest_leaves(x, Tree.with_one_group(groups), 1)[:, 0]
    mean_rows = len(x) / n_leaves  # of a leaf
    leaves = []
    for group in range(len(groups)):
        rows = x[group_of == group]
        if len(rows):
            centroids = _find_leaves(rows, max(1, round(len(rows) / mean_rows)), MAX_LEAF_LOAD * mean_rows, seed)
            leaves.append(centroids[_ward_order(centroids)])
        else:
            leaves.append(groups[group, None])
    offsets = np.cumsum([0, *map(len, leaves)])
    return Tree(groups, offsets, np.concatenate(leaves), origin, axes)


def _subtract_means(rows: np.ndarray, means: np.ndarray, mean_of_row: np.ndarray) -> np.ndarray:
    """Return rows less their means."""
    with np.errstate(over="ignore"):
        return np.clip(residuals := rows - means[mean_of_row], -FLOAT32_MAX, FLOAT32_MAX, out=residuals)


def _scale_to_unit_length(residuals: np.ndarray) -> np.ndarray:
    """Scale rows, in place, to unit length, so that outliers do not dominate the variance."""
    extents = np.maximum(residuals.max(axis=1), -residuals.min(axis=1))[:, None]
    residuals /= np.where(extents > 0, extents, 1)
    squared = np.einsum("ij,ij->i", residuals, residuals)  # at least 1, unless the row is zero
    residuals /= np.sqrt(np.maximum(squared, 1))[:, None]
    return residuals


def leaf_residuals(sample: np.ndarray, tree: Tree) -> tuple[np.ndarray, np.ndarray]:
    """Return rows less the means of their leaves, for all sample rows of every n-th leaf.

    n is chosen so that there are `MIN_VARIANCE_ROWS` rows or more, and 8 or more for each column.

    Parameters
    ----------
    sample : ndarray of float32, shape (m, dims)
    tree : Tree

    Returns
    -------
    residuals : ndarray of float32, shape (n, dims)
    nearest : ndarray of int32, shape (n,)
        Each row's leaf.
    """
    nearest = nearest_leaves(sample, tree, 1)[:, 0]
    step = max(1, len(sample) // max(MIN_VARIANCE_ROWS, 8 * sample.shape[1]))
    is_sampled = nearest % step == 0
    rows, nearest = sample[is_sampled], nearest[is_sampled]
    means = np.zeros((len(tree.leaves) // step + 1, sample.shape[1]), np.float32)
    move_centroids_to_means(rows, nearest // step, means)
    return _subtract_means(rows, means, nearest // step), nearest


def _axes_suffice(sample: np.ndarray, tree: Tree) -> bool:
    """Return whether the tree's axes hold enough of the variance within the leaves of each group."""
    residuals, nearest = leaf_residuals(sample, tree)
    residuals = _scale_to_unit_length(residuals)
    projected = project_on_axes(residuals, np.zeros_like(tree.origin), tree.axes)
    shares = np.einsum("ij,ij->i", projected, projected)
    group_of = np.searchsorted(tree.offsets, nearest, side="right") - 1
    is_varying = residuals.any(axis=1)
    counts = np.bincount(group_of[is_varying], minlength=len(tree.groups))
    sums = np.bincount(group_of[is_varying], shares[is_varying], minlength=len(tree.groups))
    return bool((sums >= MIN_GROUP_VARIANCE * counts)[counts >= MIN_GROUP_ROWS].all())


def grow_tree(sample: np.ndarray, n_leaves: int, seed: int) -> Tree:
    """Grow a tree from a sample: k-means into groups, then each group into leaves.

    Leaves are computed on a few principal axes if these hold enough of the variance within leaves, otherwise in the
    space of the rows.

    Parameters
    ----------
    sample : ndarray of float32, shape (m, dims)
    n_leaves : int
        About how many leaves: fewer if the sample has fewer distinct rows, more if some would be crowded.
    seed : int

    Returns
    -------
    Tree
    """
    mean = sample.mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)
    if n_leaves == 1:
        return Tree.with_one_group(mean)
    n_groups = int(np.ceil(np.sqrt(n_leaves)))
    rows = sample[:: max(1, len(sample) // max(GROUP_SAMPLE_ROWS, MIN_ROWS_PER_GROUP * n_groups, 8 * sample.shape[1]))]
    groups = (centroids := kmeans(rows, n_groups, seed))[_ward_order(centroids)]
    group_of = nearest_leaves(rows, Tree.with_one_group(groups), 1)[:, 0]
    directions = _scale_to_unit_length(_subtract_means(rows, groups, group_of))
    axes = find_principal_axes(directions, MIN_VARIANCE, LEAVES_AT_ONCE)
    if axes.shape[1] and max(sample.max(), -sample.min()) < 1e30:  # products of larger values overflow
        origin = np.median(groups, axis=0)  # an outlier would take digits from a mean
        tree = _split_groups(sample, n_leaves, seed, groups, origin, axes)
        if _axes_suffice(sample, tree):
            return tree
    return _split_groups(sample, n_leaves, seed, groups)


@nb.njit(cache=True, nogil=True)
def _bisect_bound(distance_bits, min_count):
    """Find by bisection a bound below which at least `min_count` distances lie, and not many more."""
    low, high = distance_bits[0], distance_bits[0]
    for c in range(len(distance_bits)):
        low, high = min(low, distance_bits[c]), max(high, distance_bits[c])
    high += np.int32(1)  # now all distances are below `high`, none below `low`
    for _ in range(BISECTION_STEPS):
        middle = low + ((high - low) >> 1)
        n_below = np.int32(0)
        for c in range(len(distance_bits)):
            n_below += np.int32(distance_bits[c] < middle)
        if n_below < min_count:
            low = middle
        else:
            high = middle
            if n_below < min_count + EXTRA_LEAVES:
                break
    return high


@nb.njit(cache=True, nogil=True)
def _fill_empty_list(distance_bits, first_leaf, list_keys, keys):
    """Fill an empty list. A key's rank is the number of smaller keys, which is counted without branches."""
    bound, count = _bisect_bound(distance_bits, len(list_keys)), 0
    for c in range(len(distance_bits)):
        keys[count] = (np.int64(distance_bits[c]) << 32) | (first_leaf + c)
        count += distance_bits[c] < bound
    for a in range(count):
        rank = 0
        for b in range(count):
            rank += keys[b] < keys[a]
        if rank < len(list_keys):
            list_keys[rank] = keys[a]


@nb.njit(cache=True, nogil=True)
def _keep_nearest(product, distance_bits, row_squared_lengths, leaf_squared_lengths, rows, first_leaf, keys):
    """Keep the nearest of a group's leaves for each of some rows.

    |x - leaf|^2 = |x|^2 + |leaf|^2 - 2 x.leaf; `product` holds x.leaf and becomes the distances. `distance_bits` is
    the same memory as integers: the bits of floats that are not negative sort as the floats do. A key holds the
    distance in its upper 32 bits and the leaf in its lower 32, so that equal distances rank by leaf.
    """
    last, two = keys.shape[1] - 1, np.float32(2)
    key_buffer = np.empty(len(leaf_squared_lengths), np.int64)
    for i in range(len(rows)):
        row_squared_length, list_keys = row_squared_lengths[i], keys[rows[i]]
        for c in range(product.shape[1]):
            d = row_squared_length + leaf_squared_lengths[c] - two * product[i, c]
            product[i, c] = d if d > 0 else np.float32(0)
        if list_keys[0] == EMPTY_KEY and product.shape[1] > last:
            _fill_empty_list(distance_bits[i], first_leaf, list_keys, key_buffer)
            continue
        limit = np.int32(list_keys[last] >> 32)
        for low in range(0, product.shape[1], LEAVES_AT_ONCE):
            high = min(low + LEAVES_AT_ONCE, product.shape[1])
            n_hits = np.int32(0)  # most ranges of columns have none: count first, without a branch
            for c in range(low, high):
                n_hits += np.int32(distance_bits[i, c] < limit)
            if n_hits == 0:
                continue
            for c in range(low, high):
                if distance_bits[i, c] < limit:
                    key = (np.int64(distance_bits[i, c]) << 32) | (first_leaf + c)
                    slot = last
                    while slot > 0 and list_keys[slot - 1] > key:
                        list_keys[slot] = list_keys[slot - 1]
                        slot -= 1
                    list_keys[slot] = key
                    limit = np.int32(list_keys[last] >> 32)


@nb.njit(cache=True, nogil=True)
def _sort_exactly(x, leaves, keys, out, distances):
    """Sort each row's leaves by distances summed in the same order on any processor; of equal distances the lower leaf
    comes first.
    """
    max_leaves = keys.shape[1]
    leaf_ids, squared = np.empty(max_leaves, np.int64), np.empty(max_leaves, np.float32)
    for i in range(len(keys)):  # insertion sort of a few leaves by (distance, leaf)
        n_sorted = 0
        while n_sorted < max_leaves and keys[i, n_sorted] < EMPTY_KEY:
            leaf = keys[i, n_sorted] & 0xFFFFFFFF
            d = ordered_distance(x[i], leaves[leaf])
            slot = n_sorted
            while slot > 0 and (squared[slot - 1] > d or (squared[slot - 1] == d and leaf_ids[slot - 1] > leaf)):
                leaf_ids[slot], squared[slot] = leaf_ids[slot - 1], squared[slot - 1]
                slot -= 1
            leaf_ids[slot], squared[slot] = leaf, d
            n_sorted += 1
        for s in range(min(n_sorted, out.shape[1])):
            out[i, s], distances[i, s] = leaf_ids[s], squared[s]


@nb.njit(cache=True, nogil=True)
def _sort_by_group(near_groups, first_rank, stop_rank, squared, radii, limits):
    """Sort the slots of `near_groups` (rows' nearest groups), columns [first, last), by group; return also where each
    group begins.

    By the triangle inequality |x - leaf| >= |x - group| - radius, so groups whose leaves all lie beyond a row's limit
    are left out.
    """
    is_open = np.zeros(near_groups.shape, np.bool_)
    starts = np.zeros(len(radii) + 1, np.int64)
    for i in range(len(near_groups)):
        for s in range(first_rank, stop_rank):
            lower_bound = ROUND_DOWN * np.sqrt(squared[i, s]) - radii[near_groups[i, s]]
            is_open[i, s] = not (lower_bound > 0 and lower_bound * lower_bound > limits[i])
            starts[near_groups[i, s] + 1] += is_open[i, s]
    starts = np.cumsum(starts)  # a counting sort by group
    next_index, slots = starts[:-1].copy(), np.empty(starts[-1], np.int64)
    for i in range(len(near_groups)):
        for s in range(first_rank, stop_rank):
            if is_open[i, s]:
                slots[next_index[near_groups[i, s]]] = i * near_groups.shape[1] + s
                next_index[near_groups[i, s]] += 1
    return slots, starts


def _squared_lengths(x: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", x, x)


def nearest_leaves(x: np.ndarray, tree: Tree, count: int, margin: float = np.inf) -> np.ndarray:
    """Find each row's nearest leaves among the leaves of its nearest groups.

    Matrix products find a few more leaves than `count`. Distances that are summed in a fixed order then sort these
    leaves, so that a row's leaves depend on the row and the tree alone.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
    tree : Tree
    count : int
    margin : float, optional
        Leaves farther than `margin` times the nearest leaf are left out; the nearest `ALWAYS_KEPT_LEAVES` always stay.

    Returns
    -------
    ndarray of int32, shape (n, count)
        Nearest first, then -1.
    """
    centre = tree.leaves.mean(axis=0, dtype=np.float64)
    max_above, max_below = tree.leaves.max(axis=0) - centre, centre - tree.leaves.min(axis=0)
    scale = scale_to_one(max(max_above.max(), max_below.max()))
    centre = centre.astype(np.float32) * scale
    groups, leaves = (points * scale - centre for points in (tree.groups, tree.leaves))
    n_groups = min(SEARCHED_GROUPS, len(groups))
    out = np.full((len(x), count), -1, np.int32)
    tile_rows = min(TILE_ROWS, max(256, TILE_BYTES // (4 * leaves.shape[1])))
    with np.errstate(over="ignore", invalid="ignore"), one_thread():
        leaves_in_group = leaves - (leaf_groups := np.repeat(groups, np.diff(tree.offsets), axis=0))
        leaf_terms, group_lengths = _squared_lengths(leaves_in_group), _squared_lengths(groups)
        radii = np.sqrt(np.maximum.reduceat(leaf_terms, tree.offsets[:-1]))
        leaf_terms += 2 * np.einsum("ij,ij->i", leaves_in_group, leaf_groups)
        for tile_start in range(0, len(x), tile_rows):
            rows = tree.project(x[tile_start : tile_start + tile_rows]) * scale - centre
            near_groups = np.zeros((len(rows), n_groups), np.int32)
            group_squared = np.zeros((len(rows), n_groups), np.float32)
            if len(groups) == 1:
                group_squared[:, 0] = _squared_lengths(rows - groups)
            else:
                keys = np.full((len(rows), n_groups + EXTRA_LEAVES), EMPTY_KEY)
                product = rows @ groups.T
                terms = _squared_lengths(rows), group_lengths
                _keep_nearest(product, product.view(np.int32), *terms, np.arange(len(rows)), 0, keys)
                _sort_exactly(rows, groups, keys, near_groups, group_squared)
            keys = np.full((len(rows), count + EXTRA_LEAVES), EMPTY_KEY)
            limits = keys.view(np.float32)[:, -1]  # the last key's distance; NaN while there is none
            for rank_range in ((0, 1), (1, n_groups)):
                slots, starts = _sort_by_group(near_groups, *rank_range, group_squared, radii, limits)
                for group in np.flatnonzero(np.diff(starts)):
                    group_slots = slots[starts[group] : starts[group + 1]]
                    near_rows, group_range = group_slots // n_groups, slice(*tree.offsets[group : group + 2])
                    product = rows[near_rows] @ leaves_in_group[group_range].T
                    terms = group_squared.ravel()[group_slots], leaf_terms[group_range]
                    _keep_nearest(product, product.view(np.int32), *terms, near_rows, group_range.start, keys)
            row_leaves, squared = out[tile_start : tile_start + tile_rows], np.empty((len(rows), count), np.float32)
            _sort_exactly(rows, leaves, keys, row_leaves, squared)
            is_beyond = squared > margin**2 * squared[:, :1]
            is_beyond[:, :ALWAYS_KEPT_LEAVES] = False
            row_leaves[is_beyond] = -1
    return out
