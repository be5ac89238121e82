"""The input: an array of vectors, read and never written."""

from __future__ import annotations

import hashlib
import json
import os

import numpy as np

from dumap.disk import is_remote, normalize
from dumap.errors import InputError
from dumap.store import bucket_errors, find_array, stamps, told


class Input:
    """The array of vectors that a run reads; never written.

    Parameters
    ----------
    path : str
        A Zarr group or array, v2 or v3: a folder, a zip file or a URL.
    array : str
        The array's name in the group.

    Attributes
    ----------
    rows, dims, chunk_rows : int
    dtype : numpy.dtype
    """

    def __init__(self, path: str, array: str) -> None:
        self.path, self.name = normalize(path), array
        if not is_remote(self.path) and not os.path.exists(self.path):
            raise InputError(f"input.path: {self.path} does not exist")
        self._array = find_array(self.path, array)
        shape, dtype = self._array.shape, self._array.dtype
        where = f"{self.path}, array {self._array.path!r}"
        if len(shape) != 2:
            raise InputError(f"{where} has shape {shape}; dumap reads (rows, dims): reshape it, one row a vector")
        if dtype.kind not in "fiub":
            raise InputError(f"{where} has dtype {dtype}; allowed are real floats, integers and booleans")
        if 0 in shape:
            raise InputError(f"{where} is empty: its shape is {shape}")
        self.rows, self.dims = (int(s) for s in shape)
        self.dtype = dtype.newbyteorder("=")
        self.chunk_rows = int((getattr(self._array, "shards", None) or self._array.chunks)[0])

    def read(self, start: int, stop: int) -> np.ndarray:
        """Read rows [start, stop) in the input's dtype, native byte order, C order."""
        try:
            return np.ascontiguousarray(np.asarray(self._array[start:stop]), self.dtype)
        except (ValueError, OSError, RuntimeError, bucket_errors()[0]) as error:
            raise InputError(f"{self.path}: rows {start} to {stop} cannot be read ({told(error)})") from error

    def signature(self) -> str:
        """Digest what can be seen without reading the data: keys, sizes and times of the objects."""
        digest = hashlib.sha256(json.dumps([self.rows, self.dims, str(self._array.dtype)]).encode())
        for stamp in stamps(self.path, self._array.path):
            digest.update(stamp.encode())
        return digest.hexdigest()
