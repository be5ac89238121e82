"""Dask's collections, as they come in and go out."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dask import array as da

if TYPE_CHECKING:
    import zarr


def to_dask(array: zarr.Array) -> Any:
    """Return a Dask array that reads a Zarr array, chunk by chunk, wherever it is computed."""
    return da.from_zarr(array)
