"""Nearest neighbours for other programs: the object that `scanpy.pp.neighbors` takes as `transformer`."""

from __future__ import annotations

import os
import shutil
import tempfile
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils.validation import check_is_fitted

from dumap.api import read_config_and_rows
from dumap.artifacts.part_names import AUDIT
from dumap.errors import DataError, as_value_errors
from dumap.show.rows import distance_matrix
from dumap.sources.estimated import seed_of

if TYPE_CHECKING:
    import numpy as np
    from distributed import Client

    from dumap.show.result import Result


class KNeighborsTransformer(TransformerMixin, BaseEstimator):
    """The nearest neighbours of rows as a sparse matrix of distances, for scanpy's `transformer`.

    Parameters
    ----------
    n_neighbors : int
        Entries of each row. The row itself counts and comes first, at distance 0.
    metric : str
    metric_kwds : mapping, optional
    random_state : int, RandomState or None
        The seed; None is the default seed.
    client : distributed.Client, optional
        The cluster to run on.
    store : path or URL, optional
        Location of the run. By default a temporary folder, which is removed with this object.

    Attributes
    ----------
    run_ : Result
        The run, which stops after the audit: it has neighbors and no map. `dumap.run` with the same rows, settings and
        output goes on from there.

    Examples
    --------
    >>> import dumap, numpy as np
    >>> x = np.random.default_rng(0).normal(size=(100, 5))
    >>> found = dumap.KNeighborsTransformer(n_neighbors=10).fit_transform(x)
    >>> found.shape, found.nnz, found.indices[:10:10].tolist(), found.data[:10:10].tolist()
    ((100, 100), 1000, [0], [0.0])
    """

    def __init__(
        self,
        n_neighbors: int = 15,
        *,
        metric: str = "euclidean",
        metric_kwds: Mapping[str, Any] | None = None,
        random_state: int | np.random.RandomState | None = None,
        client: Client | None = None,
        store: str | os.PathLike[str] | None = None,
    ) -> None:
        self.n_neighbors = n_neighbors
        self.metric = metric
        self.metric_kwds = metric_kwds
        self.random_state = random_state
        self.client = client
        self.store = store

    def fit(self, X: Any, y: Any = None) -> KNeighborsTransformer:
        """Search the neighbours of the rows of X.

        Parameters
        ----------
        X : array, sparse matrix, Dask array, or path of a Zarr array
        y : object
            Not used.

        Returns
        -------
        KNeighborsTransformer
            Itself.

        Raises
        ------
        ValueError
            A parameter, or the data, is not allowed.
        DumapError
            Another error of the run.
        """
        folder = tempfile.mkdtemp(prefix="dumap-") if self.store is None else None
        output = os.path.join(folder, "run.zarr") if folder else os.fsdecode(self.store)  # type: ignore[arg-type]
        settings: dict[str, Any] = {"n_neighbors": self.n_neighbors, "metric": self.metric}
        settings |= {"metric_kwds": dict(self.metric_kwds or {}), "random_state": seed_of(self.random_state)}
        try:
            with as_value_errors():
                result = _search_neighbors(X, output, self.client, settings)
        except BaseException:
            if folder:
                shutil.rmtree(folder, ignore_errors=True)
            raise
        self.run_, self._fitted_rows = result, X
        if folder:
            weakref.finalize(result, shutil.rmtree, folder, ignore_errors=True)
        return self

    def transform(self, X: Any) -> Any:
        """Return the neighbours of the rows that were fitted.

        Parameters
        ----------
        X : object
            The object that was given to `fit`.

        Returns
        -------
        csr_matrix of float64, shape (rows, rows)
            n_neighbors entries in every row: the row itself, then its neighbours, the nearest first.

        Raises
        ------
        DataError
            X is another object, or a row has fewer neighbours.
        """
        check_is_fitted(self)
        if X is not self._fitted_rows:
            raise DataError("rows that were not fitted have no neighbours here: call fit_transform with them")
        distances = distance_matrix(self.run_.neighbors, with_self=True)
        if distances.nnz != self.n_neighbors * distances.shape[0]:
            raise DataError(f"some rows have fewer than n_neighbors={self.n_neighbors} neighbours: ask for fewer")
        return distances

    def fit_transform(self, X: Any, y: Any = None) -> Any:
        """Return the neighbours of the rows of X, as `transform` does."""
        return self.fit(X).transform(X)


def _search_neighbors(X: Any, output: str, client: Client | None, settings: dict[str, Any]) -> Result:
    """Run the stages that make neighbors."""
    from dumap.recipe import pipeline
    from dumap.recipe.data import find_client
    from dumap.recipe.observers import CallbackObserver, LogObserver
    from dumap.show.result import Result

    config, object_rows = read_config_and_rows(X, output, None, settings)
    connected_client = client or find_client(X, config)
    with CallbackObserver(LogObserver()) as observer:
        run_status = pipeline.run(
            config, client=connected_client, observer=observer, object_rows=object_rows, last=AUDIT
        )
    return Result(run_status["output"], run_status)
