"""The function `umap` for AnnData, in memory or on disk, with scanpy's parameters."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from dumap.errors import DataError, ParameterError, as_value_errors

if TYPE_CHECKING:
    from anndata import AnnData
    from distributed import Client

    from dumap.show.result import Result
    from dumap.store import AnnDataStore, Slots

BLOCK_BYTES = 256 << 20
"""About how many bytes of the graph are read at once for a store on disk."""
EDGE_BYTES = 12
EDGES = 3
"""A row of the graph has at most about this many times n_neighbors edges."""


@dataclass(frozen=True)
class _Request:
    """The arguments of `umap`: settings under umap-learn's names, and AnnData's slots.

    Attributes
    ----------
    settings : dict
        Settings of the map.
    neighbors : dict
        n_neighbors, metric and metric_kwds.
    key_added, neighbors_key, use_rep : str, optional
    init_pos : str or ndarray
    seed : int, optional
    """

    settings: dict[str, Any]
    neighbors: dict[str, Any]
    key_added: str | None
    neighbors_key: str | None
    use_rep: str | None
    init_pos: Any
    seed: int | None

    @property
    def embedding(self) -> str:
        return self.key_added or "X_umap"

    @property
    def distances(self) -> str:
        return f"{self.key_added}_distances" if self.key_added else "distances"

    @property
    def connectivities(self) -> str:
        return f"{self.key_added}_connectivities" if self.key_added else "connectivities"

    def mappings(self, result: Result, use_rep: str) -> dict[str, dict[str, Any]]:
        """Return the entries for `uns`. Parameters of neighbours and of the map may share one key, as scanpy reads
        them.
        """
        facts, parameters = result.facts["layout"], result["parameters"]
        of_map = {"a": float(facts["a"]), "b": float(facts["b"])}
        seed = {"random_state": int(parameters["seed"])}
        mappings: dict[str, dict[str, Any]] = {}
        if self.neighbors_key is None:
            searched: dict[str, Any] = {"n_neighbors": parameters["neighbors"]["n_neighbors"], "method": "umap", **seed}
            searched |= {"metric": self.neighbors["metric"], "use_rep": use_rep}
            if self.neighbors["metric_kwds"]:
                searched["metric_kwds"] = dict(self.neighbors["metric_kwds"])
            keys = {"connectivities_key": self.connectivities, "distances_key": self.distances}
            mappings[self.key_added or "neighbors"] = {**keys, "params": searched}
        of_map |= seed if self.seed != 0 else {}
        key = self.key_added or "umap"
        before = mappings.get(key, {"params": {}})
        mappings[key] = {**before, "params": {**before["params"], **of_map}}
        return mappings


def umap(
    adata: AnnData | str | os.PathLike[str],
    *,
    min_dist: float = 0.5,
    spread: float = 1.0,
    n_components: int = 2,
    maxiter: int | None = None,
    alpha: float = 1.0,
    gamma: float = 1.0,
    negative_sample_rate: float = 5,
    init_pos: Any = "spectral",
    random_state: int | np.random.RandomState | None = 0,
    a: float | None = None,
    b: float | None = None,
    key_added: str | None = None,
    neighbors_key: str | None = None,
    copy: bool = False,
    use_rep: str | None = None,
    n_neighbors: int = 15,
    metric: str = "euclidean",
    metric_kwds: Mapping[str, Any] | None = None,
    client: Client | None = None,
    store: str | os.PathLike[str] | None = None,
) -> AnnData | None:
    """Make a map of an AnnData object or store, and write it where `scanpy.tl.umap` writes it.

    The map is written to `obsm["X_umap"]` and `uns["umap"]`. If neighbours are searched, they are written to
    `obsp["distances"]`, `obsp["connectivities"]` and `uns["neighbors"]`, where `scanpy.tl.leiden`, `scanpy.tl.paga` and
    others read them. A Zarr store is read and written block by block, so it need not fit in memory. New arrays appear
    in the store once they are complete. So many parameters: they are scanpy's.

    Parameters
    ----------
    adata : AnnData, path or URL
        An object, or a Zarr store that anndata wrote.
    min_dist, spread, n_components, a, b : float, float, int, float, float
        How close rows lie in the map, and the map's dimensions.
    maxiter, alpha, gamma, negative_sample_rate : int, float, float, float
        Of the layout: epochs, learning rate, weight of negative samples, and their number.
    init_pos : {'spectral', 'pca', 'random'}, str or ndarray
        The first coordinates of rows. Another str is a key of `obsm`.
    random_state : int, RandomState or None
        The seed; None is dumap's default seed.
    key_added : str, optional
        The key in `obsm` and `uns`. Neighbours that are searched are then written to `obsp` as `{key_added}_distances`
        and `{key_added}_connectivities`, and `uns[key_added]` describes them, for `neighbors_key` of scanpy's
        functions.
    neighbors_key : str, optional
        The key in `uns` of neighbours that scanpy searched; their distances are used. By default neighbours are
        searched, even if the object has some.
    copy : bool
        Return a copy instead of writing to `adata`, which must be an object.
    use_rep : str, optional
        The array to embed: a key of `obsm`, or 'X'. By default the array that the neighbours of `neighbors_key` name,
        otherwise `X_pca` if it exists, otherwise X.
    n_neighbors, metric, metric_kwds : int, str, mapping
        Of the search: neighbours of each row, the row itself counted, and the distance.
    client : distributed.Client, optional
        The cluster to run on.
    store : path or URL, optional
        Location of the run, which is then kept. By default a temporary folder. For a store on disk, it is a folder
        beside the store; an interrupted call leaves it there, and the same call goes on with it.

    Returns
    -------
    AnnData or None
        The copy, with `copy=True`.

    Raises
    ------
    ValueError
        A parameter, or the data, is not allowed.
    DumapError
        Another error of the run.

    Examples
    --------
    >>> import anndata, dumap, numpy as np
    >>> adata = anndata.AnnData(np.random.default_rng(0).normal(size=(100, 5)))
    >>> dumap.umap(adata, n_neighbors=10, maxiter=20)
    >>> adata.obsm["X_umap"].shape, adata.uns["neighbors"]["params"]["n_neighbors"]
    ((100, 2), 10)
    """
    from dumap.sources.estimated import seed_of

    if a is None or b is None:
        a = b = None
    seed = seed_of(random_state)
    settings = {"min_dist": min_dist, "spread": spread, "n_components": n_components, "a": a, "b": b}
    settings |= {"n_epochs": maxiter, "learning_rate": alpha, "repulsion_strength": gamma, "random_state": seed}
    settings["negative_sample_rate"] = negative_sample_rate
    searched = {"n_neighbors": n_neighbors, "metric": metric, "metric_kwds": dict(metric_kwds or {})}
    request = _Request(settings, searched, key_added, neighbors_key, use_rep, init_pos, seed)
    if isinstance(init_pos, str) and init_pos == "paga":
        raise ParameterError("init_pos='paga': give the positions themselves, an array of one row an observation")
    if isinstance(adata, str | os.PathLike):
        if copy:
            raise ParameterError("copy=True is of an object in memory; copy the store, and name the copy")
        with as_value_errors():
            _map_store(os.fsdecode(adata), request, client, store)
        return None
    adata = adata.copy() if copy else adata
    _map_object(adata, request, client, store)
    return adata if copy else None


def _neighbors_of(uns: Mapping[str, Any], key: str) -> tuple[str, dict[str, Any]]:
    """Return the key of the distances that scanpy searched, and the parameters of the search."""
    if key not in uns:
        raise ParameterError(
            f"neighbors_key={key!r}: there is no uns[{key!r}]; leave it out to have neighbours searched"
        )
    entry = uns[key]
    return entry.get("distances_key", "distances"), dict(entry.get("params", {}))


def _searched(params: Mapping[str, Any], request: _Request) -> dict[str, Any]:
    """Return the settings of given neighbours, from scanpy's parameters."""
    return {
        "n_neighbors": int(params.get("n_neighbors", request.neighbors["n_neighbors"])),
        "metric": str(params.get("metric", "euclidean")),
        "metric_kwds": dict(params.get("metric_kwds", {})),
    }


