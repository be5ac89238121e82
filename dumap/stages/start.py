"""start: the first coordinates of every row, by position.

The spectral start goes over the graph pass by pass, shard by shard. A shard's edges ascend by where they end, so that
one page of the other rows after another is enough: memory holds a shard, and such pages as there is room for.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import pairwise

import numpy as np

from dumap.errors import ConfigError
from dumap.figures import defined
from dumap.kernels import coarse, start, vectors
from dumap.planning.budget import axes_rows, coarse_rows, page_bytes
from dumap.stages import Context, Job, descent, evenly, number_of, numbered, range_of, ranged, require_finite, total
from dumap.stages.cells import Table
from dumap.stages.graph import Graph
from dumap.stages.vectors import drawn
from dumap.store import Rows, Run, Series

STAGE = "start"
BOX = "box"
"""The part that says how far the coordinates reach before they are stretched, and what is told of the start."""
SEEDS, AXES, COARSE = "seeds", "axes", "coarse"
SMOOTHINGS = 8
COARSE_PAIR_BYTES = 80
"""Bytes that a pair of labels takes while pairs are added up (measured, rounded up)."""
STEP_LABELS = 256
"""Labels whose pairs a coarse shard's offsets tell apart."""
GROUPS_A_THREAD = 4
"""Groups of shards that a thread gets in a pass, so that threads end together."""
SPAN_ROWS = 65_536
"""Rows that are placed at once where they are placed in the input's order, if a block has fewer."""


class Starts:
    """The first coordinates of shards."""

    def __init__(self, run: Run, shards: int) -> None:
        self.run, self.names = run, numbered("coordinates", shards)

    def read(self, shard: int, first: int = 0, stop: int | None = None) -> np.ndarray:
        """Return those of rows [first, stop) of a shard."""
        return self.run.read(STAGE, self.names[shard], "y", first, stop)


# passes over the graph ---------------------------------------------------------------------------


def labelled(run: Run) -> Series:
    """Return the passes in which labels spread."""
    return Series(run, STAGE, "labelled", "labels")


def smoothed(run: Run) -> Series:
    """Return the passes in which coordinates are smoothed."""
    return Series(run, STAGE, "smoothed", "smooth")


