import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumap.kernels.exact import ExactSearch
from dumap.kernels.vectors import to_euclidean

K = 7


def search_in_tiles(
    queries: np.ndarray,
    x: np.ndarray,
    ids: np.ndarray,
    skipped_ids: np.ndarray,
    is_angular: bool = False,
    tile_rows=250,
):
    """Search exactly, tile by tile; return lists and distances."""
    search = ExactSearch(queries, is_angular)
    indices, distances = np.full((len(queries), K), -1, np.int64), np.full((len(queries), K), np.inf, np.float32)
    for low in range(0, len(x), tile_rows):
        search.keep_nearest(x[low : low + tile_rows], ids[low : low + tile_rows], skipped_ids, indices, distances)
    return indices, distances


def exact_nearest(queries, x, ids, skipped_ids, is_angular=False):
    """Return the same by all distances, in float64."""
    q, y = queries.astype(np.float64), x.astype(np.float64)
    d = ((q[:, None] - y) ** 2).sum(axis=2)
    if is_angular:
        is_zero = ~q.any(axis=1)[:, None], ~y.any(axis=1)[None]
        d[is_zero[0] ^ is_zero[1]] = 2
    with np.errstate(over="ignore"):
        d = d.astype(np.float32)
    d[(ids[None] == skipped_ids[:, None]) | (ids < 0)[None].repeat(len(q), 0)] = np.inf
    order = np.lexsort((ids[None].repeat(len(q), 0), d), axis=1)[:, :K]
    return ids[order], np.take_along_axis(d, order, 1)


def clustered_rows(seed: int, rows: int, dims: int) -> np.ndarray:
    """Return rows around a few centres."""
    rng = np.random.default_rng(seed)
    return (3 * rng.normal(size=(9, dims))[rng.integers(0, 9, rows)] + rng.normal(size=(rows, dims))).astype(np.float32)


@given(st.integers(0, 999), st.sampled_from([3, 31, 32, 33, 70, 150]), st.sampled_from([1e-9, 1, 1e8]), st.booleans())
def test_the_nearest_of_all_rows_are_found(seed, dims, scale, outliers):
    x = np.float32(scale) * clustered_rows(seed, 700, dims)
    if outliers:
        x[::200] *= np.float32(1e6)
    ids = np.random.default_rng(seed).permutation(700)
    queries, skipped_ids = x[:9], ids[:9]
    indices, distances = search_in_tiles(queries, x, ids, skipped_ids)
    expected, expected_distances = exact_nearest(queries, x, ids, skipped_ids)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-6)
    assert (indices == expected).mean() > 0.99  # but for distances that differ by rounding alone


@pytest.mark.parametrize("dims", [8, 64])
def test_of_rows_equally_far_those_with_the_least_ids_are_taken(dims):
    x = np.repeat(clustered_rows(0, 30, dims), 40, axis=0)
    ids = np.random.default_rng(1).permutation(len(x))
    indices, distances = search_in_tiles(x[:5], x, ids, ids[:5])
    for q in range(5):
        equal = np.sort(ids[(x == x[q]).all(axis=1)])
        assert indices[q].tolist() == equal[equal != ids[q]][:K].tolist()
    assert (distances == 0).all()


@pytest.mark.parametrize("dims", [8, 64])
def test_rows_that_are_left_out_may_hold_anything(dims):
    x, ids = clustered_rows(0, 900, dims), np.arange(900)
    x[::3], ids[::3] = np.nan, -1
    queries = clustered_rows(0, 900, dims)[:6]
    indices, _ = search_in_tiles(queries, x, ids, np.full(6, -1))
    kept = ids >= 0
    assert np.array_equal(indices, exact_nearest(queries, x[kept], ids[kept], np.full(6, -1))[0])


@pytest.mark.parametrize("dims", [8, 64])
def test_zero_rows_are_at_a_right_angle_to_all_others(dims):
    x, ids = clustered_rows(3, 800, dims), np.arange(800)
    x[[0, 5, 700]] = 0
    x = to_euclidean(x, "cosine")
    indices, distances = search_in_tiles(x[:6], x, ids, ids[:6], is_angular=True)
    expected, expected_distances = exact_nearest(x[:6], x, ids, ids[:6], is_angular=True)
    np.testing.assert_allclose(distances, expected_distances, rtol=1e-5, atol=1e-6)
    assert np.array_equal(indices, expected)
    assert indices[0, :2].tolist() == [5, 700]
    assert (distances[0, 2:] == 2).all()


def test_rows_that_codes_tell_little_of_are_compared_by_products():
    """One column is a thousand times as wide as the others, which alone decide who is near."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(6000, 40)).astype(np.float32)
    x[:, 0] = 1000 * (rng.random(6000) < 0.5)
    search = ExactSearch(x[:20], False)
    indices, distances = np.full((20, K), -1, np.int64), np.full((20, K), np.inf, np.float32)
    ids = np.arange(6000)
    for low in range(0, 6000, 2000):
        search.keep_nearest(x[low : low + 2000], ids[low : low + 2000], ids[:20], indices, distances)
    assert not search._uses_codes
    assert np.array_equal(indices, exact_nearest(x[:20], x, ids, ids[:20])[0])


@pytest.mark.parametrize("dims", [8, 64])
def test_listed_rows_are_measured(dims):
    x = clustered_rows(0, 100, dims)
    columns = np.array([[3, -1, 99], [-1, -1, 0]])
    out = np.full((2, 3), np.inf, np.float32)
    ExactSearch(x[:2], False).measure_listed(x, columns, out)
    for q, s in zip(*np.nonzero(columns >= 0), strict=True):
        assert out[q, s] == pytest.approx(((x[q].astype(float) - x[columns[q, s]]) ** 2).sum(), rel=1e-6)
    assert np.isinf(out[columns < 0]).all()
