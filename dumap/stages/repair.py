"""repair: improve the neighbour lists by local joins across cells. This module is part of stage audit.

A repair has four steps. Each cell names its halo: the rows of other cells that its home rows list. Each cell sends the
rows it is asked for. Each cell compares pairs among its home rows and halo, and offers what may enter a list. Each cell
merges the offers for its home rows. Between steps, what cells have for one another is indexed.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from scipy.sparse import csr_matrix

from dumap.artifacts.cells import TABLE, CellTable, keeps_input_dtype, part_ranges, rows_per_range
from dumap.artifacts.exchange import read_received_ranges, write_answers, write_receiver_index, write_sorted_receivers
from dumap.artifacts.job import Job
from dumap.artifacts.neighbors import NeighborLists, write_lists
from dumap.artifacts.part_names import (
    AUDIT,
    CELLS,
    number_of,
    part_name,
    part_names,
    range_name,
    range_names,
    split_evenly,
    sum_fact,
)
from dumap.artifacts.rows import cast_rows, empty_rows, join_rows, read_rows, write_rows
from dumap.config import Config
from dumap.kernels import neighbors, repair, vectors
from dumap.planning.audits import SENT_ROWS, max_repair_rows, mean_repair_waves, repair_waves
from dumap.planning.geometry import Geometry
from dumap.planning.steps import Step, cell_pieces, indexed, received_requests, senders_of
from dumap.stages import Context
from dumap.stages.distances import metric_arguments, metric_errors
from dumap.store import Run

INDEXED_KINDS = {"requests": "halo", "sent_index": "sent", "offer_index": "offers"}
"""The kinds of index parts, and what they index."""
HALO_ROWS_PER_RANGE = 64
"""Rows of a halo that are read at once: a cell reads those that are asked of it."""


def read_sparse_home_rows(job: Job, cell: int, table: CellTable) -> csr_matrix:
    """Read a cell's home rows that are sparse, by position, as they are kept."""
    spans = part_ranges(part_names("sorted", job.geometry.groups), table.home_ranges(cell))
    return join_rows([read_rows(job, CELLS, part, "vectors", a, b) for part, a, b in spans] or [empty_rows(job)])


