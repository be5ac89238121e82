"""Finds the missing chunks of an array. Zarr itself silently reads a missing chunk as the fill value."""

from __future__ import annotations

import math
import re
from array import array as packed
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr

from dumap.errors import InputError, StorageError
from dumap.store.objects import names_below

MAX_LISTED = 5
"""The most chunks, and ranges of rows, that a message names."""
_CHUNK = re.compile(r"(?:c[./])?([0-9]{1,18}(?:[./][0-9]{1,18})*)")


@dataclass(frozen=True)
class Absent:
    """The missing chunks of an array.

    Attributes
    ----------
    chunks, of : int
        The number of missing chunks, and of all chunks. Of a sharded array, shards are counted instead of chunks.
    rows : int
        The number of rows of which some values are missing.
    keys : list of str
        The keys of the first missing chunks.
    spans : list of tuple of int
        The rows [start, stop) of the first missing chunks; adjoining ranges are joined.
    misplaced : list of str
        The keys of objects that hold missing chunks under the names of another chunk layout.
    what : str
        The word for rows in messages: of a sparse matrix, entries are counted.
    """

    chunks: int
    of: int
    rows: int
    keys: list[str] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    misplaced: list[str] = field(default_factory=list)
    what: str = "rows"

    def __str__(self) -> str:
        """Return a message with the number of missing chunks, their keys and their rows."""
        more = ", ..." if self.chunks > len(self.keys) else ""
        spans = ", ".join(f"{start} to {stop - 1}" for start, stop in self.spans)
        return (
            f"{self.chunks} of {self.of} chunks are not there ({', '.join(self.keys)}{more}), of {self.rows} "
            f"{self.what} ({self.what} {spans}{more})"
        )


def _missing(present: np.ndarray, count: int) -> np.ndarray:
    """Return the first numbers below `count` that the ascending numbers `present` lack."""
    known = present[: np.searchsorted(present, count)]
    gaps = np.flatnonzero(np.diff(known, prepend=-1, append=count) > 1)
    first: list[int] = []
    for gap in gaps[:MAX_LISTED]:
        low, high = (known[gap - 1] + 1 if gap else 0), (known[gap] if gap < len(known) else count)
        first += range(int(low), min(int(high), int(low) + MAX_LISTED))
    return np.array(first[:MAX_LISTED], np.int64)


def _join(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ascending ranges that touch or overlap."""
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((start, stop))
    return joined


def absent_chunks(location: str, array: zarr.Array) -> Absent:
    """Find the missing chunks from one listing of the store; memory is 8 bytes for each present chunk.

    Parameters
    ----------
    location : str
        The location of the store.
    array : zarr.Array
        An array of at least one axis.
    """
    lengths = tuple(array.shards or array.chunks)
    grid = [math.ceil(size / length) for size, length in zip(array.shape, lengths, strict=True)]
    steps = [math.prod(grid[axis + 1 :]) for axis in range(len(grid))]
    metadata: Any = array.metadata

    def collect(names: Iterable[str]) -> tuple[packed, list[tuple[int, str]]]:
        present = packed("q")
        misplaced: list[tuple[int, str]] = []
        for name in names:
            if not (match := _CHUNK.fullmatch(name)):
                continue
            position = [int(number) for number in re.split(r"[./]", match[1])]
            if len(position) != len(grid) or any(at >= size for at, size in zip(position, grid, strict=True)):
                continue
            number = sum(at * step for at, step in zip(position, steps, strict=True))
            if metadata.encode_chunk_key(tuple(position)) == name:
                present.append(number)
            elif len(misplaced) < MAX_LISTED:
                misplaced.append((number, name))
        return present, misplaced

    listed, misplaced = names_below(location, array.path, len(grid) + 1, collect)
    present, count = np.unique(np.frombuffer(listed, np.int64)), math.prod(grid)
    if len(present) == count:
        return Absent(0, count, 0)
    positions = [np.unravel_index(number, grid) for number in _missing(present, count).tolist()]
    rows, length = array.shape[0], lengths[0]
    whole, columns = np.unique(present // steps[0], return_counts=True)
    whole = whole[columns == steps[0]]
    held = int((np.minimum(rows, (whole + 1) * length) - whole * length).sum())
    return Absent(
        count - len(present),
        count,
        rows - held,
        [metadata.encode_chunk_key(tuple(int(at) for at in position)) for position in positions],
        _join((int(position[0]) * length, min(rows, (int(position[0]) + 1) * length)) for position in positions),
        [name for number, name in sorted(misplaced) if number not in present],
    )


def find_absent(location: str, array: zarr.Array) -> Absent:
    """Find the missing chunks, see `absent_chunks`.

    Raises
    ------
    InputError
        The store cannot be listed, or chunks lie under the names of another chunk layout.
    """
    where = f"{location}, array {array.path!r}"
    try:
        absent = absent_chunks(location, array)
    except StorageError as error:
        raise InputError(f"{where}: its chunks cannot be listed ({error})") from error
    if absent.misplaced:
        raise InputError(
            f"{where}: {absent}, but {', '.join(absent.misplaced)} are: they lie as another layout names them than the "
            f"array's metadata. Put the metadata right ('dimension_separator' in .zarray, 'chunk_key_encoding' in "
            f"zarr.json), or write the array anew"
        )
    return absent


def require_chunks(location: str, array: zarr.Array, absent: Absent, fill: str | None = None) -> None:
    """Refuse an array with missing chunks; the message names `fill`, the setting that allows them, if given.

    Raises
    ------
    InputError
    """
    if absent.chunks:
        remedy = f"--set {fill} says so" if fill else "write the array anew with write_empty_chunks=True"
        other = ", or write the array anew with write_empty_chunks=True" if fill else ""
        raise InputError(
            f"{location}, array {array.path!r}: {absent}: either they were lost, or they were never written, as Zarr "
            f"leaves out chunks that equal the fill value ({array.fill_value}) with write_empty_chunks=False. Bring "
            f"back what was lost; where all of them hold nothing but the fill value, {remedy}{other}"
        )


def decoded_rows(array: zarr.Array) -> int:
    """Return the smallest number of rows that can be decoded: those of a chunk, also within a shard.

    If further codecs filter or compress a whole shard, it is the rows of a shard.
    """
    codecs = getattr(array.metadata, "codecs", ())
    lengths = array.chunks if array.shards is None or len(codecs) == 1 else array.shards
    return int(lengths[0])
