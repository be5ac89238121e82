"""A tree of leaves that partitions space, grown from a sample, and the leaves that lie nearest to a row."""

from __future__ import annotations

import numba as nb
import numpy as np

from dumap.kernels.axes import place, principal
from dumap.kernels.kmeans import kmeans, move_to_means
from dumap.kernels.threads import one_thread
from dumap.kernels.vectors import SHORT, ordered_distance, power_near

GROUPS = 8
"""Groups of leaves in which a row's nearest leaves are sought."""
TILE_ROWS, TILE_BYTES, SPARE, CHUNK = 8192, 2 * 2**20, 4, 16
HALVINGS = 8
"""Steps in which a list's bound is sought."""
UNCONDITIONAL = 3
"""Nearest leaves that are named however far they lie beside the first: a row may lie where that has its centroid."""
CROWDED = 4
"""A leaf with so many times the mean of the sample's rows is split again."""
GROUP_ROWS, ROWS_A_GROUP = 8192, 32
"""Rows that groups come from, and how many each group has at the least."""
TURNED = 256
"""Centroids that are put in the best line, in time of the third power of their number; more stay as Ward's tree is."""
WITHIN_ROWS = 16384
"""Rows of the sample, or up to twice as many, that tell how rows vary within leaves."""
CARRIED, LEAST, FEW = 0.85, 0.6, 8
"""Share of the rows' variance within groups that a tree's axes must carry, and in the leaves of a group not of few."""
FARTHEST, NONE = np.finfo(np.float32).max, np.iinfo(np.int64).max


def _in_line(centroids: np.ndarray) -> np.ndarray:
    """Order centroids so that those near in space are near in line: Ward's tree, its branches turned to fit."""
    if len(centroids) < 3:
        return np.arange(len(centroids))
    from scipy.cluster.hierarchy import leaves_list, linkage

    return leaves_list(linkage(centroids, "ward", optimal_ordering=len(centroids) <= TURNED))


