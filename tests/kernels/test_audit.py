"""Which neighbours count as listed, and the interval of the recall."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dumap.kernels import audit


@given(st.integers(0, 9999), st.integers(1, 6), st.floats(0, 1))
def test_as_many_are_found_as_are_near_enough(seed, k, lost):
    """Of whole distances, which tie: a list holds as many right ones as it names rows up to the k-th distance."""
    rng = np.random.default_rng(seed)
    distances = rng.integers(0, 4, (3, 12)).astype(np.float32)
    exact = np.argsort(distances, axis=1, kind="stable")[:, :k]
    listed = np.stack([rng.permutation(12)[:k] for _ in range(3)])
    listed[rng.random(listed.shape) < lost] = -1
    listed_distances = np.where(listed >= 0, np.take_along_axis(distances, listed, 1), np.inf).astype(np.float32)
    limits = np.take_along_axis(distances, exact, 1)[:, -1].astype(np.float64)
    is_listed = audit.is_listed(listed, listed_distances, exact, limits)
    right = (listed >= 0) & (listed_distances <= limits[:, None])
    assert np.array_equal(is_listed.sum(axis=1), right.sum(axis=1))
    by_id = (exact[:, :, None] == listed[:, None, :]).any(axis=2)
    assert is_listed[by_id].all(), "what is listed is found"
    for q in range(3):
        others = is_listed[q][~by_id[q]]
        assert (np.diff(others.astype(int)) >= 0).all(), "others stand for the farthest"


def test_equal_rows_are_as_good_as_each_other():
    exact = np.array([[1, 2, 3]])
    limits = np.array([2.0 * (1 + 1e-6)])
    for row, distance, expected in [(9, 2.0, [1, 1, 1]), (9, np.float32(2.0000005), [1, 1, 1]), (9, 2.1, [1, 1, 0])]:
        is_listed = audit.is_listed(np.array([[1, 2, row]]), np.array([[0.5, 1, distance]], np.float32), exact, limits)
        assert is_listed[0].tolist() == [bool(entry) for entry in expected]


def rows_of(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Make a population's recalls."""
    n = 20_000
    if kind == "even":
        return rng.binomial(15, 0.97, n) / 15
    if kind == "all or nothing":
        return (rng.random(n) < 0.95).astype(float)
    if kind == "nearly all":
        return rng.binomial(15, 0.9995, n) / 15
    return np.where(rng.random(n) < 0.003, 0.0, 1.0)  # a few rows lost wholly


@pytest.mark.parametrize("count", [10, 300, 1000])
@pytest.mark.parametrize("kind", ["even", "all or nothing", "nearly all", "lost"])
def test_the_interval_holds_the_mean_19_times_in_20(kind, count):
    rng = np.random.default_rng(0)
    population, held, tries = rows_of(kind, rng), 0, 1000
    for _ in range(tries):
        low, high = audit.confidence_interval(rng.choice(population, count, replace=False), len(population))
        held += low <= population.mean() <= high
    assert held >= 0.93 * tries


def test_the_interval_is_narrow_where_rows_are_alike():
    low, high = audit.confidence_interval(np.random.default_rng(0).binomial(15, 0.97, 1000) / 15, 10**6)
    assert high - low < 0.012, "rows of fifteen neighbours each tell more than a row that counts as one"


@given(st.integers(0, 9999), st.integers(0, 40), st.integers(0, 40))
def test_the_interval_holds_its_own_mean_and_shrinks_to_it(seed, count, more):
    values = np.random.default_rng(seed).binomial(5, 0.8, count) / 5
    low, high = audit.confidence_interval(values, count + more)
    assert 0 <= low <= high <= 1
    if not count:
        assert (low, high) == (0, 1)
    elif not more:
        assert low == high == pytest.approx(values.mean())
    else:
        wide = audit.confidence_interval(values, count + 10 * more + 1)
        assert wide[0] <= low <= values.mean() + 1e-12
        assert values.mean() - 1e-12 <= high <= wide[1]
