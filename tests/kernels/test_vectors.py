"""Rows as they are embedded: checks, casts, hashes and the maps of metrics to Euclidean distances."""

import itertools

import numpy as np
import pytest
from helpers import mark_slow_except
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from umap_learn import pynndescent_distance

from dumap.kernels import vectors


def test_check_finds_what_is_not_finite_and_what_is_zero():
    x = np.ones((7, 3), np.float32)
    x[1, 2], x[2, 0], x[3, 1] = np.nan, np.inf, -np.inf
    x[4], x[5] = 0, (0, -0.0, np.finfo(np.float32).smallest_subnormal)
    x[6] = (0, 0, -0.0)
    finite, zero = vectors.find_finite_and_zero(x)
    assert finite.tolist() == [True, False, False, False, True, True, True]
    assert zero.tolist() == [False, False, False, False, True, False, True]


@pytest.mark.parametrize("metric", ["cosine", "correlation"])
def test_to_euclidean_orders_rows_as_the_metric_does(metric):
    x = np.random.default_rng(0).normal(3, 1, (60, 8)).astype(np.float32) * np.arange(1, 61, dtype=np.float32)[:, None]
    mapped = vectors.to_euclidean(x, metric)
    assert mapped.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(mapped, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(cdist(mapped, mapped, "sqeuclidean") / 2, cdist(x, x, metric), atol=1e-6)


def test_to_euclidean_leaves_other_metrics_alone():
    x = np.arange(6, dtype=np.float32).reshape(2, 3)
    assert vectors.to_euclidean(x, "manhattan") is x


@pytest.mark.parametrize(("metric", "row"), [("cosine", [0, 0, 0]), ("correlation", [2, 2, 2])])
def test_rows_without_direction_become_zero(metric, row):
    assert vectors.to_euclidean(np.array([row, [1, 2, 3]], np.float32), metric)[0].tolist() == [0, 0, 0]


@pytest.mark.parametrize("metric", ["cosine", "correlation"])
def test_to_euclidean_takes_each_row_by_itself(metric):
    x = np.random.default_rng(1).normal(size=(300, 1000)).astype(np.float32)
    whole = vectors.to_euclidean(x, metric)
    for start, stop in [(0, 1), (7, 8), (3, 250), (299, 300)]:
        assert vectors.to_euclidean(x[start:stop], metric).tobytes() == whole[start:stop].tobytes()


def test_rows_without_direction_are_given_one_at_a_right_angle_to_all():
    x = vectors.to_euclidean(np.array([[3, 4], [0, 0], [0, -0.0], [1, 0]], np.float32), "cosine")
    extended = vectors.add_zero_column(x)
    assert extended.dtype == np.float32
    assert extended[:, 2].tolist() == [0, 1, 1, 0]
    assert (extended[:, :2] == x).all()
    np.testing.assert_allclose(np.linalg.norm(extended, axis=1), 1, rtol=1e-6)
    assert vectors.add_zero_column(extended) is extended


@pytest.mark.parametrize("metric", sorted(vectors.EUCLIDEAN_ORDER_METRICS - {vectors.SPHERICAL}))
def test_squared_distances_in_to_euclidean_are_the_metrics_distances(metric):
    x = np.random.default_rng(2).normal(1, 2, (30, 7)).astype(np.float32)
    x[::6] = 5 if metric == "correlation" else 0
    placed = vectors.to_euclidean(x, metric)
    if metric in vectors.ANGULAR_METRICS:
        placed = vectors.add_zero_column(placed)
    distances = vectors.metric_from_squared(cdist(placed, placed, "sqeuclidean"), metric)
    distance = pynndescent_distance(vectors.BIT_METRICS.get(metric, metric))
    expected = [[distance(a, b) for b in x] for a in x]
    np.testing.assert_allclose(distances, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("extent", [1.0, 0.3, 784.0, 1e25, 3.4e38, 1e-30, 1e-44, 0.0])
def test_the_power_near_an_extent_brings_it_near_one(extent):
    power = vectors.scale_to_one(extent)
    assert power.dtype == np.float32
    assert np.frexp(power)[0] == 0.5
    assert extent * float(power) < 4
    assert extent < 1e-36 or extent * float(power) >= 0.5


# equal rows --------------------------------------------------------------------------------------

words_of_key = st.integers(0, 3) | st.sampled_from([2**63, 2**64 - 1])


def reference_counts(keys):
    """Return each distinct key's first row and how often it is there, ascending."""
    tally = {}
    for row, key in enumerate(keys):
        first, times = tally.get(key, (row, 0))
        tally[key] = first, times + 1
    return sorted((key, *counted) for key, counted in tally.items())


def columns(keys, words):
    """Return keys as columns of so many words."""
    return np.array(keys, np.uint64).reshape(-1, words).T


@pytest.mark.parametrize("words", [1, 2])
@given(data=st.data())
def test_tallies_join_to_the_tally_of_all(words, data):
    keys = data.draw(st.lists(st.tuples(*[words_of_key] * words), max_size=30))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(keys)), max_size=3)))
    table = columns([], words), np.empty(0, np.int32), np.empty(0, np.int32)
    for low, high in zip([0, *cuts], [*cuts, len(keys)], strict=True):
        more = columns(keys[low:high], words), np.arange(low, high, dtype=np.int32), np.ones(high - low, np.int32)
        joined = [np.concatenate(both, axis=-1) for both in zip(table, vectors.count_keys(*more), strict=True)]
        table = vectors.count_keys(*joined)
    entries = list(zip(map(tuple, table[0].T.tolist()), table[1].tolist(), table[2].tolist(), strict=True))
    assert entries == reference_counts(keys)
    assert (table[1].dtype, table[2].dtype) == (np.int32, np.int32)


