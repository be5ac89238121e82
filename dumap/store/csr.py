"""Sparse matrices by rows (CSR): reads them from AnnData's stores, and stores their rows in parts of a run."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import zarr

from dumap.errors import InputError
from dumap.store.arrays import open_node, refuse_pickle
from dumap.store.committed import CommittedParts
from dumap.store.listing import sparse_encoding
from dumap.store.objects import bucket_errors, open_store
from dumap.store.part import Part

if TYPE_CHECKING:
    from scipy.sparse import csr_matrix

CSR_ENCODINGS = ("csr_matrix", "csr")
"""AnnData's encodings of CSR matrices."""
MAX_UINT16_COLUMNS = 1 << 16
"""Column numbers take two bytes in a matrix with at most this many columns."""
MAX_INT32_ENTRIES = 2**31 - 1
"""Matrices with fewer entries have indices of 32 bits."""


@dataclass(frozen=True)
class CsrGroup:
    """A group that holds a CSR matrix.

    Attributes
    ----------
    path : str
        The path of the group in its store; empty for the store's root.
    shape : tuple of int
    data, indices, indptr : zarr.Array
    """

    path: str
    shape: tuple[int, ...]
    data: zarr.Array
    indices: zarr.Array
    indptr: zarr.Array

    @property
    def arrays(self) -> dict[str, zarr.Array]:
        """The three arrays by name."""
        return {name: getattr(self, name) for name in ("data", "indices", "indptr")}


def find_csr(path: str, name: str) -> CsrGroup | None:
    """Open the CSR matrix at a path, or in the named group below it; return None if neither is a CSR matrix.

    Raises
    ------
    InputError
        The group lacks an array.
    """
    store = open_store(path, read_only=True)
    for node_path in ("", name):
        try:
            node = open_node(store, node_path)
        except (OSError, KeyError, ValueError, bucket_errors()[0]):
            return None
        if isinstance(node, zarr.Array):
            return None
        if (kind := sparse_encoding(node)) is not None and kind[0] in CSR_ENCODINGS:
            arrays: dict[str, Any] = {array: node.get(array) for array in ("data", "indices", "indptr")}
            for array, array_node in arrays.items():
                if not isinstance(array_node, zarr.Array):
                    raise InputError(
                        f"{path}, group {node.path!r}: it is to be a CSR matrix, and has no array {array!r}"
                    )
                refuse_pickle(array_node)
            return CsrGroup(node.path, kind[1], **arrays)
    return None


def write_csr(
    part: Part,
    name: str,
    rows: csr_matrix,
    row_numbers: np.ndarray | None = None,
    range_sizes: tuple[int, int] = (0, 0),
) -> None:
    """Write CSR rows as three arrays of a part.

    Parameters
    ----------
    part : Part
    name : str
    rows : csr_matrix
    row_numbers : ndarray of int, optional
        The numbers of the rows to write, in order. [all]
    range_sizes : tuple of int
        The rows and the entries of a range: see `Part.write`.
    """
    from dumap.kernels.csr import gather_entries  # a slow import that only tasks of sparse rows need

    columns = rows.indices.astype(np.uint16 if rows.shape[1] <= MAX_UINT16_COLUMNS else np.int32, copy=False)
    indptr = rows.indptr.astype(np.int64)
    written_indptr = indptr if row_numbers is None else np.concatenate([[0], np.cumsum(np.diff(indptr)[row_numbers])])
    part.write(f"{name}_bounds", written_indptr, range_sizes[0])
    for kind, entries in (("columns", columns), ("values", rows.data)):
        part.write(
            f"{name}_{kind}",
            entries if row_numbers is None else gather_entries(entries, indptr, row_numbers, written_indptr),
            range_sizes[1],
        )


def read_csr(
    run: CommittedParts, stage: str, part: str, name: str, dims: int, start: int = 0, stop: int | None = None
) -> csr_matrix:
    """Read rows [start, stop) of a CSR matrix that `write_csr` wrote under a name."""
    from scipy.sparse import csr_matrix

    indptr = run.read(stage, part, f"{name}_bounds", start, None if stop is None else stop + 1)
    low, high = int(indptr[0]), int(indptr[-1])
    columns, values = (run.read(stage, part, f"{name}_{kind}", low, high) for kind in ("columns", "values"))
    index_dtype = np.int32 if high - low < MAX_INT32_ENTRIES else np.int64
    entries = values, columns.astype(index_dtype), (indptr - low).astype(index_dtype)
    return csr_matrix(entries, shape=(len(indptr) - 1, dims), copy=False)
