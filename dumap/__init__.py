"""UMAP of Zarr stores larger than memory, on Dask.

`run` embeds data, `open_run` opens a finished run, and `plan` says what a run will take. Libraries are imported when
they are needed. A run reports its progress to the logger `dumap`, which is silent until a program adds a handler.
"""

import logging
from importlib import import_module
from typing import TYPE_CHECKING, Any

from dumap.compiled import choose_cache_folder
from dumap.version import __version__

if TYPE_CHECKING:
    from dumap.api import Cleaned, clean, export, ingest, open_run, plan, run, status, verify
    from dumap.cluster_runs import attach, submit
    from dumap.config import Config, load_config
    from dumap.engine import Observer
    from dumap.errors import CancelledError, DumapError
    from dumap.estimator import UMAP
    from dumap.neighbors_transformer import KNeighborsTransformer
    from dumap.planning.plan import Plan
    from dumap.show.handle import Handle
    from dumap.show.result import Result
    from dumap.single_cell import umap

__all__ = [
    "UMAP",
    "CancelledError",
    "Cleaned",
    "Config",
    "DumapError",
    "Handle",
    "KNeighborsTransformer",
    "Observer",
    "Plan",
    "Result",
    "__version__",
    "attach",
    "clean",
    "export",
    "ingest",
    "load_config",
    "open_run",
    "plan",
    "run",
    "status",
    "submit",
    "umap",
    "verify",
]

_PUBLIC_NAMES = {
    **{
        name: ("dumap.api", name)
        for name in ("clean", "export", "ingest", "open_run", "plan", "run", "status", "verify")
    },
    "CancelledError": ("dumap.errors", "CancelledError"),
    "Cleaned": ("dumap.api", "Cleaned"),
    "Config": ("dumap.config", "Config"),
    "DumapError": ("dumap.errors", "DumapError"),
    "Handle": ("dumap.show.handle", "Handle"),
    "KNeighborsTransformer": ("dumap.neighbors_transformer", "KNeighborsTransformer"),
    "Observer": ("dumap.engine", "Observer"),
    "Plan": ("dumap.planning.plan", "Plan"),
    "Result": ("dumap.show.result", "Result"),
    "UMAP": ("dumap.estimator", "UMAP"),
    "attach": ("dumap.cluster_runs", "attach"),
    "load_config": ("dumap.config", "load_config"),
    "submit": ("dumap.cluster_runs", "submit"),
    "umap": ("dumap.single_cell", "umap"),
}
"""The module of each public name, and the name in that module."""


choose_cache_folder()
logging.getLogger("dumap").addHandler(logging.NullHandler())


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC_NAMES:
        raise AttributeError(f"module 'dumap' has no attribute {name!r}")
    module, attribute = _PUBLIC_NAMES[name]
    return getattr(import_module(module), attribute)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
