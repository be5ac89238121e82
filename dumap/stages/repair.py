"""repair: improve the neighbour lists by local joins across cells. This module is part of stage audit.

A repair has five steps. Each cell names its halo: the rows of other cells that its home rows list. One task tabulates
how many rows each cell asks of each. Each cell sends the rows it is asked for. Each cell compares pairs among its home
rows and halo, and offers what may enter a list. Each cell merges the offers for its home rows.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from dumap.artifacts.cells import TABLE, CellTable, keeps_input_dtype, spans_in
from dumap.artifacts.job import Job
from dumap.artifacts.neighbors import NeighborLists, write_lists
from dumap.artifacts.part_names import AUDIT, CELLS, number_of, part_name, part_names, total
from dumap.artifacts.rows import cast, join, no_rows, read_rows, write_rows
from dumap.kernels import neighbors, repair, vectors
from dumap.planning.audits import most_repair_rows
from dumap.stages import Context
from dumap.stages.distances import defined_distances, metric_arguments


def read_sparse_home(job: Job, cell: int, table: CellTable) -> csr_matrix:
    """Read a cell's home rows that are sparse, by position, as they are kept."""
    spans = spans_in(part_names("sorted", job.geometry.groups), table.home_spans(cell))
    return join([read_rows(job, CELLS, part, "vectors", a, b) for part, a, b in spans] or [no_rows(job)])


