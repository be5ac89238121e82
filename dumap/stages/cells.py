"""cells: cut the rows into cells that fit in memory, and sort their vectors by cell."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cached_property

import numpy as np

from dumap.kernels import cells, tree, vectors
from dumap.planning.geometry import guests_a_turn
from dumap.stages import Context, Job, number_of, numbered
from dumap.stages.vectors import distinct_rows, drawn, left_out
from dumap.store import Run

STAGE = "cells"
REACH, SOUGHT, PROBES = 8, 16, 8
"""Nearest leaves whose cells a row is sent to, nearest leaves that are sought for it, and leaves of each of its cells
that it is compared in at the most."""
MARGIN = 2**0.5
"""Leaves that lie so many times as far as the nearest are not sought: where rows vary in few ways, most lie beyond."""
LIMITS, TABLE = "limits", "table"
"""The parts that say which guests cells admit, and where rows lie."""
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
    x = vectors.partition_space(job.rows(*job.geometry.block(block)), job.config.neighbors.metric)
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
    fewest = job.config.neighbors.searched + 1
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


def admitted(job: Job, block: int, own: np.ndarray) -> np.ndarray:
    """Return the cells of a block's rows without those that turn them away."""
    if not job.run.summary(STAGE, LIMITS)["turned_away"]:
        return own
    classes, _ = cells.guest_classes(own, job.geometry.block(block)[0], job.config.seed)
    return cells.admit(own, classes, job.run.read(STAGE, LIMITS, "limits"))


def _counted(numbers: np.ndarray) -> np.ndarray:
    """Return the numbers that there are, and how often, (m, 2)."""
    copies = np.bincount(numbers)
    there = np.flatnonzero(copies)
    return np.stack([there, copies[there]], axis=1)


def _by_home(own: np.ndarray, count: int) -> np.ndarray:
    """Count rows by cell and home, `cell * count + home`."""
    home = np.broadcast_to(own[:, :1], own.shape)
    joined = own >= 0
    return _counted(own[joined].astype(np.int64) * count + home[joined])


def assign_block(job: Job, part: str) -> None:
    """Give each row of a block its home; count the copies by cell and home, and the guests by cell and class."""
    block, count = number_of(part), job.run.summary(STAGE, "packing")["cells"]
    own, _ = route(job, block)
    classes, many = cells.guest_classes(own, job.geometry.block(block)[0], job.config.seed)
    guest = (own >= 0) & (classes >= 0)
    with job.run.part(STAGE, part) as out:
        out.write("home", own[:, 0])
        out.write("pairs", _by_home(own, count))
        out.write("guests", _counted(own[guest].astype(np.int64) * many + classes[guest]))
        out.attributes["classes"] = many


