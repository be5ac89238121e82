"""cells: cut the rows into cells that fit in memory, and sort their vectors by cell."""

from __future__ import annotations

import math

import numpy as np

from dumap.kernels import cells, tree, vectors
from dumap.stages import Context, Job, number_of, numbered
from dumap.stages.vectors import as_float32, distinct_rows, drawn, left_out
from dumap.store import Run

STAGE = "cells"
REACH, SOUGHT, PROBES = 8, 16, 8
"""Nearest leaves whose cells a row is sent to, nearest leaves that are sought for it, and leaves of each of its cells
that it is compared in at the most."""
MARGIN = 2**0.5
"""Leaves that lie so many times as far as the nearest are not sought: where rows vary in few ways, most lie beyond."""
TABLE = "table"
"""The part that says where rows lie."""
DROPPED_AT_ONCE = 1 << 17
"""Dropped rows that are looked up at once."""


def grow_tree(job: Job, part: str) -> None:
    """Cut space into leaves, by the sample."""
    store, cut = job.run, job.geometry
    sample = vectors.partition_space(drawn(job), job.config.neighbors.metric)
    wanted = -(-cut.leaves * distinct_rows(job) // cut.rows)
    grown = tree.grow(sample, wanted, job.config.seed)
    with store.part(STAGE, part) as out:
        out.write("groups", grown.groups)
        out.write("offsets", grown.offsets)
        out.write("leaves", grown.leaves)
        out.write("origin", grown.origin)
        out.write("axes", grown.axes.T)


def read_tree(run: Run) -> tree.Tree:
    """Read the tree that was grown."""
    groups, offsets, leaves, origin, axes = (
        run.read(STAGE, "tree", name) for name in ("groups", "offsets", "leaves", "origin", "axes")
    )
    return tree.Tree(groups, offsets, leaves, origin, np.ascontiguousarray(axes.T))


def find_leaves(job: Job, part: str) -> None:
    """Find the leaves nearest to each row of a block; count the rows of each leaf."""
    store, block = job.run, number_of(part)
    x = vectors.partition_space(as_float32(job.input.read(*job.geometry.block(block))), job.config.neighbors.metric)
    dropped = left_out(job, block)
    x[dropped] = 0
    grown = read_tree(store)
    near = tree.nearest_leaves(x, grown, min(SOUGHT, len(grown.leaves)), MARGIN)
    near[dropped] = -1
    with store.part(STAGE, part) as out:
        out.write("near", near)
        out.write("loads", np.bincount(near[~dropped, 0], minlength=len(grown.leaves)))


def pack_leaves(job: Job, part: str) -> None:
    """Pack the leaves into cells."""
    cut = job.geometry
    loads = sum(job.run.read(STAGE, block, "loads") for block in numbered("near", cut.blocks))
    fewest = job.config.neighbors.n_neighbors + 1
    own, pieces = cells.pack(np.asarray(loads), math.ceil(cut.rows / cut.cells), fewest)
    with job.run.part(STAGE, part) as out:
        out.write("cells", own)
        out.write("pieces", pieces)
        out.attributes["cells"] = int(own[-1] + pieces[-1])


def route(job: Job, block: int) -> tuple[np.ndarray, np.ndarray]:
    """Return the cells of a block's rows (n, max_copies), home first, and the leaves they probe there."""
    near = job.run.read(STAGE, numbered("near", block + 1)[-1], "near")
    own, pieces = (job.run.read(STAGE, "packing", name) for name in ("cells", "pieces"))
    start, _ = job.geometry.block(block)
    return cells.route(near, own, pieces, start, job.config.seed, job.config.cells.max_copies, REACH, PROBES)


def assign_block(job: Job, part: str) -> None:
    """Give each row of a block its home, and count the copies by cell and home."""
    own, _ = route(job, number_of(part))
    count = job.run.summary(STAGE, "packing")["cells"]
    home = np.broadcast_to(own[:, :1], own.shape)
    joined = own >= 0
    copies = np.bincount(own[joined].astype(np.int64) * count + home[joined])
    pair = np.flatnonzero(copies)
    with job.run.part(STAGE, part) as out:
        out.write("home", own[:, 0])
        out.write("pairs", np.stack([pair, copies[pair]], axis=1))


def tabulate(job: Job, part: str) -> None:
    """Add up the blocks: where each cell's rows begin, and how many copies each block gives each cell."""
    store, cut = job.run, job.geometry
    count = store.summary(STAGE, "packing")["cells"]
    copies, homes = np.zeros((cut.blocks, count), np.int64), np.zeros((cut.blocks, count), np.int64)
    guests = np.zeros((count, count), np.int64)
    for block, name in enumerate(numbered("assign", cut.blocks)):
        pair, times = store.read(STAGE, name, "pairs").T
        cell, home = pair // count, pair % count
        np.add.at(copies[block], cell, times)
        np.add.at(guests, (cell, home), times)
        homes[block, cell[cell == home]] = times[cell == home]
    offsets = np.concatenate([[0], np.cumsum(homes.sum(axis=0))])
    starts = offsets[:-1] + np.cumsum(homes, axis=0) - homes
    np.fill_diagonal(guests, 0)
    load = copies.sum(axis=0)
    with store.part(STAGE, part) as out:
        out.write("copies", copies)
        out.write("offsets", offsets)
        out.write("starts", starts)
        out.write("guests", guests)
        out.attributes |= {
            "cells": count,
            "rows": int(offsets[-1]),
            "copies": int(load.sum()),
            "largest": int(load.max()),
            "smallest": int(load.min()),
        }


class Table:
    """Where rows lie, read once.

    Attributes
    ----------
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
        self.offsets, self.starts, self.copies, self.guests = (
            run.read(STAGE, TABLE, name) for name in ("offsets", "starts", "copies", "guests")
        )
        self.cells, self.rows = len(self.offsets) - 1, int(self.offsets[-1])

    def homes(self, cell: int) -> np.ndarray:
        """Return how many of each block's rows have their home in a cell, (blocks,)."""
        return np.diff(self.starts[:, cell], append=self.offsets[cell + 1])

    def positions(self, run: Run, block: int) -> np.ndarray:
        """Return the positions (n,) of a block's rows, -1 for those left out."""
        home = run.read(STAGE, numbered("assign", block + 1)[-1], "home")
        return cells.ranks(home, self.starts[block])


def sort_block(job: Job, part: str) -> None:
    """Write a block's vectors, a copy for each cell they are in, sorted by cell."""
    store, block = job.run, number_of(part)
    positions = Table(store).positions(store, block)
    own, probes = route(job, block)
    source, slot = cells.order_copies(own, positions)
    x = job.input.read(*job.geometry.block(block))
    with store.part(STAGE, part) as out:
        out.write("positions", positions[source])
        out.write("probes", probes[source, slot])
        out.write_gathered("vectors", x, source)


def keep_order(job: Job, part: str) -> None:
    """Give each row of a block the cell of its range, where neighbours are given."""
    block = number_of(part)
    home = np.arange(*job.geometry.block(block)) // job.geometry.cell_rows
    home[left_out(job, block)] = -1
    with job.run.part(STAGE, part) as out:
        out.write("home", home.astype(np.int32))


def tabulate_order(job: Job, part: str) -> None:
    """Say where each range's rows begin, as `tabulate` does, and which of the input's rows are left out."""
    store, cut = job.run, job.geometry
    dropped = np.concatenate([cut.block(n)[0] + np.flatnonzero(left_out(job, n)) for n in range(cut.blocks)])
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
        some = job.run.read(STAGE, TABLE, "dropped", low, min(count, low + DROPPED_AT_ONCE))
        at = np.searchsorted(some, rows)
        before += at
        gone |= some[np.minimum(at, len(some) - 1)] == rows
    return np.where(gone, -1, rows - before)


def run(context: Context) -> dict:
    """Cut the rows into cells, then sort the vectors, unless neighbours are given; return what came out."""
    store, blocks = context.run, context.geometry.blocks
    if context.config.neighbors.precomputed is not None:
        context.compute(STAGE, keep_order, numbered("assign", blocks))
        context.compute(STAGE, tabulate_order, [TABLE])
        return store.summary(STAGE, TABLE)
    context.compute(STAGE, grow_tree, ["tree"])
    context.compute(STAGE, find_leaves, numbered("near", blocks))
    context.compute(STAGE, pack_leaves, ["packing"])
    context.compute(STAGE, assign_block, numbered("assign", blocks))
    context.compute(STAGE, tabulate, [TABLE])
    context.compute(STAGE, sort_block, numbered("sorted", blocks))
    return store.summary(STAGE, TABLE)
