"""What a program may give as data, and the settings of the input that it stands for."""

from __future__ import annotations

import os
from typing import Any

from dumap.errors import ConfigError


def input_settings(data: Any) -> dict[str, Any]:
    """Return the settings of the section `input` that stand for what a program gave as data.

    Parameters
    ----------
    data : str or os.PathLike
        The path or URL of a Zarr array, or of a group that holds one.

    Raises
    ------
    ConfigError
        It is nothing that can be embedded.
    """
    if isinstance(data, str | os.PathLike):
        return {"path": os.fsdecode(data)}
    raise ConfigError(
        f"data of type {type(data).__name__} cannot be embedded: give the path or the URL of a Zarr array"
    )
