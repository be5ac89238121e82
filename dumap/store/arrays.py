"""Arrays outside any run: the input, labels, a given start, exports."""

from __future__ import annotations

import os
from collections.abc import Iterator

import numpy as np
import zarr
from zarr.errors import ArrayNotFoundError, GroupNotFoundError

from dumap.disk import is_remote
from dumap.errors import InputError, StorageError
from dumap.store.objects import bucket_errors, open_store, told


def find_array(path: str, name: str) -> zarr.Array:
    """Open the array at a path, or that of a name in the group at the path.

    Raises
    ------
    InputError
        There is none; the message lists the arrays there are.
    """
    store = open_store(path, read_only=True)
    absent = (ArrayNotFoundError, GroupNotFoundError, OSError, KeyError, ValueError, bucket_errors()[0])
    try:
        node = zarr.open(store, mode="r", use_consolidated=False)
    except absent as error:
        raise InputError(f"input.path: {path} is not a Zarr group or array ({told(error)})") from error
    if isinstance(node, zarr.Array):
        return node
    try:
        found = zarr.open(store, path=name, mode="r", use_consolidated=False)
    except absent:
        found = None
    if not isinstance(found, zarr.Array):
        arrays = ", ".join(f"{n} {a.shape}" for n, a in sorted(node.arrays())) or "none"
        raise InputError(f"input.array: no array {name!r} in {path}; its arrays are: {arrays}")
    return found


def read_array(path: str) -> np.ndarray:
    """Read a whole array outside any run: .npy, or the path of a Zarr array."""
    try:
        return (
            np.load(path, allow_pickle=False)
            if path.endswith(".npy")
            else np.asarray(zarr.open_array(open_store(path, read_only=True), mode="r")[...])
        )
    except (ArrayNotFoundError, GroupNotFoundError, FileNotFoundError, ValueError) as error:
        raise InputError(f"{path} is neither a .npy file nor a Zarr array ({error})") from error


def write_arrays(path: str, arrays: dict[str, tuple[tuple[int, ...], str, Iterator[tuple[int, np.ndarray]]]]) -> None:
    """Write arrays block by block to a new Zarr group outside any run.

    Parameters
    ----------
    path : str
    arrays : dict
        Name to (shape, dtype, blocks); a block is (first row, rows).
    """
    if not is_remote(path) and os.path.exists(path):
        raise StorageError(f"{path} exists; remove it, or name another")
    group = zarr.open_group(open_store(path, read_only=False), mode="w")
    for name, (shape, dtype, blocks) in arrays.items():
        chunk = max(1, min(shape[0], 65536))
        target = group.create_array(
            name, shape=shape, chunks=(chunk, *shape[1:]), dtype=dtype, config={"write_empty_chunks": True}
        )
        for first, block in blocks:
            target[first : first + len(block)] = block
