"""An array as one object of Zarr's sharding codec, written and read without that codec.

    chunk, its crc32c, chunk, its crc32c, ..., index, its crc32c

A chunk is a range of rows, little-endian; the last is filled up with zeros. The index says where each chunk begins
and how long it is, which follows from shape and dtype here: every chunk is there, in order. So a range of rows is
one span of bytes, and is read and checked in one pass, where Zarr reads the index first and then takes a coroutine
a chunk. The metadata beside the object is Zarr's own, and any reader of Zarr reads what is written here.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any, Protocol

import google_crc32c
import numpy as np
import zarr
from zarr.codecs import Crc32cCodec
from zarr.storage import MemoryStore

RANGE_BYTES = 1 << 18
"""Rows are read in ranges of about this size, each with a checksum of its own. Part of the format."""
RANGE_ROWS = 16
"""Least rows of a range, however long they are. Part of the format."""
SKIP_BYTES = 1 << 16
"""What is read for its checksum alone is read through a buffer of this size, which stays in the processor's cache."""

DTYPES = re.compile(r"\|[biu]1|<[iu][248]|<f[248]")
"""The dtypes that parts may hold, as numpy writes them: plain numbers, since manifests are read from anywhere."""


class Broken(ValueError):
    """Bytes are not those that were written."""


class Source(Protocol):
    """What bytes are read from in order: a file, or what a bucket answered."""

    def readinto(self, buffer: memoryview, /) -> int | None:
        """Fill a buffer, or the beginning of it; tell how far."""


