"""The tree: leaves (k-means centroids) in groups, grown from a sample, and the search for a row's nearest leaves."""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels.axes import principal, project
from dumap.kernels.kmeans import kmeans, move_to_means
from dumap.kernels.threads import one_thread
from dumap.kernels.vectors import ROUND_DOWN, ordered_distance, power_near

GROUPS = 8
"""Nearest groups whose leaves are compared with a row."""
TILE_ROWS, TILE_BYTES = 8192, 2 * 2**20
"""Most rows, and bytes of vectors, whose leaves are searched at once."""
EXTRA_LEAVES, SCAN_COLUMNS = 4, 16
"""Leaves that products find in excess, and leaves whose distances are scanned at once."""
HALVINGS = 8
"""Steps of bisection for the bound of a list."""
UNCONDITIONAL = 3
"""This many nearest leaves are returned even beyond the margin, also to a row that is close to a centroid."""
MAX_LEAF_LOAD = 4
"""A leaf with more than this many times the mean number of sample rows is split again."""
GROUP_ROWS, ROWS_A_GROUP = 8192, 32
"""Rows of the sample from which groups are found, and the least of them for each group."""
OPTIMAL_ORDER_CENTROIDS = 256
"""The most centroids that are ordered optimally, in cubic time; more are in the order of Ward's tree."""
WITHIN_ROWS = 16384
"""Rows of the sample, or up to twice as many, from which the variance within leaves is estimated."""
MIN_VARIANCE = 0.85
"""Share of the variance within groups that a tree's axes must hold."""
MIN_GROUP_VARIANCE = 0.6
"""Share of the variance within the leaves of each group that a tree's axes must hold."""
MIN_GROUP_ROWS = 8
"""Groups with fewer rows in the sample are not checked."""
FARTHEST, NONE = np.finfo(np.float32).max, np.iinfo(np.int64).max
"""The limit of differences from a mean, and the key of an empty slot, which sorts last."""


def _line_order(centroids: np.ndarray) -> np.ndarray:
    """Order centroids so that neighbours in space are neighbours in the order: the leaves of Ward's hierarchy."""
    if len(centroids) < 3:
        return np.arange(len(centroids))
    from scipy.cluster.hierarchy import leaves_list, linkage

    return leaves_list(linkage(centroids, "ward", optimal_ordering=len(centroids) <= OPTIMAL_ORDER_CENTROIDS))


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
    def of_one_group(cls, leaves: np.ndarray) -> Tree:
        """Return a tree in which each row is compared with every leaf."""
        return cls(leaves[:1], np.array([0, len(leaves)]), leaves)

    def project(self, x: np.ndarray) -> np.ndarray:
        """Project rows on the axes, if there are any."""
        return project(x, self.origin, self.axes) if self.axes.shape[1] else x


def _leaves_of(x: np.ndarray, n_leaves: int, max_rows: float, seed: int) -> np.ndarray:
    """Split rows into about `n_leaves` leaves; split leaves with more than `max_rows` rows again."""
    centroids = kmeans(x, n_leaves, seed)
    if len(centroids) == 1 or len(x) <= max_rows:
        return centroids
    nearest = nearest_leaves(x, Tree.of_one_group(centroids), 1)[:, 0]
    leaves = []
    for leaf in range(len(centroids)):
        rows = x[nearest == leaf]
        crowded = max_rows < len(rows) < len(x)
        n_leaves = int(2 * len(rows) / max_rows) + 1
        leaves.append(_leaves_of(rows, n_leaves, max_rows, seed) if crowded else centroids[leaf, None])
    return np.concatenate(leaves)


