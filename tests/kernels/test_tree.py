"""The tree: its leaves, and the nearest leaves of rows."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import cdist
from threadpoolctl import threadpool_limits

from dumap.kernels.tree import (
    ALWAYS_KEPT_LEAVES,
    MAX_LEAF_LOAD,
    SEARCHED_GROUPS,
    Tree,
    _keep_nearest,
    _ward_order,
    grow_tree,
    leaf_residuals,
    nearest_leaves,
)


def grid_points(seed: int, n: int, dims: int) -> np.ndarray:
    """Draw rows on a small grid: float32 holds their squared distances exactly."""
    return np.random.default_rng(seed).integers(-6, 7, (n, dims)).astype(np.float32)


# the tree ----------------------------------------------------------------------------------------


def nearest_leaf(x: np.ndarray, tree: Tree) -> np.ndarray:
    """Return each row's nearest leaf."""
    return nearest_leaves(x, tree, 1)[:, 0]


def is_sound(tree: Tree) -> bool:
    """Tell whether a tree's groups cover its leaves, and all is of the dtypes that are stored."""
    offsets = np.asarray(tree.offsets)
    return (
        tree.groups.dtype == tree.leaves.dtype == np.float32
        and (offsets[0], offsets[-1], len(offsets)) == (0, len(tree.leaves), len(tree.groups) + 1)
        and bool((np.diff(offsets) > 0).all())
        and bool(np.isfinite(tree.leaves).all())
    )


@pytest.mark.parametrize(("n_leaves", "dims"), [(2, 3), (40, 5), (150, 30)])
def test_a_tree_has_about_the_leaves_that_are_wanted(n_leaves, dims):
    sample = np.random.default_rng(n_leaves).normal(size=(8 * n_leaves, dims)).astype(np.float32)
    tree = grow_tree(sample, n_leaves, 0)
    assert is_sound(tree)
    assert 0.8 * n_leaves <= len(tree.leaves) <= 1.3 * n_leaves + 1
    assert np.bincount(nearest_leaf(sample, tree), minlength=len(tree.leaves)).max() <= MAX_LEAF_LOAD * 8 * 1.5


def test_crowded_leaves_are_cut_again():
    """Half of the sample lies in a place that is small beside the rest: k-means alone gives it few leaves."""
    rng = np.random.default_rng(0)
    sample = np.concatenate([rng.normal(0, 1e-2, (800, 4)), rng.normal(0, 10, (800, 4))]).astype(np.float32)
    tree = grow_tree(sample, 200, 0)
    assert is_sound(tree)
    assert np.bincount(nearest_leaf(sample, tree)).max() <= 2 * MAX_LEAF_LOAD * 8
    assert (np.abs(tree.leaves).max(axis=1) < 0.1).sum() > 30


def test_rows_that_are_all_the_same_are_one_leaf():
    tree = grow_tree(np.full((500, 3), 7, np.float32), 20, 0)
    assert is_sound(tree)
    assert tree.leaves.tolist() == [[7, 7, 7]]


def test_a_tree_has_no_more_leaves_than_rows_are_distinct():
    distinct = np.unique(grid_points(0, 12, 3), axis=0)
    sample = np.repeat(distinct, [300, *[4] * (len(distinct) - 1)], axis=0)
    tree = grow_tree(sample, 60, 0)
    assert is_sound(tree)
    assert len(distinct) / 2 < len(tree.leaves) <= len(distinct)
    assert np.bincount(nearest_leaf(sample, tree)).max() == 300, "those who are many are alone"


def test_one_leaf_lies_in_the_middle():
    sample = np.array([[0, 2], [4, 0], [2, 1]], np.float32)
    tree = grow_tree(sample, 1, 0)
    assert is_sound(tree)
    assert tree.leaves.tolist() == tree.groups.tolist() == [[2, 1]]


def test_one_seed_gives_one_tree_on_any_number_of_threads():
    sample = np.random.default_rng(3).normal(size=(2000, 12)).astype(np.float32)
    answers = []
    for threads in (1, 2, 2):
        with threadpool_limits(limits=threads):
            tree = grow_tree(sample, 60, 42)
        answers.append((tree.groups.tobytes(), tree.offsets.tolist(), tree.leaves.tobytes()))
    assert answers[0] == answers[1] == answers[2]
    assert grow_tree(sample, 60, 43).leaves.tobytes() != answers[0][2]


def test_leaves_near_in_space_are_near_in_line():
    """On a curve, each leaf follows its neighbour; elsewhere, the branches of Ward's tree stay together."""
    angle = np.sort(np.random.default_rng(0).uniform(0, 5, 3000))
    curve = np.column_stack([np.cos(angle), np.sin(angle)]).astype(np.float32)
    leaves = grow_tree(curve, 50, 0).leaves
    steps = np.linalg.norm(np.diff(leaves, axis=0), axis=1)
    assert (steps < 0.35).mean() > 0.9
    x = np.random.default_rng(1).normal(size=(60, 5)).astype(np.float32)
    line = _ward_order(x)
    assert sorted(line) == list(range(60))
    for branches in (2, 3, 7):
        branch = fcluster(linkage(x, "ward"), branches, "maxclust")[line]
        assert (np.diff(branch) != 0).sum() == branches - 1


