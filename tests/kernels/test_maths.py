"""Powers, beside those of the library."""

import numba as nb
import numpy as np
import pytest

from dumap.kernels import maths


@nb.njit
def exp(x):
    """Call the kernel's exp on each value."""
    out = np.empty_like(x)
    for i in range(len(x)):
        out[i] = maths.exp(x[i])
    return out


@nb.njit
def power(x, exponent):
    """Call the kernel's power on each value."""
    out = np.empty_like(x)
    for i in range(len(x)):
        out[i] = maths.power(x[i], exponent)
    return out


def test_exp_is_that_of_the_library():
    x = -np.concatenate([[0.0], np.geomspace(1e-300, 699.9, 20_000), np.linspace(0, 699.9, 20_000)])
    np.testing.assert_allclose(exp(x), np.exp(x), rtol=1e-13)
    assert exp(np.array([0.0, -700.0, -701.0, -np.inf])).tolist() == [1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize("exponent", [0.3, 0.5, 0.79, 0.895, 1.0, 1.33, 2.0])
def test_power_is_that_of_the_library(exponent):
    ends = np.array([0.5, np.sqrt(0.5), 1, np.sqrt(2), 2, 4])  # where exponent and mantissa part
    near = np.concatenate([np.nextafter(ends, 0, dtype=np.float32), np.nextafter(ends, 9, dtype=np.float32), ends])
    x = np.concatenate([np.geomspace(1e-8, 1e8, 100_000), np.linspace(0.4, 4.1, 100_000), near]).astype(np.float32)
    expected = x.astype(np.float64) ** np.float64(np.float32(exponent))
    np.testing.assert_allclose(power(x, np.float32(exponent)), expected, rtol=3e-6)


def test_power_stays_finite_at_the_ends_of_its_range():
    x = np.array([np.finfo(np.float32).tiny, np.finfo(np.float32).max], np.float32)
    low, high = power(x, np.float32(2))
    assert 0 < low < 1e-37
    assert 1e38 < high < np.inf
