"""The door for programs: every function translates, and decides nothing."""

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
    Settings = Config | Mapping[str, Any] | Path
    Progress = Observer | Callable[[str, float, float], object]


class Cleaned(NamedTuple):
    """What `clean` found.

    Attributes
    ----------
    unnamed : list of str
        Keys of dumap's own that no manifest names: removed, unless only looked for.
    others : list of str
        Keys that are not dumap's: left.

    Examples
    --------
    >>> import dumap
    >>> dumap.clean("RUN.zarr").others
    []
    """

    unnamed: list[str]
    others: list[str]


def configure(
    data: Any, output: Path | None, config: Settings | None, settings: dict[str, Any]
) -> tuple[Config, ObjectRows | None]:
    """Return the configuration, and the rows of data that have no place of their own."""
    from dumap.recipe.data import input_settings, take

    if isinstance(data, Config | dict):
        if config is not None:
            raise ConfigError("the configuration is given twice, as data and as config: give the data, or leave it out")
        data, config = None, data
    if output is not None:
        settings["output"] = output
    if data is None:
        return read_config(config, settings), None
    return take(data, read_config(config, settings, input_settings(data)))


def location_of(run: Path) -> str:
    """Return a path or a URL as text."""
    return os.fsdecode(run)


def run(
    data: Any = None,
    /,
    *,
    output: Path | None = None,
    config: Settings | None = None,
    client: Client | None = None,
    parent: Path | None = None,
    on_progress: Progress | None = None,
    force: bool = False,
    **settings: Any,
) -> Result:
    """Embed data, going on where an earlier call stopped.

    Parameters
    ----------
    data : optional
        What to embed, one row a vector. Read where it lies: the path or URL of a Zarr array, or of a group that holds
        one, a list of them or a pattern such as 'DATA-*.zarr', whose rows follow one another, or a `zarr.Array`.
        Copied into the run once, until no stage reads it any more: a NumPy array or what makes one of itself, a pandas
        or Dask data frame of numbers, a Dask array, an `xarray.DataArray`; of an `anndata.AnnData`, what
        `input={"array": ...}` names: 'X', 'obsm/<key>' or 'layers/<key>', by default 'obsm/X_pca' where there is one,
        else 'X'. Later calls need the same again: Dask's are compared by their name, others by what they hold. Not
        needed where `config` names the input. A `Config` or a dict in its place is taken for `config`.
    output : path or URL, optional
        Where the run is stored; not needed where `config` names it.
    config : Config, mapping or path, optional
        A configuration, its mapping, or a YAML file of it. What is given beside it wins.
    client : distributed.Client, optional
        Where to run; by default what the configuration names, or threads of this process, or an embedded cluster.
    parent : path or URL, optional
        A run whose finished stages are reused where they would be identical.
    on_progress : Observer or callable, optional
        Told how the run goes on, from the thread of this call alone; a function is called with stage, done and total.
        What it raises ends the run, which a later call goes on with. By default the logger `dumap` is told, at INFO.
    force : bool
        Go on with stages that were begun with other versions of the libraries, or on other processors.
    **settings
        Settings by umap-learn's names (`n_neighbors`, `min_dist`, `metric`, `random_state`, ...), `seed`, `keep` and
        `task_memory`, and sections as mappings (`layout={"min_dist": 0.2}`): see `dumap config`.

    Returns
    -------
    Result
        Also a mapping of the run's status: 'output', 'state', 'stages', ...

    Raises
    ------
    DumapError
        With an `exit_code`, and a message that says what to do.

    Examples
    --------
    >>> import dumap
    >>> result = dumap.run("DATA.zarr", output="RUN.zarr", n_neighbors=10, n_epochs=20)
    >>> result["state"], result.embedding.shape
    ('done', (300, 2))
    """
    from dumap.recipe import pipeline
    from dumap.recipe.data import client_of
    from dumap.recipe.observers import Callbacks, Logged
    from dumap.show.result import Result

    resolved, object_rows = configure(data, output, config, settings)
    client = client or client_of(data, resolved)
    parent_path = None if parent is None else location_of(parent)
    with Callbacks(Logged() if on_progress is None else on_progress) as observer:
        found = pipeline.run(
            resolved, client=client, observer=observer, force=force, parent=parent_path, object_rows=object_rows
        )
    return Result(found["output"], found)