# the nearest leaves ------------------------------------------------------------------------------


def make_tree(groups: np.ndarray, counts: list[int], leaves: np.ndarray) -> Tree:
    """Return a tree whose groups have so many leaves each."""
    return Tree(groups, np.cumsum([0, *counts]), leaves)


@given(st.integers(0, 999), st.integers(1, 30), st.integers(1, 9), st.integers(1, 6), st.integers(1, 12))
def test_the_nearest_leaves_are_found_in_order_ties_by_leaf(seed, n, dims, groups, count):
    """All groups are sought where there are few."""
    counts = np.random.default_rng(seed).integers(1, 9, groups).tolist()
    x, leaves = grid_points(seed, n, dims), grid_points(seed + 1, sum(counts), dims)
    near = nearest_leaves(x, make_tree(grid_points(seed + 2, groups, dims), counts, leaves), count)
    squared = cdist(x, leaves, "sqeuclidean")
    expected = np.full((n, count), -1)
    expected[:, : len(leaves)] = np.argsort(squared, axis=1, kind="stable")[:, :count]
    assert (near.dtype, near.shape) == (np.int32, (n, count))
    rows = np.arange(n)[:, None]
    np.testing.assert_allclose(  # the middle is no whole number: what ties may be told apart
        np.where(near >= 0, squared[rows, near], -1), np.where(expected >= 0, squared[rows, expected], -1), rtol=1e-5
    )
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in near)


def test_leaves_are_sought_in_the_nearest_groups_alone():
    rng = np.random.default_rng(0)
    x, groups = rng.normal(size=(300, 6)).astype(np.float32), rng.normal(size=(25, 6)).astype(np.float32)
    leaves = (np.repeat(groups, 7, axis=0) + rng.normal(0, 0.8, (175, 6))).astype(np.float32)
    listed = nearest_leaves(x, make_tree(groups, [7] * 25, leaves), 10)
    near = np.argsort(cdist(x, groups), axis=1)[:, :SEARCHED_GROUPS]
    squared = np.full((300, 175), np.inf)
    for row, near_groups in enumerate(near):
        at = (near_groups[:, None] * 7 + np.arange(7)).ravel()
        squared[row, at] = cdist(x[row, None], leaves[at], "sqeuclidean")[0]
    assert np.array_equal(listed, np.argsort(squared, axis=1)[:, :10])
    assert (listed != np.argsort(cdist(x, leaves), axis=1)[:, :10]).any(), "else the test would tell nothing"


@pytest.mark.parametrize(("dims", "count"), [(2, 4), (2, 16), (30, 16)])
def test_groups_that_cannot_hold_nearer_leaves_are_not_missed(monkeypatch, dims, count):
    """In few dimensions most groups are ruled out, in many none are: the leaves are those of all groups either way."""
    monkeypatch.setattr("dumap.kernels.tree.SEARCHED_GROUPS", 40)
    x = np.random.default_rng(dims).normal(size=(2000, dims)).astype(np.float32)
    tree = grow_tree(x, 900, 0)
    assert len(tree.groups) > 20
    expected = np.argsort(cdist(x, tree.leaves), axis=1)[:, :count]
    assert (nearest_leaves(x, tree, count) == expected).mean() > 0.999, "but for ties in float32"
    products = []
    monkeypatch.setattr(
        "dumap.kernels.tree._keep_nearest",
        lambda *given, keep=_keep_nearest: (products.append(given[0].size), keep(*given)),
    )
    nearest_leaves(x, tree, count)
    assert (sum(products) < 0.5 * len(x) * len(tree.leaves)) == (dims < 30)


def test_leaves_beyond_the_margin_are_left_out_but_for_the_first():
    x = np.random.default_rng(0).normal(size=(1000, 3)).astype(np.float32)
    tree = grow_tree(x, 100, 0)
    x[:50] = tree.leaves[:50]  # where the nearest leaf has its centroid, all others lie infinitely further
    near, whole = nearest_leaves(x, tree, 10, 1.5), nearest_leaves(x, tree, 10)
    far = np.take_along_axis(cdist(x, tree.leaves), whole, axis=1)
    within = far <= 1.5 * far[:, :1]
    within[:, :ALWAYS_KEPT_LEAVES] = True
    assert (near[:50] >= 0).sum() == 50 * ALWAYS_KEPT_LEAVES
    assert 0.1 < within[50:].mean() < 0.9
    assert np.array_equal(near, np.where(within, whole, -1))


