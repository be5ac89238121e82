"""Search by leaves: lists that are well formed and nearly all of the true neighbours."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import sparse
from scipy.sparse.csgraph import connected_components
from scipy.spatial.distance import cdist
from threadpoolctl import threadpool_limits
from umap_learn import pynndescent_distance

from dumap.kernels import leaves, vectors
from dumap.kernels.neighbors import search_exhaustively
from dumap.kernels.tree import grow_tree, nearest_leaves


def all_squared_distances(x: np.ndarray) -> np.ndarray:
    """Return all squared distances, infinite to itself."""
    squared = cdist(x.astype(np.float64), x.astype(np.float64), "sqeuclidean")
    np.fill_diagonal(squared, np.inf)
    return squared


def search_one_leaf(x: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """Search rows that are all of one leaf."""
    return leaves.search_home_rows(x, np.zeros((len(x), 1), np.int32), k, 0)


def search_cell_with_guests(
    x: np.ndarray, guest_homes: np.ndarray, probes: np.ndarray, k: int, kth_squared: float | np.ndarray = np.inf
) -> tuple[np.ndarray, np.ndarray]:
    """Search a cell's home rows, then its guests; lists of guests may hold rows nearer than `kth_squared`."""
    home_rows = np.flatnonzero(guest_homes < 0)
    home_indices, home_squared = leaves.search_home_rows(x[home_rows], probes[home_rows], k, 0)
    indices, squared = np.full((len(x), k), -1, np.int32), np.empty((len(x), k))
    squared[:] = np.broadcast_to(kth_squared, len(x))[:, None]
    indices[home_rows], squared[home_rows] = np.where(home_indices >= 0, home_rows[home_indices], -1), home_squared
    return leaves.search_with_guests(x, guest_homes, probes, indices, squared, 0)


def rows_in_leaves(x: np.ndarray, count: int, guests: int = 0, width: int = 10) -> tuple[np.ndarray, ...]:
    """Return rows in order, their homes (the last ones drawn are guests of two homes), and the leaves they probe."""
    tree = grow_tree(x, count, 0)
    probes = nearest_leaves(x, tree, width)
    guest_homes = np.full(len(x), -1, np.int32)
    if guests:
        guest_homes[-guests:] = np.arange(guests) % 2
        probes[-guests:, 3:] = -1
    order = leaves.order_by_leaf(guest_homes, probes)
    return x[order], guest_homes[order], probes[order]


def rows_near_surface(seed: int, n: int, dims: int) -> np.ndarray:
    """Return rows near a bent surface of four dims."""
    rng = np.random.default_rng(seed)
    surface = np.sin(rng.uniform(0, 1, (n, 4)) @ rng.normal(0, 3, (4, dims)))
    return (surface + rng.normal(0, 0.03, (n, dims))).astype(np.float32)


def assert_well_formed(x: np.ndarray, indices: np.ndarray, squared: np.ndarray, rtol: float = 2e-6) -> None:
    """See that lists name others, each once, ascending, at their true distances."""
    n = len(x)
    is_filled = indices >= 0
    assert (indices != np.arange(n)[:, None]).all()
    assert all(len(set(row[row >= 0])) == (row >= 0).sum() for row in indices)
    assert (is_filled[:, :-1] >= is_filled[:, 1:]).all()
    assert np.isinf(squared[~is_filled]).all()
    lists = np.where(is_filled, squared, np.inf)
    assert (lists[:, 1:] >= lists[:, :-1]).all()
    row, slot = np.nonzero(is_filled)
    differences = x[row].astype(np.float64) - x[indices[row, slot]]
    np.testing.assert_allclose(squared[row, slot], np.einsum("ij,ij->i", differences, differences), rtol=rtol, atol=0)


def share_of_nearest(squared: np.ndarray, exact: np.ndarray) -> float:
    """Return which share of the lists is as near as the true neighbours are."""
    farthest = np.sort(exact, axis=1)[:, squared.shape[1] - 1]
    return float((squared <= farthest[:, None] * (1 + 1e-5)).mean())


# one leaf ----------------------------------------------------------------------------------------


def normal_rows(rng: np.random.Generator) -> np.ndarray:
    """Return rows of a normal distribution."""
    return rng.normal(size=(700, 20))


def rows_on_line(rng: np.random.Generator) -> np.ndarray:
    """Neighbours are as near beside the whole as products are unsure."""
    return np.column_stack([rng.uniform(size=2000), np.ones(2000)])


