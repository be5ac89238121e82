"""Neighbours and graph of a run's rows in the input's order, a block of rows at a time."""

from __future__ import annotations

import operator
from functools import cached_property

import numpy as np
import scipy.sparse as sparse

from dumap.artifacts.cells import CellTable
from dumap.artifacts.graph import Graph
from dumap.artifacts.neighbors import NeighborLists
from dumap.artifacts.vectors import read_duplicates
from dumap.errors import DroppedError, StorageError
from dumap.store import Run

BLOCK_ROWS = 65_536
"""Rows of a block."""


def dropped_error(run: Run, result: str) -> StorageError:
    """Return the error for a result that was dropped. It names the runs that keep the result."""
    return StorageError(
        f"{run.location}: {result} were dropped once the map was done, as keep = results says; a run with keep = model "
        f"or all, into another output, keeps them"
    )


class RowOrder:
    """The position of each row, and the row at each position.

    Attributes
    ----------
    row_at_position : ndarray of int64, shape (positions,)
        The row at each position.
    position_of_row : ndarray of int64, shape (rows,)
        The position of each row. A duplicate has the position of the first row equal to it; -1 is no position.
    """

    def __init__(self, run: Run) -> None:
        attributes = run.attributes
        rows, unique = int(attributes["input"]["shape"][0]), attributes["parameters"]["input"]["unique"]
        table, start, block = CellTable(run), 0, 0
        self.row_at_position, self.position_of_row = np.empty(table.rows, np.int64), np.empty(rows, np.int64)
        while start < rows:
            positions = table.positions(run, block)
            has_position = positions >= 0
            self.row_at_position[positions[has_position]] = start + np.flatnonzero(has_position)
            self.position_of_row[start : start + len(positions)] = positions
            if unique:
                duplicates, first_rows = read_duplicates(run, block)
                # first rows come before their duplicates
                self.position_of_row[start + duplicates] = self.position_of_row[first_rows]
            start, block = start + len(positions), block + 1


def graph_rows(run: Run, order: RowOrder, start: int, stop: int) -> sparse.csr_matrix:
    """Return rows [start, stop) of the fuzzy graph. One shard is read at a time.

    Returns
    -------
    csr_matrix of float32, shape (stop - start, rows)
        Rows that were left out are empty. If duplicates are embedded once, they are empty too.
    """
    graph = Graph(run)
    heads, tails, weights = [], [], []
    for shard in range(len(graph.shards)):
        shard_start, shard_stop = graph.shards.row_range(shard)
        rows = order.row_at_position[shard_start:shard_stop]
        is_in_block = (rows >= start) & (rows < stop)
        if is_in_block.any():
            indptr, tail, weight = graph.read(shard)
            is_edge_of_block = np.repeat(is_in_block, np.diff(indptr))
            heads.append(np.repeat(rows[is_in_block] - start, np.diff(indptr)[is_in_block]))
            tails.append(order.row_at_position[tail[is_edge_of_block]])
            weights.append(weight[is_edge_of_block])
    shape = (stop - start, len(order.position_of_row))
    if not heads:
        return sparse.csr_matrix(shape, dtype=np.float32)
    heads_and_tails = (np.concatenate(heads), np.concatenate(tails))
    return sparse.csr_matrix((np.concatenate(weights), heads_and_tails), shape=shape)


class Neighbors:
    """The neighbours of rows, read on access: `indices, distances = neighbors[start:stop]`.

    Attributes
    ----------
    shape : tuple of int
        The number of rows, and the number of each row's neighbours: n_neighbors - 1, without the row itself.
    """

    def __init__(self, run: Run) -> None:
        self._run, parameters = run, run.attributes["parameters"]
        rows, columns = run.attributes["input"]["shape"][0], parameters["neighbors"]["n_neighbors"] - 1
        self.shape = (int(rows), int(columns))

    @cached_property
    def _row_order(self) -> RowOrder:
        return RowOrder(self._run)

    def __len__(self) -> int:
        return self.shape[0]

    def __repr__(self) -> str:
        return f"<{self.shape[1]} neighbours of each of {self.shape[0]} rows>"

    def __getitem__(self, rows: slice | int) -> tuple[np.ndarray, np.ndarray]:
        """Read the neighbours of a range of rows, in the input's order, or of one row.

        Returns
        -------
        indices : ndarray of int64, shape (n, n_neighbors - 1) or (n_neighbors - 1,)
            Rows of the input; -1 where there is none.
        distances : ndarray of float32, shape (n, n_neighbors - 1) or (n_neighbors - 1,)
            Ascending; infinite where there is no neighbour.

        Raises
        ------
        IndexError
            There is no such row, or the range has a step.
        TypeError
            `rows` is neither a range nor a whole number.
        """
        if not isinstance(rows, slice):
            row = range(self.shape[0])[operator.index(rows)]
            indices, distances = self[row : row + 1]
            return indices[0], distances[0]
        start, stop, step = rows.indices(self.shape[0])
        if step != 1:
            raise IndexError("neighbours are read of consecutive rows: leave out the step")
        try:
            return self._read_rows(start, max(start, stop))
        except DroppedError as error:
            raise dropped_error(self._run, "neighbors") from error

    def _read_rows(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        positions, lists = self._row_order.position_of_row[start:stop], NeighborLists(self._run)
        indices = np.full((stop - start, self.shape[1]), -1, np.int64)
        distances = np.full(indices.shape, np.inf, np.float32)
        for cell_start, cell_stop in zip(lists.table.offsets[:-1], lists.table.offsets[1:], strict=True):
            in_cell = np.flatnonzero((positions >= cell_start) & (positions < cell_stop))
            if len(in_cell):
                places = positions[in_cell] - cell_start
                neighbors = lists.read("indices", cell_start, cell_stop)[places, : self.shape[1]]
                indices[in_cell] = np.where(neighbors >= 0, self._row_order.row_at_position[neighbors], -1)
                distances[in_cell] = lists.read("distances", cell_start, cell_stop)[places, : self.shape[1]]
        return indices, distances


def sparse_entries(indices: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each row's number of neighbours, all neighbours, and all distances, in float64 as in scanpy."""
    is_listed = indices >= 0
    return is_listed.sum(axis=1), indices[is_listed], distances[is_listed].astype(np.float64)


def distance_matrix(neighbors: Neighbors, with_self: bool = False) -> sparse.csr_matrix:
    """Return neighbours as a CSR matrix of distances. In each row the nearest neighbour comes first.

    Parameters
    ----------
    neighbors : Neighbors
    with_self : bool
        List each row first among its neighbours, at distance 0.

    Returns
    -------
    csr_matrix of float64, shape (rows, rows)
        Zeros are stored. The entries of a row are in the order of distances, not of columns.
    """
    indices, distances = neighbors[:]
    if with_self:
        indices = np.hstack([np.arange(len(indices))[:, None], indices])
        distances = np.hstack([np.zeros((len(distances), 1), distances.dtype), distances])
    counts, columns, values = sparse_entries(indices, distances)
    index_dtype = np.int32 if max(len(counts), len(columns)) < 2**31 else np.int64
    indptr = np.concatenate([[0], np.cumsum(counts)]).astype(index_dtype)
    return sparse.csr_matrix((values, columns.astype(index_dtype), indptr), shape=(len(counts),) * 2)
