"""Which chunks of an array are there: Zarr reads those that are not as its fill value, without a word."""

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
"""Chunks, and ranges of rows, that a message names."""
_CHUNK = re.compile(r"(?:c[./])?([0-9]{1,18}(?:[./][0-9]{1,18})*)")


@dataclass(frozen=True)
class Absent:
    """The chunks of an array that are not there.

    Attributes
    ----------
    chunks, of : int
        How many, and of how many; those within a shard that is there do not count.
    rows : int
        Rows that they hold some of.
    keys : list of str
        The first of them.
    spans : list of tuple of int
        Rows [start, stop) that the first of them hold, joined where they touch.
    misplaced : list of str
        Objects that would be chunks if the metadata named another layout, where their chunks are not there.
    what : str
        What is counted as rows, for people: of a sparse matrix its entries.
    """

    chunks: int
    of: int
    rows: int
    keys: list[str] = field(default_factory=list)
    spans: list[tuple[int, int]] = field(default_factory=list)
    misplaced: list[str] = field(default_factory=list)
    what: str = "rows"

    def __str__(self) -> str:
        """Write how many chunks are missing, which, and which rows they hold."""
        more = ", ..." if self.chunks > len(self.keys) else ""
        spans = ", ".join(f"{start} to {stop - 1}" for start, stop in self.spans)
        return (
            f"{self.chunks} of {self.of} chunks are not there ({', '.join(self.keys)}{more}), of {self.rows} "
            f"{self.what} ({self.what} {spans}{more})"
        )


def _missing(there: np.ndarray, count: int) -> np.ndarray:
    """Return the first numbers below `count` that are not among ascending ones."""
    known = there[: np.searchsorted(there, count)]
    gaps = np.flatnonzero(np.diff(known, prepend=-1, append=count) > 1)
    first: list[int] = []
    for gap in gaps[:MAX_LISTED]:
        low, high = (known[gap - 1] + 1 if gap else 0), (known[gap] if gap < len(known) else count)
        first += range(int(low), min(int(high), int(low) + MAX_LISTED))
    return np.array(first[:MAX_LISTED], np.int64)


def _join(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    joined: list[tuple[int, int]] = []
    for start, stop in spans:
        if joined and start <= joined[-1][1]:
            joined[-1] = joined[-1][0], max(stop, joined[-1][1])
        else:
            joined.append((start, stop))
    return joined


def absent_chunks(location: str, array: zarr.Array) -> Absent:
    """Find the chunks that are not there, by one listing of those that are: 8 bytes each.

    Parameters
    ----------
    location : str
        Of the store.
    array : zarr.Array
        Of one axis or more.
    """
    lengths = tuple(array.shards or array.chunks)
    grid = [math.ceil(size / length) for size, length in zip(array.shape, lengths, strict=True)]
    steps = [math.prod(grid[axis + 1 :]) for axis in range(len(grid))]
    metadata: Any = array.metadata

    def collect(names: Iterable[str]) -> tuple[packed, list[tuple[int, str]]]:
        there = packed("q")
        elsewhere: list[tuple[int, str]] = []
        for name in names:
            if not (match := _CHUNK.fullmatch(name)):
                continue
            place = [int(number) for number in re.split(r"[./]", match[1])]
            if len(place) != len(grid) or any(at >= size for at, size in zip(place, grid, strict=True)):
                continue
            number = sum(at * step for at, step in zip(place, steps, strict=True))
            if metadata.encode_chunk_key(tuple(place)) == name:
                there.append(number)
            elif len(elsewhere) < MAX_LISTED:
                elsewhere.append((number, name))
        return there, elsewhere

    listed, elsewhere = names_below(location, array.path, len(grid) + 1, collect)
    there, count = np.unique(np.frombuffer(listed, np.int64)), math.prod(grid)
    if len(there) == count:
        return Absent(0, count, 0)
    first = _missing(there, count)
    own = [np.unravel_index(number, grid) for number in first.tolist()]
    rows, length = array.shape[0], lengths[0]
    whole, columns = np.unique(there // steps[0], return_counts=True)
    whole = whole[columns == steps[0]]
    held = int((np.minimum(rows, (whole + 1) * length) - whole * length).sum())
    return Absent(
        count - len(there),
        count,
        rows - held,
        [metadata.encode_chunk_key(tuple(int(at) for at in place)) for place in own],
        _join((int(place[0]) * length, min(rows, (int(place[0]) + 1) * length)) for place in own),
        [name for number, name in sorted(elsewhere) if number not in there],
    )


def find_absent(location: str, array: zarr.Array) -> Absent:
    """Find the chunks that are not there, as `absent_chunks` does.

    Raises
    ------
    InputError
        They cannot be listed, or chunks lie where the metadata do not say.
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
    """Refuse chunks that are not there; name the setting by which they are filled, where there is one.

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
    """Return the least number of rows that are decoded at once: those of an inner chunk, if the array has shards.

    A shard that is filtered or compressed as a whole is decoded as a whole.
    """
    codecs = getattr(array.metadata, "codecs", ())
    lengths = array.chunks if array.shards is None or len(codecs) == 1 else array.shards
    return int(lengths[0])
