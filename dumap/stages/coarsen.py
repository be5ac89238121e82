"""coarsen: labels spread along the edges; rows with equal labels become one row of the coarse graph."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np

from dumap.artifacts.cells import CellTable
from dumap.artifacts.coarsen import (
    EDGES,
    LABEL_SOURCES,
    label_checkpoints,
    labels_reader,
    read_unlabelled,
    write_unlabelled,
)
from dumap.artifacts.graph import Graph
from dumap.artifacts.job import Job
from dumap.artifacts.part_names import CELLS, COARSEN, GRAPH, sum_fact
from dumap.config import Config
from dumap.kernels import coarse, start
from dumap.planning.budget import coarse_rows, start_bytes
from dumap.planning.geometry import Geometry
from dumap.planning.plan import StageProjection
from dumap.planning.steps import Step, senders_of
from dumap.stages import Context, Stage
from dumap.stages.passes import GraphPass, pass_ranges, pass_steps
from dumap.store import CHECKPOINT, Checkpoints, Run

COARSE_PAIR_BYTES = 80
"""Bytes of a pair of labels while pairs are added up (measured, rounded up)."""
GRAPH_READS = 4
"""How often all tasks together read the whole graph: an assumption. Most reads of the passes are those of the first
two."""
SUMMED_EDGES = "added"
"""The parts that hold each shard's edges, summed by labels, until the edges of all shards are merged."""
LABELS_PER_OFFSET = 256
"""Labels between two offsets into a shard's pairs."""


def draw_label_sources(job: Job, part: str) -> None:
    """Draw the rows from which labels spread."""
    rows, sources = CellTable(job.run).rows, []
    for first in range(0, rows, 1 << 20):
        sources.append(
            start.draw_label_sources(job.config.seed, first, min(rows, first + (1 << 20)), coarse_rows(rows), rows)
        )
    with job.run.part(COARSEN, part) as out:
        out.write("rows", np.concatenate(sources))
        out.attributes["count"] = sum(map(len, sources))


def spread_labels(job: Job, part: str, should_label_lowest: bool) -> None:
    """Run one label pass on a shard range: labels spread to rows that have none.

    With `should_label_lowest`, rows that no label reaches get labels of their own instead. The rows that are left
    without a label are the only ones whose edges the next pass needs.
    """
    graph = Graph(job.run)
    number, begin, end = Checkpoints.parse_piece_name(part)
    graph_pass, new_labels, new, left = GraphPass(job, labels_reader(job, graph, number - 1)), [], 0, 0
    with job.run.part(COARSEN, part) as out:
        for shard in range(begin, end):
            labels = graph_pass.read_page(shard).copy()
            new_labels.append(labels)
            if number > 1 and start.UNLABELLED not in labels:  # the first pass also looks for rows without edges
                continue
            edges = read_unlabelled(job.run, graph, number - 1, shard, labels)
            positions, labels_of_rows = graph.shards.row_range(shard)[0] + edges.rows, labels[edges.rows]
            if should_label_lowest:
                counts = start.label_lowest_hashes(
                    edges.indptr, edges.tails, positions, labels_of_rows, job.config.seed
                )
            else:
                ends = graph_pass.read_tail_labels(edges.indptr, edges.tails)
                counts = start.spread_labels(edges.indptr, edges.weights, ends, positions, labels_of_rows)
            labels[edges.rows] = labels_of_rows
            write_unlabelled(out, graph, shard, edges.select(labels_of_rows == start.UNLABELLED))
            new, left = new + counts[0], left + counts[1]
        out.write("labels", np.concatenate(new_labels))
        out.attributes |= {"new": int(new), "left": int(left)}


def sum_by_label(job: Job, part: str) -> None:
    """Sum a shard's edges by the labels at both ends."""
    graph, count = Graph(job.run), job.run.part_facts(COARSEN, LABEL_SOURCES)["count"]
    number, shard, _ = Checkpoints.parse_piece_name(part)
    graph_pass, (indptr, tails, weights) = GraphPass(job, labels_reader(job, graph, number)), graph.read(shard)
    labels = graph_pass.read_page(shard)
    pairs, sums = coarse.sum_edges_by_label(indptr, weights, labels, graph_pass.read_tail_labels(indptr, tails), count)
    with job.run.part(COARSEN, part) as out:
        out.write("pairs", pairs)
        out.write("sums", sums)
        out.write("sizes", np.bincount(labels[labels >= 0], minlength=count))
        heads = np.arange(0, count + LABELS_PER_OFFSET, LABELS_PER_OFFSET)
        out.attributes["offsets"] = np.searchsorted(pairs, heads * count).tolist()


