"""start: the first coordinates of every row, by position.

The spectral start lays out the coarse graph first. Each row begins at the coordinates of its label's coarse row. Passes
over the graph then smooth the coordinates.
"""

from __future__ import annotations

import numpy as np

from dumap.artifacts.cells import CellTable
from dumap.artifacts.coarsen import EDGES, label_checkpoints, labels_reader
from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.artifacts.part_names import (
    CELLS,
    COARSEN,
    GRAPH,
    START,
    VECTORS,
    number_of,
    part_name,
    part_names,
    range_name,
    range_of,
)
from dumap.artifacts.start import BOX, COARSE, smoothing_checkpoints
from dumap.artifacts.vectors import read_sample
from dumap.config import Config
from dumap.errors import ConfigError
from dumap.json_values import replace_nonfinite
from dumap.kernels import coarse, start, vectors
from dumap.planning.budget import max_covariance_dims, pca_bytes, start_bytes
from dumap.planning.geometry import Geometry
from dumap.planning.plan import StageProjection
from dumap.planning.steps import Step
from dumap.stages import Context, Stage, no_backup
from dumap.stages.layout_common import layout_parameters, require_finite
from dumap.stages.passes import GraphPass, pass_ranges, pass_steps
from dumap.store import CHECKPOINT, Checkpoints, ExternalArray

AXES = "axes"
SMOOTHING_PASSES = 8
"""Smoothing passes over the graph."""
MIN_TASK_ROWS = 65_536
"""A task of a start by PCA or by a given array places at least this many rows, in whole blocks."""


def lay_out_coarse_graph(job: Job, part: str) -> None:
    """Embed the coarse graph, then lay it out."""
    pairs, sums, sizes = (job.run.read(COARSEN, EDGES, array) for array in ("pairs", "sums", "sizes"))
    graph = coarse.coarse_matrix(pairs, sums, len(sizes))
    y, components, residual = coarse.spectral_layout(
        graph, sizes, job.config.layout.n_components, job.config.layout_seed
    )
    epochs = job.config.start.coarse_epochs if np.count_nonzero(sizes) < sizes.sum() else 0
    if epochs:
        y = coarse.optimize_coarse_layout(
            coarse.keep_layout_edges(graph, pairs, sums), sizes, y, layout_parameters(job)._replace(n_epochs=epochs)
        )
        require_finite(job, y[sizes > 0], "start: in the coarse layout")
    with job.run.part(START, part) as out:
        out.write("y", y)
        out.attributes |= {
            "coarse_epochs": epochs,
            "components": components,
            "coarse_residual": replace_nonfinite(residual),
        }


def smooth_coordinates(job: Job, part: str, passes: int) -> None:
    """Run one smoothing pass on a shard range. The first pass begins at the coarse coordinates of the rows' labels."""
    graph, checkpoints = Graph(job.run), smoothing_checkpoints(job.run)
    number, begin, end = Checkpoints.parse_piece_name(part)
    if number > 1:
        graph_pass = GraphPass(job, lambda shard: checkpoints.read(number - 1, "y", *graph.shards.row_range(shard)))
    else:
        coarse_y, labels = job.run.read(START, COARSE, "y"), labels_reader(job, graph, passes)
        graph_pass = GraphPass(
            job, lambda shard: start.place_at_labels(labels(shard), coarse_y, job.config.layout_seed)
        )
    coordinates, moments = [], []
    for shard in range(begin, end):
        indptr, tails, weights = graph.read(shard)
        y = graph_pass.read_page(shard)
        sums, totals = np.zeros(y.shape), np.zeros(len(y))
        for page in graph_pass.read_pages(indptr, tails):
            start.add_neighbor_coordinates(indptr, tails, weights, *page, sums, totals)
        moved, shard_moments = start.smooth_coordinates(y, sums, totals)
        coordinates.append(moved)
        moments.append(shard_moments.tolist())
    with job.run.part(START, part) as out:
        out.write("y", np.concatenate(coordinates))
        # by shard, so that the total does not depend on how shards are divided among tasks
        out.attributes |= {"moments": moments, **bounding_box(np.concatenate(coordinates))}


