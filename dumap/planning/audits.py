"""The number of audits and repairs that a run may need, and the memory of their tasks.

The stages divide their work by these numbers, so that projections match the work.
"""

from __future__ import annotations

import math

from dumap.config import Config
from dumap.kernels.vectors import ANGULAR_METRICS, EUCLIDEAN_ORDER_METRICS
from dumap.planning.budget import sparse_block_bytes
from dumap.planning.geometry import Geometry
from dumap.store import OBJECT_BYTES

DISTANCE_TILE_BYTES = 32 * 2**20
"""Bytes of the distances that an audit computes at once, and of the rows that are compared."""


SENT_ROWS = 2
"""Rows sent in a repair for each row of the data: an assumption, for disk space only."""
MAX_ASKERS = 64
"""Most cells that ask a mean row of a cell in a repair (assumed): four bytes each."""
WAVE_BYTES = 32 * 2**30
"""Bytes that are sent at once in a repair, or sorted as guests in the search, however few the rows are."""


def max_audits(config: Config) -> int:
    """Return the most audits that a run may make."""
    settings = config.neighbors
    if not config.audit.queries or not settings.recall_target or settings.precomputed is not None:
        return 1
    return settings.max_repairs + 1


def loads_pynndescent(config: Config, stage: str) -> bool:
    """Return whether a worker may have loaded pynndescent by this stage."""
    has_euclidean_order = config.neighbors.metric in EUCLIDEAN_ORDER_METRICS
    return not has_euclidean_order or (stage != "neighbors" and max_audits(config) > 1)


def without_repairs(config: Config) -> Config:
    """Return the configuration of a run whose lists are never repaired."""
    return config.model_copy(update={"neighbors": config.neighbors.model_copy(update={"max_repairs": 0})})


def queries_at_once(config: Config, values_per_row: int) -> int:
    """Return how many queries are compared with a block at once. Rows of many numbers allow fewer queries."""
    return max(16, config.task_memory // 8 // (16 * values_per_row))


def repair_row_bytes(dims: int, k: int, metric: str) -> int:
    """Return the bytes of a row, of a cell or its halo, in a repair of lists of k neighbours."""
    arrays = 2 if metric in ANGULAR_METRICS else 1
    return 4 * dims * arrays + 56 * k + 256


def repair_row_bytes_of(config: Config, geometry: Geometry) -> int:
    """Return the bytes of a row in a repair. A sparse row counts as a mean row of the densest cell."""
    k = config.neighbors.search_k
    if geometry.is_sparse:  # read in pieces, then joined
        return 2 * 8 * max(geometry.entries, geometry.largest_mean_entries) + 72 * k + 320
    return repair_row_bytes(geometry.dims, k, config.neighbors.metric)


def max_repair_rows(config: Config, geometry: Geometry) -> int:
    """Return the most rows, home rows and halo together, that a cell may hold in a repair."""
    return config.task_memory // repair_row_bytes_of(config, geometry)


def sent_row_bytes(config: Config, geometry: Geometry) -> int:
    """Return the bytes of a row that is sent in a repair: its values, its list, and its kth distance."""
    k, index_bytes = config.neighbors.search_k, geometry.index_dtype.itemsize
    return geometry.row_bytes + (k + 1) * index_bytes + 4


def mean_repair_waves(config: Config, geometry: Geometry, sent_rows: float) -> float:
    """Return how often what is sent for pairs fills a wave, if so many rows are sent for each row of the data."""
    home = geometry.rows * geometry.row_bytes
    return max(1.0, sent_rows * geometry.rows * sent_row_bytes(config, geometry) / max(home, WAVE_BYTES))


def repair_waves(config: Config, geometry: Geometry, sent_rows: float) -> int:
    """Return in how many waves of cells pairs are compared, if so many rows are sent for each row of the data."""
    return math.ceil(mean_repair_waves(config, geometry, sent_rows))


def repair_bytes(config: Config, geometry: Geometry) -> int:
    """Return the bytes of the largest task of a repair."""
    k, home_rows = config.neighbors.search_k, geometry.max_home_rows
    n_askers = min(geometry.cells, MAX_ASKERS)
    answer_bytes = n_askers * home_rows * 4 + home_rows * (min(geometry.itemsize, 4) * geometry.dims + k * 16)
    if geometry.is_sparse:
        entries = geometry.largest_home_entries or home_rows * geometry.entries
        answer_bytes = n_askers * home_rows * 4 + home_rows * k * 16 + 24 * entries
    object_bytes, dense_row_bytes = 4 * OBJECT_BYTES, 4 * geometry.source_dims
    repaired_rows = max(max_repair_rows(config, geometry), home_rows)
    return (
        max(min(repaired_rows, geometry.rows) * repair_row_bytes_of(config, geometry), answer_bytes + object_bytes)
        + dense_row_bytes
    )


def audit_bytes(config: Config, geometry: Geometry, queries: int) -> int:
    """Return the bytes of a task that compares queries with a block of rows."""
    batch_queries = min(queries, queries_at_once(config, geometry.values_per_row))
    block_bytes = geometry.block_rows * geometry.dims * (2 * geometry.itemsize + 4)
    if geometry.is_sparse:
        block_bytes = sparse_block_bytes(geometry)
    return (
        block_bytes
        + batch_queries * geometry.values_per_row * 24
        + queries * (config.neighbors.search_k + 15) * 64
        + 5 * DISTANCE_TILE_BYTES
    )
