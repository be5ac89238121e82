"""cells: cut the rows into cells that fit in memory, and sort their vectors by cell."""

from __future__ import annotations

import numpy as np

from dumap.kernels import cells, vectors
from dumap.stages import Context, Job, number_of, numbered
from dumap.stages.vectors import DROPPED, as_float32
from dumap.stages.vectors import STAGE as VECTORS
from dumap.store import Run

STAGE = "cells"
ROUNDS = 4
"""Partitions tried at the most; the last one cuts by row id what distance did not."""
FULL = 0.9
"""Share of the cap from which on a cell is split, since samples are not exact."""
HEADROOM = 0.75
"""Share of the cap that a split aims at."""
ORDER = "table-00000"
"""The table where neighbours are given, and rows keep the input's order."""
DROPPED_AT_ONCE = 1 << 17


def find_centroids(job: Job, part: str) -> None:
    """Find the centroids of one round: k-means at first, then the last round's, split and thinned out."""
    store, cut, number = job.run, job.geometry, number_of(part)
    blocks = numbered("block", cut.blocks)
    sample = np.concatenate([store.read(VECTORS, block, "sample") for block in blocks])
    sample = vectors.partition_space(sample, job.config.neighbors.metric)
    if number == 0:
        centroids = cells.kmeans(sample, cut.cells, job.config.seed)
        pieces = np.ones(len(centroids), np.int32)
        home = cells.assign(
            sample,
            centroids,
            pieces,
            0,
            0,
            job.config.cells.margin,
            job.config.cells.max_copies,
        )
        loads = np.bincount(home[home >= 0], minlength=len(centroids)) * (cut.rows / len(sample))
    else:
        before = numbered("centroids", number)[-1]
        centroids, pieces = (store.read(STAGE, before, name) for name in ("centroids", "pieces"))
        counts = store.read(STAGE, numbered("table", number)[-1], "copies").sum(axis=0)
        first = np.concatenate([[0], np.cumsum(pieces)])
        loads = np.add.reduceat(counts, first[:-1]).astype(np.float64)
        keep = loads >= fewest_rows(job)
        if keep.any():
            centroids, pieces, loads = centroids[keep], pieces[keep], loads[keep]
    if number == ROUNDS - 1:
        pieces = np.ceil(np.maximum(loads, 1) / (HEADROOM * cut.cell_rows)).astype(np.int32)
    elif len(centroids) > 1 or loads.max() > FULL * cut.cell_rows:
        loads = np.where(loads > FULL * cut.cell_rows, loads, 0)
        centroids, pieces = cells.split(sample, centroids, loads, HEADROOM * cut.cell_rows, job.config.seed)
    with job.run.part(STAGE, part) as out:
        out.write("centroids", centroids)
        out.write("pieces", pieces)


def fewest_rows(job: Job) -> int:
    """Return how many rows a cell needs: its own rows must find all their neighbours in it."""
    return job.config.neighbors.n_neighbors + 2


def assign_block(job: Job, part: str, number: int) -> None:
    """Give each row of a block its cells."""
    store, block = job.run, number_of(part)
    start, stop = job.geometry.block(block)
    centroids = numbered("centroids", number + 1)[-1]
    x = vectors.partition_space(as_float32(job.input.read(start, stop)), job.config.neighbors.metric)
    status = store.read(VECTORS, numbered("block", block + 1)[-1], "status")
    dropped = (status & DROPPED) > 0
    x[dropped] = 0
    pieces = store.read(STAGE, centroids, "pieces")
    count = int(pieces.sum())
    own = cells.assign(
        x,
        store.read(STAGE, centroids, "centroids"),
        pieces,
        start,
        job.config.seed,
        job.config.cells.margin,
        job.config.cells.max_copies,
    )
    own[dropped] = -1
    home = np.broadcast_to(own[:, :1], own.shape)
    joined = own >= 0
    pair, times = np.unique(own[joined].astype(np.int64) * count + home[joined], return_counts=True)
    with store.part(STAGE, part) as out:
        out.write("cells", own)
        out.write("pair", pair)
        out.write("pair_copies", times)


def tabulate(job: Job, part: str) -> None:
    """Add up the blocks: where each cell's rows begin, and how many copies each block gives each cell."""
    store, cut, number = job.run, job.geometry, number_of(part)
    pieces = store.read(STAGE, numbered("centroids", number + 1)[-1], "pieces")
    count = int(pieces.sum())
    copies, homes = np.zeros((cut.blocks, count), np.int64), np.zeros((cut.blocks, count), np.int64)
    guests = np.zeros((count, count), np.int64)
    for block, name in enumerate(numbered(f"assign-{number}", cut.blocks)):
        pair, times = store.read(STAGE, name, "pair"), store.read(STAGE, name, "pair_copies")
        cell, home = pair // count, pair % count
        np.add.at(copies[block], cell, times)
        np.add.at(guests, (cell, home), times)
        homes[block, cell[cell == home]] = times[cell == home]
    offsets = np.concatenate([[0], np.cumsum(homes.sum(axis=0))])
    starts = offsets[:-1] + np.cumsum(homes, axis=0) - homes
    np.fill_diagonal(guests, 0)
    load = copies.sum(axis=0)
    fits = bool(load.max() <= cut.cell_rows and (load.min() >= fewest_rows(job) or count == 1))
    with store.part(STAGE, part) as out:
        out.write("copies", copies)
        out.write("offsets", offsets)
        out.write("starts", starts)
        out.write("guests", guests)
        out.attributes |= {
            "fits": fits,
            "cells": count,
            "rows": int(offsets[-1]),
            "copies": int(load.sum()),
            "largest": int(load.max()),
            "smallest": int(load.min()),
        }


