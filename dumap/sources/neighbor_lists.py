"""Given neighbours of a program, turned into the lists that a run reads."""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
import scipy.sparse as sparse

from dumap.errors import DataError, ParameterError
from dumap.store import write_arrays

Lists = tuple[np.ndarray, np.ndarray]
"""Indices and distances, (rows, columns)."""


def from_matrix(matrix: Any, rows: int | None, n_neighbors: int) -> Lists:
    """Return the lists that a sparse matrix of distances holds.

    Parameters
    ----------
    matrix : sparse matrix, shape (rows, rows)
        The matrix of scikit-learn's `kneighbors_graph(mode="distance")` or scanpy's `obsp["distances"]`. Each stored
        entry is a neighbour, also at distance 0. A row may hold itself.
    rows : int, optional
        Rows that are embedded, if their number is known.
    n_neighbors : int
        Neighbours that are needed, the row itself counted.

    Returns
    -------
    indices : ndarray of int64, shape (rows, columns)
        The nearest first, without the row itself; then -1.
    distances : ndarray of float32, shape (rows, columns)
        Infinite where there is no neighbour.

    Raises
    ------
    DataError
        The argument is no such matrix, or has too few neighbours.
    """
    if not sparse.issparse(matrix):
        raise DataError(
            f"knn_graph is a {type(matrix).__name__}: give a sparse matrix of distances, (rows, rows), as "
            f"sklearn.neighbors.kneighbors_graph(X, n_neighbors, mode='distance') makes it"
        )
    n_rows = matrix.shape[0] if rows is None else rows
    if matrix.shape != (n_rows, n_rows):
        raise DataError(f"knn_graph has shape {matrix.shape}; X has {n_rows} rows, so it has to be {n_rows} x {n_rows}")
    indices, distances = lists_of(matrix, 0)
    columns = indices.shape[1]
    if columns < n_neighbors - 1:
        raise DataError(
            f"knn_graph holds at most {columns} others of a row, too few for n_neighbors={n_neighbors}, which are the "
            f"row itself and {n_neighbors - 1} others: give more, or set n_neighbors to at most {columns + 1}"
        )
    return indices[:, : n_neighbors - 1], distances[:, : n_neighbors - 1]


def lists_of(matrix: Any, first: int, columns: int | None = None) -> Lists:
    """Return the lists that consecutive rows of a sparse matrix of distances hold.

    Parameters
    ----------
    matrix : sparse matrix, shape (n, rows)
    first : int
        Number of the first of these rows.
    columns : int, optional
        Neighbours of each list; by default as many as the fullest row has.

    Returns
    -------
    indices, distances
        As in `from_matrix`, (n, columns).
    """
    entries = matrix.tocoo()  # this keeps stored zeros
    is_other = entries.row + first != entries.col
    heads, tails, lengths = entries.row[is_other], entries.col[is_other], entries.data[is_other]
    order = np.lexsort((tails, lengths, heads))
    heads, tails, lengths = heads[order], tails[order], lengths[order]
    counts = np.bincount(heads, minlength=matrix.shape[0])
    columns = int(counts.max(initial=0)) if columns is None else columns
    slots = np.arange(len(heads)) - np.repeat(np.cumsum(counts) - counts, counts)
    indices = np.full((matrix.shape[0], columns), -1, np.int64)
    distances = np.full(indices.shape, np.inf, np.float32)
    kept = slots < columns
    indices[heads[kept], slots[kept]], distances[heads[kept], slots[kept]] = tails[kept], lengths[kept]
    return indices, distances


def from_arrays(precomputed: tuple[Any, ...], rows: int | None, n_neighbors: int) -> Lists | None:
    """Return the lists of umap-learn's `precomputed_knn`. If they do not fit the data, warn and return None.

    Parameters
    ----------
    precomputed : tuple
        Indices and distances, (rows, columns). A third item, an index, is not used.
    rows, n_neighbors
        As in `from_matrix`.

    Raises
    ------
    ParameterError
        The items are not two arrays of one shape.
    """
    arrays = precomputed[:2]
    if len(precomputed) not in (2, 3) or not all(isinstance(array, np.ndarray) and array.ndim == 2 for array in arrays):
        raise ParameterError(
            "precomputed_knn: give two arrays, indices and distances, (rows, n_neighbors), each row first among its own"
        )
    indices, distances = arrays
    if indices.shape != distances.shape:
        raise ParameterError(
            f"precomputed_knn: indices have shape {indices.shape}, distances {distances.shape}; they must be the same"
        )
    if indices.shape[1] < n_neighbors or (rows is not None and len(indices) != rows):
        needed = f"{len(indices) if rows is None else rows} rows x {n_neighbors} neighbours"
        message = f"precomputed_knn has {len(indices)} rows x {indices.shape[1]} neighbours, where {needed} are needed"
        warnings.warn(f"{message}: it is left out, and neighbours are searched", stacklevel=5)
        return None
    return indices, distances


def write_lists(path: str, indices: np.ndarray, distances: np.ndarray) -> None:
    """Write lists as a group for `neighbors.precomputed`."""
    write_arrays(
        path,
        {
            "indices": (indices.shape, indices.dtype.name, iter([(0, indices)])),
            "distances": (distances.shape, distances.dtype.name, iter([(0, distances)])),
        },
    )
