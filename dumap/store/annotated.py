"""Reads AnnData's Zarr stores, and adds slots to them.

New slots are written to a temporary store, and moved when all are whole. See "AnnData: on-disk format" in anndata's
documentation. The package anndata is not needed.
"""

from __future__ import annotations

import json
import os
import shutil
import warnings
from collections.abc import Iterator, Mapping
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr
from zarr.dtype import VariableLengthUTF8
from zarr.errors import GroupNotFoundError

from dumap.errors import InputError, StorageError
from dumap.store.backends import is_zip_archive
from dumap.store.disk import is_remote, normalize
from dumap.store.objects import Objects, bucket_errors, describe_error

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

CHUNK_ROWS = 65_536
"""Rows of a dense array in a chunk."""
CHUNK_ENTRIES = 1 << 20
"""Entries of a sparse matrix in a chunk."""
METADATA_NAMES = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
"""Names of the objects that hold metadata, in Zarr v3 and v2."""
MAX_INT32_INDEX = 2**31 - 1
"""Indices up to this number are written as int32."""

SparseBlock = tuple[np.ndarray, np.ndarray, np.ndarray]
"""A block of rows of a sparse matrix: the number of entries in each row, then their columns and their values."""


def encoding_attributes(kind: str, version: str = "0.2.0") -> dict[str, Any]:
    """Return the attributes that tell AnnData how an element is encoded."""
    return {"encoding-type": kind, "encoding-version": version}


class AnnDataStore:
    """A Zarr store as AnnData writes it.

    Parameters
    ----------
    path : str
        A folder, or a URL.

    Attributes
    ----------
    path : str

    Raises
    ------
    InputError
        The path holds no AnnData store, or the store cannot be written to.
    """

    def __init__(self, path: str) -> None:
        path = normalize(path)
        self.path = path.rstrip("/") if is_remote(path) else os.path.realpath(path)
        if is_zip_archive(self.path):
            raise InputError(f"{path} is a zip file, which is only read: unpack it")
        try:
            self.root = zarr.open_group(Objects(self.path).store, mode="r+", use_consolidated=False)
        except (GroupNotFoundError, OSError, ValueError, bucket_errors()[0]) as error:
            raise InputError(f"{path} is no AnnData store in Zarr ({describe_error(error)})") from error
        if self.root.attrs.get("encoding-type") != "anndata":
            raise InputError(f"{path} is a Zarr group, but not one that AnnData wrote: its 'encoding-type' says so")

    @property
    def format(self) -> Any:
        """The version of Zarr's format, 2 or 3."""
        return self.root.metadata.zarr_format

    @cached_property
    def rows(self) -> int:
        """The number of observations."""
        names: Any = self.root[f"obs/{self.root['obs'].attrs['_index']}"]
        return int(names.shape[0])

    def holds(self, key: str) -> bool:
        """Return whether the store has an array or a group of this key."""
        return key in self.root

    def read(self, key: str) -> Any:
        """Read a group as a dict, or an array as an array, a number or a text."""
        node: Any = self.root[key]
        if isinstance(node, zarr.Group):
            return {name: self.read(f"{key}/{name}") for name in node}
        value = node[...]
        return value.item() if node.shape == () and isinstance(value, np.ndarray) else value

    def read_rows(self, key: str, start: int, stop: int) -> csr_matrix:
        """Read rows [start, stop) of a CSR matrix.

        Raises
        ------
        InputError
            The store has no CSR matrix of this key.
        """
        from scipy.sparse import csr_matrix

        node = self.root.get(key)
        if not isinstance(node, zarr.Group) or node.attrs.get("encoding-type") != "csr_matrix":
            raise InputError(f"{self.path} has no CSR matrix {key}")
        arrays: Any = node
        indptr = np.asarray(arrays["indptr"][start : stop + 1]).astype(np.int64)
        low, high = indptr[[0, -1]]
        entries = arrays["data"][low:high], arrays["indices"][low:high], indptr - low
        return csr_matrix(entries, shape=(stop - start, self.rows))