def heavy_tailed_rows(rng: np.random.Generator) -> np.ndarray:
    """Return rows of a distribution with heavy tails."""
    return np.exp(3 * rng.normal(size=(1500, 4)))


def two_far_groups(rng: np.random.Generator) -> np.ndarray:
    """Return two groups that lie far apart."""
    return rng.normal(size=(600, 8)) + 1e4 * (np.arange(600)[:, None] % 2)


def rows_with_outlier(rng: np.random.Generator) -> np.ndarray:
    """Return rows of which one lies very far away."""
    x = rng.normal(size=(600, 8))
    x[7] = 1e6
    return x


def rows_with_fill_values(rng: np.random.Generator) -> np.ndarray:
    """Some rows hold what is often written where nothing was measured: its square is infinite in float32."""
    x = rng.normal(size=(600, 8))
    x[::40] = 9.96921e36
    x[5] = 3e38
    x[6, ::2] = -3e38
    return x


def rows_far_from_origin(rng: np.random.Generator) -> np.ndarray:
    """Return whole numbers far from the origin."""
    return rng.integers(-20, 21, (600, 5)) + 8192.0 * np.array([1, -1, 100, 0, 7])


SHAPES = [
    normal_rows,
    rows_on_line,
    heavy_tailed_rows,
    two_far_groups,
    rows_with_outlier,
    rows_with_fill_values,
    rows_far_from_origin,
]


@pytest.mark.parametrize("k", [1, 5, 15])
@pytest.mark.parametrize("shape", SHAPES)
def test_one_leaf_is_searched_exactly(shape, k):
    x = shape(np.random.default_rng(0)).astype(np.float32)
    indices, squared = search_one_leaf(x, k)
    exact = np.minimum(all_squared_distances(x), leaves.MAX_SQUARED)
    np.fill_diagonal(exact, np.inf)
    assert (indices >= 0).all()
    np.testing.assert_allclose(squared, np.sort(exact, axis=1)[:, :k], rtol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(exact, indices.astype(np.int64), axis=1), squared, rtol=2e-6)


@given(st.integers(0, 999), st.integers(2, 25), st.integers(1, 4), st.integers(1, 12))
def test_whole_numbers_are_compared_exactly_and_slots_stay_empty_for_want_of_rows(seed, n, dims, k):
    x = np.random.default_rng(seed).integers(0, 4, (n, dims)).astype(np.float32) + 4096
    indices, squared = search_one_leaf(x, k)
    assert_well_formed(x, indices, squared, rtol=0)
    there = min(k, n - 1)
    assert ((indices >= 0).sum(axis=1) == there).all()
    assert np.array_equal(squared[:, :there], np.sort(all_squared_distances(x), axis=1)[:, :there])


@pytest.mark.parametrize("scale", [1e25, 1e15, 1e-15, 1e-30])
def test_the_scale_changes_nothing_but_the_distances(scale):
    power = 2.0 ** np.round(np.log2(scale))
    x = np.random.default_rng(0).normal(size=(300, 6)).astype(np.float32)
    indices, squared = search_one_leaf(x, 5)
    scaled_indices, scaled = search_one_leaf((x * power).astype(np.float32), 5)
    assert np.array_equal(scaled_indices, indices)
    np.testing.assert_array_equal(scaled, squared * power**2)


def test_rows_that_are_zero_are_rows():
    x = np.zeros((300, 3), np.float32)
    x[:120] = np.random.default_rng(0).normal(0, 1e25, (120, 3))
    exact = all_squared_distances(x)
    _, squared = search_one_leaf(x, 4)
    assert (squared[120:] == 0).all()
    np.testing.assert_allclose(squared[:120], np.sort(exact, axis=1)[:120, :4], rtol=1e-5)


# many leaves -------------------------------------------------------------------------------------


def test_many_leaves_find_nearly_all():
    x, _, probes = rows_in_leaves(rows_near_surface(0, 4000, 30), 40)
    indices, squared = leaves.search_home_rows(x, probes, 15, 0)
    assert_well_formed(x, indices, squared)
    assert (indices >= 0).all()
    assert share_of_nearest(squared, all_squared_distances(x)) > 0.99


def test_neighbours_of_neighbours_find_what_no_leaf_brought_together(monkeypatch):
    x, _, probes = rows_in_leaves(np.random.default_rng(0).normal(size=(3000, 12)).astype(np.float32), 60, width=3)
    exact, shares = all_squared_distances(x), []
    for passes in (0, 1, 2):
        monkeypatch.setattr(leaves, "HOME_PASSES", passes)
        shares.append(share_of_nearest(leaves.search_home_rows(x, probes, 10, 0)[1], exact))
    assert shares[0] < shares[1] - 0.05
    assert shares[1] < shares[2]
    assert shares[2] > 0.9


