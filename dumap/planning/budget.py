"""Memory: what a worker holds before any data, what tasks of start and layout take, and checks of workers' memory."""

from __future__ import annotations

import math

from dumap.config import Config, format_bytes
from dumap.errors import BudgetError
from dumap.kernels.axes import MIN_AXES_DIMS
from dumap.kernels.coarse import max_row_edges
from dumap.kernels.pool import POOL_ROWS
from dumap.kernels.projection import PLACES_PER_COLUMN
from dumap.planning.geometry import MAX_EDGES_PER_NEIGHBOR, Geometry, max_shard_rows
from dumap.store import OBJECT_BYTES

MIB = 2**20
BASELINE_BYTES = {
    "spool": 250 * MIB,
    "vectors": 250 * MIB,
    "cells": 270 * MIB,
    "neighbors": 300 * MIB,
    "audit": 320 * MIB,
}
"""Bytes that a worker holds in the first stages before any data: Python, libraries and compiled kernels (measured with
kernels compiled before, rounded up)."""
INTERPRETER_BYTES, PYNNDESCENT_BYTES = 390 * MIB, 160 * MIB
"""Bytes that a worker holds in later stages, with memory that earlier stages did not give back, and bytes that
pynndescent adds, which repairs and many metrics need (measured, rounded up)."""

COMPILER_BYTES, KERNEL_BYTES, MAX_COMPILING_BYTES = 80 * MIB, 16 * MIB, 336 * MIB
"""Bytes that compiling leaves in a process's memory: once, for each kernel, and at most for all kernels (measured,
rounded up)."""
PAUSE_FRACTION = 0.8
"""Share of its memory limit at which a Dask worker stops taking tasks. Plans stay under it."""

MAX_COARSE_ROWS = 32_768
"""Most rows of the coarse graph: a bound on its memory."""


def interpreter_bytes(stage: str, with_pynndescent: bool = True) -> int:
    """Return the bytes that a worker holds in a stage before any data, with pynndescent or without it."""
    return BASELINE_BYTES.get(stage, INTERPRETER_BYTES) + PYNNDESCENT_BYTES * (
        with_pynndescent and stage not in ("spool", "vectors", "cells")
    )


def process_bytes(peak_bytes: int, threads: int, held_bytes: int = INTERPRETER_BYTES) -> int:
    """Return the bytes of a process that runs `threads` tasks at once: those it holds without tasks, plus those of each
    task.
    """
    return held_bytes + threads * (peak_bytes - held_bytes)


def unprojected_bytes(stage: str, held_bytes: int) -> int:
    """Return the bytes that a process held before a stage in excess of the projection, from other work or compiling."""
    return max(0, held_bytes - interpreter_bytes(stage, with_pynndescent=False))


def compiled_bytes(n_kernels: int) -> int:
    """Return the bytes that compiling kernels leaves in a process's memory."""
    return min(MAX_COMPILING_BYTES, COMPILER_BYTES + n_kernels * KERNEL_BYTES) if n_kernels else 0


def check_task(stage: str, task_bytes: int, worker_memory: int, cause: str, advice: str) -> None:
    """Refuse a task that takes more memory, beside the interpreter, than the smallest worker may use.

    Parameters
    ----------
    stage : str
    task_bytes, worker_memory : int
        The task's bytes, and the smallest worker's limit; 0 is no limit.
    cause, advice : str
        The cause of the size, and the advice how to reduce it.

    Raises
    ------
    BudgetError
    """
    peak_bytes = interpreter_bytes(stage) + task_bytes
    needed_bytes = math.ceil(peak_bytes / PAUSE_FRACTION)
    if worker_memory and needed_bytes > worker_memory:
        raise BudgetError(
            f"stage {stage}: {cause}, for which a worker takes {format_bytes(peak_bytes)}, but the smallest worker has "
            f"{format_bytes(worker_memory)}, of which {PAUSE_FRACTION:.0%} may be used: give workers --memory-limit "
            f"{math.ceil(needed_bytes / 2**20)}MiB or more, or set {advice}"
        )


def host_layout_bytes(rows: int, edges: int, n_components: int) -> int:
    """Return the bytes of a whole layout in one process: packed edges, and two copies of the state."""
    return 8 * edges + rows * (16 + 4 * n_components * 7) + pool_bytes(n_components) + OBJECT_BYTES


def pool_bytes(n_components: int) -> int:
    """Return the bytes of an epoch's pool."""
    return 16 * n_components * POOL_ROWS


def packed_edge_bytes(shard_rows: int, k: int) -> int:
    """Return the bytes of a shard's edges, packed."""
    return 2 * k * shard_rows * 8


def shard_layout_bytes(shard_rows: int, k: int, n_components: int) -> int:
    """Return the bytes of a shard in a round: packed edges, its rows, and the rows outside that its edges lead to."""
    return packed_edge_bytes(shard_rows, k) + shard_rows * (40 + 4 * n_components * 11)