def limit_guests(job: Job, part: str) -> None:
    """Decide which guests the cells admit."""
    store, blocks = job.run, numbered("assign", job.geometry.blocks)
    count, classes = store.summary(STAGE, "packing")["cells"], store.summary(STAGE, blocks[0])["classes"]
    homes, guests = np.zeros(count, np.int64), np.zeros((count, classes), np.int64)
    for name in blocks:
        pair, times = store.read(STAGE, name, "pairs").T
        own = pair // count == pair % count
        homes[pair[own] // count] += times[own]
        of_class, times = store.read(STAGE, name, "guests").T
        guests.reshape(-1)[of_class] += times
    limits = cells.limits(homes, guests)
    turned_away = np.where(np.arange(classes) < limits[:, None], 0, guests)
    with store.part(STAGE, part) as out:
        out.write("limits", limits)
        out.attributes["turned_away"] = int(turned_away.sum())


def count_block(job: Job, part: str) -> None:
    """Count a block's copies anew, by cell and home, where some are turned away."""
    block, count = number_of(part), job.run.summary(STAGE, "packing")["cells"]
    own, _ = route(job, block)
    with job.run.part(STAGE, part) as out:
        out.write("pairs", _by_home(admitted(job, block, own), count))


def tabulate(job: Job, part: str) -> None:
    """Add up the blocks: where each cell's rows begin, and how many copies each block gives each cell."""
    store, cut = job.run, job.geometry
    count, turned_away = store.summary(STAGE, "packing")["cells"], store.summary(STAGE, LIMITS)["turned_away"]
    copies, homes = np.zeros((cut.blocks, count), np.int32), np.zeros((cut.blocks, count), np.int32)
    guests = np.zeros((count, count), np.int64)
    for block, name in enumerate(numbered("counted" if turned_away else "assign", cut.blocks)):
        pair, times = store.read(STAGE, name, "pairs").T
        cell, home = pair // count, pair % count
        np.add.at(copies[block], cell, times)
        np.add.at(guests, (home, cell), times)
        homes[block, cell[cell == home]] = times[cell == home]
    offsets = np.concatenate([[0], np.cumsum(homes.sum(axis=0, dtype=np.int64))])
    starts = np.cumsum(homes, axis=0, dtype=np.int64)
    starts += offsets[:-1] - homes
    np.fill_diagonal(guests, 0)
    load = copies.sum(axis=0, dtype=np.int64)
    firsts = np.cumsum(copies, axis=1, dtype=np.int32) - copies
    with store.part(STAGE, part) as out:
        out.write("offsets", offsets)
        out.write("starts", starts)
        out.write("spans", np.ascontiguousarray(np.stack([firsts.T, homes.T, copies.T], axis=2)))
        out.write("guests", guests)
        out.attributes |= {
            "cells": count,
            "rows": int(offsets[-1]),
            "copies": int(load.sum()),
            "largest": int(load.max()),
            "smallest": int(load.min()),
            "largest_home": int(np.diff(offsets).max()),
            "turned_away": turned_away,
        }


class Table:
    """Where rows lie; of the counts by block and cell, a row is read when it is asked for.

    Attributes
    ----------
    cells, rows : int
        Cells, and rows that are in one.
    """

    def __init__(self, run: Run) -> None:
        self.run, facts = run, run.summary(STAGE, TABLE)
        self.cells, self.rows = int(facts["cells"]), int(facts["rows"])

    @cached_property
    def offsets(self) -> np.ndarray:
        """Position of each cell's first row, (cells + 1,) int64."""
        return self.run.read(STAGE, TABLE, "offsets")

    def spans(self, cell: int) -> np.ndarray:
        """Return where each block's rows in a cell begin, how many have their home there, and how many all are.

        Returns
        -------
        ndarray of int32, shape (blocks, 3)
        """
        return self.run.read(STAGE, TABLE, "spans", cell, cell + 1)[0]

    def hosts(self, cell: int) -> np.ndarray:
        """Return how many rows whose home a cell is are guests of each cell, (cells,) int64."""
        return self.run.read(STAGE, TABLE, "guests", cell, cell + 1)[0]

    def positions(self, run: Run, block: int) -> np.ndarray:
        """Return the positions (n,) of a block's rows, -1 for those left out."""
        home = run.read(STAGE, numbered("assign", block + 1)[-1], "home")
        return cells.ranks(home, run.read(STAGE, TABLE, "starts", block, block + 1)[0])


def travels_as_it_is(job: Job) -> bool:
    """Tell whether rows travel in the input's dtype, since float32 would take no fewer bytes and tell no more."""
    return not vectors.is_wide(job.input.dtype) and job.config.neighbors.metric != vectors.SPHERICAL


def sort_block(job: Job, part: str) -> None:
    """Write a block's vectors, a copy for each cell they are in, sorted by cell."""
    store, block = job.run, number_of(part)
    positions = Table(store).positions(store, block)
    own, probes = route(job, block)
    own = admitted(job, block, own)
    source, slot = cells.order_copies(own, positions)
    span = job.geometry.block(block)
    x = job.input.read(*span) if travels_as_it_is(job) else job.rows(*span)
    with store.part(STAGE, part) as out:
        out.write("positions", positions[source])
        out.write("probes", probes[source, slot])
        out.write_gathered("vectors", x, source)


class Cell:
    """A cell's rows: its own by position, then its guests by position.

    Attributes
    ----------
    positions : ndarray of int64, shape (n,)
    own : int
        Rows whose home it is.
    """

    def __init__(self, job: Job, cell: int, table: Table, guests: bool = True) -> None:
        self.job, spans = job, table.spans(cell)
        starts = spans[:, 0].astype(np.int64)
        stops = starts + spans[:, 2 if guests else 1]
        blocks = numbered("sorted", job.geometry.blocks)
        self.spans = [(block, int(a), int(b)) for block, a, b in zip(blocks, starts, stops, strict=True) if b > a]
        positions = np.concatenate([job.run.read(STAGE, block, "positions", a, b) for block, a, b in self.spans])
        guest = (positions < table.offsets[cell]) | (positions >= table.offsets[cell + 1])
        order = np.lexsort((positions, guest))
        self.place = np.argsort(order).astype(np.int32)
        self.positions = positions[order]
        self.own = int((~guest).sum())

    def turns(self) -> Iterator[np.ndarray]:
        """Yield rows to be searched together: all, or the own with guests in turns, if those are many."""
        guests = np.arange(self.own, len(self.positions))
        turns = max(1, -(-len(guests) // guests_a_turn(self.job.geometry.cell_rows, self.own)))
        for turn in range(turns):
            yield np.concatenate([np.arange(self.own), guests[turn::turns]])

    def _gather(self, name: str, rows: np.ndarray, out: np.ndarray, made: Callable[[np.ndarray], np.ndarray]) -> None:
        """Read some of the rows of an array into `out`, in the order given, a few at a time, as what they are made."""
        wanted = np.full(len(self.positions), -1, np.int32)
        wanted[rows] = np.arange(len(rows))
        wanted, whole = wanted[self.place], len(rows) == len(self.positions)
        step, done = max(1, self.job.geometry.block_rows // 4), 0
        for block, a, b in self.spans:
            for low in range(a, b, step):
                high = min(b, low + step)
                at = wanted[done : done + high - low]
                done += high - low
                if whole or (at >= 0).any():
                    some = self.job.run.read(STAGE, block, name, low, high)
                    out[at if whole else at[at >= 0]] = made(some if whole else some[at >= 0])

    def probes(self, rows: np.ndarray) -> np.ndarray:
        """Read the leaves of the cell that some of the rows are compared in, (len(rows), width) int32."""
        out = np.empty((len(rows), PROBES), np.int32)
        self._gather("probes", rows, out, lambda some: some)
        return out

    def vectors(self, rows: np.ndarray, metric: str | None = None) -> np.ndarray:
        """Read the vectors of some of the rows, in the order given, in a metric's partition space where one is named.

        Returns
        -------
        ndarray of float32, shape (len(rows), dims)
        """
        x = np.empty((len(rows), self.job.geometry.dims), np.float32)

        def made(some: np.ndarray) -> np.ndarray:
            return vectors.partition_space(vectors.as_float32(some), metric) if metric else vectors.as_float32(some)

        self._gather("vectors", rows, x, made)
        return x


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
        out.write("offsets", offsets)
        out.write("starts", starts)
        out.write("dropped", dropped)
        out.attributes |= {
            "cells": cut.cells,
            "rows": int(offsets[-1]),
            "copies": int(offsets[-1]),
            "largest": int(load.max()),
            "smallest": int(load.min()),
            "largest_home": int(load.max()),
            "turned_away": 0,
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
    context.compute(STAGE, limit_guests, [LIMITS])
    if store.summary(STAGE, LIMITS)["turned_away"]:
        context.compute(STAGE, count_block, numbered("counted", blocks))
    context.compute(STAGE, tabulate, [TABLE])
    context.compute(STAGE, sort_block, numbered("sorted", blocks))
    return store.summary(STAGE, TABLE)
