"""Parquet and CSV files, read by pyarrow."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow
import pyarrow.csv
import pyarrow.parquet

from dumap.errors import InputError
from dumap.sources.files import Block, FileSelection, chosen_names, chosen_numbers, readable, text_of

BLOCK_BYTES = 4 << 20
"""Bytes of text that are parsed at once."""
BUFFER_BYTES = 1 << 16
"""Bytes of a column of Parquet that are read at once."""


def _is_number(kind: Any) -> bool:
    types = pyarrow.types
    return bool(types.is_integer(kind) or types.is_floating(kind) or types.is_boolean(kind))


def _numpy(kind: Any) -> np.dtype:
    """Return NumPy's dtype of a column's values."""
    return np.dtype(bool) if pyarrow.types.is_boolean(kind) else np.dtype(kind.to_pandas_dtype())


def _values(column: Any, dtype: np.dtype) -> np.ndarray:
    """Return a column's values, with NaN for missing values."""
    if column.null_count:
        if dtype.kind != "f":
            raise InputError("a list lacks values, which whole numbers cannot say")
        column = column.cast(pyarrow.float64())
    return np.asarray(column.to_numpy(zero_copy_only=False)).astype(dtype, copy=False)


def _matrix(batch: Any, columns: list[str], dtype: np.dtype) -> np.ndarray:
    arrays = [_values(batch.column(batch.schema.get_field_index(name)), dtype) for name in columns]
    return np.stack(arrays, axis=1) if arrays else np.empty((batch.num_rows, 0), dtype)


class ParquetTable:
    """A Parquet file with columns of numbers, or with one column of lists of numbers that have equal lengths.

    Memory holds the rows of a block and some pages of each column, of about a megabyte each. It does not depend on the
    size of row groups.

    Parameters
    ----------
    path : str
    choice : FileSelection
    """

    def __init__(self, path: str, choice: FileSelection) -> None:
        self.path, self.skipped_columns = path, list[str]()
        with pyarrow.parquet.ParquetFile(path) as file:
            schema = file.schema_arrow
            names = list(schema.names)
            self._names = choice.names or _pandas_index(schema)
            if self._names is not None and self._names not in names:
                raise InputError(f"{path}: has no column {self._names!r}; its columns are {', '.join(names)}")
            other_names = [name for name in names if name != self._names]
            numbers = [name for name in other_names if _is_number(schema.field(name).type)]
            lists = [name for name in other_names if _is_list(schema.field(name).type)]
            selected = choice.columns if choice.columns is not None else (choice.key,) if choice.key else None
            self._list = _the_list(selected, numbers, lists)
            if self._list is None:
                self.columns: list[str] | None = chosen_names(path, selected, names, numbers)
                self.dims = len(self.columns)
                lacking = {name for name in self.columns if _may_lack(file.metadata, name)}
                dtypes = [_numpy(schema.field(name).type) for name in self.columns]
                self.dtype = np.result_type(*dtypes, *([np.float64] if lacking else []))
                self.skipped_columns = [name for name in other_names if name not in numbers] if selected is None else []
            else:
                self.columns, self.dtype = None, _numpy(schema.field(self._list).type.value_type)
                first = next(file.iter_batches(1, columns=[self._list]), None)
                self.dims = 0 if first is None else len(first.column(0)[0].as_py() or ())

    def blocks(self, rows: int) -> Iterator[Block]:
        """See `Table`."""
        taken = [self._list] if self.columns is None else self.columns
        read = [*taken, *([] if self._names is None else [self._names])]
        with (
            readable(self.path),
            pyarrow.parquet.ParquetFile(self.path, pre_buffer=False, buffer_size=BUFFER_BYTES) as file,
        ):
            for batch in file.iter_batches(rows, columns=read, use_threads=False):
                block = self._lists(batch) if self.columns is None else _matrix(batch, self.columns, self.dtype)
                yield block, _names(batch, self._names)

    def _lists(self, batch: Any) -> np.ndarray:
        column = batch.column(batch.schema.get_field_index(self._list))
        lengths = {len(row) if row.is_valid else None for row in column}
        if lengths - {self.dims}:
            raise InputError(f"{self.path}: the lists of {self._list} are not all of {self.dims} numbers")
        return _values(column.flatten(), self.dtype).reshape(-1, self.dims)