class Slots:
    """Slots to add to an AnnData store. They are written to a temporary store beside it, and moved when all are whole.

    Parameters
    ----------
    target : AnnDataStore

    Attributes
    ----------
    path : str
        The temporary store. It is removed at the end of the context. The leftovers of a killed process are removed
        first.
    """

    def __init__(self, target: AnnDataStore) -> None:
        self.target, self.path = target, f"{target.path}.dumap-new"
        delete_tree(self.path)
        self._keys: list[str] = []
        self._root = zarr.open_group(Objects(self.path).store, mode="w", zarr_format=target.format)

    def __enter__(self) -> Slots:
        return self

    def __exit__(self, *raised: object) -> None:
        delete_tree(self.path)

    def _create_array(
        self, key: str, shape: tuple[int, ...], dtype: Any, chunks: tuple[int, ...], **options: Any
    ) -> zarr.Array:
        """Create an array in the temporary store."""
        return self._root.create_array(
            key, shape=shape, dtype=dtype, chunks=chunks, config={"write_empty_chunks": True}, **options
        )

    def write_temporary_array(self, name: str, array: np.ndarray) -> str:
        """Write an array that is not a slot to the temporary store; return its path."""
        self._create_array(name, array.shape, array.dtype, array.shape)[...] = array
        return f"{self.path}/{name}"

    def put_array(self, key: str, shape: tuple[int, ...], dtype: str, blocks: Iterator[np.ndarray]) -> None:
        """Write a dense array from consecutive blocks of rows."""
        chunks = (max(1, min(shape[0], CHUNK_ROWS)), *shape[1:])
        array, at = self._create_array(key, shape, dtype, chunks, attributes=encoding_attributes("array")), 0
        for block in blocks:
            array[at : at + len(block)] = block
            at += len(block)
        self._keys.append(key)

    def put_sparse(self, key: str, rows: int, entries: int, dtype: str, blocks: Iterator[SparseBlock]) -> None:
        """Write a square CSR matrix, (rows, rows), with `entries` entries in all, from consecutive blocks of rows."""
        self._root.create_group(key, attributes={**encoding_attributes("csr_matrix", "0.1.0"), "shape": [rows, rows]})
        index = "int32" if max(rows, entries) <= MAX_INT32_INDEX else "int64"
        chunks = (max(1, min(entries, CHUNK_ENTRIES)),)
        indices = self._create_array(f"{key}/indices", (entries,), index, chunks)
        data = self._create_array(f"{key}/data", (entries,), dtype, chunks)
        indptr = self._create_array(f"{key}/indptr", (rows + 1,), index, (min(rows + 1, CHUNK_ENTRIES),))
        row = at = 0
        indptr[0] = 0
        for counts, columns, values in blocks:
            indptr[row + 1 : row + 1 + len(counts)] = at + np.cumsum(counts, dtype=np.int64)
            indices[at : at + len(columns)], data[at : at + len(values)] = columns, values
            row, at = row + len(counts), at + len(columns)
        if (row, at) != (rows, entries):
            raise StorageError(f"{key}: {row} rows and {at} entries were written of {rows} and {entries}")
        self._keys.append(key)

    def put_mapping(self, key: str, values: Mapping[str, Any]) -> None:
        """Write a mapping of texts, numbers, arrays and mappings."""
        self._write_value(key, values)
        self._keys.append(key)

    def _write_value(self, key: str, value: Any) -> None:
        """Write a mapping as a group, and any other value as an array."""
        if isinstance(value, Mapping):
            self._root.create_group(key, attributes=encoding_attributes("dict", "0.1.0"))
            for name, item in value.items():
                self._write_value(f"{key}/{name}", item)
            return
        array = np.asarray(value)
        is_text = isinstance(value, str)
        kind = "string" if is_text else "array" if array.ndim else "numeric-scalar"
        dtype = VariableLengthUTF8() if is_text else array.dtype
        self._create_array(key, array.shape, dtype, array.shape, attributes=encoding_attributes(kind))[...] = value

    def publish(self) -> None:
        """Move the slots into the store in the order in which they were written; each slot is moved whole.

        Consolidated metadata are removed before the first slot is moved and written again after the last, so that
        they never contradict the store.
        """
        target = self.target
        consolidated = _delete_consolidated(Objects(target.path), target.format)
        for folder in dict.fromkeys(key.partition("/")[0] for key in self._keys):
            if folder not in target.root:
                target.root.create_group(folder, attributes=encoding_attributes("dict", "0.1.0"))
        for key in self._keys:
            (_move_objects if is_remote(target.path) else _rename_slot)(self.path, target.path, key)
        if consolidated:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # zarr warns that its format does not specify consolidated metadata
                zarr.consolidate_metadata(Objects(target.path).store, zarr_format=target.format)


def _delete_consolidated(objects: Objects, zarr_format: int) -> bool:
    """Remove a group's consolidated metadata; return whether it had any."""
    if zarr_format == 2:
        exists = objects.size(".zmetadata") >= 0
        objects.delete(".zmetadata")
        return exists
    document = json.loads(objects.get("zarr.json") or b"{}")
    if document.pop("consolidated_metadata", None) is None:
        return False
    objects.put("zarr.json", json.dumps(document, indent=2).encode())
    return True


def _rename_slot(source: str, target: str, key: str) -> None:
    """Move a folder from the temporary store, replacing the folder of the same key."""
    source_path, target_path, replaced_path = (
        os.path.join(source, key),
        os.path.join(target, key),
        os.path.join(source, "old", key),
    )
    if os.path.lexists(target_path):
        os.makedirs(os.path.dirname(replaced_path), exist_ok=True)
        os.rename(target_path, replaced_path)
    os.rename(source_path, target_path)


def _metadata_last(key: str) -> tuple[bool, int]:
    """Return a sort key that puts metadata after other objects, and deeper nodes before the nodes above them."""
    return key.rpartition("/")[2] in METADATA_NAMES, -key.count("/")


def _move_objects(source: str, target: str, key: str) -> None:
    """Copy objects of a bucket over others. Metadata are removed first and written last, so no node is read half."""
    source_objects, target_objects = Objects(source), Objects(target)
    target_objects.delete_keys(sorted(target_objects.keys(key), key=_metadata_last, reverse=True))
    for name in sorted(source_objects.keys(key), key=_metadata_last):
        target_objects.put(name, source_objects.get(name) or b"")


def delete_tree(path: str) -> None:
    """Remove everything below a path or a URL, if anything exists."""
    if is_remote(path):
        objects = Objects(path)
        objects.delete_keys(objects.keys())
    else:
        shutil.rmtree(path, ignore_errors=True)
