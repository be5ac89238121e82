import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import cdist
from threadpoolctl import threadpool_limits

from dumap.kernels import cells, hashing
from dumap.kernels.cells import Tree


def points(seed: int, n: int, dims: int) -> np.ndarray:
    """Draw rows on a small grid: float32 holds their squared distances exactly."""
    return np.random.default_rng(seed).integers(-6, 7, (n, dims)).astype(np.float32)


# the tree ----------------------------------------------------------------------------------------


def test_kmeans_gives_one_answer_on_any_number_of_threads():
    x = np.random.default_rng(3).normal(size=(3000, 12)).astype(np.float32)
    answers = []
    for threads in (1, 2, 2):
        with threadpool_limits(limits=threads):
            answers.append(cells.kmeans(x, 9, 42).tobytes())
    assert len(set(answers)) == 1
    assert cells.kmeans(x, 9, 43).tobytes() != answers[0]


def test_kmeans_finds_what_is_apart_and_no_more_than_is_distinct():
    middles = points(1, 6, 4) * 100
    x = np.repeat(middles, 50, axis=0) + np.random.default_rng(0).normal(size=(300, 4)).astype(np.float32)
    found = cells.kmeans(x, 6, 0)
    assert found.dtype == np.float32
    assert (cdist(middles, found).min(axis=1) < 1).all()
    assert np.array_equal(cells.kmeans(np.repeat(middles, 5, axis=0), 20, 0), np.unique(middles, axis=0))


def nearest_of(x: np.ndarray, tree: Tree) -> np.ndarray:
    """Return each row's nearest leaf."""
    return cells.nearest_leaves(x, tree, 1)[:, 0]


def sound(tree: Tree) -> bool:
    """Tell whether a tree's groups cover its leaves, and all is of the dtypes that are stored."""
    offsets = np.asarray(tree.offsets)
    return (
        tree.groups.dtype == tree.leaves.dtype == np.float32
        and (offsets[0], offsets[-1], len(offsets)) == (0, len(tree.leaves), len(tree.groups) + 1)
        and bool((np.diff(offsets) > 0).all())
        and bool(np.isfinite(tree.leaves).all())
    )


@pytest.mark.parametrize(("wanted", "dims"), [(2, 3), (40, 5), (150, 30)])
def test_a_tree_has_about_the_leaves_that_are_wanted(wanted, dims):
    sample = np.random.default_rng(wanted).normal(size=(8 * wanted, dims)).astype(np.float32)
    tree = cells.grow(sample, wanted, 0)
    assert sound(tree)
    assert 0.8 * wanted <= len(tree.leaves) <= 1.3 * wanted + 1
    assert np.bincount(nearest_of(sample, tree), minlength=len(tree.leaves)).max() <= cells.CROWDED * 8 * 1.5


def test_crowded_leaves_are_cut_again():
    """Half of the sample lies in a place that is small beside the rest: k-means alone gives it few leaves."""
    rng = np.random.default_rng(0)
    sample = np.concatenate([rng.normal(0, 1e-2, (800, 4)), rng.normal(0, 10, (800, 4))]).astype(np.float32)
    tree = cells.grow(sample, 200, 0)
    assert sound(tree)
    assert np.bincount(nearest_of(sample, tree)).max() <= 2 * cells.CROWDED * 8
    assert (np.abs(tree.leaves).max(axis=1) < 0.1).sum() > 30


def test_rows_that_are_all_the_same_are_one_leaf():
    tree = cells.grow(np.full((500, 3), 7, np.float32), 20, 0)
    assert sound(tree)
    assert tree.leaves.tolist() == [[7, 7, 7]]


def test_a_tree_has_no_more_leaves_than_rows_are_distinct():
    distinct = np.unique(points(0, 12, 3), axis=0)
    sample = np.repeat(distinct, [300, *[4] * (len(distinct) - 1)], axis=0)
    tree = cells.grow(sample, 60, 0)
    assert sound(tree)
    assert len(distinct) / 2 < len(tree.leaves) <= len(distinct)
    assert np.bincount(nearest_of(sample, tree)).max() == 300, "those who are many are alone"


