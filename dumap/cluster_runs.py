"""Runs that a cluster drives by itself: `dumap.submit` and `dumap.attach`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dumap.api import path_text, read_config_and_rows
from dumap.errors import ConfigError

if TYPE_CHECKING:
    from distributed import Client

    from dumap.api import ConfigSource, Path
    from dumap.show.handle import Handle


def submit(
    data: Any = None,
    client: Client | None = None,
    *,
    output: Path | None = None,
    config: ConfigSource | None = None,
    parent: Path | None = None,
    force: bool = False,
    **settings: Any,
) -> Handle:
    """Submit a run to a cluster, which drives the run by itself.

    The program may end, and find the run again with `attach`.

    The driver is a task that takes no thread from other tasks. It starts again on another worker if its worker is lost.
    If the cluster drives the run already, the handle of that run is returned.

    Parameters
    ----------
    data : path or URL, optional
        As for `run`. The workers must be able to read the data, so it cannot be an object in this process's memory.
    client : distributed.Client, optional
        A client of the cluster, asynchronous or not. By default the scheduler that the run's or Dask's configuration
        names.
    output, config, parent, force, **settings
        As for `run`.

    Returns
    -------
    Handle
        Follows, awaits or cancels the run.

    Raises
    ------
    ConfigError
        The configuration is wrong, or no cluster is named.
    LockError
        The cluster drives that run with other settings.

    Examples
    --------
    >>> import dumap
    >>> from dask.distributed import Client
    >>> with Client(processes=False, n_workers=1, dashboard_address=":0") as client:
    ...     handle = dumap.submit("DATA.zarr", client, output="SUBMITTED.zarr", n_epochs=5)
    ...     handle.result()["state"]
    'done'
    """
    from dumap.engine.connect import open_client
    from dumap.show.handle import submit_run

    resolved_config, object_rows = read_config_and_rows(data, output, config, settings)
    if object_rows is not None:
        raise ConfigError(
            f"submit: the rows of the {object_rows.kind} are in this process, which may leave: write them to a Zarr "
            f"array, or call dumap.run"
        )
    connected_client = open_client(resolved_config.cluster) if client is None else client
    return submit_run(connected_client, resolved_config, None if parent is None else path_text(parent), force)


def attach(output: Path, client: Client | None = None) -> Handle:
    """Find a run that a cluster drives, or has driven since its scheduler started.

    Parameters
    ----------
    output : path or URL
        Where the run is stored.
    client : distributed.Client, optional
        A client of the cluster. By default the scheduler that Dask's configuration names.

    Returns
    -------
    Handle
        With an asynchronous client, an awaitable of the handle.

    Raises
    ------
    ConfigError
        No cluster is named.
    ClusterError
        The cluster drives no such run.

    Examples
    --------
    >>> import dumap
    >>> from dask.distributed import Client
    >>> with Client(processes=False, n_workers=1, dashboard_address=":0") as client:
    ...     handle = dumap.submit("DATA.zarr", client, output="ATTACHED.zarr", n_epochs=5)
    ...     dumap.attach("ATTACHED.zarr", client).result()["state"]
    'done'
    """
    from dumap.config import ClusterConfig
    from dumap.engine.connect import open_client
    from dumap.show import handle

    attached: Handle = handle.attach(open_client(ClusterConfig()) if client is None else client, path_text(output))
    return attached
