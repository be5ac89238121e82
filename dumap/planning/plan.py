"""Project what a run will take, before it takes it.

Pure arithmetic: the cut of a data set and the configuration in, bytes out. Every stage cuts its work by the same
numbers, so that what is projected is what is done.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any

from dumap.config import Config, format_bytes
from dumap.errors import BudgetError
from dumap.kernels.leaves import COLUMN_BYTES, EXACT_ROWS
from dumap.kernels.neighbors import DIM_SECONDS, PAIR_SECONDS, exact_rows
from dumap.kernels.vectors import ANGULAR, BY_PRODUCT
from dumap.planning.budget import (
    PAUSE_FRACTION,
    axes_bytes,
    host_layout_bytes,
    interpreter_bytes,
    pool_bytes,
    principal_bytes,
    process_bytes,
    round_bytes,
    shard_layout_bytes,
    start_bytes,
)
from dumap.planning.geometry import (
    EDGE_BYTES,
    GUEST_BYTES,
    LIST_BYTES,
    SHARD_EDGES,
    SLOT_BYTES,
    Geometry,
    cell_row_bytes,
    shard_rows_of,
)
from dumap.store import OBJECT_BYTES

TILE_BYTES = 32 * 2**20
"""Bytes of the distances that an audit computes at once, and of the rows it computes them to."""
PASSES = 14
"""Passes of the start over the graph: 8 that smooth, and those in which labels spread (assumed; they grow slowly)."""
ALL_SECONDS, SEARCH_SECONDS, FEWEST_DIMS, EPOCH_SECONDS = 3.0, 4e-7, 50, 6e-8
"""What a run takes of one core: of any rows, of each row and dim, as if there were so many more of them, and of each
row, epoch and neighbor (measured; threads wait for one another in small stages, which is not counted)."""
HALO = 2
"""Rows that repairs send for each row: assumed for the disk; what memory holds is counted, not assumed."""


@dataclass(frozen=True)
class StagePlan:
    """What one stage is projected to take.

    Attributes
    ----------
    name : str
    tasks : int
    shuffled_bytes, disk_bytes, peak_bytes : int
        Bytes moved between tasks, bytes left on disk, and a worker's peak memory.
    """

    name: str
    tasks: int
    shuffled_bytes: int
    disk_bytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Plan:
    """A run's geometry, its stages, and about how long one core would take for all of them, compiling not counted."""

    geometry: Geometry
    stages: tuple[StagePlan, ...]
    core_seconds: float = 0.0

    @property
    def peak_bytes(self) -> int:
        """The greatest peak of all stages."""
        return max(stage.peak_bytes for stage in self.stages)

    @property
    def disk_bytes(self) -> int:
        """What all stages leave on disk."""
        return sum(stage.disk_bytes for stage in self.stages)

    def stage(self, name: str) -> StagePlan:
        """Return a stage's plan."""
        return next(stage for stage in self.stages if stage.name == name)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as plain values."""
        return {
            **asdict(self.geometry),
            "peak_bytes": self.peak_bytes,
            "disk_bytes": self.disk_bytes,
            "core_seconds": round(self.core_seconds, 1),
            "stages": [asdict(stage) for stage in self.stages],
        }

    def check(self, worker_memory: int, free_disk: int | None, threads: int = 1, held: int = 0) -> None:
        """Refuse what does not fit; say the number that would.

        Parameters
        ----------
        worker_memory : int
            The smallest worker's limit, as of one with a single thread; 0 for none.
        free_disk : int or None
            Bytes free where the output lies, where that is known.
        threads : int
            Threads of a worker, of which each needs a task's memory, and all one interpreter's.
        held : int
            Bytes of the run that lie there already.
        """
        need = math.ceil(self.peak_bytes / PAUSE_FRACTION)
        if worker_memory and need > worker_memory:
            stage = max(self.stages, key=lambda s: s.peak_bytes)
            limit = math.ceil(process_bytes(self.peak_bytes, threads) / PAUSE_FRACTION / 2**20)
            raise BudgetError(
                f"stage {stage.name} is projected to peak at {format_bytes(stage.peak_bytes)} a worker, but the "
                f"smallest worker has {format_bytes(worker_memory)}, of which {PAUSE_FRACTION:.0%} may be used: give "
                f"workers --memory-limit {limit}MiB or more" + f", for {threads} threads each" * (threads > 1)
            )
        left = self.disk_bytes - held
        if free_disk is not None and left > free_disk:
            what, instead = (
                ("what is left of the run", "what is committed is kept")
                if held
                else ("the run", "or name another output")
            )
            raise BudgetError(
                f"{what} is projected to write {format_bytes(left)}, but the output has "
                f"{format_bytes(free_disk)} free: make room, {instead}"
            )


def audits(config: Config) -> int:
    """Return how often lists are audited at the most, on rows of their own each time."""
    own = config.neighbors
    if not config.quality.queries or not own.recall_target or own.precomputed is not None:
        return 1
    return own.max_repairs + 1


def needs_metric(config: Config, stage: str) -> bool:
    """Tell whether a worker may hold pynndescent's distances by a stage."""
    product = config.neighbors.metric in BY_PRODUCT
    return not product or (stage != "neighbors" and audits(config) > 1)