def test_one_leaf_lies_in_the_middle():
    sample = np.array([[0, 2], [4, 0], [2, 1]], np.float32)
    tree = cells.grow(sample, 1, 0)
    assert sound(tree)
    assert tree.leaves.tolist() == tree.groups.tolist() == [[2, 1]]


def test_one_seed_gives_one_tree_on_any_number_of_threads():
    sample = np.random.default_rng(3).normal(size=(2000, 12)).astype(np.float32)
    answers = []
    for threads in (1, 2, 2):
        with threadpool_limits(limits=threads):
            tree = cells.grow(sample, 60, 42)
        answers.append((tree.groups.tobytes(), tree.offsets.tolist(), tree.leaves.tobytes()))
    assert answers[0] == answers[1] == answers[2]
    assert cells.grow(sample, 60, 43).leaves.tobytes() != answers[0][2]


def test_leaves_near_in_space_are_near_in_line():
    """On a curve, each leaf follows its neighbour; elsewhere, the branches of Ward's tree stay together."""
    angle = np.sort(np.random.default_rng(0).uniform(0, 5, 3000))
    curve = np.column_stack([np.cos(angle), np.sin(angle)]).astype(np.float32)
    leaves = cells.grow(curve, 50, 0).leaves
    steps = np.linalg.norm(np.diff(leaves, axis=0), axis=1)
    assert (steps < 0.35).mean() > 0.9
    x = np.random.default_rng(1).normal(size=(60, 5)).astype(np.float32)
    line = cells._in_line(x)
    assert sorted(line) == list(range(60))
    for branches in (2, 3, 7):
        branch = fcluster(linkage(x, "ward"), branches, "maxclust")[line]
        assert (np.diff(branch) != 0).sum() == branches - 1


# the nearest leaves ------------------------------------------------------------------------------


def tree_of(groups: np.ndarray, counts: list[int], leaves: np.ndarray) -> Tree:
    return Tree(groups, np.cumsum([0, *counts]), leaves)


@given(st.integers(0, 999), st.integers(1, 30), st.integers(1, 9), st.integers(1, 6), st.integers(1, 12))
def test_the_nearest_leaves_are_found_in_order_ties_by_leaf(seed, n, dims, groups, count):
    """All groups are sought where there are few."""
    counts = np.random.default_rng(seed).integers(1, 9, groups).tolist()
    x, leaves = points(seed, n, dims), points(seed + 1, sum(counts), dims)
    found = cells.nearest_leaves(x, tree_of(points(seed + 2, groups, dims), counts, leaves), count)
    squared = cdist(x, leaves, "sqeuclidean")
    wanted = np.full((n, count), -1)
    wanted[:, : len(leaves)] = np.argsort(squared, axis=1, kind="stable")[:, :count]
    assert (found.dtype, found.shape) == (np.int32, (n, count))
    rows = np.arange(n)[:, None]
    np.testing.assert_allclose(  # the middle is no whole number: what ties may be told apart
        np.where(found >= 0, squared[rows, found], -1), np.where(wanted >= 0, squared[rows, wanted], -1), rtol=1e-5
    )
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in found)


def test_leaves_are_sought_in_the_nearest_groups_alone():
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(300, 6)).astype(np.float32), rng.normal(size=(25, 6)).astype(np.float32)
    leaves = (np.repeat(groups, 7, axis=0) + rng.normal(0, 0.8, (175, 6))).astype(np.float32)
    found = cells.nearest_leaves(x, tree_of(groups, [7] * 25, leaves), 10)
    near = np.argsort(cdist(x, groups), axis=1)[:, : cells.GROUPS]
    squared = np.full((300, 175), np.inf)
    for row, own in enumerate(near):
        at = (own[:, None] * 7 + np.arange(7)).ravel()
        squared[row, at] = cdist(x[row, None], leaves[at], "sqeuclidean")[0]
    assert np.array_equal(found, np.argsort(squared, axis=1)[:, :10])
    assert (found != np.argsort(cdist(x, leaves), axis=1)[:, :10]).any(), "else the test would tell nothing"


CUTS = [(0, 1), (3, 50), (5, 6), (255, 257), (100, 613), (0, 1024), (1, 1025), (17, 1500), (1499, 1500)]


def alike(seed: int) -> tuple[np.ndarray, Tree]:
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1500, 33)).astype(np.float32)
    return x, cells.grow(x, 150, seed)


