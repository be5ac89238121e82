import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from dumap.kernels import codes


@njit
def _bounds(coded, pairs, out):
    for p in range(len(pairs)):
        out[p] = codes.least_squared(coded, pairs[p, 0], pairs[p, 1])


def bounds(x: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    out = np.empty(len(pairs), np.float32)
    _bounds(codes.encode(x), pairs, out)
    return out


def squared(x: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    gaps = x[pairs[:, 0]].astype(np.float64) - x[pairs[:, 1]]
    return np.einsum("ij,ij->i", gaps, gaps)


@given(st.integers(0, 999), st.integers(codes.FEWEST, 200), st.sampled_from([0, 1e-12, 1, 1e6, 1e12]), st.booleans())
def test_no_pair_is_nearer_than_its_bound(seed, dims, scale, outliers):
    rng = np.random.default_rng(seed)
    x = (scale * rng.normal(size=(60, dims)) + 3 * scale).astype(np.float32)
    if outliers:
        x[rng.integers(0, 60, 3)] *= 1e4
    pairs = rng.integers(0, 60, (300, 2))
    assert (bounds(x, pairs) <= squared(x, pairs) * (1 + 1e-5)).all()


def test_bounds_are_close_to_the_distances():
    rng = np.random.default_rng(0)
    x, pairs = rng.normal(size=(500, 300)).astype(np.float32), rng.integers(0, 500, (2000, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    assert np.median(bounds(x, pairs) / squared(x, pairs)) > 0.95


@pytest.mark.parametrize("dims", [1, codes.FEWEST - 1, codes.MOST + 5])
def test_few_columns_are_not_coded_and_of_many_the_first(dims):
    x = np.random.default_rng(0).normal(size=(5, dims)).astype(np.float32)
    assert codes.encode(x).values.shape == (5, codes.MOST if dims > codes.MOST else 0)


@pytest.mark.filterwarnings("error")
def test_rows_at_the_ends_of_the_range_have_bounds_that_say_nothing():
    x = np.random.default_rng(0).normal(size=(300, 40)).astype(np.float32)
    x[::50], x[7] = 3e38, -3e38
    pairs = np.array([[0, 1], [7, 50], [0, 50], [1, 2]])
    assert (bounds(x, pairs) <= np.minimum(squared(x, pairs), codes.FARTHEST) * (1 + 1e-5)).all()


def test_rows_that_are_all_the_same_are_no_distance_apart():
    x = np.full((50, 64), 0.1, np.float32)
    assert (bounds(x, np.array([[0, 1], [3, 9]])) == 0).all()