@pytest.mark.parametrize("words", [1, 2])
@given(data=st.data())
def test_find_finds_keys_and_no_others(words, data):
    listed, keys = (data.draw(st.lists(st.tuples(*[words_of_key] * words), max_size=20)) for _ in range(2))
    listed = sorted(set(listed))
    expected = [listed.index(key) if key in listed else -1 for key in keys]
    assert vectors.look_up_keys(columns(keys, words), columns(listed, words)).tolist() == expected


def test_squares_are_summed_in_any_order():
    x = np.random.default_rng(0).normal(50, 1, (2, 784)).astype(np.float32)
    assert vectors.squared_distance(x[0], x[1]) == pytest.approx(cdist(x[:1], x[1:], "sqeuclidean")[0, 0], rel=1e-5)


@given(st.integers(0, 999), st.integers(1, 80))
def test_ordered_distances_are_summed_in_lanes_that_are_halved(seed, dims):
    a, b = np.random.default_rng(seed).normal(size=(2, dims)).astype(np.float32)
    whole = dims - dims % vectors.LANES
    lanes = np.zeros(vectors.LANES, np.float32)
    for low in range(0, whole, vectors.LANES):
        lanes += (a - b)[low : low + vectors.LANES] ** 2
    while len(lanes) > 1:
        lanes = lanes[: len(lanes) // 2] + lanes[len(lanes) // 2 :]
    total = lanes[0]
    for gap in (a - b)[whole:]:
        total += gap * gap
    assert vectors.ordered_distance(a, b) == total


# metrics of shares and ranks ----------------------------------------------------------------------


@pytest.mark.parametrize(
    "metric", mark_slow_except([*sorted(vectors.DIVERGENCES), vectors.SPEARMAN], *vectors.DIVERGENCES)
)
def test_rows_of_any_size_lie_near_those_that_the_metric_calls_near(metric):
    rng = np.random.default_rng(5)
    kinds = rng.gamma(1.0, size=(6, 12)) + 0.01
    x = (kinds[np.arange(60) % 6] * rng.uniform(0.9, 1.1, (60, 12)) * 10.0 ** rng.uniform(-3, 3, (60, 1))).astype("f4")
    placed = vectors.to_euclidean(x, metric)
    near = cdist(placed, placed).argsort(axis=1)[:, 1:6]
    distance = pynndescent_distance(metric)
    expected = np.array([[distance(a, b) for b in x] for a in x]).argsort(axis=1)[:, 1:6]
    assert np.mean([len(np.intersect1d(*both)) for both in zip(near, expected, strict=True)]) > 4
    zero = np.zeros((1, 12), np.float32)
    assert np.isfinite(vectors.to_euclidean(zero, metric)).all()


# what float32 does not hold ----------------------------------------------------------------------


@pytest.mark.parametrize("dtype", ["i4", "u4", "i8", "u8", "f8"])
def test_differences_far_from_zero_are_as_exact_as_near_it(dtype):
    top = 2**52 if dtype == "f8" else np.iinfo(dtype).max - 100
    steps = np.random.default_rng(3).integers(0, 100, (50, 4))
    centre = np.full(4, top + 50, dtype)
    assert (
        vectors.prepare_rows(steps.astype(dtype) + np.array(top, dtype), "euclidean", centre).tolist()
        == (steps - 50.0).tolist()
    )


@pytest.mark.parametrize("dtype", ["i8", "u8", "i4"])
def test_no_difference_of_integers_overflows(dtype):
    least, most = np.iinfo(dtype).min, np.iinfo(dtype).max
    x = np.array([[least, most, 0]], dtype)
    for centre in (least, most, 7):
        shifted = vectors.prepare_rows(x, "euclidean", np.full(3, centre, dtype))
        assert shifted.tolist() == [[float(np.float32(value - centre)) for value in (int(least), int(most), 0)]]


def test_a_difference_beyond_float32_is_its_greatest_number():
    x = np.array([[3e38, -3e38, 1.0]])
    most = np.finfo(np.float32).max
    assert vectors.prepare_rows(x, "euclidean", np.array([-3e38, 3e38, 1.0])).tolist() == [[most, -most, 0]]


@pytest.mark.parametrize("dtype", ["f4", "f2", "u1", "i2", "?"])
def test_narrow_numbers_are_cast_alone(dtype):
    assert not vectors.exceeds_float32(np.dtype(dtype))
    x = np.arange(12).reshape(3, 4).astype(dtype)
    assert vectors.prepare_rows(x, "euclidean", None).tobytes() == x.astype(np.float32).tobytes()


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (np.array([[0.5, -3.0], [0.1, 1.0], [np.nan, 0.1], [1e300, 0.1], [-0.0, 2.0**80]]), [0, 1, 0, 0, 0]),
        (np.array([[2**24, -(2**24)], [2**24 + 1, 0], [0, -(2**24) - 1]], np.int64), [0, 1, 1]),
        (np.array([[2**64 - 1, 0], [5, 6]], np.uint64), [1, 0]),
    ],
    ids=["float64", "int64", "uint64"],
)
def test_rows_are_told_that_a_cast_changes(values, expected):
    assert vectors.changed_by_cast(values, vectors.as_float32(values)).tolist() == [bool(row) for row in expected]