RANGES = [(0, 1), (3, 50), (5, 6), (255, 257), (100, 613), (0, 1024), (1, 1025), (17, 1500), (1499, 1500)]


def unstructured_rows(seed: int) -> tuple[np.ndarray, Tree]:
    """Return rows without structure, and their tree."""
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(1500, 33)).astype(np.float32)
    return x, grow_tree(x, 150, seed)


def rows_in_far_groups(seed: int) -> tuple[np.ndarray, Tree]:
    """Return rows in groups that lie far apart, and their tree."""
    rng = np.random.default_rng(seed)
    x = (rng.normal(size=(40, 20))[rng.integers(0, 40, 1500)] * 500 + rng.normal(size=(1500, 20))).astype(np.float32)
    return x, grow_tree(x, 150, seed)


def equidistant_rows(seed: int) -> tuple[np.ndarray, Tree]:
    """Rows as far from each of twelve groups: products round now to the one side, now to the other."""
    rng = np.random.default_rng(seed)
    groups = np.eye(12, 40, dtype=np.float32) + np.float32(0.25)
    leaves = np.repeat(groups, 3, axis=0)
    leaves[:, 20:23] += 0.01 * rng.normal(size=(36, 3)).astype(np.float32)
    x = rng.normal(size=(1500, 40)).astype(np.float32)
    x[:, :12] = x[:, :1]
    return x, make_tree(groups, [3] * 12, leaves)


def rows_of_words(seed: int) -> tuple[np.ndarray, Tree]:
    """Rows of two words each: most are as far from each other."""
    rng = np.random.default_rng(seed)
    x = np.zeros((1500, 300), np.float32)
    x[np.arange(1500), rng.integers(0, 300, (2, 1500))] = 1
    return x, grow_tree(x, 100, seed)


def rows_near_plane(seed: int, n: int = 1500, dims: int = 121, latent: int = 12) -> np.ndarray:
    """Draw rows of many dims near a plane, in clusters."""
    loadings = np.random.default_rng(0).normal(size=(latent, dims))
    rng = np.random.default_rng(seed)
    centres = 3 * rng.normal(size=(20, latent))[rng.integers(0, 20, n)] + rng.normal(size=(n, latent))
    return (centres @ loadings + 0.1 * rng.normal(size=(n, dims))).astype(np.float32)


def rows_with_axes(seed: int) -> tuple[np.ndarray, Tree]:
    """Return rows near a plane, and their tree, whose leaves lie on axes."""
    tree = grow_tree(rows_near_plane(seed, 3000), 150, seed)
    assert tree.axes.shape == (121, 16)
    return rows_near_plane(seed), tree


@pytest.mark.parametrize(
    "case", [unstructured_rows, rows_in_far_groups, equidistant_rows, rows_of_words, rows_with_axes]
)
def test_a_rows_leaves_do_not_depend_on_the_rows_beside_it(case):
    x, tree = case(0)
    whole = nearest_leaves(x, tree, 10)
    for low, high in RANGES:
        assert np.array_equal(nearest_leaves(x[low:high], tree, 10), whole[low:high])
    assert all(np.array_equal(nearest_leaves(x[i : i + 1], tree, 10), whole[i : i + 1]) for i in range(0, 1500, 50))
    backwards = nearest_leaves(np.ascontiguousarray(x[::-1]), tree, 10)[::-1]
    assert np.array_equal(backwards, whole)


def test_a_rows_leaves_do_not_depend_on_blas_threads():
    x, tree = unstructured_rows(1)
    answers = []
    for threads in (1, 2):
        with threadpool_limits(limits=threads):
            answers.append(nearest_leaves(x, tree, 10).tobytes())
    assert answers[0] == answers[1]


def test_a_rows_leaves_do_not_depend_on_where_the_origin_lies():
    """64 leaves on a grid: the middle, too, moves without rounding."""
    x, leaves, groups = grid_points(0, 200, 8), grid_points(1, 64, 8), grid_points(2, 4, 8)
    here = nearest_leaves(x, make_tree(groups, [16] * 4, leaves), 10)
    there = nearest_leaves(x + 8192, make_tree(groups + 8192, [16] * 4, leaves + 8192), 10)
    assert np.array_equal(there, here)


@pytest.mark.parametrize("scale", [1e25, 1e-30, 1e-42])
def test_a_rows_leaves_do_not_depend_on_the_scale(scale):
    x, tree = unstructured_rows(2)
    if scale > 1e-38:  # the rest is below what float32 holds in full
        power = np.float32(2.0 ** np.round(np.log2(scale)))
        scaled = Tree(tree.groups * power, tree.offsets, tree.leaves * power)
        assert np.array_equal(nearest_leaves(x * power, scaled, 10), nearest_leaves(x, tree, 10))
    tree = grow_tree((x * scale).astype(np.float32), 50, 0)
    assert is_sound(tree)
    assert_leaves_once((x * scale).astype(np.float32), tree)


