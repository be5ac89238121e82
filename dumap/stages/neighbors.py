"""neighbors: a k-NN graph in each cell, then each row's lists from all its cells merged by id."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np

from dumap.config import Config
from dumap.errors import InputError
from dumap.kernels import neighbors
from dumap.metrics import arguments
from dumap.stages import Context, Job, number_of, numbered, total
from dumap.stages.cells import STAGE as CELLS
from dumap.stages.cells import Table
from dumap.stages.vectors import as_float32
from dumap.store import Part, Run

STAGE = "neighbors"
REPAIRED = "audit"
"""The stage that writes the lists anew where they fall short."""
DISCONNECTION_DISTANCES = {"correlation": 2.0, "cosine": 2.0, "hellinger": 1.0, "jaccard": 1.0, "dice": 1.0}
"""umap-learn's: at this distance rows have nothing in common."""


def disconnection_distance(config: Config) -> float:
    """Return the distance from which on neighbours are cut off."""
    if config.graph.disconnection_distance is not None:
        return config.graph.disconnection_distance
    return DISCONNECTION_DISTANCES.get(config.neighbors.metric, math.inf)


def metric_arguments(job: Job) -> dict:
    """Return the metric's arguments, in the order it takes them."""
    own = job.config.neighbors
    return arguments(own.metric, own.metric_kwds, job.geometry.dims)


@contextmanager
def defined_distances(job: Job) -> Iterator[None]:
    """Name the metric where a distance of it does not exist, as of rows that are all zero.

    Raises
    ------
    InputError
    """
    try:
        yield
    except (ZeroDivisionError, ValueError) as error:
        raise InputError(
            f"{job.config.input.path}: neighbors.metric = {job.config.neighbors.metric} is not defined for some of its "
            f"rows ({error}): take another metric, or leave out rows such as those that are all zero"
        ) from error


def read_cell(job: Job, cell: int, table: Table) -> tuple[np.ndarray, np.ndarray]:
    """Read a cell: its own rows first, then its guests, each by position, however the input was cut.

    Returns
    -------
    positions : ndarray of int64, shape (n,)
    x : ndarray of float32, shape (n, dims)
    """
    blocks = numbered("sorted", job.geometry.blocks)
    stops = np.cumsum(table.copies, axis=1)[:, cell]
    starts = stops - table.copies[:, cell]
    spans = [(block, int(a), int(b)) for block, a, b in zip(blocks, starts, stops, strict=True) if b > a]
    positions = np.concatenate([job.run.read(CELLS, block, "positions", a, b) for block, a, b in spans])
    guest = (positions < table.offsets[cell]) | (positions >= table.offsets[cell + 1])
    order = np.lexsort((positions, guest))
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    x = np.empty((len(order), job.geometry.dims), np.float32)
    done = 0
    for block, a, b in spans:
        step = max(1, job.geometry.block_rows // 4)
        for low in range(a, b, step):
            rows = as_float32(job.run.read(CELLS, block, "vectors", low, min(b, low + step)))
            x[place[done : done + len(rows)]] = rows
            done += len(rows)
    return positions[order], x


def search_cell(job: Job, part: str) -> None:
    """Find the neighbours of a cell's rows among themselves."""
    table, cell, k = Table(job.run), number_of(part), job.config.neighbors.n_neighbors
    positions, x = read_cell(job, cell, table)
    with defined_distances(job):
        found, distances = neighbors.search(
            x, k, job.config.neighbors.metric, metric_arguments(job), job.config.seed + cell
        )
    del x
    named = np.where(found >= 0, positions[found], -1).astype(job.geometry.index_dtype)
    with job.run.part(STAGE, part) as out:
        out.write("guests", positions[len(positions) - int(table.guests[cell].sum()) :])
        out.write("indices", named)
        out.write("distances", distances)


def merge_cell(job: Job, part: str) -> None:
    """Merge what all cells found for one cell's own rows."""
    store, table, cell = job.run, Table(job.run), number_of(part)
    count = int(table.offsets[cell + 1] - table.offsets[cell])
    names = numbered("cell", table.cells)
    own = names[cell]
    # sorted anew by (distance, id): that order, not the search's, is the graph's
    k = job.config.neighbors.n_neighbors
    indices = np.full((count, k), -1, job.geometry.index_dtype)
    distances = np.full((count, k), np.inf, np.float32)
    rows = np.arange(count)
    neighbors.merge(
        indices,
        distances,
        rows,
        store.read(STAGE, own, "indices", 0, count),
        store.read(STAGE, own, "distances", 0, count),
    )
    before = np.cumsum(table.guests, axis=1) - table.guests
    for other in np.flatnonzero(table.guests[:, cell]):
        home = int(table.offsets[other + 1] - table.offsets[other])
        start = int(before[other, cell])
        stop = start + int(table.guests[other, cell])
        guests = store.read(STAGE, names[other], "guests", start, stop)
        neighbors.merge(
            indices,
            distances,
            guests - table.offsets[cell],
            store.read(STAGE, names[other], "indices", home + start, home + stop),
            store.read(STAGE, names[other], "distances", home + start, home + stop),
        )
    with store.part(STAGE, part) as out:
        write_lists(job, out, indices, distances)


def write_lists(job: Job, out: Part, indices: np.ndarray, distances: np.ndarray) -> None:
    """Write a cell's lists, and what the graph needs to know of them all."""
    finite = np.isfinite(distances)
    cut_off = finite & (distances >= disconnection_distance(job.config))
    out.write("indices", indices)
    out.write("distances", distances)
    out.attributes |= {
        "distance_sum": float(np.sum(distances[finite], dtype=np.float64)),
        "disconnected": int(cut_off.sum()),
        "missing": int((indices < 0).sum()),
    }


def report_name(repairs: int) -> str:
    """Name the part of stage audit that commits the lists after so many repairs, and says how good they are."""
    return f"report-{repairs}"


def repairs_made(run: Run) -> int:
    """Return how many repairs the lists have had, and an audit after each."""
    repairs = 0
    while run.is_committed(REPAIRED, report_name(repairs + 1)):
        repairs += 1
    return repairs


class Lists:
    """The lists of all rows, by position.

    Parameters
    ----------
    run : Run
    repairs : int, optional
        The lists after so many repairs; all that were made where none is named.
    """

    def __init__(self, run: Run, repairs: int | None = None) -> None:
        self.run, self.table = run, Table(run)
        repairs = repairs_made(run) if repairs is None else repairs
        self.stage, prefix = (REPAIRED, f"merged-{repairs}") if repairs else (STAGE, "merged")
        self.names = numbered(prefix, self.table.cells)

    def read(self, array: str, start: int, stop: int) -> np.ndarray:
        """Read 'indices' or 'distances' of positions [start, stop)."""
        return self.run.read_span(self.stage, self.names, self.table.offsets, array, start, stop)

    def of(self, cell: int, array: str) -> np.ndarray:
        """Read 'indices' or 'distances' of a cell's own rows."""
        return self.run.read(self.stage, self.names[cell], array)

    def facts(self, fact: str) -> list:
        """Return one of the facts of `write_lists` of each cell."""
        return [self.run.summary(self.stage, name)[fact] for name in self.names]


def run(context: Context) -> dict:
    """Search every cell, then merge; return what came out."""
    count = Table(context.run).cells
    merged = numbered("merged", count)
    context.compute(STAGE, search_cell, numbered("cell", count))
    context.compute(STAGE, merge_cell, merged)
    return {fact: total(context.run, STAGE, merged, fact) for fact in ("missing", "disconnected")}