def test_the_middle_is_made_of_values_and_heeds_no_outlier():
    rows = np.array([[1e30, 3], [2, 1], [3, -(10.0**9)], [1, 2]])
    assert vectors.lower_median(rows).tolist() == [2, 1]
    assert vectors.lower_median(rows[:1]).tolist() == [1e30, 3]


# the sphere --------------------------------------------------------------------------------------


def test_angles_on_the_sphere_are_haversine_distances():
    rng = np.random.default_rng(4)
    x = np.stack([np.arcsin(rng.uniform(-1, 1, 60)), rng.uniform(-np.pi, np.pi, 60)], axis=1)
    x[:2], x[2:4] = [[0.3, np.pi - 1e-4], [0.3, 1e-4 - np.pi]], [[np.pi / 2, 0.5], [np.pi / 2 - 1e-4, -2.0]]
    centre = vectors.to_sphere(x[7:8])[0]
    placed = vectors.prepare_rows(x, "haversine", centre)
    distance = pynndescent_distance("haversine")
    expected = np.array([[distance(a, b) for b in x] for a in x])
    distances = vectors.metric_from_squared(cdist(placed, placed, "sqeuclidean"), "haversine")
    np.testing.assert_allclose(distances, expected, rtol=1e-3, atol=1e-6)
    assert distances[0, 1] == pytest.approx(2e-4 * np.cos(0.3), rel=1e-2)
    assert distances[2, 3] == pytest.approx(1e-4, rel=1e-2)
    circles = [[vectors.great_circle(a, b) for b in placed] for a in placed]
    np.testing.assert_allclose(circles, distances, rtol=1e-6, atol=1e-9)


def test_places_a_metre_apart_are_told_apart():
    metre = 1 / 6_371_000
    north = np.arange(50)[:, None] * [metre, 0] + [0.9, 0.2]
    placed = vectors.prepare_rows(north, "haversine", vectors.to_sphere(north[20:21])[0])
    steps = [vectors.great_circle(a, b) / metre for a, b in itertools.pairwise(placed)]
    np.testing.assert_allclose(steps, 1, rtol=1e-4)


@pytest.mark.parametrize("metric", sorted(vectors.EUCLIDEAN_ORDER_METRICS))
def test_limits_hold_all_that_is_as_near_and_little_more(metric):
    squared = np.linspace(0, 3.9, 400)
    limits = vectors.squared_from_metric(vectors.metric_from_squared(squared, metric), metric)
    assert (limits >= squared).all()
    np.testing.assert_allclose(limits, squared, rtol=1e-4, atol=1e-5)


def test_beyond_the_other_side_of_the_world_nothing_is_left_out():
    assert vectors.squared_from_metric(np.array([np.pi, 9.0]), "haversine").tolist() == [np.inf, np.inf]


def test_bits_become_numbers_and_their_squared_distance_counts_those_that_differ():
    bits = np.random.default_rng(0).random((20, 24)) < 0.5
    packed_bits = np.packbits(bits, axis=1)
    for values in (packed_bits, packed_bits.astype(np.float32)):
        assert np.array_equal(vectors.unpack_bits(values, "bit_jaccard"), bits)
        x = vectors.prepare_rows(values, "bit_hamming", None)
        assert x.shape == (20, vectors.prepared_dims("bit_hamming", 3))
        assert x.dtype == np.float32
    squared = ((x[0] - x[1:]) ** 2).sum(axis=1)
    counts = vectors.metric_from_squared(squared, "bit_hamming")
    assert counts.tolist() == (bits[0] != bits[1:]).sum(axis=1).tolist()
    assert (vectors.squared_from_metric(counts, "bit_hamming") >= squared).all()
    assert vectors.unpack_bits(packed_bits, "hamming") is packed_bits
