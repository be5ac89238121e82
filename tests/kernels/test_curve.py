"""The curve of memberships in the map, beside that of umap-learn."""

import numpy as np
import pytest

from dumap.kernels.curve import fit_ab


@pytest.mark.parametrize(
    ("spread", "min_dist"), [(1.0, 0.1), (1.0, 0.0), (1.0, 0.5), (1.0, 0.99), (1.0, 1.0), (2.5, 0.5)]
)
def test_the_curve_is_that_of_umap_learn(spread, min_dist):
    from umap.umap_ import find_ab_params

    assert fit_ab(spread, min_dist) == pytest.approx(find_ab_params(spread, min_dist), rel=1e-4)


@pytest.mark.parametrize("spread", [1e-12, 0.01, 0.05, 10.0, 1e4, 1e6])
@pytest.mark.parametrize("near", [0.0, 0.1, 1.0])
def test_the_curve_of_another_scale_is_the_same_stretched(spread, near):
    """Where umap-learn's fit has other answers, such as a = -259 and b = -77 for a spread of 0.05."""
    d = np.linspace(0.01, 3, 50)
    (a, b), (unit_a, unit_b) = fit_ab(spread, near * spread), fit_ab(1.0, near)
    np.testing.assert_allclose(1 / (1 + a * (d * spread) ** (2 * b)), 1 / (1 + unit_a * d ** (2 * unit_b)), rtol=1e-9)
    assert a > 0
    assert b > 0


@pytest.mark.parametrize("near", [0.0, 0.37, 0.7, 1.0])
def test_the_curve_is_near_what_is_asked_for(near):
    a, b = fit_ab(1e-3, near * 1e-3)
    d = np.linspace(0, 3, 300)
    expected = np.where(d < near, 1, np.exp(near - d))
    assert np.abs(1 / (1 + a * (d * 1e-3) ** (2 * b)) - expected).mean() < 0.05


@pytest.mark.parametrize(("spread", "expected"), [(1e300, 0.0), (1e-300, np.inf), (5e-324, np.inf)])
def test_a_curve_that_no_float_holds(spread, expected):
    assert fit_ab(spread, 0.0) == (expected, fit_ab(1.0, 0.0)[1])