def without_repairs(config: Config) -> Config:
    """Return the configuration of a run whose lists are never repaired."""
    return config.model_copy(update={"neighbors": config.neighbors.model_copy(update={"max_repairs": 0})})


def queries_at_once(config: Config, dims: int) -> int:
    """Return how many queries of the audit are compared with a block at once, so that few of many dims are held."""
    return max(16, config.task_memory // 8 // (16 * dims))


def repair_row_bytes(dims: int, k: int, metric: str) -> int:
    """Return the bytes that a row of a cell, or of its halo, takes while lists of k others are repaired."""
    copies = 2 if metric in ANGULAR else 1
    return 4 * dims * copies + 56 * k + 256


def universe_rows(config: Config, cut: Geometry) -> int:
    """Return how many rows, of its own and others', a cell may hold while its lists are repaired."""
    return config.task_memory // repair_row_bytes(cut.dims, config.neighbors.searched, config.neighbors.metric)


def repair_bytes(config: Config, cut: Geometry) -> int:
    """Return the bytes that a task of a repair takes: as many rows as may be, or a cell that has more of its own."""
    k, metric, own = config.neighbors.searched, config.neighbors.metric, min(cut.cell_rows, cut.rows)
    asked = cut.cells * own * 4 + own * (min(cut.itemsize, 4) * cut.dims + k * 16)  # by every cell, for every row
    objects, table = 4 * OBJECT_BYTES, cut.cells**2 * 16
    rows = max(universe_rows(config, cut), own)
    return max(min(rows, cut.rows) * repair_row_bytes(cut.dims, k, metric), asked + objects) + table


def audit_bytes(config: Config, cut: Geometry, queries: int) -> int:
    """Return the bytes of a task that compares so many queries with a block."""
    at_once = min(queries, queries_at_once(config, cut.dims))
    block = cut.block_rows * cut.dims * (2 * cut.itemsize + 4)
    return block + at_once * cut.dims * 16 + queries * (config.neighbors.searched + 15) * 64 + 5 * TILE_BYTES


def audit_plan(config: Config, cut: Geometry) -> tuple[int, tuple[int, int, int]]:
    """Project the audit with all the repairs that it may come to: bytes of a task; tasks, bytes shuffled, on disk."""
    k, index, rows = config.neighbors.searched, cut.index_dtype.itemsize, cut.rows
    queries, times = min(config.quality.queries, rows), audits(config)
    peak = audit_bytes(config, cut, queries)
    repairs = times - 1
    if repairs:
        peak = max(peak, repair_bytes(config, cut))
    halo = HALO * rows * (cut.dims * min(cut.itemsize, 4) + k * (index + 1) + 4)  # of one repair at a time
    offers, lists = (HALO + 1) * rows * k * (index + 4), rows * k * (index + 5)
    found = queries * (cut.blocks + 1) * (max(k, 15) * 12 + k * 4) + queries * (cut.dims * 4 + 8 * k + 24)
    tasks = times * (cut.blocks + 3) + repairs * (4 * cut.cells + 2)
    shuffled = times * rows * cut.dims * cut.itemsize + repairs * (halo + offers)
    return peak, (tasks, shuffled, times * found + repairs * lists + (halo + offers if repairs else 0))


def tally_row_bytes(config: Config) -> int:
    """Return the bytes a row takes while copies are counted: keys of one word or two, thrice, and ids (measured)."""
    return 60 + 24 * (2 if config.input.unique else 1)


def tally_buckets(config: Config, rows: int) -> int:
    """Return the buckets of hashes in which equal rows are looked for."""
    return math.ceil(rows * tally_row_bytes(config) / config.task_memory)


def make_plan(config: Config, cut: Geometry, worker_memory: int = 0) -> Plan:
    """Project every stage.

    Parameters
    ----------
    config : Config
    cut : Geometry
    worker_memory : int
        The smallest worker's limit, where it is known: the layout runs in one process where that may hold it.
    """
    k, listed, n_components = config.neighbors.others, config.neighbors.searched, config.layout.n_components
    rows, index = cut.rows, cut.index_dtype.itemsize
    copies = min(config.cells.max_copies, cut.cells)
    vector_bytes, list_bytes = rows * cut.dims * cut.itemsize, listed * (index + 4)
    sorted_bytes, wide = rows * cut.dims * min(cut.itemsize, 4), cut.itemsize > 4
    edges, state = 2 * k * rows, rows * 4 * n_components * 3
    block = cut.block_rows * cut.dims
    shard_rows, cell_rows = min(cut.shard_rows, rows), min(cut.cell_rows, rows)
    tables = cut.blocks * (cut.cells + 1) * 40 + cut.cells**2 * 16
    sample, queries = cut.sample_rows * cut.dims * 4, min(config.quality.queries, rows)
    drawn = min(audits(config) * queries, rows) * cut.dims * 4
    audit_peak, audit_work = audit_plan(config, cut)
    lists_of_cells = (cut.blocks + cut.cells) * 48
    unique, buckets = config.input.unique, tally_buckets(config, rows)
    peaks = {
        "vectors": max(
            block * (2 * cut.itemsize + 8) + sample + min(drawn, 4 * block),
            -(-rows // buckets) * tally_row_bytes(config),
        ),
        "cells": max(
            block * (2 * cut.itemsize + 12)
            + cut.block_rows * 64
            + min(4 * OBJECT_BYTES, copies * block * cut.itemsize),
            sample * (5 if config.neighbors.metric == "correlation" else 4) + axes_bytes(cut),
            tables,
        ),
        "neighbors": cell_rows * max(cell_row_bytes(cut.dims, listed, config.neighbors.metric), list_bytes * 4)
        + min(cell_rows, EXACT_ROWS) * cut.dims
        + cell_rows * (GUEST_BYTES + 2 * list_bytes) * (cut.cells > 1)  # guests of other turns, and what they found
        + 2 * COLUMN_BYTES
        + lists_of_cells,
        "audit": audit_peak,
        "graph": max(
            int(shard_rows * (k * SHARD_EDGES * EDGE_BYTES + (listed - k) * 16)),
            rows * (index + 2) + 2 * k * shard_rows * index,
        ),
        "start": max(start_bytes(config, rows, shard_rows), principal_bytes(config, cut)),
        "layout": layout_bytes(config, rows, edges, worker_memory),
        "embedding": cut.output_rows * (64 + 16 * n_components) + lists_of_cells,
        "quality": audit_bytes(config, cut, queries),
    }
    work = {  # tasks, bytes shuffled, bytes on disk
        "vectors": (
            (cut.blocks + buckets) * (1 + wide) + cut.blocks * unique + wide,
            rows * 8 * (1 + unique + 2 * wide),
            rows * (9 + unique * (16 + 3 * index) + 16 * wide) + (sample + drawn) * (1 + wide),
        ),
        "cells": (3 * cut.blocks + 4, copies * sorted_bytes, copies * (sorted_bytes + rows * 32) + rows * 52),
        "neighbors": (
            3 * cut.cells,
            (copies + 1) * rows * list_bytes,
            (copies + 1) * rows * list_bytes + rows * (listed * (index + 8) + 8),
        ),
        "audit": audit_work,
        "graph": (
            3 * cut.shards + 2 + unique * cut.blocks,
            rows * k * (2 * index + 4),
            rows * (k * (2 * index + 8) + unique * (8 + index)) + edges * (index + 4),
        ),
        "start": (PASSES * cut.shards, PASSES * edges * (index + 4), edges * 8 + rows * 12 * n_components),
        "layout": layout_work(config, cut, edges, worker_memory),
        "embedding": (cut.outputs, state // 3, rows * (4 * n_components + 1)),
        "quality": (2 * cut.blocks + 3, 2 * vector_bytes, queries * 15 * 16 + 300 * 15 * 12 * cut.blocks),
    }
    if cut.columns:
        adapt(config, cut, peaks, work)
    held = {name: interpreter_bytes(name, needs_metric(config, name)) for name in peaks}
    stages = (StagePlan(name, *work[name], held[name] + math.ceil(peak)) for name, peak in peaks.items())
    return Plan(cut, tuple(stages), core_seconds(config, cut))


def core_seconds(config: Config, cut: Geometry) -> float:
    """Estimate how long one core takes for a run: with what stages took of each row on one of 2026 (measured)."""
    k, rows, metric = config.neighbors.n_neighbors, cut.rows, config.neighbors.metric
    search = rows * (cut.dims + FEWEST_DIMS) * SEARCH_SECONDS
    if cut.columns:
        search = 0.0
    elif metric not in BY_PRODUCT:  # each pair by the metric's own function
        search += rows * min(rows, exact_rows(cut.dims)) * (PAIR_SECONDS + DIM_SECONDS * cut.dims)
    return ALL_SECONDS + search + rows * cut.n_epochs * k * EPOCH_SECONDS


def adapt(config: Config, cut: Geometry, peaks: dict[str, int], work: dict[str, tuple[int, int, int]]) -> None:
    """Project what is otherwise where neighbours are given: nothing is searched, and no vectors are sorted."""
    k, rows, index = config.neighbors.searched, cut.rows, cut.index_dtype.itemsize
    tables = cut.blocks * cut.cells * 8
    chunks = min(config.task_memory // 2, rows * cut.columns * 32)  # two at each end of what is read, decoded twice
    read = chunks + cut.list_rows * cut.columns * SLOT_BYTES
    peaks["vectors"] = max(peaks["vectors"], read)
    peaks["cells"] = cut.block_rows * 64 + rows * 16 + tables * 2
    peaks["neighbors"] = read + min(cut.cell_rows, rows) * k * LIST_BYTES + (cut.blocks + cut.cells) * 48
    work["vectors"] = (work["vectors"][0] + cut.cells, *work["vectors"][1:])
    work["cells"] = (cut.blocks + 1, rows, rows * 4 + tables)
    work["neighbors"] = (cut.cells, 0, rows * k * (index + 4))


def task_bytes(worker_memory: int) -> int:
    """Return the bytes that a task may use on a worker of that limit."""
    return int(worker_memory * PAUSE_FRACTION) - interpreter_bytes("layout")


def runs_on_one_host(config: Config, rows: int, edges: int, worker_memory: int) -> bool:
    """Tell whether the layout runs in one process, which must hold all of it, rather than in rounds."""
    if config.layout.mode != "auto" or config.layout.exchange_every > 1:
        return config.layout.mode == "host"
    whole = host_layout_bytes(rows, edges, config.layout.n_components)
    return whole <= max(config.task_memory, task_bytes(worker_memory))


def layout_work(config: Config, cut: Geometry, edges: int, worker_memory: int) -> tuple[int, int, int]:
    """Return the tasks of the layout, and the bytes that it moves and leaves: on one host, or in rounds of units."""
    n_components, rows = config.layout.n_components, cut.rows
    state, kept = rows * 4 * n_components * 3, math.ceil(cut.n_epochs / config.layout.checkpoint_every)
    if runs_on_one_host(config, rows, edges, worker_memory):
        return kept, state * kept, 2 * state
    _, fitting = round_bytes(config, min(cut.shard_rows, rows))
    units, rounds = math.ceil(cut.shards / fitting), math.ceil(cut.n_epochs / config.layout.exchange_every)
    moved = 2 * state + units * pool_bytes(n_components)
    return units * (rounds + 1), rounds * moved + 8 * edges, 2 * state + 8 * edges


def layout_bytes(config: Config, rows: int, edges: int, worker_memory: int) -> int:
    """Return the bytes that a task of the layout takes."""
    if runs_on_one_host(config, rows, edges, worker_memory):
        return host_layout_bytes(rows, edges, config.layout.n_components)
    shard_rows = min(shard_rows_of(config), rows)
    beside, fitting = round_bytes(config, shard_rows)
    one = shard_layout_bytes(shard_rows, config.neighbors.others, config.layout.n_components)
    return beside + min(fitting, -(-rows // shard_rows)) * one


def describe(projected: Plan) -> str:
    """Write a plan for people."""
    cut = projected.geometry
    given = f" given with {cut.columns} neighbors each" if cut.columns else ""
    lines = [
        f"{cut.rows} rows x {cut.dims} dims: {cut.blocks} blocks of {cut.block_rows} rows, {cut.cells} cells of up to "
        f"{cut.cell_rows} rows{given}, {cut.shards} shards of {cut.shard_rows} rows, {cut.n_epochs} epochs",
        f"{'stage':<10} {'tasks':>7} {'shuffled':>10} {'disk':>10} {'peak a worker':>14}",
    ]
    for stage in projected.stages:
        lines.append(
            f"{stage.name:<10} {stage.tasks:>7} {format_bytes(stage.shuffled_bytes):>10} "
            f"{format_bytes(stage.disk_bytes):>10} {format_bytes(stage.peak_bytes):>14}"
        )
    lines.append(
        f"disk {format_bytes(projected.disk_bytes)}; workers of "
        f"{format_bytes(projected.peak_bytes / PAUSE_FRACTION)} or more are needed"
    )
    return "\n".join(lines)
