"""The curve 1 / (1 + a d^2b) of distances in the map, given or fitted."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from dumap.config import LayoutConfig
from dumap.errors import ConfigError
from dumap.kernels.curve import fit_ab


@lru_cache
def curve_parameters(settings: LayoutConfig) -> tuple[float, float]:
    """Return a and b: the given values, or values fitted to spread and min_dist.

    Raises
    ------
    ConfigError
        The layout cannot use the values, since it computes in float32.
    """
    if settings.a is not None and settings.b is not None:
        a, b, setting_names = settings.a, settings.b, ("a", "b")
        advice = "give others, or set both to null to have them fitted to spread and min_dist"
    else:
        (a, b), setting_names = fit_ab(settings.spread, settings.min_dist), ("spread", "min_dist")
        scaled_min_dist = settings.min_dist / settings.spread
        advice = (
            f"give a spread nearer to 1 and min_dist in proportion, such as spread=1 and min_dist={scaled_min_dist:.4g}"
        )
    low, high = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
    if not all(low <= value <= high for value in (a, b, 2 * a * b)):
        cause = " and ".join(f"layout.{name} = {getattr(settings, name)}" for name in setting_names)
        raise ConfigError(
            f"{cause}: the curve 1 / (1 + a d^2b) would have a = {a:.4g}, b = {b:.4g} and 2ab = {2 * a * b:.4g}, which "
            f"must be from {low:.2g} to {high:.2g}, as float32 holds them: {advice}"
        )
    return a, b
