"""UMAP of Zarr stores larger than memory, on Dask.

`run` embeds data, and `open_run` reads what came of it; `plan` says before what it will take. Libraries are imported as
they are needed.
How a run goes on is told to the logger `dumap`, which is silent until a program listens to it.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dumap.compiled import find_place
from dumap.version import __version__

if TYPE_CHECKING:
    from dumap.api import Cleaned, clean, export, ingest, open_run, plan, run, status, verify
    from dumap.config import Config
    from dumap.config import load as load_config
    from dumap.engine import Observer
    from dumap.errors import DumapError
    from dumap.estimator import UMAP
    from dumap.neighbors_transformer import KNeighborsTransformer
    from dumap.planning.plan import Plan
    from dumap.show.result import Result
    from dumap.single_cell import umap

__all__ = [
    "UMAP",
    "Cleaned",
    "Config",
    "DumapError",
    "KNeighborsTransformer",
    "Observer",
    "Plan",
    "Result",
    "__version__",
    "clean",
    "export",
    "ingest",
    "load_config",
    "open_run",
    "plan",
    "run",
    "status",
    "umap",
    "verify",
]

_HOMES = {
    "UMAP": ("dumap.estimator", "UMAP"),
    **{
        name: ("dumap.api", name)
        for name in ("clean", "export", "ingest", "open_run", "plan", "run", "status", "verify")
    },
    "Cleaned": ("dumap.api", "Cleaned"),
    "Config": ("dumap.config", "Config"),
    "DumapError": ("dumap.errors", "DumapError"),
    "KNeighborsTransformer": ("dumap.neighbors_transformer", "KNeighborsTransformer"),
    "Observer": ("dumap.engine", "Observer"),
    "Plan": ("dumap.planning.plan", "Plan"),
    "Result": ("dumap.show.result", "Result"),
    "umap": ("dumap.single_cell", "umap"),
    "load_config": ("dumap.config", "load"),
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