class Tree:
    """A partition of space: groups of leaves, each leaf a centroid.

    Attributes
    ----------
    groups : ndarray of float32, shape (groups, dims or axes)
    offsets : ndarray of int64, shape (groups + 1,)
        Each group's first leaf.
    leaves : ndarray of float32, shape (leaves, dims or axes)
        In line: those near in space have numbers near each other.
    origin : ndarray of float32, shape (dims,)
    axes : ndarray of float32, shape (dims, axes)
        What groups and leaves are coordinates on, from the origin; none where they lie among the rows.
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
        """Return a tree in which every leaf is sought for every row."""
        return cls(leaves[:1], np.array([0, len(leaves)]), leaves)

    def place(self, x: np.ndarray) -> np.ndarray:
        """Return rows where the leaves are: on the axes, or as they are."""
        return place(x, self.origin, self.axes) if self.axes.shape[1] else x


def _leaves_of(x: np.ndarray, wanted: int, crowd: float, seed: int) -> np.ndarray:
    """Cut rows into about `wanted` leaves, and again where a leaf holds more than `crowd` of them."""
    centroids = kmeans(x, wanted, seed)
    if len(centroids) == 1 or len(x) <= crowd:
        return centroids
    nearest = nearest_leaves(x, Tree.of_one_group(centroids), 1)[:, 0]
    found = []
    for leaf in range(len(centroids)):
        own = x[nearest == leaf]
        crowded = crowd < len(own) < len(x)
        found.append(_leaves_of(own, int(2 * len(own) / crowd) + 1, crowd, seed) if crowded else centroids[leaf, None])
    return np.concatenate(found)


def _split(
    sample: np.ndarray,
    wanted: int,
    seed: int,
    groups: np.ndarray,
    origin: np.ndarray | None = None,
    axes: np.ndarray | None = None,
) -> Tree:
    """Split groups into leaves, on axes where some are given."""
    x = sample
    if origin is not None and axes is not None:
        x, groups = place(sample, origin, axes), place(groups, origin, axes)
    own = nearest_leaves(x, Tree.of_one_group(groups), 1)[:, 0]
    mean = len(x) / wanted
    leaves = []
    for group in range(len(groups)):
        rows = x[own == group]
        if len(rows):
            found = _leaves_of(rows, max(1, round(len(rows) / mean)), CROWDED * mean, seed)
            leaves.append(found[_in_line(found)])
        else:
            leaves.append(groups[group, None])
    offsets = np.cumsum([0, *map(len, leaves)])
    return Tree(groups, offsets, np.concatenate(leaves), origin, axes)


def _from_means(rows: np.ndarray, means: np.ndarray, own: np.ndarray) -> np.ndarray:
    with np.errstate(over="ignore"):
        return np.clip(placed := rows - means[own], -FARTHEST, FARTHEST, out=placed)


def _directions(placed: np.ndarray) -> np.ndarray:
    """Scale rows, in place, to unit length: a row that is far out would else hide how the rest varies."""
    extents = np.maximum(placed.max(axis=1), -placed.min(axis=1))[:, None]
    placed /= np.where(extents > 0, extents, 1)
    placed /= np.sqrt(np.maximum(np.einsum("ij,ij->i", placed, placed), 1))[:, None]  # at least 1, or the row is zero
    return placed


def within_leaves(sample: np.ndarray, tree: Tree) -> tuple[np.ndarray, np.ndarray]:
    """Tell how rows vary within leaves, by all the sample's rows of some leaves: `WITHIN_ROWS` or more, and 8 a column.

    Parameters
    ----------
    sample : ndarray of float32, shape (m, dims)
    tree : Tree

    Returns
    -------
    placed : ndarray of float32, shape (some, dims)
        Rows less the means of their leaves.
    nearest : ndarray of int32, shape (some,)
        Their leaves.
    """
    nearest = nearest_leaves(sample, tree, 1)[:, 0]
    step = max(1, len(sample) // max(WITHIN_ROWS, 8 * sample.shape[1]))
    taken = nearest % step == 0
    rows, nearest = sample[taken], nearest[taken]
    means = np.zeros((len(tree.leaves) // step + 1, sample.shape[1]), np.float32)
    move_to_means(rows, nearest // step, means)
    return _from_means(rows, means, nearest // step), nearest


def _tells_apart(sample: np.ndarray, tree: Tree) -> bool:
    """Tell whether a tree's axes carry most of what tells rows apart in the leaves of each of its groups."""
    placed, nearest = within_leaves(sample, tree)
    placed = _directions(placed)
    shares = np.einsum("ij,ij->i", along := place(placed, np.zeros_like(tree.origin), tree.axes), along)
    group = np.searchsorted(tree.offsets, nearest, side="right") - 1
    moved = placed.any(axis=1)
    counts = np.bincount(group[moved], minlength=len(tree.groups))
    sums = np.bincount(group[moved], shares[moved], minlength=len(tree.groups))
    return bool((sums >= LEAST * counts)[counts >= FEW].all())