def _pandas_index(schema: Any) -> str | None:
    """Return the column of row names that pandas wrote, or None."""
    index = (schema.pandas_metadata or {}).get("index_columns", [])
    return index[0] if len(index) == 1 and isinstance(index[0], str) else None


def _may_lack(metadata: Any, name: str) -> bool:
    """Return whether a column may lack some values."""
    for group in (metadata.row_group(number) for number in range(metadata.num_row_groups)):
        for column in (group.column(number) for number in range(group.num_columns)):
            if column.path_in_schema == name:
                statistics = column.statistics
                if statistics is None or not statistics.has_null_count or statistics.null_count:
                    return True
    return False


def _is_list(kind: Any) -> bool:
    types = pyarrow.types
    is_list = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(is_list and _is_number(kind.value_type))


def _the_list(selected: tuple[str, ...] | None, numbers: list[str], lists: list[str]) -> str | None:
    """Return the column of lists that is taken, or None if columns of numbers are taken."""
    if selected is None:
        return lists[0] if len(lists) == 1 and not numbers else None
    return selected[0] if len(selected) == 1 and selected[0] in lists else None


def _names(batch: Any, name: str | None) -> list[str] | None:
    return None if name is None else text_of(batch.column(batch.schema.get_field_index(name)).to_pylist())


class CsvTable:
    """A text file with a row on each line. The first line may hold the columns' names.

    Parameters
    ----------
    path : str
    choice : FileSelection
    delimiter : str
    """

    def __init__(self, path: str, choice: FileSelection, delimiter: str) -> None:
        self.path, self._header, self._delimiter = path, choice.header, delimiter
        with self._reader({}) as reader:
            schema = reader.schema
        names = list(schema.names)
        self._index = choice.names
        if self._index is None and names and names[0] == "":  # pandas and R write row names so
            self._index = ""
        if self._index is not None and self._index not in names:
            raise InputError(f"{path}: has no column {self._index!r}; its columns are {', '.join(names)}")
        if choice.header and choice.columns is None and all(_reads_as_number(name) for name in names if name):
            raise InputError(f"{path}: its first line holds numbers, not names of columns: give --no-header")
        other_names = [name for name in names if name != self._index]
        if len(set(names)) < len(names):
            raise InputError(f"{path}: several columns have the same name")
        numbers = [name for name in other_names if _is_number(schema.field(name).type)]
        if choice.header:
            taken = chosen_names(path, choice.columns, names, numbers)
        else:
            which = chosen_numbers(path, choice.columns, len(names))
            taken = chosen_names(path, None if which is None else tuple(names[i] for i in which), names, numbers)
        self.taken, self.columns = taken, taken if choice.header else None
        self.dims, self.dtype = len(taken), np.dtype(np.float64)
        self.skipped_columns = [name for name in other_names if name not in numbers] if choice.columns is None else []

    @contextlib.contextmanager
    def _reader(self, types: dict[str, Any]) -> Iterator[Any]:
        """Open the file, and read the columns in `types`, or all columns if it is empty."""
        csv = pyarrow.csv
        options = csv.ConvertOptions(column_types=types, include_columns=list(types) or None)
        with csv.open_csv(
            self.path,
            csv.ReadOptions(block_size=BLOCK_BYTES, use_threads=False, autogenerate_column_names=not self._header),
            csv.ParseOptions(delimiter=self._delimiter),
            options,
        ) as reader:
            yield reader

    def blocks(self, rows: int) -> Iterator[Block]:
        """See `Table`. A block has at most the rows that are parsed at once."""
        types = {name: pyarrow.float64() for name in self.taken}
        if self._index is not None:
            types[self._index] = pyarrow.string()
        with readable(self.path), self._reader(types) as reader:
            for batch in reader:
                for start in range(0, batch.num_rows, rows):
                    rows_batch = batch.slice(start, rows)
                    yield _matrix(rows_batch, self.taken, self.dtype), _names(rows_batch, self._index)


def _reads_as_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
