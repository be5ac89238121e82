"""A CSR matrix in a Zarr store, such as X or a layer that anndata wrote. It is read by rows and never made dense."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import cached_property
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from dumap.errors import InputError
from dumap.kernels.csr import INT32_MAX, canonical_rows, entry_dtype, max_window_entries
from dumap.sources.zarr_array import ArrayInput, stamped
from dumap.store import (
    CsrGroup,
    MissingChunks,
    bucket_errors,
    describe_error,
    find_csr,
    find_missing_chunks,
    require_chunks,
)
from dumap.store.disk import normalize

SCANNED_ROWS = 1 << 20
"""Rows whose bounds are checked at once."""


class CsrInput:
    """A CSR matrix that a run reads, row by row, and never writes.

    Parameters
    ----------
    path : str
        Path of the store.
    array : str
        The group's name in the store.
    group : CsrGroup

    Attributes
    ----------
    path, rows, dims, dtype, chunk_rows, sparse, entries
        See `Source`. The dtype is `kernels.csr.entry_dtype`.

    Raises
    ------
    InputError
        The group's arrays are not a CSR matrix.
    """

    sparse = True

    def __init__(self, path: str, array: str, group: CsrGroup) -> None:
        self.path, self.name, self._group = normalize(path), array, group
        self.where = f"{self.path}, group {group.path!r}"
        self._check()
        self.rows, self.dims = (int(size) for size in group.shape)
        self.entries = int(group.data.shape[0])
        self.dtype = entry_dtype(np.dtype(group.data.dtype))
        self.chunk_rows = max(1, round(self._chunk_entries * self.rows / max(1, self.entries)))

    @property
    def node_path(self) -> str:
        """The group's path in the store; empty if the group is the store's root."""
        return self._group.path

    @property
    def _chunk_entries(self) -> int:
        """The least entries that are decoded at once."""
        return max(int(array.chunks[0]) for array in (self._group.data, self._group.indices))

    def _check(self) -> None:
        group = self._group
        shapes = {name: tuple(map(int, array.shape)) for name, array in group.arrays.items()}
        if len(group.shape) != 2 or 0 in group.shape:
            raise InputError(f"{self.where}: its shape is {group.shape}; dumap reads (rows, dims)")
        told = ", ".join(f"{name} of shape {shape}" for name, shape in shapes.items())
        if shapes["data"] != shapes["indices"] or shapes["indptr"] != (group.shape[0] + 1,) or len(shapes["data"]) != 1:
            raise InputError(
                f"{self.where}: no CSR matrix of shape {group.shape}, which has a column in 'indices' for "
                f"each value in 'data', and {group.shape[0] + 1} bounds in 'indptr': it has {told}. Write it anew"
            )
        dtypes = {name: np.dtype(array.dtype) for name, array in group.arrays.items()}
        if dtypes["data"].kind not in "fiub" or dtypes["data"].itemsize > 8:
            raise InputError(f"{self.where} has dtype {dtypes['data']}; allowed are real floats, integers and booleans")
        for name in ("indices", "indptr"):
            if dtypes[name].kind not in "iu":
                raise InputError(f"{self.where}: {name!r} has dtype {dtypes[name]}; allowed are integers")
        if group.shape[1] > INT32_MAX:
            raise InputError(f"{self.where} has {group.shape[1]} columns; allowed are {INT32_MAX} at the most")

    def _bounds(self, start: int, stop: int) -> np.ndarray:
        """Read and check the bounds of the entries of rows [start, stop), (n + 1,) int64."""
        bounds = self._numbers("indptr", start, stop + 1).astype(np.int64)
        wrong = np.flatnonzero((np.diff(bounds) < 0) | (bounds[:-1] < 0) | (bounds[1:] > self.entries))
        if len(wrong):
            row = start + int(wrong[0])
            raise InputError(
                f"{self.where}: 'indptr' says that row {row} has the entries {bounds[wrong[0]]} to "
                f"{bounds[wrong[0] + 1]}, of {self.entries}: it is damaged; write the matrix anew"
            )
        at_ends = [(0, start == 0, bounds[0], 0), (self.rows, stop == self.rows, bounds[-1], self.entries)]
        for at, is_end, found, wanted in at_ends:
            if is_end and found != wanted:
                raise InputError(
                    f"{self.where}: 'indptr' is {found} at {at}, and must be {wanted}: it is damaged; write the "
                    f"matrix anew"
                )
        return bounds

    def _numbers(self, name: str, start: int, stop: int) -> np.ndarray:
        try:
            return np.asarray(self._group.arrays[name][start:stop])
        except (ValueError, OSError, RuntimeError, bucket_errors()[0]) as error:
            what = f"{start} to {stop} of {name!r} cannot be read"
            raise InputError(f"{self.where}: {what} ({describe_error(error)})") from error

    def read(self, start: int, stop: int) -> csr_matrix:
        """Read rows [start, stop) in the form of `kernels.csr.canonical_rows`.

        Raises
        ------
        InputError
            The stored arrays are not a matrix of this shape.
        """
        bounds = self._bounds(start, stop)
        low, high = int(bounds[0]), int(bounds[-1])
        columns = self._numbers("indices", low, high)
        if len(columns) and not (columns.min() >= 0 and columns.max() < self.dims):
            first = int(np.flatnonzero((columns < 0) | (columns >= self.dims))[0])
            row = start + int(np.searchsorted(bounds, low + first, side="right")) - 1
            raise InputError(
                f"{self.where}: row {row} has an entry in column {columns[first]}, of {self.dims}: 'indices' is "
                f"damaged; write the matrix anew"
            )
        return canonical_rows(self._numbers("data", low, high), columns, bounds - low, self.dims)

    @cached_property
    def max_window_entries(self) -> int:
        """See `Source`."""
        return max_window_entries(self.counts())

    def counts(self) -> Iterator[np.ndarray]:
        """Yield how many entries each row has, some rows at a time."""
        for start in range(0, self.rows, SCANNED_ROWS):
            yield np.diff(self._bounds(start, min(self.rows, start + SCANNED_ROWS)))

    @cached_property
    def missing_chunks(self) -> MissingChunks:
        """The missing chunks of all three arrays. Their content is counted in entries."""
        found = {name: find_missing_chunks(self.path, array) for name, array in self._group.arrays.items()}
        keys = [f"{name}/{key}" for name, missing_chunks in found.items() for key in missing_chunks.keys]
        chunks, of, held = (sum(getattr(one, name) for one in found.values()) for name in ("chunks", "of", "rows"))
        spans = [span for missing_chunks in found.values() for span in missing_chunks.spans]
        return replace(MissingChunks(chunks, of, held, keys, spans), what="entries")

    def require_chunks(self, fill: str | None = None) -> None:
        """Refuse missing chunks. `fill` names the setting that fills them, if there is one."""
        for array in self._group.arrays.values():
            require_chunks(self.path, array, replace(find_missing_chunks(self.path, array), what="entries"), fill)

    def signature(self) -> str:
        """Return a digest of the objects' keys, sizes and times, without reading the data."""
        dtypes = [str(array.dtype) for array in self._group.arrays.values()]
        return stamped(self.path, self._group.path, [self.rows, self.dims, self.entries, *dtypes])

    def describe(self) -> dict[str, Any]:
        """Return what a run records of the source."""
        return {
            "path": self.path,
            "array": self.name,
            "shape": [self.rows, self.dims],
            "dtype": str(self.dtype),
            "entries": self.entries,
            "signature": self.signature(),
        }


def open_array(path: str, array: str, bfloat16: bool = False) -> ArrayInput | CsrInput:
    """Open an array of a store, or the CSR matrix in the group of that name.

    Raises
    ------
    InputError
        There is no such array or matrix, or it cannot be embedded.
    """
    sparse = find_csr(normalize(path), array)
    if sparse is not None and bfloat16:
        raise InputError(
            f"input.dtype = bfloat16: {path}, group {sparse.path!r} is a sparse matrix; leave the setting out"
        )
    return ArrayInput(path, array, bfloat16=bfloat16) if sparse is None else CsrInput(path, array, sparse)
