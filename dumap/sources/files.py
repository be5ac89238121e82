"""Table files for `dumap ingest`: their columns, and their rows block by block."""

from __future__ import annotations

import contextlib
import glob
import os
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from dumap.errors import InputError, missing_packages

Block = tuple[np.ndarray, "list[str] | None"]
"""Rows, and the rows' names if there are any."""
LIST_ENDINGS = (".npy", ".npz", ".parquet", ".pq", ".h5", ".hdf5", ".h5ad", ".csv", ".csv.gz", ".tsv", ".tsv.gz")
INDEX = "_index"
"""Attribute of an AnnData table that names its column of row names."""
MAX_LISTED = 20
"""Columns that a message names."""


@dataclass(frozen=True)
class FileSelection:
    """The part of a file that is taken.

    Attributes
    ----------
    columns : tuple of str, optional
        Columns, by name, or by number or range START:STOP. By default all columns that hold numbers.
    key : str, optional
        The array to take from a file with several.
    names : str, optional
        The column of row names.
    header : bool
        Whether the first line of text names the columns.
    """

    columns: tuple[str, ...] | None = None
    key: str | None = None
    names: str | None = None
    header: bool = True


class Table(Protocol):
    """A file's rows.

    Attributes
    ----------
    columns : list of str, optional
        Names of the columns that are taken.
    dims : int
    dtype : numpy.dtype
    skipped_columns : list of str
        Columns that are left out because they hold no numbers.
    """

    columns: list[str] | None
    dims: int
    dtype: np.dtype
    skipped_columns: list[str]

    def blocks(self, rows: int) -> Iterator[Block]:
        """Yield all rows in order, about `rows` at a time."""


def expand(sources: Sequence[str]) -> list[str]:
    """List the files of paths, patterns and folders of Parquet. Files of a pattern are sorted by name.

    Raises
    ------
    InputError
        There is no such file.
    """
    paths: list[str] = []
    for source in sources:
        if "://" in source:
            raise InputError(f"{source}: files are read from disks; copy them there first")
        if os.path.isdir(source):
            files = sorted(map(str, Path(source).rglob("*.parquet")))
        elif os.path.exists(source):
            files = [source]
        else:
            files = sorted(glob.glob(source, recursive=True))
        if not files:
            raise InputError(f"{source}: there is no such file, and no file of that pattern")
        paths += files
    return paths


def open_table(path: str, choice: FileSelection) -> Table:
    """Open a file, by its ending.

    Raises
    ------
    InputError
        The file cannot be read, or lacks a column or array that `choice` names.
    ConfigError
        A library is missing.
    """
    ending = next((end for end in sorted(LIST_ENDINGS, key=len, reverse=True) if path.lower().endswith(end)), None)
    if ending is None:
        raise InputError(f"{path}: of no known kind; files end in {', '.join(LIST_ENDINGS)}")
    with readable(path):
        if ending == ".npy":
            return _numpy(path, choice)
        if ending == ".npz":
            return NpzTable(path, choice)
        if ending in (".parquet", ".pq"):
            from dumap.sources.arrow_files import ParquetTable

            return ParquetTable(path, choice)
        if ending in (".h5", ".hdf5", ".h5ad"):
            from dumap.sources.hdf5_files import open_hdf5

            return open_hdf5(path, choice)
        from dumap.sources.arrow_files import CsvTable

        return CsvTable(path, choice, "\t" if ".tsv" in ending else ",")


@contextlib.contextmanager
def readable(path: str) -> Iterator[None]:
    """Turn errors of reading into errors that name the file."""
    try:
        yield
    except ImportError as error:
        package = str(error.name or "").split(".")[0]
        raise missing_packages(f"reading {path}", package) from error
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__}: {error})") from error


def chosen_numbers(path: str, columns: tuple[str, ...] | None, dims: int) -> np.ndarray | None:
    """Return the numbers of the columns that are taken, or None for all columns.

    Raises
    ------
    InputError
        A column is not a number or a range of columns.
    """
    if columns is None:
        return None
    column_numbers: list[int] = []
    for column in columns:
        match = re.fullmatch(r"(\d+)(?::(\d+))?", column)
        if match is None:
            raise InputError(
                f"{path}: has no names of columns; write numbers from 0 or ranges START:STOP, not {column!r}"
            )
        first, stop = int(match[1]), int(match[2] or int(match[1]) + 1)
        if not first < stop <= dims:
            raise InputError(f"{path}: has {dims} columns, from 0 to {dims - 1}; there is no {column}")
        column_numbers += range(first, stop)
    return np.array(column_numbers)


def chosen_names(
    path: str, columns: tuple[str, ...] | None, all_names: Sequence[str], numbers: Sequence[str]
) -> list[str]:
    """Return the names of the columns that are taken.

    `all_names` names all columns, `numbers` the columns that hold numbers.

    Raises
    ------
    InputError
        A column does not exist or holds no numbers, or no column holds numbers.
    """
    listed = ", ".join(map(str, all_names[:MAX_LISTED])) + (", ..." if len(all_names) > MAX_LISTED else "")
    for column in columns or ():
        if column not in all_names:
            raise InputError(f"{path}: has no column {column!r}; its columns are {listed}")
        if column not in numbers:
            raise InputError(f"{path}: column {column!r} holds no numbers; leave it out")
    chosen = list(numbers if columns is None else columns)
    if not chosen:
        raise InputError(f"{path}: none of its columns holds numbers; they are {listed}")
    return chosen


