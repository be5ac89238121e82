"""Codes of rows: bounds on the distances that are computed from them."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numba import njit

from dumap.kernels import codes
from dumap.kernels.products import LEFT_OFFSET, LEFT_TYPE


@njit
def _write_lower_bounds(coded, pairs, out):
    """Fill in the lower bound of each pair's distance."""
    for p in range(len(pairs)):
        out[p] = codes.squared_lower_bound(coded, pairs[p, 0], pairs[p, 1])


def lower_bounds(x: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return lower bounds of the squared distances of pairs, by their codes."""
    out = np.empty(len(pairs), np.float32)
    _write_lower_bounds(codes.encode_rows(x), pairs, out)
    return out


def squared_distances_of(x: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Return the squared distances of pairs, in float64."""
    differences = x[pairs[:, 0]].astype(np.float64) - x[pairs[:, 1]]
    return np.einsum("ij,ij->i", differences, differences)


@given(
    st.integers(0, 999),
    st.integers(codes.MIN_CODE_COLUMNS, 200),
    st.sampled_from([0, 1e-12, 1, 1e6, 1e12]),
    st.booleans(),
)
def test_no_pair_is_nearer_than_its_bound(seed, dims, scale, outliers):
    rng = np.random.default_rng(seed)
    x = (scale * rng.normal(size=(60, dims)) + 3 * scale).astype(np.float32)
    if outliers:
        x[rng.integers(0, 60, 3)] *= 1e4
    pairs = rng.integers(0, 60, (300, 2))
    assert (lower_bounds(x, pairs) <= squared_distances_of(x, pairs) * (1 + 1e-5)).all()


def test_bounds_are_close_to_the_distances():
    rng = np.random.default_rng(0)
    x, pairs = rng.normal(size=(500, 300)).astype(np.float32), rng.integers(0, 500, (2000, 2))
    pairs = pairs[pairs[:, 0] != pairs[:, 1]]
    assert np.median(lower_bounds(x, pairs) / squared_distances_of(x, pairs)) > 0.95


@pytest.mark.parametrize("dims", [1, codes.MIN_CODE_COLUMNS - 1, codes.MAX_CODE_COLUMNS + 5])
def test_few_columns_are_not_coded_and_of_many_the_first(dims):
    x = np.random.default_rng(0).normal(size=(5, dims)).astype(np.float32)
    assert codes.encode_rows(x).values.shape == (5, codes.MAX_CODE_COLUMNS if dims > codes.MAX_CODE_COLUMNS else 0)


def test_codes_fill_whole_lanes():
    coded = codes.encode_rows(np.random.default_rng(0).normal(size=(5, 70)).astype(np.float32))
    assert coded.values.shape == (5, 128)
    assert (coded.values[:, :70].any(axis=1)).all()
    assert not coded.values[:, 70:].any()
    assert coded.squared_lengths.tolist() == np.square(coded.values.astype(int)).sum(axis=1).tolist()
    assert coded.shifted_sums.tolist() == (2 * LEFT_OFFSET * coded.values.astype(int).sum(axis=1)).tolist()


@pytest.mark.filterwarnings("error")
def test_rows_at_the_ends_of_the_range_have_bounds_that_say_nothing():
    x = np.random.default_rng(0).normal(size=(300, 40)).astype(np.float32)
    x[::50], x[7] = 3e38, -3e38
    pairs = np.array([[0, 1], [7, 50], [0, 50], [1, 2]])
    assert (lower_bounds(x, pairs) <= np.minimum(squared_distances_of(x, pairs), codes.MAX_SQUARED) * (1 + 1e-5)).all()


def test_rows_that_are_all_the_same_are_no_distance_apart():
    x = np.full((50, 64), 0.1, np.float32)
    assert (lower_bounds(x, np.array([[0, 1], [3, 9]])) == 0).all()


# both sides of products --------------------------------------------------------------------------


def encode_both_sides(x: np.ndarray, width: int, centre: np.ndarray, unit: np.float32) -> tuple[np.ndarray, ...]:
    """Code rows for both sides; return their codes' squared distances, in units, and the errors."""
    n = len(x)
    left, packs = np.zeros((n, width), LEFT_TYPE), np.zeros((-(-n // 16), width // 4, 16, 4), np.int8)
    lengths, errors = np.zeros((2, n), np.int32), np.zeros((2, n), np.float32)
    codes.encode_left_rows(x, np.arange(n), centre, unit, left, lengths[0], errors[0])
    codes.encode_right_packs(x, np.arange(n), centre, unit, packs, lengths[1], errors[1])
    assert np.array_equal(*errors)
    right = packs.transpose(0, 2, 1, 3).reshape(-1, width)[:n].astype(np.int64)
    assert np.array_equal(right, left.astype(np.int64) - LEFT_OFFSET), "both sides hold the same codes"
    return lengths[0][:, None] + lengths[1] - 2 * (left.astype(np.int64) @ right.T), right, errors[0]


@given(st.integers(0, 999), st.integers(1, 90), st.sampled_from([1e-12, 1, 1e6]), st.booleans())
def test_lengths_less_twice_the_product_are_the_codes_distances(seed, dims, scale, outliers):
    rng = np.random.default_rng(seed)
    x = (scale * rng.normal(size=(20, dims)) + 3 * scale).astype(np.float32)
    if outliers:
        x[3], x[8] = 1e4 * x[3], 3e38
    width = -(-dims // 4) * 4
    code_squared, coded, errors = encode_both_sides(x, width, *(centre_and_unit := codes.code_scale(x)))
    assert np.array_equal(code_squared, np.square(coded[:, None] - coded).sum(axis=2))
    centre, unit = centre_and_unit
    with np.errstate(over="ignore"):
        decoding_errors = np.linalg.norm(x.astype(np.float64) - centre - float(unit) * coded[:, :dims], axis=1)
    assert (errors >= decoding_errors * (1 - 1e-6) - 1e-6 * scale).all()
    finite = np.isfinite(errors)
    assert finite.sum() > 10
    assert (errors[finite] <= unit * np.sqrt(width)).all()
    assert not (outliers and finite[[3, 8]].any())


def test_columns_beyond_those_that_are_coded_count_as_error():
    x = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32)
    x[4, 8:] += 100
    centre, unit = codes.code_scale(x[:, :8])
    _, _, errors = encode_both_sides(x, 8, np.concatenate([centre, np.zeros(4, np.float32)]), unit)
    assert np.isinf(errors[4])


@pytest.mark.filterwarnings("error")
def test_rows_that_are_all_the_same_have_a_unit():
    centre, unit = codes.code_scale(np.full((5, 3), 3e38, np.float32))
    assert unit > 0
    assert (centre == np.float32(3e38)).all()
    x = np.zeros((5, 3), np.float32)
    x[0] = 1
    assert 0.001 < codes.code_scale(x)[1] < 0.1, "one that is not tells the unit"
