"""The door to a cluster that makes runs by itself: `dumap.submit` and `dumap.attach`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dumap.api import configure, location_of
from dumap.errors import ConfigError

if TYPE_CHECKING:
    from distributed import Client

    from dumap.api import Path, Settings
    from dumap.show.handle import Handle


def submit(
    data: Any = None,
    client: Client | None = None,
    *,
    output: Path | None = None,
    config: Settings | None = None,
    parent: Path | None = None,
    force: bool = False,
    **settings: Any,
) -> Handle:
    """Have a cluster embed data by itself: the program may leave, and find the run again with `attach`.

    The driver is a task, which takes no thread from others, and starts again elsewhere where its worker is gone. A run
    that is driven already is found, not begun twice.

    Parameters
    ----------
    data : path or URL, optional
        As of `run`; the workers have to see it, so it may not lie in this process's memory.
    client : distributed.Client, optional
        The cluster, by a client of either kind; by default the scheduler that the configuration, or Dask's, names.
    output, config, parent, force, **settings
        As of `run`.

    Returns
    -------
    Handle
        To follow, await or cancel the run.

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
    from dumap.show.handle import begin

    settled, object_rows = configure(data, output, config, settings)
    if object_rows is not None:
        raise ConfigError(
            f"submit: the rows of the {object_rows.kind} are in this process, which may leave: write them to a Zarr "
            f"array, or call dumap.run"
        )
    reached = open_client(settled.cluster) if client is None else client
    return begin(reached, settled, None if parent is None else location_of(parent), force)


def attach(output: Path, client: Client | None = None) -> Handle:
    """Find a run that a cluster drives, or has driven since it is there.

    Parameters
    ----------
    output : path or URL
        Where the run is stored.
    client : distributed.Client, optional
        The cluster; by default the scheduler that Dask's configuration names.

    Returns
    -------
    Handle
        With an asynchronous client, an awaitable of one.

    Raises
    ------
    ConfigError
        No cluster is named.
    ClusterError
        The cluster knows of no such run.

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

    found: Handle = handle.attach(open_client(ClusterConfig()) if client is None else client, location_of(output))
    return found