def round_bytes(config: Config, shard_rows: int) -> tuple[int, int]:
    """Return the bytes of a round's task without shards, and how many shards fit into `task_memory` with them."""
    k, n_components = config.neighbors.graph_k, config.layout.n_components
    base_bytes = int(MAX_EDGES_PER_NEIGHBOR * k * shard_rows) * 40 + pool_bytes(n_components)
    shard_bytes = shard_layout_bytes(shard_rows, k, n_components)
    return base_bytes, max(1, (config.task_memory - base_bytes) // shard_bytes)


def cached_bytes(config: Config, rows: int) -> int:
    """Return the bytes of packed edges that a task of a round may keep: the edges of the largest shard range."""
    shard_rows = min(max_shard_rows(config), rows)
    _, shards_at_once = round_bytes(config, shard_rows)
    return min(shards_at_once, -(-rows // shard_rows)) * packed_edge_bytes(shard_rows, config.neighbors.graph_k)


def page_bytes(shard_rows: int, n_components: int) -> int:
    """Return the bytes of a shard's coordinates, or of its labels."""
    return shard_rows * max(8, 4 * n_components)


def start_bytes(config: Config, rows: int, shard_rows: int) -> int:
    """Return the bytes of the start's largest task: a shard with pages of other shards, or the coarse graph."""
    n_components, n_edges = (
        config.layout.n_components,
        int(MAX_EDGES_PER_NEIGHBOR * config.neighbors.graph_k * shard_rows),
    )
    pages_bytes = min(config.task_memory // 4, -(-rows // shard_rows) * page_bytes(shard_rows, n_components))
    shard_bytes = n_edges * 64 + shard_rows * (32 + 72 * n_components) + pages_bytes
    n_coarse_rows = coarse_rows(rows)
    return max(shard_bytes, config.task_memory // 4 + n_coarse_rows * (max_row_edges(n_coarse_rows) * 40 + 8 * 64))


def coarse_rows(rows: int) -> int:
    """Return about how many rows the coarse graph has."""
    return max(min(rows, 1024), min(rows // 32, MAX_COARSE_ROWS))


def axes_bytes(geometry: Geometry) -> int:
    """Return the bytes that the search for a tree's axes takes; 0 if there are too few dims or rows for axes."""
    return 40 * geometry.dims**2 if geometry.dims >= MIN_AXES_DIMS and geometry.sample_rows >= 4 * geometry.dims else 0


def sparse_block_bytes(geometry: Geometry) -> int:
    """Return the bytes of a block of sparse rows: as it is read and put in order, cast to float32, and hashed."""
    entry_bytes = geometry.block_entries * (3 * geometry.itemsize + 40)
    return entry_bytes + geometry.block_rows * 64 + geometry.source_dims * (2 * PLACES_PER_COLUMN + 8)


def max_covariance_dims(config: Config) -> int:
    """Return the most dims for which principal axes come from a matrix of dims x dims."""
    return max(64, math.isqrt(config.task_memory // 64))


def pca_bytes(config: Config, geometry: Geometry) -> int:
    """Return the bytes that a start by PCA takes: for the sample and its matrix, or for a block of rows."""
    if config.start.init != "pca":
        return 0
    sample_bytes, max_dims = geometry.sample_rows * geometry.dims * 4, max_covariance_dims(config)
    uses_row_products = geometry.dims > max_dims
    matrix_rows, centred_rows = (
        (min(geometry.sample_rows, max_dims // 8), geometry.sample_rows) if uses_row_products else (geometry.dims, 4096)
    )
    solver_bytes = (
        32 * matrix_rows**2
        + min(matrix_rows if uses_row_products else centred_rows, geometry.sample_rows) * geometry.dims * 8
    )
    itemsize, sparse_bytes = (4, sparse_block_bytes(geometry)) if geometry.is_sparse else (geometry.itemsize, 0)
    return max(
        2 * sample_bytes + solver_bytes, geometry.block_rows * geometry.dims * (2 * itemsize + 12) + sparse_bytes
    )


def tally_row_bytes(config: Config) -> int:
    """Return the bytes of a row while duplicates are counted: three copies of its key, and ids (measured)."""
    return 60 + 24 * (2 if config.input.unique else 1)


def tally_buckets(config: Config, rows: int) -> int:
    """Return the number of buckets into which hashes are divided to find equal rows."""
    return math.ceil(rows * tally_row_bytes(config) / config.task_memory)


def max_task_bytes(worker_memory: int) -> int:
    """Return the bytes that a task may use on a worker with this memory limit."""
    return int(worker_memory * PAUSE_FRACTION) - interpreter_bytes("layout")


def runs_on_one_host(config: Config, rows: int, edges: int, worker_memory: int) -> bool:
    """Return whether the layout runs in one process, which must hold all of it. Otherwise it runs in rounds."""
    if config.layout.mode != "auto" or config.layout.exchange_every > 1:
        return config.layout.mode == "host"
    whole_bytes = host_layout_bytes(rows, edges, config.layout.n_components)
    return whole_bytes <= max(config.task_memory, max_task_bytes(worker_memory))


def layout_bytes(config: Config, rows: int, edges: int, worker_memory: int) -> int:
    """Return the bytes that a task of the layout takes."""
    if runs_on_one_host(config, rows, edges, worker_memory):
        return host_layout_bytes(rows, edges, config.layout.n_components)
    shard_rows = min(max_shard_rows(config), rows)
    base_bytes, shards_at_once = round_bytes(config, shard_rows)
    shard_bytes = shard_layout_bytes(shard_rows, config.neighbors.graph_k, config.layout.n_components)
    return base_bytes + min(shards_at_once, -(-rows // shard_rows)) * shard_bytes
