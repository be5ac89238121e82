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
EDGES_PER_NEIGHBOR = 3
"""A row of the graph has at most about this many times n_neighbors edges."""


@dataclass(frozen=True)
class _UmapArguments:
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
    def embedding_key(self) -> str:
        return self.key_added or "X_umap"

    @property
    def distances_key(self) -> str:
        return f"{self.key_added}_distances" if self.key_added else "distances"

    @property
    def connectivities_key(self) -> str:
        return f"{self.key_added}_connectivities" if self.key_added else "connectivities"

    def uns_entries(self, result: Result, use_rep: str) -> dict[str, dict[str, Any]]:
        """Return the entries for `uns`. Parameters of neighbours and of the map may share one key, as scanpy reads
        them.
        """
        facts, parameters = result.facts["layout"], result["parameters"]
        map_params = {"a": float(facts["a"]), "b": float(facts["b"])}
        seed = {"random_state": int(parameters["seed"])}
        entries: dict[str, dict[str, Any]] = {}
        if self.neighbors_key is None:
            neighbors_params: dict[str, Any] = {
                "n_neighbors": parameters["neighbors"]["n_neighbors"],
                "method": "umap",
                **seed,
            }
            neighbors_params |= {"metric": self.neighbors["metric"], "use_rep": use_rep}
            if self.neighbors["metric_kwds"]:
                neighbors_params["metric_kwds"] = dict(self.neighbors["metric_kwds"])
            matrix_keys = {"connectivities_key": self.connectivities_key, "distances_key": self.distances_key}
            entries[self.key_added or "neighbors"] = {**matrix_keys, "params": neighbors_params}
        map_params |= seed if self.seed != 0 else {}
        key = self.key_added or "umap"
        entry = entries.get(key, {"params": {}})
        entries[key] = {**entry, "params": {**entry["params"], **map_params}}
        return entries


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
    neighbors_settings = {"n_neighbors": n_neighbors, "metric": metric, "metric_kwds": dict(metric_kwds or {})}
    arguments = _UmapArguments(settings, neighbors_settings, key_added, neighbors_key, use_rep, init_pos, seed)
    if isinstance(init_pos, str) and init_pos == "paga":
        raise ParameterError("init_pos='paga': give the positions themselves, an array of one row an observation")
    if isinstance(adata, str | os.PathLike):
        if copy:
            raise ParameterError("copy=True is of an object in memory; copy the store, and name the copy")
        with as_value_errors():
            _embed_store(os.fsdecode(adata), arguments, client, store)
        return None
    adata = adata.copy() if copy else adata
    _embed_object(adata, arguments, client, store)
    return adata if copy else None


def _read_neighbors_entry(uns: Mapping[str, Any], key: str) -> tuple[str, dict[str, Any]]:
    """Return the key of the distances that scanpy searched, and the parameters of the search."""
    if key not in uns:
        raise ParameterError(
            f"neighbors_key={key!r}: there is no uns[{key!r}]; leave it out to have neighbours searched"
        )
    entry = uns[key]
    return entry.get("distances_key", "distances"), dict(entry.get("params", {}))


def _given_neighbors_settings(params: Mapping[str, Any], arguments: _UmapArguments) -> dict[str, Any]:
    """Return the settings of given neighbours, from scanpy's parameters."""
    return {
        "n_neighbors": int(params.get("n_neighbors", arguments.neighbors["n_neighbors"])),
        "metric": str(params.get("metric", "euclidean")),
        "metric_kwds": dict(params.get("metric_kwds", {})),
    }


# objects in memory ---------------------------------------------------------------------------------


def _embed_object(adata: AnnData, arguments: _UmapArguments, client: Client | None, store: Any) -> None:
    from dumap.estimator import UMAP
    from dumap.show.rows import distance_matrix

    matrix: Any = None
    params: dict[str, Any] = {}
    if arguments.neighbors_key is not None:
        key, params = _read_neighbors_entry(adata.uns, arguments.neighbors_key)
        matrix = adata.obsp[key]
    use_rep = arguments.use_rep or params.get("use_rep") or ("X_pca" if "X_pca" in adata.obsm else "X")
    if use_rep != "X" and use_rep not in adata.obsm:
        raise ParameterError(f"use_rep={use_rep!r}: there is no obsm[{use_rep!r}]; there are {', '.join(adata.obsm)}")
    x = adata.X if use_rep == "X" else adata.obsm[use_rep]
    init = arguments.init_pos
    init = np.asarray(adata.obsm[init]) if isinstance(init, str) and init in adata.obsm else init
    neighbors_settings = _given_neighbors_settings(params, arguments) if matrix is not None else arguments.neighbors
    reducer = UMAP(**arguments.settings, **neighbors_settings, init=init, client=client, store=store)
    result = reducer.fit(x, knn_graph=matrix).run_
    adata.obsm[arguments.embedding_key] = reducer.embedding_
    if matrix is None:
        adata.obsp[arguments.distances_key] = distance_matrix(result.neighbors)
        adata.obsp[arguments.connectivities_key] = result.graph()
    adata.uns.update(arguments.uns_entries(result, use_rep))


