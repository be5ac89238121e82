"""HDF5 files, with AnnData's .h5ad among them, read by h5py."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import h5py
import numpy as np

from dumap.errors import InputError
from dumap.sources.files import INDEX, Block, FileSelection, SlicedTable, chosen_numbers, readable, text_of

MAX_LISTED = 10
"""Most arrays that a message names."""


def open_hdf5(path: str, choice: FileSelection) -> SlicedTable | SparseTable:
    """Open a matrix of a file: the matrix that `choice` names, otherwise AnnData's X, otherwise the file's only matrix.

    Raises
    ------
    InputError
        There is no such matrix, or it cannot be read row by row.
    """
    file = h5py.File(path, "r")
    matrices: list[str] = []
    file.visititems(lambda name, node: matrices.append(name) if _is_matrix(node) else None)
    key = choice.key
    if key is None:
        key = "X" if "X" in file else matrices[0] if len(matrices) == 1 else None
    if key is None or key not in file:
        matrix_names = ", ".join(matrices[:MAX_LISTED]) or "none"
        advice = "name one of its matrices with --key" if key is None else f"has no array {key!r}"
        raise InputError(f"{path}: {advice}; there are {matrix_names}")
    node, names = file[key], _names(path, file, choice)
    if names is not None and len(names) != _rows(node):
        names = None if choice.names is None else names
        if names is not None:
            raise InputError(f"{path}: {choice.names} holds {len(names)} names for {_rows(node)} rows")
    if isinstance(node, h5py.Dataset):
        return SlicedTable(path, node, choice, names)
    kind = str(node.attrs.get("encoding-type", "a group"))
    if kind != "csr_matrix":
        raise InputError(
            f"{path}: {key} is {kind}, which cannot be read row by row; name another array with --key"
            + (f", such as {', '.join(matrices[:MAX_LISTED])}" if matrices else "")
        )
    return SparseTable(path, node, choice, names)


def _is_matrix(node: Any) -> bool:
    return isinstance(node, h5py.Dataset) and node.ndim == 2 and node.dtype.kind in "biuf"


def _rows(node: Any) -> int:
    return int(node.shape[0] if isinstance(node, h5py.Dataset) else node.attrs["shape"][0])


def _names(path: str, file: Any, choice: FileSelection) -> Any:
    """Return the names of the rows: the array that `choice` names, otherwise the index of AnnData's obs, otherwise
    None.
    """
    if choice.names is not None:
        if not isinstance(file.get(choice.names), h5py.Dataset):
            raise InputError(f"{path}: has no array {choice.names!r}")
        return file[choice.names]
    obs = file.get("obs")
    index = obs.attrs.get(INDEX) if isinstance(obs, h5py.Group) else None
    return obs[index] if isinstance(index, str) and isinstance(obs.get(index), h5py.Dataset) else None


class SparseTable:
    """A sparse matrix, stored by rows. Each block becomes dense when it is read.

    Parameters
    ----------
    path : str
    group : h5py.Group
        The group with data, indices and indptr.
    choice : FileSelection
    names : array-like, optional
    """

    def __init__(self, path: str, group: Any, choice: FileSelection, names: Any) -> None:
        self.path, self.skipped_columns = path, list[str]()
        self.columns: list[str] | None = None
        self._group, self._names = group, names
        self._rows, width = (int(length) for length in group.attrs["shape"])
        self._width, self._taken = width, chosen_numbers(path, choice.columns, width)
        self.dims, self.dtype = width if self._taken is None else len(self._taken), np.dtype(group["data"].dtype)

    def blocks(self, rows: int) -> Iterator[Block]:
        """See `Table`."""
        for start in range(0, self._rows, rows):
            stop = min(self._rows, start + rows)
            with readable(self.path):
                bounds = self._group["indptr"][start : stop + 1].astype(np.int64)
                data, indices = (self._group[name][bounds[0] : bounds[-1]] for name in ("data", "indices"))
                names = None if self._names is None else text_of(self._names[start:stop])
            block = np.zeros((stop - start, self._width), self.dtype)
            np.add.at(block, (np.repeat(np.arange(stop - start), np.diff(bounds)), indices), data)
            yield block if self._taken is None else block[:, self._taken], names
