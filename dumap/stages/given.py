"""Neighbours that are given instead of searched: cells are ranges of rows, and lists are taken as they are."""

from __future__ import annotations

import numpy as np

from dumap.artifacts.cells import Table, kept_positions
from dumap.artifacts.job import Job
from dumap.artifacts.neighbors import write_lists
from dumap.artifacts.parts import CELLS, NEIGHBORS, VECTORS, number_of
from dumap.artifacts.vectors import left_out
from dumap.errors import InputError
from dumap.kernels import neighbors, vectors
from dumap.stages.fingerprints import fold_lists


def read_lists(job: Job, part: str) -> None:
    """Fingerprint a range of the lists that are given."""
    with job.run.part(VECTORS, part) as out:
        out.attributes["fingerprint"] = fold_lists(job, number_of(part))


def keep_order(job: Job, part: str) -> None:
    """Give each row of a block the cell of its range, where neighbours are given."""
    block = number_of(part)
    home = np.arange(*job.geometry.block(block)) // job.geometry.cell_rows
    home[left_out(job, block)] = -1
    with job.run.part(CELLS, part) as out:
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
    with store.part(CELLS, part) as out:
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


ALLOWED = {
    neighbors.OUTSIDE: "allowed are the input's rows, from 0 to {last}, and -1 where a neighbor is missing",
    neighbors.REPEATED: "a second time: a row may name each neighbor once",
    neighbors.DISTANCE: "allowed are numbers from 0 to 3.4e38; a missing neighbor has -1 in 'indices'",
}
"""What a given graph may hold instead of what is found."""


def given_lists(job: Job, own: np.ndarray, start: int) -> tuple[np.ndarray, np.ndarray]:
    """Read and check the lists that are given for the input's rows from `start` on; those of rows left out are void.

    Parameters
    ----------
    job : Job
    own : ndarray of int64, shape (n,)
        The rows' positions, -1 for those left out.
    start : int

    Returns
    -------
    ids : ndarray of int64, shape (n, columns)
        Rows of the input, -1 where there is none; self excluded.
    distances : ndarray of float32, shape (n, columns)

    Raises
    ------
    InputError
        What is wrong first, by row.
    """
    given, cut = job.precomputed, job.geometry
    indices, raw = given.read(start, start + len(own))
    ids, distances = indices.astype(np.int64), vectors.as_float32(raw)
    if indices.dtype.kind == "u":
        ids[ids < 0] = cut.rows  # too large for int64, and not to be taken for -1
    ids[own < 0] = -1
    fault, row, slot = neighbors.first_fault(ids, distances, start, cut.rows)
    if fault:
        name, found = ("distances", raw) if fault == neighbors.DISTANCE else ("indices", indices)
        raise InputError(
            f"{given.path}, array {name!r}, row {start + row}, column {slot}: holds {found[row, slot]}; "
            f"{ALLOWED[fault].format(last=cut.rows - 1)}. Correct it, and name another output"
        )
    itself = ids == np.arange(start, start + len(own))[:, None]
    own_settings = job.config.neighbors
    if given.columns <= own_settings.searched and itself.any():
        raise InputError(
            f"{given.path}, array 'indices', row {start + itself.any(axis=1).argmax()}: the row is among its own "
            f"neighbors, so that {given.columns} columns hold {given.columns - 1} others, too few for "
            f"neighbors.{own_settings.widest} = {own_settings.searched + 1}, which are the row itself and "
            f"{own_settings.searched} others: set it to at most {given.columns}, and name another output"
        )
    ids[itself] = -1
    return ids, distances


def take_cell(job: Job, part: str) -> None:
    """Take the lists of one range of rows from the graph that is given, the nearest first."""
    table, cell = Table(job.run), number_of(part)
    shape = (int(table.offsets[cell + 1] - table.offsets[cell]), job.config.neighbors.searched)
    indices, distances = np.full(shape, -1, job.geometry.index_dtype), np.full(shape, np.inf, np.float32)
    for start, stop in job.geometry.lists(cell):
        own = kept_positions(job, table, np.arange(start, stop))
        ids, theirs = given_lists(job, own, start)
        named = kept_positions(job, table, ids).astype(indices.dtype)
        kept = own >= 0
        neighbors.merge(indices, distances, own[kept] - table.offsets[cell], named[kept], theirs[kept], own[kept])
    with job.run.part(NEIGHBORS, part) as out:
        write_lists(out, indices, distances)
