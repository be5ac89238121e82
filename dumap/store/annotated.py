"""AnnData's Zarr stores: what lies in them, and slots that are written beside them and put in their places once whole.

See "AnnData: on-disk format" of anndata's documentation. anndata itself is not needed.
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
from dumap.store.backends import is_archive
from dumap.store.disk import is_remote, normalize
from dumap.store.objects import Objects, bucket_errors, describe_error

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

CHUNK_ROWS = 65_536
CHUNK_ENTRIES = 1 << 20
"""Entries of a sparse matrix in a chunk."""
METADATA = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
SMALL_INDEX = 2**31 - 1

Block = tuple[np.ndarray, np.ndarray, np.ndarray]
"""Some rows of a sparse matrix: how many entries each has, their columns and their values."""


def encoded(kind: str, version: str = "0.2.0") -> dict[str, Any]:
    """Return the attributes by which AnnData knows what something is."""
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
        It is none, or cannot be written to.
    """

    def __init__(self, path: str) -> None:
        path = normalize(path)
        self.path = path.rstrip("/") if is_remote(path) else os.path.realpath(path)
        if is_archive(self.path):
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
        """How many observations there are."""
        names: Any = self.root[f"obs/{self.root['obs'].attrs['_index']}"]
        return int(names.shape[0])

    def holds(self, key: str) -> bool:
        """Return whether there is an array, or a group."""
        return key in self.root

    def read(self, key: str) -> Any:
        """Read a mapping, or what lies in one: dicts of texts, numbers and arrays."""
        node: Any = self.root[key]
        if isinstance(node, zarr.Group):
            return {name: self.read(f"{key}/{name}") for name in node}
        found = node[...]
        return found.item() if node.shape == () and isinstance(found, np.ndarray) else found

    def read_rows(self, key: str, start: int, stop: int) -> csr_matrix:
        """Read rows [start, stop) of a CSR matrix.

        Raises
        ------
        InputError
            There is none.
        """
        from scipy.sparse import csr_matrix

        node = self.root.get(key)
        if not isinstance(node, zarr.Group) or node.attrs.get("encoding-type") != "csr_matrix":
            raise InputError(f"{self.path} has no CSR matrix {key}")
        arrays: Any = node
        bounds = np.asarray(arrays["indptr"][start : stop + 1]).astype(np.int64)
        low, high = bounds[[0, -1]]
        entries = arrays["data"][low:high], arrays["indices"][low:high], bounds - low
        return csr_matrix(entries, shape=(stop - start, self.rows))