@dataclass(frozen=True)
class Shard:
    """The layout of the object that holds an array.

    Parameters
    ----------
    shape : tuple of int
    dtype : numpy.dtype
        One of `DTYPES`.

    Raises
    ------
    ValueError
        No object holds such an array.
    """

    shape: tuple[int, ...]
    dtype: np.dtype

    def __post_init__(self) -> None:
        if not self.shape or self.shape[0] < 0 or min(self.shape[1:], default=1) < 1:
            raise ValueError(f"arrays of shape {self.shape} are not written")
        if not DTYPES.fullmatch(self.dtype.str):
            raise ValueError(f"arrays of dtype {self.dtype.str} are not written")
        if self.size >> 48:
            raise ValueError(f"arrays of shape {self.shape} are longer than any disk")

    @classmethod
    def of(cls, values: np.ndarray, rows: int) -> Shard:
        """Return the layout of so many rows like those of an array."""
        return cls((rows, *values.shape[1:]), values.dtype.newbyteorder("<"))

    @classmethod
    def parse(cls, shape: Any, dtype: Any) -> Shard:
        """Return the layout that a manifest tells of.

        Raises
        ------
        ValueError
            It tells of none.
        """
        if not isinstance(shape, list) or not all(type(length) is int for length in shape):
            raise ValueError(f"{shape} is no shape")
        if not isinstance(dtype, str) or not DTYPES.fullmatch(dtype):
            raise ValueError(f"{dtype} is no dtype of a part")
        return cls(tuple(shape), np.dtype(dtype))

    @cached_property
    def row_bytes(self) -> int:
        """Bytes of a row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @cached_property
    def range_rows(self) -> int:
        """Rows of a chunk."""
        return min(max(1, self.shape[0]), max(RANGE_ROWS, RANGE_BYTES // self.row_bytes))

    @property
    def _ranges(self) -> int:
        return -(-self.shape[0] // self.range_rows)

    @property
    def _step(self) -> int:
        """Bytes from chunk to chunk: a checksum lies between them."""
        return self.range_rows * self.row_bytes + 4

    @property
    def size(self) -> int:
        """Bytes of the object; an array without rows has none."""
        return self._ranges * (self._step + 16) + 4 if self.shape[0] else 0

    def key(self, path: str) -> str:
        """Name the object of the array at a path."""
        return "/".join([path, "c", *["0"] * len(self.shape)])

    @cached_property
    def index(self) -> bytes:
        """What ends the object: offset and length of each chunk, and their checksum."""
        offsets = np.arange(self._ranges, dtype="<u8") * np.uint64(self._step)
        body = np.stack([offsets, np.full_like(offsets, self._step)], axis=1).tobytes()
        return body + _checksum(google_crc32c.value(body))

    def metadata(self) -> bytes:
        """Return the array's zarr.json."""
        document = json.loads(_template(len(self.shape), self.dtype.str))
        tail = self.shape[1:]
        document["shape"] = self.shape
        document["chunk_grid"]["configuration"]["chunk_shape"] = (max(1, self._ranges) * self.range_rows, *tail)
        document["codecs"][0]["configuration"]["chunk_shape"] = (self.range_rows, *tail)
        return json.dumps(document).encode()

    def pieces(self, values: np.ndarray, rows: np.ndarray | None = None) -> Iterator[memoryview | bytes]:
        """Yield the object's bytes in order; each piece is good until the next is asked for.

        Parameters
        ----------
        values : ndarray
        rows : ndarray of int, optional
            Numbers of the rows of `values` to write; all, where not given.

        Raises
        ------
        IndexError
        """
        if rows is not None and not (rows.min() >= 0 and rows.max() < len(values)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of an array of {len(values)}")
        # as bytes, so that no row's place need be a multiple of its items' size
        values = np.ascontiguousarray(values, dtype=self.dtype).view(np.uint8).reshape(-1, self.row_bytes)
        buffer = np.empty((self.range_rows, self.row_bytes), np.uint8)
        for start in range(0, self.shape[0], self.range_rows):
            stop = min(start + self.range_rows, self.shape[0])
            chunk = buffer
            if rows is not None:  # clipping, or numpy would gather into a buffer of its own first
                np.take(values, rows[start:stop], axis=0, out=buffer[: stop - start], mode="clip")
            elif stop - start < self.range_rows:
                buffer[: stop - start] = values[start:stop]
            else:
                chunk = values[start:stop]
            buffer[stop - start :] = 0
            yield chunk.reshape(-1).data
            yield _checksum(google_crc32c.value(chunk))
        yield self.index

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Return the first and the last byte, exclusive, of what rows [start, stop) are read from."""
        last = -(-stop // self.range_rows)
        return start // self.range_rows * self._step, self.size if last == self._ranges else last * self._step

    def read(self, source: Source, start: int, stop: int, out: np.ndarray) -> None:
        """Read rows [start, stop) and check them.

        Parameters
        ----------
        source : Source
            Stands at the first byte of the rows' span.
        start, stop : int
        out : ndarray
            C-contiguous, of the rows' shape and dtype; filled.

        Raises
        ------
        Broken
            A chunk is not what its checksum says, the source ends too soon, or holds rows of another kind.
        """
        if (out.shape, out.dtype) != ((stop - start, *self.shape[1:]), self.dtype):
            raise Broken(f"rows are of {self.shape} and {self.dtype.str}, not as asked for")
        wanted, done, last = out.view(np.uint8).reshape(-1), 0, -(-stop // self.range_rows)
        skipped = np.empty(min(SKIP_BYTES, self._step), np.uint8)
        for number in range(start // self.range_rows, last):
            first = number * self.range_rows
            low, high = max(start - first, 0), min(stop - first, self.range_rows)
            piece = wanted[done : done + (high - low) * self.row_bytes]
            done += len(piece)
            crc = _skip(source, low * self.row_bytes, skipped, 0)
            _fill(source, piece)
            crc = google_crc32c.extend(crc, piece)
            crc = _skip(source, (self.range_rows - high) * self.row_bytes, skipped, crc)
            _fill(source, skipped[:4])
            if skipped[:4].tobytes() != _checksum(crc):
                raise Broken(f"chunk {number} fails its checksum")
        if last == self._ranges:
            index = np.empty(len(self.index), np.uint8)
            _fill(source, index)
            if index.tobytes() != self.index:
                raise Broken("the index is not what was written")


def _checksum(crc: int) -> bytes:
    return crc.to_bytes(4, "little")


def _fill(source: Source, piece: np.ndarray) -> None:
    """Read a piece whole."""
    left = piece.data
    while len(left):
        count = source.readinto(left)
        if not count:
            raise Broken("it ends too soon")
        left = left[count:]


def _skip(source: Source, count: int, buffer: np.ndarray, crc: int) -> int:
    """Read so many bytes for the checksum alone; return it."""
    while count:
        piece = buffer[: min(count, len(buffer))]
        _fill(source, piece)
        crc = google_crc32c.extend(crc, piece)
        count -= len(piece)
    return crc


@lru_cache(maxsize=64)
def _template(dimensions: int, dtype: str) -> bytes:
    """Have Zarr make the metadata of an array, whose lengths alone differ from those of others of its kind."""
    encoded: dict[str, Any] = {}
    ones = (1,) * dimensions
    zarr.create_array(
        MemoryStore(encoded),
        shape=ones,
        dtype=dtype,
        chunks=ones,
        shards=ones,
        compressors=[Crc32cCodec()],
        filters=None,
        fill_value=0,
    )
    return encoded["zarr.json"].to_bytes()
