"""The curve 1 / (1 + a d^2b), which turns a distance d in the map into a membership."""

from __future__ import annotations

import numpy as np


def fit_ab(spread: float, min_dist: float) -> tuple[float, float]:
    """Fit 1 / (1 + a d^2b) to the membership that `spread` and `min_dist` define.

    The fit is that of umap-learn's `find_ab_params`, in units of the spread. So it succeeds for any values, and a map
    of another scale has the same curve, stretched. a is 0 or infinite if no float holds it.
    """
    from scipy.optimize import curve_fit

    distances, plateau = np.linspace(0, 3, 300), min_dist / spread
    memberships = np.where(distances < plateau, 1.0, np.exp(plateau - distances))
    (a, b), _ = curve_fit(lambda x, a, b: 1.0 / (1.0 + a * x ** (2 * b)), distances, memberships)
    a, b = round(float(a), 6), round(float(b), 6)  # so few digits are the same on all processors
    with np.errstate(over="ignore", under="ignore"):
        return float(a * np.float64(spread) ** (-2 * b)), b
