"""Arithmetic of the audit and of the repairs of lists: how many there are, and what a task of one takes.

The stages cut their work by the same numbers, so that what is projected is what is done.
"""

from __future__ import annotations

from dumap.config import Config
from dumap.kernels.vectors import ANGULAR, EUCLIDEAN_ORDER
from dumap.planning.geometry import Geometry
from dumap.store import OBJECT_BYTES

TILE_BYTES = 32 * 2**20
"""Bytes of the distances that an audit computes at once, and of the rows it computes them to."""


HALO = 2
"""Rows that repairs send for each row: assumed for the disk; what memory holds is counted, not assumed."""


def audits(config: Config) -> int:
    """Return how often lists are audited at the most, on rows of their own each time."""
    own = config.neighbors
    if not config.quality.queries or not own.recall_target or own.precomputed is not None:
        return 1
    return own.max_repairs + 1


def needs_metric(config: Config, stage: str) -> bool:
    """Tell whether a worker may hold pynndescent's distances by a stage."""
    product = config.neighbors.metric in EUCLIDEAN_ORDER
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
    k, metric, own = config.neighbors.searched, config.neighbors.metric, cut.most_home_rows
    asked = cut.cells * own * 4 + own * (min(cut.itemsize, 4) * cut.dims + k * 16)  # by every cell, for every row
    objects, table = 4 * OBJECT_BYTES, cut.cells**2 * 16
    rows = max(universe_rows(config, cut), own)
    return max(min(rows, cut.rows) * repair_row_bytes(cut.dims, k, metric), asked + objects) + table


def audit_bytes(config: Config, cut: Geometry, queries: int) -> int:
    """Return the bytes of a task that compares so many queries with a block."""
    at_once = min(queries, queries_at_once(config, cut.dims))
    block = cut.block_rows * cut.dims * (2 * cut.itemsize + 4)
    return block + at_once * cut.dims * 16 + queries * (config.neighbors.searched + 15) * 64 + 5 * TILE_BYTES