# stores on disk ------------------------------------------------------------------------------------


def _embed_store(path: str, arguments: _UmapArguments, client: Client | None, store: Any) -> None:
    from dumap.api import run
    from dumap.store import AnnDataStore, Slots, delete_tree

    adata_store = AnnDataStore(path)
    output = f"{adata_store.path}.dumap-run" if store is None else os.fsdecode(store)
    with Slots(adata_store) as slots:
        settings, use_rep = _store_settings(adata_store, slots, arguments)
        array = use_rep if use_rep == "X" or "/" in use_rep else f"obsm/{use_rep}"
        result = run(adata_store.path, output=output, client=client, input={"array": array}, **settings)
        _write_results(slots, result, arguments, use_rep)
        slots.publish()
    if store is None:
        delete_tree(output)


def _store_settings(adata_store: AnnDataStore, slots: Slots, arguments: _UmapArguments) -> tuple[dict[str, Any], str]:
    """Return the run's settings, and the name of the array to embed. Given neighbours and coordinates are written
    beside the slots.
    """
    from dumap.sources.estimated import fitting

    settings = {**arguments.settings, **arguments.neighbors, "init": arguments.init_pos}
    params: dict[str, Any] = {}
    if arguments.neighbors_key is not None:
        key = f"uns/{arguments.neighbors_key}"
        uns = {arguments.neighbors_key: adata_store.read(key)} if adata_store.holds(key) else {}
        distances, params = _read_neighbors_entry(uns, arguments.neighbors_key)
        settings |= _given_neighbors_settings(params, arguments)
        settings["precomputed_knn"] = _write_given_lists(
            adata_store, slots, f"obsp/{distances}", settings["n_neighbors"]
        )
    else:
        settings["n_neighbors"] = fitting(settings["n_neighbors"], adata_store.rows, stacklevel=5)
    if not isinstance(arguments.init_pos, str):
        settings["init"] = slots.write_temporary_array("init", np.asarray(arguments.init_pos, np.float32))
    elif adata_store.holds(f"obsm/{arguments.init_pos}"):
        settings["init"] = f"{adata_store.path}/obsm/{arguments.init_pos}"
    return settings, arguments.use_rep or params.get("use_rep") or ("X_pca" if adata_store.holds("obsm/X_pca") else "X")


def _row_ranges(rows: int, n_neighbors: int) -> Iterator[tuple[int, int]]:
    """Yield ranges of rows whose part of the graph fits in memory."""
    step = max(1, BLOCK_BYTES // (EDGES_PER_NEIGHBOR * n_neighbors * EDGE_BYTES))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def _write_given_lists(adata_store: AnnDataStore, slots: Slots, key: str, n_neighbors: int) -> str:
    """Write a store's distances as lists that a run reads; return their path."""
    from dumap.sources.neighbor_lists import lists_of
    from dumap.store import write_arrays

    if not adata_store.holds(key):
        raise DataError(f"{adata_store.path} has no {key}, in which the distances of neighbours should be")

    def blocks(array_number: int) -> Iterator[tuple[int, np.ndarray]]:
        for start, stop in _row_ranges(adata_store.rows, n_neighbors):
            yield start, lists_of(adata_store.read_rows(key, start, stop), start, n_neighbors - 1)[array_number]

    shape, path = (adata_store.rows, n_neighbors - 1), f"{slots.path}/lists.zarr"
    write_arrays(path, {"indices": (shape, "int64", blocks(0)), "distances": (shape, "float32", blocks(1))})
    return path


def _write_results(slots: Slots, result: Result, arguments: _UmapArguments, use_rep: str) -> None:
    """Write a run's results, block by block."""
    from dumap.show.rows import sparse_entries

    array, facts = result.embedding, result.facts["graph"]
    rows, n_neighbors = array.shape[0], int(result["parameters"]["neighbors"]["n_neighbors"])
    row_ranges = list(_row_ranges(rows, n_neighbors))
    if arguments.neighbors_key is None:
        neighbors = result.neighbors
        n_entries = rows * (n_neighbors - 1) - int(facts["missing"])
        distance_entries = (sparse_entries(*neighbors[start:stop]) for start, stop in row_ranges)
        slots.put_sparse(f"obsp/{arguments.distances_key}", rows, n_entries, "float64", distance_entries)
        graph_blocks = (result.graph(slice(start, stop)) for start, stop in row_ranges)
        graph_entries = (
            (np.diff(rows_graph.indptr), rows_graph.indices, rows_graph.data) for rows_graph in graph_blocks
        )
        slots.put_sparse(f"obsp/{arguments.connectivities_key}", rows, int(facts["edges"]), "float32", graph_entries)
    blocks = (np.asarray(array[start:stop]) for start, stop in row_ranges)
    slots.put_array(f"obsm/{arguments.embedding_key}", array.shape, "float32", blocks)
    for key, values in arguments.uns_entries(result, use_rep).items():
        slots.put_mapping(f"uns/{key}", values)