def test_rows_are_best_ordered_by_leaf_own_rows_first():
    guest_homes = np.array([-1, 3, -1, 2, -1, -1], np.int32)
    probes = np.array([[1, 0], [0, 1], [0, -1], [1, -1], [1, 0], [0, 1]], np.int32)
    assert leaves.order_by_leaf(guest_homes, probes).tolist() == [2, 5, 1, 0, 4, 3]


def test_guests_are_compared_with_others_but_not_with_those_of_their_home():
    x, guest_homes, probes = rows_in_leaves(rows_near_surface(1, 3000, 10), 20, guests=900)
    indices, squared = search_cell_with_guests(x, guest_homes, probes, 10)
    assert_well_formed(x, indices, squared)
    is_home = guest_homes < 0
    assert (indices[is_home] >= 0).all()
    is_filled = np.where(indices >= 0, guest_homes[indices], -2)
    guests = np.flatnonzero(~is_home)
    met_within_a_leaf = (is_filled[guests] == guest_homes[guests, None]) & (indices[guests] >= 0)
    assert not met_within_a_leaf.any()
    assert (is_filled[guests] == 1 - guest_homes[guests, None]).any(), "guests list guests of another home"
    exact = all_squared_distances(x)
    same_home = (guest_homes[:, None] == guest_homes) & (guest_homes >= 0)[:, None]
    exact[same_home] = np.inf
    assert share_of_nearest(squared[is_home], exact[is_home]) > 0.98
    assert share_of_nearest(squared[guests], exact[guests]) > 0.8


def test_rows_that_met_too_few_are_compared_with_the_whole_cell():
    """Leaves of four rows, and nobody probes another's: no row meets k others, nor leads to them."""
    x = rows_near_surface(2, 400, 6)
    indices, squared = leaves.search_home_rows(x, (np.arange(400, dtype=np.int32) // 4)[:, None], 15, 0)
    assert_well_formed(x, indices, squared)
    assert (indices >= 0).all()
    np.testing.assert_allclose(squared, np.sort(all_squared_distances(x), axis=1)[:, :15], rtol=1e-5)


@pytest.mark.parametrize("rows", [1, 2, 9, 10])
def test_slots_stay_empty_only_where_a_cell_has_too_few_rows(rows):
    x = rows_near_surface(3, rows, 4)
    guest_homes, probes = np.full(rows, -1, np.int32), np.arange(rows, dtype=np.int32)[:, None] % 3
    indices, _ = leaves.search_home_rows(x, probes, 9, 0)
    assert ((indices >= 0).sum(axis=1) == min(9, rows - 1)).all()
    guest_homes[rows // 2 + 1 :] = 3
    indices, _ = search_cell_with_guests(x, guest_homes, np.zeros_like(probes), 9)
    assert ((indices[guest_homes < 0] >= 0).sum(axis=1) == min(9, rows - 1)).all()


def test_guests_keep_nothing_beyond_the_reach_of_their_lists():
    x, guest_homes, probes = rows_in_leaves(rows_near_surface(1, 3000, 10), 20, guests=900)
    exact, is_home = all_squared_distances(x), guest_homes < 0
    exact[(guest_homes[:, None] == guest_homes) & ~is_home[:, None]] = np.inf
    kth_squared = np.sort(exact, axis=1)[:, 9]
    indices, squared = search_cell_with_guests(x, guest_homes, probes, 10, kth_squared)
    assert_well_formed(x, indices, squared)
    assert (squared[~is_home][indices[~is_home] >= 0] <= 1.05 * kth_squared[~is_home].repeat(10).max()).all()
    within = np.where(indices >= 0, squared, np.inf) <= kth_squared[:, None] * (1 + 1e-5)
    assert within[~is_home].mean() > 0.9
    assert within[is_home].mean() > 0.98
    nothing, lengths = search_cell_with_guests(x, guest_homes, probes, 10, np.where(is_home, np.inf, 0))
    assert (nothing[~is_home] < 0).all()
    assert np.isinf(lengths[~is_home]).all()


def test_guests_that_equal_rows_of_the_cell_meet_them():
    """Their lists reach no further than 0, and still lead from cell to cell."""
    x = np.full((600, 5), 0.3, np.float32)
    guest_homes, probes = np.full(600, -1, np.int32), np.zeros((600, 1), np.int32)
    guest_homes[300:] = 2
    indices, squared = search_cell_with_guests(x, guest_homes, probes, 10, 0.0)
    assert (indices[300:] >= 0).all()
    assert (squared == 0).all()
    assert (indices[:300] >= 300).any()


# many dims ---------------------------------------------------------------------------------------


def flat(seed: int, n: int, dims: int, latent: int) -> np.ndarray:
    """Draw rows near a plane: the same seed gives the same plane."""
    loadings = np.random.default_rng(0).normal(size=(latent, dims))
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, latent)) @ loadings + 0.1 * rng.normal(size=(n, dims))).astype(np.float32)


