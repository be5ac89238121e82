"""neighbors: search each cell's home rows, then home rows with guests, and merge each row's lists of all its cells."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import numpy as np

from dumap.artifacts.cells import RANGES_PER_PIECE, TABLE, Cell, CellTable, guest_part_names, rows_per_range
from dumap.artifacts.exchange import read_received_ranges, write_receiver_index, write_sorted_receivers
from dumap.artifacts.job import Job
from dumap.artifacts.neighbors import write_lists
from dumap.artifacts.part_names import (
    CELLS,
    NEIGHBORS,
    VECTORS,
    number_of,
    part_name,
    part_names,
    range_name,
    range_names,
    range_of,
    split_evenly,
    sum_fact,
)
from dumap.config import Config
from dumap.kernels import leaves, neighbors, sparse_leaves, vectors
from dumap.kernels.codes import TILE_CODE_BYTES
from dumap.kernels.leaves import MAX_LEAF_ROWS
from dumap.kernels.projection import PLACES_PER_COLUMN
from dumap.planning.audits import WAVE_BYTES
from dumap.planning.geometry import GUEST_BYTES, Geometry, cell_row_bytes, guests_at_once
from dumap.planning.plan import StageProjection
from dumap.planning.sparse import sparse_cell_row_bytes
from dumap.planning.steps import Step, cell_pieces, indexed, received_requests, senders_of
from dumap.stages import Context, Stage, Task
from dumap.stages.distances import metric_arguments, metric_errors
from dumap.stages.sorting import ranked_leaves, sort_bytes, sort_guests, sorted_row_bytes

KTH_ROW_BYTES, KTH_ROWS_PER_RANGE = 48, 64
"""Bytes of a row while its kth distance is sorted by group (measured, rounded up); and rows that are read at once."""


def euclidean_rows(job: Job, cell: Cell, rows: np.ndarray) -> np.ndarray:
    """Return rows of a cell in the space of the leaf search."""
    metric = job.config.neighbors.metric
    x = cell.read_vectors(rows, metric)
    return vectors.add_zero_column(x) if metric in vectors.ANGULAR_METRICS else x


def search_leaves(job: Job, cell: Cell, rows: np.ndarray, probes: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Search home rows of a cell among each other: see `leaves.search_home_rows`."""
    seed, k, metric = job.config.seed + cell.number, job.config.neighbors.search_k, job.config.neighbors.metric
    if job.geometry.is_sparse:
        return sparse_leaves.search_home_rows(
            cell.read_sparse_vectors(rows), job.projected_dims, metric, probes, k, seed
        )
    return leaves.search_home_rows(euclidean_rows(job, cell, rows), probes, k, seed, job.geometry.max_leaf_rows)


def search_guests(
    job: Job,
    cell: Cell,
    rows: np.ndarray,
    home: np.ndarray,
    probes: np.ndarray,
    lists: tuple[np.ndarray, np.ndarray],
) -> tuple[np.ndarray, np.ndarray]:
    """Search home rows of a cell among its guests, and guests among home rows: see `leaves.search_with_guests`."""
    seed, metric = job.config.seed + cell.number, job.config.neighbors.metric
    if job.geometry.is_sparse:
        x = cell.read_sparse_vectors(rows)
        return sparse_leaves.search_with_guests(x, job.projected_dims, metric, home, probes, *lists, seed)
    x, most_rows = euclidean_rows(job, cell, rows), job.geometry.max_leaf_rows
    return leaves.search_with_guests(x, home, probes, *lists, seed, most_rows)


BatchLists = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]
"""Rows of a cell, the rows' positions, and the rows' lists: positions and distances."""