def far_groups(seed: int) -> tuple[np.ndarray, Tree]:
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(40, 20))[rng.integers(0, 40, 1500)] * 500 + rng.normal(size=(1500, 20))).astype(np.float32)
    return x, cells.grow(x, 150, seed)


def symmetric(seed: int) -> tuple[np.ndarray, Tree]:
    """Rows as far from each of twelve groups: products round now to the one side, now to the other."""
    rng = np.random.default_rng(seed)
    groups = np.eye(12, 40, dtype=np.float32) + np.float32(0.25)
    leaves = np.repeat(groups, 3, axis=0)
    leaves[:, 20:23] += 0.01 * rng.normal(size=(36, 3)).astype(np.float32)
    x = rng.normal(size=(1500, 40)).astype(np.float32)
    x[:, :12] = x[:, :1]
    return x, tree_of(groups, [3] * 12, leaves)


def words(seed: int) -> tuple[np.ndarray, Tree]:
    """Rows of two words each: most are as far from each other."""
    rng = np.random.default_rng(seed)
    x = np.zeros((1500, 300), np.float32)
    x[np.arange(1500), rng.integers(0, 300, (2, 1500))] = 1
    return x, cells.grow(x, 100, seed)


@pytest.mark.parametrize("case", [alike, far_groups, symmetric, words])
def test_a_rows_leaves_do_not_depend_on_the_rows_beside_it(case):
    x, tree = case(0)
    whole = cells.nearest_leaves(x, tree, 10)
    for low, high in CUTS:
        assert np.array_equal(cells.nearest_leaves(x[low:high], tree, 10), whole[low:high])
    backwards = cells.nearest_leaves(np.ascontiguousarray(x[::-1]), tree, 10)[::-1]
    assert np.array_equal(backwards, whole)


def test_a_rows_leaves_do_not_depend_on_blas_threads():
    x, tree = alike(1)
    answers = []
    for threads in (1, 2):
        with threadpool_limits(limits=threads):
            answers.append(cells.nearest_leaves(x, tree, 10).tobytes())
    assert answers[0] == answers[1]


def test_a_rows_leaves_do_not_depend_on_where_the_origin_lies():
    """64 leaves on a grid: the middle, too, moves without rounding."""
    x, leaves, groups = points(0, 200, 8), points(1, 64, 8), points(2, 4, 8)
    here = cells.nearest_leaves(x, tree_of(groups, [16] * 4, leaves), 10)
    there = cells.nearest_leaves(x + 8192, tree_of(groups + 8192, [16] * 4, leaves + 8192), 10)
    assert np.array_equal(there, here)


@pytest.mark.parametrize("scale", [1e25, 1e-30, 1e-42])
def test_a_rows_leaves_do_not_depend_on_the_scale(scale):
    x, tree = alike(2)
    if scale > 1e-38:  # the rest is below what float32 holds in full
        power = np.float32(2.0 ** np.round(np.log2(scale)))
        scaled = Tree(tree.groups * power, tree.offsets, tree.leaves * power)
        assert np.array_equal(cells.nearest_leaves(x * power, scaled, 10), cells.nearest_leaves(x, tree, 10))
    tree = cells.grow((x * scale).astype(np.float32), 50, 0)
    assert sound(tree)
    once_each((x * scale).astype(np.float32), tree)


def once_each(x: np.ndarray, tree: Tree) -> None:
    """See that each row has ten leaves and none twice, whatever else is in the block."""
    found = cells.nearest_leaves(x, tree, 10)
    for row in found:
        own = row[row >= 0]
        assert len(set(own)) == len(own)
        assert (own < len(tree.leaves)).all()
    assert (found[:, 0] >= 0).all()


@pytest.mark.parametrize("value", [1e25, 3e38])
def test_no_row_has_a_leaf_twice_however_far_it_lies(value):
    x, tree = alike(3)
    x[::7] = value
    x[3::7, ::2] = -value
    once_each(x, tree)  # their squares are infinite in float32, their differences may be
    once_each(x, cells.grow(x, 100, 0))
    near = np.setdiff1d(np.arange(len(x)), [*range(0, len(x), 7), *range(3, len(x), 7)])
    assert np.array_equal(cells.nearest_leaves(x, tree, 10)[near], cells.nearest_leaves(x[near], tree, 10))


