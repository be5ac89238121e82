"""The content of a finished run, under the names of umap-learn's attributes."""

from __future__ import annotations

import math
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from dumap.config.metrics import DISCONNECTION_DISTANCES
from dumap.kernels.graph import compute_memberships

if TYPE_CHECKING:
    from dumap.show.result import Result

CACHED_ATTRIBUTES = ("embedding_", "graph_", "_neighbors_with_self", "_rhos_and_sigmas")
"""Attributes that stay in memory once they were read from the run."""
FITTED_ATTRIBUTES = (
    *CACHED_ATTRIBUTES[:2],
    "_knn_indices",
    "_knn_dists",
    "_a",
    "_b",
    "_rhos",
    "_sigmas",
    "_n_features_out",
)


class FittedAttributes:
    """Attributes that are read from a run when they are first accessed.

    Attributes
    ----------
    run_ : Result
    """

    run_: Result

    @cached_property
    def embedding_(self) -> np.ndarray:
        """The map, (rows, n_components) float32; NaN for a row without coordinates."""
        return np.asarray(self.run_.embedding[:])

    @cached_property
    def graph_(self) -> Any:
        """The fuzzy graph, a CSR matrix of membership strengths, (rows, rows) float32."""
        return self.run_.graph()

    @cached_property
    def _neighbors_with_self(self) -> tuple[np.ndarray, np.ndarray]:
        indices, distances = self.run_.neighbors[:]
        row_ids = np.arange(len(indices))[:, None]
        return np.hstack([row_ids, indices]), np.hstack([np.zeros_like(row_ids, distances.dtype), distances])

    @property
    def _knn_indices(self) -> np.ndarray:
        """Each row itself and its neighbours, (rows, n_neighbors); -1 where there is none."""
        return self._neighbors_with_self[0]

    @property
    def _knn_dists(self) -> np.ndarray:
        """The distances of `_knn_indices`, (rows, n_neighbors) float32; infinite where there is no neighbour."""
        return self._neighbors_with_self[1]

    @property
    def _a(self) -> float:
        return float(self.run_.facts["layout"]["a"])

    @property
    def _b(self) -> float:
        return float(self.run_.facts["layout"]["b"])

    @cached_property
    def _rhos_and_sigmas(self) -> tuple[np.ndarray, np.ndarray]:
        """Rho and sigma of each row, computed again from its neighbours, since runs do not keep them."""
        indices, distances = (array[:, 1:] for array in self._neighbors_with_self)
        settings, metric = self.run_["parameters"]["graph"], self.run_["parameters"]["neighbors"]["metric"]
        max_distance = settings["disconnection_distance"]
        max_distance = DISCONNECTION_DISTANCES.get(metric, math.inf) if max_distance is None else max_distance
        is_connected = np.isfinite(distances) & (distances < max_distance)
        mean_distance = distances[is_connected].sum(dtype=np.float64) / (len(distances) + is_connected.sum())
        return compute_memberships(
            indices, distances, float(mean_distance), settings["local_connectivity"], max_distance
        )[:2]

    @property
    def _rhos(self) -> np.ndarray:
        """The distance up to which a row's neighbours have membership 1, (rows,) float32."""
        return self._rhos_and_sigmas[0]

    @property
    def _sigmas(self) -> np.ndarray:
        """The scale of each row's distances, (rows,) float32."""
        return self._rhos_and_sigmas[1]

    @property
    def _n_features_out(self) -> int:
        return int(self.run_["parameters"]["layout"]["n_components"])
