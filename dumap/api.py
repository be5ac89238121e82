"""The functions for programs. Each translates its arguments and calls the recipe."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

from dumap.config import Config, read_config
from dumap.errors import ConfigError

if TYPE_CHECKING:
    from distributed import Client

    from dumap.engine import Observer
    from dumap.planning.plan import Plan
    from dumap.show.result import Result
    from dumap.sources.spooled import ObjectRows

    Path = str | os.PathLike[str]
    ConfigSource = Config | Mapping[str, Any] | Path
    ProgressCallback = Observer | Callable[[str, float, float], object]


class Cleaned(NamedTuple):
    """What `clean` found.

    Attributes
    ----------
    unnamed : list of str
        Keys of dumap that no manifest names. They were removed, except with `dry_run`.
    others : list of str
        Keys that are not dumap's. They were left.

    Examples
    --------
    >>> import dumap
    >>> dumap.clean("RUN.zarr").others
    []
    """

    unnamed: list[str]
    others: list[str]


def read_config_and_rows(
    data: Any, output: Path | None, config: ConfigSource | None, settings: dict[str, Any]
) -> tuple[Config, ObjectRows | None]:
    """Return the configuration and, if the data are an object without a location, its rows."""
    from dumap.recipe.data import input_settings, resolve_data

    if isinstance(data, Config | dict):
        if config is not None:
            raise ConfigError("the configuration is given twice, as data and as config: give the data, or leave it out")
        data, config = None, data
    if output is not None:
        settings["output"] = output
    if data is None:
        return read_config(config, settings), None
    return resolve_data(data, read_config(config, settings, input_settings(data)))


def path_text(location: Path) -> str:
    """Return a path or a URL as text."""
    return os.fsdecode(location)


def run(
    data: Any = None,
    /,
    *,
    output: Path | None = None,
    config: ConfigSource | None = None,
    client: Client | None = None,
    parent: Path | None = None,
    on_progress: ProgressCallback | None = None,
    force: bool = False,
    **settings: Any,
) -> Result:
    """Embed data, or go on with a run that was interrupted.

    Parameters
    ----------
    data : optional
        The data to embed, one row a vector; by default the input that `config` names. Stored data are read in place:
        the path or URL of a Zarr array or of a group that holds one, a list of such paths, a pattern such as
        'DATA-*.zarr', or a `zarr.Array`. Rows of several stores follow one another. Objects are copied into the run: a
        NumPy array or an object with `__array__`, a matrix of scipy.sparse, a pandas or Dask data frame of numbers, a
        Dask array, an `xarray.DataArray` or an `anndata.AnnData`, of which `input={"array": ...}` names the array:
        'X', 'obsm/<key>' or 'layers/<key>', by default 'obsm/X_pca' or else 'X'. Sparse rows stay sparse. Later calls
        need the same data: Dask's are compared by name, others by content. A dict or `Config` stands for `config`.
    output : path or URL, optional
        Location of the run. By default the output that `config` names.
    config : Config, mapping or path, optional
        A configuration, as an object, a mapping or the path of a YAML file. Other arguments override it.
    client : distributed.Client, optional
        The cluster to run on. By default the scheduler that the configuration names; without one, Dask's current client
        for Dask collections, otherwise threads of this process or an embedded cluster.
    parent : path or URL, optional
        A run whose finished stages are reused if they would be identical.
    on_progress : Observer or callable, optional
        Receives the run's progress, in the thread of this call; a function is called with stage, done and total. An
        exception that it raises ends the run. By default the logger `dumap` gets the progress, at INFO.
    force : bool
        Go on with stages that were begun with other versions of the libraries or on other processors.
    **settings
        Settings by umap-learn's names (`n_neighbors`, `min_dist`, `metric`, `random_state`, ...), `seed`, `keep` and
        `task_memory`, and sections as mappings (`layout={"min_dist": 0.2}`): see `dumap config`.

    Returns
    -------
    Result
        The run. It is also a mapping of the run's status: 'output', 'state', 'stages', ...

    Raises
    ------
    DumapError
        Every error has an `exit_code` and a message that says what to do.

    Examples
    --------
    >>> import dumap
    >>> result = dumap.run("DATA.zarr", output="RUN.zarr", n_neighbors=10, n_epochs=20)
    >>> result["state"], result.embedding.shape
    ('done', (300, 2))
    """
    from dumap.recipe import pipeline
    from dumap.recipe.data import find_client
    from dumap.recipe.observers import CallbackObserver, LogObserver
    from dumap.show.result import Result

    resolved_config, object_rows = read_config_and_rows(data, output, config, settings)
    client = client or find_client(data, resolved_config)
    parent_path = None if parent is None else path_text(parent)
    with CallbackObserver(LogObserver() if on_progress is None else on_progress) as observer:
        run_status = pipeline.run(
            resolved_config, client=client, observer=observer, force=force, parent=parent_path, object_rows=object_rows
        )
    return Result(run_status["output"], run_status)


def plan(
    data: Any = None,
    /,
    *,
    output: Path | None = None,
    config: ConfigSource | None = None,
    parent: Path | None = None,
    **settings: Any,
) -> Plan:
    """Project what a run will take, and start nothing.

    Parameters
    ----------
    data, output, config, parent, **settings
        As for `run`.

    Returns
    -------
    Plan
        Tasks, bytes and memory by stage. `print` shows them as a table; `as_dict()` returns plain values.

    Raises
    ------
    DumapError
        The configuration is wrong, or the input cannot be read or embedded.

    Examples
    --------
    >>> import dumap
    >>> planned = dumap.plan("DATA.zarr", output="NEW.zarr", n_neighbors=10)
    >>> planned.geometry.rows, planned.stages[0].name
    (300, 'vectors')
    """
    from dumap.recipe import pipeline

    resolved_config, _ = read_config_and_rows(data, output, config, settings)
    return pipeline.plan(resolved_config) if parent is None else pipeline.plan(resolved_config, path_text(parent))


def open_run(path: Path) -> Result:
    """Open a run to read from it.

    Parameters
    ----------
    path : path or URL

    Returns
    -------
    Result
        The run, read on access.

    Raises
    ------
    StorageError
        There is no run.

    Examples
    --------
    >>> import dumap
    >>> dumap.open_run("RUN.zarr").embedding[:3].shape
    (3, 2)
    """
    from dumap.show.result import Result

    return Result.open(path_text(path))


def status(path: Path) -> dict[str, Any]:
    """Return the status of a run.

    Parameters
    ----------
    path : path or URL

    Returns
    -------
    dict
        'output', 'state', 'stages', 'driver', 'parent', 'children', 'parameters', 'input', 'versions', ...

    Raises
    ------
    StorageError
        There is no run.

    Examples
    --------
    >>> import dumap
    >>> found = dumap.status("RUN.zarr")
    >>> found["state"], found["stages"][0]["name"]
    ('done', 'vectors')
    """
    from dumap.recipe import status as recipe

    return recipe.status(path_text(path))


def verify(path: Path, *, dry_run: bool = False) -> list[str]:
    """Check every committed object of a run against its checksum. `run` then makes damaged parts again.

    Parameters
    ----------
    path : path or URL
    dry_run : bool
        Change nothing.

    Returns
    -------
    list of str
        The keys of damaged objects.

    Raises
    ------
    StorageError
        There is no run, or it cannot be read.

    Examples
    --------
    >>> import dumap
    >>> dumap.verify("RUN.zarr")
    []
    """
    from dumap.recipe import damage
    from dumap.recipe.observers import LogObserver

    return [key for _, _, key in damage.verify(path_text(path), LogObserver().note, should_repair=not dry_run)]


def clean(path: Path, *, dry_run: bool = False) -> Cleaned:
    """Remove objects of dumap that no manifest names: leftovers of tasks that died, failed or finished second.

    Parameters
    ----------
    path : path or URL
    dry_run : bool
        Remove nothing.

    Returns
    -------
    Cleaned
        `unnamed`, the keys that were removed, and `others`, the keys that are not dumap's and were left.

    Raises
    ------
    StorageError
        There is no run, or it cannot be read.

    Examples
    --------
    >>> import dumap
    >>> dumap.clean("RUN.zarr", dry_run=True)
    Cleaned(unnamed=[], others=[])
    """
    from dumap.recipe import damage
    from dumap.recipe.observers import LogObserver

    return Cleaned(*damage.clean(path_text(path), LogObserver().note, dry_run))


def export(
    path: Path, what: str, out: Path, *, labels: Path | None = None, with_self: bool = False, force: bool = False
) -> str:
    """Write one result of a run in a format of other programs.

    Parameters
    ----------
    path : path or URL
        The run.
    what : {'embedding', 'neighbors', 'graph', 'picture'}
    out : path
        The file. Its ending chooses the format: .npy, .csv or .parquet for an embedding, .npz or .zarr for neighbors,
        .npz for a graph, .png for a picture.
    labels : path or URL, optional
        Labels that colour a picture: .npy, or a Zarr array.
    with_self : bool
        List each row first among its neighbors, as umap-learn's `precomputed_knn` expects.
    force : bool
        Overwrite an existing file.

    Returns
    -------
    str
        A line that says what was written.

    Raises
    ------
    DumapError

    Examples
    --------
    >>> import dumap
    >>> dumap.export("RUN.zarr", "embedding", "map.npy")
    'map.npy: 300 rows x 2 components'
    """
    from dumap.show.export import export as write

    return write(path_text(path), what, path_text(out), None if labels is None else path_text(labels), with_self, force)


def ingest(
    sources: Path | Sequence[Path],
    output: Path,
    *,
    columns: Sequence[str | int] | None = None,
    names: str | None = None,
    key: str | None = None,
    array: str = "vectors",
    dtype: str | None = None,
    header: bool = True,
) -> dict[str, Any]:
    """Write the rows of files, one file after another, to a Zarr store, in bounded memory.

    Parameters
    ----------
    sources : path, or sequence of path
        Files that end in .npy, .npz, .parquet, .h5, .hdf5, .h5ad, .csv or .tsv (the last two also .gz), patterns of
        such files, and folders of Parquet.
    output : path or URL
        The store to write. Nothing may exist there; the store appears once it is complete.
    columns : sequence of str or int, optional
        Columns by name, or by number or range 'START:STOP' in files without names. By default all with numbers.
    names : str, optional
        The column or array of row names, written as an array `names`. By default the names that pandas or AnnData
        wrote.
    key : str, optional
        The array to take from a file with several, such as 'obsm/X_pca'.
    array : str
        Name of the array.
    dtype : str, optional
        Dtype of the values. By default one that holds the values of all files.
    header : bool
        Whether the first line of text names the columns.

    Returns
    -------
    dict
        'output', 'array', 'rows', 'dims', 'dtype', 'chunk_rows', 'columns' and 'names'.

    Raises
    ------
    DumapError
        A file cannot be read, its columns differ from those of the first file, or the output exists.

    Examples
    --------
    >>> import dumap, numpy as np
    >>> np.save("rows.npy", np.zeros((100, 5), "float32"))
    >>> made = dumap.ingest("rows.npy", "ROWS.zarr")
    >>> made["rows"], made["dims"], made["dtype"]
    (100, 5, 'float32')
    """
    from dumap.recipe.observers import LogObserver
    from dumap.sources.files import FileSelection
    from dumap.sources.ingestion import ingest as write

    files = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    selection = FileSelection(None if columns is None else tuple(map(str, columns)), key, names, header)
    return write([path_text(file) for file in files], path_text(output), selection, array, dtype, LogObserver().note)