def bounding_box(y: np.ndarray) -> dict[str, list[float]]:
    """Return the least and the greatest coordinates."""
    y = y.astype(np.float64) if len(y) else np.full((1, y.shape[1]), np.nan)
    return {"low": y.min(axis=0).tolist(), "high": y.max(axis=0).tolist()}


def find_bounding_box(job: Job, part: str, pieces: list[str], facts: dict) -> None:
    """Find the bounding box of the coordinates of all parts; write the box with the figures of the start.

    A coarse layout has the size of the map already, so its box is moved and not stretched.
    """
    summaries = [job.run.part_facts(START, piece) for piece in pieces]
    low = np.nanmin(np.array([facts["low"] for facts in summaries], float), axis=0)  # null if a part has no rows
    high = np.nanmax(np.array([facts["high"] for facts in summaries], float), axis=0)
    if facts.get("coarse_epochs"):
        high = low + coarse.BOX_SIDE
    if "moments" in summaries[0]:
        moments = np.concatenate([facts["moments"] for facts in summaries])
        facts = {**facts, "residual": start.eigenvector_residual(moments.sum(axis=0))}
    with job.run.part(START, part) as out:
        out.attributes |= {
            "low": low.tolist(),
            "high": high.tolist(),
            "facts": facts,
        }


def write_coordinates(job: Job, shard: int, first: int, y: np.ndarray) -> None:
    """Write a shard's coordinates, stretched to the box."""
    box = job.run.part_facts(START, BOX)
    with job.run.part(START, part_name("coordinates", shard)) as out:
        out.write(
            "y", start.stretch_to_box(y, np.array(box["low"]), np.array(box["high"]), job.config.layout_seed, first)
        )


def stretch_coordinates(job: Job, part: str) -> None:
    """Stretch a shard's coordinates after the last pass to the box."""
    graph, shard = Graph(job.run), number_of(part)
    span = graph.shards.row_range(shard)
    write_coordinates(job, shard, span[0], smoothing_checkpoints(job.run).read(SMOOTHING_PASSES, "y", *span))


def run_spectral_start(context: Context, graph: Graph) -> None:
    """Place rows by the layout of the coarse graph."""
    run, ranges, checkpoints = context.run, pass_ranges(context, len(graph.shards)), smoothing_checkpoints(context.run)
    passes, steps = label_checkpoints(run).latest(), 1 + SMOOTHING_PASSES
    checkpoints.uncommit_broken()
    context.compute(START, lay_out_coarse_graph, [COARSE], progress=(0, steps))
    latest = checkpoints.latest()
    with checkpoints.background_removal(latest):
        for number in range(latest + 1, SMOOTHING_PASSES + 1):
            pieces = [checkpoints.piece_name(number, *shard_range) for shard_range in ranges]
            context.compute(START, smooth_coordinates, pieces, passes=passes, progress=(number, steps))
            checkpoints.commit(number, pieces, graph.shards.offsets)
    pieces, facts = checkpoints.pieces(SMOOTHING_PASSES), run.part_facts(START, COARSE)
    context.compute(START, find_bounding_box, [BOX], pieces=pieces, facts=facts)
    context.compute(START, stretch_coordinates, part_names("coordinates", len(graph.shards)))


# coordinates in the input's order ---------------------------------------------------------------------