# objects in memory ---------------------------------------------------------------------------------


def _map_object(adata: AnnData, request: _Request, client: Client | None, store: Any) -> None:
    from dumap.estimator import UMAP
    from dumap.show.rows import distances_of

    matrix: Any = None
    params: dict[str, Any] = {}
    if request.neighbors_key is not None:
        key, params = _neighbors_of(adata.uns, request.neighbors_key)
        matrix = adata.obsp[key]
    use_rep = request.use_rep or params.get("use_rep") or ("X_pca" if "X_pca" in adata.obsm else "X")
    if use_rep != "X" and use_rep not in adata.obsm:
        raise ParameterError(f"use_rep={use_rep!r}: there is no obsm[{use_rep!r}]; there are {', '.join(adata.obsm)}")
    x = adata.X if use_rep == "X" else adata.obsm[use_rep]
    init = request.init_pos
    init = np.asarray(adata.obsm[init]) if isinstance(init, str) and init in adata.obsm else init
    searched = _searched(params, request) if matrix is not None else request.neighbors
    reducer = UMAP(**request.settings, **searched, init=init, client=client, store=store)
    result = reducer.fit(x, knn_graph=matrix).run_
    adata.obsm[request.embedding] = reducer.embedding_
    if matrix is None:
        adata.obsp[request.distances] = distances_of(result.neighbors)
        adata.obsp[request.connectivities] = result.graph()
    adata.uns.update(request.mappings(result, use_rep))