@pytest.mark.parametrize(
    "far", [None, pytest.param(1e6, marks=pytest.mark.slow), pytest.param(9.96921e36, marks=pytest.mark.slow), 3e38]
)
def test_wide_rows_are_found_beside_those_far_out(far):
    x = flat(2, 2000, 120, 8)
    if far:
        x[::500] = far
    x, _, probes = rows_in_leaves(x, 15)
    indices, squared = leaves.search_home_rows(x, probes, 10, 0)
    exact = np.minimum(all_squared_distances(x), leaves.MAX_SQUARED)
    np.fill_diagonal(exact, np.inf)
    assert (indices >= 0).all()
    np.testing.assert_allclose(np.take_along_axis(exact, indices.astype(np.int64), axis=1), squared, rtol=2e-6)
    assert share_of_nearest(squared, exact) > 0.95


# rows that are all the same ----------------------------------------------------------------------


def pieces_of(indices: np.ndarray) -> int:
    """Count the connected components of the graph that lists make."""
    n, k = indices.shape
    graph = sparse.csr_matrix((np.ones(n * k), indices.ravel(), np.arange(0, n * k + 1, k)), shape=(n, n))
    return connected_components(graph, directed=False)[0]


@pytest.mark.parametrize("exact_rows", [None, 500], ids=["one leaf", "crowded"])
@pytest.mark.parametrize("k", [2, 15])
def test_equal_rows_form_no_hub_and_no_islands(monkeypatch, exact_rows, k):
    if exact_rows:
        monkeypatch.setattr(leaves, "MAX_LEAF_ROWS", exact_rows)
        monkeypatch.setattr(leaves, "ROWS_AFTER_SPLIT", 250)
    x = np.full((3000, 5), 0.3, np.float32)
    indices, squared = search_one_leaf(x, k)
    assert (squared == 0).all()
    assert pieces_of(indices) == 1
    assert np.bincount(indices.ravel(), minlength=3000).max() < (6 if k > 2 else 8) * k
    assert (np.bincount(indices.ravel(), minlength=3000) > 0).mean() > 0.8


@pytest.mark.parametrize("exact_rows", [None, 300], ids=["leaves", "crowded"])
def test_groups_of_equal_rows_among_others(monkeypatch, exact_rows):
    """Half of the rows are copies of five, in cells of many leaves: each group is one piece, without hubs."""
    if exact_rows:
        monkeypatch.setattr(leaves, "MAX_LEAF_ROWS", exact_rows)
        monkeypatch.setattr(leaves, "ROWS_AFTER_SPLIT", 150)
    x = rows_near_surface(5, 4000, 8)
    x[2000:] = x[np.arange(2000) % 5]
    x = x[np.random.default_rng(0).permutation(4000)]
    x, _, probes = rows_in_leaves(x, 20)
    indices, squared = leaves.search_home_rows(x, probes, 10, 0)
    assert_well_formed(x, indices, squared)
    assert (indices >= 0).all()
    assert np.bincount(indices.ravel()).max() < 60
    assert share_of_nearest(squared, all_squared_distances(x)) > 0.97
    _, group, times = np.unique(x, axis=0, return_inverse=True, return_counts=True)
    for many in np.flatnonzero(times > 100):
        rows = np.flatnonzero(group == many)
        place = np.full(4000, -1)
        place[rows] = np.arange(len(rows))
        assert (squared[rows] == 0).all()
        assert pieces_of(place[indices[rows]]) == 1