def grow(sample: np.ndarray, wanted: int, seed: int) -> Tree:
    """Cut space into leaves by a sample: k-means into groups, then each group into leaves, on few axes if those do.

    Parameters
    ----------
    sample : ndarray of float32, shape (m, dims)
    wanted : int
        Leaves, about; fewer where the sample has fewer distinct rows, more where some would be crowded.
    seed : int

    Returns
    -------
    Tree
    """
    middle = sample.mean(axis=0, dtype=np.float64, keepdims=True).astype(np.float32)
    if wanted == 1:
        return Tree.of_one_group(middle)
    count = int(np.ceil(np.sqrt(wanted)))
    some = sample[:: max(1, len(sample) // max(GROUP_ROWS, ROWS_A_GROUP * count, 8 * sample.shape[1]))]
    groups = kmeans(some, count, seed)
    groups = groups[_in_line(groups)]
    own = nearest_leaves(some, Tree.of_one_group(groups), 1)[:, 0]
    axes = principal(_directions(_from_means(some, groups, own)), CARRIED, CHUNK)
    if axes.shape[1] and max(sample.max(), -sample.min()) < 1e30:  # further out, products are not finite
        origin = np.median(groups, axis=0)  # not the mean: a row far out would cost all digits
        tree = _split(sample, wanted, seed, groups, origin, axes)
        if _tells_apart(sample, tree):
            return tree
    return _split(sample, wanted, seed, groups)


@nb.njit(cache=True, nogil=True)
def _bound(codes, count):
    """Return what at least `count` codes are below, and not many more."""
    low, high = codes[0], codes[0]
    for c in range(len(codes)):
        low, high = min(low, codes[c]), max(high, codes[c])
    high += np.int32(1)
    for _ in range(HALVINGS):
        middle = low + ((high - low) >> 1)
        below = np.int32(0)
        for c in range(len(codes)):
            below += np.int32(codes[c] < middle)
        if below < count:
            low = middle
        else:
            high = middle
            if below < count + SPARE:
                break
    return high


@nb.njit(cache=True, nogil=True)
def _keep_first(codes, first, kept, keys):
    """Fill an empty list: each key's place is how many are less, which takes no branches as insertion does."""
    limit, count = _bound(codes, len(kept)), 0
    for c in range(len(codes)):
        keys[count] = (np.int64(codes[c]) << 32) | (first + c)
        count += codes[c] < limit
    for a in range(count):
        place = 0
        for b in range(count):
            place += keys[b] < keys[a]
        if place < len(kept):
            kept[place] = keys[a]


@nb.njit(cache=True, nogil=True)
def _keep(product, codes, row_lengths, lengths, rows, first, keys):
    """Keep the nearest of a group's leaves for each of some rows: `codes` are the distances' bits, which sort as they.

    A key is a distance above a leaf.
    """
    last, two = keys.shape[1] - 1, np.float32(2)
    buffer = np.empty(len(lengths), np.int64)
    for i in range(len(rows)):
        own, kept = row_lengths[i], keys[rows[i]]
        for c in range(product.shape[1]):
            d = own + lengths[c] - two * product[i, c]
            product[i, c] = d if d > 0 else np.float32(0)
        if kept[0] == NONE and product.shape[1] > last:
            _keep_first(codes[i], first, kept, buffer)
            continue
        limit = np.int32(kept[last] >> 32)
        for low in range(0, product.shape[1], CHUNK):
            high = min(low + CHUNK, product.shape[1])
            hits = np.int32(0)
            for c in range(low, high):
                hits += np.int32(codes[i, c] < limit)
            if hits == 0:
                continue
            for c in range(low, high):
                if codes[i, c] < limit:
                    key = (np.int64(codes[i, c]) << 32) | (first + c)
                    at = last
                    while at > 0 and kept[at - 1] > key:
                        kept[at] = kept[at - 1]
                        at -= 1
                    kept[at] = key
                    limit = np.int32(kept[last] >> 32)


@nb.njit(cache=True, nogil=True)
def _sort_exactly(x, leaves, keys, out, distances):
    """Sort each row's leaves by distances summed in one order, whatever the processor, ties by leaf."""
    count = keys.shape[1]
    ids, squared = np.empty(count, np.int64), np.empty(count, np.float32)
    for i in range(len(keys)):
        met = 0
        while met < count and keys[i, met] < NONE:
            leaf = keys[i, met] & 0xFFFFFFFF
            d = ordered_distance(x[i], leaves[leaf])
            at = met
            while at > 0 and (squared[at - 1] > d or (squared[at - 1] == d and ids[at - 1] > leaf)):
                ids[at], squared[at] = ids[at - 1], squared[at - 1]
                at -= 1
            ids[at], squared[at] = leaf, d
            met += 1
        for s in range(min(met, out.shape[1])):
            out[i, s], distances[i, s] = ids[s], squared[s]


@nb.njit(cache=True, nogil=True)
def _by_group(near, first, last, far, radii, limits):
    """Sort the slots of rows' nearest groups, from `first` to before `last`, by group; return also where each begins.

    Left out are groups all of whose leaves lie beyond a row's limit, by the triangle inequality.
    """
    open_ = np.zeros(near.shape, np.bool_)
    begins = np.zeros(len(radii) + 1, np.int64)
    for i in range(len(near)):
        for s in range(first, last):
            least = SHORT * np.sqrt(far[i, s]) - radii[near[i, s]]
            open_[i, s] = not (least > 0 and least * least > limits[i])
            begins[near[i, s] + 1] += open_[i, s]
    begins = np.cumsum(begins)
    following, slots = begins[:-1].copy(), np.empty(begins[-1], np.int64)
    for i in range(len(near)):
        for s in range(first, last):
            if open_[i, s]:
                slots[following[near[i, s]]] = i * near.shape[1] + s
                following[near[i, s]] += 1
    return slots, begins


def _lengths(x: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", x, x)


def nearest_leaves(x: np.ndarray, tree: Tree, count: int, margin: float = np.inf) -> np.ndarray:
    """Find each row's nearest leaves, in the groups that lie nearest to it.

    Matrix products name a few leaves more than are asked for; differences summed in one order then sort them, so
    that a row's leaves depend on nothing but the row and the tree.

    Parameters
    ----------
    x : ndarray of float32, shape (n, dims)
    tree : Tree
    count : int
    margin : float, optional
        How many times as far as the nearest a leaf may lie, the first `UNCONDITIONAL` apart.

    Returns
    -------
    ndarray of int32, shape (n, count)
        Nearest first; -1 beyond the leaves that were sought or lie within the margin.
    """
    middle = tree.leaves.mean(axis=0, dtype=np.float64)
    above, below = tree.leaves.max(axis=0) - middle, middle - tree.leaves.min(axis=0)
    scale = power_near(max(above.max(), below.max()))
    middle = middle.astype(np.float32) * scale
    groups, leaves = (c * scale - middle for c in (tree.groups, tree.leaves))
    sought = min(GROUPS, len(groups))
    out = np.full((len(x), count), -1, np.int32)
    step = min(TILE_ROWS, max(256, TILE_BYTES // (4 * leaves.shape[1])))
    with np.errstate(over="ignore", invalid="ignore"), one_thread():
        inside = leaves - (above := np.repeat(groups, np.diff(tree.offsets), axis=0))
        lengths, group_lengths = _lengths(inside), _lengths(groups)
        radii = np.sqrt(np.maximum.reduceat(lengths, tree.offsets[:-1]))
        lengths += 2 * np.einsum("ij,ij->i", inside, above)
        for low in range(0, len(x), step):
            rows = tree.place(x[low : low + step]) * scale - middle
            near, far = np.zeros((len(rows), sought), np.int32), np.zeros((len(rows), sought), np.float32)
            if len(groups) == 1:
                far[:, 0] = _lengths(rows - groups)
            else:
                keys = np.full((len(rows), sought + SPARE), NONE)
                product = rows @ groups.T
                _keep(product, product.view(np.int32), _lengths(rows), group_lengths, np.arange(len(rows)), 0, keys)
                _sort_exactly(rows, groups, keys, near, far)
            keys = np.full((len(rows), count + SPARE), NONE)
            limits = keys.view(np.float32)[:, -1]  # the last key's distance; no number while there is no key
            for ranks in ((0, 1), (1, sought)):
                slots, begins = _by_group(near, *ranks, far, radii, limits)
                for group in np.flatnonzero(np.diff(begins)):
                    some = slots[begins[group] : begins[group + 1]]
                    own, sub = some // sought, slice(tree.offsets[group], tree.offsets[group + 1])
                    product = rows[own] @ inside[sub].T
                    _keep(product, product.view(np.int32), far.ravel()[some], lengths[sub], own, sub.start, keys)
            found, squared = out[low : low + step], np.empty((len(rows), count), np.float32)
            _sort_exactly(rows, leaves, keys, found, squared)
            beyond = squared > margin**2 * squared[:, :1]
            beyond[:, :UNCONDITIONAL] = False
            found[beyond] = -1
    return out
