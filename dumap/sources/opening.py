"""Opens the input that the configuration names."""

from __future__ import annotations

from collections.abc import Callable

from dumap.config import InputConfig
from dumap.sources.csr_group import open_array
from dumap.sources.source import Source
from dumap.sources.spooled import SpooledInput, is_spooled
from dumap.sources.stores import ConcatenatedInput
from dumap.store import Run, expand_pattern, is_pattern
from dumap.store.disk import normalize


def open_source(config: InputConfig, run: Callable[[], Run] | None = None) -> Source:
    """Open the input.

    Parameters
    ----------
    config : InputConfig
    run : callable, optional
        Opens the run, which holds the rows of an object. Without it, only the shape of an object is known.

    Raises
    ------
    InputError
        The input cannot be read or embedded.
    """
    paths = locate(config)
    if is_spooled(paths[0]):
        return SpooledInput(paths[0], run)
    bfloat16 = config.dtype == "bfloat16"
    if len(paths) == 1:
        return open_array(paths[0], config.array, bfloat16)
    return ConcatenatedInput(paths, config.array, bfloat16)


def locate(config: InputConfig) -> tuple[str, ...]:
    """Return the absolute locations of the input's stores, with each pattern replaced by the stores that match it.

    Raises
    ------
    InputError
        No store matches a pattern.
    """
    found: list[str] = []
    for path in config.paths:
        found += expand_pattern(path) if is_pattern(path) else [normalize(path)]
    return tuple(found)
