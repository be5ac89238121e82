"""Chooses what reads the input, by the configuration."""

from __future__ import annotations

from collections.abc import Callable

from dumap.config import InputConfig
from dumap.sources.source import Source
from dumap.sources.spooled import Spooled, is_spooled
from dumap.sources.zarr_array import Input
from dumap.store import Run


def open_source(config: InputConfig, run: Callable[[], Run] | None = None) -> Source:
    """Open the input.

    Parameters
    ----------
    config : InputConfig
    run : callable, optional
        Opens the run that reads it, in which the rows of objects lie; where it is not given, only their shape is known.

    Raises
    ------
    InputError
        It cannot be read, or embedded.
    """
    if is_spooled(config.path):
        return Spooled(config.path, run)
    return Input(config.path, config.array)