class Slots:
    """What is to be put into an AnnData store: written beside it, and moved into it once all is whole.

    Parameters
    ----------
    target : AnnDataStore

    Attributes
    ----------
    path : str
        Where it lies meanwhile, until this is left as a context; what a killed process left there is removed.
    """

    def __init__(self, target: AnnDataStore) -> None:
        self.target, self.path = target, f"{target.path}.dumap-new"
        remove_tree(self.path)
        self._keys: list[str] = []
        self._root = zarr.open_group(Objects(self.path).store, mode="w", zarr_format=target.format)

    def __enter__(self) -> Slots:
        return self

    def __exit__(self, *raised: object) -> None:
        remove_tree(self.path)

    def _array(self, key: str, shape: tuple[int, ...], dtype: Any, chunks: tuple[int, ...], **more: Any) -> zarr.Array:
        return self._root.create_array(
            key, shape=shape, dtype=dtype, chunks=chunks, config={"write_empty_chunks": True}, **more
        )

    def keep_array(self, name: str, array: np.ndarray) -> str:
        """Write an array that is no slot; return its path."""
        self._array(name, array.shape, array.dtype, array.shape)[...] = array
        return f"{self.path}/{name}"

    def put_array(self, key: str, shape: tuple[int, ...], dtype: str, blocks: Iterator[np.ndarray]) -> None:
        """Write a dense array, block after block of its rows."""
        chunks = (max(1, min(shape[0], CHUNK_ROWS)), *shape[1:])
        array, at = self._array(key, shape, dtype, chunks, attributes=encoded("array")), 0
        for block in blocks:
            array[at : at + len(block)] = block
            at += len(block)
        self._keys.append(key)

    def put_sparse(self, key: str, rows: int, entries: int, dtype: str, blocks: Iterator[Block]) -> None:
        """Write a square matrix as CSR, block after block of its rows, which have so many entries together."""
        self._root.create_group(key, attributes={**encoded("csr_matrix", "0.1.0"), "shape": [rows, rows]})
        index = "int32" if max(rows, entries) <= SMALL_INDEX else "int64"
        chunks = (max(1, min(entries, CHUNK_ENTRIES)),)
        indices = self._array(f"{key}/indices", (entries,), index, chunks)
        data = self._array(f"{key}/data", (entries,), dtype, chunks)
        bounds = self._array(f"{key}/indptr", (rows + 1,), index, (min(rows + 1, CHUNK_ENTRIES),))
        row = at = 0
        bounds[0] = 0
        for counts, columns, values in blocks:
            bounds[row + 1 : row + 1 + len(counts)] = at + np.cumsum(counts, dtype=np.int64)
            indices[at : at + len(columns)], data[at : at + len(values)] = columns, values
            row, at = row + len(counts), at + len(columns)
        if (row, at) != (rows, entries):
            raise StorageError(f"{key}: {row} rows and {at} entries were written of {rows} and {entries}")
        self._keys.append(key)

    def put_mapping(self, key: str, values: Mapping[str, Any]) -> None:
        """Write a mapping of texts, numbers, arrays and mappings."""
        self._write(key, values)
        self._keys.append(key)

    def _write(self, key: str, value: Any) -> None:
        if isinstance(value, Mapping):
            self._root.create_group(key, attributes=encoded("dict", "0.1.0"))
            for name, item in value.items():
                self._write(f"{key}/{name}", item)
            return
        found = np.asarray(value)
        text = isinstance(value, str)
        kind = "string" if text else "array" if found.ndim else "numeric-scalar"
        dtype = VariableLengthUTF8() if text else found.dtype
        self._array(key, found.shape, dtype, found.shape, attributes=encoded(kind))[...] = value

    def publish(self) -> None:
        """Put the slots into the store, in the order in which they were written; each is there whole or not at all.

        Consolidated metadata go first and come back last, so that nothing that is read in between is told wrong.
        """
        target = self.target
        consolidated = _forget_consolidated(Objects(target.path), target.format)
        for folder in dict.fromkeys(key.partition("/")[0] for key in self._keys):
            if folder not in target.root:
                target.root.create_group(folder, attributes=encoded("dict", "0.1.0"))
        for key in self._keys:
            (_move_objects if is_remote(target.path) else _rename)(self.path, target.path, key)
        if consolidated:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what the format says of it
                zarr.consolidate_metadata(Objects(target.path).store, zarr_format=target.format)


def _forget_consolidated(objects: Objects, zarr_format: int) -> bool:
    """Remove a group's consolidated metadata; tell whether there were any."""
    if zarr_format == 2:
        there = objects.size(".zmetadata") >= 0
        objects.delete(".zmetadata")
        return there
    document = json.loads(objects.get("zarr.json") or b"{}")
    if document.pop("consolidated_metadata", None) is None:
        return False
    objects.put("zarr.json", json.dumps(document, indent=2).encode())
    return True


def _rename(source: str, target: str, key: str) -> None:
    """Put a folder in the place of another one."""
    new, place, old = os.path.join(source, key), os.path.join(target, key), os.path.join(source, "old", key)
    if os.path.lexists(place):
        os.makedirs(os.path.dirname(old), exist_ok=True)
        os.rename(place, old)
    os.rename(new, place)


def _metadata_last(key: str) -> tuple[bool, int]:
    return key.rpartition("/")[2] in METADATA, -key.count("/")


def _move_objects(source: str, target: str, key: str) -> None:
    """Put objects of a bucket in the place of others: what says that they are there goes first and comes last."""
    new, place = Objects(source), Objects(target)
    place.delete_all(sorted(place.keys(key), key=_metadata_last, reverse=True))
    for name in sorted(new.keys(key), key=_metadata_last):
        place.put(name, new.get(name) or b"")


def remove_tree(path: str) -> None:
    """Remove all that lies below a path or a URL; nothing is no error."""
    if is_remote(path):
        objects = Objects(path)
        objects.delete_all(objects.keys())
    else:
        shutil.rmtree(path, ignore_errors=True)
