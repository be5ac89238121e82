"""Principal axes: how much of the variance they hold, and that projections do not move rows apart."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import cdist

from dumap.kernels import axes


def flat(seed: int, n: int, dims: int, latent: int) -> np.ndarray:
    """Draw rows near a plane: the same seed gives the same plane."""
    loadings = np.random.default_rng(0).normal(size=(latent, dims))
    rng = np.random.default_rng(seed)
    return (rng.normal(size=(n, latent)) @ loadings + 0.1 * rng.normal(size=(n, dims))).astype(np.float32)


def axes_of(x: np.ndarray, leaf_of: np.ndarray | None = None) -> np.ndarray:
    """Return the axes of rows, given each row's leaf; one leaf by default."""
    leaf_of = np.zeros(len(x), int) if leaf_of is None else leaf_of
    middles = np.array([x[leaf_of == leaf].mean(axis=0) for leaf in range(leaf_of.max() + 1)])
    return axes.find_principal_axes(x - middles[leaf_of], 0.95)


def test_axes_carry_what_they_should_where_they_are_few():
    x = flat(0, 5000, 120, 10)
    principal = axes_of(x)
    placed = x - x.mean(axis=0)
    assert principal.dtype == np.float32
    assert principal.shape[1] <= 10
    np.testing.assert_allclose(principal.T @ principal, np.eye(principal.shape[1]), atol=1e-5)
    assert ((placed @ principal) ** 2).sum() >= 0.95 * (placed**2).sum()
    assert ((placed @ principal[:, :-1]) ** 2).sum() < 0.95 * (placed**2).sum()
    more = axes.find_principal_axes(placed, 0.95, count_multiple=16)
    assert more.shape == (120, 16)
    assert np.array_equal(more[:, : principal.shape[1]], principal)


def test_axes_are_those_within_leaves():
    """One column of a larger unit parts the leaves, and tells no neighbours apart."""
    x = np.random.default_rng(0).normal(size=(3000, 100)).astype(np.float32)
    leaf_of = np.arange(3000) % 10
    x[:, 0] += 1e3 * leaf_of
    assert axes_of(x).shape == (100, 1)
    assert axes_of(x, leaf_of).shape == (100, 0)


@pytest.mark.parametrize(
    "x",
    [
        np.random.default_rng(0).normal(size=(2000, 120)).astype(np.float32),
        flat(0, 3000, axes.MIN_AXES_DIMS - 1, 3),
        flat(0, 470, 120, 3),
        np.ones((1000, 120), np.float32),
    ],
    ids=["round", "of few dims", "few rows", "all the same"],
)
def test_there_are_no_axes_of(x):
    assert axes_of(x).shape == (x.shape[1], 0)


def test_no_two_rows_are_further_apart_on_the_axes():
    x = flat(1, 700, 120, 10)
    x[3] = 1e7
    principal = axes_of(flat(2, 3000, 120, 10))
    narrow = axes.project_on_axes(x, np.zeros(120, np.float32), principal)
    assert narrow.shape == (700, principal.shape[1])
    near = np.flatnonzero(np.arange(700) != 3)
    wide, less = (cdist(rows, rows, "sqeuclidean") for rows in (x[near], narrow[near]))
    others = wide > 0
    assert (less[others] <= wide[others] * 1.001).all()
    assert np.median(less[others] / wide[others]) > 0.85


# one row at a time -------------------------------------------------------------------------------


def call_concurrently(row: np.ndarray, origin: np.ndarray, onto: np.ndarray) -> np.ndarray:
    """Project a row by sums in the order of the dims."""
    total = np.zeros(onto.shape[1], np.float32)
    for value, start, axis in zip(row, origin, onto, strict=True):
        total = total + (value - start) * axis
    return total


@pytest.mark.slow
@given(st.integers(0, 999), st.integers(1, 40), st.integers(1, 70), st.integers(1, 40))
def test_products_are_summed_in_the_order_of_the_dims(seed, n, dims, count):
    rng = np.random.default_rng(seed)
    x, origin, onto = (rng.normal(size=shape).astype(np.float32) for shape in ((n, dims), dims, (dims, count)))
    projected = axes.project_on_axes(x, origin, onto)
    assert (projected.dtype, projected.shape) == (np.float32, (n, count))
    assert np.array_equal(projected, [call_concurrently(row, origin, onto) for row in x])


def test_a_rows_place_does_not_depend_on_the_rows_beside_it():
    x = flat(4, 333, 100, 10)
    origin, onto = x[5], np.random.default_rng(0).normal(size=(100, 32)).astype(np.float32)
    whole = axes.project_on_axes(x, origin, onto)
    x[7] = np.nan
    order = np.random.default_rng(1).permutation(333)
    assert np.array_equal(axes.project_on_axes(x[order], origin, onto)[order != 7], whole[order][order != 7])
    for low, high in [(0, 1), (1, 6), (8, 25), (11, 333)]:
        assert np.array_equal(axes.project_on_axes(x[low:high], origin, onto), whole[low:high])
