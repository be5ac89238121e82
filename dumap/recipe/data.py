"""Converts the data that a program gives to settings of the section `input`, and to rows that are copied to the run."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from dumap.config import Config
from dumap.sources.annotated import element_of, is_annotated
from dumap.sources.objects import is_instance, paths_of, rows_of
from dumap.sources.row_names import names_of
from dumap.sources.spooled import ObjectRows, location_of

if TYPE_CHECKING:
    from distributed import Client


def input_settings(data: Any) -> dict[str, Any]:
    """Return the settings of the section `input` for data, without reading the data."""
    return paths_of(data) or {"path": f"<{type(data).__name__}>"}


def resolve_data(data: Any, config: Config) -> tuple[Config, ObjectRows | None]:
    """Return the configuration that names the data, and the data's rows if they must be copied to the run, else None.

    Parameters
    ----------
    data
        See `dumap.run`.
    config : Config
        A configuration with the `input_settings` of the data.

    Raises
    ------
    DumapError
        The data cannot be embedded.
    """
    settings: dict[str, Any] = {}
    original = data
    if is_annotated(data):
        settings["array"], data = element_of(data, config.input.array)
    elif paths_of(data) is not None:
        return config, None
    if (paths := paths_of(data)) is not None:
        return with_input_settings(config, {**settings, **paths}), None
    object_rows = _make_object_rows(data)
    object_rows.names = names_of(original)
    return with_input_settings(config, {**settings, "path": location_of(object_rows)}), object_rows


def with_input_settings(config: Config, settings: dict[str, Any]) -> Config:
    """Return a configuration with other settings of the section `input`."""
    return config.model_copy(update={"input": config.input.model_copy(update=settings)})


def _find_collection(data: Any) -> Any:
    """Return the Dask collection that data is or wraps; None if it is none, or if Dask is not imported."""
    if "dask" not in sys.modules:
        return None
    from dumap.engine.collections import is_collection

    if is_instance(data, "xarray", "DataArray") and data.chunks is not None:
        data = data.data
    return data if is_collection(data) else None


def _make_object_rows(data: Any) -> ObjectRows:
    """Return the rows of an object in memory or of a Dask collection."""
    if (collection := _find_collection(data)) is not None:
        from dumap.engine.collections import DaskRows

        return DaskRows(collection)
    return rows_of(data)


def find_client(data: Any, config: Config) -> Client | None:
    """Return Dask's default client if data is a Dask collection and the configuration names no workers, else None."""
    cluster = config.cluster
    names_workers = cluster.workers or cluster.memory_limit or cluster.scheduler or cluster.scheduler_file
    if names_workers or cluster.engine == "local" or "distributed" not in sys.modules or _find_collection(data) is None:
        return None
    from dumap.engine.collections import default_client

    return default_client()
