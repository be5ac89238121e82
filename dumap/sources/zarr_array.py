"""Zarr arrays that a run reads: the vectors, and given neighbours. They are never written."""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from dumap.errors import InputError
from dumap.store import (
    MissingChunks,
    bfloat16_to_float32,
    bucket_errors,
    decoded_rows,
    describe_error,
    find_missing_chunks,
    is_bfloat16,
    open_named_array,
    require_chunks,
    stamps,
)
from dumap.store.disk import is_remote, normalize


@dataclass(frozen=True)
class ArraySpec:
    """The requirements of a user's array, and the settings that name the array.

    Attributes
    ----------
    settings : tuple of str
        The setting of the path, and the setting of the array's name.
    shape, allowed : str
        The required shape and dtypes, for messages.
    kinds : str
        Kinds of NumPy's dtypes that are allowed.
    in_group : bool
        Whether the path must be that of a group, which also holds other arrays.
    """

    settings: tuple[str, str]
    shape: str
    allowed: str
    kinds: str
    in_group: bool = False


GIVEN = "neighbors.precomputed"
VECTORS = ArraySpec(
    ("input.path", "input.array"),
    "(rows, dims): reshape it, one row a vector",
    "real floats, integers and booleans",
    "fiub",
)
INDICES = ArraySpec((GIVEN, GIVEN), "(rows, neighbors)", "integers: cast it", "iu", True)
DISTANCES = ArraySpec((GIVEN, GIVEN), "(rows, neighbors)", "real floats: cast it", "f", True)


def stamped(path: str, node: str, facts: list[Any]) -> str:
    """Return a digest of facts about a node of a store, and of the keys, sizes and times of its objects."""
    digest = hashlib.sha256(json.dumps(facts).encode())
    for stamp in stamps(path, node):
        digest.update(stamp.encode())
    return digest.hexdigest()


class ArrayInput:
    """An array that a run reads, row by row, and never writes.

    Parameters
    ----------
    path : str
        A Zarr group or array, v2 or v3: a folder, a zip file or a URL.
    array : str
        The array's name in the group.
    spec : ArraySpec
        The array's requirements.
    bfloat16 : bool
        Whether 16 bits of dtype `V2` are bfloat16 values.

    Attributes
    ----------
    rows, dims : int
    chunk_rows : int
        The least rows that are decoded at once: those of a chunk, or of an inner chunk of a shard.
    dtype : numpy.dtype
        float32 for bfloat16, which NumPy does not have.
    sparse, entries, max_window_entries
        See `Source`.
    """

    sparse, entries, max_window_entries = False, 0, 0

    def __init__(self, path: str, array: str, spec: ArraySpec = VECTORS, bfloat16: bool = False) -> None:
        self.path, self.name = normalize(path), array
        if not is_remote(self.path) and not os.path.exists(self.path):
            raise InputError(f"{spec.settings[0]}: {self.path} does not exist")
        self._array = open_named_array(self.path, array, spec.settings)
        if spec.in_group and not self._array.path:
            raise InputError(f"{spec.settings[0]}: {self.path} is an array; name the group that holds {array!r}")
        shape, dtype = self._array.shape, self._array.dtype
        where = f"{self.path}, array {self._array.path!r}"
        if len(shape) != 2:
            raise InputError(f"{where} has shape {shape}; dumap reads {spec.shape}")
        try:
            self._widened = is_bfloat16(self._array, bfloat16)
        except ValueError as error:
            raise InputError(f"input.dtype = bfloat16: {where}: {error}; leave the setting out") from error
        if self._widened:
            dtype = np.dtype(np.float32)
        if dtype.kind not in spec.kinds:
            hint = "; if they are bfloat16, set input.dtype=bfloat16" if dtype == np.dtype("V2") else ""
            raise InputError(f"{where} has dtype {dtype}; allowed are {spec.allowed}{hint}")
        if 0 in shape:
            raise InputError(f"{where} is empty: its shape is {shape}")
        self.rows, self.dims = (int(s) for s in shape)
        self.dtype = dtype.newbyteorder("=")
        self.chunk_rows = decoded_rows(self._array)

    @property
    def node_path(self) -> str:
        """The array's path in the store; empty if the array is the store's only node."""
        return str(self._array.path)

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read rows [start, stop) in the input's dtype, native byte order, C order."""
        try:
            found = np.asarray(self._array[start:stop])
            return np.ascontiguousarray(bfloat16_to_float32(found) if self._widened else found, self.dtype)
        except (ValueError, OSError, RuntimeError, bucket_errors()[0]) as error:
            what = f"rows {start} to {stop} cannot be read from array {self._array.path!r}"
            raise InputError(f"{self.path}: {what} ({describe_error(error)})") from error

    @cached_property
    def missing_chunks(self) -> MissingChunks:
        """The missing chunks, listed once. If objects lie elsewhere in the store, an InputError is raised."""
        return find_missing_chunks(self.path, self._array)

    def require_chunks(self, fill: str | None = None) -> None:
        """Refuse missing chunks. `fill` names the setting that fills them, if there is one."""
        require_chunks(self.path, self._array, self.missing_chunks, fill)

    def signature(self) -> str:
        """Return a digest of the objects' keys, sizes and times, without reading the data."""
        return stamped(self.path, self._array.path, [self.rows, self.dims, str(self._array.dtype)])

    def describe(self) -> dict[str, Any]:
        """Return what a run remembers of it."""
        return {
            "path": self.path,
            "array": self.name,
            "shape": [self.rows, self.dims],
            "dtype": str(self.dtype),
            "signature": self.signature(),
        }


class PrecomputedNeighbors:
    """A given k-NN graph: two arrays of a Zarr group, in the order of the input's rows.

    Parameters
    ----------
    path : str
        A group with the arrays 'indices', of integers, -1 where there is no neighbour, and 'distances', of floats.
    rows : int
        Rows of the input.

    Attributes
    ----------
    columns, chunk_bytes, chunk_rows : int
        Slots of a row, and the bytes and rows of a chunk of the larger array.
    """

    def __init__(self, path: str, rows: int) -> None:
        self.indices, self.distances = ArrayInput(path, "indices", INDICES), ArrayInput(path, "distances", DISTANCES)
        self.path, self.columns = self.indices.path, self.indices.dims
        shapes = [(array.rows, array.dims) for array in (self.indices, self.distances)]
        if shapes[0] != shapes[1] or shapes[0][0] != rows:
            raise InputError(
                f"{GIVEN}: in {self.path} 'indices' has shape {shapes[0]} and 'distances' {shapes[1]}, the input has "
                f"{rows} rows: give both a row for each of the input's rows, in its order, and as many columns"
            )
        larger = max((self.indices, self.distances), key=lambda array: array.chunk_rows * array.dtype.itemsize)
        self.chunk_rows = min(larger.chunk_rows, rows)
        self.chunk_bytes = self.chunk_rows * self.columns * larger.dtype.itemsize

    def read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        """Read the indices and distances of rows [start, stop), unchanged."""
        return self.indices.read(start, stop), self.distances.read(start, stop)

    def require_chunks(self) -> None:
        """Refuse missing chunks."""
        for array in (self.indices, self.distances):
            array.require_chunks()

    def describe(self) -> dict[str, Any]:
        """Return what a run remembers of it."""
        both = [self.indices.describe(), self.distances.describe()]
        return {
            "path": self.path,
            "shape": both[0]["shape"],
            "dtype": " and ".join(array["dtype"] for array in both),
            "signature": " ".join(array["signature"] for array in both),
        }
