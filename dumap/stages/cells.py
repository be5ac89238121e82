"""cells: cut the rows into cells that fit in memory, and sort their vectors by cell."""

from __future__ import annotations

import numpy as np

from dumap.kernels import cells, vectors
from dumap.stages import Context, Job, number_of, numbered
from dumap.stages.vectors import as_float32, distinct_rows, drawn, left_out
from dumap.store import Run

STAGE = "cells"
ROUNDS = 4
"""Partitions tried at the most; the last one cuts by row id what distance did not."""
FULL = 0.9
"""Share of the cap from which on a cell is split, since samples are not exact."""
HEADROOM = 0.75
"""Share of the cap that a split aims at."""


def find_centroids(job: Job, part: str) -> None:
    """Find the centroids of one round: k-means at first, then the last round's, split and thinned out."""
    store, cut, number = job.run, job.geometry, number_of(part)
    sample = vectors.partition_space(drawn(job, "sample"), job.config.neighbors.metric)
    if number == 0:
        rows = distinct_rows(job)
        centroids = cells.kmeans(sample, -(-cut.cells * rows // cut.rows), job.config.seed)
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
        loads = np.bincount(home[home >= 0], minlength=len(centroids)) * (rows / len(sample))
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
    dropped = left_out(job, block)
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


def run(context: Context) -> dict:
    """Find cells that fit, then sort the vectors; return what came out."""
    store, cut = context.run, context.geometry
    for number in range(ROUNDS):
        table = numbered("table", number + 1)[-1]
        context.compute(STAGE, find_centroids, [numbered("centroids", number + 1)[-1]])
        context.compute(STAGE, assign_block, numbered(f"assign-{number}", cut.blocks), number=number)
        context.compute(STAGE, tabulate, [table])
        if store.summary(STAGE, table)["fits"]:
            break
    context.compute(STAGE, sort_block, numbered("sorted", cut.blocks))
    return {**store.summary(STAGE, table), "rounds": number + 1}
