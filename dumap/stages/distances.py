"""Distances by the metric, for several stages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from dumap.artifacts.job import Job
from dumap.config.metrics import ordered_arguments
from dumap.errors import InputError
from dumap.kernels import neighbors as search
from dumap.kernels import pairs, quality, vectors
from dumap.kernels.exact import ExactSearch
from dumap.kernels.threads import one_thread
from dumap.planning.audits import DISTANCE_TILE_BYTES


def metric_arguments(job: Job) -> dict:
    """Return the metric's arguments, in the order in which the metric takes them."""
    settings = job.config.neighbors
    if settings.metric in vectors.EUCLIDEAN_ORDER_METRICS:
        return {}
    return ordered_arguments(settings.metric, settings.metric_kwds, job.geometry.dims)


@contextmanager
def metric_errors(job: Job) -> Iterator[None]:
    """Raise an InputError that names the metric if the metric is not defined for some rows, such as zero rows.

    Raises
    ------
    InputError
    """
    try:
        yield
    except (ZeroDivisionError, ValueError) as error:
        raise InputError(
            f"{job.config.input.name}: neighbors.metric = {job.config.neighbors.metric} is not defined for some of "
            f"its rows ({error}): take another metric, or leave out rows such as those that are all zero"
        ) from error


def make_exact_search(job: Job, queries: np.ndarray) -> ExactSearch:
    """Return a search for the queries' exact neighbours, for metrics of `EUCLIDEAN_ORDER_METRICS`."""
    metric = job.config.neighbors.metric
    return ExactSearch(vectors.to_euclidean(queries, metric), metric in vectors.ANGULAR_METRICS)


def euclidean_tiles(job: Job, queries: np.ndarray, x: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield slices of rows `x` with the rows after `to_euclidean`: as many as queries are compared with at once."""
    step = max(1, DISTANCE_TILE_BYTES // (8 * max(1, len(queries), x.shape[1])))
    for low in range(0, len(x), step):
        tile = slice(low, min(len(x), low + step))
        with np.errstate(invalid="ignore"):  # rows that are not finite
            mapped = vectors.to_euclidean(x[tile], job.config.neighbors.metric)
        yield tile, mapped


def columns_in_tile(columns: np.ndarray, tile: slice) -> np.ndarray:
    """Return columns of a block as those of a tile, -1 where they are not in it."""
    return np.where((columns >= tile.start) & (columns < tile.stop), columns - tile.start, -1)


def distances_by_tile(job: Job, queries: Any, x: Any) -> Iterator[tuple[slice, np.ndarray]]:
    """Yield slices of rows `x` with the queries' distances to them, float32 (queries, n).

    For metrics of `EUCLIDEAN_ORDER_METRICS` the distances are squared Euclidean distances after `to_euclidean`. Queries
    and rows come from `Job.as_compared`.
    """
    metric = job.config.neighbors.metric
    step = max(1, DISTANCE_TILE_BYTES // (8 * max(1, queries.shape[0], job.geometry.values_per_row)))
    if job.geometry.is_sparse:
        for low in range(0, x.shape[0], step):
            tile = x[low : low + step]
            yield slice(low, low + tile.shape[0]), pairs.squared_distance_matrix(queries, tile, metric)
        return
    if metric in vectors.EUCLIDEAN_ORDER_METRICS:
        queries = vectors.to_euclidean(queries, metric).astype(np.float64)
        for tile, mapped in euclidean_tiles(job, queries, x):
            with one_thread(), np.errstate(invalid="ignore"):
                d = quality.squared_distances(queries, mapped.astype(np.float64), metric in vectors.ANGULAR_METRICS)
            yield tile, d.astype(np.float32)
        return
    for low in range(0, len(x), step):
        rows = x[low : low + step]
        out = np.empty((len(queries), len(rows)), np.float32)
        arguments = tuple(metric_arguments(job).values())
        with metric_errors(job):
            quality.write_metric_distances(queries, rows, search.distance_function(metric), arguments, out)
        yield slice(low, low + len(rows)), out


def find_columns(positions: np.ndarray, listed: np.ndarray) -> np.ndarray:
    """Find the index of each listed position among a block's positions; -1 if the block does not hold it."""
    order = np.argsort(positions)
    columns = order[np.minimum(np.searchsorted(positions, listed, sorter=order), len(positions) - 1)]
    return np.where((positions[columns] == listed) & (listed >= 0), columns, -1)


def fill_distances(out: np.ndarray, columns: np.ndarray, tile: slice, distances: np.ndarray) -> None:
    """Write the distances of those columns that a tile holds."""
    columns = columns_in_tile(columns, tile)
    q, slot = np.nonzero(columns >= 0)
    out[q, slot] = distances[q, columns[q, slot]]
