"""start: the first coordinates of every row, by position."""

from __future__ import annotations

import numpy as np

from dumap.errors import ConfigError
from dumap.kernels import hashing, start, vectors
from dumap.plan import coarse_rows
from dumap.stages import Context, Job, numbered
from dumap.stages.cells import Table
from dumap.stages.graph import Graph
from dumap.stages.vectors import as_float32, drawn
from dumap.store import read_array

STAGE = "start"
PART = "coordinates"
SMOOTHINGS = 8


def shard_arrays(shards: int) -> list[str]:
    """Name the arrays that hold the shards' coordinates."""
    return numbered("y", shards)


def _labels(job: Job, graph: Graph) -> tuple[np.ndarray, int, int]:
    """Spread labels from hashed seeds until nothing changes; components without a seed then get their own."""
    rows = graph.shards.rows
    wanted = coarse_rows(rows)
    limit = np.uint64(min(2**64 - 1, int(wanted / rows * 2**64)))
    labels = np.full(rows, -1, np.int64)
    for first in range(0, rows, 1 << 20):
        ids = np.arange(first, min(rows, first + (1 << 20)))
        labels[ids[hashing.draws(job.config.seed, hashing.SEEDS, ids) <= limit]] = 0
    seeds = np.flatnonzero(labels == 0)
    labels[seeds] = np.arange(len(seeds))
    count, rounds, after = len(seeds), 0, np.empty_like(labels)
    while True:
        rounds += 1
        new = 0
        for shard in range(len(graph.shards)):
            new += start.spread(*graph.read(shard), graph.shards.span(shard)[0], labels, after)
        labels, after = after, labels
        if new:
            job.tick(rounds, rounds + 1)
            continue
        if (labels >= 0).all():
            return labels, count, rounds
        lowest = [
            start.lowest_of_all(*graph.read(shard)[:2], graph.shards.span(shard)[0], labels, job.config.seed)
            for shard in range(len(graph.shards))
        ]
        chosen = np.concatenate(lowest)
        labels[chosen] = count + np.arange(len(chosen))
        count += len(chosen)


def spectral_start(job: Job, graph: Graph) -> tuple[np.ndarray, dict]:
    """Place rows by the eigenvectors of the coarsened graph."""
    rows, n_components = graph.shards.rows, job.config.layout.n_components
    isolated = np.concatenate([graph.isolated(shard) for shard in range(len(graph.shards))])
    labels, count, rounds = _labels(job, graph)
    pairs, sums = np.empty(0, np.int64), np.empty(0, np.int64)
    for shard in range(len(graph.shards)):
        first, _ = graph.shards.span(shard)
        more = start.coarse_edges(*graph.read(shard), first, labels, count)
        pairs, sums = start.add_pairs(np.concatenate([pairs, more[0]]), np.concatenate([sums, more[1]]))
    alone = np.zeros(count, bool)
    alone[labels[isolated]] = True
    kept = np.flatnonzero(~alone)
    renumber = np.cumsum(~alone) - 1
    coarse = np.zeros((count, n_components))
    components, residual = 0, 0.0
    if len(kept):
        pairs = renumber[pairs // count] * len(kept) + renumber[pairs % count]
        sizes = np.bincount(labels, minlength=count)[kept]
        coarse[kept], components, residual = start.spectral(pairs, sums, sizes, n_components, job.config.seed)
    y, after = coarse[labels], np.empty((rows, n_components))
    for _ in range(SMOOTHINGS):
        for shard in range(len(graph.shards)):
            start.smooth(*graph.read(shard), graph.shards.span(shard)[0], y, after)
        y, after = after, y
    facts = {"coarse_rows": len(kept), "components": components, "residual": residual, "label_rounds": rounds}
    ids = np.arange(rows)
    connected = np.ones(rows, bool)
    connected[isolated] = False
    out = start.random_box(job.config.seed, ids, n_components).astype(np.float32)
    if connected.any():
        out[connected] = start.into_box(y[connected], job.config.seed, ids[connected])
    return out, facts


def _each_block(job: Job, table: Table):  # type: ignore[no-untyped-def]
    for block in range(job.geometry.blocks):
        positions = table.positions(job.run, block)
        yield job.geometry.block(block), positions, positions >= 0


def pca_start(job: Job, graph: Graph) -> tuple[np.ndarray, dict]:
    """Place rows by the principal axes of the sample."""
    table, metric = Table(job.run), job.config.neighbors.metric
    sample = drawn(job)
    mean, axes = start.principal_axes(vectors.partition_space(sample, metric), job.config.layout.n_components)
    y = np.empty((table.rows, job.config.layout.n_components))
    for (low, high), positions, kept in _each_block(job, table):
        x = vectors.partition_space(as_float32(job.input.read(low, high)), metric)
        placed = np.empty((len(x), y.shape[1]))
        start.project(x, mean, axes, placed)
        y[positions[kept]] = placed[kept]
    return start.into_box(y, job.config.seed, np.arange(len(y))), {"sample_rows": len(sample)}


def given_start(job: Job, graph: Graph) -> tuple[np.ndarray, dict]:
    """Place rows where the user's array says."""
    table, wanted = Table(job.run), (job.geometry.rows, job.config.layout.n_components)
    given = read_array(job.config.start.init)
    real = given.dtype.kind in "fiub" and given.shape == wanted
    if not real or not (np.abs(given.astype(np.float64)) < 1e300).all():
        raise ConfigError(
            f"start.init = {job.config.start.init!r}: the array has shape {given.shape} and dtype {given.dtype}; it "
            f"must have shape {wanted} and finite real values"
        )
    y = np.empty((table.rows, wanted[1]))
    for (low, high), positions, kept in _each_block(job, table):
        y[positions[kept]] = given[low:high][kept]
    return start.into_box(y, job.config.seed, np.arange(len(y))), {}


def random_start(job: Job, graph: Graph) -> tuple[np.ndarray, dict]:
    """Place rows evenly in the box."""
    ids = np.arange(graph.shards.rows)
    return start.random_box(job.config.seed, ids, job.config.layout.n_components).astype(np.float32), {}


def place(job: Job, part: str) -> None:
    """Write the first coordinates, an array a shard."""
    graph = Graph(job.run, job.geometry.shard_rows)
    ways = {"spectral": spectral_start, "pca": pca_start, "random": random_start}
    y, facts = ways.get(job.config.start.init, given_start)(job, graph)
    with job.run.part(STAGE, part) as out:
        for shard, name in enumerate(shard_arrays(len(graph.shards))):
            first, stop = graph.shards.span(shard)
            out.write(name, y[first:stop])
        out.attributes |= facts


def run(context: Context) -> dict:
    """Place every row; return how."""
    context.compute(STAGE, place, [PART])
    return {"init": context.config.start.init, **context.run.summary(STAGE, PART)}