def groups_of(context: Context, shards: int) -> list[tuple[int, int]]:
    """Cut shards into groups, one a task; what comes out does not depend on it."""
    row_bytes, room = 4 * context.config.layout.n_components, context.config.task_memory // 4
    fewest = -(-shards * context.geometry.shard_rows * row_bytes // room)
    count = min(shards, max(fewest, GROUPS_A_THREAD * context.threads))
    return evenly(shards, count)


class Pass:
    """One group of shards in one pass over the graph, and pages of the state of all rows before it.

    Parameters
    ----------
    job : Job
    read : callable
        `read(shard)` returns the state of a shard's rows.
    """

    def __init__(self, job: Job, read: Callable[[int], np.ndarray]) -> None:
        self.graph = Graph(job.run)
        room = job.config.task_memory // 4 // page_bytes(job.geometry.shard_rows, job.config.layout.n_components)
        self.page = lru_cache(maxsize=max(1, room))(read)

    def pages(self, indptr: np.ndarray, tails: np.ndarray) -> Iterator[tuple[np.ndarray, int, np.ndarray]]:
        """Yield what kernels take of each page in which edges end: a cursor, the page's first row, and the page."""
        cursor = indptr[:-1].copy()
        for shard in np.flatnonzero(np.bincount(tails // self.graph.shards.offsets[1])).tolist():
            yield cursor, self.graph.shards.span(shard)[0], self.page(shard)

    def ends(self, indptr: np.ndarray, tails: np.ndarray) -> np.ndarray:
        """Return the labels at the ends of a shard's edges."""
        ends = np.empty(len(tails), self.page(0).dtype)
        for page in self.pages(indptr, tails):
            start.look_up(indptr, tails, *page, ends)
        return ends


def draw_seeds(job: Job, part: str) -> None:
    """Draw the rows from which labels spread."""
    rows, found = Table(job.run).rows, []
    for first in range(0, rows, 1 << 20):
        found.append(start.draw_seeds(job.config.seed, first, min(rows, first + (1 << 20)), coarse_rows(rows), rows))
    with job.run.part(STAGE, part) as out:
        out.write("rows", np.concatenate(found))
        out.attributes["count"] = sum(map(len, found))


def labels_reader(job: Job, graph: Graph, number: int) -> Callable[[int], np.ndarray]:
    """Return what reads shards' labels after a pass; before the first, seeds alone have one."""
    if number:
        series = labelled(job.run)
        return lambda shard: series.read(number, "labels", *graph.shards.span(shard))
    seeds = job.run.read(STAGE, SEEDS, "rows")

    def seeded(shard: int) -> np.ndarray:
        first, stop = graph.shards.span(shard)
        labels = np.full(stop - first, start.UNLABELLED, job.geometry.index_dtype)
        low, high = np.searchsorted(seeds, [first, stop])
        labels[seeds[low:high] - first] = np.arange(low, high)
        return labels

    return seeded


def spread_labels(job: Job, part: str, lowest: bool) -> None:
    """Take a group of shards' labels to the next pass: they spread, or rows that no seed reaches get some."""
    graph = Graph(job.run)
    number, begin, end = Series.place(part)
    here, found, new, left = Pass(job, labels_reader(job, graph, number - 1)), [], 0, 0
    for shard in range(begin, end):
        first, _ = graph.shards.span(shard)
        indptr, tails, weights = graph.read(shard)
        labels = here.page(shard).copy()
        if lowest:
            counts = start.label_lowest(indptr, tails, first, labels, job.config.seed)
        else:
            counts = start.spread(indptr, weights, here.ends(indptr, tails), first, labels)
        found.append(labels)
        new, left = new + counts[0], left + counts[1]
    with job.run.part(STAGE, part) as out:
        out.write("labels", np.concatenate(found))
        out.attributes |= {"new": int(new), "left": int(left)}


def coarsen(job: Job, part: str) -> None:
    """Add up a shard's edges by the labels at their ends."""
    graph, count = Graph(job.run), job.run.summary(STAGE, SEEDS)["count"]
    number, shard, _ = Series.place(part)
    here, (indptr, tails, weights) = Pass(job, labels_reader(job, graph, number)), graph.read(shard)
    labels = here.page(shard)
    pairs, sums = coarse.coarse_edges(indptr, weights, labels, here.ends(indptr, tails), count)
    with job.run.part(STAGE, part) as out:
        out.write("pairs", pairs)
        out.write("sums", sums)
        out.write("sizes", np.bincount(labels[labels >= 0], minlength=count))
        heads = np.arange(0, count + STEP_LABELS, STEP_LABELS)
        out.attributes["offsets"] = np.searchsorted(pairs, heads * count).tolist()


def solve(job: Job, part: str, names: list[str]) -> None:
    """Embed the coarse graph, its edges added up over the shards, some labels at a time, and lay it out from there."""
    store, n_components = job.run, job.config.layout.n_components
    count = store.summary(STAGE, SEEDS)["count"]
    offsets = np.array([store.summary(STAGE, name)["offsets"] for name in names])
    ranges = np.cumsum(np.diff(offsets, axis=1).sum(axis=0)) * COARSE_PAIR_BYTES // (job.config.task_memory // 4)
    cuts = [0, *(np.flatnonzero(np.diff(ranges)) + 1).tolist(), len(ranges)]
    pairs, sums, sizes = [np.empty(0, np.int64)], [np.empty(0, np.int64)], np.zeros(count, np.int64)
    for low, high in pairwise(cuts):
        spans = [(name, int(own[low]), int(own[high])) for name, own in zip(names, offsets, strict=True)]
        found = [
            np.concatenate([store.read(STAGE, name, array, a, b) for name, a, b in spans if b > a] or [sums[0]])
            for array in ("pairs", "sums")
        ]
        more = coarse.strongest(*coarse.add_pairs(*found), count, coarse.most_edges(count))
        pairs.append(more[0])
        sums.append(more[1])
    for name in names:
        sizes += store.read(STAGE, name, "sizes")
    edges, rows = (np.concatenate(pairs), np.concatenate(sums)), int(np.count_nonzero(sizes))
    graph = coarse.matrix_of(*edges, count)
    y, components, short = coarse.spectral(graph, sizes, n_components, job.config.seed)
    epochs = job.config.start.coarse_epochs if rows < sizes.sum() else 0
    if epochs:
        y = coarse.lay_out(coarse.leading(graph, *edges), sizes, y, descent(job)._replace(n_epochs=epochs))
        require_finite(job, y[sizes > 0], "start: in the coarse layout")
    with store.part(STAGE, part) as out:
        out.write("y", y)
        out.attributes |= {
            "coarse_rows": rows,
            "coarse_epochs": epochs,
            "components": components,
            "coarse_residual": defined(short),
            "unseeded": Table(store).rows - int(sizes.sum()),
        }


def smooth(job: Job, part: str, passes: int) -> None:
    """Take a group of shards' coordinates to the next pass; in the first, their labels after `passes` place rows."""
    graph, series = Graph(job.run), smoothed(job.run)
    number, begin, end = Series.place(part)
    if number > 1:
        here = Pass(job, lambda shard: series.read(number - 1, "y", *graph.shards.span(shard)))
    else:
        known, labels = job.run.read(STAGE, COARSE, "y"), labels_reader(job, graph, passes)
        here = Pass(job, lambda shard: start.interpolate(labels(shard), known, job.config.seed))
    found, moments = [], np.zeros((6, job.config.layout.n_components))
    for shard in range(begin, end):
        indptr, tails, weights = graph.read(shard)
        y = here.page(shard)
        sums, totals = np.zeros(y.shape), np.zeros(len(y))
        for page in here.pages(indptr, tails):
            start.pull(indptr, tails, weights, *page, sums, totals)
        moved, more = start.smooth(y, sums, totals)
        found.append(moved)
        moments += more
    with job.run.part(STAGE, part) as out:
        out.write("y", np.concatenate(found))
        out.attributes |= {"moments": moments.tolist(), **reach_of(np.concatenate(found))}


def reach_of(y: np.ndarray) -> dict[str, list[float]]:
    """Tell the least and the greatest coordinates."""
    y = y.astype(np.float64) if len(y) else np.full((1, y.shape[1]), np.nan)
    return {"low": y.min(axis=0).tolist(), "high": y.max(axis=0).tolist()}


def measure(job: Job, part: str, pieces: list[str], facts: dict) -> None:
    """Find how far coordinates reach, of all the parts that hold some; keep what is told of the start.

    Coordinates that were laid out are of the map's own size: the box is placed, not stretched.
    """
    found = [job.run.summary(STAGE, piece) for piece in pieces]
    low = np.nanmin(np.array([own["low"] for own in found], float), axis=0)  # null where there are none
    high = np.nanmax(np.array([own["high"] for own in found], float), axis=0)
    if facts.get("coarse_epochs"):
        high = low + coarse.SPAN
    if "moments" in found[0]:
        facts = {**facts, "residual": start.residual(np.sum([own["moments"] for own in found], axis=0))}
    with job.run.part(STAGE, part) as out:
        out.attributes |= {
            "low": low.tolist(),
            "high": high.tolist(),
            "facts": facts,
        }


def write_coordinates(job: Job, shard: int, first: int, y: np.ndarray) -> None:
    """Write a shard's coordinates, stretched to the box."""
    box = job.run.summary(STAGE, BOX)
    with job.run.part(STAGE, numbered("coordinates", shard + 1)[-1]) as out:
        out.write("y", start.into_box(y, np.array(box["low"]), np.array(box["high"]), job.config.seed, first))


def stretch(job: Job, part: str) -> None:
    """Stretch a shard's coordinates after the last pass to the box."""
    graph, shard = Graph(job.run), number_of(part)
    span = graph.shards.span(shard)
    write_coordinates(job, shard, span[0], smoothed(job.run).read(SMOOTHINGS, "y", *span))


def spectral_start(context: Context, graph: Graph) -> None:
    """Place rows by the eigenvectors of the coarsened graph."""
    run, groups = context.run, groups_of(context, len(graph.shards))
    labels, places = labelled(run), smoothed(run)
    for series in (labels, places):
        series.forget_broken()
    context.compute(STAGE, draw_seeds, [SEEDS])
    passes, left, lowest = labels.latest(), -1, False
    if passes:
        left, lowest = (run.summary(STAGE, labels.name(passes))[fact] for fact in ("left", "lowest"))
    while left:
        pieces = [labels.piece_name(passes + 1, *group) for group in groups]
        progress = passes, passes + 2 + SMOOTHINGS
        context.compute(STAGE, spread_labels, pieces, lowest=lowest, progress=progress)
        passes += 1
        left, lowest = total(run, STAGE, pieces, "left"), not total(run, STAGE, pieces, "new")
        labels.commit(passes, pieces, graph.shards.offsets, left=left, lowest=lowest)
    steps = passes + 1 + SMOOTHINGS
    if not run.is_committed(STAGE, COARSE):
        singly = pairwise(range(len(graph.shards) + 1))  # a shard's pairs may be as many as its edges
        pieces = [f"{COARSE}-{labels.piece_name(passes, *shard)}" for shard in singly]
        context.compute(STAGE, coarsen, pieces, progress=(passes, steps))
        context.compute(STAGE, solve, [COARSE], names=pieces, progress=(passes, steps))
    for number in range(places.latest() + 1, SMOOTHINGS + 1):
        pieces = [places.piece_name(number, *group) for group in groups]
        context.compute(STAGE, smooth, pieces, passes=passes, progress=(passes + number, steps))
        places.commit(number, pieces, graph.shards.offsets)
    facts = {**run.summary(STAGE, COARSE), "label_passes": passes}
    context.compute(STAGE, measure, [BOX], pieces=places.pieces(SMOOTHINGS), facts=facts)
    context.compute(STAGE, stretch, numbered("coordinates", len(graph.shards)))


# places in the input's order ---------------------------------------------------------------------


def spans_of(job: Job) -> list[tuple[int, int]]:
    """Cut the input's blocks into spans, one a task."""
    step = max(1, SPAN_ROWS // job.geometry.block_rows)
    return [(low, min(low + step, job.geometry.blocks)) for low in range(0, job.geometry.blocks, step)]


def find_axes(job: Job, part: str) -> None:
    """Find the principal axes of the sample."""
    sample = vectors.partition_space(drawn(job), job.config.neighbors.metric)
    mean, axes = start.principal_axes(sample, job.config.layout.n_components, axes_rows(job.config))
    with job.run.part(STAGE, part) as out:
        out.write("mean", mean)
        out.write("axes", axes)
        out.attributes["sample_rows"] = len(sample)


def project_rows(job: Job, low: int, high: int) -> np.ndarray:
    """Return the places of the input's rows [low, high) along the axes."""
    x = vectors.partition_space(job.rows(low, high), job.config.neighbors.metric)
    y = np.empty((len(x), job.config.layout.n_components))
    start.project(x, job.run.read(STAGE, AXES, "mean"), job.run.read(STAGE, AXES, "axes"), y)
    return y


def given_rows(job: Job, low: int, high: int) -> np.ndarray:
    """Return the places that the user's array gives the input's rows [low, high)."""
    given, wanted = Rows(job.config.start.init), (job.geometry.rows, job.config.layout.n_components)
    real = given.dtype.kind in "fiub" and given.shape == wanted
    y = given.read(low, high) if real else np.empty(0)
    if not real or not (np.abs(y.astype(np.float64)) < 1e300).all():
        raise ConfigError(
            f"start.init = {job.config.start.init!r}: the array has shape {given.shape} and dtype {given.dtype}; it "
            f"must have shape {wanted} and finite real values"
        )
    return y.astype(np.float64)


def place_span(job: Job, part: str) -> None:
    """Place a span of the input's rows, and sort them by position."""
    graph, table = Graph(job.run), Table(job.run)
    way = project_rows if job.config.start.init == "pca" else given_rows
    positions, y = [], []
    for block in range(*spans_of(job)[number_of(part)]):
        own = table.positions(job.run, block)
        positions.append(own[own >= 0])
        y.append(way(job, *job.geometry.block(block))[own >= 0])
    at, found = np.concatenate(positions), np.concatenate(y)
    order = np.argsort(at)
    with job.run.part(STAGE, part) as out:
        out.write("positions", at[order])
        out.write("y", found[order])
        out.attributes |= {"offsets": np.searchsorted(at[order], graph.shards.offsets).tolist(), **reach_of(found)}


def collect(job: Job, part: str) -> None:
    """Collect a group of shards' places from all spans, and stretch them to the box."""
    graph, (begin, end) = Graph(job.run), range_of(part)
    base = int(graph.shards.offsets[begin])
    y = np.empty((int(graph.shards.offsets[end]) - base, job.config.layout.n_components))
    for name in numbered("span", len(spans_of(job))):
        offsets = job.run.summary(STAGE, name)["offsets"]
        low, high = offsets[begin], offsets[end]
        if high > low:
            positions, found = (job.run.read(STAGE, name, array, low, high) for array in ("positions", "y"))
            y[positions - base] = found
    for shard in range(begin, end):
        first, stop = graph.shards.span(shard)
        write_coordinates(job, shard, first, y[first - base : stop - base])
    with job.run.part(STAGE, part):
        pass


def placed_start(context: Context, graph: Graph) -> None:
    """Place rows by the principal axes of the sample, or where the user's array says."""
    spans, facts = numbered("span", len(spans_of(context.job))), {}
    if context.config.start.init == "pca":
        context.compute(STAGE, find_axes, [AXES])
        facts = context.run.summary(STAGE, AXES)
    context.compute(STAGE, place_span, spans, progress=(0, 2))
    context.compute(STAGE, measure, [BOX], pieces=spans, facts=facts)
    groups = groups_of(context, len(graph.shards))
    context.compute(STAGE, collect, [ranged("collected", *group) for group in groups], progress=(1, 2))


def scatter(job: Job, part: str) -> None:
    """Place a shard's rows evenly in the box."""
    first, stop = Graph(job.run).shards.span(number_of(part))
    y = start.random_box(job.config.seed, np.arange(first, stop), job.config.layout.n_components)
    with job.run.part(STAGE, part) as out:
        out.write("y", y.astype(np.float32))


def random_start(context: Context, graph: Graph) -> None:
    """Place rows evenly in the box."""
    context.compute(STAGE, scatter, numbered("coordinates", len(graph.shards)))
    if not context.run.is_committed(STAGE, BOX):
        with context.run.part(STAGE, BOX) as out:
            out.attributes["facts"] = {}


def run(context: Context) -> dict:
    """Place every row; return how."""
    init, graph = context.config.start.init, Graph(context.run)
    wanted = {BOX, *numbered("coordinates", len(graph.shards))}
    if not wanted <= set(context.run.committed(STAGE)):
        ways = {"spectral": spectral_start, "random": random_start}
        ways.get(init, placed_start)(context, graph)
    for part in context.run.committed(STAGE):
        if part not in wanted:
            context.run.discard(STAGE, part)
    return {"init": init, **context.run.summary(STAGE, BOX)["facts"]}