def read_home_rows(job: Job, cell: int, table: CellTable, out: np.ndarray) -> None:
    """Read a cell's home rows, by position, into `out`, cast to the dtype of `out`."""
    step, done = max(1, job.geometry.block_rows // 4), 0
    spans = part_ranges(part_names("sorted", job.geometry.groups), table.home_ranges(cell))
    pieces = [(part, "vectors", low, min(stop, low + step)) for part, a, stop in spans for low in range(a, stop, step)]
    for rows in job.run.read_many(CELLS, pieces):
        out[done : done + len(rows)] = vectors.as_float32(rows) if out.dtype == np.float32 else rows
        done += len(rows)


def _home_range(table: CellTable, cell: int) -> tuple[int, int]:
    """Return the positions [first, last) of a cell's home rows."""
    return int(table.offsets[cell]), int(table.offsets[cell + 1])


def choose_halo(job: Job, part: str, number: int) -> None:
    """Choose a cell's halo: the rows of other cells that its home rows list."""
    before, cell = NeighborLists(job.run, number - 1), number_of(part)
    first, last = _home_range(before.table, cell)
    geometry = job.geometry.with_cells(job.run.part_facts(CELLS, TABLE))
    max_halo = max(0, max_repair_rows(job.config, geometry) - (last - first))
    halo, left_out = repair.choose_halo(before.read_cell(cell, "indices"), first, max_halo)
    with job.run.part(AUDIT, part) as out:
        out.write("positions", halo, HALO_ROWS_PER_RANGE)
        write_sorted_receivers(out, np.searchsorted(before.table.offsets, halo, side="right") - 1)
        out.attributes |= {"left_out": left_out, "rows": len(halo)}


def index_exchange(job: Job, part: str, kind: str) -> None:
    """Index by cell what a range of cells ask of others, send to others, or offer to others."""
    count = CellTable(job.run).cells
    write_receiver_index(job.run, AUDIT, part, part_names(kind, count), count)


def sent_kinds(number: int, wave: tuple[int, int]) -> tuple[str, str]:
    """Return the kinds of the parts that hold what is sent to a wave of cells, and of those that index it."""
    return range_name(f"sent-{number}", *wave), range_name(f"sent_index-{number}", *wave)


def write_sent_rows(job: Job, part: str, number: int, wave: tuple[int, int]) -> None:
    """Write the rows that the cells of a wave ask of a cell, one after the other: vectors, lists, and kth distances."""
    store, before, cell = job.run, NeighborLists(job.run, number - 1), number_of(part)
    table = before.table
    first, last = _home_range(table, cell)
    requests = read_received_ranges(store, AUDIT, f"requests-{number}", table.cells, cell)
    requests = requests[(requests[:, 0] >= wave[0]) & (requests[:, 0] < wave[1])]
    spans = [(part_name(f"halo-{number}", asker), "positions", low, high) for asker, low, high in requests.tolist()]
    requested_rows = [positions - first for positions in store.read_many(AUDIT, spans)]
    rows = np.concatenate([np.empty(0, np.int32), *requested_rows], dtype=np.int32)
    indices, distances = (before.read_cell(cell, array) for array in ("indices", "distances"))
    x: Any
    if job.geometry.is_sparse:
        x = read_sparse_home_rows(job, cell, table) if len(rows) else empty_rows(job)
    else:
        x = np.empty((last - first, job.geometry.dims), job.input.dtype if keeps_input_dtype(job) else np.float32)
        if len(rows):
            read_home_rows(job, cell, table, x)
    with store.part(AUDIT, part) as out:
        lists, piece_rows = repair.bundle_lists(indices, distances[:, -1:]), len(rows) // max(1, len(requests))
        write_rows(out, "vectors", x, rows, piece_rows)
        out.write_gathered("lists", lists, rows, rows_per_range(piece_rows, lists))
        write_answers(out, requests)


def read_compared_rows(job: Job, cell: int, table: CellTable, spans: list[tuple[str, int, int]], rows: int) -> Any:
    """Read a cell's home rows and its halo, as rows that are compared, (rows, dims)."""
    if job.geometry.is_sparse:
        halo = [cast_rows(read_rows(job, AUDIT, name, "vectors", a, b)) for name, a, b in spans]
        return join_rows([cast_rows(read_sparse_home_rows(job, cell, table)), *halo])
    x = np.empty((rows, job.geometry.dims), np.float32)
    first, last = _home_range(table, cell)
    read_home_rows(job, cell, table, x[: last - first])
    done = last - first
    for sent_vectors in job.run.read_many(AUDIT, [(name, "vectors", a, b) for name, a, b in spans]):
        x[done : done + len(sent_vectors)] = vectors.as_float32(sent_vectors)
        done += len(sent_vectors)
    return x


def offer_pairs(job: Job, part: str, number: int, should_compare_home_pairs: bool, wave: tuple[int, int]) -> None:
    """Compare pairs among a cell's home rows and halo; write the pairs that may enter a list, as offers."""
    store, before, cell, k = job.run, NeighborLists(job.run, number - 1), number_of(part), job.config.neighbors.search_k
    table = before.table
    first, last = _home_range(table, cell)
    halo = store.read(AUDIT, part_name(f"halo-{number}", cell), "positions")
    home_rows, rows = last - first, last - first + len(halo)
    kth_distances = np.empty(rows, np.float32)
    lists, fresh = np.empty((rows, k), np.int32), np.ones((rows, k), bool)
    indices = before.read_cell(cell, "indices")
    lists[:home_rows] = repair.to_local_rows(indices, first, home_rows, halo)
    kth_distances[:home_rows] = before.read_cell(cell, "distances")[:, -1]
    if number > 1:
        fresh[:home_rows] = repair.find_new_entries(
            indices, NeighborLists(store, number - 2).read_cell(cell, "indices")
        )
    sent_kind, index_kind = sent_kinds(number, wave)
    of_cell = read_received_ranges(store, AUDIT, index_kind, table.cells, cell)
    spans = [(part_name(sent_kind, home), low, high) for home, low, high in of_cell.tolist()]
    done = home_rows
    for lists_sent in store.read_many(AUDIT, [(name, "lists", a, b) for name, a, b in spans]):
        received = slice(done, done := done + len(lists_sent))
        indices, kth = repair.unbundle_lists(lists_sent, k)
        lists[received], kth_distances[received] = repair.to_local_rows(indices, first, home_rows, halo), kth[:, 0]
    x = read_compared_rows(job, cell, table, spans, rows)
    sizes = of_cell[:, 2] - of_cell[:, 1]
    home_cells = np.repeat(np.append(cell, of_cell[:, 0]), np.append(home_rows, sizes)).astype(np.int32)
    metric, kwds = job.config.neighbors.metric, metric_arguments(job)
    with metric_errors(job):
        candidates, distances, pairs = repair.local_join(
            x, home_rows, lists, fresh, home_cells, should_compare_home_pairs, kth_distances, metric, kwds
        )
    del x, lists, fresh
    positions = np.append(np.arange(first, last), halo)
    gaining = np.flatnonzero(((candidates >= 0) & (distances <= kth_distances[:, None])).any(axis=1))
    gaining = gaining[np.argsort(positions[gaining])]
    offered = np.where(candidates[gaining] >= 0, positions[candidates[gaining]], -1).astype(job.geometry.index_dtype)
    with store.part(AUDIT, part) as out:
        gainers, offers = positions[gaining], repair.bundle_lists(offered, distances[gaining])
        piece_rows = len(gainers) // (1 + len(of_cell))
        out.write("positions", gainers, rows_per_range(piece_rows, gainers))
        out.write("offers", offers, rows_per_range(piece_rows, offers))
        write_sorted_receivers(out, np.searchsorted(table.offsets, gainers, side="right") - 1)
        out.attributes["pairs"] = pairs


def merge_offers(job: Job, part: str, number: int) -> None:
    """Merge the offers of all cells into the lists of one cell's home rows."""
    store, lists, cell, k = job.run, NeighborLists(job.run, number - 1), number_of(part), job.config.neighbors.search_k
    first, _ = _home_range(lists.table, cell)
    before = lists.read_cell(cell, "indices")
    indices, distances = before.copy(), lists.read_cell(cell, "distances").copy()
    offered_rows = read_received_ranges(store, AUDIT, f"offer_index-{number}", lists.table.cells, cell).tolist()
    spans = [(part_name(f"offers-{number}", other), low, high) for other, low, high in offered_rows]
    read = store.read_many(AUDIT, [(name, array, *ends) for name, *ends in spans for array in ("positions", "offers")])
    for positions, offers in zip(read, read, strict=True):
        offered, lengths = repair.unbundle_lists(offers, k)
        neighbors.merge_lists(indices, distances, positions - first, offered, lengths, positions)
    with store.part(AUDIT, part) as out:
        write_lists(out, indices, distances)
        out.attributes["gained"] = int((repair.find_new_entries(indices, before) & (indices >= 0)).sum())


def repair_lists(context: Context, number: int, should_compare_home_pairs: bool) -> dict:
    """Repair all lists once; return the facts.

    Parameters
    ----------
    context : Context
    number : int
        1 for the first repair.
    should_compare_home_pairs : bool
        Whether pairs of one home cell are compared too.
    """
    store, count = context.run, CellTable(context.run).cells
    merged, halo, offers = (part_names(f"{kind}-{number}", count) for kind in ("lists", "halo", "offers"))
    requests, offered = (range_names(f"{kind}-{number}", count) for kind in ("requests", "offer_index"))
    if not {*merged, f"repair-{number}"} <= set(store.committed_parts(AUDIT)):
        context.compute(AUDIT, choose_halo, halo, number=number)
        context.compute(AUDIT, index_exchange, requests, kind=f"halo-{number}")
        for wave in halo_waves(context, sum_fact(store, AUDIT, halo, "rows")):
            compare_wave(context, number, should_compare_home_pairs, wave, offers[slice(*wave)])
        context.compute(AUDIT, index_exchange, offered, kind=f"offers-{number}")
        context.compute(AUDIT, merge_offers, merged, number=number)
        context.compute(AUDIT, sum_repair_facts, [f"repair-{number}"], number=number)
    discard_committed(store, {*halo, *requests, *offers, *offered})
    return store.part_facts(AUDIT, f"repair-{number}")


def discard_committed(store: Run, names: set[str]) -> None:
    """Discard those of some parts that are committed."""
    store.delete_parts(AUDIT, sorted(names & set(store.committed_parts(AUDIT))))


def halo_waves(context: Context, sent_rows: int) -> list[tuple[int, int]]:
    """Cut the cells into waves, so that what is sent to those of one is at most about as much as all home rows."""
    geometry, config = context.geometry, context.config
    rows = CellTable(context.run).rows
    waves = repair_waves(config, geometry, sent_rows / max(1, rows))
    return split_evenly(CellTable(context.run).cells, waves)


def compare_wave(
    context: Context, number: int, should_compare_home_pairs: bool, wave: tuple[int, int], offers: list[str]
) -> None:
    """Compare pairs in a wave of cells, with the rows that other cells send, which are removed then."""
    store, count, (sent_kind, index_kind) = context.run, CellTable(context.run).cells, sent_kinds(number, wave)
    sent_names, index_names = part_names(sent_kind, count), range_names(index_kind, count)
    if not set(offers) <= set(store.committed_parts(AUDIT)):
        context.compute(AUDIT, write_sent_rows, sent_names, number=number, wave=wave)
        context.compute(AUDIT, index_exchange, index_names, kind=sent_kind)
        context.compute(
            AUDIT, offer_pairs, offers, number=number, should_compare_home_pairs=should_compare_home_pairs, wave=wave
        )
    discard_committed(store, {*sent_names, *index_names})


def sum_repair_facts(job: Job, part: str, number: int) -> None:
    """Add up the facts of a repair, before the parts that hold them are removed."""
    cells = CellTable(job.run).cells
    facts = {"left_out": "halo", "pairs": "offers", "gained": "lists"}
    with job.run.part(AUDIT, part) as out:
        out.attributes |= {
            fact: sum_fact(job.run, AUDIT, part_names(f"{name}-{number}", cells), fact) for fact, name in facts.items()
        }


def repair_steps(geometry: Geometry, config: Config) -> tuple[Step, ...]:
    """Return the steps of one repair."""
    cells, senders = geometry.cells, senders_of(geometry.cells)
    waves = mean_repair_waves(config, geometry, SENT_ROWS)
    (index_parts, index_spans), (parts, spans) = received_requests(cells), cell_pieces(geometry, geometry.rows / cells)
    spans *= 3 if geometry.is_sparse else 1
    return (
        Step(cells, 3, 3),
        *[indexed(cells)] * (2 + math.ceil(waves)),
        Step(cells * waves, parts + index_parts + senders + 3, spans + index_spans + senders + 4, 0, waves),
        Step(cells, parts + index_parts + senders + 4, spans + index_spans + 2 * senders + 6, 0, waves),
        Step(cells, index_parts + senders + 3, index_spans + 2 * senders + 4),
        Step(1, 3 * cells),
    )