def test_a_crowded_leaf_is_cut_by_distance(monkeypatch):
    monkeypatch.setattr(leaves, "MAX_LEAF_ROWS", 800)
    monkeypatch.setattr(leaves, "ROWS_AFTER_SPLIT", 200)
    x = rows_near_surface(6, 3000, 10)
    guest_homes, probes = np.full(3000, -1, np.int32), np.zeros((3000, 1), np.int32)
    guest_homes[2500:] = 4
    cut = leaves.split_crowded_leaves(x, guest_homes, probes, 0)
    assert np.bincount(cut[:2500, 0]).max() <= 800
    indices, squared = search_cell_with_guests(x, guest_homes, probes, 10)
    assert_well_formed(x, indices, squared)
    exact = all_squared_distances(x)
    exact[2500:, 2500:] = np.inf
    assert share_of_nearest(squared[:2500], exact[:2500]) > 0.97
    assert share_of_nearest(squared[2500:], exact[2500:]) > 0.9


def test_work_a_row_does_not_grow_with_the_rows_of_a_leaf(monkeypatch):
    """A tree of few leaves, as where memory holds no more: each leaf is cut again into leaves of the same size."""
    compared, real = [], leaves._compare_leaf

    def count(x, leaf_rows, others, *rest):
        compared.append(len(leaf_rows) * len(others))
        real(x, leaf_rows, others, *rest)

    monkeypatch.setattr(leaves, "_compare_leaf", count)
    a_row = {}
    for rows in (2000, 8000):
        x = rows_near_surface(11, rows, 12)
        probes = nearest_leaves(x, grow_tree(x[:500], 4, 0), 3)
        for most_rows in (400, None):
            compared.clear()
            _, squared = leaves.search_home_rows(x.copy(), probes, 10, 0, most_rows)
            a_row[rows, most_rows] = sum(compared) / rows
            assert share_of_nearest(squared[:1000], all_squared_distances(x)[:1000]) > 0.95
    assert a_row[8000, 400] < 1.25 * a_row[2000, 400]
    assert a_row[8000, None] > 3 * a_row[2000, None]


# one answer --------------------------------------------------------------------------------------


def test_the_answer_is_one_on_any_number_of_threads(monkeypatch):
    monkeypatch.setattr(leaves, "MAX_LEAF_ROWS", 300)
    x = rows_near_surface(7, 3000, 20)
    x[1000:1500] = x[0]
    rows = rows_in_leaves(x, 12, guests=500)
    answers = []
    for threads in (1, 2, 2):
        with threadpool_limits(limits=threads):
            indices, squared = search_cell_with_guests(*rows, 10)
        answers.append((indices.tobytes(), squared.tobytes()))
    assert answers[0] == answers[1] == answers[2]


def test_a_search_with_guests_does_not_change_its_arguments(monkeypatch):
    monkeypatch.setattr(leaves, "MAX_LEAF_ROWS", 300)
    x, guest_homes, probes = rows_in_leaves(rows_near_surface(8, 1000, 5), 2, guests=100)
    before = [array.copy() for array in (x, guest_homes, probes)]
    search_cell_with_guests(x, guest_homes, probes, 5)
    assert all(np.array_equal(a, b) for a, b in zip((x, guest_homes, probes), before, strict=True))


@pytest.mark.parametrize(
    ("rows", "dims"), [(700, 2000), pytest.param(3000, 400, marks=pytest.mark.slow), (16, 9), (17, 9), (33, 64)]
)
def test_large_leaves_are_compared_in_tiles(rows, dims):
    x = rows_near_surface(9, rows, dims)
    _, squared = search_one_leaf(x, 10)
    np.testing.assert_allclose(squared, np.sort(all_squared_distances(x), axis=1)[:, :10], rtol=1e-5)


# metrics -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("metric", sorted(vectors.EUCLIDEAN_ORDER_METRICS - {vectors.SPHERICAL}))
def test_distances_and_order_are_the_metrics(metric):
    """Rows of no direction too: as pynndescent has it, 0 from each other and 1 from all else."""
    rng = np.random.default_rng(0)
    x = (rng.normal(0.2, 1, (400, 12)) * rng.uniform(0.3, 3, (400, 1))).astype(np.float32)
    x[::20] = 2 if metric == "correlation" else 0
    placed = vectors.to_euclidean(x, metric)
    if metric in vectors.ANGULAR_METRICS:
        placed = vectors.add_zero_column(placed)
    indices, squared = search_one_leaf(placed, 8)
    distances = vectors.metric_from_squared(squared, metric)
    _, exact = search_exhaustively(x, np.arange(400), 8, metric, {})
    np.testing.assert_allclose(distances, exact, rtol=1e-4, atol=2e-6)
    distance = pynndescent_distance(vectors.BIT_METRICS.get(metric, metric))
    for row in (0, 1, 20, 399):
        assert distances[row] == pytest.approx([distance(x[row], x[j]) for j in indices[row]], rel=1e-4, abs=2e-6)
