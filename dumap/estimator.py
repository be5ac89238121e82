"""The estimator `UMAP`, with umap-learn's parameters and attributes and scikit-learn's interface."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
import warnings
import weakref
from collections.abc import Iterator
from inspect import signature
from typing import TYPE_CHECKING, Any

import numpy as np
from sklearn.base import BaseEstimator, ClassNamePrefixFeaturesOutMixin, TransformerMixin
from sklearn.utils.validation import validate_data

from dumap.api import run
from dumap.config import UNSUPPORTED_PARAMETERS, keys_by_name
from dumap.errors import DataError, ParameterError, as_value_errors
from dumap.show.fitted import CACHED_ATTRIBUTES, FITTED_ATTRIBUTES, FittedAttributes
from dumap.sources.estimated import fitting, is_lazy, named_like, rows_in, seed_of, unchanged
from dumap.sources.neighbor_lists import from_arrays, from_matrix, write_lists

if TYPE_CHECKING:
    from distributed import Client


MIN_ROWS = 3
"""The least rows that can be embedded: n_neighbors is at least 2, and there must be more rows than n_neighbors."""
UNSUPPORTED_METHODS = {
    "transform": "new rows cannot be placed on a finished map in this version: fit them together with the others",
    "inverse_transform": "rows cannot be made of places on the map; use umap-learn",
    "update": "append the rows to the data, and fit again",
}
"""Methods of umap-learn that dumap lacks, and what to do instead."""
NOT_IN_PICKLE = (*CACHED_ATTRIBUTES, "_raw_data", "_folder_finalizer")
"""Attributes that are left out of a pickle."""


class UMAP(FittedAttributes, ClassNamePrefixFeaturesOutMixin, TransformerMixin, BaseEstimator):
    """UMAP with umap-learn's interface, for data in memory or larger than memory.

    Threads of this process embed small data. Larger data are embedded on a cluster of this machine or on `client`.
    Parameters of umap-learn that dumap lacks are accepted at umap-learn's default only; another value raises an error
    that says what to do.

    Parameters
    ----------
    n_neighbors, metric, metric_kwds : int, str, dict
        Neighbours of each row, the row itself counted, and the name of the distance between rows; a function is not
        allowed. n_neighbors is lowered, with a warning, if it is not below the number of rows.
    n_components, min_dist, spread, a, b : int, float, float, float, float
        The map's dimensions, and how close its rows lie.
    n_epochs, learning_rate, negative_sample_rate, repulsion_strength : int, float, float, float
        The layout.
    init : {'spectral', 'pca', 'random'}, str or ndarray
        The first coordinates of rows. A str may be the path of an array, in .npy or Zarr.
    set_op_mix_ratio, local_connectivity, disconnection_distance : float
        The graph.
    unique : bool
        Embed duplicates once.
    random_state : int, RandomState or None
        The seed. None is the default seed, so that each call returns the same map.
    precomputed_knn : tuple of ndarray
        Indices and distances, (rows, n_neighbors or more), as umap-learn's `nearest_neighbors` returns them; each row
        is first among its neighbours. A third item, the index, is not used. Arrays with too few columns or another
        number of rows are ignored with a warning, as in umap-learn.
    output_metric, output_metric_kwds, low_memory, n_jobs, transform_queue_size, angular_rp_forest, target_n_neighbors,\
 target_metric, target_metric_kwds, target_weight, transform_seed, transform_mode, force_approximation_algorithm,\
 verbose, tqdm_kwds, densmap, dens_lambda, dens_frac, dens_var_shift, output_dens
        Parameters of umap-learn that are accepted at their default only.
    client : distributed.Client, optional
        The cluster to run on.
    store : path or URL, optional
        Location of the run. A later fit with the same data and parameters goes on with the run. By default a temporary
        folder, which is removed with the estimator unless the estimator was pickled.

    Attributes
    ----------
    embedding_ : ndarray of float32, shape (rows, n_components)
        The map, read on first access.
    graph_ : csr_matrix of float32, shape (rows, rows)
        The fuzzy graph.
    run_ : Result
        The run.
    n_features_in_ : int
    feature_names_in_ : ndarray of str
        Names of the columns, if the data had names.

    Examples
    --------
    >>> import dumap, numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 5))
    >>> reducer = dumap.UMAP(n_neighbors=10, n_epochs=20)
    >>> reducer.fit_transform(x).shape
    (100, 2)
    >>> reducer.get_feature_names_out().tolist()
    ['umap0', 'umap1']

    Sparse rows stay sparse.

    >>> from scipy.sparse import random_array
    >>> counts = random_array((100, 1000), density=0.05, format="csr", rng=np.random.default_rng(0))
    >>> dumap.UMAP(n_neighbors=10, n_epochs=20, metric="cosine").fit_transform(counts).shape
    (100, 2)
    """

    def __init__(
        self,
        n_neighbors: int = 15,
        n_components: int = 2,
        metric: str = "euclidean",
        metric_kwds: dict[str, Any] | None = None,
        output_metric: str = "euclidean",
        output_metric_kwds: dict[str, Any] | None = None,
        n_epochs: int | None = None,
        learning_rate: float = 1.0,
        init: Any = "spectral",
        min_dist: float = 0.1,
        spread: float = 1.0,
        low_memory: bool = True,
        n_jobs: int = -1,
        set_op_mix_ratio: float = 1.0,
        local_connectivity: float = 1.0,
        repulsion_strength: float = 1.0,
        negative_sample_rate: float = 5,
        transform_queue_size: float = 4.0,
        a: float | None = None,
        b: float | None = None,
        random_state: int | np.random.RandomState | None = None,
        angular_rp_forest: bool = False,
        target_n_neighbors: int = -1,
        target_metric: str = "categorical",
        target_metric_kwds: dict[str, Any] | None = None,
        target_weight: float = 0.5,
        transform_seed: int = 42,
        transform_mode: str = "embedding",
        force_approximation_algorithm: bool = False,
        verbose: bool = False,
        tqdm_kwds: dict[str, Any] | None = None,
        unique: bool = False,
        densmap: bool = False,
        dens_lambda: float = 2.0,
        dens_frac: float = 0.3,
        dens_var_shift: float = 0.1,
        output_dens: bool = False,
        disconnection_distance: float | None = None,
        precomputed_knn: tuple[Any, ...] = (None, None, None),
        client: Client | None = None,
        store: str | os.PathLike[str] | None = None,
    ) -> None:
        """Set the parameters. So many parameters: they are umap-learn's."""
        self.n_neighbors = n_neighbors
        self.n_components = n_components
        self.metric = metric
        self.metric_kwds = metric_kwds
        self.output_metric = output_metric
        self.output_metric_kwds = output_metric_kwds
        self.n_epochs = n_epochs
        self.learning_rate = learning_rate
        self.init = init
        self.min_dist = min_dist
        self.spread = spread
        self.low_memory = low_memory
        self.n_jobs = n_jobs
        self.set_op_mix_ratio = set_op_mix_ratio
        self.local_connectivity = local_connectivity
        self.repulsion_strength = repulsion_strength
        self.negative_sample_rate = negative_sample_rate
        self.transform_queue_size = transform_queue_size
        self.a = a
        self.b = b
        self.random_state = random_state
        self.angular_rp_forest = angular_rp_forest
        self.target_n_neighbors = target_n_neighbors
        self.target_metric = target_metric
        self.target_metric_kwds = target_metric_kwds
        self.target_weight = target_weight
        self.transform_seed = transform_seed
        self.transform_mode = transform_mode
        self.force_approximation_algorithm = force_approximation_algorithm
        self.verbose = verbose
        self.tqdm_kwds = tqdm_kwds
        self.unique = unique
        self.densmap = densmap
        self.dens_lambda = dens_lambda
        self.dens_frac = dens_frac
        self.dens_var_shift = dens_var_shift
        self.output_dens = output_dens
        self.disconnection_distance = disconnection_distance
        self.precomputed_knn = precomputed_knn
        self.client = client
        self.store = store

    # fitting -----------------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None, *, knn_graph: Any = None) -> UMAP:
        """Embed the rows of X.

        Parameters
        ----------
        X : array, sparse matrix, data frame, Dask array, or path of a Zarr array
            Rows to embed; see `dumap.run`. Those of a sparse matrix are never made dense.
        y : array, optional
            Labels. They are not used, and a warning says so: supervised maps are not supported. A label of -1 is no
            label.
        knn_graph : sparse matrix, shape (rows, rows), optional
            Distances of each row's neighbours, which are then not searched, as in scikit-learn's
            `kneighbors_graph(mode="distance")` or scanpy's `obsp["distances"]`. The n_neighbors - 1 nearest other rows
            of each row are used.

        Returns
        -------
        UMAP
            Itself.

        Raises
        ------
        ValueError
            A parameter, or the data, is not allowed.
        DumapError
            Another error of the run.
        """
        self._check_parameters()
        self._warn_of_labels(y)
        x = self._validate(X)
        settings, rows = self._settings(), rows_in(x)
        if rows is not None:
            settings["n_neighbors"] = fitting(self.n_neighbors, rows, stacklevel=3)
        folder = None if self.store is not None else tempfile.mkdtemp(prefix="dumap-")
        output = os.path.join(folder, "run.zarr") if folder else os.fsdecode(self.store)  # type: ignore[arg-type]
        try:
            with self._given_arrays_on_disk(settings, knn_graph, rows, output), as_value_errors():
                result = run(named_like(x, X), output=output, client=self.client, **settings)
        except BaseException:
            if folder:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        for name in CACHED_ATTRIBUTES:
            self.__dict__.pop(name, None)
        self.run_, self._raw_data = result, x
        self.n_features_in_ = int(result["input"]["shape"][1])
        self._folder_finalizer = weakref.finalize(result, shutil.rmtree, folder, ignore_errors=True) if folder else None
        return self

    def fit_transform(self, X: Any, y: Any = None, *, knn_graph: Any = None) -> Any:
        """Embed the rows of X; return the map.

        Parameters
        ----------
        X, y, knn_graph
            As for `fit`.

        Returns
        -------
        ndarray of float32, shape (rows, n_components)
            If X is a Dask array, a Dask array with the same chunks of rows.
        """
        self.fit(X, y, knn_graph=knn_graph)
        return self._lazy_embedding(X) if is_lazy(X) else self.embedding_

    def _lazy_embedding(self, X: Any) -> Any:
        """Return the map as a Dask array with X's chunks of rows. It keeps a temporary run from being removed."""
        embedding: Any = self.run_.to_dask()
        if hasattr(X, "chunks"):
            embedding = embedding.rechunk({0: X.chunks[0]})
        return (
            embedding.map_blocks(unchanged, run=self.run_, dtype=embedding.dtype)
            if self._folder_finalizer
            else embedding
        )

    def _check_parameters(self) -> None:
        """Refuse parameters of umap-learn that dumap lacks, unless they have their default."""
        for name, advice in UNSUPPORTED_PARAMETERS.items():
            value, default = getattr(self, name), DEFAULTS[name]
            if value is not default and value != default:
                raise ParameterError(
                    f"{name}={value!r}: dumap has no such parameter of umap-learn's, and takes its default "
                    f"({default!r}) only: {advice}"
                )
        if callable(self.metric):
            raise ParameterError(
                "metric: give the name of a metric, not a function: tasks on other machines cannot be sent it; or give "
                "the neighbours that it finds, as knn_graph or precomputed_knn"
            )
        if self.metric == "precomputed":
            raise ParameterError(
                "metric='precomputed': matrices of all distances are not read; give the nearest neighbours of each row "
                "instead: fit(X, knn_graph=sklearn.neighbors.kneighbors_graph(...)), or precomputed_knn"
            )

    def _warn_of_labels(self, y: Any) -> None:
        if y is None or self.__dict__.get("_has_warned_of_labels"):
            return
        labels = np.asarray(y)
        if not (labels.dtype.kind in "iufbO" and (labels == -1).all()):
            self._has_warned_of_labels = True
            message = "y is not used: maps by labels are not made; colour the map by the labels, or leave y out"
            warnings.warn(message, stacklevel=3)

    def _validate(self, X: Any) -> Any:
        """Check data in memory as scikit-learn does. Other data are returned unchanged, since the run checks them."""
        if is_lazy(X):
            if any(np.isnan(length) for lengths in getattr(X, "chunks", ()) for length in lengths):
                raise DataError(
                    "X is a Dask array that does not know how many rows its chunks have: call X.compute_chunk_sizes() "
                    "first"
                )
            return validate_data(self, X, skip_check_array=True)
        if isinstance(X, str | os.PathLike) or type(X).__module__.partition(".")[0] in ("anndata", "xarray", "zarr"):
            return X
        return validate_data(self, X, ensure_min_samples=MIN_ROWS, accept_sparse="csr")

    def _settings(self) -> dict[str, Any]:
        """Return the run's settings under umap-learn's names."""
        settings = {name: getattr(self, name) for name in keys_by_name() if hasattr(self, name)}
        if settings["metric_kwds"] is None:
            settings["metric_kwds"] = {}
        del settings["precomputed_knn"]
        return {**settings, "random_state": seed_of(self.random_state)}

    @contextlib.contextmanager
    def _given_arrays_on_disk(
        self, settings: dict[str, Any], knn_graph: Any, rows: int | None, output: str
    ) -> Iterator[None]:
        """Write the given neighbours and the given start beside the run, and name them in the settings, while the run
        lasts.
        """
        lists = None
        if knn_graph is not None:
            lists = from_matrix(knn_graph, rows, settings["n_neighbors"])
        elif self.precomputed_knn[0] is not None:
            lists = from_arrays(self.precomputed_knn, rows, settings["n_neighbors"])
        init_array = self.init if not isinstance(self.init, str | os.PathLike) else None
        if lists is None and init_array is None:
            yield
            return
        folder_of_run = os.path.dirname(os.path.abspath(output)) if "://" not in output else None
        with tempfile.TemporaryDirectory(prefix=".dumap-given-", dir=folder_of_run) as folder:
            if lists is not None:
                settings["precomputed_knn"] = os.path.join(folder, "neighbors.zarr")
                write_lists(settings["precomputed_knn"], *lists)
            if init_array is not None:
                settings["init"] = os.path.join(folder, "init.npy")
                np.save(settings["init"], np.asarray(init_array, np.float32))
            yield

    # as scikit-learn and pickle have it ----------------------------------------------------------

    def __getattr__(self, name: str) -> Any:
        if name in UNSUPPORTED_METHODS:
            raise AttributeError(f"UMAP has no {name}: {UNSUPPORTED_METHODS[name]}")
        if name in (*FITTED_ATTRIBUTES, "run_") and "run_" not in self.__dict__:
            raise AttributeError(f"{name}: this UMAP is not fitted yet; call fit first")
        return super().__getattribute__(name)  # raises the usual AttributeError

    def __getstate__(self) -> dict[str, Any]:
        """Return the parameters and the run's location, without data, map and client. The run is no longer removed."""
        state = {name: value for name, value in super().__getstate__().items() if name not in NOT_IN_PICKLE}
        if finalizer := self.__dict__.get("_folder_finalizer"):
            finalizer.detach()
        return {**state, "client": None}

    def __sklearn_clone__(self) -> UMAP:
        """Return an estimator with the same parameters. It shares the client, which cannot be copied."""
        without_client = object.__new__(type(self))
        without_client.__dict__.update(self.__dict__, client=None)
        clone: UMAP = BaseEstimator.__sklearn_clone__(without_client)
        clone.client = self.client
        return clone

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.transformer_tags.preserves_dtype = ["float32"]
        tags.input_tags.sparse = True
        return tags


DEFAULTS = {name: parameter.default for name, parameter in signature(UMAP).parameters.items()}
"""The defaults of `UMAP`'s parameters, which are umap-learn's."""
