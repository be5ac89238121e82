"""neighbors: a k-NN graph in each cell, then with its guests; each row's lists from all its cells are merged by id."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from dumap.artifacts.cells import TABLE, Cell, Table
from dumap.artifacts.job import Job
from dumap.artifacts.neighbors import write_lists
from dumap.artifacts.parts import CELLS, NEIGHBORS, number_of, numbered, total
from dumap.config import Config
from dumap.kernels import leaves, neighbors, vectors
from dumap.kernels.leaves import COLUMN_BYTES, EXACT_ROWS
from dumap.planning.geometry import GUEST_BYTES, Geometry, cell_row_bytes
from dumap.planning.plan import Projection
from dumap.stages import Context, Stage
from dumap.stages.distances import defined_distances, metric_arguments


def placed(job: Job, cell: Cell, rows: np.ndarray) -> np.ndarray:
    """Return some of a cell's rows where the leaves lie."""
    metric = job.config.neighbors.metric
    x = cell.vectors(rows, metric)
    return vectors.add_zero_column(x) if metric in vectors.ANGULAR else x


Found = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Some of a cell's rows, their positions, those that they list, and how far those are."""


def void_lists(job: Job, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return lists without entries."""
    shape = (rows, job.config.neighbors.searched)
    return np.full(shape, -1, job.geometry.index_dtype), np.full(shape, np.inf, np.float32)


def merge_own(lists: tuple[np.ndarray, np.ndarray], own: int, found: Found) -> None:
    """Merge what a turn found for a cell's own rows into their lists.

    Ties by the hash of positions: that order, not the search's, is the graph's.
    """
    rows, names, listed, lengths = found
    some = rows < own
    neighbors.merge(*lists, rows[some], listed[some].astype(lists[0].dtype), lengths[some], names[some])


def guests_lists(job: Job, own: int, found: Found) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the guests' positions for which a turn found anything, ascending, and their lists."""
    rows, names, listed, lengths = found
    some = np.flatnonzero((rows >= own) & (listed >= 0).any(axis=1))
    some = some[np.argsort(rows[some])]
    lists = void_lists(job, len(some))
    neighbors.merge(*lists, np.arange(len(some)), listed[some].astype(lists[0].dtype), lengths[some], names[some])
    return names[some], *lists


def distances_of(job: Job, squared: np.ndarray) -> np.ndarray:
    """Return the metric's distances for squared ones in Euclidean space."""
    with np.errstate(over="ignore"):
        return vectors.metric_from_squared(squared, job.config.neighbors.metric).astype(np.float32)


def search_home(job: Job, part: str) -> None:
    """Find the neighbours of a cell's own rows among themselves, by its leaves."""
    table, number = Table(job.run), number_of(part)
    cell = Cell(job, number, table, guests=False)
    probes = cell.probes(np.arange(cell.own))
    order = leaves.order(np.full(cell.own, -1), probes)
    seed, k = job.config.seed + number, job.config.neighbors.searched
    found, lengths = leaves.search(placed(job, cell, order), probes[order], k, seed)
    names = cell.positions[order]
    listed = np.where(found >= 0, names[found], -1)
    with job.run.part(NEIGHBORS, part) as out:
        if table.cells == 1:
            lists = void_lists(job, cell.own)
            merge_own(lists, cell.own, (order, names, listed, distances_of(job, lengths)))
            write_lists(out, *lists)
            return
        indices, squared = np.empty(found.shape, job.geometry.index_dtype), np.empty(found.shape)
        indices[order], squared[order] = listed, lengths
        out.write("indices", indices)
        out.write("squared", squared)
        out.write("reach", squared[:, -1])


def reach_of(job: Job, table: Table, positions: np.ndarray) -> np.ndarray:
    """Return how far, squared, the lists reach that some rows, ascending, have at home."""
    homes = np.searchsorted(table.offsets, positions, side="right") - 1
    names, reach = numbered("home", table.cells), np.empty(len(positions))
    for home in np.unique(homes):
        some = homes == home
        reach[some] = job.run.read(NEIGHBORS, names[home], "reach")[positions[some] - table.offsets[home]]
    return reach


def meet_guests(job: Job, part: str) -> None:
    """Find nearer neighbours of a cell's own rows among its guests, and of those among its own: in turns, if many."""
    table, number = Table(job.run), number_of(part)
    cell, first = Cell(job, number, table), int(table.offsets[number])
    home_part = numbered("home", table.cells)[number]
    known, squared = (job.run.read(NEIGHBORS, home_part, array) for array in ("indices", "squared"))
    homes = np.searchsorted(table.offsets, cell.positions, side="right") - 1
    homes[: cell.own] = -1
    reach = reach_of(job, table, cell.positions[cell.own :])

    def turn(rows: np.ndarray) -> Found:  # all that it holds is let go before the next
        probes = cell.probes(rows)
        order = leaves.order(homes[rows], probes)
        rows, probes = rows[order], probes[order]
        own = rows < cell.own
        places = np.empty(cell.own + 1, np.int32)
        places[rows[own]], places[-1] = np.flatnonzero(own), -1
        shape = (len(rows), known.shape[1])
        indices, lengths = np.full(shape, -1, np.int32), np.empty(shape)
        local = known[rows[own]]
        indices[own], lengths[own] = places[np.where(local >= 0, local - first, -1)], squared[rows[own]]
        lengths[~own] = reach[rows[~own] - cell.own, None]
        x, home = placed(job, cell, rows), homes[rows].astype(np.int32)
        met, lengths = leaves.meet(x, home, probes, indices, lengths, job.config.seed + number)
        names = cell.positions[rows]
        return rows, names, np.where(met >= 0, names[met], -1), distances_of(job, lengths)

    write_cell(job, part, cell, table, map(turn, cell.turns()))


def search_cell(job: Job, part: str) -> None:
    """Find the neighbours of a cell's rows among themselves, guests too, for metrics that leaves do not serve."""
    table, number, own = Table(job.run), number_of(part), job.config.neighbors
    cell = Cell(job, number, table)

    def found() -> Iterator[Found]:
        for rows in cell.turns():
            with defined_distances(job):
                seed = job.config.seed + number
                met, lengths = neighbors.search(
                    cell.vectors(rows), own.searched, own.metric, metric_arguments(job), seed
                )
            names = cell.positions[rows]
            yield rows, names, np.where(met >= 0, names[met], -1), lengths

    write_cell(job, part, cell, table, found())


def write_cell(job: Job, part: str, cell: Cell, table: Table, found: Iterable[Found]) -> None:
    """Write the lists of a cell's own rows, and those of its guests that anything was found for, by home."""
    lists, pieces = void_lists(job, cell.own), [(np.empty(0, np.int64), *void_lists(job, 0))]
    for turn in found:
        merge_own(lists, cell.own, turn)
        pieces.append(guests_lists(job, cell.own, turn))
    guests, indices, distances = (np.concatenate(some) for some in zip(*pieces, strict=True))
    order = np.argsort(guests)
    with job.run.part(NEIGHBORS, part) as out:
        out.write("indices", lists[0])
        out.write("distances", lists[1])
        out.write("guests", guests[order])
        out.write("guest_indices", indices[order])
        out.write("guest_distances", distances[order])
        out.write("begins", np.searchsorted(guests[order], table.offsets))


def merge_cell(job: Job, part: str) -> None:
    """Merge what all cells found for one cell's own rows."""
    store, table, cell = job.run, Table(job.run), number_of(part)
    names = numbered("cell", table.cells)
    indices, distances = (store.read(NEIGHBORS, names[cell], array) for array in ("indices", "distances"))
    for other in np.flatnonzero(table.hosts(cell)):
        start, stop = store.read(NEIGHBORS, names[other], "begins", cell, cell + 2).tolist()
        if stop > start:
            guests, listed, lengths = (
                store.read(NEIGHBORS, names[other], array, start, stop)
                for array in ("guests", "guest_indices", "guest_distances")
            )
            neighbors.merge(indices, distances, guests - table.offsets[cell], listed, lengths, guests)
    with store.part(NEIGHBORS, part) as out:
        write_lists(out, indices, distances)


def require_room(context: Context) -> None:
    """Refuse cells that are larger than was planned, where no worker holds them."""
    cut = context.geometry.with_cells(context.run.summary(CELLS, TABLE))
    need = math.ceil(project(cut, context.config, context.worker_memory).task_bytes)
    what = f"the largest cell holds {cut.largest_cell} rows, {cut.largest_home} of them its own at the most"
    context.require(NEIGHBORS, need, what, "a smaller cells.max_rows or task_memory in another output")


def run(context: Context) -> dict:
    """Search every cell, then merge; return what came out."""
    count = Table(context.run).cells
    merged = numbered("merged", count)
    require_room(context)
    if context.config.neighbors.metric not in vectors.EUCLIDEAN_ORDER:
        context.compute(NEIGHBORS, search_cell, numbered("cell", count))
        context.compute(NEIGHBORS, merge_cell, merged)
    elif count == 1:
        context.compute(NEIGHBORS, search_home, merged)
    else:
        context.compute(NEIGHBORS, search_home, numbered("home", count))
        context.compute(NEIGHBORS, meet_guests, numbered("cell", count))
        context.compute(NEIGHBORS, merge_cell, merged)
    return {"missing": total(context.run, NEIGHBORS, merged, "missing")}


def project(cut: Geometry, config: Config, worker_memory: int) -> Projection:
    """Say what the stage will take."""
    rows, listed, index = cut.rows, config.neighbors.searched, cut.index_dtype.itemsize
    at_once, copies = cut.most_rows_at_once, min(config.cells.max_copies, cut.cells)
    list_bytes = listed * (index + 4)
    return Projection(
        tasks=3 * cut.cells,
        shuffled_bytes=(copies + 1) * rows * list_bytes,
        disk_bytes=(copies + 1) * rows * list_bytes + rows * (listed * (index + 8) + 8),
        task_bytes=at_once * max(cell_row_bytes(cut.dims, listed, config.neighbors.metric), list_bytes * 4)
        + min(at_once, EXACT_ROWS) * cut.dims
        + cut.most_cell_rows * (GUEST_BYTES + 2 * list_bytes) * (cut.cells > 1)  # all guests, and what they found
        + 2 * COLUMN_BYTES
        + (cut.blocks + cut.cells) * 48,
        passing_bytes={"cell": copies * rows * list_bytes + rows * (listed * (index + 7) + 8)},
    )


STAGE = Stage(
    NEIGHBORS,
    keys=(
        *("seed", "task_memory", "neighbors.metric", "neighbors.metric_kwds", "neighbors.width", "cells.max_copies"),
        "cells.max_rows",
    ),
    reads=(CELLS,),
    writes=("home", "cell", "merged"),
    run=run,
    project=project,
    passing={"home": (), "cell": ()},
)