def _split(
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
        x, groups = project(sample, origin, axes), project(groups, origin, axes)
    group_of = nearest_leaves(x, Tree.of_one_group(groups), 1)[:, 0]
    mean = len(x) / n_leaves
    leaves = []
    for group in range(len(groups)):
        rows = x[group_of == group]
        if len(rows):
            centroids = _leaves_of(rows, max(1, round(len(rows) / mean)), MAX_LEAF_LOAD * mean, seed)
            leaves.append(centroids[_line_order(centroids)])
        else:
            leaves.append(groups[group, None])
    offsets = np.cumsum([0, *map(len, leaves)])
    return Tree(groups, offsets, np.concatenate(leaves), origin, axes)


def _residuals(rows: np.ndarray, means: np.ndarray, mean_of: np.ndarray) -> np.ndarray:
    """Return rows less their means."""
    with np.errstate(over="ignore"):
        return np.clip(residuals := rows - means[mean_of], -FARTHEST, FARTHEST, out=residuals)


def _directions(residuals: np.ndarray) -> np.ndarray:
    """Scale rows, in place, to unit length, so that outliers do not dominate the variance."""
    extents = np.maximum(residuals.max(axis=1), -residuals.min(axis=1))[:, None]
    residuals /= np.where(extents > 0, extents, 1)
    squared = np.einsum("ij,ij->i", residuals, residuals)  # at least 1, unless the row is zero
    residuals /= np.sqrt(np.maximum(squared, 1))[:, None]
    return residuals


def within_leaves(sample: np.ndarray, tree: Tree) -> tuple[np.ndarray, np.ndarray]:
    """Return rows less the means of their leaves, for all sample rows of every n-th leaf.

    n is chosen so that there are `WITHIN_ROWS` rows or more, and 8 or more for each column.

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
    step = max(1, len(sample) // max(WITHIN_ROWS, 8 * sample.shape[1]))
    is_sampled = nearest % step == 0
    rows, nearest = sample[is_sampled], nearest[is_sampled]
    means = np.zeros((len(tree.leaves) // step + 1, sample.shape[1]), np.float32)
    move_to_means(rows, nearest // step, means)
    return _residuals(rows, means, nearest // step), nearest


def _axes_suffice(sample: np.ndarray, tree: Tree) -> bool:
    """Return whether the tree's axes hold enough of the variance within the leaves of each group."""
    residuals, nearest = within_leaves(sample, tree)
    residuals = _directions(residuals)
    shares = np.einsum("ij,ij->i", along := project(residuals, np.zeros_like(tree.origin), tree.axes), along)
    group = np.searchsorted(tree.offsets, nearest, side="right") - 1
    varying = residuals.any(axis=1)
    counts = np.bincount(group[varying], minlength=len(tree.groups))
    sums = np.bincount(group[varying], shares[varying], minlength=len(tree.groups))
    return bool((sums >= MIN_GROUP_VARIANCE * counts)[counts >= MIN_GROUP_ROWS].all())


def grow(sample: np.ndarray, n_leaves: int, seed: int) -> Tree:
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
    middle = sample.mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)
    if n_leaves == 1:
        return Tree.of_one_group(middle)
    count = int(np.ceil(np.sqrt(n_leaves)))
    rows = sample[:: max(1, len(sample) // max(GROUP_ROWS, ROWS_A_GROUP * count, 8 * sample.shape[1]))]
    groups = kmeans(rows, count, seed)
    groups = groups[_line_order(groups)]
    group_of = nearest_leaves(rows, Tree.of_one_group(groups), 1)[:, 0]
    axes = principal(_directions(_residuals(rows, groups, group_of)), MIN_VARIANCE, SCAN_COLUMNS)
    if axes.shape[1] and max(sample.max(), -sample.min()) < 1e30:  # products of larger values overflow
        origin = np.median(groups, axis=0)  # an outlier would take digits from a mean
        tree = _split(sample, n_leaves, seed, groups, origin, axes)
        if _axes_suffice(sample, tree):
            return tree
    return _split(sample, n_leaves, seed, groups)


@nb.njit(cache=True, nogil=True)
def _bound(distance_bits, count):
    """Find by bisection a bound below which at least `count` distances lie, and not many more."""
    low, high = distance_bits[0], distance_bits[0]
    for c in range(len(distance_bits)):
        low, high = min(low, distance_bits[c]), max(high, distance_bits[c])
    high += np.int32(1)  # now all distances are below `high`, none below `low`
    for _ in range(HALVINGS):
        middle = low + ((high - low) >> 1)
        below = np.int32(0)
        for c in range(len(distance_bits)):
            below += np.int32(distance_bits[c] < middle)
        if below < count:
            low = middle
        else:
            high = middle
            if below < count + EXTRA_LEAVES:
                break
    return high


@nb.njit(cache=True, nogil=True)
def _keep_first(distance_bits, first, kept, keys):
    """Fill an empty list. A key's rank is the number of smaller keys, which is counted without branches."""
    limit, count = _bound(distance_bits, len(kept)), 0
    for c in range(len(distance_bits)):
        keys[count] = (np.int64(distance_bits[c]) << 32) | (first + c)
        count += distance_bits[c] < limit
    for a in range(count):
        rank = 0
        for b in range(count):
            rank += keys[b] < keys[a]
        if rank < len(kept):
            kept[rank] = keys[a]


@nb.njit(cache=True, nogil=True)
def _keep(product, distance_bits, row_lengths, lengths, rows, first, keys):
    """Keep the nearest of a group's leaves for each of some rows.

    |x - leaf|^2 = |x|^2 + |leaf|^2 - 2 x.leaf; `product` holds x.leaf and becomes the distances. `distance_bits` is
    the same memory as integers: the bits of floats that are not negative sort as the floats do. A key holds the
    distance in its upper 32 bits and the leaf in its lower 32, so that equal distances rank by leaf.
    """
    last, two = keys.shape[1] - 1, np.float32(2)
    buffer = np.empty(len(lengths), np.int64)
    for i in range(len(rows)):
        length, kept = row_lengths[i], keys[rows[i]]
        for c in range(product.shape[1]):
            d = length + lengths[c] - two * product[i, c]
            product[i, c] = d if d > 0 else np.float32(0)
        if kept[0] == NONE and product.shape[1] > last:
            _keep_first(distance_bits[i], first, kept, buffer)
            continue
        limit = np.int32(kept[last] >> 32)
        for low in range(0, product.shape[1], SCAN_COLUMNS):
            high = min(low + SCAN_COLUMNS, product.shape[1])
            hits = np.int32(0)  # most ranges of columns have none: count first, without a branch
            for c in range(low, high):
                hits += np.int32(distance_bits[i, c] < limit)
            if hits == 0:
                continue
            for c in range(low, high):
                if distance_bits[i, c] < limit:
                    key = (np.int64(distance_bits[i, c]) << 32) | (first + c)
                    at = last
                    while at > 0 and kept[at - 1] > key:
                        kept[at] = kept[at - 1]
                        at -= 1
                    kept[at] = key
                    limit = np.int32(kept[last] >> 32)


@nb.njit(cache=True, nogil=True)
def _sort_exactly(x, leaves, keys, out, distances):
    """Sort each row's leaves by distances summed in the same order on any processor; of equal distances the lower leaf
    comes first.
    """
    count = keys.shape[1]
    ids, squared = np.empty(count, np.int64), np.empty(count, np.float32)
    for i in range(len(keys)):  # insertion sort of a few leaves by (distance, leaf)
        filled = 0
        while filled < count and keys[i, filled] < NONE:
            leaf = keys[i, filled] & 0xFFFFFFFF
            d = ordered_distance(x[i], leaves[leaf])
            at = filled
            while at > 0 and (squared[at - 1] > d or (squared[at - 1] == d and ids[at - 1] > leaf)):
                ids[at], squared[at] = ids[at - 1], squared[at - 1]
                at -= 1
            ids[at], squared[at] = leaf, d
            filled += 1
        for s in range(min(filled, out.shape[1])):
            out[i, s], distances[i, s] = ids[s], squared[s]


@nb.njit(cache=True, nogil=True)
def _by_group(near_groups, first, last, squared, radii, limits):
    """Sort the slots of `near_groups` (rows' nearest groups), columns [first, last), by group; return also where each
    group begins.

    By the triangle inequality |x - leaf| >= |x - group| - radius, so groups whose leaves all lie beyond a row's limit
    are left out.
    """
    is_open = np.zeros(near_groups.shape, np.bool_)
    begins = np.zeros(len(radii) + 1, np.int64)
    for i in range(len(near_groups)):
        for s in range(first, last):
            lower_bound = ROUND_DOWN * np.sqrt(squared[i, s]) - radii[near_groups[i, s]]
            is_open[i, s] = not (lower_bound > 0 and lower_bound * lower_bound > limits[i])
            begins[near_groups[i, s] + 1] += is_open[i, s]
    begins = np.cumsum(begins)  # a counting sort by group
    following, slots = begins[:-1].copy(), np.empty(begins[-1], np.int64)
    for i in range(len(near_groups)):
        for s in range(first, last):
            if is_open[i, s]:
                slots[following[near_groups[i, s]]] = i * near_groups.shape[1] + s
                following[near_groups[i, s]] += 1
    return slots, begins


def _lengths(x: np.ndarray) -> np.ndarray:
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
        Leaves farther than `margin` times the nearest leaf are left out; the nearest `UNCONDITIONAL` always stay.

    Returns
    -------
    ndarray of int32, shape (n, count)
        Nearest first, then -1.
    """
    middle = tree.leaves.mean(axis=0, dtype=np.float64)
    above, below = tree.leaves.max(axis=0) - middle, middle - tree.leaves.min(axis=0)
    scale = power_near(max(above.max(), below.max()))
    middle = middle.astype(np.float32) * scale
    groups, leaves = (c * scale - middle for c in (tree.groups, tree.leaves))
    n_groups = min(GROUPS, len(groups))
    out = np.full((len(x), count), -1, np.int32)
    step = min(TILE_ROWS, max(256, TILE_BYTES // (4 * leaves.shape[1])))
    with np.errstate(over="ignore", invalid="ignore"), one_thread():
        inside = leaves - (leaf_groups := np.repeat(groups, np.diff(tree.offsets), axis=0))
        lengths, group_lengths = _lengths(inside), _lengths(groups)
        radii = np.sqrt(np.maximum.reduceat(lengths, tree.offsets[:-1]))
        lengths += 2 * np.einsum("ij,ij->i", inside, leaf_groups)
        for low in range(0, len(x), step):
            rows = tree.project(x[low : low + step]) * scale - middle
            near_groups, group_squared = (
                np.zeros((len(rows), n_groups), np.int32),
                np.zeros((len(rows), n_groups), np.float32),
            )
            if len(groups) == 1:
                group_squared[:, 0] = _lengths(rows - groups)
            else:
                keys = np.full((len(rows), n_groups + EXTRA_LEAVES), NONE)
                product = rows @ groups.T
                _keep(product, product.view(np.int32), _lengths(rows), group_lengths, np.arange(len(rows)), 0, keys)
                _sort_exactly(rows, groups, keys, near_groups, group_squared)
            keys = np.full((len(rows), count + EXTRA_LEAVES), NONE)
            limits = keys.view(np.float32)[:, -1]  # the last key's distance; NaN while there is none
            for ranks in ((0, 1), (1, n_groups)):
                slots, begins = _by_group(near_groups, *ranks, group_squared, radii, limits)
                for group in np.flatnonzero(np.diff(begins)):
                    group_slots = slots[begins[group] : begins[group + 1]]
                    near_rows, sub = group_slots // n_groups, slice(tree.offsets[group], tree.offsets[group + 1])
                    product, row_squared = rows[near_rows] @ inside[sub].T, group_squared.ravel()[group_slots]
                    _keep(product, product.view(np.int32), row_squared, lengths[sub], near_rows, sub.start, keys)
            row_leaves, squared = out[low : low + step], np.empty((len(rows), count), np.float32)
            _sort_exactly(rows, leaves, keys, row_leaves, squared)
            beyond = squared > margin**2 * squared[:, :1]
            beyond[:, :UNCONDITIONAL] = False
            row_leaves[beyond] = -1
    return out