class Table:
    """Where rows lie: the last round's table, read once.

    Attributes
    ----------
    number : int
        The round whose partition counts.
    cells, rows : int
        Cells, and rows that are in one.
    offsets : ndarray of int64, shape (cells + 1,)
        Position of each cell's first row.
    starts : ndarray of int64, shape (blocks, cells)
        Position of the first row of each block in each cell.
    copies : ndarray of int64, shape (blocks, cells)
        Rows of each block in each cell, spilled ones included.
    guests : ndarray of int64, shape (cells, cells)
        Rows in cell i whose home is cell j, 0 on the diagonal.
    """

    def __init__(self, run: Run) -> None:
        names = [name for name in run.committed(STAGE) if name.startswith("table-")]
        self.number = number_of(names[-1])
        self.offsets, self.starts, self.copies, self.guests = (
            run.read(STAGE, names[-1], name) for name in ("offsets", "starts", "copies", "guests")
        )
        self.cells, self.rows = len(self.offsets) - 1, int(self.offsets[-1])

    def positions(self, run: Run, block: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the positions (n,) of a block's rows, -1 for those left out, and their cells (n, max_copies)."""
        own = run.read(STAGE, numbered(f"assign-{self.number}", block + 1)[-1], "cells")
        return cells.ranks(own[:, 0], self.starts[block]), own


def sort_block(job: Job, part: str) -> None:
    """Write a block's vectors, a copy for each cell they are in, sorted by cell."""
    store, block = job.run, number_of(part)
    positions, own = Table(store).positions(store, block)
    source, _, _ = cells.order_copies(own, positions)
    x = job.input.read(*job.geometry.block(block))
    with store.part(STAGE, part) as out:
        out.write("positions", positions[source])
        out.write_gathered("vectors", x, source)


def keep_order(job: Job, part: str) -> None:
    """Give each row of a block the cell of its range, where neighbours are given."""
    start, stop = job.geometry.block(number_of(part))
    status = job.run.read(VECTORS, numbered("block", number_of(part) + 1)[-1], "status")
    own = np.arange(start, stop) // job.geometry.cell_rows
    own[(status & DROPPED) > 0] = -1
    with job.run.part(STAGE, part) as out:
        out.write("cells", own[:, None].astype(np.int32))


def tabulate_order(job: Job, part: str) -> None:
    """Say where each range's rows begin, as `tabulate` does, and which of the input's rows are left out."""
    store, cut, left_out = job.run, job.geometry, []
    for block, name in enumerate(numbered("block", cut.blocks)):
        status = store.read(VECTORS, name, "status")
        left_out.append(cut.block(block)[0] + np.flatnonzero(status & DROPPED))
    dropped = np.concatenate(left_out)
    firsts, offsets = (
        edges - np.searchsorted(dropped, edges)
        for edges in (np.append(np.arange(0, cut.rows, step), cut.rows) for step in (cut.block_rows, cut.cell_rows))
    )
    starts = np.maximum.outer(firsts[:-1], offsets[:-1])
    load = np.diff(offsets)
    with store.part(STAGE, part) as out:
        out.write("copies", np.maximum(np.minimum.outer(firsts[1:], offsets[1:]) - starts, 0))
        out.write("offsets", offsets)
        out.write("starts", starts)
        out.write("guests", np.zeros((cut.cells, cut.cells), np.int64))
        out.write("dropped", dropped)
        out.attributes |= {
            "cells": cut.cells,
            "rows": int(offsets[-1]),
            "copies": int(offsets[-1]),
            "largest": int(load.max()),
            "smallest": int(load.min()),
        }


def kept_positions(job: Job, table: Table, rows: np.ndarray) -> np.ndarray:
    """Return the positions of any of the input's rows where neighbours are given; -1 for those left out, and for -1."""
    before, gone, count = np.zeros(rows.shape, np.int64), rows < 0, job.geometry.rows - table.rows
    for low in range(0, count, DROPPED_AT_ONCE):
        some = job.run.read(STAGE, ORDER, "dropped", low, min(count, low + DROPPED_AT_ONCE))
        at = np.searchsorted(some, rows)
        before += at
        gone |= some[np.minimum(at, len(some) - 1)] == rows
    return np.where(gone, -1, rows - before)


def run(context: Context) -> dict:
    """Find cells that fit, then sort the vectors; return what came out."""
    store, cut = context.run, context.geometry
    if context.config.neighbors.precomputed is not None:
        context.compute(STAGE, keep_order, numbered("assign-0", cut.blocks))
        context.compute(STAGE, tabulate_order, [ORDER])
        return {**store.summary(STAGE, ORDER), "rounds": 0}
    for number in range(ROUNDS):
        table = numbered("table", number + 1)[-1]
        context.compute(STAGE, find_centroids, [numbered("centroids", number + 1)[-1]])
        context.compute(STAGE, assign_block, numbered(f"assign-{number}", cut.blocks), number=number)
        context.compute(STAGE, tabulate, [table])
        if store.summary(STAGE, table)["fits"]:
            break
    context.compute(STAGE, sort_block, numbered("sorted", cut.blocks))
    return {**store.summary(STAGE, table), "rounds": number + 1}