def merge_edges(job: Job, part: str, names: list[str]) -> None:
    """Sum the edges of all shards, a range of labels at a time, and keep the strongest of each label."""
    store, count = job.run, job.run.part_facts(COARSEN, LABEL_SOURCES)["count"]
    offsets = np.array([store.part_facts(COARSEN, name)["offsets"] for name in names])
    ranges = np.cumsum(np.diff(offsets, axis=1).sum(axis=0)) * COARSE_PAIR_BYTES // (job.config.task_memory // 4)
    bounds = [0, *(np.flatnonzero(np.diff(ranges)) + 1).tolist(), len(ranges)]
    pairs, sums, sizes = [np.empty(0, np.int64)], [np.empty(0, np.int64)], np.zeros(count, np.int64)
    for low, high in pairwise(bounds):
        spans = [(name, int(offset[low]), int(offset[high])) for name, offset in zip(names, offsets, strict=True)]
        arrays = [
            np.concatenate([store.read(COARSEN, name, array, a, b) for name, a, b in spans if b > a] or [sums[0]])
            for array in ("pairs", "sums")
        ]
        strongest = coarse.keep_strongest(*coarse.sum_equal_pairs(*arrays), count, coarse.max_row_edges(count))
        pairs.append(strongest[0])
        sums.append(strongest[1])
    for name in names:
        sizes += store.read(COARSEN, name, "sizes")
    with store.part(COARSEN, part) as out:
        out.write("pairs", np.concatenate(pairs))
        out.write("sums", np.concatenate(sums))
        out.write("sizes", sizes)
        out.attributes |= {
            "coarse_rows": int(np.count_nonzero(sizes)),
            "unseeded": CellTable(store).rows - int(sizes.sum()),
        }


def finished_pieces(store: Run, labels: Checkpoints, number: int) -> dict[tuple[int, int], str]:
    """Return the pieces of a pass whose rows all have labels, by shard range: later checkpoints hold them too."""
    pieces = labels.pieces(number) if number else []
    left = [facts["left"] for facts in store.facts_of_parts(COARSEN, pieces)]
    return {
        Checkpoints.parse_piece_name(piece)[1:]: piece for piece, rows in zip(pieces, left, strict=True) if not rows
    }


def run(context: Context) -> dict:
    """Label the rows and sum the edges between labels, if the start is spectral; return the figures."""
    if context.config.start.init != "spectral":
        return {}
    store, graph, labels = context.run, Graph(context.run), label_checkpoints(context.run)
    ranges = pass_ranges(context, len(graph.shards))
    labels.uncommit_broken()
    context.compute(COARSEN, draw_label_sources, [LABEL_SOURCES])
    passes, left, should_label_lowest = labels.latest(), -1, False
    if passes:
        left, should_label_lowest = (
            store.part_facts(COARSEN, labels.name(passes))[fact] for fact in ("left", "lowest")
        )
    with labels.background_removal(passes):
        while left:
            finished = finished_pieces(store, labels, passes)
            pieces = [finished.get(ends) or labels.piece_name(passes + 1, *ends) for ends in ranges]
            unfinished = [piece for ends, piece in zip(ranges, pieces, strict=True) if ends not in finished]
            context.compute(
                COARSEN,
                spread_labels,
                unfinished,
                should_label_lowest=should_label_lowest,
                progress=(passes, passes + 2),
            )
            passes += 1
            left, should_label_lowest = (
                sum_fact(store, COARSEN, unfinished, "left"),
                not sum_fact(store, COARSEN, unfinished, "new"),
            )
            labels.commit(passes, pieces, graph.shards.offsets, left=left, lowest=should_label_lowest)
    if not store.is_committed(COARSEN, EDGES):
        singly = pairwise(range(len(graph.shards) + 1))  # a shard's pairs may be as many as its edges
        pieces = [f"{SUMMED_EDGES}-{labels.piece_name(passes, *shard)}" for shard in singly]
        context.compute(COARSEN, sum_by_label, pieces, progress=(passes, passes + 1))
        context.compute(COARSEN, merge_edges, [EDGES], names=pieces, progress=(passes, passes + 1))
    store.delete_parts(COARSEN, [part for part in store.committed_parts(COARSEN) if part.startswith(SUMMED_EDGES)])
    return {"label_passes": passes, **store.part_facts(COARSEN, EDGES)}


def label_passes(rows: int) -> int:
    """Return in how many passes all rows get a label, at most: in each, the rows of a label grow fourfold (assumed)."""
    return 2 + math.ceil(math.log(rows / coarse_rows(rows), 4))


def project(geometry: Geometry, config: Config, worker_memory: int) -> StageProjection:
    """Project what the stage will take."""
    edges, index_bytes = 2 * config.neighbors.graph_k * geometry.rows, geometry.index_dtype.itemsize
    if config.start.init != "spectral":
        return StageProjection((), 0, 0, 0)
    count, pages, passes = coarse_rows(geometry.rows), senders_of(geometry.shards), label_passes(geometry.rows)
    coarse_bytes = (
        16 * min(edges, count * coarse.max_row_edges(count)) + 8 * count
    )  # the edges and the row sizes of the coarse graph
    return StageProjection(
        steps=(
            Step(1, 1),
            *pass_steps(geometry, passes),
            Step(geometry.shards, pages + 5, pages + 5),
            Step(1, geometry.shards + 1, 3 * geometry.shards),
        ),
        shuffled_bytes=GRAPH_READS * (edges * (index_bytes + 4) + geometry.rows * (8 + 3 * index_bytes)) + edges * 8,
        disk_bytes=edges * 8 + geometry.rows * index_bytes + coarse_bytes,
        replaced_bytes=(passes - 1) * geometry.rows * index_bytes,
        task_bytes=start_bytes(config, geometry.rows, min(geometry.shard_rows, geometry.rows)),
        temporary_bytes={SUMMED_EDGES: edges * 8},
    )


STAGE = Stage(
    COARSEN,
    setting_keys=("seed", "start.init"),
    reads=(CELLS, GRAPH),
    writes=(LABEL_SOURCES, "labels", CHECKPOINT, SUMMED_EDGES, EDGES),
    run=run,
    project=project,
    temporary_kinds={SUMMED_EDGES: ()},
)
