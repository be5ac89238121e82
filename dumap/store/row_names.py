"""Names of rows: the array `row` beside the results, which xarray uses as their index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import zarr
from zarr.dtype import VariableLengthUTF8

from dumap.errors import InputError
from dumap.store.annotated import CHUNK_ROWS
from dumap.store.bfloat16 import open_bfloat16
from dumap.store.objects import bucket_errors, describe_error, open_store
from dumap.store.run import Run
from dumap.store.run_keys import ROW_NAMES

INGESTED_NAMES = "names"
"""The array of row names in stores that `dumap ingest` wrote."""
COMPLETE_ATTRIBUTES: dict[str, Any] = {"long_name": "names of the input's rows"}
"""Attributes that are added to the array when all names are written."""
TEXT_KINDS = "TUOS"
"""Kinds of NumPy dtypes that hold texts."""


def normalize_names(values: Any) -> np.ndarray:
    """Return names as int64 or as texts, (n,)."""
    names = np.asarray(values)
    if names.dtype.kind in "iu":
        return names.astype(np.int64)
    if names.dtype.kind == "M":
        names = np.datetime_as_string(names)
    texts = np.empty(len(names), object)
    texts[:] = [name.decode() if isinstance(name, bytes) else str(name) for name in names]
    return texts


class StoredRowNames:
    """Row names in a store, read block by block.

    Parameters
    ----------
    path : str
        The location of the store, for messages.
    array : zarr.Array
    """

    def __init__(self, path: str, array: zarr.Array) -> None:
        self._path, self._array, self.is_text = path, array, array.dtype.kind in TEXT_KINDS

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield blocks of names, in order."""
        for start in range(0, self._array.shape[0], CHUNK_ROWS):
            try:
                yield normalize_names(self._array[start : start + CHUNK_ROWS])
            except (ValueError, OSError, RuntimeError, bucket_errors()[0]) as error:
                array_name = f"{self._path}, array {self._array.path!r}"
                raise InputError(f"{array_name}: the names of rows cannot be read ({describe_error(error)})") from error


def _candidate_paths(root: zarr.Group, path: str) -> Iterator[str]:
    """Yield the paths at which AnnData, `dumap ingest` and xarray store the names of an array's rows."""
    folder, _, name = path.rpartition("/")
    obs = root.get("obs")
    if root.attrs.get("encoding-type") == "anndata" and isinstance(obs, zarr.Group):
        yield f"obs/{obs.attrs.get('_index', '_index')}"
        return
    array: Any = _get_node(root, path) or open_bfloat16(root.store, path)
    dims = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or [None]
    for sibling in (INGESTED_NAMES, dims[0]):
        if sibling and sibling != name:
            yield f"{folder}/{sibling}".lstrip("/")


def _get_node(root: zarr.Group, path: str) -> Any:
    """Return an array or a group; None if the path holds none that Zarr can open."""
    try:
        return root.get(path)
    except ValueError:
        return None


def find_row_names(location: str, path: str, rows: int) -> StoredRowNames | None:
    """Return the names of an array's rows; None if its store has none.

    Parameters
    ----------
    location : str
        The location of the store.
    path : str
        The array's path in the store.
    rows : int
    """
    root = zarr.open(open_store(location, read_only=True), mode="r", use_consolidated=False)
    if not isinstance(root, zarr.Group):
        return None
    for key in _candidate_paths(root, path):
        node = _get_node(root, key)
        if isinstance(node, zarr.Array) and node.shape == (rows,) and node.dtype.kind in f"iu{TEXT_KINDS}":
            return StoredRowNames(location, node)
    return None


def has_names(run: Run) -> bool:
    """Return whether a run holds all names of its rows."""
    array = _open_names(run)
    return array is not None and COMPLETE_ATTRIBUTES.items() <= dict(array.attrs).items()


def read_row_names(run: Run) -> np.ndarray | None:
    """Read the names of a run's rows, (rows,) of int64 or of texts; None if the rows have no names."""
    array = _open_names(run)
    return normalize_names(array[...]) if array is not None and has_names(run) else None


def _open_names(run: Run) -> zarr.Array | None:
    """Open a run's array of names, whole or not; None if it does not exist."""
    if run.size(f"{ROW_NAMES}/zarr.json") < 0:
        return None
    return run.call_with_retries(ROW_NAMES, lambda: zarr.open_array(run.store, path=ROW_NAMES, mode="r"))


def write_row_names(run: Run, rows: int, is_text: bool, blocks: Iterable[np.ndarray]) -> None:
    """Write the names of a run's rows from consecutive blocks."""
    dtype: Any = VariableLengthUTF8() if is_text else "int64"
    group = zarr.open_group(run.store, mode="r+", use_consolidated=False)
    chunks, row = (min(rows, CHUNK_ROWS),), 0
    array = group.create_array(
        ROW_NAMES, shape=(rows,), dtype=dtype, chunks=chunks, dimension_names=(ROW_NAMES,), overwrite=True
    )
    for block in blocks:
        array[row : row + len(block)] = block
        row += len(block)
    array.update_attributes(COMPLETE_ATTRIBUTES)
