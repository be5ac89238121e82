"""Names of rows: an array `row` beside the results, which xarray takes for their index."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import zarr
from zarr.dtype import VariableLengthUTF8

from dumap.errors import InputError
from dumap.store.annotated import CHUNK_ROWS
from dumap.store.bits import open_bits
from dumap.store.objects import bucket_errors, describe_error, open_store
from dumap.store.run import Run
from dumap.store.run_keys import ROW

INGESTED = "names"
"""The array of names beside the rows in what `dumap ingest` wrote."""
WHOLE: dict[str, Any] = {"long_name": "names of the input's rows"}
"""Attributes that the array gets once it is whole."""
TEXT = "TUOS"


def plain_names(values: Any) -> np.ndarray:
    """Return names as whole numbers or as texts, (n,)."""
    found = np.asarray(values)
    if found.dtype.kind in "iu":
        return found.astype(np.int64)
    if found.dtype.kind == "M":
        found = np.datetime_as_string(found)
    texts = np.empty(len(found), object)
    texts[:] = [value.decode() if isinstance(value, bytes) else str(value) for value in found]
    return texts


class StoredNames:
    """Names that lie in a store: blocks of them, read as they are asked for.

    Parameters
    ----------
    path : str
        The store, for messages.
    array : zarr.Array
    """

    def __init__(self, path: str, array: zarr.Array) -> None:
        self._path, self._array, self.is_text = path, array, array.dtype.kind in TEXT

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the names, some at a time."""
        for start in range(0, self._array.shape[0], CHUNK_ROWS):
            try:
                yield plain_names(self._array[start : start + CHUNK_ROWS])
            except (ValueError, OSError, RuntimeError, bucket_errors()[0]) as error:
                where = f"{self._path}, array {self._array.path!r}"
                raise InputError(f"{where}: the names of rows cannot be read ({describe_error(error)})") from error


def _candidates(root: zarr.Group, path: str) -> Iterator[str]:
    """Yield where the names of an array's rows may lie: as AnnData, `dumap ingest` and xarray have them."""
    folder, _, name = path.rpartition("/")
    obs = root.get("obs")
    if root.attrs.get("encoding-type") == "anndata" and isinstance(obs, zarr.Group):
        yield f"obs/{obs.attrs.get('_index', '_index')}"
        return
    array: Any = _node(root, path) or open_bits(root.store, path)
    dims = getattr(array.metadata, "dimension_names", None) or array.attrs.get("_ARRAY_DIMENSIONS") or [None]
    for sibling in (INGESTED, dims[0]):
        if sibling and sibling != name:
            yield f"{folder}/{sibling}".lstrip("/")


def _node(root: zarr.Group, path: str) -> Any:
    """Return an array or a group; None where there is none that Zarr itself can open."""
    try:
        return root.get(path)
    except ValueError:
        return None


def find_names(location: str, path: str, rows: int) -> StoredNames | None:
    """Return the names of an array's rows, where its store has them.

    Parameters
    ----------
    location : str
        The store.
    path : str
        The array's path in it.
    rows : int
    """
    root = zarr.open(open_store(location, read_only=True), mode="r", use_consolidated=False)
    if not isinstance(root, zarr.Group):
        return None
    for key in _candidates(root, path):
        found = _node(root, key)
        if isinstance(found, zarr.Array) and found.shape == (rows,) and found.dtype.kind in f"iu{TEXT}":
            return StoredNames(location, found)
    return None


def has_names(run: Run) -> bool:
    """Return whether the names of a run's rows are there, all of them."""
    found = _open(run)
    return found is not None and WHOLE.items() <= dict(found.attrs).items()


def read_names(run: Run) -> np.ndarray | None:
    """Read the names of a run's rows, (rows,) of int64 or of texts; None where they have none."""
    found = _open(run)
    return plain_names(found[...]) if found is not None and has_names(run) else None


def _open(run: Run) -> zarr.Array | None:
    if run.size(f"{ROW}/zarr.json") < 0:
        return None
    return run.attempt(ROW, lambda: zarr.open_array(run.store, path=ROW, mode="r"))


def write_names(run: Run, rows: int, is_text: bool, blocks: Iterable[np.ndarray]) -> None:
    """Write the names of a run's rows, block after block."""
    dtype: Any = VariableLengthUTF8() if is_text else "int64"
    group = zarr.open_group(run.store, mode="r+", use_consolidated=False)
    chunks, at = (min(rows, CHUNK_ROWS),), 0
    array = group.create_array(ROW, shape=(rows,), dtype=dtype, chunks=chunks, dimension_names=(ROW,), overwrite=True)
    for block in blocks:
        array[at : at + len(block)] = block
        at += len(block)
    array.update_attributes(WHOLE)