def empty_lists(job: Job, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return empty lists."""
    shape = (rows, job.config.neighbors.search_k)
    return np.full(shape, -1, job.geometry.index_dtype), np.full(shape, np.inf, np.float32)


def merge_home_lists(lists: tuple[np.ndarray, np.ndarray], home_rows: int, batch: BatchLists) -> None:
    """Merge the lists of a batch into the lists of the home rows.

    Equal distances are ordered by the hash of positions, as in the graph.
    """
    rows, positions, listed, distances = batch
    is_home = rows < home_rows
    indices = listed[is_home].astype(lists[0].dtype)
    neighbors.merge_lists(*lists, rows[is_home], indices, distances[is_home], positions[is_home])


def merge_guest_lists(job: Job, home_rows: int, batch: BatchLists) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return the positions, ascending, and the lists of the guests for which a batch found neighbours."""
    rows, positions, listed, distances = batch
    guests = np.flatnonzero((rows >= home_rows) & (listed >= 0).any(axis=1))
    guests = guests[np.argsort(rows[guests])]
    lists = empty_lists(job, len(guests))
    indices = listed[guests].astype(lists[0].dtype)
    neighbors.merge_lists(*lists, np.arange(len(guests)), indices, distances[guests], positions[guests])
    return positions[guests], *lists


def distances_from_squared(job: Job, squared: np.ndarray) -> np.ndarray:
    """Turn squared Euclidean distances into distances of the metric."""
    with np.errstate(over="ignore"):
        return vectors.metric_from_squared(squared, job.config.neighbors.metric).astype(np.float32)


def search_home_rows(job: Job, part: str) -> None:
    """Find the neighbours of a cell's home rows among themselves, by leaf search."""
    table, number = CellTable(job.run), number_of(part)
    cell = Cell(job, number, table)
    probes = cell.read_probes(np.arange(cell.home_rows))
    order = leaves.order_by_leaf(np.full(cell.home_rows, -1), probes)
    local, squared_home = search_leaves(job, cell, order, probes[order])
    positions = cell.positions[order]
    listed = np.where(local >= 0, positions[local], -1)
    with job.run.part(NEIGHBORS, part) as out:
        if table.cells == 1:
            lists = empty_lists(job, cell.home_rows)
            merge_home_lists(
                lists, cell.home_rows, (order, positions, listed, distances_from_squared(job, squared_home))
            )
            write_lists(out, *lists)
            return
        indices, squared = np.empty(local.shape, job.geometry.index_dtype), np.empty(local.shape)
        indices[order], squared[order] = listed, squared_home
        out.write("indices", indices)
        out.write("squared", squared)
        out.write("kth_squared", squared[:, -1])


def sort_kth_distances(job: Job, part: str) -> None:
    """Sort what the guests of other cells bring with them by group of blocks: the squared distance of the last
    neighbour that each home row of a range of cells found at home.
    """
    table, cells = CellTable(job.run), range(*range_of(part))
    counts = np.stack([table.home_ranges(cell)[:, 1] for cell in cells])
    read = job.run.read_many(NEIGHBORS, [(part_name("home", cell), "kth_squared", 0, None) for cell in cells])
    groups = np.repeat(np.tile(np.arange(counts.shape[1], dtype=np.int32), len(cells)), counts.ravel())
    with job.run.part(NEIGHBORS, part) as out:
        out.write("kth_squared", np.concatenate(list(read))[np.argsort(groups, kind="stable")], KTH_ROWS_PER_RANGE)
        out.write("firsts", np.concatenate([[0], np.cumsum(counts.sum(axis=0))]), KTH_ROWS_PER_RANGE)


def search_cell_with_guests(job: Job, part: str, wave: tuple[int, int]) -> None:
    """Find nearer neighbours of home rows among the guests, and of guests among the home rows, a batch of guests at a
    time.
    """
    table, number = CellTable(job.run), number_of(part)
    cell, first = Cell(job, number, table, wave), int(table.offsets[number])
    home_part = part_name("home", number)
    home_lists, squared = (job.run.read(NEIGHBORS, home_part, array) for array in ("indices", "squared"))
    guest_homes = np.searchsorted(table.offsets, cell.positions, side="right") - 1
    guest_homes[: cell.home_rows] = -1
    kth_squared = cell.read_kth_squared()

    def batch(rows: np.ndarray) -> BatchLists:  # a function, so that a batch's arrays are freed before the next batch
        probes = cell.read_probes(rows)
        order = leaves.order_by_leaf(guest_homes[rows], probes)
        rows, probes = rows[order], probes[order]
        is_home = rows < cell.home_rows
        inverse_order = np.empty(cell.home_rows + 1, np.int32)
        inverse_order[rows[is_home]], inverse_order[-1] = np.flatnonzero(is_home), -1
        shape = (len(rows), home_lists.shape[1])
        indices, batch_squared = np.full(shape, -1, np.int32), np.empty(shape)
        listed = home_lists[rows[is_home]]
        indices[is_home] = inverse_order[np.where(listed >= 0, listed - first, -1)]
        batch_squared[is_home] = squared[rows[is_home]]
        batch_squared[~is_home] = kth_squared[rows[~is_home] - cell.home_rows, None]
        home = guest_homes[rows].astype(np.int32)
        local, batch_squared = search_guests(job, cell, rows, home, probes, (indices, batch_squared))
        positions = cell.positions[rows]
        return rows, positions, np.where(local >= 0, positions[local], -1), distances_from_squared(job, batch_squared)

    write_cell_lists(job, part, cell, table, map(batch, cell.row_batches()))


def search_cell_by_metric(job: Job, part: str, wave: tuple[int, int]) -> None:
    """Find the neighbours of a cell's rows, guests included, for metrics without leaf search."""
    table, number, settings = CellTable(job.run), number_of(part), job.config.neighbors
    cell = Cell(job, number, table, wave)

    def batches() -> Iterator[BatchLists]:
        for rows in cell.row_batches():
            with metric_errors(job):
                seed = job.config.seed + number
                local, distances = neighbors.search_by_metric(
                    cell.read_vectors(rows), settings.search_k, settings.metric, metric_arguments(job), seed
                )
            positions = cell.positions[rows]
            yield rows, positions, np.where(local >= 0, positions[local], -1), distances

    write_cell_lists(job, part, cell, table, batches())


def write_cell_lists(job: Job, part: str, cell: Cell, table: CellTable, batches: Iterable[BatchLists]) -> None:
    """Write the lists of home rows and, sorted by home cell, the lists of guests for which neighbours were found."""
    lists, pieces = empty_lists(job, cell.home_rows), [(np.empty(0, np.int64), *empty_lists(job, 0))]
    for batch in batches:
        merge_home_lists(lists, cell.home_rows, batch)
        pieces.append(merge_guest_lists(job, cell.home_rows, batch))
    guests, indices, distances = (np.concatenate(arrays) for arrays in zip(*pieces, strict=True))
    order = np.argsort(guests)
    with job.run.part(NEIGHBORS, part) as out:
        out.write("indices", lists[0])
        out.write("distances", lists[1])
        home_cells = np.searchsorted(table.offsets, guests[order], side="right") - 1
        write_sorted_receivers(out, home_cells)
        piece_rows = len(guests) // max(1, len(np.unique(home_cells)))
        for name, values in (("guests", guests), ("guest_indices", indices), ("guest_distances", distances)):
            out.write(name, values[order], rows_per_range(piece_rows, values))


def index_guest_lists(job: Job, part: str) -> None:
    """Index the lists that a range of cells found for guests, by home cell."""
    count = CellTable(job.run).cells
    write_receiver_index(job.run, NEIGHBORS, part, part_names("cell", count), count)


def merge_cell_lists(job: Job, part: str) -> None:
    """Merge the lists that all cells found for one cell's home rows."""
    store, table, cell = job.run, CellTable(job.run), number_of(part)
    parts = part_names("cell", table.cells)
    indices, distances = (store.read(NEIGHBORS, parts[cell], array) for array in ("indices", "distances"))
    spans = read_received_ranges(store, NEIGHBORS, "guest_index", table.cells, cell).tolist()
    arrays = ("guests", "guest_indices", "guest_distances")
    pieces = store.read_many(NEIGHBORS, [(parts[other], array, *ends) for other, *ends in spans for array in arrays])
    for guests, listed, distances_there in zip(pieces, pieces, pieces, strict=True):
        neighbors.merge_lists(indices, distances, guests - table.offsets[cell], listed, distances_there, guests)
    with store.part(NEIGHBORS, part) as out:
        write_lists(out, indices, distances)


def check_cell_memory(context: Context) -> None:
    """Refuse cells that are larger than planned and fit no worker."""
    geometry = context.geometry.with_cells(context.run.part_facts(CELLS, TABLE))
    need = math.ceil(project(geometry, context.config, context.worker_memory).task_bytes)
    what = f"the largest cell holds {geometry.largest_cell} rows, {geometry.largest_home} of them its own at the most"
    context.require_memory(NEIGHBORS, need, what, "a smaller cells.max_rows or task_memory in another output")


def guest_waves(geometry: Geometry, cells: int, max_cells_per_row: int) -> list[tuple[int, int]]:
    """Cut the cells into waves. The guests of a wave's cells are sorted and searched together.

    There is one wave, unless guests are more than home rows and more than `WAVE_BYTES`. So about as many guests as home
    rows are on disk at once.
    """
    row_bytes = sorted_row_bytes(geometry)
    guest_bytes = (geometry.mean_cells_per_row(max_cells_per_row) - 1) * geometry.rows * row_bytes
    return split_evenly(cells, max(1, math.ceil(guest_bytes / max(WAVE_BYTES, geometry.rows * row_bytes))))


def kth_part_names(geometry: Geometry, config: Config, cells: int) -> list[str]:
    """Name the parts that hold what guests bring with them by group, each of a range of cells that a task can sort."""
    fewest = math.ceil(geometry.rows * KTH_ROW_BYTES / (config.task_memory // 2))
    return [range_name("kth", *ends) for ends in split_evenly(cells, max(fewest, math.isqrt(cells)))]


def search_waves(context: Context, task: Task, count: int) -> None:
    """Run a task for every cell with its guests, wave by wave.

    The guests of a wave are sorted before it, and dropped after it. The guests of the last wave are dropped with the
    stage's other parts.
    """
    store, geometry = context.run, context.geometry.with_cells(context.run.part_facts(CELLS, TABLE))
    waves = guest_waves(geometry, count, context.config.cells.max_cells_per_row)
    kth = kth_part_names(geometry, context.config, count) if task is search_cell_with_guests else []
    context.compute(NEIGHBORS, sort_kth_distances, kth)
    for wave in waves:
        cells, guests = part_names("cell", count)[slice(*wave)], guest_part_names(wave, geometry.groups)
        if not set(cells) <= set(store.committed_parts(NEIGHBORS)):
            if count > 1:
                context.compute(NEIGHBORS, sort_guests, guests, kth=kth)
            context.compute(NEIGHBORS, task, cells, wave=wave)
        if wave != waves[-1]:
            guest_parts = sorted(set(guests) & set(store.committed_parts(NEIGHBORS)))
            store.drop_parts(NEIGHBORS, [name for name in guest_parts if not store.is_dropped(NEIGHBORS, name)])


def run(context: Context) -> dict:
    """Search every cell, then merge the lists; return the facts."""
    count = CellTable(context.run).cells
    merged = part_names("lists", count)
    check_cell_memory(context)
    by_leaves = context.config.neighbors.metric in vectors.EUCLIDEAN_ORDER_METRICS
    if by_leaves:
        context.compute(NEIGHBORS, search_home_rows, merged if count == 1 else part_names("home", count))
    if count > 1 or not by_leaves:
        search_waves(context, search_cell_with_guests if by_leaves else search_cell_by_metric, count)
        context.compute(NEIGHBORS, index_guest_lists, range_names("guest_index", count))
        context.compute(NEIGHBORS, merge_cell_lists, merged)
    return {"missing": sum_fact(context.run, NEIGHBORS, merged, "missing")}


def guest_batches(geometry: Geometry, config: Config) -> float:
    """Return in how many batches the guests of a cell are searched, at most in the mean; each reads all rows again."""
    rows = geometry.rows / geometry.cells
    guests = (geometry.mean_cells_per_row(config.cells.max_cells_per_row) - 1) * rows
    return 1 + guests / guests_at_once(geometry.cell_rows, int(rows))


def steps_of(geometry: Geometry, config: Config, waves: int) -> tuple[Step, ...]:
    """Return the steps of the stage."""
    cells, groups, grouped, rows = geometry.cells, geometry.groups, geometry.group_blocks, geometry.rows
    arrays, guests = (
        5 if geometry.is_sparse else 2,
        (geometry.mean_cells_per_row(config.cells.max_cells_per_row) - 1) * rows,
    )
    home_parts, home_spans = cell_pieces(geometry, rows / cells)
    searched = Step(cells, home_parts + 2, arrays * home_spans + 2)
    if cells == 1:
        return (searched,)
    guest_parts, guest_spans = cell_pieces(geometry, guests / cells)
    kth, batches = len(kth_part_names(geometry, config, cells)), guest_batches(geometry, config)
    (index_parts, index_spans), senders = received_requests(cells), senders_of(cells)
    return (
        searched,
        Step(kth, cells / kth + 2, 2 * cells / kth + 1),
        Step(groups * waves, grouped + kth + 4, grouped + 2 * kth + 4, grouped, waves),
        Step(
            cells,
            home_parts + guest_parts + 4,
            2 * guest_spans + batches * arrays * (home_spans + guest_spans) + 7,
            0,
            waves,
        ),
        indexed(cells),
        Step(cells, 2 + index_parts + senders, 3 + index_spans + 3 * senders),
    )


def project(geometry: Geometry, config: Config, worker_memory: int) -> StageProjection:
    """Project what the stage will take."""
    rows, listed, index_bytes = geometry.rows, config.neighbors.search_k, geometry.index_dtype.itemsize
    at_once, cells_a_row = geometry.max_rows_at_once, geometry.mean_cells_per_row(config.cells.max_cells_per_row)
    list_bytes, waves = (
        listed * (index_bytes + 4),
        guest_waves(geometry, geometry.cells, config.cells.max_cells_per_row),
    )
    guest_list_bytes = (cells_a_row - 1) * rows * (list_bytes + 8)  # the most that lists of guests take
    guest_bytes = (cells_a_row - 1) * rows * (sorted_row_bytes(geometry) + 16) / len(waves)
    home_bytes = rows * (listed * (index_bytes + 8) + 16)
    searched_bytes = at_once * max(cell_row_bytes(geometry.dims, listed, config.neighbors.metric), list_bytes * 4)
    searched_bytes += 2 * min(at_once, MAX_LEAF_ROWS) * geometry.dims + 2 * TILE_CODE_BYTES
    if geometry.is_sparse:
        searched_bytes = at_once * sparse_cell_row_bytes(0, listed) + 12 * geometry.max_entries_at_once
        searched_bytes += min(at_once, MAX_LEAF_ROWS) * geometry.entries * 8 + geometry.source_dims * (
            2 * PLACES_PER_COLUMN + 24
        )
    search = (
        searched_bytes
        + geometry.max_cell_rows * (GUEST_BYTES + 2 * list_bytes) * (geometry.cells > 1)  # guests, and their lists
        + (geometry.groups + geometry.cells) * 48
    )
    gathered_bytes = rows * (1 + guest_batches(geometry, config) * cells_a_row) * sorted_row_bytes(geometry)
    read_bytes: float = len(waves) * rows * (geometry.source_row_bytes + 4 * ranked_leaves(geometry)) + home_bytes
    read_bytes += (1 + 1 / RANGES_PER_PIECE) * gathered_bytes + guest_list_bytes + 2 * rows * list_bytes
    return StageProjection(
        steps=steps_of(geometry, config, len(waves)),
        shuffled_bytes=int(read_bytes),
        disk_bytes=int(guest_list_bytes + 2 * rows * list_bytes + home_bytes + guest_bytes),
        task_bytes=max(search, sort_bytes(geometry, config), min(rows * KTH_ROW_BYTES, config.task_memory)),
        temporary_bytes={
            "cell": int(guest_list_bytes + rows * list_bytes),
            "home": home_bytes,
            "guests": int(guest_bytes),
        },
    )


STAGE = Stage(
    NEIGHBORS,
    setting_keys=(
        *(
            "seed",
            "task_memory",
            "neighbors.metric",
            "neighbors.metric_kwds",
            "neighbors.width",
            "cells.max_cells_per_row",
        ),
        "cells.max_rows",
    ),
    reads=(VECTORS, CELLS),
    writes=("home", "kth", "guests", "cell", "guest_index", "lists"),
    run=run,
    project=project,
    temporary_kinds=dict.fromkeys(("home", "kth", "guests", "cell", "guest_index"), ()),
    version=2,
)
