"""What a program may give as data, and the settings of the input that it stands for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from dumap.errors import ConfigError

if TYPE_CHECKING:
    from dumap.sources.spooled import Feed


def read_data(data: Any) -> tuple[dict[str, Any], Feed | None]:
    """Return the settings of the section `input` that stand for what a program gave as data, and its rows.

    Parameters
    ----------
    data : str, os.PathLike or array
        The path or URL of a Zarr array, or of a group that holds one; or a NumPy array, or what makes one of itself.

    Returns
    -------
    settings : dict
    feed : Feed or None
        The rows of what lies in this process; None of what lies at a path.

    Raises
    ------
    ConfigError
        It is nothing that can be embedded.
    InputError
        It holds no rows of numbers.
    """
    if isinstance(data, str | os.PathLike):
        return {"path": os.fsdecode(data)}, None
    from dumap.sources.arrays import rows_of
    from dumap.sources.spooled import location_of

    feed = rows_of(data)
    if feed is None:
        raise ConfigError(
            f"data of type {type(data).__name__} cannot be embedded: give an array, or the path or the URL of a Zarr "
            f"array"
        )
    return {"path": location_of(feed)}, feed