# stores on disk ------------------------------------------------------------------------------------


def _map_store(path: str, request: _Request, client: Client | None, store: Any) -> None:
    from dumap.api import run
    from dumap.store import AnnDataStore, Slots, remove_tree

    target = AnnDataStore(path)
    output = f"{target.path}.dumap-run" if store is None else os.fsdecode(store)
    with Slots(target) as slots:
        settings, use_rep = _settings_of(target, slots, request)
        array = use_rep if use_rep == "X" or "/" in use_rep else f"obsm/{use_rep}"
        result = run(target.path, output=output, client=client, input={"array": array}, **settings)
        _fill(slots, result, request, use_rep)
        slots.publish()
    if store is None:
        remove_tree(output)


def _settings_of(target: AnnDataStore, slots: Slots, request: _Request) -> tuple[dict[str, Any], str]:
    """Return the run's settings, and the name of the array to embed. Given neighbours and coordinates are written
    beside the slots.
    """
    from dumap.sources.estimated import fitting

    settings = {**request.settings, **request.neighbors, "init": request.init_pos}
    params: dict[str, Any] = {}
    if request.neighbors_key is not None:
        key = f"uns/{request.neighbors_key}"
        uns = {request.neighbors_key: target.read(key)} if target.holds(key) else {}
        distances, params = _neighbors_of(uns, request.neighbors_key)
        settings |= _searched(params, request)
        settings["precomputed_knn"] = _give_lists(target, slots, f"obsp/{distances}", settings["n_neighbors"])
    else:
        settings["n_neighbors"] = fitting(settings["n_neighbors"], target.rows, stacklevel=5)
    if not isinstance(request.init_pos, str):
        settings["init"] = slots.keep_array("init", np.asarray(request.init_pos, np.float32))
    elif target.holds(f"obsm/{request.init_pos}"):
        settings["init"] = f"{target.path}/obsm/{request.init_pos}"
    return settings, request.use_rep or params.get("use_rep") or ("X_pca" if target.holds("obsm/X_pca") else "X")


def _spans(rows: int, n_neighbors: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows whose part of the graph fits in memory."""
    step = max(1, BLOCK_BYTES // (EDGES * n_neighbors * EDGE_BYTES))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def _give_lists(target: AnnDataStore, slots: Slots, key: str, n_neighbors: int) -> str:
    """Write a store's distances as lists that a run reads; return their path."""
    from dumap.sources.neighbor_lists import lists_of
    from dumap.store import write_arrays

    if not target.holds(key):
        raise DataError(f"{target.path} has no {key}, in which the distances of neighbours should be")

    def blocks(which: int) -> Iterator[tuple[int, np.ndarray]]:
        for start, stop in _spans(target.rows, n_neighbors):
            yield start, lists_of(target.read_rows(key, start, stop), start, n_neighbors - 1)[which]

    shape, path = (target.rows, n_neighbors - 1), f"{slots.path}/lists.zarr"
    write_arrays(path, {"indices": (shape, "int64", blocks(0)), "distances": (shape, "float32", blocks(1))})
    return path


def _fill(slots: Slots, result: Result, request: _Request, use_rep: str) -> None:
    """Write a run's results, block by block."""
    from dumap.show.rows import entries_of

    array, facts = result.embedding, result.facts["graph"]
    rows, n_neighbors = array.shape[0], int(result["parameters"]["neighbors"]["n_neighbors"])
    spans = list(_spans(rows, n_neighbors))
    if request.neighbors_key is None:
        neighbors = result.neighbors
        entries = rows * (n_neighbors - 1) - int(facts["missing"])
        listed = (entries_of(*neighbors[start:stop]) for start, stop in spans)
        slots.put_sparse(f"obsp/{request.distances}", rows, entries, "float64", listed)
        graph = (result.graph(slice(start, stop)) for start, stop in spans)
        united = ((np.diff(rows_graph.indptr), rows_graph.indices, rows_graph.data) for rows_graph in graph)
        slots.put_sparse(f"obsp/{request.connectivities}", rows, int(facts["edges"]), "float32", united)
    blocks = (np.asarray(array[start:stop]) for start, stop in spans)
    slots.put_array(f"obsm/{request.embedding}", array.shape, "float32", blocks)
    for key, values in request.mappings(result, use_rep).items():
        slots.put_mapping(f"uns/{key}", values)
