"""The layout of an array in an object: ranges of rows, each followed by its checksum.

    range, its crc32c, range, its crc32c, ...

All ranges but the last have the same number of rows, little-endian. The shape and the dtype therefore determine where
each row lies. Consecutive rows are one span of bytes, which is read and checked in one pass. The arrays of a part lie
one after another in its object, and the manifest holds their offsets.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import google_crc32c
import numpy as np

from dumap.store.backends import ByteStream

RANGE_BYTES = 1 << 18
"""The usual size of a range, which has one checksum. A part may set the rows of its ranges. Part of the format."""
MIN_RANGE_ROWS = 16
"""The least number of rows in a range of the usual size, even if they are longer. Part of the format."""
GATHER_BYTES = 1 << 22
"""Bytes of rows that are gathered at once, while the rows before them are written."""
SKIP_BUFFER_BYTES = 1 << 16
"""The size of the buffer for bytes that only the checksum needs; it fits the processor's cache."""

DTYPE_PATTERN = re.compile(r"\|[biu]1|<[iu][248]|<f[248]")
"""The dtypes that parts may hold, as numpy writes them: only numbers, since a run may come from any source."""


class ChecksumError(ValueError):
    """The bytes read are not the bytes that were written."""


@dataclass(frozen=True)
class StoredArray:
    """The layout of an array in an object.

    Parameters
    ----------
    shape : tuple of int
    dtype : numpy.dtype
        One of `DTYPE_PATTERN`.
    rows_per_range : int
        Rows of a range; 0 for as many as `RANGE_BYTES` hold. Small ranges suit arrays that are read few rows at a time.

    Raises
    ------
    ValueError
        Parts hold no arrays of this shape or dtype.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    rows_per_range: int = 0

    def __post_init__(self) -> None:
        if not self.shape or self.shape[0] < 0 or min(self.shape[1:], default=1) < 1:
            raise ValueError(f"arrays of shape {self.shape} are not written")
        if not DTYPE_PATTERN.fullmatch(self.dtype.str):
            raise ValueError(f"arrays of dtype {self.dtype.str} are not written")
        if self.rows_per_range < 0:
            raise ValueError(f"arrays of shape {self.shape} have no ranges of {self.rows_per_range} rows")
        if self.size >> 48:
            raise ValueError(f"arrays of shape {self.shape} are longer than any disk")

    @classmethod
    def of(cls, values: np.ndarray, rows: int, rows_per_range: int = 0) -> StoredArray:
        """Return the layout of an array of `rows` rows with the dtype and the shape of rows of `values`."""
        return cls((rows, *values.shape[1:]), values.dtype.newbyteorder("<"), rows_per_range)

    def described(self) -> tuple:
        """Return what `parse` takes."""
        return (self.shape, self.dtype.str, *([self.rows_per_range] if self.rows_per_range else []))

    @classmethod
    def parse(cls, shape: Any, dtype: Any, rows_per_range: Any = 0) -> StoredArray:
        """Return the layout that a manifest describes.

        Raises
        ------
        ValueError
            The shape or the dtype is not valid.
        """
        if not isinstance(shape, list) or not all(type(length) is int for length in shape):
            raise ValueError(f"{shape} is no shape")
        if not isinstance(dtype, str) or not DTYPE_PATTERN.fullmatch(dtype):
            raise ValueError(f"{dtype} is no dtype of a part")
        if type(rows_per_range) is not int:
            raise ValueError(f"{rows_per_range} is no number of rows of arrays of shape {shape}")
        return cls(tuple(shape), np.dtype(dtype), rows_per_range)

    @cached_property
    def row_bytes(self) -> int:
        """The bytes of a row."""
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @cached_property
    def range_rows(self) -> int:
        """The rows of a range; the last range may have fewer."""
        return min(max(1, self.shape[0]), self.rows_per_range or max(MIN_RANGE_ROWS, RANGE_BYTES // self.row_bytes))

    @property
    def _range_count(self) -> int:
        """The number of ranges."""
        return -(-self.shape[0] // self.range_rows)

    @property
    def _range_stride(self) -> int:
        """The bytes from the start of a range to the start of the next: a range and a checksum."""
        return self.range_rows * self.row_bytes + 4

    @property
    def size(self) -> int:
        """The bytes of the array with its checksums."""
        return self.shape[0] * self.row_bytes + 4 * self._range_count

    def pieces(self, values: np.ndarray, rows: np.ndarray | None = None) -> Iterator[memoryview | bytes]:
        """Yield the array's bytes in order. Each piece is valid until the next one is taken.

        Parameters
        ----------
        values : ndarray
        rows : ndarray of int, optional
            The numbers of the rows of `values` to write. [all]

        Raises
        ------
        IndexError
            A number is not that of a row.
        """
        if rows is not None and len(rows) and not (rows.min() >= 0 and rows.max() < len(values)):
            raise IndexError(f"rows {rows.min()} to {rows.max()} of an array of {len(values)}")
        # viewed as bytes, since rows in an object need not be aligned to the size of their items
        values = np.ascontiguousarray(values, dtype=self.dtype).view(np.uint8).reshape(-1, self.row_bytes)
        step = self.range_rows
        for block in (
            [values]
            if rows is None
            else _gather_blocks(values, rows, max(1, GATHER_BYTES // self._range_stride) * step)
        ):
            for start in range(0, len(block), step):
                piece = block[start : start + step]
                yield piece.reshape(-1).data
                yield _checksum_bytes(google_crc32c.value(piece))

    def span(self, start: int, stop: int) -> tuple[int, int]:
        """Return the bytes [first, last) of the ranges and checksums that hold rows [start, stop)."""
        last = -(-stop // self.range_rows)
        return (
            start // self.range_rows * self._range_stride,
            self.size if last == self._range_count else last * self._range_stride,
        )

    def read(self, source: ByteStream, start: int, stop: int, out: np.ndarray) -> None:
        """Read rows [start, stop) and verify their checksums.

        Parameters
        ----------
        source : ByteStream
            The next byte to read is the first byte of the rows' span.
        start, stop : int
        out : ndarray
            Filled with the rows; C-contiguous, of the rows' shape and dtype.

        Raises
        ------
        ChecksumError
            A range does not match its checksum, the source ends too soon, or `out` has another shape or dtype.
        """
        if (out.shape, out.dtype) != ((stop - start, *self.shape[1:]), self.dtype):
            raise ChecksumError(f"rows are of {self.shape} and {self.dtype.str}, not as asked for")
        out_bytes, filled_bytes, last = out.view(np.uint8).reshape(-1), 0, -(-stop // self.range_rows)
        skip_buffer = np.empty(min(SKIP_BUFFER_BYTES, self._range_stride), np.uint8)
        for number in range(start // self.range_rows, last):
            first = number * self.range_rows
            low, high = max(start - first, 0), min(stop - first, self.range_rows)
            piece = out_bytes[filled_bytes : filled_bytes + (high - low) * self.row_bytes]
            filled_bytes += len(piece)
            crc = _skip_bytes(source, low * self.row_bytes, skip_buffer, 0)
            _read_into(source, piece)
            crc = google_crc32c.extend(crc, piece)
            remaining = min(self.range_rows, self.shape[0] - first) - high
            crc = _skip_bytes(source, remaining * self.row_bytes, skip_buffer, crc)
            _read_into(source, skip_buffer[:4])
            if skip_buffer[:4].tobytes() != _checksum_bytes(crc):
                raise ChecksumError(f"range {number} fails its checksum")


def encode_chunk(values: np.ndarray) -> bytes:
    """Return the bytes of a chunk that Zarr would write with the codecs 'bytes' and 'crc32c'."""
    data = np.ascontiguousarray(values, values.dtype.newbyteorder("<")).tobytes()
    return data + _checksum_bytes(google_crc32c.value(data))


def _checksum_bytes(crc: int) -> bytes:
    """Return the bytes of a checksum."""
    return crc.to_bytes(4, "little")


def _read_into(source: ByteStream, piece: np.ndarray) -> None:
    """Fill a piece with the next bytes of a source."""
    remaining = piece.data
    while len(remaining):
        count = source.readinto(remaining)
        if not count:
            raise ChecksumError("it ends too soon")
        remaining = remaining[count:]


def _skip_bytes(source: ByteStream, count: int, buffer: np.ndarray, crc: int) -> int:
    """Read `count` bytes through a buffer; return the checksum `crc` extended by them."""
    while count:
        piece = buffer[: min(count, len(buffer))]
        _read_into(source, piece)
        crc = google_crc32c.extend(crc, piece)
        count -= len(piece)
    return crc


def _gather_blocks(values: np.ndarray, rows: np.ndarray, step: int) -> Iterator[np.ndarray]:
    """Yield `values[rows]` in blocks of `step` rows. A thread gathers the next block while the caller uses this one."""
    starts = range(0, len(rows), step)
    buffers = [np.empty((min(step, len(rows)), values.shape[1]), np.uint8) for _ in range(min(2, len(starts)))]

    def gather(number: int) -> np.ndarray:
        block_rows = rows[starts[number] : starts[number] + step]
        out = buffers[number % 2][: len(block_rows)]
        return np.take(values, block_rows, axis=0, out=out, mode="clip")  # in other modes numpy allocates a buffer

    if len(starts) <= 1:
        yield from map(gather, range(len(starts)))
        return
    with ThreadPoolExecutor(1) as executor:
        next_block = executor.submit(gather, 0)
        for number in range(1, len(starts) + 1):
            block = next_block.result()
            if number < len(starts):
                next_block = executor.submit(gather, number)
            yield block