def require_numbers(path: str, shape: tuple[int, ...], dtype: np.dtype) -> None:
    """Refuse an array that is not a matrix of numbers.

    Raises
    ------
    InputError
    """
    if len(shape) != 2:
        raise InputError(f"{path}: an array of shape {tuple(shape)}; one of (rows, columns) is wanted")
    if np.dtype(dtype).kind not in "biuf":
        raise InputError(f"{path}: an array of {dtype}; one of numbers is wanted")


# NumPy -------------------------------------------------------------------------------------------


class SlicedTable:
    """A matrix from which any range of rows can be read.

    Parameters
    ----------
    path : str
    matrix : array-like
        The matrix, (rows, columns).
    choice : FileSelection
    names : array-like, optional
        Names of the rows.
    """

    def __init__(self, path: str, matrix: Any, choice: FileSelection, names: Any = None) -> None:
        require_numbers(path, matrix.shape, matrix.dtype)
        self.path, self.skipped_columns = path, list[str]()
        self.columns: list[str] | None = None
        self._matrix, self._names = matrix, names
        self._taken = chosen_numbers(path, choice.columns, matrix.shape[1])
        self.dims, self.dtype = matrix.shape[1] if self._taken is None else len(self._taken), np.dtype(matrix.dtype)

    def blocks(self, rows: int) -> Iterator[Block]:
        """See `Table`."""
        for start in range(0, self._matrix.shape[0], rows):
            with readable(self.path):
                block = np.asarray(self._matrix[start : start + rows])
                names = None if self._names is None else text_of(self._names[start : start + rows])
            yield block if self._taken is None else block[:, self._taken], names


def text_of(values: Any) -> list[str]:
    """Return row names as text."""
    return [value.decode() if isinstance(value, bytes) else str(value) for value in values]


class _Mapped:
    """An array of a .npy file. It is mapped anew for each block, so that only one block counts as this process's
    memory.
    """

    def __init__(self, path: str) -> None:
        array = np.load(path, mmap_mode="r")
        self._path, self.shape, self.dtype = path, array.shape, array.dtype

    def __getitem__(self, rows: slice) -> np.ndarray:
        return np.array(np.load(self._path, mmap_mode="r")[rows])


def _numpy(path: str, choice: FileSelection) -> SlicedTable:
    if choice.names is not None:
        raise InputError(f"{path}: has no column of names ({choice.names})")
    return SlicedTable(path, _Mapped(path), choice)


class NpzTable:
    """An array of a .npz file, read from beginning to end.

    Parameters
    ----------
    path : str
    choice : FileSelection
    """

    def __init__(self, path: str, choice: FileSelection) -> None:
        self.path, self.skipped_columns = path, list[str]()
        self.columns: list[str] | None = None
        with zipfile.ZipFile(path) as archive:
            array_names = [name.removesuffix(".npy") for name in archive.namelist()]
        if choice.names is not None and choice.names not in array_names:
            raise InputError(f"{path}: has no array {choice.names!r}; its arrays are {', '.join(array_names)}")
        other_names = [name for name in array_names if name != choice.names]
        if choice.key is None and len(other_names) != 1:
            raise InputError(f"{path}: name one of its arrays with --key: {', '.join(other_names)}")
        self.key = other_names[0] if choice.key is None else choice.key
        if self.key not in array_names:
            raise InputError(f"{path}: has no array {self.key!r}; its arrays are {', '.join(array_names)}")
        self._names = None if choice.names is None else np.load(path)[choice.names]
        with self._opened() as (_, shape, dtype):
            require_numbers(f"{path}, {self.key}", shape, dtype)
            self._taken = chosen_numbers(path, choice.columns, shape[1])
            self.dims, self.dtype = shape[1] if self._taken is None else len(self._taken), dtype
            if self._names is not None and len(self._names) != shape[0]:
                raise InputError(f"{path}: {choice.names} holds {len(self._names)} names for {shape[0]} rows")

    @contextlib.contextmanager
    def _opened(self) -> Iterator[tuple[IO[bytes], tuple[int, ...], np.dtype]]:
        with zipfile.ZipFile(self.path) as archive, archive.open(f"{self.key}.npy") as file:
            version = np.lib.format.read_magic(file)
            read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
            shape, fortran, dtype = read(file)
            if fortran and len(shape) > 1:
                raise InputError(
                    f"{self.path}: {self.key} is stored column by column, and a .npz is read from its beginning: save "
                    f"it as .npy, or in C order"
                )
            yield file, shape, dtype

    def blocks(self, rows: int) -> Iterator[Block]:
        """See `Table`."""
        with readable(self.path), self._opened() as (file, shape, dtype):
            for start in range(0, shape[0], rows):
                count = min(rows, shape[0] - start)
                byte_count = count * shape[1] * dtype.itemsize
                data = file.read(byte_count)
                if len(data) != byte_count:
                    raise EOFError(f"{self.key} ends too soon")
                block = np.frombuffer(data, dtype).reshape(count, shape[1])
                names = None if self._names is None else text_of(self._names[start : start + count])
                yield block if self._taken is None else block[:, self._taken], names
