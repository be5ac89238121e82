"""The metrics, which are pynndescent's, and the arguments of each."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from dumap.errors import ConfigError

REFUSED_METRICS = {"dot", "inner_product", "direct_cosine", "true_angular", "sinkhorn"}
"""pynndescent's metrics that dumap refuses: they may be negative or grow with nearness, and sinkhorn reads beyond its
arrays if a value is 0."""
# fmt: off
METRICS = (
    "bit_hamming", "bit_jaccard",
    "braycurtis", "canberra", "chebyshev", "circular_kantorovich", "circular_wasserstein", "correlation", "cosine",
    "dice", "euclidean", "hamming", "haversine", "hellinger", "jaccard", "jensen-shannon", "jensen_shannon",
    "kantorovich", "kantorovich-1d", "kantorovich_1d", "kulsinski", "l1", "l2", "linf", "linfinity", "linfty",
    "mahalanobis", "manhattan", "matching", "minkowski", "rogerstanimoto", "russellrao", "seuclidean",
    "sokalmichener", "sokalsneath", "spearmanr", "sqeuclidean", "standardised_euclidean", "symmetric-kl",
    "symmetric_kl", "symmetric_kullback_liebler", "taxicab", "tsss", "wasserstein", "wasserstein-1d",
    "wasserstein_1d", "weighted_minkowski", "wminkowski", "yule",
)
# fmt: on
"""pynndescent's metrics that are distances between rows of numbers. The list is kept here since importing pynndescent
takes seconds."""

SHIFT_INVARIANT_METRICS = frozenset(
    {"euclidean", "l2", "sqeuclidean", "manhattan", "taxicab", "l1", "chebyshev", "linfinity", "linfty", "linf"}
    | {"minkowski", "wminkowski", "weighted_minkowski", "seuclidean", "standardised_euclidean", "mahalanobis"}
)
"""Metrics that depend only on differences: subtracting a constant from all rows changes no distance."""

DISCONNECTION_DISTANCES = {
    "correlation": 2.0,
    "cosine": 2.0,
    "hellinger": 1.0,
    "jaccard": 1.0,
    "bit_jaccard": 1.0,
    "dice": 1.0,
}
"""umap-learn's values: rows at this distance have nothing in common, and are not neighbours."""

_ORDER, _WEIGHTED, _SCALED, _TRANSPORT = {"p": 0}, {"w": 1, "p": 0}, {"sigma": 1}, {"cost": 2}
ARGUMENT_AXES: dict[str, dict[str, int]] = {
    "minkowski": _ORDER,
    "wminkowski": _WEIGHTED,
    "weighted_minkowski": _WEIGHTED,
    "seuclidean": _SCALED,
    "standardised_euclidean": _SCALED,
    "mahalanobis": {"vinv": 2},
    "kantorovich": _TRANSPORT,
    "wasserstein": _TRANSPORT,
    **dict.fromkeys(("kantorovich-1d", "kantorovich_1d", "wasserstein-1d", "wasserstein_1d"), _ORDER),
    **dict.fromkeys(("circular_kantorovich", "circular_wasserstein"), _ORDER),
}
"""A metric's arguments in their order, and the number of axes of each: 0 for a number, 1 for one number a dim, 2 for a
matrix (dims, dims)."""

_ARGUMENT_BOUNDS = {"p": "above 0", "sigma": "above 0", "w": "0 or more", "cost": "0 or more"}
_AXES_TEXTS = ("a number", "a list of numbers, one a dim", "a matrix of numbers, dims x dims")

Numbers = float | tuple


def to_frozen_numbers(value: Any, axes: int = 2) -> Numbers:
    """Convert a number, a list of numbers or a matrix to floats and tuples of floats."""
    if isinstance(value, list | tuple) and value and axes:
        return tuple(to_frozen_numbers(item, axes - 1) for item in value)
    if isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < 3e38:
        return float(value)
    raise ValueError("write a finite number, a list of numbers or a matrix of them")


def check_arguments(metric: str, metric_kwds: Mapping[str, Numbers]) -> None:
    """Raise ValueError for arguments that the metric does not take, or of wrong shape or value."""
    axes_by_name = ARGUMENT_AXES.get(metric, {})
    for name, value in metric_kwds.items():
        if name not in axes_by_name:
            allowed = f"its arguments are {', '.join(axes_by_name)}" if axes_by_name else "it takes none"
            raise ValueError(f"metric_kwds: metric {metric} has no argument {name!r}; {allowed}")
        values = np.array(value, object)
        if values.ndim != axes_by_name[name] or not all(isinstance(number, float) for number in values.ravel()):
            raise ValueError(f"metric_kwds.{name}: metric {metric} takes {_AXES_TEXTS[axes_by_name[name]]}")
        bound = _ARGUMENT_BOUNDS.get(name, "")
        if (bound == "above 0" and not (values > 0).all()) or (bound == "0 or more" and not (values >= 0).all()):
            raise ValueError(f"metric_kwds.{name} must be {bound}")
    order = metric_kwds.get("p", 1.0)
    if metric.startswith("circular") and isinstance(order, float) and order != 1 and order < 2:
        raise ValueError(f"metric_kwds.p: metric {metric} takes 1, or 2 and more")


def ordered_arguments(metric: str, metric_kwds: Mapping[str, Numbers], dims: int) -> dict[str, float | np.ndarray]:
    """Return a metric's arguments in their order, for rows of `dims` values.

    Raises
    ------
    ConfigError
        An argument is missing or has another size, or the metric does not take rows of `dims` values.
    """
    if metric == "haversine" and dims != 2:
        raise ConfigError(f"neighbors.metric: haversine takes rows of 2 dims, latitude and longitude, not of {dims}")
    arguments: dict[str, float | np.ndarray] = {}
    for name, axes in ARGUMENT_AXES.get(metric, {}).items():
        shape, value = (dims,) * axes, metric_kwds.get(name)
        if axes and (value is None or np.shape(value) != shape):
            actual_size = "it is not given" if value is None else f"it has {' x '.join(map(str, np.shape(value)))}"
            raise ConfigError(
                f"neighbors.metric_kwds.{name}: metric {metric} needs {' x '.join(map(str, shape))} numbers for rows "
                f"of {dims} dims; {actual_size}"
            )
        if value is not None:
            arguments[name] = np.array(value, np.float32) if axes else float(value)  # type: ignore[arg-type]
    return arguments