def assert_leaves_once(x: np.ndarray, tree: Tree) -> None:
    """See that each row has ten leaves and none twice, whatever else is in the block."""
    near = nearest_leaves(x, tree, 10)
    for row in near:
        leaves_of = row[row >= 0]
        assert len(set(leaves_of)) == len(leaves_of)
        assert (leaves_of < len(tree.leaves)).all()
    assert (near[:, 0] >= 0).all()


@pytest.mark.parametrize("value", [1e25, 3e38])
def test_no_row_has_a_leaf_twice_however_far_it_lies(value):
    x, tree = unstructured_rows(3)
    x[::7] = value
    x[3::7, ::2] = -value
    assert_leaves_once(x, tree)  # their squares are infinite in float32, their differences may be
    assert_leaves_once(x, grow_tree(x, 100, 0))
    near = np.setdiff1d(np.arange(len(x)), [*range(0, len(x), 7), *range(3, len(x), 7)])
    assert np.array_equal(nearest_leaves(x, tree, 10)[near], nearest_leaves(x[near], tree, 10))


# leaves on few axes ------------------------------------------------------------------------------


def squares_within_leaves(x: np.ndarray, tree: Tree) -> float:
    """Return the sum of squared distances of rows from the means of their leaves."""
    return float((leaf_residuals(x, tree)[0].astype(np.float64) ** 2).sum())


def grow_without_axes(monkeypatch, x: np.ndarray, n_leaves: int) -> Tree:
    """Grow a tree for which no axes are sought."""
    with monkeypatch.context() as patch:
        patch.setattr("dumap.kernels.axes.MIN_AXES_DIMS", 10**6)
        tree = grow_tree(x, n_leaves, 0)
    assert tree.axes.shape == (x.shape[1], 0)
    return tree


def test_leaves_on_few_axes_are_as_close(monkeypatch):
    x = rows_near_plane(0, 6000)
    tree = grow_tree(x, 300, 0)
    assert tree.axes.shape[1] == tree.leaves.shape[1] == 16
    assert is_sound(tree)
    assert squares_within_leaves(x, tree) < 1.05 * squares_within_leaves(x, grow_without_axes(monkeypatch, x, 300))


def test_a_row_far_out_does_not_choose_the_axes(monkeypatch):
    x = rows_near_plane(1, 6000)
    x[::150] = 1e4 * np.random.default_rng(0).normal(size=(40, 121))
    near = np.delete(np.arange(6000), np.s_[::150])
    tree = grow_tree(x, 300, 0)
    assert tree.axes.shape[1] == 16
    assert squares_within_leaves(x[near], tree) < 1.1 * squares_within_leaves(
        x[near], grow_without_axes(monkeypatch, x[near], 300)
    )


def test_no_axes_where_they_would_not_tell_the_rows_of_a_group_apart():
    """One row in twelve varies where the others do not."""
    x = np.zeros((6000, 240), np.float32)
    x[:, :120] = rows_near_plane(2, 6000, 120)
    few = np.arange(0, 6000, 12)
    x[few], x[few, 120:] = 30, 30 + rows_near_plane(3, len(few), 120, 30) / 4
    assert grow_tree(x, 300, 0).axes.shape == (240, 0)
    assert grow_tree(np.delete(x, few, axis=0), 300, 0).axes.shape == (240, 16)


@pytest.mark.parametrize("value", [1e25, 3e38])
def test_no_row_on_axes_has_a_leaf_twice_however_far_it_lies(value):
    x, tree = rows_with_axes(3)
    x[::7] = value
    x[3::7, ::2] = -value
    assert_leaves_once(x, tree)
    assert_leaves_once(x, grow_tree(x, 100, 0))
    near = np.setdiff1d(np.arange(len(x)), [*range(0, len(x), 7), *range(3, len(x), 7)])
    assert np.array_equal(nearest_leaves(x, tree, 10)[near], nearest_leaves(x[near], tree, 10))


def test_rows_within_leaves_are_all_those_of_some_leaves(monkeypatch):
    monkeypatch.setattr("dumap.kernels.tree.MIN_VARIANCE_ROWS", 300)
    x, tree = unstructured_rows(4)
    leaf_of = nearest_leaves(x, tree, 1)[:, 0]
    placed, nearest = leaf_residuals(x, tree)
    taken = np.isin(leaf_of, np.unique(nearest))
    assert np.array_equal(nearest, leaf_of[taken])
    assert 150 < len(nearest) < 600
    expected = [row - x[leaf_of == leaf].mean(axis=0) for row, leaf in zip(x[taken], nearest, strict=True)]
    np.testing.assert_allclose(placed, expected, atol=1e-5)
