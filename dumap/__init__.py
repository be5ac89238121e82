"""UMAP of Zarr stores larger than memory, on Dask.

`run` embeds a data set; `load_config` makes the configuration it takes. Libraries are imported as they are needed.
How a run goes on is told to the logger `dumap`, which is silent until a program listens to it.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dumap.compiled import find_place
from dumap.version import __version__

if TYPE_CHECKING:
    from dumap.api import run
    from dumap.config import Config
    from dumap.config import load as load_config
    from dumap.errors import DumapError

__all__ = ["Config", "DumapError", "__version__", "load_config", "run"]

_HOMES = {
    "Config": ("dumap.config", "Config"),
    "DumapError": ("dumap.errors", "DumapError"),
    "load_config": ("dumap.config", "load"),
    "run": ("dumap.api", "run"),
}
"""Where each public name is, and what it is called there."""


find_place()
logging.getLogger("dumap").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'dumap' has no attribute {name!r}")
    module, attribute = _HOMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
