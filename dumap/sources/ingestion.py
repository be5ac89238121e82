"""Write table files to a Zarr store, chunk by chunk."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import numpy as np

from dumap.errors import ConfigError, InputError
from dumap.sources.files import FileSelection, expand, open_table
from dumap.store import NewStore

CHUNK_BYTES = 8 << 20
"""About how many bytes a chunk has. A task reads a few chunks."""
MOST_CHUNK_ROWS = 65536
NAMES = "names"
"""Name of the array of row names."""
SAY_SECONDS = 10.0


class _Facts(NamedTuple):
    """Facts of a file, known before its rows are read."""

    path: str
    columns: list[str] | None
    dims: int
    dtype: np.dtype
    skipped_columns: list[str]


def _look(path: str, choice: FileSelection) -> _Facts:
    table = open_table(path, choice)
    dtype = np.dtype(np.uint8) if table.dtype.kind == "b" else table.dtype.newbyteorder("=")
    if dtype.itemsize > 8:
        raise InputError(f"{path}: values of {dtype}; save them as float64")
    return _Facts(path, table.columns, table.dims, dtype, table.skipped_columns)


def _check_alike(first: _Facts, other: _Facts) -> None:
    """Refuse files whose columns differ."""
    if other.dims != first.dims:
        raise InputError(f"{other.path} has {other.dims} columns, {first.path} has {first.dims}")
    if other.columns != first.columns:
        differ = [pair for pair in zip(first.columns or (), other.columns or (), strict=False) if pair[0] != pair[1]]
        example = f": {differ[0][1]!r} in the place of {differ[0][0]!r}" if differ else ""
        raise InputError(f"{other.path} has other columns than {first.path}{example}; name them with --columns")


def ingest(
    sources: Sequence[str],
    output: str,
    choice: FileSelection | None = None,
    array: str = "vectors",
    dtype: str | None = None,
    note: Callable[[str], None] = lambda message: None,
) -> dict[str, Any]:
    """Write the rows of files, one after another, to a new Zarr store, in bounded memory.

    Parameters
    ----------
    sources : sequence of str
        Paths, patterns and folders of Parquet, in the order of the rows. Files of a pattern are sorted by name.
    output : str
        A path or URL at which nothing exists. The store appears once it is complete.
    choice : FileSelection, optional
        The part of each file that is taken.
    array : str
        Name of the array.
    dtype : str, optional
        Dtype of the values. By default one that holds the values of all files.
    note : callable
        Called with messages about the progress.

    Returns
    -------
    dict
        'output', 'array', 'rows', 'dims', 'dtype', 'chunk_rows', 'columns' and 'names', the name of the array of row
        names or None.

    Raises
    ------
    InputError
        A file cannot be read, holds no numbers, or has other columns than the first file.
    StorageError
        The output exists or cannot be written.
    """
    choice = choice or FileSelection()
    if array == NAMES or "/" in array or not array:
        raise ConfigError(f"--array {array}: a name without /, and not {NAMES}, is wanted")
    facts = [_look(path, choice) for path in expand(sources)]
    first = facts[0]
    for other in facts:
        _check_alike(first, other)
        if other.skipped_columns:
            note(f"{other.path}: left out, since they hold no numbers: {', '.join(other.skipped_columns)}")
    kind = _dtype(dtype) or np.result_type(*(other.dtype for other in facts))
    if not first.dims:
        raise InputError(f"{first.path}: has no columns")
    chunk_rows = max(1, min(MOST_CHUNK_ROWS, CHUNK_BYTES // (first.dims * kind.itemsize)))
    with NewStore(output, chunk_rows) as store:
        store.add(array, (first.dims,), kind)
        has_names = _copy(facts, choice, store, array, note)
        if not store.total:
            raise InputError(f"{first.path}: has no rows")
    return {
        "output": output,
        "array": array,
        "rows": store.rows,
        "dims": first.dims,
        "dtype": kind.name,
        "chunk_rows": chunk_rows,
        "columns": first.columns,
        "names": NAMES if has_names else None,
    }


def _copy(
    facts: Sequence[_Facts], choice: FileSelection, store: NewStore, array: str, note: Callable[[str], None]
) -> bool:
    """Copy the rows of files; return whether rows have names."""
    has_names: bool | None = None
    last_note = time.monotonic()
    for file in facts:
        for block, names in open_table(file.path, choice).blocks(store.chunk_rows):
            if has_names is None:
                has_names = names is not None
                if has_names:
                    store.add(NAMES, (), str)
            if has_names != (names is not None):
                raise InputError(f"{file.path}: has {'no ' if has_names else ''}names of rows, unlike {facts[0].path}")
            store.append({array: block, **({NAMES: names} if has_names else {})}, len(block))
            if time.monotonic() - last_note > SAY_SECONDS:
                last_note = time.monotonic()
                note(f"{store.total} rows so far, in {file.path}")
    return bool(has_names)


def _dtype(name: str | None) -> np.dtype | None:
    """Return the dtype of a name; None for no name."""
    if name is None:
        return None
    try:
        dtype = np.dtype(name)
    except TypeError:
        dtype = np.dtype(object)
    if dtype.kind not in "iuf" or dtype.itemsize > 8:
        raise ConfigError(f"--dtype {name}: one of numbers is wanted, such as float32, float16 or uint8")
    return dtype
