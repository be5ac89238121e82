"""Arrays outside runs: the input, labels, given start coordinates, exports."""

from __future__ import annotations

import contextlib
import os
import warnings
from collections.abc import Iterator
from typing import Any
from zipfile import BadZipFile

import numpy as np
import zarr
from zarr.abc.store import Store
from zarr.errors import ArrayNotFoundError, GroupNotFoundError
from zarr.storage import LocalStore, ZipStore

from dumap.errors import InputError, StorageError
from dumap.store.bfloat16 import open_bfloat16
from dumap.store.chunks import find_missing_chunks, require_chunks
from dumap.store.listing import describe_arrays, describe_dense_arrays, sparse_encoding
from dumap.store.objects import Objects, bucket_errors, describe_error, open_store

MAX_SUGGESTED = 5
"""The most dense arrays that a message suggests instead of a sparse matrix."""


def refuse_pickle(array: zarr.Array) -> zarr.Array:
    """Refuse an array with the codec 'pickle', since decoding a chunk could run any program.

    Raises
    ------
    InputError
    """
    metadata = array.metadata.to_dict()
    codecs: list[Any] = [metadata.get(name) for name in ("filters", "compressor", "codecs")]
    while codecs:
        codec = codecs.pop()
        if isinstance(codec, dict):
            codecs += codec.values()
            if "pickle" in str(codec.get("id", codec.get("name", ""))).lower():
                raise InputError(f"{array.store_path}: its codec 'pickle' would run what its chunks hold; not read")
        elif isinstance(codec, list | tuple):
            codecs += codec
    return array


def array_location(array: zarr.Array) -> tuple[str, str] | None:
    """Return the location of an array's store and its path in the store; None if the store has no location."""
    store = array.store
    if isinstance(store, LocalStore):
        return str(store.root), array.path
    if isinstance(store, ZipStore) and store.read_only:
        return str(store.path), array.path
    return None


def is_readable(store: Store, path: str) -> bool:
    """Return whether Zarr can read the metadata of a node."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the node belongs to the user
            zarr.open(store, path=path, mode="r", use_consolidated=False)
    except Exception:  # of any kind: opening the node raises the error again
        return False
    return True


def open_named_array(path: str, name: str, setting_names: tuple[str, str]) -> zarr.Array:
    """Open the array at a path, or the named array if the path is a group.

    Parameters
    ----------
    path, name : str
    setting_names : tuple of str
        The names of the user's settings for the path and for the array's name.

    Raises
    ------
    InputError
        There is no such array; the message lists the arrays of the store.
    """
    store = open_store(path, read_only=True)
    missing_errors = (ArrayNotFoundError, GroupNotFoundError, OSError, KeyError, ValueError, bucket_errors()[0])
    try:
        node = open_node(store, "")
    except missing_errors as error:
        raise InputError(
            f"{setting_names[0]}: {path} is not a Zarr group or array ({describe_error(error)})"
        ) from error
    if isinstance(node, zarr.Array):
        return refuse_pickle(node)
    try:
        named_node = open_node(store, name)
    except (ArrayNotFoundError, GroupNotFoundError, FileNotFoundError, KeyError):
        named_node = None
    except ValueError as error:
        raise InputError(
            f"{setting_names[1]}: {name!r} in {path} is not an array that can be read ({error})"
        ) from error
    for group, node_name in ((named_node, f"{name!r} in {path}"), (node, path)):
        if isinstance(group, zarr.Group) and (sparse := sparse_encoding(group)):
            raise InputError(f"{setting_names[1]}: {node_name} is {_sparse_message(store, *sparse)}")
    if not isinstance(named_node, zarr.Array):
        raise InputError(
            f"{setting_names[1]}: no array {name!r} in {path}{'' if named_node is None else ', but a group'}; its "
            f"arrays are: {describe_arrays(store)}"
        )
    return refuse_pickle(named_node)


def open_node(store: Store, path: str) -> zarr.Array | zarr.Group:
    """Open an array or a group; an array of bfloat16 is opened as its bits."""
    try:
        return zarr.open(store, path=path, mode="r", use_consolidated=False)
    except ValueError:  # among other causes, Zarr does not know the data type
        if (bfloat16_array := open_bfloat16(store, path)) is None:
            raise
        return bfloat16_array


def _sparse_message(store: Store, kind: str, shape: tuple[int, ...]) -> str:
    """Return the message about a sparse matrix, which suggests dense arrays to embed instead."""
    suggestions = describe_dense_arrays(store, shape[0] if shape else None)[:MAX_SUGGESTED]
    advice = f"take one of its rows instead, such as {', '.join(suggestions)}, or write" if suggestions else "write"
    readable, copy = (
        ("dense arrays", "a dense copy")
        if kind.startswith("csr")
        else ("dense arrays and sparse ones by rows", "it by rows, as adata.X.tocsr() makes it")
    )
    return f"a sparse matrix ({kind}{f', shape {shape}' if shape else ''}); dumap reads {readable}: {advice} {copy}"


class ExternalArray:
    """The rows of an array outside runs: a .npy file or a Zarr array.

    Parameters
    ----------
    path : str

    Raises
    ------
    InputError
        The path holds no such array, or the array cannot be read.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._array: np.ndarray | zarr.Array
        with self._convert_read_errors():
            if path.endswith(".npy"):
                self._array = np.lib.format.open_memmap(path, mode="r")
            else:
                self._array = refuse_pickle(zarr.open_array(open_store(path, read_only=True), mode="r"))
        self.shape, self.dtype = self._array.shape, self._array.dtype

    @contextlib.contextmanager
    def _convert_read_errors(self) -> Iterator[None]:
        """Raise the errors of reading as InputError, as a context."""
        try:
            yield
        except (ValueError, OSError, EOFError, MemoryError, BadZipFile) as error:
            raise InputError(f"{self.path} is neither a .npy file nor a Zarr array ({error})") from error

    def require_chunks(self) -> None:
        """Refuse a Zarr array with missing chunks."""
        if isinstance(self._array, zarr.Array) and self.shape:
            require_chunks(self.path, self._array, find_missing_chunks(self.path, self._array))

    def read(self, start: int = 0, stop: int | None = None) -> np.ndarray:
        """Return rows [start, stop)."""
        with self._convert_read_errors():
            return np.array(self._array[start:stop] if self.shape else self._array[...])


def read_array(path: str) -> np.ndarray:
    """Read a whole array outside runs."""
    rows = ExternalArray(path)
    rows.require_chunks()
    return rows.read()


def write_arrays(path: str, arrays: dict[str, tuple[tuple[int, ...], str, Iterator[tuple[int, np.ndarray]]]]) -> None:
    """Write arrays block by block to a new Zarr group outside runs.

    Parameters
    ----------
    path : str
    arrays : dict
        Name to (shape, dtype, blocks); a block is (first row, rows).

    Raises
    ------
    StorageError
        The path exists.
    """
    objects = Objects(path)
    exists = os.path.lexists(path) if objects.is_local else objects.has_objects()
    if exists:
        raise StorageError(f"{path} exists; remove it, or name another")
    group = zarr.open_group(objects.store, mode="w")
    for name, (shape, dtype, blocks) in arrays.items():
        chunk_rows = max(1, min(shape[0], 65536))
        array = group.create_array(
            name, shape=shape, chunks=(chunk_rows, *shape[1:]), dtype=dtype, config={"write_empty_chunks": True}
        )
        for first, block in blocks:
            array[first : first + len(block)] = block