def plan(
    data: Any = None,
    /,
    *,
    output: Path | None = None,
    config: Settings | None = None,
    parent: Path | None = None,
    **settings: Any,
) -> Plan:
    """Say what a run will take, and start nothing.

    Parameters
    ----------
    data, output, config, parent, **settings
        As of `run`.

    Returns
    -------
    Plan
        Tasks, bytes and memory by stage: `print` shows them, `as_dict()` is for machines.

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

    resolved, _ = configure(data, output, config, settings)
    return pipeline.plan(resolved) if parent is None else pipeline.plan(resolved, location_of(parent))


def open_run(path: Path) -> Result:
    """Open a run to read from it.

    Parameters
    ----------
    path : path or URL

    Returns
    -------
    Result
        Nothing is read until it is asked for.

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

    return Result.open(location_of(path))


def status(path: Path) -> dict[str, Any]:
    """Say what of a run is done.

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

    return recipe.status(location_of(path))


def verify(path: Path, *, dry_run: bool = False) -> list[str]:
    """Read every committed object of a run against its checksum; `run` then makes what is damaged again.

    Parameters
    ----------
    path : path or URL
    dry_run : bool
        Change nothing.

    Returns
    -------
    list of str
        The keys of what is damaged.

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
    from dumap.recipe.observers import Logged

    return [key for _, _, key in damage.verify(location_of(path), Logged().note, mend=not dry_run)]


def clean(path: Path, *, dry_run: bool = False) -> Cleaned:
    """Remove what dumap left in a run that no manifest names: of tasks that died, failed or came second.

    Parameters
    ----------
    path : path or URL
    dry_run : bool
        Remove nothing.

    Returns
    -------
    Cleaned
        `unnamed`, what was removed, and `others`, what is not dumap's and was left.

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
    from dumap.recipe.observers import Logged

    return Cleaned(*damage.clean(location_of(path), Logged().note, dry_run))


def export(
    path: Path, what: str, out: Path, *, labels: Path | None = None, with_self: bool = False, force: bool = False
) -> str:
    """Write one result of a run in a form that others read.

    Parameters
    ----------
    path : path or URL
        The run.
    what : {'embedding', 'neighbors', 'graph', 'picture'}
    out : path
        The file; its ending chooses the form: .npy, .csv or .parquet of an embedding, .npz or .zarr of neighbors, .npz
        of a graph, .png of a picture.
    labels : path or URL, optional
        Labels that colour a picture: .npy, or a Zarr array.
    with_self : bool
        Let each row come first among its neighbors, as umap-learn's `precomputed_knn` wants them.
    force : bool
        Write over a file that is there.

    Returns
    -------
    str
        What was written, for people.

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

    return write(
        location_of(path), what, location_of(out), None if labels is None else location_of(labels), with_self, force
    )


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
    """Make a Zarr store of the rows of files, one after another, in bounded memory.

    Parameters
    ----------
    sources : path, or sequence of path
        Files that end in .npy, .npz, .parquet, .h5, .hdf5, .h5ad, .csv or .tsv (the last two also .gz), patterns of
        them, and folders of Parquet.
    output : path or URL
        The store, at which nothing may be; it is there once it is whole.
    columns : sequence of str or int, optional
        Columns to take, by their names; where they have none, by numbers and ranges 'START:STOP'. By default all that
        hold numbers.
    names : str, optional
        The column, or array, of row names, which are kept as an array `names`. By default what pandas or AnnData wrote.
    key : str, optional
        The array of a file that holds several, such as 'obsm/X_pca'.
    array : str
        What the array is called.
    dtype : str, optional
        Of the values; by default one that holds those of all files.
    header : bool
        Whether the first line of text names the columns.

    Returns
    -------
    dict
        'output', 'array', 'rows', 'dims', 'dtype', 'chunk_rows', 'columns' and 'names'.

    Raises
    ------
    DumapError
        A file cannot be read, does not go with those before, or the output is there.

    Examples
    --------
    >>> import dumap, numpy as np
    >>> np.save("rows.npy", np.zeros((100, 5), "float32"))
    >>> made = dumap.ingest("rows.npy", "ROWS.zarr")
    >>> made["rows"], made["dims"], made["dtype"]
    (100, 5, 'float32')
    """
    from dumap.recipe.observers import Logged
    from dumap.sources.files import FileSelection
    from dumap.sources.ingestion import ingest as write

    files = [sources] if isinstance(sources, str | os.PathLike) else list(sources)
    choice = FileSelection(None if columns is None else tuple(map(str, columns)), key, names, header)
    return write([location_of(file) for file in files], location_of(output), choice, array, dtype, Logged().note)
