"""Finds the missing chunks of an array. Zarr itself silently reads a missing chunk as the fill value."""

from __future__ import annotations

import math
import re
from array import array as integer_array
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import zarr

from dumap.errors import InputError, StorageError
from dumap.store.objects import list_names_below

MAX_LISTED = 5
"""The most chunks, and ranges of rows, that a message names."""
_CHUNK_NAME = re.compile(r"(?:c[./])?([0-9]{1,18}(?:[./][0-9]{1,18})*)")


@dataclass(frozen=True)
class MissingChunks:
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
        ellipsis = ", ..." if self.chunks > len(self.keys) else ""
        spans = ", ".join(f"{start} to {stop - 1}" for start, stop in self.spans)
        return (
            f"{self.chunks} of {self.of} chunks are not there ({', '.join(self.keys)}{ellipsis}), of {self.rows} "
            f"{self.what} ({self.what} {spans}{ellipsis})"
        )


def _first_missing(present_chunks: np.ndarray, chunk_count: int) -> np.ndarray:
    """Return the first numbers below `chunk_count` that are not among the ascending `present_chunks`."""
    known_chunks = present_chunks[: np.searchsorted(present_chunks, chunk_count)]
    gap_positions = np.flatnonzero(np.diff(known_chunks, prepend=-1, append=chunk_count) > 1)
    missing_numbers: list[int] = []
    for gap_position in gap_positions[:MAX_LISTED]:
        low, high = (
            (known_chunks[gap_position - 1] + 1 if gap_position else 0),
            (known_chunks[gap_position] if gap_position < len(known_chunks) else chunk_count),
        )
        missing_numbers += range(int(low), min(int(high), int(low) + MAX_LISTED))
    return np.array(missing_numbers[:MAX_LISTED], np.int64)


def _join_ranges(spans: Iterable[tuple[int, int]]) -> list[tuple[int, int]]:
    """Join ascending ranges that touch or overlap."""
    joined_ranges: list[tuple[int, int]] = []
    for start, stop in spans:
        if joined_ranges and start <= joined_ranges[-1][1]:
            joined_ranges[-1] = joined_ranges[-1][0], max(stop, joined_ranges[-1][1])
        else:
            joined_ranges.append((start, stop))
    return joined_ranges


def _list_missing_chunks(location: str, array: zarr.Array) -> MissingChunks:
    """Find the missing chunks from one listing of the store; memory is 8 bytes for each present chunk.

    Parameters
    ----------
    location : str
        The location of the store.
    array : zarr.Array
        An array of at least one axis.
    """
    chunk_lengths = tuple(array.shards or array.chunks)
    chunk_grid = [math.ceil(size / chunk_rows) for size, chunk_rows in zip(array.shape, chunk_lengths, strict=True)]
    chunk_strides = [math.prod(chunk_grid[axis + 1 :]) for axis in range(len(chunk_grid))]
    metadata: Any = array.metadata

    def collect_chunks(names: Iterable[str]) -> tuple[integer_array, list[tuple[int, str]]]:
        present_chunks = integer_array("q")
        misplaced: list[tuple[int, str]] = []
        for name in names:
            if not (match := _CHUNK_NAME.fullmatch(name)):
                continue
            chunk_indices = [int(number) for number in re.split(r"[./]", match[1])]
            if len(chunk_indices) != len(chunk_grid) or any(
                index >= size for index, size in zip(chunk_indices, chunk_grid, strict=True)
            ):
                continue
            number = sum(index * stride for index, stride in zip(chunk_indices, chunk_strides, strict=True))
            if metadata.encode_chunk_key(tuple(chunk_indices)) == name:
                present_chunks.append(number)
            elif len(misplaced) < MAX_LISTED:
                misplaced.append((number, name))
        return present_chunks, misplaced

    present_numbers, misplaced = list_names_below(location, array.path, len(chunk_grid) + 1, collect_chunks)
    present_chunks, chunk_count = np.unique(np.frombuffer(present_numbers, np.int64)), math.prod(chunk_grid)
    if len(present_chunks) == chunk_count:
        return MissingChunks(0, chunk_count, 0)
    positions = [
        np.unravel_index(number, chunk_grid) for number in _first_missing(present_chunks, chunk_count).tolist()
    ]
    rows, chunk_rows = array.shape[0], chunk_lengths[0]
    whole_chunk_rows, columns = np.unique(present_chunks // chunk_strides[0], return_counts=True)
    whole_chunk_rows = whole_chunk_rows[columns == chunk_strides[0]]
    present_rows = int((np.minimum(rows, (whole_chunk_rows + 1) * chunk_rows) - whole_chunk_rows * chunk_rows).sum())
    return MissingChunks(
        chunk_count - len(present_chunks),
        chunk_count,
        rows - present_rows,
        [metadata.encode_chunk_key(tuple(int(index) for index in chunk_indices)) for chunk_indices in positions],
        _join_ranges(
            (int(chunk_indices[0]) * chunk_rows, min(rows, (int(chunk_indices[0]) + 1) * chunk_rows))
            for chunk_indices in positions
        ),
        [name for number, name in sorted(misplaced) if number not in present_chunks],
    )


def find_missing_chunks(location: str, array: zarr.Array) -> MissingChunks:
    """Find the missing chunks, see `_list_missing_chunks`.

    Raises
    ------
    InputError
        The store cannot be listed, or chunks lie under the names of another chunk layout.
    """
    array_name = f"{location}, array {array.path!r}"
    try:
        missing = _list_missing_chunks(location, array)
    except StorageError as error:
        raise InputError(f"{array_name}: its chunks cannot be listed ({error})") from error
    if missing.misplaced:
        raise InputError(
            f"{array_name}: {missing}, but {', '.join(missing.misplaced)} are: they lie as another layout names them "
            f"than the array's metadata. Put the metadata right ('dimension_separator' in .zarray, "
            f"'chunk_key_encoding' in zarr.json), or write the array anew"
        )
    return missing


def require_chunks(location: str, array: zarr.Array, missing: MissingChunks, fill_setting: str | None = None) -> None:
    """Refuse an array with missing chunks; the message names `fill_setting`, the setting that allows them, if given.

    Raises
    ------
    InputError
    """
    if missing.chunks:
        remedy = (
            f"--set {fill_setting} says so" if fill_setting else "write the array anew with write_empty_chunks=True"
        )
        other_remedy = ", or write the array anew with write_empty_chunks=True" if fill_setting else ""
        raise InputError(
            f"{location}, array {array.path!r}: {missing}: either they were lost, or they were never written, as Zarr "
            f"leaves out chunks that equal the fill value ({array.fill_value}) with write_empty_chunks=False. Bring "
            f"back what was lost; where all of them hold nothing but the fill value, {remedy}{other_remedy}"
        )


def decoded_rows(array: zarr.Array) -> int:
    """Return the smallest number of rows that can be decoded: those of a chunk, also within a shard.

    If further codecs filter or compress a whole shard, it is the rows of a shard.
    """
    codecs = getattr(array.metadata, "codecs", ())
    lengths = array.chunks if array.shards is None or len(codecs) == 1 else array.shards
    return int(lengths[0])