def read_home(job: Job, cell: int, table: CellTable, out: np.ndarray) -> None:
    """Read a cell's home rows, by position, into `out`, cast to the dtype of `out`."""
    step, done = max(1, job.geometry.block_rows // 4), 0
    spans = spans_in(part_names("sorted", job.geometry.groups), table.home_spans(cell))
    pieces = [(part, "vectors", low, min(stop, low + step)) for part, a, stop in spans for low in range(a, stop, step)]
    for rows in job.run.read_each(CELLS, pieces):
        out[done : done + len(rows)] = vectors.as_float32(rows) if out.dtype == np.float32 else rows
        done += len(rows)


def _span(table: CellTable, cell: int) -> tuple[int, int]:
    """Return the positions [first, last) of a cell's home rows."""
    return int(table.offsets[cell]), int(table.offsets[cell + 1])


def choose_halo(job: Job, part: str, number: int) -> None:
    """Choose a cell's halo: the rows of other cells that its home rows list."""
    before, cell = NeighborLists(job.run, number - 1), number_of(part)
    first, last = _span(before.table, cell)
    geometry = job.geometry.with_cells(job.run.summary(CELLS, TABLE))
    most = max(0, most_repair_rows(job.config, geometry) - (last - first))
    halo, left_out = repair.choose_halo(before.of(cell, "indices"), first, most)
    with job.run.part(AUDIT, part) as out:
        out.write("positions", halo)
        out.attributes |= {
            "counts": np.diff(np.searchsorted(halo, before.table.offsets)).tolist(),
            "left_out": left_out,
        }


def tabulate(job: Job, part: str, number: int) -> None:
    """Tabulate how many rows each cell asks of each."""
    names = part_names(f"halo-{number}", CellTable(job.run).cells)
    with job.run.part(AUDIT, part) as out:
        out.write("rows", np.array([job.run.summary(AUDIT, name)["counts"] for name in names], np.int32))


def send(job: Job, part: str, number: int) -> None:
    """Write the rows that other cells ask of a cell, one asker after the other: vectors, lists, and kth distances."""
    store, before, cell = job.run, NeighborLists(job.run, number - 1), number_of(part)
    table = before.table
    first, last = _span(table, cell)
    asked = store.read(AUDIT, f"requests-{number}", "rows")
    names, starts = part_names(f"halo-{number}", table.cells), asked[:, :cell].sum(axis=1)
    spans = [
        (names[asker], "positions", int(starts[asker]), int(starts[asker] + asked[asker, cell]))
        for asker in np.flatnonzero(asked[:, cell])
    ]
    wanted = [positions - first for positions in store.read_each(AUDIT, spans)]
    rows = np.concatenate([np.empty(0, np.int32), *wanted], dtype=np.int32)
    indices, distances = (before.of(cell, array) for array in ("indices", "distances"))
    x: Any
    if job.geometry.sparse:
        x = read_sparse_home(job, cell, table) if len(rows) else no_rows(job)
    else:
        x = np.empty((last - first, job.geometry.dims), job.input.dtype if keeps_input_dtype(job) else np.float32)
        if len(rows):
            read_home(job, cell, table, x)
    with store.part(AUDIT, part) as out:
        write_rows(out, "vectors", x, rows)
        out.write_gathered("lists", repair.bundle(indices, distances[:, -1:]), rows)


def spans_sent(asked: np.ndarray, cell: int, number: int) -> list[tuple[str, int, int]]:
    """Return which rows of which parts were sent to a cell, in the order of its halo."""
    spans = []
    for home in np.flatnonzero(asked[cell]):
        low = int(asked[:cell, home].sum())
        spans.append((part_name(f"sent-{number}", int(home)), low, low + int(asked[cell, home])))
    return spans


def read_joined(job: Job, cell: int, table: CellTable, spans: list[tuple[str, int, int]], rows: int) -> Any:
    """Read a cell's home rows and its halo, as rows that are compared, (rows, dims)."""
    if job.geometry.sparse:
        halo = [cast(read_rows(job, AUDIT, name, "vectors", a, b)) for name, a, b in spans]
        return join([cast(read_sparse_home(job, cell, table)), *halo])
    x = np.empty((rows, job.geometry.dims), np.float32)
    first, last = _span(table, cell)
    read_home(job, cell, table, x[: last - first])
    done = last - first
    for sent in job.run.read_each(AUDIT, [(name, "vectors", a, b) for name, a, b in spans]):
        x[done : done + len(sent)] = vectors.as_float32(sent)
        done += len(sent)
    return x


def offer_pairs(job: Job, part: str, number: int, inside: bool) -> None:
    """Compare pairs among a cell's home rows and halo; write the pairs that may enter a list, as offers."""
    store, before, cell, k = job.run, NeighborLists(job.run, number - 1), number_of(part), job.config.neighbors.search_k
    table = before.table
    first, last = _span(table, cell)
    asked = store.read(AUDIT, f"requests-{number}", "rows")
    halo = store.read(AUDIT, part_name(f"halo-{number}", cell), "positions")
    home_rows, rows = last - first, last - first + len(halo)
    kth_distances = np.empty(rows, np.float32)
    lists, fresh = np.empty((rows, k), np.int32), np.ones((rows, k), bool)
    indices = before.of(cell, "indices")
    lists[:home_rows] = repair.localize(indices, first, home_rows, halo)
    kth_distances[:home_rows] = before.of(cell, "distances")[:, -1]
    if number > 1:
        fresh[:home_rows] = repair.is_new(indices, NeighborLists(store, number - 2).of(cell, "indices"))
    spans = spans_sent(asked, cell, number)
    done = home_rows
    for lists_sent in store.read_each(AUDIT, [(name, "lists", a, b) for name, a, b in spans]):
        at = slice(done, done := done + len(lists_sent))
        indices, kth = repair.unbundle(lists_sent, k)
        lists[at], kth_distances[at] = repair.localize(indices, first, home_rows, halo), kth[:, 0]
    x = read_joined(job, cell, table, spans, rows)
    homes = np.repeat(np.append(cell, np.arange(table.cells)), np.append(home_rows, asked[cell])).astype(np.int32)
    metric, kwds = job.config.neighbors.metric, metric_arguments(job)
    with defined_distances(job):
        candidates, distances, pairs = repair.local_join(
            x, home_rows, lists, fresh, homes, inside, kth_distances, metric, kwds
        )
    del x, lists, fresh
    positions = np.append(np.arange(first, last), halo)
    gaining = np.flatnonzero(((candidates >= 0) & (distances <= kth_distances[:, None])).any(axis=1))
    gaining = gaining[np.argsort(positions[gaining])]
    offered = np.where(candidates[gaining] >= 0, positions[candidates[gaining]], -1).astype(job.geometry.index_dtype)
    with store.part(AUDIT, part) as out:
        out.write("positions", positions[gaining])
        out.write("offers", repair.bundle(offered, distances[gaining]))
        out.attributes["offsets"] = np.searchsorted(positions[gaining], table.offsets).tolist()
        out.attributes["pairs"] = pairs


def merge(job: Job, part: str, number: int) -> None:
    """Merge the offers of all cells into the lists of one cell's home rows."""
    store, lists, cell, k = job.run, NeighborLists(job.run, number - 1), number_of(part), job.config.neighbors.search_k
    first, _ = _span(lists.table, cell)
    before = lists.of(cell, "indices")
    indices, distances = before.copy(), lists.of(cell, "distances").copy()
    asked = store.read(AUDIT, f"requests-{number}", "rows")[:, cell] > 0
    asked[cell] = True
    names = np.array(part_names(f"offers-{number}", len(asked)))[asked].tolist()
    bounds = [summary["offsets"][cell : cell + 2] for summary in store.summaries(AUDIT, names)]
    spans = [(name, low, high) for name, (low, high) in zip(names, bounds, strict=True) if high > low]
    read = store.read_each(AUDIT, [(name, array, *ends) for name, *ends in spans for array in ("positions", "offers")])
    for positions, offers in zip(read, read, strict=True):
        offered, lengths = repair.unbundle(offers, k)
        neighbors.merge(indices, distances, positions - first, offered, lengths, positions)
    with store.part(AUDIT, part) as out:
        write_lists(out, indices, distances)
        out.attributes["gained"] = int((repair.is_new(indices, before) & (indices >= 0)).sum())


def repair_lists(context: Context, number: int, inside: bool) -> dict:
    """Repair all lists once; return the facts.

    Parameters
    ----------
    context : Context
    number : int
        1 for the first repair.
    inside : bool
        Whether pairs of one home cell are compared too.
    """
    store, count = context.run, CellTable(context.run).cells
    merged, steps = part_names(f"lists-{number}", count), {}
    for name in ("halo", "sent", "offers"):
        steps[name] = part_names(f"{name}-{number}", count)
    if not {*merged, f"repair-{number}"} <= set(store.committed(AUDIT)):
        context.compute(AUDIT, choose_halo, steps["halo"], number=number)
        context.compute(AUDIT, tabulate, [f"requests-{number}"], number=number)
        context.compute(AUDIT, send, steps["sent"], number=number)
        context.compute(AUDIT, offer_pairs, steps["offers"], number=number, inside=inside)
        context.compute(AUDIT, merge, merged, number=number)
        context.compute(AUDIT, sum_up, [f"repair-{number}"], number=number)
    for name in sorted({*steps["halo"], f"requests-{number}", *steps["sent"], *steps["offers"]}):
        if store.is_committed(AUDIT, name):
            store.discard(AUDIT, name)
    return store.summary(AUDIT, f"repair-{number}")


def sum_up(job: Job, part: str, number: int) -> None:
    """Add up the facts of a repair, before the parts that hold them are removed."""
    cells = CellTable(job.run).cells
    facts = {"left_out": "halo", "pairs": "offers", "gained": "lists"}
    with job.run.part(AUDIT, part) as out:
        out.attributes |= {
            fact: total(job.run, AUDIT, part_names(f"{name}-{number}", cells), fact) for fact, name in facts.items()
        }
