"""The data that a program may give: paths, arrays that are read in place, and objects that are copied into the run."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np

from dumap.errors import ConfigError, InputError
from dumap.sources.arrays import ArrayRows
from dumap.sources.sparse_objects import sparse_rows_of
from dumap.store import array_location

TAKEN = (
    "the path or the URL of a Zarr array, or of a group that holds one, or a list of such; a zarr.Array, a NumPy array "
    "or what makes one of itself, a matrix of scipy.sparse, a pandas or Dask data frame of numbers, a Dask array, an "
    "xarray.DataArray or an anndata.AnnData"
)
"""The data that can be embedded, for messages."""


def is_instance(data: Any, module: str, name: str) -> bool:
    """Return whether data is an instance of a library's class, without importing the library."""
    kind = getattr(sys.modules.get(module), name, None)
    return isinstance(kind, type) and isinstance(data, kind)


def paths_of(data: Any) -> dict[str, Any] | None:
    """Return the `input` settings of data that are read in place, or None for other data.

    Parameters
    ----------
    data
        A path or URL, a list of them, or a Zarr array, or a sparse matrix in a Zarr store, that has a place.
    """
    if isinstance(data, str | os.PathLike):
        return {"path": os.fsdecode(data)}
    if isinstance(data, list | tuple) and data and all(isinstance(path, str | os.PathLike) for path in data):
        return {"path": [os.fsdecode(path) for path in data]}
    stored = data if is_instance(data, "zarr", "Array") else None
    if is_instance(data, "anndata.abc", "CSRDataset") and is_instance(data.group, "zarr", "Group"):
        stored = data.group
    if stored is not None and (place := array_location(stored)) is not None:
        return {"path": place[0], **({"array": place[1]} if place[1] else {})}
    return None


def is_sparse(data: Any) -> bool:
    """Return whether data is a matrix of scipy.sparse, or one that anndata reads from a file by rows."""
    names = (("scipy.sparse", "spmatrix"), ("scipy.sparse", "sparray"), ("anndata.abc", "CSRDataset"))
    return any(is_instance(data, *name) for name in names)


def rows_of(data: Any) -> ArrayRows:
    """Return the rows of an object.

    Raises
    ------
    InputError
        The object holds no rows of numbers.
    ConfigError
        Objects of this type cannot be embedded.
    """
    kind = f"{type(data).__module__.split('.')[0]}.{type(data).__name__}"
    if is_sparse(data):
        return sparse_rows_of(data, kind)
    if is_instance(data, "pandas", "DataFrame"):
        return _of_frame(data, kind)
    if is_instance(data, "pandas", "Series"):
        raise InputError(f"the {kind} has one column; give a data frame")
    if (
        is_instance(data, "xarray", "DataArray")
        or is_instance(data, "zarr", "Array")
        or is_instance(data, "h5py", "Dataset")
    ):
        return ArrayRows(kind, data.shape, np.dtype(data.dtype), lambda start, stop: np.asarray(data[start:stop]))
    if is_instance(data, "xarray", "Dataset") or isinstance(data, Mapping):
        raise ConfigError(f"data of type {type(data).__name__} holds several arrays: give one of them")
    return _of_array(data, kind)


def _of_frame(data: Any, kind: str) -> ArrayRows:
    """Return the rows of a data frame, in the common dtype of its columns."""
    dtypes = [getattr(dtype, "numpy_dtype", getattr(dtype, "subtype", dtype)) for dtype in data.dtypes]
    odd = [
        str(name) for name, dtype in zip(data.columns, dtypes, strict=True) if getattr(dtype, "kind", "O") not in "fiub"
    ]
    if odd:
        raise InputError(f"columns of the {kind} that hold no numbers: {', '.join(odd[:5])}; leave them out")
    dtype = np.result_type(*dtypes) if dtypes else np.dtype(float)

    def get(start: int, stop: int) -> np.ndarray:
        options = {"na_value": np.nan} if dtype.kind == "f" else {}
        try:
            found: np.ndarray = data.iloc[start:stop].to_numpy(dtype, **options)
        except ValueError as error:
            raise InputError(f"the {kind}, rows {start} to {stop}: {error}; fill what is missing") from error
        return found

    return ArrayRows(kind, data.shape, dtype, get)


def _of_array(data: Any, kind: str) -> ArrayRows:
    """Return the rows of a NumPy array, or of an object with `__array__`."""
    if np.ma.is_masked(data):
        raise InputError("the masked array has values that are masked: fill them, or leave their rows out")
    if not isinstance(data, np.ndarray | list | tuple) and not hasattr(data, "__array__"):
        raise ConfigError(f"data of type {type(data).__name__} cannot be embedded: give {TAKEN}")
    try:
        array = np.asarray(data)
    except (ValueError, TypeError, RuntimeError) as error:
        raise InputError(f"the {kind} cannot be made a NumPy array ({type(error).__name__}: {error})") from error
    return ArrayRows(kind, array.shape, array.dtype, lambda start, stop: array[start:stop])
