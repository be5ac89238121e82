"""Functions that the layout on one host, the layout in rounds and the start's coarse layout share."""

from __future__ import annotations

import numpy as np

from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.artifacts.layout import LAYOUT_END
from dumap.artifacts.part_names import LAYOUT
from dumap.errors import ConfigError
from dumap.kernels.edges import Edges, pack_edges
from dumap.kernels.layout import LayoutParameters
from dumap.planning.curve import curve_parameters
from dumap.store import Checkpoints

SENT_ROWS_PER_RANGE = 512
"""Rows that are read at once of those that a range of shards sends to others."""


def layout_parameters(job: Job) -> LayoutParameters:
    """Return the parameters of the layout, which are the same for all epochs."""
    settings = job.config.layout
    return LayoutParameters(
        *curve_parameters(settings),
        settings.learning_rate,
        settings.repulsion_strength,
        settings.negative_sample_rate,
        job.geometry.n_epochs,
        job.config.layout_seed,
    )


def require_finite(job: Job, y: np.ndarray, where: str) -> None:
    """Raise a ConfigError if coordinates are infinite or NaN."""
    if not np.isfinite(y).all():
        settings = job.config.layout.model_dump(include={"learning_rate", "spread", "a", "b", "repulsion_strength"})
        raise ConfigError(
            f"{where} coordinates are not finite; some of "
            f"{', '.join(f'layout.{name} = {value}' for name, value in settings.items())} are too large"
        )


def write_state(
    job: Job,
    part: str,
    y: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    is_durable: bool = True,
    sent_arrays: dict[str, np.ndarray] | None = None,
) -> None:
    """Commit the state of a range of shards; if `is_durable`, so that it survives a power cut.

    With `sent_arrays`, also copies of rows for other tasks, which each read a few.
    """
    require_finite(job, y, f"layout: after epoch {Checkpoints.parse_piece_name(part)[0]}")
    with job.run.part(LAYOUT, part, is_durable) as out:
        out.attributes["durable"] = is_durable
        for name, values in (("y", y), ("m", m), ("v", v)):
            out.write(name, values)
        for name, values in (sent_arrays or {}).items():
            out.write(name, values, SENT_ROWS_PER_RANGE)


def pack_shards(job: Job, graph: Graph, first: int, last: int) -> Edges:
    """Read and pack the edges of shards [first, last). One shard at a time is read into the arrays of all."""
    greatest, offsets = graph.greatest_weight, graph.shards.offsets
    low, rows = int(offsets[first]), int(offsets[last] - offsets[first])
    room = graph.count_edges(first, last)
    indptr, tails = np.zeros(rows + 1, np.int64), np.empty(room, f"u{job.geometry.index_dtype.itemsize}")
    relative_weights, sample_phases, packed_count = np.empty(room, np.uint16), np.empty(room, np.uint16), 0
    for shard in range(first, last):
        start, stop = graph.shards.row_range(shard)
        piece = pack_edges(
            *graph.read(shard), start, greatest, job.geometry.n_epochs, job.config.layout_seed, graph.shards.rows
        )
        indptr[start - low + 1 : stop - low + 1] = packed_count + piece.indptr[1:]
        after = packed_count + len(piece.tails)
        tails[packed_count:after], relative_weights[packed_count:after], sample_phases[packed_count:after] = piece[1:]
        packed_count = after
    return Edges(indptr, tails[:packed_count], relative_weights[:packed_count], sample_phases[:packed_count])


def ends_interval(job: Job, epoch: int, steps: int = 1) -> bool:
    """Return whether an interval of `layout.checkpoint_every` epochs, or the layout, ends in the last `steps` epochs up
    to `epoch`.
    """
    every = job.config.layout.checkpoint_every
    return epoch // every > (epoch - steps) // every or epoch == job.geometry.n_epochs


def commit_end(job: Job, epoch: int) -> None:
    """Commit that the layout ended after `epoch` epochs."""
    with job.run.part(LAYOUT, LAYOUT_END) as out:
        out.attributes["epoch"] = epoch