def block_ranges(job: Job) -> list[tuple[int, int]]:
    """Cut the input's blocks into spans, one for each task."""
    step = max(1, MIN_TASK_ROWS // job.geometry.block_rows)
    return [(low, min(low + step, job.geometry.blocks)) for low in range(0, job.geometry.blocks, step)]


def find_axes(job: Job, part: str) -> None:
    """Find the principal axes of the sample."""
    sample = vectors.to_euclidean(read_sample(job), job.tree_metric)
    mean, axes = start.fit_pca(sample, job.config.layout.n_components, max_covariance_dims(job.config))
    with job.run.part(START, part) as out:
        out.write("mean", mean)
        out.write("axes", axes)
        out.attributes["sample_rows"] = len(sample)


def project_on_axes(job: Job, low: int, high: int) -> np.ndarray:
    """Return the coordinates of the input's rows [low, high) along the axes, (n, n_components) float64."""
    x = vectors.to_euclidean(job.read_rows(low, high), job.tree_metric)
    y = np.empty((len(x), job.config.layout.n_components))
    start.project_on_axes(x, job.run.read(START, AXES, "mean"), job.run.read(START, AXES, "axes"), y)
    return y


def read_given_coordinates(job: Job, low: int, high: int) -> np.ndarray:
    """Return the coordinates of the input's rows [low, high) in the user's array, (n, n_components) float64."""
    array, shape = ExternalArray(job.config.start.init), (job.geometry.rows, job.config.layout.n_components)
    real = array.dtype.kind in "fiub" and array.shape == shape
    y = array.read(low, high) if real else np.empty(0)
    if not real or not (np.abs(y.astype(np.float64)) < 1e300).all():
        raise ConfigError(
            f"start.init = {job.config.start.init!r}: the array has shape {array.shape} and dtype {array.dtype}; it "
            f"must have shape {shape} and finite real values"
        )
    return y.astype(np.float64)


def place_block_range(job: Job, part: str) -> None:
    """Place a span of the input's rows, and sort them by position."""
    graph, table = Graph(job.run), CellTable(job.run)
    coordinates_of = project_on_axes if job.config.start.init == "pca" else read_given_coordinates
    positions, y = [], []
    for block in range(*block_ranges(job)[number_of(part)]):
        block_positions = table.positions(job.run, block)
        positions.append(block_positions[block_positions >= 0])
        y.append(coordinates_of(job, *job.geometry.rows_of_block(block))[block_positions >= 0])
    all_positions, coordinates = np.concatenate(positions), np.concatenate(y)
    order = np.argsort(all_positions)
    with job.run.part(START, part) as out:
        out.write("positions", all_positions[order])
        out.write("y", coordinates[order])
        out.attributes |= {
            "offsets": np.searchsorted(all_positions[order], graph.shards.offsets).tolist(),
            **bounding_box(coordinates),
        }


@no_backup
def collect_coordinates(job: Job, part: str) -> None:
    """Collect the coordinates of a range of shards from all spans; stretch them to the box."""
    graph, (begin, end) = Graph(job.run), range_of(part)
    base = int(graph.shards.offsets[begin])
    y = np.empty((int(graph.shards.offsets[end]) - base, job.config.layout.n_components))
    names = part_names("span", len(block_ranges(job)))
    bounds = [[facts["offsets"][bound] for bound in (begin, end)] for facts in job.run.facts_of_parts(START, names)]
    spans = [(name, low, high) for name, (low, high) in zip(names, bounds, strict=True) if high > low]
    read = job.run.read_many(START, [(name, array, *ends) for name, *ends in spans for array in ("positions", "y")])
    for positions, values in zip(read, read, strict=True):
        y[positions - base] = values
    for shard in range(begin, end):
        first, stop = graph.shards.row_range(shard)
        write_coordinates(job, shard, first, y[first - base : stop - base])
    with job.run.part(START, part):
        pass


def run_placed_start(context: Context, graph: Graph) -> None:
    """Place rows by the principal axes of the sample, or at the coordinates of the user's array."""
    spans, facts = part_names("span", len(block_ranges(context.job))), {}
    if context.config.start.init == "pca":
        context.compute(START, find_axes, [AXES])
        facts = context.run.part_facts(START, AXES)
    context.compute(START, place_block_range, spans, progress=(0, 2))
    context.compute(START, find_bounding_box, [BOX], pieces=spans, facts=facts)
    ranges = pass_ranges(context, len(graph.shards))
    context.compute(
        START, collect_coordinates, [range_name("collected", *shard_range) for shard_range in ranges], progress=(1, 2)
    )


def place_at_random(job: Job, part: str) -> None:
    """Place a shard's rows at random in the box."""
    first, stop = Graph(job.run).shards.row_range(number_of(part))
    y = start.draw_in_box(job.config.layout_seed, np.arange(first, stop), job.config.layout.n_components)
    with job.run.part(START, part) as out:
        out.write("y", y.astype(np.float32))


def run_random_start(context: Context, graph: Graph) -> None:
    """Place rows at random in the box."""
    context.compute(START, place_at_random, part_names("coordinates", len(graph.shards)))
    if not context.run.is_committed(START, BOX):
        with context.run.part(START, BOX) as out:
            out.attributes["facts"] = {}


def run(context: Context) -> dict:
    """Place every row; return the facts."""
    init, graph = context.config.start.init, Graph(context.run)
    final_parts = {BOX, *part_names("coordinates", len(graph.shards))}
    if not final_parts <= set(context.run.committed_parts(START)):
        starts = {"spectral": run_spectral_start, "random": run_random_start}
        starts.get(init, run_placed_start)(context, graph)
    context.run.delete_parts(START, [part for part in context.run.committed_parts(START) if part not in final_parts])
    return {"init": init, **context.run.part_facts(START, BOX)["facts"]}


def steps_of(geometry: Geometry, init: str) -> tuple[Step, ...]:
    """Return the steps of the stage."""
    blocks, shards, stretched = geometry.blocks, geometry.shards, Step(geometry.shards, 4, 3)
    if init == "spectral":
        return Step(1, 1, 3), *pass_steps(geometry, SMOOTHING_PASSES), Step(1, shards), stretched
    if init == "random":
        return (stretched,)
    spans = -(-blocks // max(1, MIN_TASK_ROWS // geometry.block_rows))
    ranges, placed = min(shards, spans), blocks / spans
    axes = (Step(1, blocks + 1, blocks + 1),) if init == "pca" else ()
    return (
        *axes,
        Step(spans, placed + 4, placed + 4, placed),
        Step(1, spans),
        Step(ranges, 2 * spans + 2, 2 * spans + 1),
        stretched,
    )


def project(geometry: Geometry, config: Config, worker_memory: int) -> StageProjection:
    """Project what the stage will take."""
    edges, n_components = 2 * config.neighbors.graph_k * geometry.rows, config.layout.n_components
    shard = start_bytes(config, geometry.rows, min(geometry.shard_rows, geometry.rows))
    read = geometry.rows * (geometry.source_row_bytes + 28 * n_components)
    if config.start.init == "spectral":
        edge_bytes, row_bytes = geometry.index_dtype.itemsize + 4, 8 + 12 * n_components
        read = SMOOTHING_PASSES * (edges * edge_bytes + geometry.rows * row_bytes)
    return StageProjection(
        steps=steps_of(geometry, config.start.init),
        shuffled_bytes=read,
        disk_bytes=geometry.rows * 12 * n_components,
        replaced_bytes=(SMOOTHING_PASSES - 1) * geometry.rows * 4 * n_components,
        task_bytes=max(shard, pca_bytes(config, geometry)),
        temporary_bytes={"smoothed": geometry.rows * 8 * n_components},
    )


STAGE = Stage(
    START,
    setting_keys=(
        *("layout.seed", "task_memory", "input.unique", "neighbors.metric", "start.init", "start.coarse_epochs"),
        *("layout.n_components", "layout.learning_rate", "layout.min_dist", "layout.spread", "layout.a", "layout.b"),
        *("layout.negative_sample_rate", "layout.repulsion_strength"),
    ),
    reads=(VECTORS, CELLS, GRAPH, COARSEN),
    writes=(COARSE, "smoothed", CHECKPOINT, BOX, "coordinates", AXES, "span", "collected"),
    run=run,
    project=project,
    temporary_kinds=dict.fromkeys((COARSE, "smoothed", CHECKPOINT, AXES, "span", "collected"), ()),
)
