"""UMAP of Zarr stores larger than memory, on Dask.

`run` embeds a data set; `load_config` makes the configuration it takes.
"""

__version__ = "0.1.0"

from dumap.config import Config
from dumap.config import load as load_config
from dumap.errors import DumapError

__all__ = ["Config", "DumapError", "__version__", "load_config", "run"]


def __getattr__(name: str):  # type: ignore[no-untyped-def]
    if name == "run":
        from dumap.submit import run

        return run
    raise AttributeError(name)
