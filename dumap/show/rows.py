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


def dropped(run: Run, what: str) -> StorageError:
    """Return the error for a result that was dropped. It names the runs that keep the result."""
    return StorageError(
        f"{run.location}: {what} were dropped once the map was done, as keep = results says; a run with keep = model "
        f"or all, into another output, keeps them"
    )


class Order:
    """The position of each row, and the row at each position.

    Attributes
    ----------
    rows : ndarray of int64, shape (positions,)
        The row at each position.
    positions : ndarray of int64, shape (rows,)
        The position of each row. A duplicate has the position of the first row equal to it; -1 is no position.
    """

    def __init__(self, run: Run) -> None:
        attributes = run.attributes
        rows, unique = int(attributes["input"]["shape"][0]), attributes["parameters"]["input"]["unique"]
        table, start, block = CellTable(run), 0, 0
        self.rows, self.positions = np.empty(table.rows, np.int64), np.empty(rows, np.int64)
        while start < rows:
            positions = table.positions(run, block)
            kept = positions >= 0
            self.rows[positions[kept]] = start + np.flatnonzero(kept)
            self.positions[start : start + len(positions)] = positions
            if unique:
                duplicates, firsts = read_duplicates(run, block)
                self.positions[start + duplicates] = self.positions[firsts]  # first rows come before their duplicates
            start, block = start + len(positions), block + 1


def graph_rows(run: Run, order: Order, start: int, stop: int) -> sparse.csr_matrix:
    """Return rows [start, stop) of the fuzzy graph. One shard is read at a time.

    Returns
    -------
    csr_matrix of float32, shape (stop - start, rows)
        Rows that were left out are empty. If duplicates are embedded once, they are empty too.
    """
    graph = Graph(run)
    heads, tails, weights = [], [], []
    for shard in range(len(graph.shards)):
        first, last = graph.shards.span(shard)
        rows = order.rows[first:last]
        within = (rows >= start) & (rows < stop)
        if within.any():
            indptr, tail, weight = graph.read(shard)
            edges = np.repeat(within, np.diff(indptr))
            heads.append(np.repeat(rows[within] - start, np.diff(indptr)[within]))
            tails.append(order.rows[tail[edges]])
            weights.append(weight[edges])
    shape = (stop - start, len(order.positions))
    if not heads:
        return sparse.csr_matrix(shape, dtype=np.float32)
    places = (np.concatenate(heads), np.concatenate(tails))
    return sparse.csr_matrix((np.concatenate(weights), places), shape=shape)


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
    def _order(self) -> Order:
        return Order(self._run)

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
            return self._read(start, max(start, stop))
        except DroppedError as error:
            raise dropped(self._run, "neighbors") from error

    def _read(self, start: int, stop: int) -> tuple[np.ndarray, np.ndarray]:
        at, lists = self._order.positions[start:stop], NeighborLists(self._run)
        indices = np.full((stop - start, self.shape[1]), -1, np.int64)
        distances = np.full(indices.shape, np.inf, np.float32)
        for first, last in zip(lists.table.offsets[:-1], lists.table.offsets[1:], strict=True):
            inside = np.flatnonzero((at >= first) & (at < last))
            if len(inside):
                listed = lists.read("indices", first, last)[at[inside] - first, : self.shape[1]]
                indices[inside] = np.where(listed >= 0, self._order.rows[listed], -1)
                distances[inside] = lists.read("distances", first, last)[at[inside] - first, : self.shape[1]]
        return indices, distances


def entries_of(indices: np.ndarray, distances: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return each row's number of neighbours, all neighbours, and all distances, in float64 as in scanpy."""
    is_listed = indices >= 0
    return is_listed.sum(axis=1), indices[is_listed], distances[is_listed].astype(np.float64)


def distances_of(neighbors: Neighbors, with_self: bool = False) -> sparse.csr_matrix:
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
    counts, columns, values = entries_of(indices, distances)
    index = np.int32 if max(len(counts), len(columns)) < 2**31 else np.int64
    bounds = np.concatenate([[0], np.cumsum(counts)]).astype(index)
    return sparse.csr_matrix((values, columns.astype(index), bounds), shape=(len(counts),) * 2)