# packing -----------------------------------------------------------------------------------------

loads = st.lists(st.sampled_from([0, 0, 1, 2, 5]) | st.integers(0, 60), min_size=1, max_size=40)


@settings(max_examples=500)
@given(loads, st.integers(1, 40), st.integers(1, 25))
def test_leaves_are_packed_in_line_into_cells_of_about_the_same_size(own, rows, fewest):
    own = np.array(own, np.int64)
    packed, pieces = cells.pack(own, rows, fewest)
    assert (packed.dtype, pieces.dtype) == (np.int32, np.int32)
    assert np.array_equal(pieces, np.where(own > rows, -(-own // rows), 1))
    held, last = np.zeros(packed[-1] + pieces[-1]), 0
    for leaf, load in enumerate(own):
        assert packed[leaf] in (last, last + 1), "cells follow each other"
        last = packed[leaf] + pieces[leaf] - 1
        held[packed[leaf] : last + 1] += load / pieces[leaf]
    assert last == len(held) - 1
    assert (held > 0).all() or not own.any()
    assert (held <= 2 * rows + 2 * fewest).all()
    in_pieces = np.zeros(len(held), bool)
    for leaf in np.flatnonzero(pieces > 1):
        in_pieces[packed[leaf] : packed[leaf] + pieces[leaf]] = True
    assert (held[~in_pieces] >= fewest).all() or len(held) == 1
    if fewest == 1:
        assert (held <= 2 * rows).all()
        assert (held[in_pieces] <= rows).all(), "pieces have their cells to themselves"


def test_what_is_even_is_packed_evenly():
    packed, pieces = cells.pack(np.full(100, 20), 250)
    assert set(np.bincount(packed)) == {12, 13}
    assert (pieces == 1).all()


# the way to the cells ----------------------------------------------------------------------------


def obvious_route(near, packed, pieces, start, seed, max_copies, width):
    """Return each row's {cell: leaves it probes there}, in the order joined, one row after the other."""
    first = {}
    for leaf, cell in enumerate(packed.tolist()):
        first.setdefault(cell, leaf)
    for leaf in np.flatnonzero(pieces > 1):
        for piece in range(1, pieces[leaf]):
            first[packed[leaf] + piece] = leaf
    found = []
    hashes = hashing.draws(seed, hashing.PIECES, np.arange(start, start + len(near)))
    for row, h in zip(near, hashes, strict=True):
        joined: dict[int, list[int]] = {}
        for rank, leaf in enumerate(leaf for leaf in row if leaf >= 0):
            piece = int(h) % int(pieces[leaf])
            cell = int(packed[leaf]) + piece
            if cell in joined or len(joined) < max_copies:
                joined.setdefault(cell, []).append(leaf - first[cell])
            if rank == 0 and pieces[leaf] > 1 and max_copies > 1:
                following = int(packed[leaf]) + (piece + 1) % int(pieces[leaf])
                joined[following] = [leaf - first[following]]
        home = next(iter(joined), None)
        found.append({c: p[: width if c == home else cells.GUEST_PROBES] for c, p in joined.items()})
    return found


@st.composite
def ways(draw):
    """Draw a packing, and the nearest leaves of some rows."""
    own = np.array(draw(loads), np.int64)
    packed, pieces = cells.pack(own, draw(st.integers(3, 40)), draw(st.integers(1, 20)))
    reach = min(len(own), draw(st.integers(1, 10)))
    one = st.permutations(range(len(own))).map(lambda p: p[:reach])
    rows = draw(st.lists(one | st.just([-1] * reach), max_size=12))
    return np.array(rows, np.int32).reshape(len(rows), reach), packed, pieces


@given(ways(), st.integers(0, 10**12), st.integers(0, 99), st.integers(1, 7))
def test_rows_are_sent_to_the_cells_of_their_leaves(way, start, seed, max_copies):
    near, packed, pieces = way
    width = near.shape[1]
    own, probes = cells.route(near, packed, pieces, start, seed, max_copies, width)
    assert (own.shape, probes.shape) == ((len(near), max_copies), (len(near), max_copies, width))
    found = [
        {int(c): p[p >= 0].tolist() for c, p in zip(cells_of[cells_of >= 0], leaves_of, strict=False)}
        for cells_of, leaves_of in zip(own, probes, strict=True)
    ]
    wanted = obvious_route(near, packed, pieces, start, seed, max_copies, width)
    assert [list(row.items()) for row in found] == [list(row.items()) for row in wanted]
    for row, cells_of in zip(found, own, strict=True):
        assert len(row) == (cells_of >= 0).sum() <= max_copies, "a cell is joined once"
        assert all(row.values()), "each cell is joined for a leaf"
    assert (own[near[:, 0] < 0] == -1).all()


@given(ways(), st.integers(0, 99))
def test_probes_are_leaves_of_the_cell(way, seed):
    """Taken back to the tree's leaves, they are among those nearest to the row."""
    near, packed, pieces = way
    own, probes = cells.route(near, packed, pieces, 0, seed, 5, near.shape[1])
    for row, slot, at in np.argwhere(probes >= 0):
        leaves = [n for n in range(len(packed)) if 0 <= own[row, slot] - packed[n] < pieces[n]]
        leaf = min(leaves) + probes[row, slot, at]
        assert leaf in leaves
        assert leaf in near[row]


def test_pieces_of_a_leaf_are_linked_in_a_ring():
    """A row of piece p is a guest of piece p + 1, so that rows that are all the same are not apart."""
    packed, pieces = cells.pack(np.array([5, 100, 5]), 12)
    assert pieces[1] == 9
    near = np.tile(np.array([1, 0, 2], np.int32), (2000, 1))
    own, probes = cells.route(near, packed, pieces, 0, 0, 4, 3)
    piece = own[:, 0] - packed[1]
    assert np.bincount(piece, minlength=9).min() > 150
    assert np.array_equal(own[:, 1] - packed[1], (piece + 1) % 9)
    assert (probes[:, :2, 0] == 0).all()
    alone, _ = cells.route(near, packed, pieces, 0, 0, 1, 3)
    assert np.array_equal(alone[:, 0], own[:, 0])


def test_a_rows_way_does_not_depend_on_the_rows_beside_it():
    packed, pieces = cells.pack(np.full(30, 70), 50)
    near = np.array([np.random.default_rng(n).permutation(30)[:10] for n in range(300)], np.int32)
    whole = cells.route(near, packed, pieces, 10**10, 3, 4, 10)
    for low, high in [(0, 1), (7, 250), (299, 300)]:
        part = cells.route(near[low:high], packed, pieces, 10**10 + low, 3, 4, 10)
        assert all(np.array_equal(a, b[low:high]) for a, b in zip(part, whole, strict=True))


@st.composite
def joined_cells(draw):
    """Draw the cells of some rows: a home, distinct guests' cells, -1 after them; or -1 alone."""
    width = draw(st.integers(1, 4))
    rows = draw(st.lists(st.lists(st.integers(0, 4), unique=True, max_size=width), max_size=12))
    return np.array([row + [-1] * (width - len(row)) for row in rows], np.int32).reshape(len(rows), width)


@given(joined_cells(), st.randoms(use_true_random=False))
def test_copies_lie_by_cell_own_rows_first_by_position(own, random):
    positions = np.array(random.sample(range(100), len(own)), np.int64)
    source, slot = cells.order_copies(own, positions)
    copies = [(c, s > 0, positions[i], i, s) for i, row in enumerate(own) for s, c in enumerate(row) if c >= 0]
    found = zip(own[source, slot], slot > 0, positions[source], source, slot, strict=True)
    assert list(found) == sorted(copies)


@given(joined_cells(), st.lists(st.integers(0, 10**12), min_size=5, max_size=5), st.integers(0, 12))
def test_ranks_number_the_rows_of_each_cell_in_turn(own, start, cut):
    home, start = own[:, 0], np.array(start, np.int64)
    ranks = cells.ranks(home, start)
    assert (ranks[home < 0] == -1).all()
    for c in range(5):
        assert ranks[home == c].tolist() == list(range(start[c], start[c] + (home == c).sum()))
    after = start + np.bincount(home[:cut][home[:cut] >= 0], minlength=5)
    assert np.array_equal(np.concatenate([cells.ranks(home[:cut], start), cells.ranks(home[cut:], after)]), ranks)
